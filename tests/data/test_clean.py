"""Boxes as they are in the wild: dropped, clipped, moved, and counted (cases 8-12)."""
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.coco.read import read_coco
from data.images import decode
from tests.helpers.coco_files import SIZE, content, count, read, rules, with_boxes, write
from utils.errors import DataError


# Cases 8-10: boxes
def test_empty_boxes_are_dropped_and_counted(tmp_path: Path):
    data = read(tmp_path, with_boxes([5, 5, 0, 10], [5, 5, 10, 0], [5, 5, -3, 10]))
    assert rules(data) == {"empty-box": 3} and count(data) == 21
    assert data.faults[0].examples[0] == "annotation 1 bbox [5, 5, 0, 10]"


def test_unreadable_boxes_are_dropped_and_counted(tmp_path: Path):
    bad = [float("nan"), 1, 2, 3], [1, 2, float("inf"), 4], ["1", 2, 3, 4], None
    data = read(tmp_path, with_boxes(*bad))
    assert rules(data) == {"unreadable-box": 4} and count(data) == 20
    assert all(np.isfinite(r.boxes).all() for r in data.images)


@pytest.mark.parametrize("box", [[1, 2, 3], [1, 2, 3, 4, 5], "1,2,3,4", {"x": 1}, [[1, 2], [3, 4]],
                                 [True, 1, 2, 3],
                                 [1, 2, 3, 10 ** 400], [1, 2, None, 4], []], ids=str)
def test_any_other_shape_of_a_box_is_unreadable_too(tmp_path: Path, box: object):
    assert rules(read(tmp_path, with_boxes(box))) == {"unreadable-box": 1}


def test_more_than_a_fifth_of_unreadable_boxes_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match=r"unreadable-box\s+5 .*21% of the boxes are not four finite numbers"):
        read(tmp_path, with_boxes(*[None] * 5))


def test_boxes_are_clipped_and_dropped_when_less_than_a_pixel_is_left(tmp_path: Path):
    data = read(tmp_path, with_boxes([-10, -5, 30, 20], [90, 70, 50, 50], [99.5, 10, 20, 20],
                                     [300, 300, 20, 20], [99.5, 10, 0.5, 10]))
    assert rules(data) == {"box-outside-image": 2, "box-over-the-edge": 2} and count(data) == 22
    every = np.concatenate([r.boxes for r in data.images])[:, 1:]
    assert [0, 0, 20, 15] in every.tolist() and [90, 70, 100, 80] in every.tolist()
    assert [99.5, 10, 100, 20] in every.tolist(), "a thin box wholly inside stays"
    areas = np.concatenate([r.areas for r in data.images])
    assert (areas <= (every[:, 2:] - every[:, :2]).prod(1) + 1e-3).all()


def test_corners_in_place_of_sizes_raise_a_loud_warning(tmp_path: Path):
    boxes = [[40 + n, 30, 90 + n % 8, 70] for n in range(24)]
    data = read(tmp_path, with_boxes(*boxes))
    loud = next(f for f in data.faults if f.rule == "corners-instead-of-size")
    assert loud.count == 24 and "probably NOT in COCO's x, y, width, height" in loud.advice
    over_the_edge = read(tmp_path, with_boxes(*[[60, 50, 50, 40]] * 4))
    assert "corners-instead-of-size" not in rules(over_the_edge)


# Case 11: sizes
def test_a_stated_size_that_is_not_the_images_is_refused_or_settled_by_trust(tmp_path: Path):
    def change(c: dict) -> None:
        c["images"][0].update(width=200, height=160)

    with pytest.raises(DataError, match=r"size-differs\s+1 .*--trust image.*0.png is 100x80, stated 200x160"):
        read(tmp_path, change)
    moved, kept = read(tmp_path, change, trust="image"), read(tmp_path, change, trust="json")
    assert moved.images[0].boxes[0].tolist() == [0, 2.5, 3, 12.5, 8] and moved.images[0].areas[0] == 37.5
    assert kept.images[0].boxes[0].tolist() == [0, 5, 6, 25, 16]
    assert np.array_equal(moved.images[1].boxes, kept.images[1].boxes)
    assert (moved.images[0].width, kept.images[0].width) == (100, 100)


def test_boxes_of_the_unrotated_image_turn_with_its_exif(tmp_path: Path):
    coco = content(1, 4)
    path, folder = write(tmp_path, coco, 1)
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.zeros((SIZE[1], SIZE[0], 3), np.uint8)
    pixels[6:16, 5:25] = 255
    Image.fromarray(pixels).save(folder / "0.png", exif=exif)
    with pytest.raises(DataError, match=r"0.png is 80x100, stated 100x80 \(the size before EXIF rotation\)"):
        read_coco(path, folder)
    data = read_coco(path, folder, trust="image")
    ys, xs = np.nonzero(decode(folder / "0.png")[:, :, 0])
    assert data.images[0].boxes[0, 1:].tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]


def test_a_missing_size_comes_from_the_image_even_unverified(tmp_path: Path):
    for verify in (True, False):
        data = read(tmp_path, lambda c: c["images"][1].pop("width"), verify=verify)
        assert (data.images[1].width, data.images[1].height) == SIZE and rules(data) == {"missing-size": 1}


# Case 12: crowds and missing keys
def test_crowds_are_kept_apart_and_reach_the_evaluator(tmp_path: Path):
    data = read(tmp_path, lambda c: c["annotations"][0].update(iscrowd=1))
    assert len(data.images[0].boxes) == 7 and data.images[0].crowd.tolist() == [[0, 5, 6, 25, 16]]
    expected = data.ground_truth()["annotations"]
    assert [a["iscrowd"] for a in expected].count(1) == 1 and len(expected) == 24
    assert next(a for a in expected if a["iscrowd"])["bbox"] == [5, 6, 20, 10]


def test_missing_iscrowd_and_area_are_filled(tmp_path: Path):
    data = read(tmp_path, lambda c: [a.pop(k) for a in c["annotations"][:5] for k in ("iscrowd", "area")])
    assert rules(data) == {"missing-iscrowd": 5, "missing-area": 5}
    assert sorted(data.images[0].areas.tolist()) == [150] * 6 + [200] * 2
    assert all({"iscrowd", "area", "bbox"} <= set(a) for a in data.ground_truth()["annotations"])


