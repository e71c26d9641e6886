"""Boxes as they are in the wild: dropped, clipped, moved, and counted (cases 8-12)."""
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.coco.clean import mask_box
from data.coco.read import read_coco
from data.images import decode
from tests.helpers.coco_files import SIZE, content, count, perfect_ap, read, rules, with_boxes, write
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




# What is wrong with a file as a whole
def test_boxes_that_are_there_twice_are_dropped_and_a_perfect_detector_scores_one(tmp_path: Path):
    data = read(tmp_path, lambda c: c["annotations"].extend({**a, "id": 99 + a["id"]} for a in
                                                            c["annotations"][:6]))
    assert rules(data) == {"duplicate-box": 6} and count(data) == 24
    assert perfect_ap(data.ground_truth()) == pytest.approx(1.0)
    crowd = read(tmp_path, lambda c: c["annotations"].append({**c["annotations"][0], "id": 99, "iscrowd": 1}))
    assert rules(crowd) == {} and sum(len(r.crowd) for r in crowd.images) == 1


def test_fractions_in_place_of_pixels_are_refused(tmp_path: Path):
    boxes = [[x / SIZE[0], y / SIZE[1], w / SIZE[0], h / SIZE[1]] for x, y, w, h in [(5, 6, 20, 10)] * 24]
    with pytest.raises(DataError, match="normalised-boxes +24 .*multiply by width and height"):
        read(tmp_path, with_boxes(*boxes))
    assert "normalised-boxes" not in rules(read(tmp_path, with_boxes(*boxes[:23])))


def test_exchanged_width_and_height_are_named_and_never_scaled(tmp_path: Path):
    def change(c: dict) -> None:
        for image in c["images"]:
            image.update(width=SIZE[1], height=SIZE[0])

    with pytest.raises(DataError, match="size-exchanged +3 .*are exchanged.*--trust json"):
        read(tmp_path, change)
    for trust in ("image", "json"):
        data = read(tmp_path, change, trust=trust)
        assert rules(data) == {"size-exchanged": 3} and data.images[0].boxes[0].tolist() == [0, 5, 6, 25, 16]


def test_boxes_of_no_image_count_towards_the_limit_of_what_may_be_lost(tmp_path: Path):
    def change(c: dict, orphans: int, broken: int) -> None:
        for a in c["annotations"][:orphans]:
            a["image_id"] = 999
        for a in c["annotations"][orphans:orphans + broken]:
            a["bbox"] = None

    assert rules(read(tmp_path, lambda c: change(c, 4, 0))) == {"annotation-without-image": 4}
    with pytest.raises(DataError, match="annotation-without-image +3 (.|\n)*unreadable-box +2 "):
        read(tmp_path, lambda c: change(c, 3, 2))


def test_boxes_follow_from_masks_where_there_is_no_bbox(tmp_path: Path):
    from pycocotools import mask as oracle
    rng = np.random.default_rng(0)
    for _ in range(60):
        picture = np.zeros((SIZE[1], SIZE[0]), np.uint8)
        for _ in range(int(rng.integers(1, 4))):
            y, x = int(rng.integers(0, SIZE[1])), int(rng.integers(0, SIZE[0]))
            picture[y:y + int(rng.integers(1, 60)), x:x + int(rng.integers(1, 60))] = 1
        rle = oracle.encode(np.asfortranarray(picture))
        runs = np.diff(np.flatnonzero(np.diff(np.r_[2, picture.T.ravel(), 2]))).tolist()
        runs = runs if not picture[0, 0] else [0, *runs]
        text = {"size": list(picture.shape), "counts": rle["counts"].decode()}
        assert mask_box(text) == mask_box({**text, "counts": runs}) == oracle.toBbox(rle).tolist()
    polygons = [[5, 6, 25, 6, 25, 16], [40, 50, 60, 70, 41, 71]]
    assert mask_box(polygons) == [5, 6, 55, 65]
    data = read(tmp_path, lambda c: c["annotations"][0].update(bbox=None, segmentation=polygons[:1]))
    assert rules(data) == {"box-from-mask": 1} and data.images[0].boxes[0].tolist() == [0, 5, 6, 25, 16]


@pytest.mark.parametrize("mask", [
    {"size": [9, 9]}, {"size": [0, 0], "counts": [1, 2]}, {"size": [5, 5], "counts": "~~~"}, [[1, 2, "x"]],
    [[1]], 7, {"size": "a", "counts": [3]}, [[]], {"size": [5, 5], "counts": [25]},
    {"size": [5, 5], "counts": [10 ** 30]}, {"size": [5, 5], "counts": [3, -9, 4]}], ids=str)
def test_a_mask_that_is_none_is_an_unreadable_box(tmp_path: Path, mask: object):
    data = read(tmp_path, lambda c: c["annotations"][0].update(bbox=None, segmentation=mask))
    assert rules(data)["unreadable-box"] == 1


def test_an_empty_parent_class_is_left_out_and_a_used_one_stays(tmp_path: Path):
    def change(c: dict) -> None:
        for category in c["categories"]:
            category["supercategory"] = "pets"
        c["categories"].insert(0, {"id": 0, "name": "pets", "supercategory": "none"})

    train = read(tmp_path, change)
    assert train.names == ("cat", "dog") and rules(train) == {"empty-parent-class": 1}
    assert read(tmp_path, change, names=train.names, class_map=train.class_map).names == ("cat", "dog")
    used = read(tmp_path, lambda c: (change(c), c["annotations"][0].update(category_id=0)))
    assert used.names == ("pets", "cat", "dog") and rules(used) == {}


def test_a_split_without_boxes_is_said(tmp_path: Path):
    data = read(tmp_path, lambda c: c["annotations"].clear())
    assert rules(data) == {"split-without-boxes": 1} and "AP is undefined" in data.faults[0].advice


def test_zeros_beside_a_polygon_a_flat_one_and_fractions_among_px(tmp_path: Path):
    def change(c: dict) -> None:
        c["annotations"][0].update(bbox=[0, 0, 0, 0], segmentation=[[5, 6, 25, 6, 25, 16]])
        c["annotations"][1].update(bbox=None, segmentation=[7, 8, 27, 8, 27, 20])
        c["annotations"][2]["bbox"] = [0.1, 0.2, 0.5, 0.5]
    data = read(tmp_path, change)
    assert rules(data) == {"box-from-mask": 2, "fractions-among-px": 1}
    assert data.images[0].boxes[0].tolist() == [0, 5, 6, 25, 16]
    assert data.images[1].boxes[0].tolist() == [1, 7, 8, 27, 20]
