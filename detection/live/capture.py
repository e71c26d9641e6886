"""A live stream opened by OpenCV, with time limits, and why one could not be opened."""
from __future__ import annotations

import os
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, urlsplit, urlunsplit

from detection.live.streams import Stream

if TYPE_CHECKING:
    from cv2 import VideoCapture

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


def open_capture(stream: Stream, limits: Limits) -> "VideoCapture | None":
    """Open the stream, or return None. FFmpeg reads addresses; a camera goes by the system's own way.

    Decoding takes one thread: more would each hold back a frame. OpenCV and FFmpeg are kept silent, for what
    they print may hold the address with its password; `why_not` says what was amiss.
    """
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    os.environ.setdefault("OPENCV_FFMPEG_CAPTURE_OPTIONS", "rtsp_transport;tcp|flags;low_delay")
    os.environ.setdefault("OPENCV_VIDEOIO_V4L_SELECT_TIMEOUT", str(max(1, round(limits.reading))))
    import cv2
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    if stream.camera:
        name = int(stream.source) if stream.source.isdigit() else stream.source
        capture = cv2.VideoCapture(name, cv2.CAP_V4L2 if sys.platform == "linux" else cv2.CAP_ANY)
    else:
        capture = cv2.VideoCapture(stream.source, cv2.CAP_FFMPEG, [
            cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, round(1000 * limits.opening),
            cv2.CAP_PROP_READ_TIMEOUT_MSEC, round(1000 * limits.reading), cv2.CAP_PROP_N_THREADS, 1])
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
