"""The house rules of CONTRIBUTING.md that a program can check; every checker catches planted faults."""
import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("loops", "models", "data", "utils")
MAY_IMPORT = {"script": {"engine", *ROOMS}, "loops": {"engine", *ROOMS},
              "engine": {"utils"}, "models": {"models", "utils"}, "data": {"data", "utils"},
              "utils": {"utils"}, "tests": {"script", "engine", "tests", *ROOMS}}
TRAINING = {"loops.trainer", "loops.assembly", "loops.prepare", "loops.tuning"}
STAIRS = {"models.spec": set(), "models.layout": {"models.spec"},
          "models.count": {"models.spec", "models.layout"}, "models.zoo_light": {"models.spec"},
          "models.zoo": {"models.spec", "models.layout", "models.zoo_light"},
          "models.graph": {"models.spec", "models.layout"}, "loops.parity": set(),
          "loops.exporting": {"loops.parity", "loops.accuracy", "loops.web_folder"},
          "loops.export_report": {"loops.exporting"}, "loops.detecting": set(),
          "loops.trainer": {"loops.accuracy"}, "loops.assembly": {"loops.trainer"},
          "loops.prepare": {"loops.trainer", "loops.assembly"}, "loops.tuning": TRAINING,
          "loops.prune_plan": set(), "loops.pruning": {"loops.tuning", "loops.prune_plan"},
          "loops.prune_report": {"loops.tuning", "loops.prune_plan", "loops.pruning"},
          "loops.search_space": TRAINING, "loops.searching": {"loops.search_space", "loops.tuning"},
          "loops.serving_http": set(), "loops.serving_port": {"loops.serving_http"},
          "loops.serving": {"loops.serving_port", "loops.detecting"}, "loops.web_folder": set(),
          "loops.benchmark_worker": {"loops.accuracy"}, "loops.benchmark_run": set(),
          "loops.search_report": {"loops.search_space", "loops.searching", "loops.tuning"}}
HEAVY = ("torch", "cv2", "albumentations", "matplotlib", "pycocotools", "tensorboard")
TORCH_FREE = ("spec", "layout", "zoo", "zoo_light", "count", "graph", "artifact")
UNSAFE = {"pickle.load", "pickle.loads", "marshal.loads", "yaml.load", "yaml.unsafe_load", "yaml.full_load",
          "os.system", "os.popen"}
SCRIPTS = sorted(path.name for path in ROOT.glob("*.py") if "__main__" in path.read_text(encoding="utf-8"))
FILES = sorted(path for room in ("", *ROOMS, "tests") for path in (ROOT / room).glob("*.py"))


def _room(path: str) -> str:
    if "/" in path:
        return path.split("/")[0]
    return "engine" if path == "engine.py" else "script"


def _imports(path: str, tree: ast.AST) -> list[tuple[int, str]]:
    """(line, dotted module) of every import anywhere in the file, relative ones resolved."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, name.name) for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join((*path.split("/")[:-1][:1] * bool(node.level), *filter(None, [node.module])))
            found += [(node.lineno, f"{base}.{name.name}" if base in ROOMS else base) for name in node.names]
    return found


def _import_faults(path: str, text: str) -> list[str]:
    scripts = {name.stem for name in ROOT.glob("*.py")} - {"engine"} | {"train", "val", "detect"}
    faults, module, room = [], path[:-3].replace("/", "."), _room(path)
    for line, name in dict.fromkeys(_imports(path, ast.parse(text))):
        top = name.split(".")[0]
        target = "script" if top in scripts else top
        if target in MAY_IMPORT and target not in MAY_IMPORT[room]:
            faults.append(f"{path}:{line}: {room} may not import {name}")
        elif module in STAIRS and target == room and name not in STAIRS[module]:
            faults.append(f"{path}:{line}: {module} may not stand on {name}")
    return faults


def _size_faults(path: str, text: str) -> list[str]:
    faults = [f"{path}: {n} lines, 250 are allowed"] if (n := len(text.splitlines())) > 250 else []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            limit = 60 if node.name == "main" and _room(path) == "script" else 40
            if (length := node.end_lineno - node.lineno + 1) > limit:
                faults.append(f"{path}:{node.lineno}: {node.name} has {length} lines, {limit} are allowed")
    return faults


def _danger_faults(path: str, text: str) -> list[str]:
    faults = []
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Call):
            continue
        name, words = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
        bad = name in {"eval", "exec", *UNSAFE} or "True" in (words.get("shell"), words.get("allow_pickle"))
        if bad or (name == "torch.load" and words.get("weights_only") != "True"):
            faults.append(f"{path}:{node.lineno}: {name} as called here can run what a file says")
    return faults


def _manner_faults(path: str, text: str) -> list[str]:
    tree, faults = ast.parse(text), []
    if not ast.get_docstring(tree):
        faults.append(f"{path}:1: the module has no docstring")
    for number, line in enumerate(text.splitlines(), 1):
        if re.search(r"\b(TO" r"DO|FIX" r"ME|XX" r"X)\b", line):
            faults.append(f"{path}:{number}: an unfinished-work mark")
        if re.search(r"[\"' (=](/wo" r"rk|/ho" r"me|/ro" r"ot)/", line):
            faults.append(f"{path}:{number}: a path of one machine")
    if _room(path) != "tests":
        faults += [f"{path}:{node.lineno}: assert outside tests: raise an error that says what is needed"
                   for node in ast.walk(tree) if isinstance(node, ast.Assert)]
    return faults


def _public(body: list[ast.stmt], prefix: str = "") -> list[tuple[str, ast.FunctionDef]]:
    """Functions and methods that others may call, with their full names."""
    found = []
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found += [(prefix + node.name, node)] if not node.name.startswith("_") else []
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            found += _public(node.body, f"{node.name}.")
    return found


def _signature_faults(path: str, text: str) -> list[str]:
    if _room(path) == "tests":
        return []
    faults, tree = [], ast.parse(text)
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]
    faults += [f"{path}:{node.lineno}: class {node.name} has no docstring"
               for node in classes if not ast.get_docstring(node)]
    for name, node in _public(tree.body):
        given = [node.args.vararg, node.args.kwarg, *node.args.posonlyargs, *node.args.args,
                 *node.args.kwonlyargs]
        bare = [a.arg for a in given if a and a.annotation is None and a.arg not in ("self", "cls")]
        if bare or node.returns is None:
            missing = ", ".join(bare) or "what it returns"
            faults.append(f"{path}:{node.lineno}: {name} lacks the type of {missing}")
        if node.name != "forward" and not ast.get_docstring(node):      # the class speaks for its forward
            faults.append(f"{path}:{node.lineno}: {name} has no docstring")
    return faults


CHECKS = {"imports": _import_faults, "sizes": _size_faults, "dangers": _danger_faults,
          "manners": _manner_faults, "signatures": _signature_faults}
PLANTED = [
    ("imports", "detect.py", "import train\n", "script may not import train"),
    ("imports", "engine.py", "def f():\n    from models.loss import loss\n", "may not import models.loss"),
    ("imports", "models/a.py", "from data import coco\n", "models may not import data.coco"),
    ("imports", "data/a.py", "import models.zoo\n", "data may not import models.zoo"),
    ("imports", "utils/a.py", "from engine import fit\n", "utils may not import engine"),
    ("imports", "models/layout.py", "from .network import Network\n", "may not stand on models.network"),
    ("imports", "engine.py", "from loops.trainer import Run\n", "engine may not import loops"),
    ("imports", "models/a.py", "import loops.prepare\n", "models may not import loops"),
    ("imports", "loops/prepare.py", "from train import parse\n", "loops may not import train"),
    ("imports", "loops/trainer.py", "from loops.prepare import prepare\n", "may not stand on loops.prepare"),
    ("sizes", "utils/a.py", "x = 1\n" * 251, "251 lines"),
    ("sizes", "utils/a.py", "def f():\n" + "    x = 1\n" * 40, "f has 41 lines"),
    ("sizes", "train.py", "def main():\n" + "    x = 1\n" * 60, "main has 61 lines"),
    ("dangers", "utils/a.py", "eval('1')\n", "eval"),
    ("dangers", "utils/a.py", "import torch\ntorch.load('a')\n", "torch.load"),
    ("dangers", "utils/a.py", "import torch\ntorch.load('a', weights_only=False)\n", "torch.load"),
    ("dangers", "utils/a.py", "import yaml\nyaml.load('a', Loader=yaml.Loader)\n", "yaml.load"),
    ("dangers", "utils/a.py", "import subprocess\nsubprocess.run('ls', shell=True)\n", "subprocess.run"),
    ("manners", "utils/a.py", "x = 1\n", "no docstring"),
    ("manners", "utils/a.py", '"""A."""\n# TO' 'DO: later\n', "unfinished"),
    ("manners", "utils/a.py", '"""A."""\nx = "/wo' 'rk/data"\n', "path of one machine"),
    ("manners", "data/a.py", '"""A."""\nassert True\n', "assert outside tests"),
    ("signatures", "utils/a.py", 'def f(a) -> int:\n    """A."""\n', "f lacks the type of a"),
    ("signatures", "utils/a.py", 'class A:\n    """A."""\n    def f() -> int:\n        pass\n', "A.f has no"),
]


@pytest.mark.parametrize("rule", CHECKS)
def test_every_file_keeps_the_rule_of(rule: str):
    faults = []
    for path in FILES:
        faults += CHECKS[rule](path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8"))
    assert not faults, "\n" + "\n".join(faults)


@pytest.mark.parametrize(("rule", "path", "text", "said"), PLANTED, ids=[f"{p[0]}-{p[3]}" for p in PLANTED])
def test_a_planted_fault_is_caught_and_located(rule: str, path: str, text: str, said: str):
    faults = CHECKS[rule](path, text)
    assert any(said in fault and fault.startswith(path) for fault in faults), faults


def test_what_the_rules_allow_is_not_reported():
    text = ('"""A room."""\nfrom utils.boxes import iou_pairs\nimport torch\n\n\n'
            'def f(net: torch.nn.Module) -> None:\n'
            '    """Nothing."""\n    net.eval()\n    torch.load("a", weights_only=True)\n')
    assert not [fault for check in CHECKS.values() for fault in check("models/a.py", text)]
    assert not _import_faults("train.py", "from prepare import prepare\n")
    assert not _import_faults("prepare.py", "import engine\nfrom data import coco\nfrom trainer import Run\n")


def _cycles(edges: dict[str, set[str]]) -> list[str]:
    """Modules that lie on an import circle: what is left when leaves are taken away again and again."""
    left = dict(edges)
    while leaves := [name for name, uses in left.items() if not uses & left.keys()]:
        for name in leaves:
            del left[name]
    return sorted(left)


def test_no_import_circle_exists():
    modules = {path.relative_to(ROOT).as_posix()[:-3].replace("/", "."): path for path in FILES}
    edges = {name: {used for _, used in _imports(name.replace(".", "/"), ast.parse(path.read_text()))}
             for name, path in modules.items()}
    assert not _cycles(edges), "these modules import each other in a circle: " + ", ".join(_cycles(edges))


def test_an_import_circle_would_be_found():
    assert _cycles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}, "e": set()}) == ["a", "b", "c", "d"]


def test_the_network_as_data_never_loads_torch():
    present = [name for name in TORCH_FREE if (ROOT / "models" / f"{name}.py").exists()]
    code = f"import sys, {', '.join(f'models.{name}' for name in present)}; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert present and out.stdout.strip() == "False", "importing the records loads torch"


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_answers_without_loading_torch(script: str):
    code = (f"import runpy, sys; sys.argv = ['{script}', '--help']\n"
            f"try:\n    runpy.run_path('{script}', run_name='__main__')\nexcept SystemExit as end:\n"
            f"    heavy = {set(HEAVY)} & set(sys.modules)\n"
            f"    sys.stderr.write(f'{{end.code}} {{sorted(heavy)}}')")
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert out.stderr.endswith("0 []"), f"{script} --help: exit code and what was loaded: {out.stderr}"


def test_ruff_finds_nothing():
    pytest.importorskip("ruff", reason="needs ruff (requirements-dev.txt)")
    names = [path.relative_to(ROOT).as_posix() for path in FILES]
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format", "concise", *names]
    out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert out.returncode == 0, "\n" + out.stdout + out.stderr
