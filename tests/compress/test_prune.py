"""Pruning and folding are exact: against a masked parent, a composition, torch-pruning and fp64."""
import copy
import random

import pytest
import torch

from compress.fold import fold
from compress.prune import prune
from models.channels import channels, widths
from models.count import macs, parameters
from models.network import Network, from_state
from models.records import from_json, to_json
from models.zoo.build import DETECTORS
from tests.helpers.cuts import check_pruned_is_masked
from tests.helpers.nets import NETS, hooked_macs, random_keep, randomised, residual_net, silenced
from utils.errors import ModelError


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", NETS)
def test_a_pruned_network_equals_its_masked_parent(name, seed):
    net = NETS[name]
    model = randomised(net, seed).double()
    keep = random_keep(net, channels(net).frozen, seed)
    state = silenced(net, model.state_dict(), keep)
    model.load_state_dict(state)
    before = {k: v.clone() for k, v in state.items()}
    small_net, small_state = prune(net, state, keep)
    small = Network(small_net).double().eval()
    small.load_state_dict(small_state)
    x = torch.rand(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        for a, b in zip(model(x), small(x)):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert before.keys() == state.keys() and all(torch.equal(before[k], state[k]) for k in state)
    assert keep == random_keep(net, channels(net).frozen, seed), "prune changed its argument"
    assert hooked_macs(small, 64) == macs(small_net, 64) < macs(net, 64)
    assert sum(p.numel() for p in small.parameters()) == parameters(small_net) < parameters(net)
    assert from_json(to_json(small_net)) == small_net


@pytest.mark.parametrize("group", sorted(random_keep(residual_net(), channels(residual_net()).frozen, 0)))
def test_each_group_alone_is_cut_wherever_it_is_read(group):
    """Every op in turn: a tensor forgotten by the table is not hidden behind another group's cut."""
    net = residual_net()
    model = randomised(net, 5).double()
    keep = {group: list(range(1, widths(net)[group], 2)) or [0]}
    state = silenced(net, model.state_dict(), keep)
    small_net, small_state = prune(net, state, keep)
    small = Network(small_net).double().eval()
    small.load_state_dict(small_state)
    model.load_state_dict(state)
    x = torch.rand(1, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        for a, b in zip(model(x), small(x)):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", NETS)
def test_two_prunings_in_a_row_equal_one(name, seed):
    net = NETS[name]
    state = randomised(net).state_dict()
    first = random_keep(net, channels(net).frozen, seed)
    half_net, half = prune(net, state, first)
    second = random_keep(half_net, channels(half_net).frozen, seed + 10)
    once_net, once = prune(net, state, {g: [first[g][i] for i in second[g]] for g in first})
    twice_net, twice = prune(half_net, half, second)
    assert once_net == twice_net
    assert once.keys() == twice.keys() and all(torch.equal(once[k], twice[k]) for k in once)


def test_a_residual_add_ties_the_channels_it_sums():
    net = residual_net()
    small, _ = prune(net, randomised(net).state_dict(), {"mb3": [0, 5, 7]})
    assert {layer.name: layer.out for layer in small if layer.name in ("mb3", "mb4", "ds6")} == {
        "mb3": 3, "mb4": 3, "ds6": 3}


@pytest.mark.parametrize(("keep", "words"), [
    ({"conv1": []}, "lose all"), ({"conv1": [3, 1]}, "sorted"), ({"conv1": [0, 99]}, "0..7"),
    ({"nope": [0]}, "no unit"), ({"head13": [0]}, "cannot be cut"),
    ({"image": [0]}, "cannot be cut"), ({"conv1": [1, 1]}, "unique")])
def test_a_keep_that_makes_no_sense_is_refused(keep, words):
    net = residual_net()
    with pytest.raises(ModelError, match=words):
        prune(net, randomised(net).state_dict(), keep)


def convolution(model, group):
    """The convolution whose outputs are the group's channels, a residual add's first one."""
    name, _, inner = group.partition(".")
    layer = getattr(model, name)
    if inner == "hidden":
        return layer.expand.conv
    if inner == "squeeze":
        return layer.se.reduce
    return getattr(layer, "project", getattr(layer, "pointwise", layer)).conv


@pytest.mark.parametrize("name", NETS)
def test_torch_pruning_makes_the_same_network_of_the_same_indices(name, monkeypatch):
    """Every group of the network is cut by both, by torch-pruning one by one through its own graph."""
    tp = pytest.importorskip("torch_pruning",
                             reason="the oracle torch-pruning is not installed (requirements-dev.txt)")
    monkeypatch.setattr("models.network.IN_PLACE", ())     # its graph loses a value that is overwritten
    net, rng = NETS[name], random.Random(7)
    model, frozen, width = randomised(net).double(), channels(net).frozen, widths(net)
    drop = {g: sorted(rng.sample(range(n), n // 4)) for g, n in width.items() if g not in frozen and n > 3}
    small, state = prune(net, model.state_dict(), {g: sorted({*range(width[g])} - {*gone})
                                                   for g, gone in drop.items()})
    ours = Network(small).double().eval()
    ours.load_state_dict(state)
    theirs, x = copy.deepcopy(model), torch.rand(1, 3, 64, 64, dtype=torch.float64)
    graph = tp.DependencyGraph().build_dependency(theirs, example_inputs=x)
    for group, gone in drop.items():
        graph.get_pruning_group(convolution(theirs, group), tp.prune_conv_out_channels, idxs=gone).prune()
    assert parameters(small) == sum(p.numel() for p in theirs.parameters())
    with torch.no_grad():
        for a, b in zip(ours(x), theirs(x)):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NETS)
def test_folding_batch_norm_changes_no_output(name):
    model = randomised(NETS[name])
    state = model.state_dict()
    folded_net, folded = fold(NETS[name], state)
    assert not any(".bn." in key for key in folded)
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        for a, b in zip(model(x), from_state(folded_net, folded)(x)):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * float(a.abs().max()))
    assert fold(folded_net, folded)[0] == folded_net


@pytest.mark.parametrize("name", NETS)
def test_a_folded_network_can_be_pruned_as_well(name):
    net = NETS[name]
    state = randomised(net).state_dict()
    keep = random_keep(net, channels(net).frozen, 4)
    a_net, a = fold(*prune(net, state, keep))
    b_net, b = prune(*fold(net, state), keep)
    assert a_net == b_net and all(torch.allclose(a[k], b[k]) for k in a)


@pytest.mark.parametrize("name", DETECTORS)
def test_twenty_random_keeps_of_every_detector_equal_their_masked_parent(name):
    assert check_pruned_is_masked(DETECTORS[name](4), 64, dtype=torch.float64) < 1e-10
