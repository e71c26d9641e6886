"""The house rules of CONTRIBUTING.md that a program can check; every checker catches planted faults."""
import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Each room and the rooms it may stand on, from the ground up; a folder in a room may be a room of its own.
GROUND = {"utils": (), "models": ("utils",), "data": ("utils",), "compress": ("models",),
          "data.doctor": ("data",),
          "deploy.artifact": ("models",), "deploy.runtimes": ("deploy.artifact", "compress"),
          "detection": ("data", "deploy.runtimes"), "evaluation": ("detection",),
          "training": ("evaluation", "compress", "data.doctor"), "deploy": ("evaluation", "deploy.runtimes"),
          "bench.profile": ("deploy",),
          "compress.search": ("training", "bench.profile"), "compress.pruning": ("training", "bench.profile"),
          "bench": ("bench.profile", "deploy", "compress.search"), "paper": ("evaluation",),
          "script": ("bench", "compress.pruning", "paper"), "tests": ("script",)}
HEAVY = ("torch", "cv2", "albumentations", "matplotlib", "pycocotools", "tensorboard")
TORCH_FREE = ("models.layer", "models.channels", "models.graph", "models.count", "models.zoo.tiny",
              "models.zoo.light", "deploy.artifact", "deploy.runtimes.onnx", "deploy.runtimes.openvino",
              "deploy.runtimes.ncnn", "models.heads.nms", "detection.run", "detection.serve.networks",
              "evaluation.evaluate", "bench.plan", "bench.worker")
UNSAFE = {"pickle.load", "pickle.loads", "marshal.loads", "yaml.load", "yaml.unsafe_load", "yaml.full_load",
          "os.system", "os.popen"}
SCRIPTS = sorted(path.name for path in ROOT.glob("*.py") if "__main__" in path.read_text(encoding="utf-8"))
FILES = sorted(path for top in {room.split(".")[0] for room in GROUND} for path in (ROOT / top).rglob("*.py"))
FILES += sorted(ROOT.glob("*.py"))


def _room(name: str) -> str:
    """The room of a dotted module of ours, empty for what others wrote."""
    parts = name.split(".")
    inner, top = ".".join(parts[:2]), parts[0]
    scripts = {path.stem for path in ROOT.glob("*.py")}
    return inner if inner in GROUND else top if top in GROUND else "script" if name in scripts else ""


def _below(room: str) -> set[str]:
    """The room and all that it may stand on."""
    return {room}.union(*(_below(other) for other in GROUND[room]))


def _module(path: str) -> str:
    return path[:-3].replace("/", ".").removesuffix(".__init__")


def _imports(path: str, tree: ast.AST) -> list[tuple[int, str]]:
    """(line, dotted module) of every import anywhere in the file, relative ones resolved."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, name.name) for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = _module(path).split(".")[:-node.level] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            found += [(node.lineno, base), *((node.lineno, f"{base}.{name.name}") for name in node.names)]
    return found


def _import_faults(path: str, text: str) -> list[str]:
    room = _room(_module(path)) or "script"
    faults = [f"{path}:{line}: {room} may not import {name}"
              for line, name in dict.fromkeys(_imports(path, ast.parse(text)))
              if _room(name) and (_room(name) not in _below(room)
                                  or (room == _room(name) == "script" and _module(path) != name))]
    return faults


def _size_faults(path: str, text: str) -> list[str]:
    faults = [f"{path}: {n} lines, 400 are allowed"] if (n := len(text.splitlines())) > 400 else []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            limit = 60 if node.name == "main" and _room(_module(path)) == "script" else 40
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
    if not path.startswith("tests/"):
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


def _described(path: str, tree: ast.Module) -> set[str]:
    """The "Class.method" of every method that a documented one of the same package stands behind."""
    files = [(ROOT / module.replace(".", "/")).with_suffix(".py") for _, module in _imports(path, tree)
             if module.rpartition(".")[0] == _module(path).rpartition(".")[0]]
    trees = {file: ast.parse(file.read_text(encoding="utf-8")) for file in files if file.is_file()}
    known = {node.name: (node, file) for file, other in trees.items() for node in other.body
             if isinstance(node, ast.ClassDef)}
    found = set()
    for node in tree.body:
        for base in node.bases if isinstance(node, ast.ClassDef) else ():
            above, file = known.get(ast.unparse(base), (None, None))
            told = {name for name, of in _public(above.body if above else []) if ast.get_docstring(of)}
            if above:                                      # and what stands behind that one
                further = _described(file.relative_to(ROOT).as_posix(), trees[file])
                told |= {name.partition(".")[2] for name in further if name.startswith(f"{above.name}.")}
            found |= {f"{node.name}.{name}" for name in told}
    return found


def _signature_faults(path: str, text: str) -> list[str]:
    if path.startswith("tests/"):
        return []
    faults, tree = [], ast.parse(text)
    described = _described(path, tree)
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
        # The class speaks for its forward, and the base class for what it declares.
        if node.name != "forward" and name not in described and not ast.get_docstring(node):
            faults.append(f"{path}:{node.lineno}: {name} has no docstring")
    return faults


CHECKS = {"imports": _import_faults, "sizes": _size_faults, "dangers": _danger_faults,
          "manners": _manner_faults, "signatures": _signature_faults}
HEIR = """from models.heads.base import Head
class A(Head):
    '''A.'''
    def {name}(self) -> int:
        pass
"""
PLANTED = [
    ("imports", "detect.py", "import train\n", "script may not import train"),
    ("imports", "models/a.py", "from data.coco import read\n", "models may not import data.coco"),
    ("imports", "data/a.py", "import models.network\n", "data may not import models.network"),
    ("imports", "utils/a.py", "from training.engine import fit\n", "utils may not import training.engine"),
    ("imports", "models/a.py", "def f():\n    import compress.prune\n", "may not import compress.prune"),
    ("imports", "compress/a.py", "from compress.pruning import plan\n", "may not import compress.pruning"),
    ("imports", "compress/pruning/a.py", "from ..search import rows\n", "may not import compress.search"),
    ("imports", "training/run.py", "from train import parse\n", "training may not import train"),
    ("sizes", "utils/a.py", "x = 1\n" * 401, "401 lines"),
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
    ("signatures", "models/heads/a.py", HEIR.format(name="rise"), "A.rise has no"),
    ("signatures", "utils/a.py", HEIR.format(name="rows"), "A.rows has no"),
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
    assert not _import_faults("train.py", "from training import prepare\nfrom utils import cli\n")
    assert not _import_faults("training/run.py", "from . import engine\nfrom data.coco import read\n")
    assert not _signature_faults("models/heads/a.py", HEIR.format(name="rows"))
    second = HEIR.format(name="rows").replace("base", "anchor").replace("Head", "AnchorHead")
    assert not _signature_faults("models/heads/a.py", second)


def test_every_room_is_a_folder_and_every_folder_a_room():
    """A name that nothing answers to would forbid nothing."""
    for room in set(GROUND) - {"script"}:
        place = ROOT / room.replace(".", "/")
        assert place.is_dir() or place.with_suffix(".py").is_file(), f"{room} is no folder any more"
    tracked = {path.relative_to(ROOT).parts[0] for path in ROOT.glob("*/__init__.py")}
    assert tracked <= set(GROUND), f"folders without a rule: {sorted(tracked - set(GROUND))}"
    assert not _cycles({room: set(below) for room, below in GROUND.items()})


def test_no_folder_is_a_crowd_and_no_package_is_the_whole():
    shares: dict[str, int] = {}
    for path in FILES:
        folder = path.parent.relative_to(ROOT).as_posix()
        if not folder.startswith("tests"):
            shares[folder] = shares.get(folder, 0) + len(path.read_text(encoding="utf-8").splitlines())
    folders = {path.parent for path in FILES}
    crowds = {str(f.relative_to(ROOT)): n for f in folders if (n := len(list(f.glob("*.py")))) > 14}
    assert not crowds, f"folders of more than 14 files: {crowds}"
    assert max(shares.values()) <= 0.16 * sum(shares.values()), f"the largest folder is too large: {shares}"
    assert shares["utils"] <= 1200


def test_every_test_that_is_called_slow_exists():
    """A renamed test would come back into `make check`."""
    for line in (ROOT / "tests" / "slow.txt").read_text(encoding="utf-8").splitlines():
        path, _, name = line.partition("::")
        if line and not line.startswith("#"):
            text = (ROOT / path).read_text(encoding="utf-8") if (ROOT / path).is_file() else ""
            assert f"def {name or 'test_'}" in text, f"tests/slow.txt: {line} is no test any more"


def _cycles(edges: dict[str, set[str]]) -> list[str]:
    """Modules that lie on an import circle: what is left when leaves are taken away again and again."""
    left = dict(edges)
    while leaves := [name for name, uses in left.items() if not uses & left.keys()]:
        for name in leaves:
            del left[name]
    return sorted(left)


def test_no_import_circle_exists():
    edges = {}
    for path in FILES:
        place = path.relative_to(ROOT).as_posix()
        used = {name for _, name in _imports(place, ast.parse(path.read_text(encoding="utf-8")))}
        edges[_module(place)] = used - {_module(place)}
    assert not _cycles(edges), "these modules import each other in a circle: " + ", ".join(_cycles(edges))


def test_an_import_circle_would_be_found():
    assert _cycles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}, "e": set()}) == ["a", "b", "c", "d"]


def test_the_network_as_data_never_loads_torch():
    code = f"import sys, {', '.join(TORCH_FREE)}; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False", "importing the records loads torch"


WORDS = {"split", "head", "se"}                            # ops whose names are words of other things too


def _op_faults(path: str, text: str) -> list[str]:
    """Where a file knows a block by name: its name as a constant, or a record's op compared with one."""
    from models import nodes
    from models.blocks import BLOCKS
    types = set(re.findall(r'"(\w+)"', (ROOT / nodes.__file__).read_text(encoding="utf-8")))
    faults = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Constant) and node.value in set(BLOCKS) - types - WORDS:
            faults.append(f"{path}:{node.lineno}: names the op {node.value!r}")
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            if any(isinstance(side, ast.Attribute) and side.attr == "op" for side in sides) and \
                    any(isinstance(side, ast.Constant | ast.Tuple) for side in sides):
                faults.append(f"{path}:{node.lineno}: {ast.unparse(node)}")
    return faults


def test_no_file_names_an_op_but_its_definition_the_zoo_and_tests():
    faults = []
    for path in FILES:
        place = path.relative_to(ROOT).as_posix()
        if not place.startswith(("tests/", "models/zoo/")) and place != "models/blocks.py":
            faults += _op_faults(place, path.read_text(encoding="utf-8"))
    assert not faults, "\n" + "\n".join(faults)


def test_a_file_that_names_an_op_is_found():
    assert _op_faults("a.py", 'x = 1 if layer.op == "conv" else 2\n')
    assert _op_faults("a.py", 'KERNELS = ("mbconv", 3)\n')
    assert not _op_faults("a.py", 'if node.type == "conv" and there.op == here.op:\n    pass\n')


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
