"""A block added in ten lines goes through everything that reads nodes, and nothing else had to know it."""
import numpy as np
import pytest
import torch

from compress.fold import fold
from compress.prune import prune
from deploy.onnx_file import to_onnx
from models.blocks import BLOCKS, block
from models.channels import channels
from models.checkpoint import Checkpoint, load, save
from models.count import macs, parameters
from models.heads.loss import DetectionLoss
from models.layer import Layer
from models.network import Network, from_state, initialise
from models.records import from_json, to_json, validate
from tests.helpers.export_cases import by_ncnn
from tests.helpers.nets import ANCHORS, hooked_macs, random_keep, randomised, silenced

SIDE = 64


def own_block() -> None:
    """What a contributor writes: a residual bottleneck around a dilated 3x3."""
    @block("out", "hidden", inputs=(2, 2))
    def dilated(b, x, residual):
        y = b.conv(x, "reduce", "hidden")
        y = b.conv(y, "spatial", "hidden", b.layer.kernel, dilation=b.layer.dilation)
        return b.act(b.add(b.conv(y, "project", act="linear"), residual))


@pytest.fixture(autouse=True)
def registered():
    before = dict(BLOCKS)
    own_block()
    yield
    BLOCKS.clear()
    BLOCKS.update(before)


@pytest.fixture
def net():
    return validate((
        Layer("conv1", "conv", ("image",), 12, stride=2),
        Layer("pool2", "maxpool", ("conv1",), kernel=2, stride=2),
        Layer("own3", "dilated", ("pool2", "pool2"), 12, hidden=6, dilation=2, act="relu"),
        Layer("conv4", "conv", ("own3",), 16, stride=2),
        Layer("own5", "dilated", ("conv4", "conv4"), 16, hidden=5),
        Layer("head6", "head", ("own5",), 14, kind="anchor", anchors=ANCHORS, xy_scale=2.0, assign="ratio")))


def test_it_is_built_counted_and_written_as_json(net):
    model = Network(net).eval()
    assert hooked_macs(model, SIDE) == macs(net, SIDE)
    assert sum(p.numel() for p in model.parameters()) == parameters(net)
    assert from_json(to_json(net)) == net and "own3.hidden" in channels(net).units


@pytest.mark.parametrize("seed", range(20))
def test_pruned_it_equals_its_masked_parent(net, seed):
    model = randomised(net, seed).double()
    keep = random_keep(net, channels(net).frozen, seed)
    state = silenced(net, model.state_dict(), keep)
    model.load_state_dict(state)
    small_net, small = prune(net, state, keep)
    child = Network(small_net).double().eval()
    child.load_state_dict(small)
    x = torch.rand(2, 3, SIDE, SIDE, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(child(x)[0], model(x)[0], rtol=1e-5, atol=1e-5)


def test_folded_and_in_two_runtimes_it_computes_the_same(net, tmp_path):
    model = randomised(net)
    images = torch.randint(0, 256, (1, 3, SIDE, SIDE), dtype=torch.uint8)
    with torch.no_grad():
        wanted = model(images)[0]
        folded = from_state(*fold(net, model.state_dict()))(images)[0]
    limit = 1e-4 * float(wanted.abs().max())
    assert float((folded - wanted).abs().max()) < limit
    ort = pytest.importorskip("onnxruntime", reason="needs onnxruntime (requirements-export.txt)")
    session = ort.InferenceSession(to_onnx(net, model.state_dict(), SIDE), providers=["CPUExecutionProvider"])
    assert float(np.abs(session.run(None, {"images": images.numpy()})[0] - wanted.numpy()).max()) < limit
    found = by_ncnn(net, model.state_dict(), images[0], tmp_path).reshape(wanted.shape[1:])
    assert float(np.abs(found - wanted[0].numpy()).max()) < limit


def test_a_checkpoint_keeps_it_and_it_learns(net, tmp_path):
    model = initialise(Network(net), 0)
    save(tmp_path / "a.pt", Checkpoint(net, model.state_dict(), ("a", "b"), SIDE))
    again = load(tmp_path / "a.pt")
    assert again.net == net
    model = from_state(again.net, again.state).train()
    loss, optimizer = DetectionLoss(net), torch.optim.AdamW(model.parameters(), lr=0.02)
    targets = torch.tensor([[0, 1, 0.5, 0.5, 0.3, 0.3], [1, 0, 0.4, 0.6, 0.5, 0.4]])
    images, losses = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)), []
    for _ in range(30):
        optimizer.zero_grad()
        total = sum(loss(model(images), targets).values())
        total.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
        losses.append(float(total.detach()))
    assert losses[-1] < 0.7 * losses[0], losses
