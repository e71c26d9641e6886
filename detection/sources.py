"""`--source` as frames with names: an image, a folder, a glob, a list file or a video; no network here."""
from __future__ import annotations

import glob
import os
import re
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from detection.video import Frame, probe, read
from utils.errors import DataError
from utils.redact import masked

IMAGES = frozenset(".jpg .jpeg .jpe .jfif .png .bmp .webp .tif .tiff .gif .jp2 .ppm .pgm".split())
VIDEOS = frozenset(".mp4 .avi .mov .mkv .webm .m4v .mpg .mpeg .wmv .ts".split())
KNOWN = f"images ({' '.join(sorted(IMAGES))}) and videos ({' '.join(sorted(VIDEOS))})"


@dataclass
class Source:
    """Frames of some files, in order; iterate it once or more often. `kind` is "image", "video" or "files".

    A file that cannot be read is left out when it is one of several, and listed in `faults` as (path, reason)
    while iterating; DataError is raised where none can be read. `total` is the number of frames expected (0:
    unknown).
    """

    text: str
    kind: str
    paths: tuple[Path, ...]
    max_pixels: int
    total: int
    faults: list[tuple[Path, str]] = field(default_factory=list)

    def __iter__(self) -> Iterator[Frame]:
        self.faults.clear()
        empty = True
        for path, name in zip(self.paths, unique_names(self.paths)):
            try:
                amiss = yield from _frames(path, name, self.max_pixels)
                empty = False
            except (DataError, OSError) as error:
                amiss = str(error)
            if amiss:
                self.faults.append((path, amiss))
        if empty:
            path, reason = self.faults[0]
            others = len(self.paths) - 1
            more = f" (and {others} more, none of which can be read)" if others else ""
            shown = masked(str(path))                      # a line of a list may be a mistyped address
            raise DataError(f"{reason}{more}" if shown in reason else f"{shown}: {reason}{more}")


def open_source(source: str, max_pixels: int = 100_000_000) -> Source:
    """Return the frames that `source` names: the path of an image, video, folder or list file, or a glob.

    A folder is not searched below its first level; its files come in natural order (2 before 10), as do a
    glob's; a list file keeps its own order, and its paths count from its folder. Raises DataError.
    """
    live = re.match(r"(?i)^([a-z][a-z0-9+.-]+)://|^\d+$|^/dev/video", source)
    if live and not os.path.exists(source):
        raise DataError(f"--source {masked(source)}: live sources (cameras, streams) are for detect.py only; "
                        "give an image, a folder, a glob, a list file (.txt) or a video file")
    path = Path(source).expanduser()
    if os.path.isdir(path):                                # unlike Path.is_dir, no error for a name too long
        found = sorted(path.iterdir(), key=natural)
        return _several(source, found, f"the folder {path} (its first level)", max_pixels)
    if os.path.isfile(path):
        if path.suffix.lower() == ".txt":
            paths = [path.parent / Path(name).expanduser() for name in list_lines(path)]
            return _several(source, paths, f"the list file {path}", max_pixels, filtered=False)
        return _single(source, path, max_pixels)
    if glob.has_magic(source):
        found = sorted((Path(name) for name in glob.glob(str(path), recursive=True)), key=natural)
        return _several(source, found, f"the pattern {masked(source)}", max_pixels)
    tried = masked(str(path.absolute()))
    raise DataError(f"--source {masked(source)}: no such file or folder (tried {tried}); give an image, "
                    f"a folder, a glob in quotes, a list file (.txt) or a video; supported are {KNOWN}")


def natural(path: Path) -> tuple:
    """Return a sorting key: img2 comes before img10, and upper case beside lower case."""
    parts = [part for part in re.split(r"(\d+)", str(path)) if part]
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part.lower()) for part in parts], str(path)


def unique_names(paths: tuple[Path, ...]) -> list[str]:
    """Return file names without folders, no stem twice: a second a.png or a.jpg becomes a_2.png, a_2.jpg."""
    taken: set[str] = set()
    out = []
    for path in paths:
        stem, number = path.stem, 1
        while stem.lower() in taken:                       # some file systems do not tell A from a
            number += 1
            stem = f"{path.stem}_{number}"
        taken.add(stem.lower())
        out.append(stem + path.suffix)
    return out


def list_lines(path: Path) -> list[str]:
    """Return the lines of a list file in its order, without empty ones and comments (#)."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"--source {path}: the list file is not UTF-8 text (byte {error.start}); "
                        "write one path a line") from error
    return [line for line in map(str.strip, lines) if line and not line.startswith("#")]


def _single(source: str, path: Path, max_pixels: int) -> Source:
    if path.suffix.lower() in VIDEOS:
        return Source(source, "video", (path,), max_pixels, probe(path).frames)
    if path.suffix.lower() in IMAGES:
        return Source(source, "image", (path,), max_pixels, 1)
    what = path.suffix or "a file without suffix"
    raise DataError(f"--source {masked(source)}: {what} is not supported; supported are {KNOWN}")


def _several(source: str, found: list[Path], what: str, max_pixels: int, filtered: bool = True) -> Source:
    """Return the source of many files; `filtered` leaves out what is no image or video by its suffix."""
    known = IMAGES | VIDEOS
    paths = tuple(path for path in found if not filtered or path.suffix.lower() in known and path.is_file())
    if not paths:
        others = sorted({path.suffix.lower() or "no suffix" for path in found if path.is_file()})
        seen = f"; files there have {', '.join(others[:8])}" if others else ""
        raise DataError(f"--source {masked(source)}: {what} names no image or video ({len(found)} entries"
                        f"{seen}); supported are {KNOWN}")
    videos = [path for path in paths if path.suffix.lower() in VIDEOS]
    total = len(paths) - len(videos)
    for path in videos:
        try:
            total += probe(path).frames
        except DataError:
            continue                                       # it is reported when its turn comes
    return Source(source, "files", paths, max_pixels, total)


def _frames(path: Path, name: str, max_pixels: int) -> Generator[Frame, None, str]:
    """Yield the frames of one file and return what was amiss ("": nothing). Raises DataError."""
    if not path.is_file():
        raise DataError(f"{masked(str(path))}: no such file")
    if path.suffix.lower() in VIDEOS:
        info, count, bad = probe(path, max_pixels), 0, []
        for count, (image, seconds) in enumerate(read(path, max_pixels, bad.append), 1):
            yield Frame(name, path, image, count - 1, info, seconds=seconds)
        damaged = f"{len(bad)} damaged frames, the first at {bad[0]:.2f} s; " if bad else ""
        if damaged or count < 0.98 * info.frames - 1:      # containers err by a frame or two
            return f"{path}: {damaged}only {count} of {info.frames or 'more'} frames could be read"
        return ""
    if path.suffix.lower() not in IMAGES:
        raise DataError(f"{path}: not supported by its suffix; supported are {KNOWN}")
    from data.images import decode
    yield Frame(name, path, decode(path, max_pixels), 0, None)
    return ""
