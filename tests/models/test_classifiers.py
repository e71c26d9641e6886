"""The zoo's classifiers: counts of the papers, outputs of torchvision and timm, use as backbones."""
import re
from collections.abc import Callable
from functools import partial
from itertools import groupby

import pytest
import torch
from torch import Tensor, nn
from torchvision import models as torchvision

from models.channels import channels
from models.count import macs, parameters
from models.graph import classes_of, expand, grids, strides
from models.layer import Net
from models.network import Network, from_state
from models.records import to_json
from models.zoo import classifiers, mobile
from models.zoo.build import build
from models.zoo.classifiers import CLASSIFIERS, features
from tests.helpers.cuts import (
    check_folded_is_same,
    check_graph,
    check_pruned_is_masked,
    hooked,
    randomise,
    state_of,
)
from utils.errors import ModelError

SHUFFLE_G8 = CLASSIFIERS["shufflenet-v1-g8"]
# Millions of parameters and of MACs at 224 px, counted from torchvision's and the authors' released networks.
PAPERS = {
    (mobile.mobilenet_v1, 1.): (4.232, 568.7), (mobile.mobilenet_v1, .75): (2.586, 325.4),
    (mobile.mobilenet_v1, .5): (1.332, 149.5), (mobile.mobilenet_v1, .25): (.470, 41.0),
    (mobile.mobilenet_v2, 1.): (3.505, 300.8), (mobile.mobilenet_v2, .75): (2.636, 209.1),
    (mobile.mobilenet_v2, .5): (1.969, 97.1), (mobile.mobilenet_v2, .35): (1.677, 59.3),
    (mobile.mobilenet_v2, 1.4): (6.109, 582.2),
    (mobile.mobilenet_v3_large, None): (5.483, 216.6), (mobile.mobilenet_v3_small, None): (2.543, 56.5),
    (classifiers.shufflenet_v1, .5): (.717, 37.6), (classifiers.shufflenet_v1, 1): (1.865, 137.5),
    (classifiers.shufflenet_v1, 2): (5.450, 524.0),
    (SHUFFLE_G8, .5): (1.010, 40.5), (SHUFFLE_G8, 1): (2.434, 138.4), (SHUFFLE_G8, 2): (6.521, 521.9),
    (classifiers.shufflenet_v2, .5): (1.367, 40.5), (classifiers.shufflenet_v2, 1): (2.279, 144.9),
    (classifiers.shufflenet_v2, 1.5): (3.504, 295.8), (classifiers.shufflenet_v2, 2): (7.394, 583.3),
    (mobile.ghostnet, .5): (2.587, 42.3), (mobile.ghostnet, 1.): (5.183, 141.2),
    (mobile.ghostnet, 1.3): (7.359, 227.0),
    (mobile.mnasnet_b1, .5): (2.219, 104.5), (mobile.mnasnet_b1, .75): (3.170, 215.5),
    (mobile.mnasnet_b1, 1.): (4.383, 314.4), (mobile.mnasnet_b1, 1.3): (6.282, 526.4),
    (CLASSIFIERS["squeezenet-1.0"], None): (1.248, 818.9), (classifiers.squeezenet, None): (1.235, 349.2),
    (classifiers.xception, None): (22.856, 4552.9)}


@pytest.mark.parametrize(("make", "width"), PAPERS)
def test_counts_are_those_of_the_papers(make, width):
    net = make(width=width) if width else make()
    millions, mmacs = PAPERS[make, width]
    assert f"{parameters(net) / 1e6:.3f} {macs(net, 224) / 1e6:.1f}" == f"{millions:.3f} {mmacs:.1f}"


def test_xception_is_counted_at_299():
    assert round(macs(build("xception"), 299) / 1e6, 1) == 8357.4


@pytest.mark.parametrize(("width", "millions", "mmacs"), [
    (1., 3.5, 300), (.75, 2.5, 210), (.5, 2.1, 110), (.35, 1.8, 80), (1.4, 6.1, 590)])
def test_mobilenext_counts_about_what_its_authors_quote(width, millions, mmacs):
    """Their own code does not print these either; 0.75 is off by most."""
    net = mobile.mobilenext(width=width)
    assert abs(parameters(net) / 1e6 / millions - 1) < .11
    assert abs(macs(net, 224) / 1e6 / mmacs - 1) < .065


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_tables_and_counts_are_those_of_the_module(name):
    net = build(name, 10)
    check_graph(net, 64)
    model = Network(net).eval()
    assert sum(p.numel() for p in model.parameters()) == parameters(net)
    assert hooked(model, 64) == macs(net, 64)


def timm(name: str) -> nn.Module:
    """A network of timm's with random weights."""
    return pytest.importorskip("timm").create_model(name, pretrained=False)


# name -> its oracle; the part of a block that it builds in another order: how deep blocks are in its names,
# the part, and whether ours has it at the block's start.
ORACLES: dict[str, tuple[Callable[[], nn.Module], tuple[int, str, bool] | None]] = {
    "mobilenet-v1": (partial(timm, "mobilenetv1_100"), None),
    "mobilenet-v2": (torchvision.mobilenet_v2, None),
    "mobilenet-v3-small": (torchvision.mobilenet_v3_small, None),
    "mobilenet-v3-large": (torchvision.mobilenet_v3_large, None),
    "mnasnet-b1": (torchvision.mnasnet1_0, None),
    "efficientnet-lite0": (partial(timm, "efficientnet_lite0"), None),
    "ghostnet": (partial(timm, "ghostnet_100"), (3, "shortcut", True)),
    "shufflenet-v2": (torchvision.shufflenet_v2_x1_0, None),
    "squeezenet-1.0": (torchvision.squeezenet1_0, None), "squeezenet-1.1": (torchvision.squeezenet1_1, None),
    "regnet-x-200mf": (partial(timm, "regnetx_002"), (2, "downsample", True)),
    "regnet-x-400mf": (torchvision.regnet_x_400mf, None),
    "repvgg-a0": (partial(timm, "repvgg_a0"), (3, "identity", False)),
    "xception": (partial(timm, "legacy_xception"), None)}


def theirs_in_our_order(state: dict[str, Tensor], moved: tuple[int, str, bool] | None) -> list[Tensor]:
    """The oracle's tensors, blocks in their order and a block's parts in ours."""
    if not moved:
        return list(state.values())
    depth, part, first = moved
    blocks = [list(keys) for _, keys in groupby(state, lambda key: key.split(".")[:depth])]
    return [state[key] for keys in blocks
            for key in sorted(keys, key=lambda key: (f".{part}." in key) != first)]


@pytest.mark.parametrize("name", ORACLES)
def test_outputs_are_those_of_torchvision_and_timm(name):
    make, moved = ORACLES[name]
    oracle, net = randomise(make()), build(name)
    theirs, ours = theirs_in_our_order(state_of(oracle), moved), state_of(Network(net))
    assert [value.numel() for value in theirs] == [value.numel() for value in ours.values()]
    model = from_state(net, {key: value.reshape(ours[key].shape) for key, value in zip(ours, theirs)})
    image = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, found = oracle(image), model(image)[0].flatten(1)
    assert expected.std(0).mean() > 1e-3 * expected.abs().max()            # the two images are told apart
    assert (expected - found).abs().max() <= 1e-5 * expected.abs().max()
    assert hooked(oracle, 32) == hooked(model, 32)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_pruned_is_masked(name):
    # GhostNet's random outputs are small differences of large numbers: fp32 alone is 2e-5 off.
    check_pruned_is_masked(build(name, 5), 32, dtype=torch.float64 if name == "ghostnet" else torch.float32)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_folded_is_the_same(name):
    """Folding computes in fp32, whose rounding the deepest of them make a hundred times larger."""
    check_folded_is_same(build(name, 5), 32, tolerance=1e-4)


def test_what_cannot_be_cut_is_said_and_the_rest_can():
    for name in CLASSIFIERS:
        table = channels(build(name, 5))
        tied = {unit for unit, why in table.frozen.items() if "tie its" in why}
        assert set(table.frozen) == {"image", "end"} | tied and "classes" in table.frozen["end"], name
        assert not tied or name.startswith("shufflenet"), f"{name}: {tied}"
        assert all(len(table.units[unit]) == 1 for unit in tied)
        assert sum(unit not in table.frozen for unit in table.units) > (0 if tied else 4), name


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_features_lie_on_exact_grids_and_carry_nothing_else(name):
    net = build(name)
    back, names = features(net)
    sizes = [tuple(value.shape[2:]) for value in Network(back, names).eval()(torch.rand(1, 3, 64, 64))]
    assert sizes == [(8, 8), (4, 4), (2, 2)]
    assert [strides(back)[level] for level in names] == [8, 16, 32]
    assert names[-1] == back[-1].name and not {"last", "end"} & {row.name for row in back}
    read = {x for row in back for x in row.inputs}
    assert all(row.name in read or row.name in names for row in back)
    assert {row.name for row in features(net, (8,))[0]} < {row.name for row in back}
    side = grids(back, 64)
    nodes = expand(back).nodes
    assert [side[node.name] for node in nodes] == [64 // (node.reduction or 64) for node in nodes]


def test_levels_end_in_sums_and_units_and_not_in_their_branches():
    assert features(build("xception"))[1] == ("block2", "block11", "sep14")
    assert features(build("regnet-x-200mf"))[1] == ("block1", "block5", "block12")
    assert features(build("squeezenet-1.1"))[1] == ("fire5", "fire9", "down32")
    assert features(build("mobilenet-v2"), (4, 16))[1] == ("block2", "block12")


def test_features_name_what_is_missing():
    with pytest.raises(ModelError, match=r"reduction 12.*\[2, 4, 8, 16, 32\]"):
        features(build("mobilenet-v1"), (8, 12))
    with pytest.raises(ModelError, match="detector"):
        features(build("yolov3-tiny"))


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_another_number_of_classes_by_name_and_by_file(name, tmp_path):
    net = build(name, 7)
    assert classes_of(net) == 7 and classes_of(build(name)) == 1000
    (tmp_path / "net.json").write_text(to_json(build(name)))
    assert build(str(tmp_path / "net.json"), 7) == net
    assert re.search("did you mean", str(pytest.raises(ModelError, build, name + "x").value))


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_training_step_moves_every_tensor(name):
    net: Net = build(name, 4)
    model = randomise(Network(net)).train()
    before = {key: value.clone() for key, value in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=.1)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    loss = nn.functional.cross_entropy(model(images)[0].flatten(1), torch.tensor([1, 3]))
    loss.backward()
    optimizer.step()
    assert loss.isfinite() and all(value.isfinite().all() for value in model.parameters())
    still = [key for key, value in model.named_parameters() if torch.equal(value, before[key])]
    assert not still, still
