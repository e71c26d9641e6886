"""`--source` as frames with names: an image, a folder, a glob, a list file or a video; no network here."""
from __future__ import annotations

import glob
import os
import re
from collections.abc import Generator, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from detection.video import Frame, VideoInfo, probe, read
from utils.errors import DataError
from utils.redact import masked

MOVING = frozenset(".gif .webp .apng .avif .heic .heif".split())       # one image or several, read by Pillow
IMAGES = MOVING | frozenset(".jpg .jpeg .jpe .jfif .png .bmp .tif .tiff .jp2 .ppm .pgm".split())
VIDEOS = frozenset(".mp4 .avi .mov .mkv .webm .m4v .mpg .mpeg .wmv .ts .mts .m2ts .m2v .3gp .3g2 .asf .flv "
                   ".mjpeg .mjpg .mxf .ogv .vob .qt".split())
TEXTS = frozenset(".txt .json .xml .csv .yaml .yml .md .html .log .ini .db".split())   # no wonder in a folder
LARGEST = 2 ** 30                  # bytes of an image file
SHOWN = 50                         # files of which an error that ends all still says why
ROOM = 200                         # bytes of a name; results add to it, and 255 is what file systems take
HEIF = find_spec("pillow_heif") is not None
if not HEIF:
    IMAGES -= {".heic", ".heif"}
KNOWN = f"images ({' '.join(sorted(IMAGES))}) and videos ({' '.join(sorted(VIDEOS))})"


@dataclass
class Source:
    """Frames of some files, in order; iterate it once or more often. `kind` is "image", "video" or "files".

    Files that cannot be read are listed in `faults` as (path, reason) behind the `others` of a folder, which
    have other suffixes; where none can be read, DataError is raised. `total`: frames expected (0: unknown).
    `side`: of the input in px, for which large JPEGs may be read smaller (0: all are read whole).
    """

    kind: str
    paths: tuple[Path, ...]
    max_pixels: int
    total: int
    others: tuple[tuple[Path, str], ...] = ()
    faults: list[tuple[Path, str]] = field(default_factory=list)
    side: int = 0

    def __iter__(self) -> Iterator[Frame]:
        self.faults[:] = self.others
        empty = True
        for path, name in zip(self.paths, unique_names(self.paths)):
            try:
                amiss = yield from _frames(path, name, self.max_pixels, self.side)
                empty = False
            except (DataError, OSError) as error:
                amiss = str(error)
            except MemoryError:
                amiss = f"{path}: there is not enough memory for it"
            if amiss:
                self.faults.append((path, printable(amiss)))
        if empty:
            path, reason = self.faults.pop(len(self.others))
            more = f" (and {len(self.paths) - 1} more, none of which can be read)" * (len(self.paths) > 1)
            more += "".join(f"\nleft out: {other}" for _, other in self.faults[:SHOWN])
            shown = masked(str(path))                      # a line of a list may be a mistyped address
            raise DataError(f"{reason}{more}" if shown in reason else f"{shown}: {reason}{more}")


def open_source(source: str, max_pixels: int = 100_000_000) -> Source:
    """Return the frames that `source` names: the path of an image, video, folder or list file, or a glob.

    Paths in a list file count from its folder. Raises DataError.
    """
    live = re.match(r"(?i)^([a-z][a-z0-9+.-]+)://|^\d+$|^/dev/video", source)
    if live and not os.path.exists(source):
        raise DataError(f"--source {masked(source)}: live sources (cameras, streams) are for detect.py only; "
                        "give an image, a folder, a glob, a list file (.txt) or a video file")
    path = Path(source).expanduser()
    if os.path.isdir(path):                                # unlike Path.is_dir, no error for a name too long
        return _several(source, path.iterdir(), f"the folder {path} (its first level)", max_pixels)
    if os.path.isfile(path):
        if path.suffix.lower() == ".txt":
            paths = [path.parent / Path(name).expanduser() for name in list_lines(path)]
            return _several(source, paths, f"the list file {path}", max_pixels, listed=True)
        if path.suffix.lower() not in IMAGES | VIDEOS:
            raise DataError(f"--source {masked(source)}: {_unsupported(path)}; supported are {KNOWN}")
        total = _length(path, max_pixels)
        moves = path.suffix.lower() in VIDEOS or total > 1
        return Source("video" if moves else "image", (path,), max_pixels, total)
    if glob.has_magic(source):
        found = map(Path, glob.glob(str(path), recursive=True))
        return _several(source, found, f"the pattern {masked(source)}", max_pixels)
    tried = masked(str(path.absolute()))
    raise DataError(f"--source {masked(source)}: no such file or folder (tried {tried}); give an image, "
                    f"a folder, a glob in quotes, a list file (.txt) or a video; supported are {KNOWN}")


def natural(path: Path) -> tuple:
    """Return a sorting key: img2 comes before img10, and upper case beside lower case."""
    parts = [part for part in re.split(r"(\d+)", str(path)) if part]
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part.lower()) for part in parts], str(path)


def unique_names(paths: tuple[Path, ...]) -> list[str]:
    """Return names for files' results, no stem twice (a_2.png) nor a video frame's (clip_000001)."""
    films = [path.suffix.lower() in VIDEOS | MOVING for path in paths]
    taken: dict[str, bool] = {}                            # stem, lower case -> whether it has frames
    last: dict[str, int] = {}                              # what is taken below it stays taken
    out = [""] * len(paths)
    for at in sorted(range(len(paths)), key=lambda at: not films[at]):
        base = printable(paths[at].stem).encode()[:ROOM].decode(errors="ignore")
        number = last.get(base.lower(), 1)
        stem = base if number == 1 else f"{base}_{number}"
        while stem.lower() in taken or not films[at] and taken.get(re.sub(r"_\d{6,}$", "", stem.lower())):
            number += 1                                    # some file systems do not tell A from a
            stem = f"{base}_{number}"
        taken[stem.lower()], last[base.lower()] = films[at], number
        out[at] = stem + paths[at].suffix
    return out


def printable(text: str) -> str:
    """Return the text with what is no Unicode, or would steer a terminal, replaced."""
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def list_lines(path: Path) -> list[str]:
    """Return the lines of a list file in its order, without empty ones and comments (#)."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"--source {path}: the list file is not UTF-8 text (byte {error.start}); "
                        "write one path a line") from error
    return [line for line in map(str.strip, lines) if line and not line.startswith("#")]


def _length(path: Path, max_pixels: int) -> int:
    """Return how many frames a video (0: unknown) or image file holds; 1 of an image that cannot tell."""
    if path.suffix.lower() in VIDEOS:
        return probe(path, max_pixels).frames
    if path.suffix.lower() in MOVING and path.is_file():   # a pipe would never open
        with suppress(Exception), _open_pillow(path) as file:      # Pillow raises many; decoding will say why
            return getattr(file, "n_frames", 1)
    return 1


def _unsupported(path: Path) -> str:
    more = ": pip install pillow-heif" if path.suffix.lower() in MOVING else ""
    return f"{path.suffix or 'a file without suffix'} is not supported{more}"


def _several(source: str, found: Iterable[Path], what: str, max_pixels: int, listed: bool = False) -> Source:
    """Return the source of many files: `listed` ones as they are, else images and videos in natural order."""
    found = list(found) if listed else sorted(found, key=natural)
    paths = tuple(path for path in found
                  if listed or path.suffix.lower() in IMAGES | VIDEOS and not path.is_dir())
    if not paths:
        others = sorted({path.suffix.lower() or "no suffix" for path in found if path.is_file()})
        seen = f"; files there have {', '.join(others[:8])}" if others else ""
        raise DataError(f"--source {masked(source)}: {what} names no image or video ({len(found)} entries"
                        f"{seen}); supported are {KNOWN}")
    total = 0
    for path in paths:
        with suppress(DataError, OSError):                 # it is reported when its turn comes
            total += _length(path, max_pixels)
    others: dict[str, list[Path]] = {}
    for path in sorted(set(found).difference(paths)):
        if path.is_file() and path.name[0] != "." and path.suffix.lower() not in TEXTS:
            others.setdefault(path.suffix.lower(), []).append(path)
    left = tuple((first, printable(f"{first}{f' and {len(more)} more' * bool(more)}: {_unsupported(first)}"))
                 for first, *more in others.values())
    return Source("files", paths, max_pixels, total, left)


def _frames(path: Path, name: str, max_pixels: int, side: int = 0) -> Generator[Frame, None, str]:
    """Yield the frames of one file and return what was amiss ("": nothing). Raises DataError."""
    if not path.is_file():
        raise DataError(f"{masked(str(path))}: no such file"
                        + " but a pipe, a device or a broken link" * os.path.lexists(path))
    if path.suffix.lower() in VIDEOS:
        info, count, seconds, bad = probe(path, max_pixels), 0, 0.0, []
        for count, (image, seconds) in enumerate(read(path, max_pixels, bad.append), 1):
            yield Frame(name, path, image, count - 1, info, seconds=seconds)
        damaged = f"{len(bad)} damaged frames, the first at {min(bad):.2f} s; " if bad else ""
        got = count if info.counted else info.fps * seconds + 1        # its rate may vary
        if damaged or got < 0.98 * info.frames - 1:        # containers err by a frame or two
            return f"{path}: {damaged}only {count} of {info.frames or 'more'} frames could be read"
        return ""
    if path.suffix.lower() not in IMAGES:
        raise DataError(f"{path}: {_unsupported(path)}; supported are {KNOWN}")
    if (size := path.stat().st_size) > LARGEST:
        raise DataError(f"{path}: has {size / 2 ** 30:.1f} GiB, above the limit of {LARGEST / 2 ** 30:.0f}")
    if path.suffix.lower() in (".avif", ".heic", ".heif") or _length(path, max_pixels) > 1:
        return (yield from _pillow_frames(path, name, max_pixels))
    from data.images import decode_small
    image, size = decode_small(path, side, max_pixels)
    yield Frame(name, path, image, 0, None, whole=size)
    return ""


def _open_pillow(path: Path) -> Image.Image:
    if HEIF:
        import pillow_heif
        pillow_heif.register_heif_opener()
    return Image.open(path, formats=("GIF", "WEBP", "PNG", "AVIF", *["HEIF"] * HEIF))


def _pillow_frames(path: Path, name: str, max_pixels: int) -> Generator[Frame, None, str]:
    """Yield the frames of an image or animation with their times, as `_frames` does."""
    index, seconds = 0, 0.0
    try:
        with _open_pillow(path) as file:
            count, info = getattr(file, "n_frames", 1), None
            if file.width * file.height > max_pixels:
                raise DataError(f"{path}: claims {file.width}x{file.height} pixels, above the limit of "
                                f"{max_pixels:,}; raise --max-pixels if that is right")
            for index in range(count):
                file.seek(index)
                image = np.asarray(ImageOps.exif_transpose(file).convert("RGB"))
                step = (file.info.get("duration") or 100) / 1000       # browsers show 0 as 100 ms
                if count > 1:
                    info = info or VideoInfo(1 / step, count, *image.shape[1::-1])
                yield Frame(name, path, image, index, info, seconds=seconds)
                seconds += step
        return ""
    except DataError:
        raise
    except Exception as error:                             # Pillow raises many types
        if index:
            return f"{path}: only {index} of {count} frames could be read ({error})"
        raise DataError(f"{path}: cannot be read ({error}); export it again") from None
