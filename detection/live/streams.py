"""`--source` as live streams: cameras and addresses. Knows nothing of how they are read."""
from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from detection.sources import list_lines, unique_names
from utils.errors import DataError
from utils.redact import masked

SCHEMES = ("rtsp", "rtsps", "http", "https")
CAMERA = re.compile(r"\d+|/dev/(video\d+|v4l/.+)")
DIGITS = 9                         # of a camera's number at most: OpenCV takes it as an integer of 32 bits
ADDRESS = re.compile(r"(?i)[a-z][a-z0-9+.-]*://")
KNOWN = "a camera's number (0) or device (/dev/video0), or one of " + ", ".join(f"{s}://" for s in SCHEMES)


@dataclass(frozen=True)
class Stream:
    """One live stream: `source` as given, which may hold a password, and the `name` of its files."""

    source: str = field(repr=False)
    name: str

    @property
    def camera(self) -> bool:
        """Whether it is a device of this machine."""
        return not ADDRESS.match(self.source)

    @property
    def label(self) -> str:
        """How it is called in messages: without its password."""
        return f"camera {self.source}" if self.camera else masked(self.source)


def live_streams(source: str) -> tuple[Stream, ...]:
    """Return the live streams that `source`, or its list file, names: () for files. Raises DataError."""
    path = Path(source).expanduser()
    if CAMERA.fullmatch(source) and (source.startswith("/dev/") or not os.path.exists(source)) \
            or ADDRESS.match(source):
        return _streams([source])
    if path.suffix.lower() != ".txt" or not os.path.isfile(path):
        return ()
    lines = list_lines(path)
    files = [line for line in lines if not (CAMERA.fullmatch(line) or ADDRESS.match(line))]
    if len(files) == len(lines):
        return ()
    if files:
        raise DataError(f"--source {source}: the list names live streams and files ({masked(files[0])}): a "
                        "stream never ends, so the files would wait for ever or be late; make two lists")
    if len(set(lines)) < len(lines):
        twice = next(masked(line) for line in lines if lines.count(line) > 1)
        raise DataError(f"--source {source}: {twice} is listed twice; leave one out")
    return _streams(lines)


def _streams(sources: Sequence[str]) -> tuple[Stream, ...]:
    names = unique_names(tuple(Path(_name(source)) for source in sources))
    return tuple(Stream(source, name) for source, name in zip(sources, names))


def _name(source: str) -> str:
    """Return a file name that tells nothing secret: the camera, or host and port."""
    if source.isdigit() and len(source) > DIGITS:
        raise DataError(f"--source {source}: no camera has that number; give {KNOWN}")
    if not ADDRESS.match(source):
        return f"camera{int(source)}" if source.isdigit() else re.sub(r"\W+", "-", Path(source).name)
    if (scheme := source.split(":")[0].lower()) not in SCHEMES:
        raise DataError(f"--source {masked(source)}: {scheme}:// is not supported; give {KNOWN}")
    try:
        parts = urlsplit(source)
        host, port = parts.hostname, parts.port
    except ValueError:                                     # a port that is none
        host = port = None
    if not host:
        raise DataError(f"--source {masked(source)}: needs the form {scheme}://user:password@host:port/path; "
                        "in a password @ is written as %40, / as %2F, : as %3A")
    return re.sub(r"\W+", "-", f"{host}-{port}" if port else host).strip("-")
