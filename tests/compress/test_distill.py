"""Learning from a teacher, and batch-norm statistics measured again."""
import math
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from compress.distill import MOST, SEEN, DistilledLoss, common_classes, everything, imitation, taught, teacher
from compress.features import Features, ends_and_features
from compress.prune import prune
from evaluation.curves import Matches, drop_interval, map50_of
from models.checkpoint import Checkpoint
from models.graph import heads_of
from models.heads.loss import DetectionLoss, distillation
from models.network import Network, from_state
from models.zoo.build import with_head_kind, with_heads
from tests.helpers.nets import randomised, residual_net, small_net
from training.config import TrainConfig
from training.finetune import Tuner, moved, statistics
from training.optim import make_optimizer
from utils.errors import ModelError

HEADS = heads_of(residual_net())


def two_outputs(seed=0):
    return [torch.randn(2, 2, 8, n, n, generator=torch.Generator().manual_seed(seed)) for n in (3, 6)]


def test_a_student_that_answers_as_its_teacher_has_nothing_to_learn():
    outputs = [m.requires_grad_() for m in two_outputs()]
    loss = distillation(outputs, [m.detach().clone() for m in outputs], HEADS)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0, abs=1e-6)
    assert all(float(m.grad.abs().max()) < 1e-6 for m in outputs)


def test_distillation_is_the_sum_written_out_over_every_prediction():
    student, master = two_outputs(1), two_outputs(2)
    total = mass = 0.0

    def bernoulli(p, q):
        return p * torch.log(p / q) + (1 - p) * torch.log((1 - p) / (1 - q))
    for s, t in zip(student, master):
        for b, a, y, x in torch.cartesian_prod(*(torch.arange(n) for n in (2, 2, *s.shape[3:]))).tolist():
            mine, theirs = s[b, a, :, y, x].double(), t[b, a, :, y, x].double()
            seen = theirs[4].sigmoid()
            box = (mine[:2].sigmoid() - theirs[:2].sigmoid()).square().sum() \
                + (mine[2:4] - theirs[2:4]).square().sum()
            classes = bernoulli(theirs[5:].sigmoid(), mine[5:].sigmoid()).sum()
            total += seen * (box + classes) + bernoulli(theirs[4].sigmoid(), mine[4].sigmoid())
            mass += seen
    assert float(distillation(student, master, HEADS)) == pytest.approx(float(total / mass), rel=1e-4)


def test_the_teacher_joins_the_loss_by_name_and_gets_no_gradient():
    net = small_net()
    model, images = randomised(net), torch.rand(2, 3, 64, 64)
    teach = teacher(net, model.state_dict(), torch.device("cpu"))
    for mine, theirs in zip(model(images), teach(images)):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-3)     # folded
    other = randomised(net, 1).train()
    outputs = other(images)
    terms = DistilledLoss(DetectionLoss(net), teach)(outputs, torch.zeros(0, 6), images)
    assert set(terms) == {"box", "obj", "cls", "distill"} and float(terms["distill"].detach()) > 0
    terms["distill"].backward()
    assert all(p.grad is not None for p in other.parameters())


NAMES = ("a", "b", "c")
OTHERS = {"reach": tuple(replace(row, xy_scale=1.0, assign="best") if row.kind else row
                         for row in small_net(5)),
          "free": with_head_kind(small_net(5), "free")}


@pytest.mark.parametrize("student", [small_net(), OTHERS["free"]], ids=["anchor", "free"])
@pytest.mark.parametrize("master", OTHERS)
def test_heads_of_any_kind_learn_the_classes_they_share_with_a_teacher_of_any_other(student, master):
    teach_net = OTHERS[master]
    found = Checkpoint(teach_net, randomised(teach_net, 3).state_dict(), ("x", "b", "A", "y", "z"))
    found.state["head6.conv.weight"].mul_(20)
    bias = found.state["head6.conv.bias"]
    (bias.view(2, -1)[:, 4:] if master == "reach" else bias[:5]).add_(4)
    model = randomised(with_heads(student, 3), 1).train()
    loss, told = taught(DetectionLoss(model.net), NAMES, found, torch.device("cpu"))
    assert "knows no c" in told and loss.pairs == [(0, 1), (2, 1)]
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    optimizer, seen = torch.optim.Adam(model.parameters(), lr=0.01), []
    for _ in range(40):
        optimizer.zero_grad()
        terms = loss(model(images), torch.zeros(0, 6), images)
        terms["distill"].backward()
        optimizer.step()
        seen.append(float(terms["distill"].detach()))
    assert seen[-1] < 0.5 * seen[0] and min(seen) >= 0, seen[::8]


def test_a_teacher_like_the_student_asks_for_nothing_by_boxes_and_scores_either():
    for net in (residual_net(), with_head_kind(residual_net(), "free")):
        heads = heads_of(net)
        outputs = [0.7 * torch.randn(1, *head.shape, 8 * n, 8 * n, generator=torch.Generator().manual_seed(n))
                   for n, head in zip((2, 1), heads)]
        for output, head in zip(outputs, heads):           # few sure ones, as of a trained network
            output[:, :, 4] -= 4 * (head.kind == "anchor")
            output[:, :3] -= 4.5 * (head.kind == "free")
        outputs = [output.requires_grad_() for output in outputs]
        boxes, scores = everything(outputs, heads)
        assert 3 < int((scores.amax(2) > SEEN).sum()) <= MOST
        total, weight = imitation(boxes, scores, boxes.detach(), scores.detach())
        (total / weight).backward()
        assert float(total.detach()) == pytest.approx(0, abs=1e-5)
        assert all(float(output.grad.abs().max()) < 1e-5 for output in outputs)


def test_imitation_is_the_nearest_box_s_distance_and_what_no_one_sees_is_pushed_down():
    mine = torch.tensor([[[10., 10, 30, 30], [60, 60, 80, 90], [11, 9, 31, 30], [100, 0, 120, 20]]])
    scores = torch.tensor([[[.3, .1], [.2, .6], [.4, .4], [.01, .02]]], requires_grad=True)
    theirs = torch.tensor([[[10., 12, 30, 30], [0, 0, 5, 5]]])
    total, weight = imitation(mine, scores, theirs, torch.tensor([[[.8, .2], [.04, .01]]]))

    def bernoulli(p, q):
        return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    off = 2 / 18                                           # of one side, by the height
    want = bernoulli(.8, .3) + bernoulli(.2, .1) + bernoulli(SEEN, .2) + bernoulli(SEEN, .6)
    want += .8 * (off - .05)
    assert float(total.detach()) == pytest.approx(want, rel=1e-4) and float(weight) == pytest.approx(.8)
    total.backward()
    assert not scores.grad[0, 2].any() and not scores.grad[0, 3].any() and (scores.grad[0, 1] > 0).all()


def test_a_teacher_that_sees_nothing_and_one_of_other_things_alone():
    quiet = torch.full((1, 3, 2), .01)
    total, weight = imitation(torch.rand(1, 4, 4), torch.full((1, 4, 2), .02), torch.rand(1, 3, 4), quiet)
    assert float(total) == pytest.approx(0, abs=1e-6) and float(weight) == 0
    with pytest.raises(ModelError, match="knows none of the classes a, b"):
        common_classes(("a", "b"), ("c",))


def test_features_are_compared_by_stride_and_normalised_by_hand():
    student, master = residual_net(), small_net()          # strides 2 and 4, and 8
    with pytest.raises(ModelError, match="strides 8, this network's 2, 4: no features"):
        Features(student, master)
    loss, images = Features(student, student), torch.rand(2, 3, 64, 64)
    outputs, told = (Network(student, ends_and_features(student)) for _ in range(2))
    outputs.load_state_dict(randomised(student, 1).state_dict())
    told.load_state_dict(randomised(student, 2).state_dict())
    mine, theirs = outputs.eval()(images), [value.detach() for value in told.eval()(images)]
    assert len(mine) == 4 and [value.shape[1] for value in mine[2:]] == [14, 22]
    assert float(loss(mine, theirs).detach()) == pytest.approx(1, abs=1e-3)     # nothing learned yet
    for adapter in loss.adapters:
        torch.nn.init.normal_(adapter.weight, generator=torch.Generator().manual_seed(0))
    wanted = 0.0
    for adapter, value, other in zip(loss.adapters, mine[2:], theirs[2:]):
        deviation, mean = torch.std_mean(other, (0, 2, 3), correction=0, keepdim=True)
        other = (other - mean) / deviation
        wanted += (adapter(value) - other).square().mean() / 2
    torch.testing.assert_close(loss(mine, theirs), wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("master", [small_net(5), with_head_kind(small_net(5), "free"),
                                    with_head_kind(small_net(5), "yolox")], ids=["anchor", "free", "yolox"])
def test_a_student_learns_the_features_of_any_teacher_with_its_stride(master):
    found = Checkpoint(master, randomised(master, 3).state_dict(), ("x", "b", "A", "y", "z"))
    net = small_net()
    model = Network(net, ends_and_features(net)).train()
    model.load_state_dict(randomised(net, 1).state_dict())
    loss, _ = taught(DetectionLoss(net), NAMES, found, torch.device("cpu"), student=net)
    images = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    optimizer, seen = make_optimizer(model, TrainConfig(lr=0.02), loss), []
    assert {id(p) for p in loss.parameters()} <= {id(p) for g in optimizer.param_groups for p in g["params"]}
    for _ in range(60):
        optimizer.zero_grad()
        terms = loss(model(images), torch.zeros(0, 6), images)
        terms["distill_features"].backward()
        optimizer.step()
        seen.append(float(terms["distill_features"].detach()))
    assert model.mb3.project.conv.weight.grad.any() and terms.keys() == loss.terms.keys()
    assert seen[0] == pytest.approx(1, abs=0.05) and seen[-1] < 0.7 * seen[0], seen[::8]


def test_measured_statistics_are_those_of_the_images_and_the_weights_alone():
    net = residual_net()
    state = {k: v.clone() for k, v in randomised(net).state_dict().items()}
    kept = {k: v.clone() for k, v in state.items()}
    images = torch.randint(0, 255, (6, 3, 64, 64), dtype=torch.uint8)
    new = statistics(net, state, images.split(3))
    assert all(torch.equal(state[k], kept[k]) for k in state)
    assert set(new) == {k for k in state if "running_" in k}
    conv = from_state(net, state).conv1.conv
    means = torch.stack([conv(p.float() / 255).mean((0, 2, 3)) for p in images.split(3)]).mean(0)
    torch.testing.assert_close(new["conv1.bn.running_mean"], means, rtol=1e-4, atol=1e-5)
    spoilt = {k: torch.full_like(v, 1e6) if "running_var" in k else v for k, v in state.items()}
    again = statistics(net, spoilt, images.split(3))
    assert all(torch.equal(new[k], again[k]) for k in new)


def tuner_of(images):
    """A Tuner as far as cutting asks for one."""
    tuner = object.__new__(Tuner)
    tuner.config, tuner.device, tuner.precision = SimpleNamespace(batch_size=4), torch.device("cpu"), "fp32"
    tuner._measured, tuner._plain = None, images
    return tuner


def test_a_cut_moves_statistics_by_what_it_changes_and_leaves_an_uncut_network_its_own():
    """Statistics of varied images are wanted and plain ones are at hand, as after a training with mosaic."""
    net, draw = residual_net(), torch.Generator().manual_seed(2)
    plain = torch.randint(0, 255, (8, 3, 64, 64), generator=draw, dtype=torch.uint8)
    varied = (plain.float() * torch.rand((8, 1, 1, 1), generator=draw)).to(torch.uint8)
    state = {k: v.clone() for k, v in randomised(net).state_dict().items()}
    state |= statistics(net, state, varied.split(4))
    tuner, keep = tuner_of(plain), {"conv1": range(6), "mb3": range(10), "conv9": range(12)}
    same, own = tuner.cut(net, state, partial(prune, keep={}))
    assert same == net and all(torch.equal(own[k], state[k]) for k in state)
    small, cut = tuner.cut(net, state, partial(prune, keep=keep))
    stale = prune(net, state, keep)[1]
    wanted, alone = (statistics(small, stale, images.split(4)) for images in (varied, plain))

    def off(found):
        return sum((found[k] - wanted[k]).abs().mean() / wanted[k].abs().mean() for k in wanted)
    assert off(cut) < 0.6 * min(off(stale), off(alone)), (off(cut), off(stale), off(alone))
    assert all(torch.equal(cut[k], stale[k]) for k in stale if "running_" not in k)


def test_a_channel_that_never_varied_takes_the_variance_it_has_now():
    state, first, last = ({"bn.running_var": torch.tensor(v)} for v in ((4., 9.), (2., 0.), (1., 5.)))
    assert moved(state, first, last)["bn.running_var"].tolist() == [2., 5.]


def made_matches(right):
    """One class, a truth a picture, a detection on each: right or wrong."""
    n, order = len(right), np.arange(len(right))
    none = np.zeros(n, int)
    return Matches(row=order, image=order, label=none, score=1 - order / n, target=np.where(right, order, -1),
                   ignored=none.astype(bool), target_image=order, target_label=none, target_index=order,
                   images=n, classes=1)


def test_the_interval_of_a_drop_is_paired_so_the_same_network_twice_loses_exactly_nothing():
    right = np.random.default_rng(0).random(40) < 0.7
    before, after = made_matches(right), made_matches(right & (np.arange(40) % 3 > 0))
    assert drop_interval(before, before) == (0.0, 0.0)
    low, high = drop_interval(before, after)
    ones = np.ones((1, 40), int)
    assert 0 < low < float((map50_of(before, ones) - map50_of(after, ones))[0]) < high
    with pytest.raises(ValueError, match="two different sets"):
        drop_interval(before, made_matches(right[:30]))
