"""A live stream opened, with time limits, and why one could not be."""
from __future__ import annotations

import math
import os
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import SplitResult, urlsplit, urlunsplit

from detection.live.streams import Stream
from detection.video import decoded, rate_of, upright

if TYPE_CHECKING:
    import numpy as np

PORTS = {"rtsp": 554, "rtsps": 322, "http": 80, "https": 443}
ASK = 3.0                          # seconds for finding out why an address could not be opened
WORDS = {"401": "refuses the user name and password, or has no such stream (401)", "403": "forbids it (403)",
         "404": "knows no such stream (404)"}


@dataclass(frozen=True)
class Limits:
    """Seconds that opening a stream, and waiting for its next frame, may take."""

    opening: float = 30.0
    reading: float = 10.0


@dataclass(frozen=True)
class Refusal:
    """Why a stream could not be opened, in words; `final`: trying again is of no use."""

    reason: str
    final: bool = False


class Capture(Protocol):
    """What is asked of an opened stream: OpenCV's VideoCapture, `Address`, or a test's frames."""

    def read(self) -> "tuple[bool, np.ndarray | None]":
        """Return whether there was a next frame, and it: uint8 [H, W, 3] BGR."""

    def get(self, prop: int) -> float:
        """Return a property by OpenCV's number."""

    def release(self) -> None:
        """Close the stream."""


class Address:
    """An address opened by FFmpeg through PyAV. Raises av.FFmpegError where it cannot be.

    Decoding takes one thread: more would each hold back a frame. A damaged frame is passed over. HLS comes in
    segments of some seconds; its frames are given at the pace of their own times.
    """

    def __init__(self, address: str, limits: Limits) -> None:
        import av
        av.logging.set_level(None)                         # what FFmpeg says may hold the password
        options = {"rtsp_transport": "tcp", "analyzeduration": "500000"}   # us: few old frames come first
        self._container = av.open(address, timeout=(limits.opening, limits.reading),
                                  metadata_errors="replace",
                                  options=options if address.lower().startswith("rtsp") else {})
        self._stream = self._container.streams.best("video")
        if self._stream is None:
            raise av.StreamNotFoundError(0, "no video")
        self._stream.codec_context.thread_count = 1
        self._stream.codec_context.flags |= av.codec.context.Flags.low_delay
        self._length = self._stream.frames or (self._container.duration or 0) / 1e6 * rate_of(self._stream)
        self._frames = decoded(self._container, self._stream, whole=self._length > 0)
        self._seconds, self._limit = 0.0, limits.reading
        self._origin = -math.inf if "hls" in self._container.format.name else None

    def read(self) -> "tuple[bool, np.ndarray | None]":
        """Return whether there was a next frame, and it: uint8 [H, W, 3] BGR."""
        import av
        try:
            frame = next(self._frames, None)
        except (av.FFmpegError, OSError):
            frame = None
        if frame is None:
            return False, None
        self._seconds = frame.time or 0.0
        if self._origin is not None:
            self._pace()
        return True, upright(frame, "bgr24")

    def _pace(self) -> None:
        """Wait until the frame is due; a late one moves what follows, and so does a leap of its clock."""
        wait = self._origin + self._seconds - time.monotonic()
        if 0 <= wait < self._limit / 2:
            time.sleep(wait)
        else:
            self._origin = time.monotonic() - self._seconds

    def get(self, prop: int) -> float:
        """Return a property by OpenCV's number: rate, number of frames (0: unknown), or time in ms."""
        import cv2
        return {cv2.CAP_PROP_FPS: rate_of(self._stream), cv2.CAP_PROP_FRAME_COUNT: self._length,
                cv2.CAP_PROP_POS_MSEC: 1000 * self._seconds}[prop]

    def release(self) -> None:
        """Close the stream."""
        self._frames.close()
        self._container.close()


def open_capture(stream: Stream, limits: Limits) -> Capture | None:
    """Open the stream, or return None; `why_not` says what was amiss. OpenCV reads cameras."""
    if not stream.camera:
        import av
        try:
            return Address(stream.source, limits)
        except (av.FFmpegError, OSError):
            return None
    os.environ.setdefault("OPENCV_VIDEOIO_V4L_SELECT_TIMEOUT", str(max(1, round(limits.reading))))
    import cv2
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    name = int(stream.source) if stream.source.isdigit() else stream.source
    capture = cv2.VideoCapture(name, cv2.CAP_V4L2 if sys.platform == "linux" else cv2.CAP_ANY)
    return capture if capture.isOpened() else None


def why_not(stream: Stream, limits: Limits) -> Refusal:
    """Find out why the stream could not be opened, by a look at the device or a question to the server."""
    return _why_no_camera(stream) if stream.camera else _why_no_answer(stream.source, limits)


def _why_no_camera(stream: Stream) -> Refusal:
    if sys.platform != "linux":
        return Refusal("cannot be opened; is it plugged in, and free?")
    device = Path(stream.device)
    if not device.exists():
        others = sorted(str(path) for path in Path("/dev").glob("video*"))
        return Refusal(f"there is no {device} (cameras here: {', '.join(others) or 'none'})", final=True)
    if not os.access(device, os.R_OK | os.W_OK):
        return Refusal(f"{device} may not be opened by this user; on most systems: "
                       "sudo usermod -aG video $USER, and log in again", final=True)
    if others := _holders(device):
        return Refusal(f"{device} is busy: in use by {others}; end that program, or choose another camera")
    return Refusal(f"{device} gives no images; it may be busy, or be no camera that takes images")


def _holders(device: Path) -> str:
    """Return the other processes that have the device open, as far as this user may see them."""
    found = {}
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if os.path.samefile(link, device) and link.parts[2] != str(os.getpid()):
                name = (link.parent.parent / "comm").read_text().strip()
                found[f"{name} (process {link.parts[2]})"] = None
        except OSError:                                    # it ended meanwhile, or is another user's
            continue
    return ", ".join(found)


def _why_no_answer(source: str, limits: Limits) -> Refusal:
    parts = urlsplit(source)
    scheme, host = parts.scheme.lower(), parts.hostname
    port, patience = parts.port or PORTS[scheme], min(ASK, limits.opening)
    try:
        with socket.create_connection((host, port), patience) as line:
            return _answer(line, parts, patience) if scheme in ("rtsp", "http") else Refusal(
                f"answers at port {port}, but no video could be opened there")
    except socket.gaierror:
        return Refusal(f"the host name {host} is not known here")
    except TimeoutError:
        return Refusal(f"does not answer at port {port}")
    except ConnectionRefusedError:
        return Refusal(f"refuses the connection at port {port}; is the server running?")
    except OSError as error:
        return Refusal(f"cannot be reached at port {port}: {error.strerror or 'no connection'}")


def _answer(line: socket.socket, parts: SplitResult, patience: float) -> Refusal:
    """Return what the server says when the stream is asked for without a password."""
    place, scheme = parts.netloc.rpartition("@")[2], parts.scheme.lower()
    if scheme == "rtsp":
        words = f"DESCRIBE {urlunsplit(('rtsp', place, *parts[2:]))} RTSP/1.0\r\nCSeq: 1"
    else:
        words = f"GET {urlunsplit(('', '', *parts[2:4], '')) or '/'} HTTP/1.0\r\nHost: {place}"
    line.settimeout(patience)
    try:
        line.sendall(f"{words}\r\n\r\n".encode())
        reply = line.recv(64).decode("latin-1").split()
    except TimeoutError:
        return Refusal("takes the connection and sends nothing")
    except OSError:
        reply = []
    if len(reply) < 2 or not reply[1].isdigit():
        return Refusal(f"does not speak {scheme} at port {parts.port or PORTS[scheme]}")
    if reply[1] == "401" and not parts.username:
        return Refusal("asks for a user name and password (401): scheme://user:password@...", final=True)
    if reply[1].startswith("2"):
        return Refusal("answers, but sends no video that could be read")
    return Refusal(WORDS.get(reply[1], f"answers with code {reply[1]}"))
