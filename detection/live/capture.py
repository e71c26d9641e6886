"""A live stream opened, with time limits, or why it could not be."""
from __future__ import annotations

import os
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import cv2
import numpy as np

from detection.live.streams import Stream
from detection.video import decoded, length_of, rate_of, upright

PORTS = {"rtsp": 554, "rtsps": 322, "http": 80, "https": 443}
EIO = 5                            # FFmpeg's word for names that are not known and for answers it cannot read


@dataclass(frozen=True)
class Limits:
    """Seconds that opening a stream, and waiting for its next frame, may take."""

    opening: float = 30.0
    reading: float = 10.0


class Refused(Exception):
    """Why a stream could not be opened, in words; `final`: trying again is of no use."""

    def __init__(self, reason: str, final: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.final = reason, final


class Address:
    """An address opened by FFmpeg through PyAV, with what is asked of OpenCV's VideoCapture. Raises Refused.

    A damaged frame is passed over. HLS comes in segments of some seconds; its frames are given at the pace of
    their own times.
    """

    def __init__(self, address: str, limits: Limits) -> None:
        import av
        av.logging.set_level(None)                         # what FFmpeg says may hold the password
        options = {"rtsp_transport": "tcp", "analyzeduration": "100000"}   # us: few old frames come first
        try:
            self._container = av.open(address, timeout=(limits.opening, limits.reading),
                                      metadata_errors="replace",
                                      options=options if address.lower().startswith("rtsp") else {})
        except (av.FFmpegError, OSError) as error:
            raise _refused(address, error, limits) from None
        self._stream = self._container.streams.best("video")
        if self._stream is None:
            raise Refused("sends no video")
        self._stream.codec_context.thread_count = 1        # more would each hold back a frame
        self._stream.codec_context.flags |= av.codec.context.Flags.low_delay
        self._length = length_of(self._container, self._stream)
        self._frames = decoded(self._container, self._stream, whole=self._length > 0)
        self._paced, self._limit = "hls" in self._container.format.name, limits.reading
        self._seconds = self._origin = 0.0

    def read(self) -> tuple[bool, np.ndarray | None]:
        """Return whether there was a next frame, and it: uint8 [H, W, 3] BGR."""
        import av
        try:
            frame = next(self._frames, None)
        except (av.FFmpegError, OSError):
            frame = None
        if frame is None:
            return False, None
        self._seconds = frame.time or 0.0
        early = self._origin + self._seconds - time.monotonic() if self._paced else 0.0
        if 0 <= early < self._limit / 2:
            time.sleep(early)
        else:                                              # one that is late, or leaps, moves the rest
            self._origin = time.monotonic() - self._seconds
        return True, upright(frame, "bgr24")

    def get(self, prop: int) -> float:
        """Return a property by OpenCV's number: rate, number of frames (0: unknown), or time in ms."""
        return {cv2.CAP_PROP_FPS: rate_of(self._stream), cv2.CAP_PROP_FRAME_COUNT: self._length,
                cv2.CAP_PROP_POS_MSEC: 1000 * self._seconds}[prop]

    def release(self) -> None:
        """Close the stream."""
        self._frames.close()
        self._container.close()


def open_capture(stream: Stream, limits: Limits) -> Address | cv2.VideoCapture:
    """Open the stream: an address by FFmpeg, a camera by OpenCV in the system's own way. Raises Refused."""
    if not stream.camera:
        return Address(stream.source, limits)
    os.environ.setdefault("OPENCV_VIDEOIO_V4L_SELECT_TIMEOUT", str(max(1, round(limits.reading))))
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    name = int(stream.source) if stream.source.isdigit() else stream.source
    capture = cv2.VideoCapture(name, cv2.CAP_V4L2 if sys.platform == "linux" else cv2.CAP_ANY)
    if not capture.isOpened():
        raise why_no_camera(stream)
    return capture


def why_no_camera(stream: Stream) -> Refused:
    """Find out by a look at the device why a camera cannot be opened or gives nothing."""
    if sys.platform != "linux":
        return Refused("cannot be opened; is it plugged in, and free?")
    device = Path(f"/dev/video{int(stream.source)}" if stream.source.isdigit() else stream.source)
    if not device.exists():
        others = sorted(str(path) for path in Path("/dev").glob("video*"))
        return Refused(f"there is no {device} (cameras here: {', '.join(others) or 'none'})", final=True)
    if not os.access(device, os.R_OK | os.W_OK):
        return Refused(f"{device} may not be opened by this user; on most systems: "
                       "sudo usermod -aG video $USER, and log in again", final=True)
    if others := _holders(device):
        return Refused(f"{device} is busy: in use by {others}; end that program, or choose another camera")
    return Refused(f"{device} gives no images; it may be busy, or be no camera that takes images")


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


def _refused(address: str, error: OSError, limits: Limits) -> Refused:
    """Return FFmpeg's error in words that hold no password."""
    import av
    parts = urlsplit(address)
    port = parts.port or PORTS[parts.scheme.lower()]
    if isinstance(error, av.HTTPUnauthorizedError):
        if not parts.username:
            return Refused("asks for a user name and password (401): scheme://user:password@...", final=True)
        return Refused("refuses the user name and password, or has no such stream (401)")
    for kind, words in (
            (av.HTTPForbiddenError, "forbids it (403)"),
            (av.HTTPNotFoundError, "knows no such stream (404)"),
            ((av.HTTPClientError, av.HTTPError), f"refuses: {error.strerror}"),
            (ConnectionRefusedError, f"refuses the connection at port {port}; is the server running?"),
            ((av.ExitError, TimeoutError), f"sends nothing at port {port} within {limits.opening:g} s")):
        if isinstance(error, kind):
            return Refused(words)
    try:
        socket.getaddrinfo(parts.hostname, port)
    except OSError:
        return Refused(f"the host name {parts.hostname} is not known here")
    if isinstance(error, (av.InvalidDataError, av.EOFError)) or error.errno == EIO:
        return Refused(f"answers at port {port}, but sends no video that could be read")
    return Refused(f"cannot be reached at port {port}: {error.strerror or 'no connection'}")
