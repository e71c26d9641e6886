"""Every block of the vocabulary in every file format: what runs it computes what torch computes."""
import io

import numpy as np
import pytest
import torch

from deploy.onnx_file import to_onnx
from deploy.runtimes.torchscript import to_torchscript
from models.network import Network
from tests.helpers.cuts import randomise
from tests.helpers.export_cases import by_ncnn
from tests.models.test_blocks import CASES, IMGSZ, sample


@pytest.fixture(scope="module", params=CASES, ids=[f"{op}{at}" for op, at in CASES])
def case(request):
    """A network around a block, its state, two images, and what torch makes of them."""
    net = sample(*request.param)
    model = randomise(Network(net)).eval()
    images = torch.randint(0, 256, (2, 3, IMGSZ, IMGSZ), dtype=torch.uint8,
                           generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return net, model.state_dict(), images, model(images)[0].numpy()


def same(found: np.ndarray, wanted: np.ndarray) -> bool:
    """Whether two results agree to what fp32 in another order of sums leaves."""
    limit = 1e-4 * float(np.abs(wanted).max())
    return found.shape == wanted.shape and float(np.abs(found - wanted).max()) <= limit


def test_onnx_runtime(case):
    ort = pytest.importorskip("onnxruntime", reason="needs onnxruntime (requirements-export.txt)")
    net, state, images, wanted = case
    session = ort.InferenceSession(to_onnx(net, state, IMGSZ), providers=["CPUExecutionProvider"])
    for count in (2, 1):
        assert same(session.run(None, {"images": images[:count].numpy()})[0], wanted[:count])


def test_openvino(case):
    pytest.importorskip("openvino", reason="needs openvino (requirements-export.txt)")
    from deploy.runtimes.openvino import core
    net, state, images, wanted = case
    model = core().read_model(io.BytesIO(to_onnx(net, state, IMGSZ)))
    compiled = core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    assert same(compiled([images.numpy()])[0], wanted)


def test_ncnn(case, tmp_path):
    net, state, images, wanted = case
    found = by_ncnn(net, state, images[0], tmp_path)
    assert same(found.reshape(wanted.shape[1:]), wanted[0])


def test_torchscript(case):
    net, state, images, wanted = case
    module = torch.jit.load(io.BytesIO(to_torchscript(net, state, IMGSZ)))
    assert same(module(images)[0].numpy(), wanted)
