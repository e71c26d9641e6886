"""YOLOX's head: boxes from cells, SimOTA's matches in the loss, two towers, classes taken over by name."""
import math

import torch

from models.checkpoint import Checkpoint
from models.graph import heads_of
from models.heads.loss import DetectionLoss, distillation
from models.heads.nms import detections
from models.layer import Layer
from models.network import Network, initialise
from models.records import validate
from models.transfer import transfer
from models.zoo.build import build, with_heads
from tests.helpers.nets import randomised

SIDE, NAMES = 64, ("a", "b", "c")


def two_towers(classes=3):
    """Two levels whose boxes and classes are read from different records."""
    return validate((
        Layer("stem", "conv", ("image",), 16, stride=4, kernel=4, act="relu"),
        Layer("box8", "conv", ("stem",), 12, stride=2, act="relu"),
        Layer("cls8", "conv", ("stem",), 10, stride=2, act="relu"),
        Layer("head8", "head", ("box8", "cls8"), 5 + classes, kind="yolox"),
        Layer("deep", "conv", ("box8",), 24, stride=2, act="relu"),
        Layer("head16", "head", ("deep",), 5 + classes, kind="yolox")))


def outputs_of(boxes):
    """Outputs that say nothing but one box a row of (head, x, y, cxcywh px, class), surely."""
    out = [torch.full((1, 1, 8, SIDE // stride, SIDE // stride), -20.0) for stride in (8, 16)]
    for head, x, y, (cx, cy, w, h), label in boxes:
        stride = (8, 16)[head]
        out[head][0, 0, :4, y, x] = torch.tensor((cx / stride - x, cy / stride - y, math.log(w / stride),
                                                  math.log(h / stride)))
        out[head][0, 0, [4, 5 + label], y, x] = 20.0
    return out


def test_boxes_are_offsets_and_sizes_in_cells():
    heads = heads_of(two_towers())
    wanted = [(0, 2, 3, (21.0, 30.0, 10.0, 6.0), 1), (1, 3, 0, (50.0, 9.0, 24.0, 18.0), 2)]
    found = detections(outputs_of(wanted), heads, 0.5, 0.6, 10)
    boxes = sorted(torch.as_tensor(found.boxes[0]).tolist(), key=lambda box: box[5])
    for box, (_, _, _, (cx, cy, w, h), label) in zip(boxes, wanted):
        torch.testing.assert_close(torch.tensor(box), torch.tensor(
            (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2, 1.0, label)), rtol=1e-4, atol=1e-4)
    assert len(boxes) == 2


def test_right_predictions_cost_nothing_and_wrong_ones_their_iou_squared():
    targets = torch.tensor([[0, 1, 21 / SIDE, 30 / SIDE, 10 / SIDE, 6 / SIDE]])
    loss = DetectionLoss(two_towers())
    right = loss(outputs_of([(0, 2, 3, (21.0, 30.0, 10.0, 6.0), 1)]), targets)
    assert set(right) == {"box", "obj", "cls"} and max(right.values()) < 1e-3
    # Half as wide: IoU 0.5, which is also what the class is to be.
    half = loss(outputs_of([(0, 2, 3, (21.0, 30.0, 5.0, 6.0), 1)]), targets)
    torch.testing.assert_close(half["box"], torch.tensor(0.75), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(half["cls"], torch.tensor(10.0), rtol=1e-3, atol=1e-2)


def test_an_image_without_boxes_teaches_objectness_alone():
    raw = [value.requires_grad_() for value in outputs_of([(1, 1, 1, (20.0, 20.0, 9.0, 9.0), 0)])]
    found = DetectionLoss(two_towers())(raw, torch.zeros(0, 6))
    assert found["box"] == found["cls"] == 0 and found["obj"] > 19
    sum(found.values()).backward()
    assert raw[1].grad[:, :, 4].abs().sum() > 0 and raw[1].grad[:, :, 5:].abs().sum() == 0


def test_two_towers_learn_an_image_by_heart():
    """Gradients reach both, and what is learned is found again."""
    net = two_towers()
    model, loss = initialise(Network(net), 0), DetectionLoss(net)
    assert torch.allclose(torch.cat([model.head8.obj.conv.bias, model.head8.cls.conv.bias]).sigmoid(),
                          torch.tensor(0.01))
    image = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([[0, 1, .4, .4, .3, .2], [1, 2, .6, .5, .5, .6]])
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(80):
        optimizer.zero_grad()
        sum(loss.terms[name] * value for name, value in loss(model(image), targets).items()).backward()
        optimizer.step()
    assert model.cls8.conv.weight.grad.abs().sum() > 0 and model.box8.conv.weight.grad.abs().sum() > 0
    with torch.no_grad():
        found = detections(model(image), heads_of(net), 0.3, 0.5, 1).boxes
    for box, target in zip(found, targets):
        box = torch.as_tensor(box)[0]
        cx, cy, w, h = (target[2:] * SIDE).tolist()
        assert box[5] == target[1] and (box[:4] - torch.tensor(
            (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2))).abs().max() < 6


def test_other_classes_take_box_objectness_and_classes_of_the_same_name():
    source = Checkpoint(two_towers(), randomised(two_towers(), 1).state_dict(), NAMES)
    net = with_heads(two_towers(), 2)
    before = randomised(net, 2).state_dict()
    new, report = transfer(net, before, ("c", "new"), source)
    for leaf in ("weight", "bias"):
        for part in ("box", "obj"):
            assert torch.equal(new[f"head8.{part}.conv.{leaf}"], source.state[f"head8.{part}.conv.{leaf}"])
        here, there = (of[f"head8.cls.conv.{leaf}"] for of in (new, source.state))
        assert torch.equal(here[0], there[2]) and torch.equal(here[1], before[f"head8.cls.conv.{leaf}"][1])
    assert next(row for row in report if row["layer"] == "head8")["why"] == "classes of the same name"


def test_distance_is_none_from_itself_and_a_name_ends_in_the_kind():
    heads, outputs = heads_of(two_towers()), outputs_of([(0, 2, 3, (21.0, 30.0, 10.0, 6.0), 1)])
    assert distillation(outputs, outputs, heads).abs() < 1e-6
    assert distillation([output + 1 for output in outputs], outputs, heads) > 0.1
    assert {head.kind for head in heads_of(build("micro-yolo+yolox", 4))} == {"yolox"}
