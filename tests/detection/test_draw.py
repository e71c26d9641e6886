"""Drawn boxes are legible at every size, in RGB and in YUV: checked on the pixels themselves."""
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from data.augment import letterbox
from detection import draw as drawing
from detection.draw import class_name, colour, contact_sheet, draw, stroke, text_colour
from detection.sources import open_source
from detection.video import Recorder, VideoInfo, read
from detection.yuv import FULL, Yuv, planes, rgb

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


FORMATS = ("yuv420p", "yuvj420p", "yuv422p", "yuv444p", "yuv420p10le", "nv12")
BOXES = np.array([[21.0, 33, 150, 120, 0.9, 1], [70, 60, 200, 160, 0.5, 0]])


def picture(height: int, width: int) -> np.ndarray:
    """Smooth shapes of many colours, as photographs have; uint8 [H, W, 3] RGB."""
    noise = np.random.default_rng(0).integers(0, 255, (5, 7, 3)).astype(np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)


def frame(form: str, size: tuple[int, int] = (180, 256), space: int = 2, image: np.ndarray | None = None,
          full: bool = False) -> av.VideoFrame:
    """A frame in that format and colour space, limited to 16..235 unless it is `full`."""
    given = av.VideoFrame.from_ndarray(picture(*size) if image is None else image, format="rgb24")
    made = given.reformat(format=form, dst_colorspace={1: 1, 9: 9}.get(space, 5),
                          dst_color_range=2 if full else 1)
    made.colorspace, made.color_range = space, 2 if full else 1
    return made


@pytest.mark.parametrize(("form", "size"), [
    *((form, size) for form in FORMATS for size in ((180, 256), (1080, 1920), (40, 30))),
    ("yuv420p", (75, 101))])
def test_the_network_sees_what_it_would_of_the_rgb_image(form, size):
    seen = Yuv(frame(form, size))
    got, place = seen.letterbox(96)
    wanted, where = letterbox(rgb(seen), 96)
    off = np.abs(got.astype(int) - wanted)
    assert place == where and got.dtype == np.uint8 and off.max() <= 8 and off.mean() < 1.5, off.mean()


@pytest.mark.parametrize(("form", "space", "full"), [
    ("yuv420p", 2, False), ("yuv420p", 1, False), ("yuv420p", 9, False), ("yuv420p", 1, True),
    ("yuvj420p", 2, True), ("yuv444p", 1, False), ("yuv420p10le", 1, False)])
def test_boxes_are_drawn_where_and_in_the_colours_that_rgb_has(form, space, full):
    seen = Yuv(frame(form, space=space, full=full))
    before = rgb(seen)
    drawn = draw(seen, BOXES, ("a", "b"))
    assert (rgb(seen) == before).all() and drawn.frame.format.name == "yuv420p"
    got, wanted = rgb(drawn).astype(int), draw(before, BOXES, ("a", "b")).astype(int)
    off = np.abs(cv2.blur(got.astype(np.float32), (4, 4)) - cv2.blur(wanted.astype(np.float32), (4, 4)))
    assert off.mean() < 3.5 and np.abs(got[100:110, 90:140] - before[100:110, 90:140]).max() < 8
    line = got[118:122, 100:140].reshape(-1, 3)            # a box's lower edge is drawn last in its colour
    assert np.abs(line - colour(1)).max(1).min() < 8


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("space", [1, 2, 5, 6, 9])
def test_a_colour_in_yuv_is_the_one_that_swscale_makes_of_it(space, full):
    for fill in ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (200, 120, 40)):
        made = frame("yuv420p", space=space, full=full, image=np.full((16, 16, 3), fill, np.uint8))
        for plane, _, value in Yuv(made).layers(fill):
            assert abs(int(plane[4, 4]) - value) <= 2, (fill, plane[4, 4], value)


@pytest.mark.parametrize("size", [(180, 256), (75, 101)])
@pytest.mark.parametrize(("space", "full"), [(1, False), (9, False), (6, True), (2, False)])
def test_what_is_written_says_its_colours_and_keeps_its_pixels(tmp_path: Path, size, space, full):
    seen, video = Yuv(frame("yuv420p", size, space=space, full=full)), Recorder(tmp_path / "a", live=False)
    for k in range(3):
        video.write(seen.copy(), k / 10, VideoInfo(10, 0, size[1], size[0], Fraction(1)))
    video.close()
    (got, *_), wanted = [pixels for pixels, _ in read(tmp_path / "a.mp4")], planes(seen.frame)
    assert got.shape == (*size, 3) and (got.frame.color_range == FULL) == full
    assert got.frame.colorspace == space or space == 2
    for plane, source in zip(planes(got.frame), wanted):
        assert plane.shape == source.shape and np.abs(plane.astype(int) - source).mean() < 2.5


def test_an_rgb_image_is_written_in_the_colours_that_the_file_says(tmp_path: Path):
    image, video = picture(180, 256), Recorder(tmp_path / "a", live=False)
    video.write(image, 0, VideoInfo(10, 0, 256, 180))
    video.close()
    (got, _), = read(tmp_path / "a.mp4")
    assert (got.frame.colorspace, got.frame.color_range) == (6, 1)
    assert np.abs(rgb(got).astype(int) - image).mean() < 4


def test_frames_that_must_be_turned_or_hold_two_moments_become_rgb(tmp_path: Path):
    for name, options in (("a.mkv", {}), ("b.mkv", {"flags": "+ildct+ilme", "top": "1"})):
        with av.open(str(tmp_path / name), "w") as out:
            stream = out.add_stream("mpeg2video", rate=25, options=options)
            stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
            for _ in range(4):
                out.mux(stream.encode(av.VideoFrame.from_ndarray(picture(96, 128), format="rgb24")))
            out.mux(stream.encode(None))
    plain, woven = (next(iter(open_source(str(tmp_path / name)))) for name in ("a.mkv", "b.mkv"))
    assert isinstance(plain.pixels, Yuv) and isinstance(woven.pixels, np.ndarray)
    assert plain.image.shape == woven.image.shape == plain.pixels.shape
