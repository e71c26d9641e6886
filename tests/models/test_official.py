"""Networks with official weights are networks like any other: counted, pruned, folded, exported."""
import numpy as np
import pytest
import torch

from deploy.onnx_file import to_onnx
from models.count import macs, parameters
from models.network import Network, from_state
from models.zoo.build import build
from models.zoo.official import OFFICIAL
from tests.helpers.cuts import check_folded_is_same, check_pruned_is_masked, hooked
from tests.helpers.nets import randomised

SIDE = 64


@pytest.mark.parametrize("known", OFFICIAL, ids=lambda known: known.name)
def test_it_is_counted_pruned_and_folded_exactly(known):
    net = build(known.name, 3)
    assert hooked(Network(net).eval(), SIDE) == macs(net, SIDE)
    assert sum(p.numel() for p in Network(net).parameters()) == parameters(net)
    assert check_pruned_is_masked(net, SIDE, keeps=2, dtype=torch.float64) < 1e-10
    check_folded_is_same(net, SIDE)


@pytest.mark.parametrize("known", OFFICIAL, ids=lambda known: known.name)
def test_its_onnx_file_with_the_input_rule_gives_the_same(known):
    runtime = pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    net = known.folded(3)
    state = randomised(net).state_dict() | {key: torch.tensor(value).reshape(-1, *[1] * 3 * ("w" in key))
                                            for key, value in known.rule().items()}
    image = torch.randint(0, 256, (2, 3, SIDE, SIDE), dtype=torch.uint8,
                          generator=torch.Generator().manual_seed(0))
    session = runtime.InferenceSession(to_onnx(net, state, SIDE), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        wanted = from_state(net, state)(image)
    for mine, theirs in zip(session.run(None, {"images": image.numpy()}), wanted):
        np.testing.assert_allclose(mine, theirs.numpy(), rtol=1e-3, atol=1e-4 * float(theirs.abs().max()))
