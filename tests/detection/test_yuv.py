"""Frames of videos that never become RGB: the network's input, what is drawn and what is written of them."""
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from data.augment import letterbox
from detection.draw import colour, draw
from detection.sources import open_source
from detection.video import Recorder, VideoInfo, read
from detection.yuv import FULL, Yuv, planes, rgb

FORMATS = ("yuv420p", "yuvj420p", "yuv422p", "yuv444p", "yuv420p10le", "nv12")
BOX = np.array([[21.0, 33, 150, 120, 0.9, 1], [70, 60, 200, 160, 0.5, 0]])


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
    drawn = draw(seen, BOX, ("a", "b"))
    assert (rgb(seen) == before).all() and drawn.frame.format.name == "yuv420p"
    got, wanted = rgb(drawn).astype(int), draw(before, BOX, ("a", "b")).astype(int)
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
