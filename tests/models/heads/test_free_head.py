"""The head without anchors: its distances, decoding and loss against code written the slow way."""
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from models.graph import heads_of
from models.heads.free import FreeHead
from models.heads.loss import DetectionLoss, distillation
from models.heads.nms import detections
from models.layer import Layer
from models.network import Network, initialise
from models.records import from_json, to_json, validate
from models.transfer import transfer
from models.zoo.build import build, with_head_kind, with_heads
from tests.helpers.nets import residual_net, small_net
from utils.errors import ModelError

BINS, SIDE = 8, 64
NET = with_head_kind(residual_net(), "free")               # heads at strides 2 and 4
HEADS = heads_of(NET)


def outputs_of(batch: int = 2, seed: int = 0) -> list[torch.Tensor]:
    """Random head outputs for images of SIDE px."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, head.layer.out, SIDE // head.stride, SIDE // head.stride, generator=generator)
            for head in HEADS]


def saying(head: FreeHead, sides: list[float]) -> torch.Tensor:
    """Raw sides [4 bins] whose expectations are these distances in cells."""
    raw = torch.full((4, BINS), -40.0)
    for side, distance in enumerate(sides):
        low = min(int(distance), BINS - 2)
        for at, chance in ((low, low + 1 - distance), (low + 1, distance - low)):
            if chance > 0:
                raw[side, at] = math.log(chance)
    return raw.reshape(-1)


@pytest.mark.parametrize("sides", [[0, 1, 2, 3], [7, 6, 5, 4], [0.25, 3.5, 6.75, 1.0]])
def test_a_distribution_says_its_expectation(sides):
    head = HEADS[0]
    box = head.boxes(saying(head, sides)[None], torch.tensor([[21.0, 33.0]]))[0]
    left, top, right, bottom = (head.stride * side for side in sides)
    torch.testing.assert_close(box, torch.tensor([21.0 - left, 33 - top, 21 + right, 33 + bottom]))


@pytest.mark.parametrize("centre", [0.5, 0.0])
@pytest.mark.parametrize("multi", [False, True])
def test_candidates_are_those_of_a_loop_over_cells(multi, centre):
    head = FreeHead(replace(HEADS[0].layer, centre=centre), HEADS[0].stride)
    output = outputs_of()[0]
    found = head.candidates(output.numpy(), 0.6, None, multi)
    wanted = []
    for image, y, x in torch.cartesian_prod(*(torch.arange(n) for n in (2, *output.shape[2:]))).tolist():
        scores = output[image, :3, y, x].sigmoid()
        away = [sum(k * float(p) for k, p in enumerate(part.softmax(0))) * head.stride
                for part in output[image, 3:, y, x].view(4, BINS)]
        px, py = (x + centre) * head.stride, (y + centre) * head.stride
        for label in range(3):
            if scores[label] > 0.6 and (multi or label == int(scores.argmax())):
                wanted.append([image, px - away[0], py - away[1], px + away[2], py + away[3],
                               float(scores[label]), label])
    np.testing.assert_allclose(np.column_stack((found.image, found.boxes)), wanted, rtol=1e-4, atol=1e-3)
    boxes, scores = head.everything(output)                # what tensors decode to, with gradients
    assert (boxes.shape, scores.shape) == ((2, 1024, 4), (2, 1024, 3))
    sure = scores.amax(2) > 0.6
    np.testing.assert_allclose(np.unique(found.boxes[:, :4], axis=0), np.unique(boxes[sure].numpy(), axis=0),
                               rtol=1e-4, atol=1e-3)
    only = head.candidates(output.numpy(), 0.6, [2], multi)
    assert set(only.boxes[:, 5].tolist()) == {2.0} and only.dropped == 0


def test_non_finite_cells_are_dropped_and_counted():
    raw = outputs_of(1)
    raw[0][0, 1, 3, 3], raw[1][0, 9, 2, 1] = float("nan"), float("inf")
    found = detections(raw, HEADS, 0.3, 0.9, 5000)
    assert found.dropped == 2 and np.isfinite(found.boxes[0]).all() and len(found.boxes[0]) > 0


def test_the_loss_is_the_one_written_out_over_its_matches():
    raw, boxes = outputs_of(1), torch.tensor([[12.0, 12, 30, 40], [40, 8, 44, 12]])
    head = HEADS[1]
    sides = raw[1].flatten(2).transpose(1, 2)[0, [35, 130], head.classes:]
    points = head.points(torch.tensor([[2, 3], [8, 2]]))
    terms = head.terms_of(sides, points, boxes)
    for at in range(2):
        away = torch.cat((points[at] - boxes[at, :2], boxes[at, 2:] - points[at])) / head.stride
        want = 0.0
        for side, distance in zip(sides[at].view(4, BINS), away.tolist()):
            distance = min(max(distance, 0.0), BINS - 1 - 1e-3)
            chances, low = side.log_softmax(0), int(distance)
            want -= float(chances[low] * (low + 1 - distance) + chances[low + 1] * (distance - low)) / 4
        assert float(terms["dfl"][at]) == pytest.approx(want, rel=1e-4)
    assert terms["box"].shape == (2,) and (terms["box"] > 0).all()


def test_the_loss_of_what_is_said_exactly_is_small_and_grows_with_every_fault():
    box = torch.tensor([[0, 1, 22 / SIDE, 26 / SIDE, 12 / SIDE, 20 / SIDE]])      # 16..28 x 16..36
    raw = [torch.full_like(o, -12.0) for o in outputs_of(1)]
    for head, output in zip(HEADS, raw):
        for y in range(output.shape[2]):
            for x in range(output.shape[3]):
                px, py = (x + 0.5) * head.stride, (y + 0.5) * head.stride
                away = [px - 16, py - 16, 28 - px, 36 - py]
                if min(away) > 0 and max(away) <= head.stride * (BINS - 1):
                    output[0, 3:, y, x] = saying(head, [side / head.stride for side in away])
                    output[0, 1, y, x] = 12.0
    loss = DetectionLoss(NET)
    good = loss(raw, box)
    assert float(good["box"]) < 0.01 and set(good) == {"box", "cls", "dfl"}
    for change in (lambda o: o[:, 1].fill_(0.0), lambda o: o[:, 3:].zero_()):
        worse = [o.clone() for o in raw]
        for o in worse:
            change(o)
        assert sum(loss(worse, box).values()) > sum(good.values()) + 0.1


@pytest.mark.parametrize("rule", ["tal", "simota"])
def test_images_without_boxes_and_odd_boxes_have_finite_losses_and_gradients(rule):
    net = validate(tuple(replace(row, assign=rule) if row.kind else row for row in NET))
    odd = torch.tensor([[0, 0, .5, .5, 1., 1.], [0, 1, .3, .3, .004, .004], [0, 1, .3, .3, .004, .004],
                        [0, 2, 1., 1., .02, .02], [0, 0, .5, .5, 1., .01]])
    for targets in (torch.zeros(0, 6), odd):
        raw = [o.requires_grad_() for o in outputs_of()]
        terms = DetectionLoss(net)(raw, targets)
        sum(terms.values()).backward()
        assert all(torch.isfinite(value) for value in terms.values())
        assert all(torch.isfinite(o.grad).all() and o.grad[:, :3].abs().sum() > 0 for o in raw)
        assert (float(terms["box"].detach()) > 0) == bool(len(targets))


@pytest.mark.parametrize("rule", ["tal", "simota"])
def test_it_overfits_four_images(rule):
    net = with_head_kind(small_net(), "free")
    net = validate(tuple(replace(row, assign=rule) if row.kind else row for row in net))
    model, loss = initialise(Network(net), 0).train(), DetectionLoss(net)
    images = torch.rand(4, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([[0, 0, .31, .31, .4, .3], [1, 1, .56, .44, .3, .5], [2, 2, .7, .7, .25, .25],
                            [3, 1, .2, .8, .2, .2]])
    for row in targets.tolist():
        x, y, w, h = (int(v * SIDE) for v in row[2:])
        images[int(row[0]), int(row[1]), y - h // 2:y + h // 2, x - w // 2:x + w // 2] = 3.0
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(160):
        optimizer.zero_grad()
        terms = loss(model(images), targets)
        sum(loss.terms[name] * value for name, value in terms.items()).backward()
        optimizer.step()
    with torch.no_grad():
        found = detections(model(images), heads_of(net), 0.4, 0.5, 10)
    for boxes, row in zip(found.boxes, targets):
        assert len(boxes) == 1 and int(boxes[0, 5]) == int(row[1])
        assert np.abs((boxes[0, 2:4] - boxes[0, :2]) / SIDE - row[4:].numpy()).max() < 0.1


def test_a_name_s_ending_puts_heads_of_a_kind_in_place_of_the_others():
    net, plain = build("micro-yolo+free", 5), build("micro-yolo", 5)
    assert [row.kind for row in net if row.kind] == ["free", "free"]
    assert [row for row in net if not row.kind] == [row for row in plain if not row.kind]
    assert [row.out for row in net if row.kind] == [5 + 4 * BINS] * 2
    assert from_json(to_json(net)) == net and with_head_kind(net, "free") == net
    assert [head.classes for head in heads_of(with_heads(net, 7))] == [7, 7]
    for name, said in (("micro-yolo+fre", "did you mean 'free'"), ("micro-yol+free", "did you mean 'micro"),
                       ("ghostnet+free", "classifier"), ("micro-yolo+free+anchor", "needs numbers")):
        with pytest.raises(ModelError, match=said):
            build(name)


@pytest.mark.parametrize("change, said", [
    ({"bins": 1}, "bins is 1"), ({"out": 32}, "out 32 is not classes"), ({"centre": 1.5}, "centre is 1.5"),
    ({"assign": "ratio"}, "needs tal or simota")])
def test_a_record_that_cannot_be_is_refused_in_words(change, said):
    with pytest.raises(ModelError, match=said):
        validate(tuple(replace(row, **change) if row.name == "head13" else row for row in NET))
    with pytest.raises(ModelError, match="disagree on their rules"):
        validate(tuple(replace(row, assign="simota") if row.name == "head13" else row for row in NET))


def test_weights_for_other_classes_are_taken_by_name_and_a_teacher_like_oneself_asks_for_nothing():
    from models.checkpoint import Checkpoint
    model = initialise(Network(NET), 1)
    larger = with_heads(NET, 4)
    state, report = transfer(larger, initialise(Network(larger), 2).state_dict(), ("c", "x", "a", "y"),
                             Checkpoint(NET, model.state_dict(), ("a", "b", "c")))
    assert all(row["taken"] for row in report)
    mine, theirs = state["head14.conv.weight"], model.state_dict()["head14.conv.weight"]
    assert torch.equal(mine[[0, 2, *range(4, 36)]], theirs[[2, 0, *range(3, 35)]])
    raw = [o.requires_grad_() for o in outputs_of()]
    same = distillation(raw, [o.detach().clone() for o in raw], HEADS)
    same.backward()
    assert float(same.detach()) == pytest.approx(0, abs=1e-4)
    assert all(float(o.grad.abs().max()) < 1e-5 for o in raw)
    other = [o.detach() for o in outputs_of(seed=1)]
    want = mass = 0.0
    for s, t in zip(outputs_of(), other):
        p, q = t[:, :3].sigmoid(), s[:, :3].sigmoid()
        seen = p.amax(1)
        want += (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).sum()
        p, q = (x[:, 3:].reshape(2, 4, BINS, *x.shape[2:]).softmax(2) for x in (t, s))
        want += (seen * F.kl_div(q.log(), p, reduction="none").sum(2).mean(1)).sum()
        mass += seen.sum()
    torch.testing.assert_close(distillation(outputs_of(), other, HEADS), want / mass, rtol=1e-3, atol=1e-4)


def test_a_layer_of_the_kind_has_what_decoders_without_records_need():
    head = FreeHead(Layer("h", "head", ("x",), 37, kind="free", bins=8, assign="tal"), 16)
    assert head.metadata() == {"bins": 8, "centre": 0.5} and head.classes == 5
