"""Sets completed by a network's boxes: those of the sets stay, and the result is a set like any other."""
import json

import cv2
import numpy as np
import pytest

from data.coco.locate import locate
from data.coco.read import ImageRecord, read_coco
from detection.label import bare, completed, main, renamed
from models import checkpoint as checkpoints
from models.layer import heads
from models.network import Network, initialise
from models.zoo.build import build
from utils.errors import DataError


def record(boxes):
    boxes = np.array(boxes, np.float32).reshape(-1, 5)
    return ImageRecord(1, None, 100, 80, boxes, boxes[:0], boxes[:, 1], boxes[:0, 1], np.zeros((0, 7)), 0)


def test_found_boxes_fill_what_is_not_annotated():
    mine = record([[2, 10, 10, 30, 30]])
    found = np.array([[11, 11, 31, 31, .9, 0],             # lies on one that is there
                      [50, 50, 70, 70, .8, 2],             # of a class the annotations decide about
                      [50, 10, 70, 40, .7, 1],             # new
                      [60, 60, 60, 70, .6, 1]], np.float32)                # no area
    new = completed(mine, [2], found)
    assert new.boxes.tolist() == [[2, 10, 10, 30, 30], [1, 50, 10, 70, 40]]
    assert new.areas.tolist() == [mine.areas[0], 600]
    assert len(completed(mine, [2], found[:0]).boxes) == 1


@pytest.fixture
def sets(tmp_path):
    """A set of one class, `cat`, a folder without boxes, and a network that knows dog and cat."""
    rng = np.random.default_rng(0)
    for folder in ("set/images", "more"):
        (tmp_path / folder).mkdir(parents=True)
        for n in range(3):
            cv2.imwrite(str(tmp_path / folder / f"{n}.png"), rng.integers(0, 255, (48, 64, 3), np.uint8))
    images = [{"id": n, "file_name": f"{n}.png", "width": 64, "height": 48} for n in range(3)]
    boxes = [{"id": n + 1, "image_id": n, "category_id": 7, "bbox": [1, 2, 20, 30], "area": 600, "iscrowd": 0}
             for n in range(3)]
    (tmp_path / "set/annotations").mkdir()
    for split, some in (("train", slice(0, 2)), ("val", slice(2, 3))):
        (tmp_path / f"set/annotations/instances_{split}.json").write_text(json.dumps(
            {"images": images[some], "annotations": boxes[some], "categories": [{"id": 7, "name": "cat"}]}))
    net = build("micro-yolo", 2)
    state = initialise(Network(net), seed=0).state_dict()
    for layer in heads(net):
        state[f"{layer.name}.conv.bias"].view(3, 7)[:, 4:].fill_(2.0)      # it sees something everywhere
    checkpoints.save(tmp_path / "net.pt", checkpoints.Checkpoint(net, state, ("dog", "cat"), 64))
    return tmp_path


def test_the_result_is_a_set_under_the_networks_classes(sets, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["label", "--weights", str(sets / "net.pt"), "--data", str(sets / "set"),
                                     "--unlabelled", str(sets / "more"), "--out", str(sets / "new")])
    main()
    where = locate(sets / "new")
    train, val = read_coco(*where.train), read_coco(*where.val)
    assert train.names == val.names == ("dog", "cat") and len(train.images) == 5 and len(val.images) == 1
    first = train.images[0]
    assert first.boxes[0].tolist() == [1, 1, 2, 21, 32] and len(first.boxes) > 1
    assert set(first.boxes[1:, 0]) == {0}                  # its own cats are all the cats
    assert {1.0} <= {k for image in train.images[2:] for k in image.boxes[:, 0]}
    assert val.images[0].boxes.tolist() == [[1, 1, 2, 21, 32]]
    assert "5 images" in capsys.readouterr().out


def test_what_cannot_be_labelled_is_said(sets):
    with pytest.raises(DataError, match="does not know cat; it knows dog"):
        renamed(read_coco(*locate(sets / "set").train), ["dog"])
    (sets / "none").mkdir()
    with pytest.raises(DataError, match="holds no image"):
        bare(sets / "none", 10 ** 6)
    (sets / "more" / "broken.jpg").write_bytes(b"no image")
    assert [f.count for f in bare(sets / "more", 10 ** 6).faults] == [1]
