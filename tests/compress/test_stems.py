"""Stems that compute nothing at full size: what they are, and that trained weights still reach them."""
import torch
from torch.nn import functional as F

from models.checkpoint import Checkpoint
from models.count import macs, parameters
from models.graph import expand, grids, heads_of
from models.network import Network, initialise
from models.transfer import transfer
from models.zoo.build import ZOO
from models.zoo.tiny import STEMS, micro_yolo_fast

NAMES = ("a", "b", "c")


def test_a_strided_stem_has_the_heads_and_coarser_grids_of_the_pooled_one():
    base = micro_yolo_fast(3)
    heads = [(head.layer, head.stride) for head in heads_of(base)]
    for name, make in STEMS.items():
        net = make(3)
        assert ZOO[name] is make and [(head.layer, head.stride) for head in heads_of(net)] == heads
        side, width = grids(net, 416), {node.name: node.channels for node in expand(net).nodes}
        largest = max(width[value] * side[value] ** 2 for value in width)
        assert largest < 16 * 416 ** 2 and macs(net, 416) <= macs(base, 416), name
    assert [f"{parameters(STEMS[name](80)):,} {macs(STEMS[name](80), 416):,}" for name in STEMS] == [
        "2,072,174 730,382,848", "2,073,470 786,452,992", "2,074,830 701,309,440"]


def test_a_6x6_stem_is_a_3x3_on_cells_of_2x2_px_put_into_channels():
    model = initialise(Network(STEMS["micro-yolo-fast-k6"](3)), 0)
    weight, x = model.state_dict()["conv1.conv.weight"], torch.rand(1, 3, 64, 64)
    cells = weight.reshape(16, 3, 3, 2, 3, 2).permute(0, 1, 3, 5, 2, 4).reshape(16, 12, 3, 3)
    expected = F.conv2d(F.pixel_unshuffle(x, 2), cells, padding=1)
    torch.testing.assert_close(model.conv1.conv(x), expected, rtol=1e-4, atol=1e-5)


def test_a_trained_network_gives_all_layers_that_are_left():
    base = micro_yolo_fast(3)
    trained = Checkpoint(base, initialise(Network(base), 1).state_dict(), NAMES)
    fresh = initialise(Network(STEMS["micro-yolo-fast-s2"](3)), 0)
    state, _ = transfer(fresh.net, fresh.state_dict(), NAMES, trained)
    assert all(torch.equal(state[key], trained.state[key]) for key in trained.state)
