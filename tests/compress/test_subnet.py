"""Kernels cut out of larger ones, and a network trained to hold them all, against networks built apart."""
from dataclasses import replace
from itertools import product

import pytest
import torch
from torch.nn import functional as F

from compress.kernels import crop_kernels, forward, with_kernels
from compress.supernet import SandwichLoss, Supernet, sandwich
from models.channels import channels
from models.graph import heads_of
from models.heads.loss import DetectionLoss, distillation
from models.network import Network, from_state
from models.zoo.tiny import SEARCHED, micro_yolo, substitute
from tests.helpers.nets import NETS, randomised, residual_net
from utils.errors import ModelError

HEADS = heads_of(residual_net())
LAYERS = ("mb3", "ds6", "conv9")                   # of residual_net: an mbconv, a dsconv and a conv
TARGETS = torch.tensor([[0, 1, .4, .5, .3, .3], [1, 0, .6, .6, .2, .4], [1, 2, .2, .3, .5, .2]])


def wide(side: int = 5) -> Network:
    return randomised(substitute(residual_net(), kernels=dict.fromkeys(LAYERS, side)))


def noise(count: int = 2, size: int = 64) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(5))


def close(a, b, tolerance=1e-6):
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance)


def test_a_cut_network_is_the_one_built_with_those_centres():
    model = wide()
    kernels = {"mb3": 3, "ds6": 3, "conv9": 1}
    net, state = crop_kernels(model.net, model.state_dict(), kernels)
    other = Network(net).eval()                    # and its tensors set one by one, by hand
    for name, tensor in other.state_dict().items():
        whole = model.state_dict()[name]
        margin = (whole.shape[-1] - tensor.shape[-1]) // 2 if tensor.dim() == 4 else 0
        tensor.copy_(whole[..., margin:-margin, margin:-margin] if margin else whole)
    assert {layer.name: layer.kernel for layer in net if layer.name in kernels} == kernels
    with torch.no_grad():
        close(forward(net, state, noise()), other(noise()))
        assert (forward(net, state, noise())[0] - model(noise())[0]).abs().max() > 1e-3


@pytest.mark.parametrize("name", NETS)
def test_a_cut_network_computes_what_the_large_one_does_with_zeros_around_the_centres(name):
    net = NETS[name]
    sides = {layer.name: 5 for layer in net if layer.op in ("conv", "dsconv", "mbconv") and layer.kernel >= 3}
    model = randomised(substitute(net, kernels=sides))
    zeroed = {k: v.clone() for k, v in model.state_dict().items()}
    for param in channels(model.net).params:
        if param.tail[-1:] == (5,) and param.key.split(".")[0] in sides:
            zeroed[param.key] = F.pad(zeroed[param.key][..., 1:4, 1:4], (1, 1, 1, 1))
    small, state = crop_kernels(model.net, model.state_dict(), dict.fromkeys(sides, 3))
    with torch.no_grad():
        close(from_state(small, state)(noise()), from_state(model.net, zeroed)(noise()), 1e-4)


def test_cutting_changes_no_argument_twice_is_once_and_growing_back_computes_the_same():
    model = wide(7)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    once = crop_kernels(model.net, model.state_dict(), dict.fromkeys(LAYERS, 3))
    step = crop_kernels(*crop_kernels(model.net, model.state_dict(), dict.fromkeys(LAYERS, 5)),
                        dict.fromkeys(LAYERS, 3))
    assert once[0] == step[0] and all(torch.equal(once[1][k], step[1][k]) for k in once[1])
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    grown = with_kernels(*once, dict.fromkeys(LAYERS, 7))
    assert grown[0] == model.net
    with torch.no_grad():
        close(forward(*grown, noise()), forward(*once, noise()), 1e-5)


@pytest.mark.parametrize(("kernels", "said"), [({"mb3": 7}, "mb3 has 5x5, 7 is wanted"),
                                               ({"pool2": 3}, "cannot substitute pool2"),
                                               ({"nobody": 3}, "cannot substitute nobody")])
def test_what_cannot_be_cut_is_said(kernels, said):
    model = wide()
    with pytest.raises(ModelError, match=said):
        crop_kernels(model.net, model.state_dict(), kernels)


def test_running_records_needs_no_module_and_equals_one():
    model = randomised(micro_yolo(3))
    with torch.no_grad():
        close(forward(model.net, model.state_dict(), noise()), model(noise()))
        state = {k: v.clone() for k, v in model.state_dict().items()}
        close(forward(model.net, state, noise(), training=True), model.train()(noise()))
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items()), "statistics move alike"


def supernet(count: int = 2, seed: int = 0) -> Supernet:
    model = Supernet(wide().net, LAYERS, (3, 5), count, seed)
    model.load_state_dict(wide().state_dict())
    return model


def test_the_largest_networks_maps_statistics_and_gradients_are_a_networks():
    plain, model = wide().train(), supernet().train()
    outputs = model(noise())
    close(outputs[0], plain(noise()))
    assert len(outputs) == 4 and all(
        m.shape == n.shape for found in outputs for m, n in zip(found, outputs[0]))
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(model.state_dict()[key], value, msg=key)
    with torch.no_grad():
        close(model.eval()(noise()), plain.eval()(noise()))
    loss = DetectionLoss(model.net)
    sum(loss(outputs[0], TARGETS).values()).backward()
    sum(loss(plain.train()(noise()), TARGETS).values()).backward()
    for (name, mine), theirs in zip(model.named_parameters(), plain.parameters()):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-5, msg=name)


def test_the_small_networks_teach_the_centres_they_share_and_no_more():
    model = supernet(count=0).train()
    outputs = model(noise())
    distillation(outputs[1], outputs[0], HEADS).backward()      # the smallest network's loss alone
    for name in ("mb3.depthwise.conv.weight", "ds6.depthwise.conv.weight", "conv9.conv.weight"):
        gradient = model.get_parameter(name).grad
        assert (gradient[..., 1:4, 1:4] != 0).all(), name
        border = gradient.clone()
        border[..., 1:4, 1:4] = 0
        assert not border.any(), f"{name}: the border is none of the 3x3 network's"
    assert all(p.grad is not None for p in model.parameters())


def test_the_shared_gradient_is_that_of_the_small_network_alone():
    model = supernet(count=0).train()
    outputs = model(noise())
    net, state = crop_kernels(model.net, wide().state_dict(), dict.fromkeys(LAYERS, 3))
    alone = Network(net).train()
    alone.load_state_dict(state)
    distillation(outputs[1], outputs[0], HEADS).backward()
    distillation(alone(noise()), outputs[0], HEADS).backward()
    for name, parameter in alone.named_parameters():
        mine = model.get_parameter(name).grad
        if mine.shape != parameter.shape:
            mine = mine[..., 1:4, 1:4]
        torch.testing.assert_close(mine, parameter.grad, rtol=1e-3, atol=1e-5, msg=name)


def test_the_sandwich_loss_is_ground_truth_for_all_and_the_largests_outputs_for_the_others():
    model = supernet().train()
    base = DetectionLoss(model.net)
    outputs = model(noise())
    terms = SandwichLoss(base)(outputs, TARGETS, noise())
    truths = [base(found, TARGETS) for found in outputs]
    for name in base.terms:
        torch.testing.assert_close(terms[name], torch.stack([truth[name] for truth in truths]).mean())
    distance = sum(distillation(found, outputs[0], HEADS) for found in outputs[1:])
    torch.testing.assert_close(terms["distill"], distance / 3)
    head = torch.autograd.grad(terms["distill"], outputs[0], retain_graph=True, allow_unused=True)
    assert head == (None,) * len(outputs[0]), "the teacher must not move towards its students"
    for found, truth in zip(outputs, truths):              # each is moved by the truth on its own outputs
        moves, alone = (torch.autograd.grad(value, found, retain_graph=True)[0]
                        for value in (terms["obj"], truth["obj"]))
        torch.testing.assert_close(moves, alone / 4)


def test_the_steps_are_counted_on_the_host_and_read_again_after_a_state_is_taken_up(monkeypatch):
    model, drawn = supernet().train(), []
    monkeypatch.setattr("compress.supernet.sandwich", lambda *words: drawn.append(words[-1]) or [])
    for _ in range(3):
        model(noise())
    model.load_state_dict(wide().state_dict())
    model(noise())
    assert drawn == [0, 1, 2, 0]


def test_what_is_drawn_is_a_function_of_seed_and_step():
    kernels, draws = (3, 5), [sandwich(SEARCHED, (3, 5), 3, 7, step) for step in range(200)]
    assert draws == [sandwich(SEARCHED, kernels, 3, 7, step) for step in range(200)]
    assert all(draw[0] == dict.fromkeys(SEARCHED, 3) and len(draw) == 4 for draw in draws)
    seen = {tuple(net.values()) for draw in draws for net in draw[1:]}
    assert seen == set(product((3, 5), repeat=5))
    assert draws != [sandwich(SEARCHED, kernels, 3, 8, step) for step in range(200)]


def test_a_supernet_taken_up_from_its_state_goes_on_with_the_same_bits():
    def steps(model: Supernet, count: int) -> Supernet:
        optimizer = torch.optim.SGD(model.train().parameters(), lr=0.01)
        loss = SandwichLoss(DetectionLoss(model.net))
        for _ in range(count):
            sum(loss(model(noise()), TARGETS, noise()).values()).backward()
            optimizer.step()
            optimizer.zero_grad()
        return model
    whole = steps(supernet(), 4)
    half = steps(supernet(), 2)
    other = Supernet(half.net, LAYERS, (3, 5))
    other.load_state_dict(half.state_dict())
    assert {int(v) for k, v in other.state_dict().items() if k.endswith("num_batches_tracked")} == {2}
    steps(other, 2)
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), other.state_dict().values()))


def test_a_supernet_whose_kernels_are_not_the_largest_is_refused():
    with pytest.raises(ModelError, match="5x5 in mb3, ds6"):
        Supernet(substitute(residual_net(), kernels={"mb3": 3, "conv9": 5}), LAYERS, (3, 5))
    folded = tuple(replace(layer, bn=False) for layer in wide().net)
    with pytest.raises(ModelError, match="batch-norm"):
        Supernet(folded, LAYERS, (3, 5))


def test_half_precision_trains_all_networks_of_a_step():
    model = supernet().train()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(noise())
    sum(SandwichLoss(DetectionLoss(model.net))(outputs, TARGETS, noise()).values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
