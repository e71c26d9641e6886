"""Picture files: every kind decodes to what Pillow shows, and no damaged file passes (cases 17-21)."""
import os
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from data.images import decode, inspect, inspect_all, turn, turn_boxes
from utils.errors import DataError


def smooth(height: int = 48, width: int = 64) -> np.ndarray:
    """An image uint8 [H, W, 3] without sharp edges, so that JPEG keeps it within a few levels."""
    y, x = np.mgrid[:height, :width]
    ramps = x / width, y / height, (x + y) / (width + height)
    return (255 * np.stack(ramps, -1)).astype(np.uint8)


def difference(a: np.ndarray, b: np.ndarray) -> float:
    """The mean absolute difference in levels."""
    return float(np.abs(a.astype(float) - b.astype(float)).mean())


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "webp", "tif", "gif"])
def test_every_usual_format_decodes_to_rgb(tmp_path: Path, suffix: str):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(smooth()).save(path, **({"quality": 95} if suffix in ("jpg", "webp") else {}))
    pixels = decode(path)
    assert pixels.shape == (48, 64, 3) and pixels.dtype == np.uint8
    assert difference(pixels, smooth()) < (8 if suffix == "gif" else 3)
    assert inspect(path)[:4] == (64, 48, 1, "")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied_as_pillow_applies_it(tmp_path: Path, orientation: int):
    path = tmp_path / "a.jpg"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(smooth()).save(path, quality=95, exif=exif)
    with Image.open(path) as raw:
        shown = np.asarray(ImageOps.exif_transpose(raw))
    pixels = decode(path)
    assert pixels.shape == shown.shape and difference(pixels, shown) < 2
    assert inspect(path)[:3] == (shown.shape[1], shown.shape[0], orientation)


def test_exif_of_a_png_counts_too(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(smooth()).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(decode(tmp_path / "a.png"), np.rot90(smooth(), -1))
    assert inspect(tmp_path / "a.png")[:4] == (48, 64, 6, "")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_boxes_frame_the_same_pixels(orientation: int):
    pixels = np.zeros((48, 64), np.uint8)
    pixels[5:20, 10:40] = 255
    shown = turn(pixels, orientation)
    box = turn_boxes(np.array([[10.0, 5, 40, 20]]), orientation, shown.shape[1], shown.shape[0])[0]
    ys, xs = np.nonzero(shown)
    assert box.tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]


def test_grey_becomes_three_equal_channels(tmp_path: Path):
    grey = smooth()[:, :, 0]
    Image.fromarray(grey).save(tmp_path / "a.png")
    assert np.array_equal(decode(tmp_path / "a.png"), np.repeat(grey[:, :, None], 3, 2))


def test_alpha_is_dropped_and_the_colour_beneath_stays(tmp_path: Path):
    alpha = np.full((48, 64, 1), 7, np.uint8)
    Image.fromarray(np.concatenate((smooth(), alpha), 2)).save(tmp_path / "a.png")
    assert np.array_equal(decode(tmp_path / "a.png"), smooth())


def test_sixteen_bits_are_scaled_not_wrapped(tmp_path: Path):
    wide = (smooth()[:, :, 0].astype(np.uint16) * 257)
    for name in ("a.png", "a.tif"):
        Image.fromarray(wide).save(tmp_path / name)
        assert difference(decode(tmp_path / name)[:, :, 0], smooth()[:, :, 0]) <= 1, name


def test_cmyk_decodes_as_pillow_converts_it(tmp_path: Path):
    path = tmp_path / "a.jpg"
    Image.fromarray(smooth()).convert("CMYK").save(path, quality=95)
    with Image.open(path) as image:
        assert difference(decode(path), np.asarray(image.convert("RGB"))) < 12


def test_a_palette_image_keeps_its_colours(tmp_path: Path):
    Image.fromarray(smooth()).quantize(64).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert np.array_equal(decode(tmp_path / "a.png"), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "webp"])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_truncated_image_is_refused_not_half_read(tmp_path: Path, suffix: str, share: float):
    path = tmp_path / f"cut.{suffix}"
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (200, 300, 3), dtype=np.uint8)).save(path)
    data = path.read_bytes()
    path.write_bytes(data[:int(len(data) * share)])
    assert inspect(path).problem
    with pytest.raises(DataError, match=f"cut.{suffix}.*(truncated|damaged|not an image)"):
        decode(path)


def test_a_png_with_flipped_bytes_is_found_by_its_check_sums(tmp_path: Path):
    path = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (99, 99, 3), dtype=np.uint8)).save(path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(bytes(data))
    assert "damaged" in inspect(path).problem or "broken" in inspect(path).problem
    with pytest.raises(DataError, match="a.png: is .*(damaged|broken)"):
        decode(path)


def test_bytes_after_the_end_of_a_jpeg_are_harmless(tmp_path: Path):
    path = tmp_path / "a.jpg"
    Image.fromarray(smooth()).save(path, quality=95)
    path.write_bytes(path.read_bytes() + b"camera notes" * 20)
    assert inspect(path).problem == "" and difference(decode(path), smooth()) < 3


@pytest.mark.parametrize("content, reason", [
    (b"", r"empty \(0 bytes\)"), (b"<!DOCTYPE html><p>404", "not an image"),
    (b"\xff\xd8\xff", "not an image"),
    (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image")])
def test_what_is_no_image_is_named(tmp_path: Path, content: bytes, reason: str):
    path = tmp_path / "page.jpg"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"page.jpg: is {reason}"):
        decode(path)
    assert inspect(path).problem


def test_a_missing_image_is_named(tmp_path: Path):
    with pytest.raises(DataError, match="gone.jpg: cannot be read"):
        decode(tmp_path / "gone.jpg")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_an_image_that_claims_too_many_pixels_is_refused_from_its_header(tmp_path: Path):
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    for name, side in (("bomb.png", 40_000), ("big.png", 10_100)):
        header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        (tmp_path / name).write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IEND", b""))
        with pytest.raises(DataError, match=rf"{name}: claims .*pixels.*limit of 100,000,000"):
            decode(tmp_path / name)
    Image.fromarray(smooth()).save(tmp_path / "small.png")
    with pytest.raises(DataError, match="64x48 = 3,072 pixels, above the limit of 3,000; raise --max-pixels"):
        decode(tmp_path / "small.png", 3_000)


@pytest.mark.parametrize("name", ["with space.jpg", "图片 一.jpg", "ünï.jpg", "x" * 200 + ".jpg",
                                  "a#b%20c.jpg"])
def test_any_file_name_works(tmp_path: Path, name: str):
    folder = tmp_path / "资料 夹"
    folder.mkdir()
    Image.fromarray(smooth()).save(folder / name, quality=95)
    assert decode(folder / name).shape == (48, 64, 3)
    assert inspect(folder / name).problem == ""


def test_a_link_in_a_circle_is_an_error_with_its_name(tmp_path: Path):
    os.symlink(tmp_path / "b.jpg", tmp_path / "a.jpg")
    os.symlink(tmp_path / "a.jpg", tmp_path / "b.jpg")
    with pytest.raises(DataError, match="a.jpg: cannot be read"):
        decode(tmp_path / "a.jpg")


def test_inspections_are_remembered_until_the_file_changes(tmp_path: Path):
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path in paths[:2]:
        Image.fromarray(smooth()).save(path)
    memo = tmp_path / "memo.json"
    first = inspect_all(paths, memo=memo)
    assert [f.problem == "" for f in first] == [True, True, False]
    written = memo.stat().st_mtime_ns
    assert inspect_all(paths[:2], memo=memo) == first[:2] and memo.stat().st_mtime_ns == written
    paths[0].write_bytes(b"broken")
    assert inspect_all(paths, memo=memo)[0].problem
    memo.write_text("{not json")
    assert inspect_all(paths[1:2], memo=memo) == first[1:2]
    limited = inspect_all(paths[1:2], max_pixels=10, memo=memo)
    assert "above the limit" in limited[0].problem


def test_every_real_photograph_passes_and_decodes_as_pillow_decodes_it(shared: Path):
    paths = [p for name in ("bccd", "voc5") for p in sorted((shared / name / "images").glob("*.jpg"))[:24]]
    assert paths
    for path, found in zip(paths, inspect_all(paths), strict=True):
        pixels = decode(path)
        with Image.open(path) as image:
            assert found[:4] == (pixels.shape[1], pixels.shape[0], image.getexif().get(274, 1), "")
            assert difference(pixels, np.asarray(ImageOps.exif_transpose(image).convert("RGB"))) < 1.5


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_of_a_tiff_is_applied_once(tmp_path: Path, orientation: int, depth: int):
    stored = np.random.default_rng(orientation).integers(0, 256, (24, 40, 3)).astype(np.uint8)
    path = tmp_path / "a.tif"
    if depth == 8:
        Image.fromarray(stored).save(path, tiffinfo={0x0112: orientation})
    else:
        stored[..., 1:] = stored[..., :1]
        Image.fromarray(stored[..., 0].astype(np.uint16) * 256).save(path, tiffinfo={0x0112: orientation})
    seen = inspect(path)
    assert np.array_equal(decode(path), turn(stored, orientation))
    assert (seen.height, seen.width, seen.orientation) == (*turn(stored, orientation).shape[:2], orientation)


@pytest.mark.parametrize("largest", [15, 255, 1023, 4095, 65535])
def test_a_grey_map_of_any_largest_value_is_scaled_to_it(tmp_path: Path, largest: int):
    levels = np.linspace(0, largest, 12).astype(int).reshape(3, 4)
    pixels = levels.astype(np.uint8 if largest < 256 else ">u2").tobytes()
    (tmp_path / "a.pgm").write_bytes(b"P5 4 3 %d\n" % largest + pixels)
    assert np.abs(decode(tmp_path / "a.pgm")[..., 0] - levels * 255 / largest).max() <= 1.5


def test_avif_is_read_and_heic_says_what_brings_it(tmp_path: Path):
    pytest.importorskip("PIL._avif", reason="needs a Pillow with AVIF")
    pixels = np.full((32, 48, 3), (200, 30, 90), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.avif", quality=95)
    assert np.abs(decode(tmp_path / "a.avif").astype(int) - pixels).max() <= 4
    (tmp_path / "b.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(300))
    with pytest.raises(DataError, match="b.heic: is not an image .*pip install pillow-heif"):
        decode(tmp_path / "b.heic")


def test_a_huge_file_is_refused_before_it_is_read(tmp_path: Path):
    for name, start in (("zeros.jpg", b""), ("tail.bmp", None)):
        if start is None:
            Image.new("RGB", (20, 20)).save(tmp_path / name)
        with open(tmp_path / name, "ab") as file:
            file.truncate(2 ** 36)
        before = time.perf_counter()
        with pytest.raises(DataError, match=f"{name}: (is not an image|has 68,719,476,736 bytes)"):
            decode(tmp_path / name)
        assert time.perf_counter() - before < 1 and inspect(tmp_path / name).problem


@pytest.mark.parametrize("by", ["simplejpeg", "av"])
def test_a_jpeg_that_is_damaged_inside_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str):
    pytest.importorskip(by, reason="cv2 alone decodes such a file without a word")
    if by == "av":
        monkeypatch.setattr("data.images.simplejpeg", None)
    noise = np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)
    Image.fromarray(noise).resize((240, 160), Image.BICUBIC).save(tmp_path / "whole.jpg")
    data = (tmp_path / "whole.jpg").read_bytes()
    middle = len(data) // 2
    twice = data[:middle] + data[middle - 300:]
    for name, damaged in (("mid.jpg", data[:middle] + bytes(400) + data[middle + 400:]),
                          ("half.jpg", data[:middle] + b"\xff\xd9"), ("twice.jpg", twice))[:3 - (by == "av")]:
        (tmp_path / name).write_bytes(damaged)
        assert "is damaged" in inspect(tmp_path / name).problem
        with pytest.raises(DataError, match=f"{name}: is damaged"):
            decode(tmp_path / name)
    (tmp_path / "padded.jpg").write_bytes(data[:-2] + bytes(40) + data[-2:])       # as cameras do
    for name in ("whole.jpg", "padded.jpg"):
        assert inspect(tmp_path / name).problem == ""
        assert np.array_equal(decode(tmp_path / name), np.asarray(Image.open(tmp_path / "whole.jpg")))
