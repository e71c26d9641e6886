"""Image files to arrays: one decoder for training, evaluation and detection, never half an image.

EXIF rotation applied, grey repeated to three channels, alpha dropped (the colour beneath stays), 16 bits
scaled to 8, CMYK converted, the first frame of several. simplejpeg or else FFmpeg tells damage inside, which
cv2 does not.
"""
from __future__ import annotations

import contextlib
import io
import json
import os
import re
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from utils.boxes import letterbox_geometry
from utils.errors import DataError

try:                               # here, for an import in a forked loader process may find the lock taken
    import simplejpeg
except ImportError:
    simplejpeg = None

MAX_PIXELS = 100_000_000
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".avif", ".heic", ".heif")
# Only what both libraries read safely: Pillow would start Ghostscript for an EPS file that calls itself .jpg
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF", "PPM", "JPEG2000", "AVIF", "HEIF")
JPEGS = ("JPEG", "MPO")
PILLOWS = ("PPM", "AVIF", "HEIF")  # cv2 ignores the largest value of a PPM, and the turns of the others
HEIC = (b"ftypheic", b"ftypheix", b"ftyphevc", b"ftypmif1", b"ftypmsf1")
TAIL = 64                          # bytes at a file's end that must hold its closing mark
SHRUNK = (8, 4, 2)                 # by what libjpeg-turbo shrinks a JPEG while it decodes it
ROOM = (1 << 26, 16)               # bytes a file may have, and more for every pixel


class Inspection(NamedTuple):
    """An image file without its pixels: size in px as decoded, EXIF orientation 1..8, problem ("": none)."""

    width: int
    height: int
    orientation: int
    problem: str
    crc: int = 0                   # of the bytes, for whoever asks later whether the file is still the same


def decode(path: str | Path, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Return the image uint8 [H, W, 3] RGB, EXIF rotation applied; raise DataError where that fails."""
    return decode_small(path, 0, max_pixels)[0]


def decode_small(path: str | Path, side: int,
                 max_pixels: int = MAX_PIXELS) -> tuple[np.ndarray, tuple[int, int]]:
    """Return the image as `decode` does, or smaller, and its whole height and width in px.

    A JPEG of twice the size or more that it has when letterboxed to `side` px (0: none has) is shrunk while
    it is decoded, to no less than that, and then resized to it. Raises DataError as `decode` does.
    """
    try:
        with open(path, "rb") as file:         # any file name works; cv2.imread needs the system's code page
            return _decode(file, str(path), max_pixels, side)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); "
                        "check the path and its permissions") from None


def decode_bytes(data: np.ndarray, name: str, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Return the image uint8 [H, W, 3] RGB of a file's bytes uint8 [n]; errors call it `name`."""
    return _decode(io.BytesIO(data), name, max_pixels, 0)[0]


def _decode(file: io.BufferedIOBase, name: str, max_pixels: int,
            side: int) -> tuple[np.ndarray, tuple[int, int]]:
    """Return the image uint8 [H, W, 3] RGB of an open file, and its whole size, as `decode_small` does."""
    pixels = small = None
    try:
        width, height, orientation, kind = _header(file, max_pixels)
        _check(kind, file)
        file.seek(0)
        data = np.frombuffer(file.read(), np.uint8)
        if kind in JPEGS:
            small, least = _shrunk(width, height, orientation, side)
            pixels = _jpeg(data, *least)
        if pixels is None and kind not in PILLOWS:
            with contextlib.suppress(cv2.error):
                pixels = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
        pixels = _decode_slowly(file) if pixels is None else pixels
    except DataError as error:
        raise DataError(f"{name}: {error}") from None
    turned = kind == "TIFF" and pixels.shape[:2] == (height, width)        # by cv2, whatever its flag says
    pixels, given = pixels if turned else turn(pixels, orientation), (height, width)
    if small is None or pixels.shape[:2] == given:         # whole, also where libjpeg-turbo could not read it
        return pixels, pixels.shape[:2]
    return cv2.resize(pixels, small, interpolation=cv2.INTER_AREA), given


def _shrunk(width: int, height: int, orientation: int,
            side: int) -> tuple[tuple[int, int] | None, tuple[int, int]]:
    """Return the letterboxed (w, h) and the least (h, w) to decode before rotation; (None, (0, 0)): whole."""
    if side:
        fitted = letterbox_geometry(height, width, side)
        for by in SHRUNK:
            high, wide = -(-height // by), -(-width // by)
            if high >= fitted.height and wide >= fitted.width:
                return (fitted.width, fitted.height), (wide, high) if orientation > 4 else (high, wide)
    return None, (0, 0)


def inspect(path: str | Path, max_pixels: int = MAX_PIXELS) -> Inspection:
    """Return size, orientation and problem of a file; never raise. A JPEG is decoded at an eighth of size."""
    try:
        with open(path, "rb") as file:
            width, height, orientation, kind = _header(file, max_pixels)
            _check(kind, file)
            file.seek(0)
            data = np.frombuffer(file.read(), np.uint8)
            if kind in JPEGS:
                _jpeg(data, 1, 1)
        return Inspection(width, height, orientation, "", zlib.crc32(data))
    except DataError as error:
        return Inspection(0, 0, 1, str(error))
    except OSError as error:
        return Inspection(0, 0, 1, f"cannot be read ({error.strerror or error})")


def inspect_all(paths: Sequence[Path], max_pixels: int = MAX_PIXELS, memo: Path | None = None,
                threads: int = 8) -> list[Inspection]:
    """Return one Inspection per path; `memo`, a JSON file, remembers them by path, time and size."""
    known = _read_memo(memo, max_pixels)
    stamps = [[status.st_mtime_ns, status.st_size] if (status := _status(path)) else None for path in paths]
    todo = [i for i, path in enumerate(paths)
            if stamps[i] is None or known.get(str(path), (None,))[0] != stamps[i]]
    with ThreadPoolExecutor(max(1, threads)) as pool:
        fresh = list(pool.map(lambda i: inspect(paths[i], max_pixels), todo, chunksize=16))
    known.update((str(paths[i]), (stamps[i], result)) for i, result in zip(todo, fresh))
    if memo is not None and todo:
        part = memo.with_name(f"{memo.name}.{os.getpid()}.part")
        part.write_text(json.dumps({"max_pixels": max_pixels, "files": known}), encoding="utf-8")
        os.replace(part, memo)
    return [known[str(path)][1] for path in paths]


def _status(path: Path) -> os.stat_result | None:
    """Return what the system knows of a file; None where it is missing."""
    with contextlib.suppress(OSError):
        return os.stat(path)


def _read_memo(memo: Path | None, max_pixels: int) -> dict[str, tuple[list[int] | None, Inspection]]:
    """Return an earlier run's results by path; none when it used another limit or cannot be read."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        content = json.loads(memo.read_text(encoding="utf-8")) if memo else {}
        if content.get("max_pixels") == max_pixels:
            return {path: (stamp, Inspection(*found)) for path, (stamp, found) in content["files"].items()
                    if len(found) == len(Inspection._fields)}
    return {}


def turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Return the image [H, W, ...] as EXIF orientation 1..8 wants it shown."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def turn_boxes(boxes: np.ndarray, orientation: int, width: int | np.ndarray,
               height: int | np.ndarray) -> np.ndarray:
    """Turn boxes [M, 4] (xyxy px) of the stored image to px of the rotated one of `width` x `height`."""
    x, y = boxes[:, 0::2], boxes[:, 1::2]
    if orientation in (5, 6, 7, 8):
        x, y = y, x
    if orientation in (3, 4, 7, 8):
        y = height - y[:, ::-1]
    if orientation in (2, 3, 6, 7):
        x = width - x[:, ::-1]
    return np.stack((x[:, 0], y[:, 0], x[:, 1], y[:, 1]), 1)


def _open(file: io.BufferedIOBase) -> Any:
    """Open an image with Pillow; its pixels are counted by our own limit, so that one flag raises it."""
    from PIL import Image
    Image.MAX_IMAGE_PIXELS = None
    for load in (Image.preinit, Image.init):               # most files need five of its forty plug-ins
        file.seek(0)
        load()
        try:
            return Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN])
        except Image.UnidentifiedImageError as error:
            unknown = error
    raise unknown


def _header(file: io.BufferedIOBase, max_pixels: int) -> tuple[int, int, int, str]:
    """Return width and height (rotated), orientation and format; raise DataError without the file's name."""
    from PIL import Image
    start = file.read(12)
    if not start:
        raise DataError("is empty (0 bytes); download or export it again")
    if start[4:] in HEIC:
        with contextlib.suppress(ImportError):
            import pillow_heif
            pillow_heif.register_heif_opener()
    try:
        image = _open(file)
    except Exception as error:       # plugins raise many types on hostile bytes: SyntaxError, struct.error
        reason = "" if isinstance(error, Image.UnidentifiedImageError) else f" ({error})"
        need = "needs JPEG, PNG, BMP, WebP, TIFF, GIF or AVIF"
        if start[4:8] == b"ftyp":
            need = "HEIC needs `pip install pillow-heif`, AVIF pillow 11.3 or newer, and a film is no image"
        raise DataError(f"is not an image that can be read{reason}; {need}") from None
    if (pixels := image.width * image.height) > max_pixels:
        raise DataError(f"claims {image.width}x{image.height} = {pixels:,} pixels, above the limit of "
                        f"{max_pixels:,}; raise --max-pixels if that is right")
    if (size := file.seek(0, os.SEEK_END)) > ROOM[0] + ROOM[1] * pixels:
        raise DataError(f"has {size:,} bytes, which {pixels:,} pixels cannot fill; export it again")
    if image.mode == "F" or (image.mode == "I" and image.format != "PPM"):
        raise DataError("has 32 bits a channel; convert it to 8 or 16 bits")
    orientation, (width, height), tags = 1, image.size, getattr(image, "tag_v2", {})
    with contextlib.suppress(Exception):
        # the base class's method: PNG's own would decode the whole image to look for EXIF behind its pixels
        value = Image.Image.getexif(image).get(0x0112, 1)
        orientation = value if value in range(1, 9) else 1
    if orientation > 4 and (tags.get(256), tags.get(257)) != (height, width):     # else Pillow has turned it
        width, height = height, width
    return width, height, orientation, image.format


def _check(kind: str, file: io.BufferedIOBase) -> None:
    """Raise DataError for missing or damaged pixels, of which cv2 would make grey or garbage silently."""
    file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
    tail = file.read()
    if kind in JPEGS and tail.rstrip(b"\0\r\n ").endswith(b"\xff\xd9"):
        return
    try:
        image = _open(file)
        (image.verify if kind == "PNG" and b"IEND" in tail[-12:] else image.load)()
    except Exception as error:
        raise DataError(f"is truncated or damaged ({error}); download or export it again") from None


def _jpeg(data: np.ndarray, high: int, wide: int) -> np.ndarray | None:
    """Return a JPEG's pixels, shrunk to no less than high x wide (0: whole); None where cv2 must do it."""
    if simplejpeg is None:
        return _look_by_ffmpeg(data)
    try:
        return simplejpeg.decode_jpeg(data, min_height=high, min_width=wide)
    except ValueError as error:
        if "Corrupt JPEG data" in str(error) and not _padded(str(error), data):
            raise DataError(f"is damaged ({error}); download or export it again") from None
        return _look_by_ffmpeg(data)                       # CMYK, 12 bits, a wrong marker inside


def _padded(said: str, data: np.ndarray) -> bool:
    """Return whether what is left over behind the last block is a few bytes, or one byte again and again.

    Cameras pad like that; rows of real data say that blocks before them were read wrongly.
    """
    found = re.search(r"(\d+) extraneous bytes before marker 0xd9", said)
    end = data.tobytes().rfind(b"\xff\xd9")
    return bool(found) and (int(found[1]) < 8 or len(np.unique(data[end - int(found[1]):end])) <= 1)


def _look_by_ffmpeg(data: np.ndarray) -> None:
    """Raise DataError for a JPEG in which FFmpeg finds damage."""
    with contextlib.suppress(ImportError):
        import av
        codec = av.CodecContext.create("mjpeg", "r")
        codec.options = {"err_detect": "explode"}
        try:
            codec.decode(av.Packet(data))
        except av.InvalidDataError:
            raise DataError("is damaged inside; download or export it again") from None
        except av.FFmpegError:                             # a kind of JPEG that it does not read
            return


def _decode_slowly(file: io.BufferedIOBase) -> np.ndarray:
    """Return the unrotated image uint8 [H, W, 3] RGB by Pillow, for what cv2 cannot read or reads wrongly."""
    try:
        image = _open(file)
        if image.mode == "I":                  # a PPM of 16 bits, its largest value scaled to 65535
            return np.repeat((np.asarray(image) >> 8).astype(np.uint8)[..., None], 3, 2)
        return np.asarray(image.convert("RGB"))
    except Exception as error:
        raise DataError(f"is not an image that can be decoded ({error}); "
                        "export it again as JPEG or PNG") from None
