"""Learning from a teacher, and batch-norm statistics measured again."""
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from compress.distill import DistilledLoss, check_teacher, teacher
from compress.prune import prune
from evaluation.curves import Matches, drop_interval, map50_of
from models.graph import heads_of
from models.heads.loss import DetectionLoss, distillation
from models.network import from_state
from models.zoo.build import with_heads
from models.zoo.tiny import micro_yolo
from tests.helpers.nets import randomised, residual_net, small_net
from training.finetune import Tuner, moved, statistics
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


def test_a_teacher_with_other_classes_or_anchors_is_refused():
    net, names = micro_yolo(2), ("a", "b")
    check_teacher(net, names, net, names)
    with pytest.raises(ModelError, match="the student learns a, b"):
        check_teacher(net, names, net, ("a", "c"))
    other = with_heads(net, 2, (((1, 2), (3, 4), (5, 6)), ((7, 8), (9, 10), (11, 12))))
    with pytest.raises(ModelError, match="other anchors"):
        check_teacher(net, names, other, names)


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
