"""`--source`: which files it names, in which order, what is reported, and how the threads around it end."""
import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from detection.sources import natural, open_source, unique_names
from detection.video import Recorder, VideoInfo, probe
from utils.errors import DataError
from utils.redact import masked, masked_values


def save(path: Path, value: int = 50, size: tuple[int, int] = (24, 32)) -> Path:
    """A red-dominated image of one colour, so that RGB and BGR differ."""
    path.parent.mkdir(parents=True, exist_ok=True)
    good, data = cv2.imencode(path.suffix, np.full((*size, 3), (0, 0, value), np.uint8))
    assert good
    path.write_bytes(data.tobytes())
    return path


def film(path: Path, frames: int = 12, fps: float = 12.5, size: tuple[int, int] = (64, 96)) -> Path:
    """A video whose frame k is k * 15 bright, in red."""
    video = Recorder(path.with_suffix(""), live=False)
    for k in range(frames):
        video.write(np.full((*size, 3), (15 * k, 0, 0), np.uint8), k / fps, VideoInfo(fps, 0, *size))
    video.close()
    return path


def names(source: str | Path) -> list[str]:
    return [frame.name for frame in open_source(str(source))]


def test_an_image_is_one_rgb_frame(tmp_path):
    source = open_source(str(save(tmp_path / "a.png", 200)))
    frames = list(source)
    assert source.kind == "image" and source.total == 1
    assert frames[0].image.shape == (24, 32, 3) and frames[0].image[0, 0].tolist() == [200, 0, 0]
    assert frames[0].video is None and frames[0].index == 0 and frames[0].path == tmp_path / "a.png"


def test_a_folder_is_read_in_natural_order_one_level_deep(tmp_path):
    for name in ("img10.png", "img2.png", "Img1.jpg", "sub/deep.png"):
        save(tmp_path / name)
    (tmp_path / "notes.md").write_text("no image")
    assert names(tmp_path) == ["Img1.jpg", "img2.png", "img10.png"]


def test_a_glob_and_a_list_file_name_the_same_images(tmp_path):
    for name in ("a1.png", "a2.png", "b.png"):
        save(tmp_path / "in" / name)
    (tmp_path / "list.txt").write_text("﻿in/b.png\n\n# a comment\n in/a1.png \n", encoding="utf-8")
    assert names(tmp_path / "in" / "a*.png") == ["a1.png", "a2.png"]
    assert names(tmp_path / "list.txt") == ["b.png", "a1.png"], "a list keeps its own order"
    assert names(tmp_path / "**" / "b.png") == ["b.png"]


@pytest.mark.parametrize("folder", ["with space", "街景 照片", "a[1]", "ünï"])
def test_unusual_paths_work(tmp_path, folder):
    save(tmp_path / folder / "图 1.jpg")
    film(tmp_path / folder / "video 一.mp4", 3)
    assert names(tmp_path / folder) == ["video 一.mp4"] * 3 + ["图 1.jpg"]


def test_a_video_gives_every_frame_at_the_right_colour(tmp_path):
    source = open_source(str(film(tmp_path / "v.mp4")))
    frames = list(source)
    assert source.kind == "video" and source.total == len(frames) == 12
    assert [frame.index for frame in frames] == list(range(12))
    info = frames[0].video
    assert info.fps == pytest.approx(12.5) and (info.width, info.height) == (96, 64)
    red, _, blue = frames[10].image.reshape(-1, 3).mean(0)
    assert abs(red - 150) < 12 and blue < 12


def test_where_nothing_can_be_read_each_file_is_told(tmp_path):
    for name in ("a.jpg", "b.png", "c.mp4"):
        (tmp_path / name).write_bytes(b"no such thing")
    (tmp_path / "d.heics").write_bytes(b"")
    with pytest.raises(DataError) as error:
        list(open_source(str(tmp_path)))
    lines = str(error.value).splitlines()
    assert "a.jpg" in lines[0] and all(line.startswith("left out: ") for line in lines[1:])
    assert all(name in str(error.value) for name in ("b.png", "c.mp4", "d.heics"))


def test_a_source_can_be_read_twice(tmp_path):
    save(tmp_path / "a.png")
    source = open_source(str(tmp_path))
    assert len(list(source)) == len(list(source)) == 1 and not source.faults


def test_broken_files_among_good_ones_are_reported_and_left_out(tmp_path):
    save(tmp_path / "1.png"), save(tmp_path / "5.png")
    (tmp_path / "2.jpg").write_bytes(b"")
    (tmp_path / "3.jpg").write_text("<html>not found</html>")
    whole = save(tmp_path / "whole.jpg", size=(200, 200)).read_bytes()
    (tmp_path / "4.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "whole.jpg").unlink()
    (tmp_path / "6.mp4").write_bytes(b"no video")
    source = open_source(str(tmp_path))
    assert [frame.name for frame in source] == ["1.png", "5.png"]
    assert [path.name for path, _ in source.faults] == ["2.jpg", "3.jpg", "4.jpg", "6.mp4"]
    assert all(path.name in reason for path, reason in source.faults)


def test_a_listed_file_that_is_missing_is_reported_and_the_rest_is_read(tmp_path):
    save(tmp_path / "a.png")
    (tmp_path / "list.txt").write_text("a.png\ngone.png\n")
    source = open_source(str(tmp_path / "list.txt"))
    assert [frame.name for frame in source] == ["a.png"]
    assert "gone.png: no such file" in source.faults[0][1]


def test_a_video_cut_short_says_how_much_of_it_was_read(tmp_path):
    path = tmp_path / "v.avi"
    video = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (320, 240))
    for k in range(60):
        video.write(np.full((240, 320, 3), 4 * k, np.uint8))
    video.release()
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    source = open_source(str(path))
    read = len(list(source))
    if source.total == 60:
        assert 0 < read < 60 and f"only {read} of 60 frames" in source.faults[0][1]
    else:
        assert source.total in (0, read), "a length that cannot be known is not made up"


@pytest.mark.parametrize(("make", "said"), [
    (lambda folder: folder / "none.jpg", "no such file or folder"),
    (lambda folder: folder / ("x" * 400), "no such file or folder"),
    (lambda folder: folder, "names no image or video (0 entries)"),
    (lambda folder: folder / "*.jpg", "names no image or video"),
    (lambda folder: _text(folder / "a.csv", "x"), ".csv is not supported"),
    (lambda folder: _text(folder / "list.txt", "# nothing\n"), "names no image or video"),
    (lambda folder: _text(folder / "list.txt", b"\xff\xfe\x00"), "not UTF-8"),
    (lambda folder: _text(folder / "a.mp4", "x"), "not a readable video"),
    (lambda folder: "rtsp://someone:secret@camera/1", "live sources"),
    (lambda folder: "0", "live sources"),
])
def test_a_source_that_names_nothing_is_an_error_that_says_what_was_tried(tmp_path, make, said):
    with pytest.raises(DataError) as error:
        open_source(str(make(tmp_path)))
    assert said in str(error.value) and "secret" not in str(error.value)
    assert error.value.exit_code == 3
    if said.startswith(("no such", "names", ".csv")):
        assert ".jpg" in str(error.value) and ".mp4" in str(error.value), "the supported suffixes are listed"


def _text(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_a_single_broken_image_and_a_folder_of_nothing_else_are_errors(tmp_path):
    _text(tmp_path / "a.jpg", "x")
    with pytest.raises(DataError, match="a.jpg"):
        list(open_source(str(tmp_path / "a.jpg")))
    _text(tmp_path / "b.jpg", "")
    with pytest.raises(DataError, match="a.jpg.*and 1 more"):
        list(open_source(str(tmp_path)))


def test_an_image_that_claims_too_many_pixels_is_refused(tmp_path):
    save(tmp_path / "a.png", size=(40, 50))
    with pytest.raises(DataError, match="2,000 pixels"):
        list(open_source(str(tmp_path / "a.png"), max_pixels=1999))
    assert len(list(open_source(str(tmp_path / "a.png"), max_pixels=2000))) == 1


def test_names_of_results_never_collide():
    paths = tuple(Path(p) for p in ("x/a.jpg", "y/a.jpg", "x/A.png", "a_2.jpg", "b.jpg"))
    made = unique_names(paths)
    assert made[0] == "a.jpg" and made[-1] == "b.jpg"
    assert len({Path(name).stem.lower() for name in made}) == len(made)


def test_natural_order_counts():
    made = sorted((Path(p) for p in ("b2", "b10", "a", "B1", "10", "9")), key=natural)
    assert [str(path) for path in made] == ["9", "10", "a", "B1", "b2", "b10"]


def test_passwords_are_masked():
    assert masked("rtsp://user:pa@ss@cam/1") == "rtsp://***@cam/1" and masked("a@b.jpg") == "a@b.jpg"


def test_flags_are_masked_one_by_one_and_what_is_no_text_stays():
    flags = {"source": "rtsp://me:SECRET@cam/1", "weights": ["a.pt", "http://me:SECRET@x/b.pt"], "imgsz": 64,
             "data": None, "out": Path("a.json")}
    assert masked_values(flags) == flags | {"source": "rtsp://***@cam/1",
                                            "weights": ["a.pt", "http://***@x/b.pt"]}


@pytest.mark.parametrize("line", ["rtsp:/me:SECRET@cam/1", "me:SECRET@cam/*.jpg", "rtsp:/me:SECRET@cam/v?x"])
def test_a_mistyped_address_is_refused_without_its_password(tmp_path, line):
    (tmp_path / "list.txt").write_text(line + "\n")
    for source in (line, str(tmp_path / "list.txt")):
        with pytest.raises(DataError) as error:
            list(open_source(source))
        assert "SECRET" not in str(error.value) and "***" in str(error.value)


def test_a_video_file_keeps_rate_size_and_count_also_at_odd_sizes(tmp_path):
    for size, fps in (((64, 96), 29.97), ((63, 95), 10.0)):
        path = film(tmp_path / "v.mp4", 7, fps, size)
        info = probe(path)
        assert info.frames == 7 and info.fps == pytest.approx(fps, rel=1e-3)
        assert (info.width, info.height) == size[::-1]
        path.unlink()


def test_real_videos_are_read_whole(shared):
    for name, frames, fps in (("cars.mp4", 377, 12.5), ("bikes.mp4", 250, 25.0)):
        source = open_source(os.fspath(shared / "videos" / name))
        info = probe(shared / "videos" / name)
        assert source.total == frames and info.fps == fps
    assert sum(1 for _ in source) == 250
