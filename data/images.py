"""Picture files to arrays: one decoder for training, evaluation and detection, which never returns a
half-read picture.

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
# Only what both libraries read safely: Pillow would start Ghostscript for an EPS file that calls itself .jpg
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF", "PPM", "JPEG2000")    # JPEG brings MPO along
TAIL = 64                          # bytes at a file's end that must hold its closing mark


class Inspection(NamedTuple):
    """A picture file without its pixels: size in px after EXIF rotation, EXIF orientation 1..8, what is wrong
    ("": nothing)."""

    width: int
    height: int
    orientation: int
    problem: str


def decode(path: str | Path, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """The picture uint8 [H, W, 3] RGB, EXIF rotation applied.

    Raises DataError, naming the file, when it is empty, not a picture, truncated, or claims more than
    `max_pixels`.
    """
    try:
        data = np.fromfile(path, np.uint8)     # any file name works; cv2.imread needs the system's code page
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); "
                        "check the path and its permissions") from None
    return decode_bytes(data, str(path), max_pixels)


def decode_bytes(data: np.ndarray, name: str, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """The picture uint8 [H, W, 3] RGB of a file's bytes, uint8 [n]; as `decode`, which calls it `name`."""
    try:
        width, height, orientation, kind = _header(io.BytesIO(data), max_pixels)
        _check(kind, io.BytesIO(data), bytes(data[-TAIL:]))
    except DataError as error:
        raise DataError(f"{name}: {error}") from None
    pixels = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    if pixels is None:
        pixels = _decode_slowly(name, data)
    return turn(pixels, orientation)


def inspect(path: str | Path, max_pixels: int = MAX_PIXELS) -> Inspection:
    """Size, orientation and problem of a file; never raises. A JPEG costs its header and last bytes."""
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
    """One Inspection a path, by a thread pool.

    `memo` names a JSON file (in the run folder, never in the data set) that remembers results by path, time
    and size, so that a resumed run opens no file twice.
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
    """The picture [H, W, ...] as EXIF orientation 1..8 wants it shown."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def turn_boxes(boxes: np.ndarray, orientation: int, width: int | np.ndarray,
               height: int | np.ndarray) -> np.ndarray:
    """Boxes [n, 4] (xyxy px) of the unrotated picture in px of the rotated one.

    `width` and `height` are the rotated picture's, numbers or one a box [n, 1].
    """
    x, y = boxes[:, 0::2], boxes[:, 1::2]
    if orientation in (5, 6, 7, 8):
        x, y = y, x
    if orientation in (3, 4, 7, 8):
        y = height - y[:, ::-1]
    if orientation in (2, 3, 6, 7):
        x = width - x[:, ::-1]
    return np.stack((x[:, 0], y[:, 0], x[:, 1], y[:, 1]), 1)


def _header(file: io.BufferedIOBase, max_pixels: int) -> tuple[int, int, int, str]:
    """Width, height (rotated), orientation, format, from the first bytes; DataError without the name."""
    from PIL import Image
    if not file.read(1):
        raise DataError("is empty (0 bytes); download or export it again")
    file.seek(0)
    try:
        picture = Image.open(file, formats=FORMATS)
    except Image.DecompressionBombError:
        raise DataError(f"claims more than 178 million pixels, above the limit of {max_pixels:,}") from None
    except Exception as error:       # plugins raise many types on hostile bytes: SyntaxError, struct.error
        reason = "" if isinstance(error, Image.UnidentifiedImageError) else f" ({error})"
        raise DataError(f"is not a picture that can be read{reason}; "
                        "needs JPEG, PNG, BMP, WebP, TIFF or GIF") from None
    if (pixels := picture.width * picture.height) > max_pixels:
        raise DataError(f"claims {picture.width}x{picture.height} = {pixels:,} pixels, above the limit of "
                        f"{max_pixels:,}; raise --max-pixels if that is right")
    if picture.mode in ("I", "F"):
        raise DataError("has 32 bits a channel; convert it to 8 or 16 bits")
    orientation = _orientation(picture)
    width, height = picture.size if orientation < 5 else picture.size[::-1]
    return width, height, orientation, picture.format


def _orientation(picture: Any) -> int:
    """The EXIF orientation 1..8 of an opened Pillow picture; 1 where it has none or nonsense."""
    from PIL import Image
    try:
        # the base class's method: PNG's own would decode the whole picture to look for EXIF behind its pixels
        value = Image.Image.getexif(picture).get(0x0112, 1)
    except Exception:
        return 1
    return value if value in range(1, 9) else 1


def _check(kind: str, file: io.BufferedIOBase, tail: bytes) -> None:
    """Raises DataError for missing or damaged pixels, where cv2 would return grey or garbage without a word.

    A JPEG that ends with its closing mark passes; a PNG's check sums are computed; Pillow decodes all else.
    """
    from PIL import Image
    if kind in ("JPEG", "MPO") and tail.rstrip(b"\0\r\n ").endswith(b"\xff\xd9"):
        return
    try:
        picture = Image.open(file, formats=FORMATS)
        if kind == "PNG" and b"IEND" in tail[-12:]:
            picture.verify()
        else:
            picture.load()
    except Exception as error:
        raise DataError(f"is truncated or damaged ({error}); download or export it again") from None


def _decode_slowly(path: str | Path, data: np.ndarray) -> np.ndarray:
    """The picture uint8 [H, W, 3] RGB, unrotated, by Pillow, for what cv2 was built without."""
    from PIL import Image
    try:
        return np.asarray(Image.open(io.BytesIO(data), formats=FORMATS).convert("RGB"))
    except Exception as error:
        raise DataError(f"{path}: is not a picture that can be decoded ({error}); "
                        "export it again as JPEG or PNG") from None


def _stamp(path: Path) -> list[int] | None:
    """Change time in ns and size of a file; None where it is missing."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return [status.st_mtime_ns, status.st_size]


def _read_memo(memo: Path | None, max_pixels: int) -> dict[str, tuple[list[int] | None, Inspection]]:
    """What an earlier run found, by path; empty when it used another limit or the file cannot be read."""
    if memo is None:
        return {}
    try:
        content = json.loads(memo.read_text(encoding="utf-8"))
        if content["max_pixels"] != max_pixels:
            return {}
        return {path: (stamp, Inspection(*found)) for path, (stamp, found) in content["files"].items()}
    except (OSError, ValueError, TypeError, KeyError):
        return {}
