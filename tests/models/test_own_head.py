"""A kind of head in one file: the classes of a cell, and the sides of the box around its middle."""
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from deploy.onnx_file import to_onnx
from models.checkpoint import Checkpoint
from models.graph import heads_of
from models.heads.base import Head, logit, sigmoid
from models.heads.loss import DetectionLoss, distillation
from models.heads.nms import detections
from models.layer import Layer
from models.network import Network, initialise
from models.records import from_json, to_json, validate
from models.transfer import transfer
from models.zoo.build import with_heads
from utils.boxes import library

SIDE, NAMES = 64, ("a", "b", "c")


class CellHead(Head):
    """Predictions [B, K + 2, G, G]: classes of a cell, log sides of the box around its middle."""

    kind = "cell"
    terms = {"hit": 1.0, "side": 2.0}
    why_frozen = "a cell's outputs are its classes and two sides"

    @classmethod
    def problem(cls, layer):
        return "" if layer.out > 2 else f"out {layer.out} is not classes + 2"

    @property
    def classes(self):
        return self.layer.out - 2

    @property
    def shape(self):
        return (self.layer.out,)

    def for_classes(self, classes):
        return self.layer.__class__(**{**self.layer.__dict__, "out": classes + 2})

    def set_bias(self, bias, prior):
        bias.zero_()
        bias[:-2] = np.log(prior / (1 - prior))

    @classmethod
    def losses(cls, heads, outputs, targets):
        output = outputs[0]
        grid = output.shape[-1]
        image, label = targets[:, 0].long(), targets[:, 1].long()
        x, y = (targets[:, 2:4] * grid).long().clamp(max=grid - 1).T
        wanted = torch.zeros_like(output[:, :-2])
        wanted[image, label, y, x] = 1
        sides = (targets[:, 4:6] * grid).log()
        found = output[image, -2:, y, x]
        return {"hit": F.binary_cross_entropy_with_logits(output[:, :-2], wanted, reduction="sum"),
                "side": (found - sides).abs().sum()}, output.new_tensor(float(len(targets)))

    def promising(self, output, conf_thres):
        return (output[:, :-2] > logit(conf_thres)).any(1)

    def decoded(self, vectors, cells):
        xp = library(vectors)                              # arrays, and tensors with gradients
        middle = (xp.stack((cells[:, 1], cells[:, 0]), 1) + 0.5) * self.stride
        half = xp.exp(vectors[:, -2:]) * self.stride / 2
        return xp.concatenate((middle - half, middle + half), 1), sigmoid(vectors[:, :-2])

    def distance(self, mine, theirs):
        return (mine - theirs).square().sum(), theirs.new_tensor(1.0)

    def differs(self, other):
        return ""

    def rows(self, names, other_names):
        there = {name: at for at, name in enumerate(other_names)}
        pairs = [(at, there[name]) for at, name in enumerate(names) if name in there]
        pairs += [(len(names) + side, len(other_names) + side) for side in (0, 1)]
        return [a for a, _ in pairs], [b for _, b in pairs]

    def metadata(self):
        return {}


@pytest.fixture
def net():
    return validate((
        Layer("conv1", "conv", ("image",), 16, stride=2), Layer("conv2", "conv", ("conv1",), 32, stride=2),
        Layer("conv3", "conv", ("conv2",), 32, stride=2), Layer("end", "head", ("conv3",), 5, kind="cell")))


def test_it_learns_to_find_what_it_is_shown(net):
    model, loss = initialise(Network(net), 0).train(), DetectionLoss(net)
    assert loss.terms == CellHead.terms
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(4, 3, SIDE, SIDE, generator=generator)
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
        found = detections(model.eval()(images), heads_of(net), 0.5, 0.5, 10)
    for boxes, row in zip(found.boxes, targets):
        assert len(boxes) == 1 and int(boxes[0, 5]) == int(row[1])
        assert float(np.abs((boxes[0, 2:4] - boxes[0, :2]) / SIDE - row[4:].numpy()).max()) < 0.15


def test_records_other_classes_weights_files_and_teachers_take_it(net):
    assert from_json(to_json(net)) == net
    model = initialise(Network(net), 1).eval()
    larger = with_heads(net, 4)
    state, report = transfer(larger, initialise(Network(larger), 2).state_dict(), (*NAMES, "d"),
                             Checkpoint(net, model.state_dict(), NAMES))
    assert all(row["taken"] for row in report)
    assert torch.equal(state["end.conv.weight"][[0, 1, 2, 4, 5]], model.state_dict()["end.conv.weight"])
    outputs = [output.detach() for output in model(torch.rand(1, 3, SIDE, SIDE))]
    boxes, scores = heads_of(net)[0].everything(outputs[0])
    assert (boxes.shape, scores.shape) == ((1, 64, 4), (1, 64, 3))
    found = detections(outputs, heads_of(net), 0.0, 1.0, 99, multi_label=True).boxes[0]
    np.testing.assert_allclose(np.sort(found[:, 4]), scores.flatten().sort().values[-99:].numpy(), rtol=1e-5)
    assert float(distillation(outputs, [o + 1 for o in outputs], heads_of(net))) == outputs[0].numel()
    ort = pytest.importorskip("onnxruntime", reason="needs onnxruntime (requirements-export.txt)")
    session = ort.InferenceSession(to_onnx(net, model.state_dict(), SIDE), providers=["CPUExecutionProvider"])
    images = torch.randint(0, 256, (1, 3, SIDE, SIDE), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(session.run(None, {"images": images.numpy()})[0]),
                                   model(images)[0], rtol=1e-4, atol=1e-4)
