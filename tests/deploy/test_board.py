"""Exported files run where torch is not installed: in a process, and its children, that cannot import it."""
import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from models.checkpoint import load
from tests.helpers.export_cases import exported

for library in ("onnx", "onnxruntime", "openvino", "ncnn"):
    pytest.importorskip(library, reason=f"needs {library} (requirements-export.txt)")
ABSENT = """import sys
class Absent:
    def find_spec(self, name, *_):
        if name.split(".")[0] in ("torch", "torchvision", "albumentations", "av", "scipy", "sklearn"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory, nets) -> dict[str, Path]:
    """The network that finds cells of pure colour in three formats, a checkpoint, and a set of one image."""
    folder = tmp_path_factory.mktemp("board")
    (folder / "sitecustomize.py").write_text(ABSENT)
    made = exported(folder, load(nets["good"]), ("onnx", "openvino", "ncnn"))
    (folder / "set" / "annotations").mkdir(parents=True)
    image = np.full((64, 64, 3), 114, np.uint8)
    image[:32, :32], image[32:, 32:] = (0, 0, 255), (0, 255, 0)            # BGR: red, green
    (folder / "set" / "images").mkdir()
    cv2.imwrite(str(folder / "set" / "images" / "a.png"), image)
    boxes = [{"id": k + 1, "image_id": 1, "category_id": k + 1, "bbox": [32 * k, 32 * k, 32, 32],
              "area": 1024, "iscrowd": 0} for k in (0, 1)]
    (folder / "set" / "annotations" / "instances_val.json").write_text(json.dumps({
        "images": [{"id": 1, "file_name": "a.png", "width": 64, "height": 64}], "annotations": boxes,
        "categories": [{"id": 1, "name": "red"}, {"id": 2, "name": "green"}]}))
    return {**made, "pt": nets["good"], "folder": folder, "image": folder / "set" / "images" / "a.png"}


def board(files: dict[str, Path], *words: object) -> tuple[int, str, str]:
    """A script without torch: exit code, stdout, stderr."""
    done = subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, check=False,
                          env={**os.environ, "PYTHONPATH": str(files["folder"])})
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("form", ["onnx", "openvino", "ncnn"])
def test_detect_finds_and_draws_without_torch(form, files, tmp_path):
    code, said, error = board(files, "detect.py", "--weights", files[form], "--source", files["image"],
                              "--fp32", "--save-json", "--project", tmp_path)
    assert code == 0 and "1 red, 1 green" in said, error
    rows = json.loads((tmp_path / "exp" / "predictions.json").read_text())
    found = {row["category"]: row["bbox"] for row in rows}
    assert found == {"red": [0, 0, 32, 32], "green": [32, 32, 32, 32]}
    assert (tmp_path / "exp" / "a.png").is_file()
    assert json.loads((tmp_path / "exp" / "summary.json").read_text())["environment"]["torch"] == ""


def test_val_and_benchmark_measure_without_torch(files, tmp_path):
    code, said, error = board(files, "val.py", "--weights", files["onnx"], "--data", files["folder"] / "set",
                              "--conf-thres", 0.25, "--project", tmp_path, "--out", tmp_path / "row.json")
    assert code == 0, error
    row = json.loads((tmp_path / "row.json").read_text())
    assert row["map50_95"] == 1 and row["settings"]["runtime"] == "onnxruntime"
    code, said, error = board(files, "benchmark.py", "--weights", files["onnx"], "--source", files["image"],
                              "--imgsz", 64, "--iterations", 3, "--seconds", 0.01, "--rounds", 1,
                              "--project", tmp_path)
    assert code == 0 and "onnx" in said, error


def test_what_needs_torch_or_av_ends_with_5_and_the_pip_line(files, tmp_path):
    film = tmp_path / "a.mp4"
    film.write_bytes(b"a film")
    for source, weights, what in ((files["image"], files["pt"], "torch"), (film, files["onnx"], "av")):
        code, _, error = board(files, "detect.py", "--weights", weights, "--source", source,
                               "--project", tmp_path / "out")
        assert code == 5 and f"pip install {what}" in error and error.count("\n") == 1, error
    assert not list((tmp_path / "out").glob("exp*"))
