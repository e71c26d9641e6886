"""ONNX files that end in boxes: what they say is what Python decodes and NMS keeps."""
import numpy as np
import pytest
import torch

from deploy.artifact import onnx_session
from models.graph import heads_of
from models.heads.nms import detections
from models.network import Network
from models.zoo.build import with_head_kind
from tests.helpers.nets import randomised, residual_net

pytest.importorskip("onnx", reason="needs onnx (requirements-export.txt)")
pytest.importorskip("onnxruntime", reason="needs onnxruntime (requirements-export.txt)")

from deploy.onnx_file import to_onnx  # noqa: E402   after the libraries are known to be there
from deploy.onnx_nms import Final, Limits, add_nms  # noqa: E402

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


@pytest.mark.parametrize("limits", [Limits(0.25, 0.45, 300), Limits(0.5, 0.7, 7), Limits(0.999999, 0.5, 300)])
@pytest.mark.parametrize("kind", ["anchor", "free", "yolox"])
def test_the_file_s_boxes_are_python_s(kind, limits, tmp_path):
    model = eager(kind)
    heads = heads_of(model.net)
    (tmp_path / "a.onnx").write_bytes(to_onnx(model.net, model.state_dict(), SIDE))
    add_nms(tmp_path / "a.onnx", tmp_path / "b.onnx", heads, limits)
    plain = onnx_session(tmp_path / "a.onnx", 1)           # the same numbers: no ties that turn
    final, counts = Final(tmp_path / "b.onnx"), []
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
