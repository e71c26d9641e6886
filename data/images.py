"""Image files to arrays: one decoder for training, evaluation and detection, never half an image.

Conversions, the same everywhere: EXIF rotation applied, grey repeated to three channels, alpha dropped (the
colour beneath stays), 16 bits scaled to 8, CMYK converted, the first frame of several.
"""
from __future__ import annotations

import io
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from utils.errors import DataError

MAX_PIXELS = 100_000_000
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
# Only what both libraries read safely: Pillow would start Ghostscript for an EPS file that calls itself .jpg
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF", "PPM", "JPEG2000")    # JPEG brings MPO along
TAIL = 64                          # bytes at a file's end that must hold its closing mark


class Inspection(NamedTuple):
    """An image file without its pixels: size in px as decoded, EXIF orientation 1..8, problem ("": none)."""

    width: int
    height: int
    orientation: int
    problem: str


def decode(path: str | Path, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Return the image uint8 [H, W, 3] RGB, EXIF rotation applied.

    Raises DataError, naming the file, when it is empty, no image, truncated or above `max_pixels`.
    """
    try:
        data = np.fromfile(path, np.uint8)     # any file name works; cv2.imread needs the system's code page
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); "
                        "check the path and its permissions") from None
    return decode_bytes(data, str(path), max_pixels)


def decode_bytes(data: np.ndarray, name: str, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Return the image uint8 [H, W, 3] RGB of a file's bytes uint8 [n]; errors call it `name`."""
    try:
        width, height, orientation, kind = _header(io.BytesIO(data), max_pixels)
        _check(kind, io.BytesIO(data), bytes(data[-TAIL:]))
    except DataError as error:
        raise DataError(f"{name}: {error}") from None
    pixels = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    return turn(_decode_slowly(name, data) if pixels is None else pixels, orientation)


def inspect(path: str | Path, max_pixels: int = MAX_PIXELS) -> Inspection:
    """Return size, orientation and problem of a file; never raise. A JPEG costs its header and last bytes."""
    try:
        with open(path, "rb") as file:
            width, height, orientation, kind = _header(file, max_pixels)
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL))
            tail = file.read()
            file.seek(0)
            _check(kind, file, tail)
    except DataError as error:
        return Inspection(0, 0, 1, str(error))
    except OSError as error:
        return Inspection(0, 0, 1, f"cannot be read ({error.strerror or error})")
    return Inspection(width, height, orientation, "")


def inspect_all(paths: Sequence[Path], max_pixels: int = MAX_PIXELS, memo: Path | None = None,
                threads: int = 8) -> list[Inspection]:
    """Return one Inspection per path, by a thread pool.

    `memo`, a JSON file in the run folder, remembers results by path, time and size for a resumed run.
    """
    known = _read_memo(memo, max_pixels)
    stamps = [_stamp(path) for path in paths]
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


def _header(file: io.BufferedIOBase, max_pixels: int) -> tuple[int, int, int, str]:
    """Return width and height (rotated), orientation and format; raise DataError without the file's name."""
    from PIL import Image
    if not file.read(1):
        raise DataError("is empty (0 bytes); download or export it again")
    file.seek(0)
    try:
        image = Image.open(file, formats=FORMATS)
    except Image.DecompressionBombError:
        raise DataError(f"claims more than 178 million pixels, above the limit of {max_pixels:,}") from None
    except Exception as error:       # plugins raise many types on hostile bytes: SyntaxError, struct.error
        reason = "" if isinstance(error, Image.UnidentifiedImageError) else f" ({error})"
        raise DataError(f"is not an image that can be read{reason}; "
                        "needs JPEG, PNG, BMP, WebP, TIFF or GIF") from None
    if (pixels := image.width * image.height) > max_pixels:
        raise DataError(f"claims {image.width}x{image.height} = {pixels:,} pixels, above the limit of "
                        f"{max_pixels:,}; raise --max-pixels if that is right")
    if image.mode in ("I", "F"):
        raise DataError("has 32 bits a channel; convert it to 8 or 16 bits")
    orientation = _orientation(image)
    width, height = image.size if orientation < 5 else image.size[::-1]
    return width, height, orientation, image.format


def _orientation(image: Any) -> int:
    """Return the EXIF orientation 1..8 of an opened Pillow image; 1 where it has none or nonsense."""
    from PIL import Image
    try:
        # the base class's method: PNG's own would decode the whole image to look for EXIF behind its pixels
        value = Image.Image.getexif(image).get(0x0112, 1)
    except Exception:
        return 1
    return value if value in range(1, 9) else 1


def _check(kind: str, file: io.BufferedIOBase, tail: bytes) -> None:
    """Raise DataError for missing or damaged pixels, where cv2 would return grey or garbage without a word.

    A JPEG that ends with its closing mark passes; a PNG's check sums are computed; Pillow decodes all else.
    """
    from PIL import Image
    if kind in ("JPEG", "MPO") and tail.rstrip(b"\0\r\n ").endswith(b"\xff\xd9"):
        return
    try:
        image = Image.open(file, formats=FORMATS)
        if kind == "PNG" and b"IEND" in tail[-12:]:
            image.verify()
        else:
            image.load()
    except Exception as error:
        raise DataError(f"is truncated or damaged ({error}); download or export it again") from None


def _decode_slowly(name: str, data: np.ndarray) -> np.ndarray:
    """Return the unrotated image uint8 [H, W, 3] RGB by Pillow, for what cv2 was built without."""
    from PIL import Image
    try:
        return np.asarray(Image.open(io.BytesIO(data), formats=FORMATS).convert("RGB"))
    except Exception as error:
        raise DataError(f"{name}: is not an image that can be decoded ({error}); "
                        "export it again as JPEG or PNG") from None


def _stamp(path: Path) -> list[int] | None:
    """Return change time in ns and size of a file; None where it is missing."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return [status.st_mtime_ns, status.st_size]


def _read_memo(memo: Path | None, max_pixels: int) -> dict[str, tuple[list[int] | None, Inspection]]:
    """Return an earlier run's results by path; none when it used another limit or cannot be read."""
    try:
        content = json.loads(memo.read_text(encoding="utf-8")) if memo else {"max_pixels": None}
        if content["max_pixels"] != max_pixels:
            return {}
        return {path: (stamp, Inspection(*found)) for path, (stamp, found) in content["files"].items()}
    except (OSError, ValueError, TypeError, KeyError):
        return {}
