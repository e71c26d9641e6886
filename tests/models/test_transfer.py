"""Taking over weights: layers whole or not at all with the reason, and convolutions as factors."""
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from compress.drop_se import layers_to_open, mean_gates, without_se
from compress.factorize import calibrate, separate
from models.channels import channels
from models.checkpoint import Checkpoint
from models.files.darknet import COCO_NAMES
from models.graph import classes_of
from models.network import Network, from_state, initialise
from models.transfer import report_lines, transfer
from models.zoo.light import yolo_lite
from models.zoo.tiny import micro_yolo, substitute, yolov3_tiny
from tests.helpers.nets import NETS, randomised
from training.prepare import start_from


def test_transfer_takes_layers_whole_and_says_why_not():
    source = Checkpoint(yolov3_tiny(80), randomised(yolov3_tiny(80), 1).state_dict(), COCO_NAMES)
    net = micro_yolo(3)
    state = randomised(net, 2).state_dict()
    new, report = transfer(net, state, ("x", "y", "z"), source)
    taken = {r["layer"] for r in report if r["taken"]}
    assert taken == {"conv1", "conv14", "conv19"}
    for key in state:
        expected = source.state if key.split(".")[0] in taken else state
        assert torch.equal(new[key], expected[key]), key
    text = "\n".join(report_lines(report))
    assert "conv there, mbconv here" in text and "other classes (80 there, 3 here)" in text
    assert "3 of 13 layers" in text


def test_other_classes_keep_everything_but_the_heads():
    source = Checkpoint(yolov3_tiny(80), randomised(yolov3_tiny(80), 1).state_dict(), COCO_NAMES)
    _, report = transfer(yolov3_tiny(5), randomised(yolov3_tiny(5)).state_dict(), tuple("abcde"), source)
    assert {r["layer"] for r in report if not r["taken"]} == {"head16", "head23"}
    _, report = transfer(yolov3_tiny(80), source.state, COCO_NAMES, source)
    assert all(r["taken"] for r in report)


def test_a_head_with_other_anchors_or_another_reach_is_not_taken():
    names = tuple("abc")
    source = Checkpoint(yolov3_tiny(3), randomised(yolov3_tiny(3)).state_dict(), names)
    for net in (yolov3_tiny(3, fine=((9, 9), (20, 20), (40, 40))), yolov3_tiny(3, xy_scale=2.0)):
        _, report = transfer(net, randomised(net).state_dict(), names, source)
        assert "anchors or centre reach" in next(r["why"] for r in report if r["layer"] == "head23")


def test_full_rank_factors_reproduce_the_convolution_they_came_from():
    """Nine depthwise kernels a channel hold any 3x3 kernel.

    With leaky slope 1 in effect the block is the convolution.
    """
    from models.zoo.tiny import substitute
    base = yolov3_tiny(2, act="linear")
    net = substitute(base, {"conv5": "mbconv"}, expansion=9, se=False)
    net = tuple(replace(layer, act="linear") if layer.name == "conv5" else layer for layer in net)
    x = torch.rand(4, 3, 64, 64)
    source = calibrate(randomised(base), x, {})
    state, _ = transfer(net, initialise(Network(net), 0).state_dict(), ("a", "b"),
                        Checkpoint(base, source.state_dict(), ("a", "b")))
    state, kept = separate(base, source.state_dict(), net, state)
    assert kept == {"conv5": pytest.approx(1.0, abs=1e-5)}
    model = calibrate(from_state(net, state), x, kept)
    outputs = {}
    for name, network in (("there", source), ("here", model)):
        network.watch = lambda node, value, name=name: node.layer == "conv5" and outputs.update({name: value})
    with torch.no_grad():
        source(x), model(x)
    there, here = (outputs[n].transpose(0, 1).flatten(1) for n in ("there", "here"))
    correlation = [float(torch.corrcoef(torch.stack((a, b)))[0, 1]) for a, b in zip(there, here)]
    assert min(correlation) > 0.999


@pytest.mark.parametrize("name", NETS)
def test_a_network_takes_every_tensor_of_its_own_checkpoint(name):
    net, names = NETS[name], tuple("abcd")[:classes_of(NETS[name])]
    source = Checkpoint(net, randomised(net, 1).state_dict(), names)
    new, report = transfer(net, randomised(net, 2).state_dict(), names, source)
    assert all(r["taken"] for r in report)
    assert all(torch.equal(new[p.key], source.state[p.key]) for p in channels(net).params)


def test_convolutions_without_batch_norm_are_not_factorised():
    """The lift that keeps the factors' activation linear is a batch-norm's."""
    base = yolo_lite(2)
    net = substitute(base, {"conv5": "mbconv", "conv7": "dsconv"})
    state = randomised(net).state_dict()
    new, kept = separate(base, randomised(base).state_dict(), net, state)
    assert kept == {} and all(torch.equal(state[k], new[k]) for k in state)


def test_a_layer_that_lost_its_squeeze_is_named_not_a_crash():
    source = Checkpoint(micro_yolo(3), randomised(micro_yolo(3)).state_dict(), tuple("abc"))
    net = micro_yolo(3, se=False)
    _, report = transfer(net, randomised(net).state_dict(), tuple("abc"), source)
    why = {r["layer"]: r["why"] for r in report if not r["taken"]}
    assert why["conv5"].startswith("conv5.se.") and why["conv5"].endswith("there, None here")


def test_a_block_too_narrow_for_its_input_is_left_as_it_is():
    base = yolov3_tiny(2)
    from models.channels import with_widths
    from models.zoo.tiny import substitute
    net = with_widths(substitute(base, {"conv5": "mbconv"}), {"conv5.hidden": 20})
    state = initialise(Network(net), 0).state_dict()
    new, kept = separate(base, randomised(base).state_dict(), net, state)
    assert kept == {} and all(torch.equal(state[k], new[k]) for k in state)


def test_a_head_keeps_the_rows_of_classes_it_still_has():
    source = Checkpoint(yolov3_tiny(80), randomised(yolov3_tiny(80), 1).state_dict(), COCO_NAMES)
    names = ("Cat", "unicorn", "person")
    net = yolov3_tiny(3)
    state = randomised(net, 2).state_dict()
    new, report = transfer(net, state, names, source)
    why = {r["layer"]: r["why"] for r in report}
    assert all(r["taken"] for r in report) and why["head16"] == "classes of the same name"
    for key in ("head16.conv.weight", "head23.conv.bias"):
        mine, theirs, fresh = (t[key].view(3, n, -1) for t, n in ((new, 8), (source.state, 85), (state, 8)))
        assert torch.equal(mine[:, :5], theirs[:, :5])
        assert torch.equal(mine[:, 5], theirs[:, 5 + COCO_NAMES.index("cat")])
        assert torch.equal(mine[:, 6], fresh[:, 6])
        assert torch.equal(mine[:, 7], theirs[:, 5 + COCO_NAMES.index("person")])


def test_gates_that_are_constant_are_taken_out_without_a_trace():
    """With its weights at zero a gate is the same for all images: then the pass loses nothing."""
    net = NETS["micro-yolo"]
    state = {key: torch.zeros_like(value) if key.endswith("se.expand.weight") else value
             for key, value in randomised(net, 3).state_dict().items()}
    before = {key: value.clone() for key, value in state.items()}
    images = torch.rand(2, 3, 64, 64)
    shut = layers_to_open(net, NETS["no squeeze"])
    assert len(shut) == 7
    small, smaller = without_se(net, state, mean_gates(net, state, images, shut))
    assert small == NETS["no squeeze"] and set(from_state(small, smaller).state_dict()) == set(smaller)
    for exact, shrunk in zip(from_state(net, state)(images), from_state(small, smaller)(images)):
        torch.testing.assert_close(shrunk, exact, rtol=1e-4, atol=1e-4 * float(exact.abs().max()))
    assert all(torch.equal(state[key], before[key]) for key in before)


def test_a_mean_gate_is_what_the_gates_of_the_images_come_to():
    """One image has one gate per channel, so taking it out is exact for that image and for no other."""
    net = NETS["residual"]
    state, images = randomised(net, 4).state_dict(), torch.rand(2, 3, 64, 64)
    images[1] *= 0.1                                     # a dark one, whose gates are others
    plain = tuple(replace(layer, squeeze=0) if layer.name == "mb3" else layer for layer in net)
    assert layers_to_open(net, plain) == ("mb3",)
    small, smaller = without_se(net, state, mean_gates(net, state, images[:1], ("mb3",)))
    whole, shut = from_state(net, state)(images), from_state(small, smaller)(images)
    for exact, shrunk in zip(whole, shut):
        near, far = ((shrunk - exact)[i].abs().max() for i in range(2))
        assert near < 1e-5 * exact.abs().max() and far > 20 * near


class Pictures(list):
    """What start_from reads of a data set: plain images uint8 [S, S, 3] and the classes' names."""

    coco = SimpleNamespace(names=tuple("abcd"))

    def plain(self, at: int) -> np.ndarray:
        return self[at]


def test_a_network_without_squeeze_excitation_starts_from_one_that_has_it():
    """Not fresh: with the mean gates of the training images in its projections, and said."""
    net, plain, said = NETS["micro-yolo"], NETS["no squeeze"], []
    source = Checkpoint(net, randomised(net, 5).state_dict(), tuple("abcd"))
    images = Pictures(np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8))
    model = Network(plain)
    start_from(model, source, images, False, said.append)
    stacked = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    gates = mean_gates(net, source.state, stacked, layers_to_open(net, plain))
    _, expected = without_se(net, source.state, gates)
    assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())
    assert any("mean gates of 3 " in line for line in said) and "13 of 13 layers" in "".join(said)

