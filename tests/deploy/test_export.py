"""export.py: files that pass the gate are kept, spoilt ones are not, and every mistake has its sentence."""
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import detect
import export
import val
from compress.prune import prune
from data.coco.locate import locate
from deploy import export as exporting
from deploy import parity
from deploy.artifact import digest, read_metadata
from deploy.onnx_file import to_onnx
from deploy.runtimes.runtime import Runtime, load_runtime, torch_runtime
from models.channels import channels
from models.checkpoint import Checkpoint, save
from models.count import macs, parameters
from models.layer import Net
from tests.helpers.nets import random_keep, randomised, residual_net, small_net
from tests.helpers.scripts import call
from utils import runs

for library in ("onnx", "onnxruntime", "openvino", "ncnn"):
    pytest.importorskip(library, reason=f"needs {library} (requirements-export.txt)")
SIDE = 64


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    """A small data set."""
    from data.scenes import make_scenes
    return make_scenes(tmp_path_factory.mktemp("digits") / "set", train=9, val=3, size=160, seed=2)


def eager(classes: int = 10) -> tuple[Net, dict[str, torch.Tensor]]:
    """A small network that finds boxes everywhere."""
    model = randomised(small_net(classes))
    model.head6.conv.bias.data.view(2, -1)[:, 4:] += 5
    model.head6.conv.weight.data.mul_(20)
    return model.net, model.state_dict()


def saved(folder: Path) -> Path:
    """Its checkpoint, with the classes of the embedded set."""
    from data.scenes import NAMES
    save(folder / "net.pt", Checkpoint(*eager(), NAMES, SIDE))
    return folder / "net.pt"


@pytest.fixture
def run_script(monkeypatch, tmp_path, capsys):
    """Runs a script here: (exit code, what was printed, stderr); its run folder is tmp_path/runs/exp."""
    monkeypatch.setattr(runs, "tune_cpu", lambda threads=0: None)

    def run(script, *words: object) -> tuple[int, str, str]:
        code = call(monkeypatch, script.main, ["x.py", *words, "--project", tmp_path / "runs"])
        return code, *capsys.readouterr()
    return run


def test_a_pruned_network_goes_to_every_format_and_comes_back_in_a_fresh_process(run_script, tmp_path, root):
    net = residual_net()
    state = randomised(net).state_dict()
    net, state = prune(net, state, random_keep(net, channels(net).frozen, 5))
    save(tmp_path / "net.pt", Checkpoint(net, state, ("a", "b", "c"), SIDE))
    code, said, error = run_script(export, "--weights", tmp_path / "net.pt", "--format", "onnx", "openvino",
                                   "ncnn", "torchscript", "onnx")
    assert code == 0, error
    folder = tmp_path / "runs" / "exp"
    lines = said.splitlines()
    assert len(lines) == 10 and all("kept" in line for line in lines[:4] + lines[5:9])
    assert lines[-1] == str(folder)
    found = json.loads((folder / "export.json").read_text())
    assert [row["format"] for row in found["artifacts"]] == ["onnx", "openvino", "ncnn", "torchscript"]
    for row in found["artifacts"]:
        assert row["sha256"] == digest(folder / row["file"]) and row["max_diff"] < 1e-3 and not row["faults"]
        assert read_metadata(folder / row["file"])["parity"]["max_diff"] == row["max_diff"]
    assert sorted(p.name for p in folder.iterdir()) == [
        "args.json", "export.json", "net.onnx", "net.torchscript", "net_ncnn", "net_openvino"]
    x = torch.arange(2 * 3 * SIDE * SIDE).reshape(2, 3, SIDE, SIDE).to(torch.uint8)
    code = ("import sys, torch; from deploy.runtimes.runtime import load_runtime\n"
            f"x = torch.arange({x.numel()}).reshape({tuple(x.shape)}).to(torch.uint8)\n"
            "print([[round(m.double().sum().item(), 2) for m in load_runtime(p).predict(x)] "
            "for p in sys.argv[1:]])")
    paths = [str(folder / row["file"]) for row in found["artifacts"]]
    fresh = subprocess.run([sys.executable, "-W", "ignore", "-c", code, *paths], cwd=root, check=True,
                           capture_output=True, text=True)
    wanted = [m.double().sum().item() for m in torch_runtime(net, state, (), SIDE).predict(x)]
    for sums in json.loads(fresh.stdout):
        assert sums == pytest.approx(wanted, rel=1e-4, abs=0.1)


def test_a_spoilt_file_is_refused_and_none_is_left(run_script, tmp_path, monkeypatch):
    weights = saved(tmp_path)
    assert run_script(export, "--weights", weights, "--format", "onnx", "ncnn")[0] == 0
    folder = tmp_path / "runs" / "exp"

    def spoilt(net, state, *rest: object) -> bytes:
        return to_onnx(net, state | {"head6.conv.bias": state["head6.conv.bias"] + 0.01}, *rest)
    monkeypatch.setattr(exporting, "to_onnx", spoilt)
    code, said, error = run_script(export, "--weights", weights, "--format", "onnx", "ncnn", "--exist-ok")
    assert code == 4 and error.count("\n") == 1
    assert "1 of 2 exports" in error and "off by up to 0.01, 0.001 are allowed" in error
    assert "refused" in said and "kept" in said
    assert {p.name for p in folder.iterdir()} == {"args.json", "export.json", "net_ncnn"}
    rows = json.loads((folder / "export.json").read_text())["artifacts"]
    assert rows[0]["faults"] and "sha256" not in rows[0] and not rows[1]["faults"]
    assert run_script(export, "--weights", weights, "--tolerance", 0.1, "--exist-ok")[0] == 0
    assert (folder / "net.onnx").is_file()


def test_a_stopped_export_leaves_nothing_behind(run_script, tmp_path, monkeypatch):
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt
    monkeypatch.setattr(parity, "compare", stopped)
    code, _, _ = run_script(export, "--weights", saved(tmp_path), "--format", "openvino")
    assert code == 130 and {p.name for p in (tmp_path / "runs" / "exp").iterdir()} == {"args.json"}


def test_the_gate_counts_outputs_boxes_and_ap50():
    net, state = eager()

    def runtime(changed: dict) -> Runtime:
        return torch_runtime(net, state | changed, tuple("abcdefghij"), SIDE)
    exact = runtime({})
    images = [np.random.default_rng(i).integers(0, 256, (3, SIDE, SIDE), dtype=np.uint8) for i in range(6)]
    same = parity.compare(exact, exact, images)
    assert same["max_diff"] == 0 and same["matched"] == 1 and same["boxes"] > 20
    assert not parity.faults(same, parity.LIMITS["fp32"], True)
    weight, bias = state["head6.conv.weight"], state["head6.conv.bias"]
    far = parity.compare(exact, runtime({"head6.conv.weight": weight.roll(1, 0)}), images)
    assert far["matched"] < 0.5 and len(parity.faults(far, parity.LIMITS["fp32"], True)) == 2
    assert len(parity.faults(far, parity.LIMITS["fp16"], False)) == 2
    broken = parity.compare(exact, runtime({"head6.conv.bias": bias * math.nan}), images)
    assert len(parity.faults(broken, parity.LIMITS["int8"], False)) == 2
    silent = {"max_diff": 0.0, "mean_share": 0.0, "matched": None, "boxes": 0}
    for moved, precision, faults in ((0.0009, "fp32", 0), (-0.0011, "fp32", 1), (0.0011, "fp32", 1),
                                     (-0.009, "int8", 0), (-0.011, "int8", 1), (0.02, "int8", 0)):
        limits = parity.LIMITS[precision]
        assert len(parity.faults(silent | {"map50_diff": moved}, limits, precision == "fp32")) == faults


def test_images_come_from_the_set_or_from_the_machine(digits):
    where = locate(digits)
    for found, count in ((parity.gate_images(None, 96, 99), 8), (parity.gate_images(where, 96, 2), 2),
                         (parity.split_images(where, "train", 96, 99), 9)):
        assert len(found) == count == len({image.tobytes() for image in found})
        assert all(image.shape == (3, 96, 96) and image.dtype == np.uint8 for image in found)


def test_ap50_is_measured_where_a_set_is_given_and_val_takes_the_file(run_script, tmp_path, digits):
    weights = saved(tmp_path)
    code, said, error = run_script(export, "--weights", weights, "--data", digits, "--gate-pictures", 2)
    assert code == 0 and "+0.00" in said, error
    row = json.loads((tmp_path / "runs" / "exp" / "export.json").read_text())["artifacts"][0]
    assert row["map50"] == row["map50_torch"] + row["map50_diff"]
    code, said, error = run_script(val, "--weights", tmp_path / "runs" / "exp" / "net.onnx", "--data", digits,
                                   "--workers", 0, "--out", tmp_path / "val.json")
    assert code == 0, error
    found, net = json.loads((tmp_path / "val.json").read_text()), small_net(10)
    assert found["map50"] == pytest.approx(row["map50"]) and found["bytes"] == row["bytes"]
    assert (found["parameters"], found["macs"]) == (parameters(net), macs(net, SIDE))
    assert found["settings"]["runtime"] == "onnxruntime" and found["settings"]["imgsz"] == SIDE
    before = sorted((tmp_path / "runs").iterdir())
    for script, of in ((val, ("--data", digits, "--workers", 0)),
                       (detect, ("--source", next(digits.rglob("*.jpg"))))):
        code, _, error = run_script(script, "--weights", tmp_path / "runs" / "exp" / "net.onnx", *of,
                                    "--imgsz", 96)
        assert code == 2 and f"was exported for {SIDE}; leave --imgsz out" in error, error
    assert sorted((tmp_path / "runs").iterdir()) == before, "a side that does not fit leaves no folder"


@pytest.mark.parametrize("form", ["onnx", "openvino"])
def test_int8_goes_through_the_gate_with_the_users_images(form, run_script, tmp_path, digits):
    pytest.importorskip("deploy.quant.ptq", reason="quantisation is not there")
    code, said, error = run_script(export, "--weights", saved(tmp_path), "--format", form, "--int8", "--data",
                                   digits, "--calibration", 8)
    assert code == 0, said + error
    folder = tmp_path / "runs" / "exp"
    row = json.loads((folder / "export.json").read_text())["artifacts"][0]
    path = folder / row["file"]
    assert "-int8" in path.name and row["precision"] == "int8" and row["quantisation"]["layers"]
    assert 0 < row["mean_share"] < parity.LIMITS["int8"].share
    assert load_runtime(path).precision == read_metadata(path)["precision"] == "int8"


def test_the_web_folder_gets_the_onnx_file_that_passed(run_script, tmp_path, monkeypatch):
    import deploy.web as web
    given = []

    def write(folder: Path, onnx: Path, metadata: dict) -> Path:
        folder.mkdir()
        (folder / "model.onnx").write_bytes(onnx.read_bytes())
        given.append(metadata)
        return folder
    monkeypatch.setattr(web, "write_web", write)
    code, _, error = run_script(export, "--weights", saved(tmp_path), "--format", "web")
    folder = tmp_path / "runs" / "exp"
    assert code == 0 and load_runtime(folder / "net_web" / "model.onnx").kind == "onnxruntime", error
    assert given[0]["parity"]["max_diff"] < 1e-3 and not list(folder.glob(".part*"))


@pytest.mark.parametrize(("words", "code", "sentence"), [
    ((), 2, "--weights is missing"), (("--weights", "a.pt", "--half", "--int8"), 2, "exclude each other"),
    (("--weights", "a.pt", "--int8"), 2, "give --data"),
    (("--weights", "a.pt", "--format", "tflite"), 2, "onnx"),
    (("--weights", "a.pt", "--int8", "--data", "x", "--format", "ncnn", "onnx"), 2, "not for ncnn"),
    (("--weights", "a.pt", "--tolerance", "0"), 2, "more than 0"),
    (("--weights", "a.pt", "--nms", "--format", "onnx", "ncnn"), 2, "for --format onnx alone"),
    (("--weights", "a.pt", "--conf-thres", "0.4"), 2, "without --nms"),
    (("--weights", "none.pt"), 4, "none.pt"), (("--weights", "net.onnx"), 2, "is an export already"),
    (("--weights", "{net}", "--imgsz", "32", "--data", "nowhere"), 3, "nowhere"),
    (("--weights", "{net}", "--int8", "--data", "{data}", "--calibration", "7"), 3, "needs 8 images")])
def test_flags_that_cannot_work_are_refused(words, code, sentence, run_script, tmp_path, digits):
    given = [word.format(net=saved(tmp_path), data=digits) for word in words]
    found, _, error = run_script(export, *given)
    assert (found, sentence in error) == (code, True), error
    assert not (tmp_path / "runs").exists()


def test_a_missing_library_ends_with_5_before_anything_is_written(run_script, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ncnn", None)
    code, _, error = run_script(export, "--weights", saved(tmp_path), "--format", "onnx", "ncnn")
    assert code == 5 and "pip install ncnn" in error and not (tmp_path / "runs").exists()
