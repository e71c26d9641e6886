"""What training starts from without being told: network, weights, side and anchors."""
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from compress.pruning.config import PruneConfig
from data.coco.locate import locate
from data.coco.read import read_coco
from data.dataset import DetectionSet
from data.scenes import make_scenes
from models.checkpoint import Checkpoint, save
from models.layer import heads
from models.records import to_json
from models.zoo import build as zoo
from models.zoo.build import build, shipped, with_heads
from tests.helpers.nets import randomised, small_net
from training.config import TrainConfig
from training.start import choose_net, settle
from utils.errors import UsageError


@pytest.fixture
def own(tmp_path):
    """A checkpoint at 96 px with the classes a, b, c."""
    net = small_net(3)
    save(tmp_path / "own.pt", Checkpoint(net, randomised(net).state_dict(), tuple("abc"), 96))
    return str(tmp_path / "own.pt")


def a_set(*names):
    """What choose_net reads of a data set: class names, and boxes of 40 x 20 px and of others."""
    rng = np.random.default_rng(0)
    boxes = np.concatenate((np.zeros((30, 3)), rng.uniform(5, 40, (30, 2))), 1).astype(np.float32)
    return SimpleNamespace(coco=SimpleNamespace(names=names), boxes=[boxes])


def anchors(net):
    return [head.anchors for head in heads(net)]


def test_training_starts_from_the_shipped_checkpoint_at_its_side_and_says_so(own, tmp_path, monkeypatch):
    monkeypatch.setattr(zoo, "SHIPPED", {name: (str(tmp_path / "later.pt"), own)
                                         for name in ("micro-yolo", "yolox-nano")})
    said = []
    found = settle(TrainConfig(data="x"), said.append)
    assert (found.cfg, found.weights, found.imgsz) == (None, own, 96)
    assert said == [f"--weights is not given: {own}", f"--imgsz is not given: 96 px, as {own} has it"]
    assert settle(TrainConfig(cfg="micro-yolo"), said.append).weights == own
    assert settle(found, pytest.fail) == found, "what is told is taken"


def test_without_a_shipped_checkpoint_or_by_none_it_starts_at_random(monkeypatch):
    said = []
    other = settle(TrainConfig(cfg="yolo-lite"), said.append)
    assert (other.start, other.imgsz) == (None, 416) and "--weights is not given: starting at random" in said
    assert settle(TrainConfig(cfg="micro-yolo", backbone_weights="lite0"), said.append).start is None
    monkeypatch.setattr(zoo, "SHIPPED", {})
    for config in (TrainConfig(), TrainConfig(weights="none")):
        found = settle(config, said.append)
        assert (found.cfg, found.start, found.imgsz) == ("yolox-nano", None, 416)
        net, weights = choose_net(found, a_set("a", "b"), said.append)
        assert weights is None and net == build("yolox-nano", 2)


def test_the_shipped_checkpoint_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert shipped("micro-yolo").endswith(".pt") and shipped("yolo-nano") is None
    assert shipped("micro-yolo+free") == shipped("micro-yolo"), "its body is the same"


def test_pruning_takes_the_side_of_its_parent(own):
    assert settle(PruneConfig(weights=own, data="x"), lambda _: None).imgsz == 96
    assert settle(PruneConfig(weights=own, data="x", imgsz=64)).imgsz == 64


def test_what_starts_from_a_checkpoint_keeps_its_anchors_at_any_side(own, tmp_path):
    net, _ = choose_net(TrainConfig(weights=own, imgsz=192), a_set("other"), print)
    assert anchors(net) == anchors(small_net(3))
    wider = with_heads(build("micro-yolo"), 80, (((90., 90.),) * 3, ((20., 20.),) * 3))
    other = str(tmp_path / "wider.pt")
    save(other, Checkpoint(wider, randomised(wider).state_dict(), tuple(map(str, range(80)))))
    started = TrainConfig(cfg="micro-yolo", weights=other, imgsz=128)
    assert anchors(choose_net(started, a_set("car"), print)[0]) == anchors(wider)
    lite, _ = choose_net(replace(started, cfg="yolo-lite"), a_set("car"), print)
    assert anchors(lite) == anchors(build("yolo-lite")), "no head of that name in the checkpoint"


def test_fitted_anchors_replace_all(own):
    said = []
    net, _ = choose_net(TrainConfig(weights=own, imgsz=96, fit_anchors=True), a_set("a"), said.append)
    assert anchors(net) != anchors(small_net()) and "mean best IoU" in said[0]
    assert net == with_heads(net, 1)


def test_a_shipped_network_brings_the_rule_of_its_input(tmp_path, capsys):
    """`--cfg yolox-nano` builds what learns; what turns images into its input is a record of the weights."""
    data = DetectionSet(read_coco(*locate(make_scenes(tmp_path / "s", train=4, val=1, size=160)).train), 96)
    started = TrainConfig(cfg="yolox-nano", weights=zoo.shipped("yolox-nano"), imgsz=96)
    net, _ = choose_net(started, data, print)
    assert net[0].name == "input" and "batch-norm put back" in capsys.readouterr().out
    assert {row.name for row in net[1:]} == {row.name for row in zoo.build("yolox-nano")}
    with pytest.raises(UsageError, match="leave out --cfg"):
        choose_net(replace(started, cfg="micro-yolo"), data, print)
    own = replace(net[3], act="relu")                      # a net.json of one's own stays what it is
    (tmp_path / "own.json").write_text(to_json(tuple(
        replace(row, inputs=tuple("image" if name == "input" else name for name in row.inputs))
        for row in (*net[1:3], own, *net[4:]))))
    assert choose_net(replace(started, cfg=str(tmp_path / "own.json")), data, print)[0][3] == own
