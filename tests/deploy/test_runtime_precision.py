"""Half precision is what the runtime of the file has natively, whatever torch has on its device."""
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from deploy.runtimes.runtime import load_runtime
from models.checkpoint import load
from tests.helpers.detect_cases import save, scene
from tests.helpers.export_cases import batch, checkpoint, exported
from tests.helpers.nets import small_net

for library in ("ncnn", "onnx", "onnxruntime", "openvino"):
    pytest.importorskip(library, reason=f"needs {library} (requirements-export.txt)")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[str, Path]:
    """A small network in every format."""
    return exported(tmp_path_factory.mktemp("made"), checkpoint(small_net()))


@pytest.fixture
def machine(monkeypatch):
    """machine(bf16, fp16): this CPU with or without bf16 in torch's eyes, and fp16 in ncnn's."""
    def change(bf16: bool, fp16: bool) -> None:
        monkeypatch.setattr("utils.runs.native_bf16", lambda: bf16)
        monkeypatch.setattr("ncnn.cpu_support_arm_asimdhp", lambda: fp16)
    return change


@pytest.mark.parametrize(("bf16", "fp16", "device", "asked", "runs", "noted"), [
    (False, True, "cpu", "half", "fp16", False), (False, True, "cpu", "auto", "fp32", False),
    (True, True, "cpu", "auto", "fp16", False), (False, True, "cuda", "auto", "fp16", False),
    (False, True, "cpu", "fp16", "fp16", False), (True, True, "cuda", "fp32", "fp32", False),
    (True, False, "cpu", "half", "fp32", True), (True, False, "cpu", "auto", "fp32", False)])
def test_ncnn_takes_fp16_where_its_cpu_has_it(made, machine, bf16, fp16, device, asked, runs, noted):
    machine(bf16, fp16)
    runtime = load_runtime(made["ncnn"], device, asked)
    assert (runtime.precision, bool(runtime.note)) == (runs, noted)


def test_openvino_is_asked_for_what_its_cpu_has_also_beside_a_gpu(made, machine):
    for bf16, capable, asked, wanted in (
            (True, ["BF16", "FP16"], "half", "bf16"), (True, ["FP16"], "auto", "bf16"),
            (False, ["FP32"], "half", "fp32"), (False, ["FP16"], "half", "fp16"),
            (False, ["FP16"], "auto", "fp32"), (True, [], "fp16", "fp16"), (True, [], "int8", "fp32")):
        machine(bf16, False)
        runner = load_runtime(made["openvino"], "cuda").runner
        runner.core = SimpleNamespace(get_property=lambda *_, capable=capable: capable)
        assert runner._wanted(asked) == wanted, (bf16, capable, asked)
    machine(False, False)
    runtime = load_runtime(made["openvino"], "cuda", "half")
    assert ("no half precision" in runtime.note) == (runtime.precision == "fp32")


def test_torch_and_files_of_one_precision_say_when_half_is_not_what_they_run(made, machine, tmp_path):
    machine(False, False)
    weights = made["onnx"].parent / "net.pt"
    assert "no native bf16" in load_runtime(weights, precision="half").note
    assert (load_runtime(weights, precision="auto").precision, load_runtime(weights).note) == ("fp32", "")
    machine(True, False)
    assert load_runtime(weights, precision="auto").precision == "bf16"
    half = exported(tmp_path, load(weights), ("onnx", "torchscript"), half=True)
    for form in ("onnx", "torchscript"):
        assert "fp32" in load_runtime(made[form], precision="half").note
        assert not load_runtime(made[form], precision="auto").note
        assert not load_runtime(half[form], precision="half").note
        assert torch.isfinite(load_runtime(half[form], precision="half").predict(batch(1))[0]).all()


def test_detect_reaches_ncnn_s_fp16_by_half_on_a_cpu_without_bf16(nets, run, machine, tmp_path, monkeypatch):
    from deploy import export, parity
    machine(False, True)
    given, side = export.read(str(nets["good"]), None)
    job = export.Export(str(nets["good"]), given, side, False, False, parity.embedded_images(side)[:1])
    row = export.export(job, "ncnn", tmp_path, "good")
    picture = save(tmp_path / "a.png", scene(160, 160, [(1, 1, 0)])[0])
    for flags, precision in (((), "fp32"), (("--half",), "fp16")):
        code, out, err, folder = run("--weights", tmp_path / row["file"], "--source", picture, *flags)
        assert code == 0 and "1 red" in out, err
        assert json.loads((folder / "summary.json").read_text())["precision"] == precision
