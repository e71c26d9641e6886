"""Augmentation: boxes stay on their pixels, drop when nothing is left, and depend on the seed alone."""
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from data.augment import (
    Augment,
    Pipeline,
    clip_boxes,
    letterbox,
    letterbox_boxes,
    mosaic,
    preset,
    shift_colours,
)
from utils.boxes import PAD_VALUE, scale_back

COLOURS = np.array(((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)), np.uint8)


def painted(height: int, width: int, boxes: list[tuple[int, int, int, int]],
            colours: np.ndarray = COLOURS) -> tuple[np.ndarray, np.ndarray]:
    """A grey image with one rectangle a box (xyxy px), each in the colour of its class; boxes [M, 5]."""
    image = np.full((height, width, 3), PAD_VALUE, np.uint8)
    for k, (x1, y1, x2, y2) in enumerate(boxes):
        image[y1:y2, x1:x2] = colours[k]
    return image, np.array([(k, *box) for k, box in enumerate(boxes)], np.float32).reshape(-1, 5)


def extent(image: np.ndarray, colour: np.ndarray) -> list[int] | None:
    """The tight box (xyxy px) of the pixels nearer to a colour than to grey; None where there are none."""
    near = np.abs(image.astype(int) - colour).max(2) < 75
    ys, xs = np.nonzero(near)
    return [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1] if len(ys) else None


def check(image: np.ndarray, boxes: np.ndarray, slack: float = 2) -> int:
    """How many boxes were compared with the pixels of their colour, each side within the slack in px."""
    for label, *box in boxes.tolist():
        seen = extent(image, COLOURS[int(label)])
        assert seen is not None and np.abs(np.array(seen) - box).max() <= slack, (label, box, seen)
    return len(boxes)


@pytest.mark.parametrize("height, width", [(300, 500), (500, 300), (64, 64), (1000, 90), (96, 96), (33, 61)])
def test_letterbox_keeps_boxes_on_their_pixels_and_scale_back_undoes_it(height: int, width: int):
    box = (width // 5, height // 4, width // 5 * 3, height // 4 * 3)
    image, boxes = painted(height, width, [box])
    out, geometry = letterbox(image, 96)
    assert out.shape == (96, 96, 3) and out.dtype == np.uint8
    moved = letterbox_boxes(boxes, geometry, height, width)
    assert check(out, moved, 1.01) == 1
    assert np.allclose(scale_back(moved[:, 1:], geometry, height, width), boxes[:, 1:], atol=1e-3)


def test_letterbox_pads_with_grey_on_both_sides_and_leaves_a_fitting_image_alone():
    image = np.random.default_rng(0).integers(0, 255, (40, 80, 3), dtype=np.uint8)
    out, geometry = letterbox(image, 80)
    assert geometry[1:] == (0, 20, 80, 40) and np.array_equal(out[20:60], image)
    assert (out[:20] == PAD_VALUE).all() and (out[60:] == PAD_VALUE).all()
    assert letterbox(image, (64, 96))[0].shape == (64, 96, 3)


def test_mosaic_shows_four_images_without_padding_and_boxes_on_their_pixels():
    compared = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        tiles = []
        for k in range(4):
            height, width = (int(v) for v in rng.integers(60, 129, 2))
            x, y = int(rng.integers(0, width - 30)), int(rng.integers(0, height - 30))
            image, _ = painted(height, width, [(x, y, x + 28, y + 24)], COLOURS[k:k + 1])
            tiles.append((image, np.array([[k, x, y, x + 28, y + 24]], np.float32)))
        out, boxes = mosaic(tiles, 128, rng)
        assert out.shape == (128, 128, 3) and boxes.shape[1] == 5
        compared += check(out, boxes)
        for k in set(range(4)) - {int(b) for b in boxes[:, 0]}:
            seen = extent(out, COLOURS[k])
            area = (seen[2] - seen[0]) * (seen[3] - seen[1]) if seen else 0
            assert area < 0.35 * 28 * 24 * 1.5, "a visible box was lost"
    assert compared > 80


@pytest.mark.parametrize("settings", [
    Augment(flip=1), Augment(scale=0.5), Augment(translate=0.2), Augment(scale=0.5, translate=0.1, flip=0.5),
    Augment(shear=0.01, scale=0.3)], ids=("flip", "scale", "translate", "all", "sheared"))
def test_albumentations_keeps_boxes_on_their_pixels(settings: Augment):
    pipeline, compared = Pipeline(settings), 0
    image, boxes = painted(128, 128, [(10, 20, 50, 45), (70, 15, 110, 60), (20, 80, 60, 110),
                                      (85, 80, 120, 120)])
    for seed in range(30):
        out, moved = pipeline(image, boxes, np.random.default_rng(seed))
        assert out.shape == image.shape and moved.dtype == np.float32
        compared += check(out, moved)
    assert compared > 90


def test_a_rotated_box_covers_its_pixels():
    pipeline = Pipeline(Augment(degrees=15))
    image, boxes = painted(128, 128, [(40, 40, 90, 80)])
    for seed in range(20):
        out, moved = pipeline(image, boxes, np.random.default_rng(seed))
        seen = extent(out, COLOURS[0])
        assert (np.array(seen[:2]) >= moved[0, 1:3] - 2).all()
        assert (np.array(seen[2:]) <= moved[0, 3:] + 2).all()


def test_an_outer_mirror_swaps_sides_exactly():
    image, boxes = painted(60, 60, [(5, 10, 25, 30)])
    out, moved = Pipeline(Augment(flip=1))(image, boxes, np.random.default_rng(0))
    assert np.array_equal(out, image[:, ::-1]) and np.allclose(moved, [[0, 35, 10, 55, 30]], atol=1e-4)


def test_slivers_and_dots_are_dropped():
    boxes = np.array([[0, 0, 0, 10, 10], [1, 90, 0, 110, 10], [2, 98.5, 0, 118.5, 10], [3, 5, 5, 6, 50],
                      [0, -50, 0, -10, 9]], np.float32)
    assert clip_boxes(boxes, 0, 0, 100, 100).tolist() == [[0, 0, 0, 10, 10], [1, 90, 0, 100, 10]]
    image = np.zeros((100, 100, 3), np.uint8)
    _, moved = Pipeline(Augment(flip=1))(image, boxes[[0, 3]], np.random.default_rng(0))
    assert moved[:, 0].tolist() == [0]


def test_images_without_boxes_pass_through_everything():
    empty = np.zeros((0, 5), np.float32)
    image = np.zeros((64, 64, 3), np.uint8)
    out, boxes = Pipeline(preset("default"))(image, empty, np.random.default_rng(0))
    assert out.shape == image.shape and boxes.shape == (0, 5)
    assert mosaic([(image, empty)] * 4, 64, np.random.default_rng(0))[1].shape == (0, 5)
    assert letterbox_boxes(empty, letterbox(image, 32)[1], 64, 64).shape == (0, 5)


def test_the_same_seed_gives_the_same_image_whatever_came_before():
    image = np.random.default_rng(1).integers(0, 255, (96, 96, 3), dtype=np.uint8)
    boxes = np.array([[1, 20, 20, 70, 60]], np.float32)
    one, two = Pipeline(preset("default")), Pipeline(preset("default"))
    for seed in range(5):
        two(image, boxes, np.random.default_rng(seed + 100))
    for seed in range(5):
        a, b = (p(image, boxes, np.random.default_rng(seed)) for p in (one, two))
        assert np.array_equal(a[0], b[0]) and np.array_equal(a[1], b[1])
    different = [one(image, boxes, np.random.default_rng(seed))[0].tobytes() for seed in range(20)]
    assert len(set(different)) == 20


def test_mirror_and_scale_are_drawn_apart():
    pipeline = Pipeline(Augment(flip=0.5, scale=0.5))
    image, boxes = painted(128, 128, [(60, 50, 70, 78)])
    mirrored, sizes = [], []
    for seed in range(300):
        _, moved = pipeline(image, boxes, np.random.default_rng(seed))
        mirrored.append((moved[0, 1] + moved[0, 3]) / 2 < 64 - 0.01 * (moved[0, 3] - moved[0, 1]))
        sizes.append(moved[0, 4] - moved[0, 2])
    assert abs(np.corrcoef(mirrored, sizes)[0, 1]) < 0.2


def test_the_mirror_leaves_the_image_it_was_given_alone():
    image, boxes = painted(64, 64, [(5, 5, 30, 40)])
    before = image.copy(), boxes.copy()
    for seed in range(10):
        Pipeline(preset("default"))(image, boxes, np.random.default_rng(seed))
    assert np.array_equal(image, before[0]) and np.array_equal(boxes, before[1])


def test_colours_follow_hsv():
    rng = np.random.default_rng(0)
    image = rng.integers(60, 180, (32, 32, 3), dtype=np.uint8)
    assert np.abs(shift_colours(image, 0, 0, 0).astype(int) - image).max() <= 1
    brighter = cv2.cvtColor(shift_colours(image, 0, 0, 0.3), cv2.COLOR_RGB2HSV)[..., 2].mean()
    assert brighter == pytest.approx(1.3 * cv2.cvtColor(image, cv2.COLOR_RGB2HSV)[..., 2].mean(), rel=0.02)
    grey = shift_colours(image, 0, -1, 0)
    assert np.ptp(grey.astype(int), axis=2).max() <= 1
    third = shift_colours(image, 1 / 3, 0, 0)
    assert np.abs(third.astype(int) - image[..., [2, 0, 1]]).max() <= 1, "red becomes green"


def test_presets_and_a_wrong_name():
    assert preset("none") == Augment() and preset("no-flip").flip == 0 < preset("default").flip
    with pytest.raises(ValueError, match="'heavy': needs one of none, default, light, no-flip"):
        preset("heavy")


def test_albumentations_is_imported_only_when_used(root: Path):
    code = ("import sys, data.augment, data.dataset; heavy = ('albumentations', 'matplotlib', 'pycocotools', "
            "'sklearn'); sys.exit(any(name in sys.modules for name in heavy))")
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0


def test_one_image_costs_a_few_milliseconds():
    rng = np.random.default_rng(0)
    tiles = [(cv2.resize(rng.integers(0, 255, (30, 40, 3), dtype=np.uint8), (416, 312)),
              np.array([[0, 50, 50, 200, 200]] * 4, np.float32)) for _ in range(4)]
    pipeline, spent = Pipeline(preset("default")), []
    for _ in range(40):
        start = time.process_time()
        pipeline(*mosaic(tiles, 416, rng), rng)
        spent.append(time.process_time() - start)
    assert np.median(spent) < 0.012          # 2.4 ms on a quiet core; the margin is for a busy machine
