"""What a stranger types first: make, pip, and the files that say what may be done with the project."""
import importlib.metadata
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

MAKE = shutil.which("make") or pytest.skip("needs make", allow_module_level=True)


def listed(path: Path) -> dict[str, str]:
    """Requirement names (lower case) and what follows each, of a requirements file."""
    lines = [line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines()]
    found = (re.match(r"([A-Za-z0-9-]+)(.*)", line) for line in lines if line and not line.startswith("-"))
    return {match[1].lower(): match[2] for match in found}


def plan(folder: Path, *words: str) -> str:
    """The commands make would run in a folder."""
    command = [MAKE, "--no-print-directory", "-n", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def installed(root: Path, tmp_path: Path) -> Path:
    """A copy of the project's make and requirement files with an environment that looks finished."""
    for path in [root / "Makefile", *root.glob("requirements*.txt")]:
        shutil.copy(path, tmp_path)
    (tmp_path / ".venv/bin").mkdir(parents=True)
    for name in ("bin/python", "made", "installed", "installed-dev"):
        (tmp_path / ".venv" / name).touch()
    return tmp_path


def touch_later(path: Path) -> None:
    import os
    newest = max(p.stat().st_mtime for p in path.parent.rglob("*")) + 5
    os.utime(path, (newest, newest))


def test_exactly_one_opencv_is_asked_for_in_each_file(root: Path):
    names = [set(listed(root / f"requirements{kind}.txt")) for kind in ("", "-gui", "-dev", "-export")]
    assert [sorted(n for n in one if "opencv" in n) for one in names] == [["opencv-python-headless"],
                                                                          ["opencv-python"], [], []]


def test_the_libraries_of_the_project_are_listed_with_their_lower_bounds(root: Path):
    wanted = {"torch": ">=2.10", "pycocotools": ">=2.0.8", "albumentations": "==2.0.8"}
    got = listed(root / "requirements.txt")
    assert {name: got.get(name) for name in wanted} == wanted
    others = {"torchvision", "tensorboard", "matplotlib", "scikit-learn", "pyyaml", "pillow", "tqdm", "numpy"}
    assert got.keys() >= others
    tools = {"pytest", "pytest-xdist", "ruff", "faster-coco-eval", "playwright", "torch-pruning",
             "timm"}
    assert listed(root / "requirements-dev.txt").keys() == tools
    runtimes = {"onnx", "onnxruntime", "openvino", "nncf", "ncnn"}
    assert listed(root / "requirements-export.txt").keys() == runtimes


def test_every_outside_library_that_the_project_imports_is_listed(root: Path):
    import ast
    package = {"cv2": "opencv-python-headless", "PIL": "pillow", "sklearn": "scikit-learn", "yaml": "pyyaml",
               "faster_coco_eval": "faster-coco-eval", "torch_pruning": "torch-pruning",
               "pillow_heif": "pillow-heif"}
    known = {name for kind in ("", "-dev", "-export") for name in listed(root / f"requirements{kind}.txt")}
    optional = (root / "requirements.txt").read_text(encoding="utf-8").partition("# Used where installed")[2]
    known |= set(re.findall(r"^#   ([a-z][\w-]+)  ", optional, re.MULTILINE))
    packages = {path.parent.name for path in root.glob("*/__init__.py")}
    files = [*root.glob("*.py"), *(path for name in packages for path in (root / name).rglob("*.py"))]
    ours = {path.stem for path in root.glob("*.py")} | packages
    used = set()
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                used |= {name.name.split(".")[0] for name in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                used.add((node.module or "").split(".")[0])
    outside = {package.get(name, name).lower() for name in used - ours - set(sys.stdlib_module_names)}
    assert outside <= known, f"imported but in no requirements file: {', '.join(sorted(outside - known))}"


def test_this_environment_holds_one_opencv():
    if Path(sys.prefix).name != ".venv":
        pytest.skip("says something about the environment that make builds, and this is another one")
    names = {str(found.metadata["Name"]).lower() for found in importlib.metadata.distributions()}
    assert len({name for name in names if name.startswith("opencv-")}) == 1, sorted(names)


def test_cv2_of_this_environment_imports_and_says_whether_it_has_windows():
    import cv2
    assert int(cv2.__version__.split(".")[0]) in (4, 5)
    assert re.search(r"GUI: +\w+", cv2.getBuildInformation())


def test_a_finished_environment_is_not_installed_again(installed: Path):
    assert "pip" not in plan(installed, "test") and "-m pytest" in plan(installed, "test")


@pytest.mark.parametrize(("changed", "again"), [
    ("requirements.txt", True), ("requirements-gui.txt", True), ("requirements-dev.txt", True),
    ("requirements-export.txt", True), ("Makefile", False)])
def test_a_changed_requirements_file_is_installed_at_the_next_make(
        installed: Path, changed: str, again: bool):
    touch_later(installed / changed)
    assert ("-m pip" in plan(installed, "test")) == again


def test_make_installs_nowhere_but_into_its_own_environment(installed: Path):
    shutil.rmtree(installed / ".venv")
    commands = plan(installed, "demo") + plan(installed, "test")
    pips = re.findall(r"(\S+) -m pip|(\bpip3?) install|(sudo|apt-get)", commands)
    assert pips and {match[0] for match in pips} == {".venv/bin/python"}


def test_make_demo_trains_measures_and_detects_and_tells_where_the_report_is(installed: Path):
    commands = plan(installed, "demo", "DEMO_EPOCHS=3")
    order = [commands.index(word) for word in ("train.py", "val.py", "detect.py", "report.html")]
    assert order == sorted(order) and "--epochs 3" in commands and "--data scenes" in commands


def test_an_old_python_is_refused_with_what_is_needed(installed: Path):
    shutil.rmtree(installed / ".venv")
    old = installed / "python3.8"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.8.20\nexit 1\n')
    old.chmod(0o755)
    ended = subprocess.run([MAKE, "install", f"PYTHON={old}"], cwd=installed, capture_output=True, text=True,
                           check=False)
    assert ended.returncode != 0 and "Python 3.10 or newer is needed" in ended.stdout
    assert not (installed / ".venv").exists()


def test_make_clean_keeps_runs_and_data_sets(installed: Path):
    for folder in ("runs/train/exp", "runs/demo/demo", "datasets/mine", "data/__pycache__"):
        (installed / folder).mkdir(parents=True)
    subprocess.run([MAKE, "clean"], cwd=installed, capture_output=True, check=True)
    left = {path.relative_to(installed).as_posix() for path in installed.rglob("*") if path.is_dir()}
    assert left == {"runs", "runs/train", "runs/train/exp", "datasets", "datasets/mine", "data"}


def test_ci_runs_make_test_and_nothing_else(root: Path):
    text = (root / ".ci/run").read_text()
    commands = [line for line in text.splitlines() if line and not line.startswith(("#", "cd ", "set "))]
    assert commands == ["make --no-print-directory test"] and "set -euo pipefail" in text
    assert (root / ".ci/run").stat().st_mode & 0o111


def test_the_licence_is_apache_and_the_citation_names_the_paper(root: Path):
    licence = (root / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in licence and "Version 2.0, January 2004" in licence and len(licence) > 11_000
    citation = yaml.safe_load((root / "CITATION.cff").read_text(encoding="utf-8"))
    paper = citation["references"][0]
    assert (citation["title"], citation["license"]) == ("Micro-YOLO", "Apache-2.0")
    assert paper["doi"] == "10.5220/0010234401510158" and (paper["start"], paper["end"]) == (151, 158)
    assert [author["family-names"] for author in paper["authors"]] == ["Hu", "Li"]


def test_no_data_set_video_or_official_weight_file_is_committed(root: Path):
    if not (root / ".git").exists():
        pytest.skip("needs the repository's history, and this is a bare copy of the files")
    listing = subprocess.run(["git", "ls-files"], cwd=root, capture_output=True, text=True, check=True).stdout
    names = [name for name in listing.splitlines() if not name.startswith(("docs/", "results/"))]
    assert len(names) > 20
    assert not [name for name in names if re.search(r"\.(jpe?g|png|bmp|tiff?|webp|mp4|avi|weights)$", name)]
