"""Pruning and folding are exact: against a masked parent, a composition, torch-pruning and fp64."""
import copy

import pytest
import torch

from models.count import macs, parameters
from models.fold import fold
from models.layout import frozen_groups, layout, widths
from models.network import Network, from_state
from models.prune import prune
from models.zoo import yolov3_tiny
from tests.nets import NETS, random_keep, randomised, residual_net
from utils.errors import ModelError

SILENT = (".bn.weight", ".bn.bias", ".se.reduce.weight", ".se.reduce.bias")


def silenced(net, state, keep):
    """The state with every dropped channel's outputs at zero: batch-norm scale and shift, squeeze weights."""
    width, out = widths(net), {k: v.clone() for k, v in state.items()}
    for param in layout(net):
        if not param.key.endswith(SILENT):
            continue
        at = 0
        for group in param.rows:
            kept = set(keep.get(group, range(width[group])))
            out[param.key][[at + i for i in range(width[group]) if i not in kept]] = 0
            at += width[group]
    return out


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", NETS)
def test_a_pruned_network_equals_its_masked_parent(name, seed):
    net = NETS[name]
    model = randomised(net, seed).double()
    keep = random_keep(net, frozen_groups(net), seed)
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
    assert all(torch.equal(before[k], state[k]) for k in state), "prune changed its argument"
    assert macs(small_net, 64) < macs(net, 64)
    assert parameters(small_net) == sum(p.numel() for p in small.parameters())


def test_two_prunings_in_a_row_equal_one():
    net = residual_net()
    state = randomised(net).state_dict()
    first = {"mb3": list(range(0, 12, 2)), "conv9": list(range(4, 16))}
    second = {"mb3": [1, 3, 4], "conv9": [0, 5, 6]}
    both = {g: [first[g][i] for i in second[g]] for g in first}
    once_net, once = prune(net, state, both)
    twice_net, twice = prune(*prune(net, state, first), second)
    assert once_net == twice_net
    assert once.keys() == twice.keys() and all(torch.equal(once[k], twice[k]) for k in once)


def test_a_residual_add_ties_the_channels_it_sums():
    net = residual_net()
    small, _ = prune(net, randomised(net).state_dict(), {"mb3": [0, 5, 7]})
    assert {layer.name: layer.out for layer in small if layer.name in ("mb3", "mb4", "ds6")} == {
        "mb3": 3, "mb4": 3, "ds6": 3}


@pytest.mark.parametrize(("keep", "words"), [
    ({"conv1": []}, "lose all"), ({"conv1": [3, 1]}, "sorted"), ({"conv1": [0, 99]}, "0..7"),
    ({"nope": [0]}, "no channel group"), ({"head13": [0]}, "cannot be cut"),
    ({"image": [0]}, "cannot be cut"), ({"conv1": [1, 1]}, "unique")])
def test_a_keep_that_makes_no_sense_is_refused(keep, words):
    net = residual_net()
    with pytest.raises(ModelError, match=words):
        prune(net, randomised(net).state_dict(), keep)


def test_torch_pruning_makes_the_same_network_of_the_same_indices():
    tp = pytest.importorskip("torch_pruning",
                             reason="the oracle torch-pruning is not installed (requirements-dev.txt)")
    net = yolov3_tiny(4)
    model = randomised(net)
    drop = [0, 3, 17, 100, 255]
    keep = {"conv9": [i for i in range(256) if i not in drop]}
    ours = from_state(*prune(net, model.state_dict(), keep))
    theirs = copy.deepcopy(model)
    x = torch.rand(1, 3, 64, 64)
    graph = tp.DependencyGraph().build_dependency(theirs, example_inputs=x)
    graph.get_pruning_group(theirs.conv9.conv, tp.prune_conv_out_channels, idxs=drop).prune()
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


def test_a_folded_network_can_be_pruned_as_well():
    net = residual_net()
    state = randomised(net).state_dict()
    keep = {"mb3": [0, 2, 3, 8], "mb4.hidden": list(range(10))}
    a_net, a = fold(*prune(net, state, keep))
    b_net, b = prune(*fold(net, state), keep)
    assert a_net == b_net and all(torch.allclose(a[k], b[k]) for k in a)
