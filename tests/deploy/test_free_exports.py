"""Networks with heads that have no anchors, in every file format and in integers."""
import numpy as np
import pytest
import torch

from deploy.runtimes.runtime import load_runtime
from models.heads.nms import detections
from models.network import from_state
from models.zoo.build import with_head_kind
from tests.helpers.export_cases import FORMS, SIDE, batch, checkpoint, exported
from tests.helpers.nets import small_net

NET = with_head_kind(small_net(), "free")


@pytest.mark.parametrize("form", FORMS)
def test_every_format_gives_torch_s_outputs_and_knows_the_head(form, tmp_path):
    pytest.importorskip({"torchscript": "torch", "onnx": "onnxruntime"}.get(form, form))
    given = checkpoint(NET)
    runtime = load_runtime(exported(tmp_path, given, (form,))[form])
    head, = runtime.heads
    assert (head.kind, head.layer.bins, head.classes) == ("free", 8, 3)
    images = batch(2, SIDE).contiguous()
    with torch.no_grad():
        wanted, = from_state(NET, given.state)(images)
    found, = runtime.predict(images.numpy())
    np.testing.assert_allclose(np.asarray(found), wanted.numpy(), rtol=1e-3, atol=1e-3)
    assert detections([found], runtime.heads, 0.001, 0.5, 9).dropped == 0


def test_integers_leave_the_head_in_float(tmp_path):
    onnx = pytest.importorskip("onnx", reason="needs onnx (requirements-export.txt)")
    pytest.importorskip("onnxruntime", reason="needs onnxruntime (requirements-export.txt)")
    from deploy.quant.graph import Graph
    from deploy.quant.ptq import quantise_onnx
    source = exported(tmp_path, checkpoint(NET), ("onnx",))["onnx"]
    images = list(np.random.default_rng(0).integers(0, 256, (8, 1, 3, SIDE, SIDE), dtype=np.uint8))
    report = quantise_onnx(source, tmp_path / "int8.onnx", images)
    assert any(row["layer"] == "head6" for row in report["left_float"])
    convolutions = Graph(onnx.load(tmp_path / "int8.onnx")).convolutions
    assert next(c for c in convolutions if c.name == "head6.conv").input[1] == "head6.conv.weight"
    exact, off = load_runtime(source), load_runtime(tmp_path / "int8.onnx")
    wanted, found = (np.asarray(runtime.predict(images[0])[0]) for runtime in (exact, off))
    assert np.abs(found - wanted).mean() < 0.2 * wanted.std() and (found != wanted).any()
