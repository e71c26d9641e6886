"""Drawn boxes are legible at every size: checked on the pixels themselves."""
import cv2
import numpy as np
import pytest

from detection import draw as drawing
from detection.draw import class_name, colour, contact_sheet, draw, stroke, text_colour

GREY = 90


def canvas(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), GREY, np.uint8)


def changed(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Rows (x, y) of the pixels that differ."""
    return np.argwhere((before != after).any(2))[:, ::-1]


def box(x1: float, y1: float, x2: float, y2: float, score: float = 0.9, label: int = 0) -> np.ndarray:
    return np.array([[x1, y1, x2, y2, score, label]])


@pytest.mark.parametrize("size", [(20, 30), (240, 320), (375, 500), (500, 333), (3000, 4000)])
def test_a_box_is_drawn_where_it_lies_and_the_argument_stays_as_it_was(size):
    before = canvas(*size)
    corners = np.array([0.3, 0.4, 0.8, 0.9]) * np.array([size[1], size[0]] * 2)
    after = draw(before, box(*corners), ("car",), labels=False)
    assert (before == GREY).all() and after.shape == before.shape and after.dtype == np.uint8
    points = changed(before, after)
    line = stroke(*size)[0]
    assert np.abs(points.min(0) - corners[:2]).max() <= line / 2 + 1
    assert np.abs(points.max(0) - corners[2:]).max() <= line / 2 + 1
    inside = after[int(corners[1]) + line + 1, int(corners[:3:2].mean())]
    assert (inside == GREY).all(), "the box is not filled"


def test_lines_and_text_grow_with_the_image_and_never_vanish():
    lines, scales = zip(*(stroke(side, side) for side in (8, 320, 640, 2000, 4000)))
    assert lines[0] == lines[1] == 1 and list(lines) == sorted(lines) and lines[-1] >= 10
    assert list(scales) == sorted(scales)
    assert scales[1] * drawing.TEXT_PX >= 10, "text of at least 10 px on a 320 px image"


@pytest.mark.parametrize("corners", [(0, 0, 40, 40), (280, 0, 319, 30), (0, 200, 30, 239),
                                     (290, 210, 319, 239), (0, 0, 319, 239), (-50, -50, 500, 500),
                                     (318, 5, 319, 6)])
def test_the_label_stays_whole_inside_the_image(corners):
    """A label drawn on a wide canvas has as many filled pixels as the same label at a border."""
    free, edge = canvas(900, 900), canvas(240, 320)
    wanted = drawing._label
    sizes = []
    for image, place in ((free, (400, 400, 600, 600)), (edge, corners)):
        placed: list = []
        wanted(image, "person 0.87", box(*place)[0], 0.4, colour(0), placed)
        x1, y1, x2, y2 = placed[0]
        assert 0 <= x1 < x2 <= image.shape[1] and 0 <= y1 < y2 <= image.shape[0]
        sizes.append((x2 - x1, y2 - y1, int((image != GREY).any(2).sum())))
    assert sizes[0] == sizes[1]


def test_a_name_wider_than_the_image_is_written_smaller_not_cut():
    image = canvas(60, 90)
    placed: list = []
    drawing._label(image, "a very long class name 0.99", box(5, 30, 80, 55)[0], 0.5, colour(0), placed)
    assert 0 <= placed[0][0] and placed[0][2] <= 90


def test_labels_of_crowded_boxes_do_not_cover_each_other():
    image, placed = canvas(480, 640), []
    for step in range(6):
        row = box(100 + 4 * step, 200 + 3 * step, 260 + 4 * step, 330 + 3 * step)[0]
        drawing._label(image, f"cell {step}", row, 0.5, colour(0), placed)
    for k, (left, top, right, bottom) in enumerate(placed):
        assert all(left >= x2 or x1 >= right or top >= y2 or y1 >= bottom for x1, y1, x2, y2 in placed[:k])


def test_class_colours_are_stable_distinct_and_readable():
    assert [colour(k) for k in range(3)] == [colour(k) for k in range(3)]
    first = np.array([colour(k) for k in range(20)], dtype=float)
    apart = np.linalg.norm(first[:, None] - first[None], axis=2) + 1e9 * np.eye(20)
    assert apart.min() > 25, "two of the first twenty colours look alike"
    for index in range(80):
        light = np.dot((0.2126, 0.7152, 0.0722), colour(index))
        assert text_colour(colour(index)) == ((0, 0, 0) if light > 128 else (255, 255, 255))
        assert abs(light - text_colour(colour(index))[0]) > 100


def test_the_oklch_colours_agree_with_opencv_in_lightness():
    """CIE L* by cv2, an independent conversion: the three lightness steps come out light, medium, dark."""
    row = np.array([[colour(k) for k in range(30)]], np.uint8)
    light = cv2.cvtColor(row, cv2.COLOR_RGB2LAB)[0, :, 0] / 2.55
    groups = [light[start::3].mean() for start in (1, 0, 2)]
    assert groups[0] + 5 < groups[1] < groups[2] - 5


def test_names_beyond_ascii_are_drawn_and_become_a_number_where_the_font_lacks_them(monkeypatch):
    if drawing.UNICODE:
        assert class_name(0, ("汽车",)) == "汽车"
        drawn = [draw(canvas(100, 300), box(20, 40, 90, 90), (name,)) for name in ("汽车", "??", "火车")]
        assert (drawn[0] != drawn[1]).any() and (drawn[0] != drawn[2]).any(), "question marks instead"
    monkeypatch.setattr(drawing, "UNICODE", False)
    assert class_name(0, ("汽车", "car")) == "class 0" and class_name(1, ("汽车", "car")) == "car"
    assert class_name(7, ("car",)) == "class 7"


def test_ground_truth_without_score_and_non_finite_boxes():
    before = canvas(100, 200)
    drawn = draw(before, np.array([[20, 30, 90, 80, 1.0]]), ("a", "b"))
    assert (drawn == colour(1)).all(2).any(), "the fifth column is the class"
    assert (draw(before, box(np.nan, 0, 50, np.inf), ("a",)) == before).all()
    assert (draw(before, np.zeros((0, 6)), ("a",)) == before).all()


def test_a_contact_sheet_shows_every_image_undistorted():
    tall, wide = np.full((200, 100, 3), 10, np.uint8), np.full((50, 100, 3), 20, np.uint8)
    sheet = contact_sheet([tall, wide, tall], 2, (80, 80), ("one", "two", "three"))
    for value, size, count in ((10, (80, 40), 2), (20, (40, 80), 1)):
        area = int((sheet == value).all(2).sum())
        assert abs(area - count * size[0] * size[1]) < 0.05 * area, f"{area} px of value {value}"
    assert contact_sheet([], 3).shape[2] == 3
