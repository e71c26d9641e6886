"""What a pruning step takes: widths that follow, rounding, and the importance rules against plain loops."""
import os
import subprocess
import sys

import pytest
import torch

from compress.importance import RULES, channel_scores, loss_gradients, without_norm
from compress.prune import prune
from compress.pruning.config import PruneConfig
from compress.pruning.progressive import Bench
from compress.pruning.schedule import Unit, narrowed, next_widths, prunable
from models.channels import channels, widths, with_widths
from models.network import Network, initialise
from models.zoo.tiny import PRUNED_WIDTHS, micro_yolo, micro_yolo_pruned
from tests.helpers.nets import NETS, randomised, residual_net, small_net
from utils.errors import EnvironmentFault, ModelError


def test_cutting_the_papers_sixteenths_gives_the_papers_pruned_network():
    net = micro_yolo()
    assert with_widths(net, narrowed(net, net, PRUNED_WIDTHS)) == micro_yolo_pruned()


def walked(unit, round_to=1):
    """The widths of a unit, step by step to the end."""
    out, steps = [unit.original], 0
    while True:
        new, steps = next_widths([unit], {unit.name: out[-1]}, steps, round_to)
        if not new:
            return out
        out.append(new[unit.name])


def test_steps_add_up_whatever_their_order():
    net = origin = micro_yolo(5)
    units, taken = {u.name: u for u in prunable(net)[0]}, {}
    for group in ("conv9", "conv5", "conv9", "conv11", "conv5", "conv9"):
        new, taken[group] = next_widths([units[group]], widths(net), taken.get(group, 0))
        net = with_widths(net, narrowed(net, origin, new))
    want = {"conv5": 56, "conv9": 208, "conv11": 480}
    assert net == with_widths(origin, narrowed(origin, origin, want))
    assert widths(net)["conv11.hidden"] == 416 and widths(net)["conv22.hidden"] == 2 * (128 + 208)


def test_a_step_takes_a_sixteenth_of_the_original_and_the_last_channels_stay():
    units = {u.name: u for u in prunable(micro_yolo(5))[0]}
    assert walked(units["conv9"]) == list(range(256, 0, -16))
    assert walked(units["conv1"]) == list(range(16, 0, -1))


@pytest.mark.parametrize("cut", ["outputs", "hidden", "both"])
@pytest.mark.parametrize("name", NETS)
def test_every_unit_of_every_network_can_be_cut_to_its_end_and_no_further(name, cut):
    net, bench = NETS[name], object.__new__(Bench)
    bench.config, state = PruneConfig(), randomised(net).state_dict()
    units, reasons = prunable(net, cut)
    assert not {u.name for u in units} & set(reasons) and all(reasons.values())
    for unit in units:
        assert walked(unit)[-1] >= 1 and walked(unit) == sorted(set(walked(unit)), reverse=True)
        new = narrowed(net, net, {unit.name: max(1, unit.original - unit.step)})
        keep = bench.best_channels(net, state, new)
        small, small_state = prune(net, state, keep)
        assert {g: widths(small)[g] for g in new} == new and all(v >= 1 for v in new.values())
        assert all(torch.isfinite(v).all() for v in small_state.values())


def test_a_step_may_take_several_sixteenths():
    one, three = ({u.name: u.step for u in prunable(micro_yolo(5), sixteenths=n)[0]} for n in (1, 3))
    assert one["conv13"] == 64 and three["conv13"] == 192 and (one["conv1"], three["conv1"]) == (1, 3)


def test_rounded_widths_are_multiples_and_never_none():
    for unit in prunable(micro_yolo(5))[0]:
        widths_8 = walked(unit, 8)
        assert all(w % 8 == 0 and w for w in widths_8) and widths_8 == sorted(set(widths_8), reverse=True)
    units = [u for u in prunable(micro_yolo(5), sixteenths=2.25)[0] if u.name in ("conv1", "conv5", "conv9")]
    new, steps = next_widths(units, widths(micro_yolo(5)), 0, 8)
    assert (new, steps) == ({"conv5": 56, "conv9": 224}, 1), "conv1's 14 are nearest to its own 16"
    net = micro_yolo(5)
    followed = narrowed(net, net, {"conv5": 56}, 16)
    assert followed["conv7.hidden"] == 112 and followed["conv7.squeeze"] == 3


def by_hand(rule, weight, gradient):
    """The rule written as a loop over filters."""
    rows, grads = weight.flatten(1).tolist(), gradient.flatten(1).tolist()
    if rule == "l1":
        return [sum(abs(v) for v in r) for r in rows]
    if rule == "l2":
        return [sum(v * v for v in r) ** .5 for r in rows]
    if rule == "fpgm":
        return [sum(sum((a - b) ** 2 for a, b in zip(r, s)) ** .5 for s in rows) for r in rows]
    return [sum(a * b for a, b in zip(r, g)) ** 2 for r, g in zip(rows, grads)]


@pytest.mark.parametrize("rule", ["l1", "l2", "fpgm", "taylor"])
def test_importance_is_that_of_a_loop_over_filters(rule):
    net = residual_net()
    state = randomised(net).state_dict()
    grads = {k: torch.randn(v.shape, generator=torch.Generator().manual_seed(7)) for k, v in state.items()}
    for group, keys in (("conv9", ["conv9.conv.weight"]), ("mb4.hidden", ["mb4.expand.conv.weight"]),
                        ("mb3.squeeze", ["mb3.se.reduce.weight"]),
                        ("mb3", ["mb3.project.conv.weight", "mb4.project.conv.weight",
                                 "ds6.pointwise.conv.weight"])):
        mine = channel_scores(net, state, group, rule, gradients=grads)
        hand = torch.tensor([by_hand(rule, state[k], grads[k]) for k in keys]).sum(0)
        torch.testing.assert_close(mine, hand, rtol=1e-4, atol=1e-4)


def test_batch_norm_and_random_importance_and_their_refusals():
    net = residual_net()
    state = randomised(net).state_dict()
    torch.testing.assert_close(channel_scores(net, state, "conv9", "bn"), state["conv9.bn.weight"].abs())
    one, other = (channel_scores(net, state, "conv9", "random", seed=s) for s in (0, 1))
    assert torch.equal(one, channel_scores(net, state, "conv9", "random")) and not torch.equal(one, other)
    for words, asked in (("unknown importance", ("conv9", "magnitude")),
                         ("no unit", ("conv99", "l1")),
                         ("needs the gradients", ("conv9", "taylor"))):
        with pytest.raises(ModelError, match=words):
            channel_scores(net, state, *asked)
    assert set(RULES) == {"l1", "l2", "fpgm", "taylor", "group", "bn", "random"}


def test_where_a_maker_has_no_batch_norm_its_l2_norm_stands_in_as_a_share():
    net = residual_net()
    state = randomised(net).state_dict()
    reduce = state["mb3.se.reduce.weight"].flatten(1).norm(dim=1)
    torch.testing.assert_close(channel_scores(net, state, "mb3.squeeze", "bn"), reduce / reduce.mean())
    found = without_norm(net)
    assert {"mb3.squeeze", "se8.squeeze", "mb9.hidden"} <= set(found) and "mb3" not in found
    for unit in channels(net).units:                       # every one has an answer, squeeze-excitation's too
        if channels(net).makers[unit]:
            assert channel_scores(net, state, unit, "bn").gt(0).all(), unit


def test_the_group_norm_adds_what_makes_and_reads_a_channel_each_as_a_share_of_the_units_mean():
    net = small_net()
    state = randomised(net).state_dict()

    def share(weight):
        return (found := weight.flatten(1).square().sum(1)) / found.mean()
    made, read = share(state["conv1.conv.weight"]), share(state["mb3.expand.conv.weight"].transpose(0, 1))
    torch.testing.assert_close(channel_scores(net, state, "conv1", "group"), made + read)
    blind = {**state, "mb3.expand.conv.weight": state["mb3.expand.conv.weight"].clone()}
    blind["mb3.expand.conv.weight"][:, 5] = 0              # nobody reads it, however strong it is
    blind["conv1.conv.weight"] = torch.ones_like(state["conv1.conv.weight"])
    assert int(channel_scores(net, blind, "conv1", "group").argmin()) == 5
    scaled = {**state, "mb3.expand.conv.weight": 100 * state["mb3.expand.conv.weight"]}
    torch.testing.assert_close(channel_scores(net, scaled, "conv1", "group"), made + read)


def test_taylor_sees_the_channel_that_the_loss_depends_on():
    net = residual_net()
    state = randomised(net).state_dict()
    state["conv9.bn.weight"][3] = state["conv9.bn.bias"][3] = 0      # a channel nothing depends on

    def loss(outputs, targets, images):
        return {"all": sum(m.square().mean() for m in outputs)}
    batches = [(torch.randint(0, 255, (2, 3, 64, 64), dtype=torch.uint8), torch.zeros(0, 6))]
    grads = loss_gradients(net, state, batches, loss, {"all": 1.0})
    scores = channel_scores(net, state, "conv9", "taylor", gradients=grads)
    assert int(scores.argmin()) == 3 and float(scores[3]) == 0


def test_processes_that_would_cut_different_channels_cut_nothing(monkeypatch):
    net = small_net()
    bench = object.__new__(Bench)
    bench.config, bench.origin, bench.taken = PruneConfig(), net, {}
    state = initialise(Network(net), 0).state_dict()
    kept = bench.choose(net, state, [Unit("mb3", 16, 1)])
    assert len(kept["mb3"]) == 15
    monkeypatch.setattr("utils.ddp.same_on_all", lambda value: False)
    with pytest.raises(EnvironmentFault, match="different channels; nothing was cut"):
        bench.choose(net, state, [Unit("mb3", 16, 1)])


RANKS = """
import sys
from pathlib import Path
import torch
from compress.pruning.progressive import Bench
from compress.pruning.config import PruneConfig
from models.network import Network, initialise
from compress.pruning.schedule import Unit
from tests.helpers.nets import small_net
from utils import ddp
from utils.errors import EnvironmentFault
world, net = ddp.join(torch.device("cpu")), small_net()
bench = object.__new__(Bench)
bench.config, bench.origin, bench.taken = PruneConfig(), net, {}
said = []
for seed in (0, world.rank):
    try:
        kept = bench.choose(net, initialise(Network(net), seed).state_dict(), [Unit("mb3", 16, 4)])
        said.append(f"kept {len(kept['mb3'])}")
    except EnvironmentFault:
        said.append("refused")
Path(sys.argv[1], f"rank{world.rank}").write_text(", ".join(said))
ddp.leave()
"""


def test_two_processes_agree_on_the_same_weights_and_refuse_on_others(root, tmp_path):
    (tmp_path / "ranks.py").write_text(RANKS)
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    there = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launcher, tmp_path / "ranks.py", tmp_path], capture_output=True, text=True,
                          timeout=200, env=there, cwd=root)
    assert done.returncode == 0, done.stderr
    assert [(tmp_path / f"rank{n}").read_text() for n in range(2)] == ["kept 12, refused"] * 2
