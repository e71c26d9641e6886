"""Streams to test with: cameras on loopback that can be killed, stalled and changed, and one from frames."""
import http.server
import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.helpers.detect_cases import ROOT, scene

SYSTEM_PYTHON = "/usr/bin/python3"
RTSP_SERVER = ROOT / "tests" / "helpers" / "rtsp_server.py"


class MjpegCamera:
    """A camera that sends `image(k)` (uint8 BGR) over HTTP at `fps`, to who knows its `login`.

    `begin` opens its port (the same each time), `kill` closes it and cuts all connections; while `still` is
    set it accepts and sends nothing.
    """

    def __init__(self, image: Callable[[int], np.ndarray], fps: float = 25.0) -> None:
        self.image, self.fps, self.port = image, fps, 0
        self.still, self.sent, self.login = threading.Event(), 0, ""
        self._server: http.server.ThreadingHTTPServer | None = None
        self._lines: set[socket.socket] = set()

    def begin(self) -> "MjpegCamera":
        camera = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                camera._lines.add(self.connection)
                camera._serve(self)

            def log_message(self, *_: object) -> None:
                pass

        class Server(http.server.ThreadingHTTPServer):
            def handle_error(self, *_: object) -> None:
                pass                                       # a broken pipe is what these tests are about

        self._server = Server(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def encode(self, k: int) -> bytes:
        return cv2.imencode(".jpg", self.image(k), [cv2.IMWRITE_JPEG_QUALITY, 98])[1].tobytes()

    def _serve(self, to: http.server.BaseHTTPRequestHandler) -> None:
        server = self._server
        while self.still.is_set() and server is self._server:
            time.sleep(0.01)
        known = "Basic " + b64encode(self.login.encode()).decode()
        if self.login and to.headers.get("Authorization") != known:
            to.send_response(401)
            to.send_header("WWW-Authenticate", 'Basic realm="camera"')
            to.end_headers()
            return
        to.send_response(200)
        to.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        to.end_headers()
        while server is self._server:
            data = self.encode(self.sent)
            to.wfile.write(b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(data))
            to.wfile.write(data + b"\r\n")
            self.sent += 1
            time.sleep(1 / self.fps)
            while self.still.is_set() and server is self._server:
                time.sleep(0.01)

    def kill(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()
        for line in self._lines:
            try:
                line.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue
        self._lines.clear()

    def address(self, login: str = "") -> str:
        return f"http://{login}127.0.0.1:{self.port}/live"


class FileCapture:
    """A webcam's capture fed from frames: what OpenCV's would give, at `fps`, until they are used up."""

    def __init__(self, frames: list[np.ndarray], fps: float = 100.0) -> None:
        self._frames, self._fps, self.released = iter(frames), fps, False

    def read(self) -> tuple[bool, np.ndarray | None]:
        time.sleep(1 / self._fps)
        frame = next(self._frames, None)
        return frame is not None, frame

    def get(self, prop: int) -> float:
        return self._fps if prop == cv2.CAP_PROP_FPS else -1.0

    def release(self) -> None:
        self.released = True


def coloured(height: int = 240, width: int = 320) -> np.ndarray:
    """A BGR image of one red and one green cell, which the network set by hand finds."""
    return scene(height, width, [(2, 1, 0), (3, 3, 1)])[0][:, :, ::-1].copy()


def numbered(k: int, height: int = 24, width: int = 32) -> np.ndarray:
    """A BGR image that carries the number k (0..65535)."""
    return np.full((height, width, 3), (k % 256, k // 256, 0), np.uint8)


def number_of(image: np.ndarray) -> int:
    """The number that an RGB image of `numbered` carries."""
    return int(image[0, 0, 2]) + 256 * int(image[0, 0, 1])


def wait_for(condition: Callable[[], object], seconds: float = 60.0) -> object:
    """What `condition()` gives once it is true; fails after `seconds`."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > end:
            pytest.fail(f"waited {seconds:g} s in vain")
        time.sleep(0.02)
    return found


def stream_health(path: Path, number: int = 0) -> dict:
    """The health of one stream as the file says; empty where there is none yet."""
    return json.loads(path.read_text())["streams"][number] if path.is_file() else {}


def count_frames(path: Path) -> int:
    """The frames of a video that can really be read."""
    capture, count = cv2.VideoCapture(str(path)), 0
    while capture.read()[0]:
        count += 1
    capture.release()
    return count


class RtspServer:
    """GStreamer's RTSP server in a process of the system's Python, fed with frames by a thread."""

    def __init__(self, frame: Callable[[], np.ndarray], fps: int = 12) -> None:
        self.frame, self.fps, self.port = frame, fps, free_port()
        self._process: subprocess.Popen | None = None

    def begin(self) -> "RtspServer":
        height, width = self.frame().shape[:2]
        words = [SYSTEM_PYTHON, str(RTSP_SERVER), str(self.port), str(width), str(height), str(self.fps)]
        self._process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                         stderr=subprocess.DEVNULL)
        self._process.stdout.readline()
        threading.Thread(target=self._feed, args=(self._process,), daemon=True).start()
        return self

    def _feed(self, process: subprocess.Popen) -> None:
        due = time.monotonic()
        try:
            while process.poll() is None:
                process.stdin.write(self.frame().tobytes())
                process.stdin.flush()
                due = max(due + 1 / self.fps, time.monotonic() - 1)
                time.sleep(max(0.0, due - time.monotonic()))
        except (OSError, ValueError):
            return

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def send_signal(self, number: int) -> None:
        self._process.send_signal(number)

    def address(self, login: str = "") -> str:
        return f"rtsp://{login}127.0.0.1:{self.port}/live"


def why_no_rtsp() -> str:
    """Why no RTSP server can be run here; "" if one can."""
    code = ("import gi\ngi.require_version('GstRtspServer', '1.0')\n"
            "from gi.repository import Gst, GstRtspServer\nGst.init(None)\n"
            "assert Gst.ElementFactory.find('x264enc')")
    if sys.platform != "linux" or not shutil.which(SYSTEM_PYTHON):
        return "needs the system's Python with GStreamer"
    trial = subprocess.run([SYSTEM_PYTHON, "-c", code], capture_output=True, check=False)
    return "" if trial.returncode == 0 else ("needs GStreamer's RTSP server: apt install python3-gi "
                                             "gir1.2-gst-rtsp-server-1.0 gstreamer1.0-plugins-ugly")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
