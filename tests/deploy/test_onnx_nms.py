"""ONNX files that end in boxes: what they say is what Python decodes and NMS keeps."""
import numpy as np
import pytest
import torch

from deploy.artifact import onnx_session, read_metadata
from deploy.runtimes.runtime import load_runtime
from models.checkpoint import Checkpoint, save
from models.graph import heads_of
from models.heads.free import FreeHead
from models.heads.nms import detections
from models.network import Network
from models.zoo.build import with_head_kind
from tests.helpers.nets import randomised, residual_net
from utils.errors import ModelError

pytest.importorskip("onnx", reason="needs onnx (requirements-export.txt)")
pytest.importorskip("onnxruntime", reason="needs onnxruntime (requirements-export.txt)")

from deploy import export  # noqa: E402   after the libraries are known to be there
from deploy.onnx_file import to_onnx  # noqa: E402
from deploy.onnx_nms import BoxFile, Thresholds, add_nms  # noqa: E402

SIDE = 64


def eager(kind: str) -> Network:
    """A network with two heads of a kind that finds boxes everywhere."""
    net = residual_net() if kind == "anchor" else with_head_kind(residual_net(), kind)
    model = randomised(net)
    for head in heads_of(net):
        own = model.get_submodule(head.layer.name)
        for conv in own.modules():
            if hasattr(conv, "weight"):
                conv.weight.data.mul_(15)
        if kind == "yolox":
            parts = own.obj.conv.bias.data, own.cls.conv.bias.data
        else:
            parts = own.conv.bias.data.view(2, -1)[:, 4:] if kind == "anchor" else own.conv.bias.data[:3],
        for scores in parts:
            scores.add_(5.5)
    return model


@pytest.mark.parametrize("limits", [Thresholds(0.25, 0.45, 300), Thresholds(0.5, 0.7, 7),
                                    Thresholds(0.999999, 0.5, 300)])
@pytest.mark.parametrize("kind", ["anchor", "free", "yolox"])
def test_the_file_s_boxes_are_python_s(kind, limits, tmp_path):
    model = eager(kind)
    heads = heads_of(model.net)
    (tmp_path / "a.onnx").write_bytes(to_onnx(model.net, model.state_dict(), SIDE))
    add_nms(tmp_path / "a.onnx", tmp_path / "b.onnx", heads, limits)
    plain = onnx_session(tmp_path / "a.onnx", 1)           # the same numbers: no ties that turn
    final, counts = BoxFile(tmp_path / "b.onnx"), []
    for seed in range(3):
        image = torch.randint(0, 256, (1, 3, SIDE, SIDE), dtype=torch.uint8,
                              generator=torch.Generator().manual_seed(seed))
        outputs = plain.run([head.layer.name for head in heads], {"images": image.numpy()})
        wanted = detections(outputs, heads, *limits).boxes[0]
        found = final(image[0].numpy())
        assert found.shape == wanted.shape
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=2e-2)
        counts.append(len(found))
    assert max(counts) == 0 if limits.conf_thres > 0.9 else min(counts) > 2, counts


@pytest.mark.parametrize("half", [False, True])
def test_the_exported_file_passes_the_gate_and_says_that_it_is_final(half, tmp_path):
    model = eager("free")
    given = Checkpoint(model.net, model.state_dict(), ("a", "b", "c"), SIDE)
    save(tmp_path / "net.pt", given)
    images = list(np.random.default_rng(0).integers(0, 256, (2, 3, SIDE, SIDE), dtype=np.uint8))
    job = export.Export(str(tmp_path / "net.pt"), given, SIDE, half, False, images,
                        nms=Thresholds(0.25, 0.45, 300))
    row = export.export(job, "onnx", tmp_path, "net")
    assert not row["faults"] and row["same_boxes"] >= 0.98, row
    assert row["file"] == ("net-fp16-nms.onnx" if half else "net-nms.onnx")
    told = read_metadata(tmp_path / row["file"])
    assert told["nms"] == {"conf_thres": 0.25, "iou_thres": 0.45, "max_det": 300,
                           "outputs": ["boxes", "scores", "classes"]}
    assert len(BoxFile(tmp_path / row["file"])(images[0])) > 2
    with pytest.raises(ModelError, match="decoding and NMS inside.*session.run"):
        load_runtime(tmp_path / row["file"])


def test_a_file_whose_nms_finds_other_boxes_is_refused(tmp_path, monkeypatch):
    model = eager("free")
    given = Checkpoint(model.net, model.state_dict(), ("a", "b", "c"), SIDE)
    save(tmp_path / "net.pt", given)
    image = np.random.default_rng(0).integers(0, 256, (3, SIDE, SIDE), dtype=np.uint8)
    plain = FreeHead.in_graph
    monkeypatch.setattr(FreeHead, "in_graph", lambda self, add, name, grid: (
        add("Add", plain(self, add, name, grid)[0], np.float32(20)), plain(self, add, name, grid)[1]))
    job = export.Export(str(tmp_path / "net.pt"), given, SIDE, False, False, [image],
                        nms=Thresholds(0.25, 0.45, 300))
    row = export.export(job, "onnx", tmp_path, "net")
    assert "of the boxes alike" in row["faults"][0] and not list(tmp_path.glob("*.onnx"))
