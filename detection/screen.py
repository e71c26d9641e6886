"""What a detection shows while it runs: lines or a bar on the console, and a window where one can be."""
from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import TextIO

import cv2
import numpy as np

MANY = 300                         # more images than this get a bar instead of a line each
PLAIN_EVERY = 10.0                 # seconds between the lines that replace the bar without a terminal
PROBE = "import cv2; cv2.namedWindow('probe'); cv2.waitKey(1); cv2.destroyAllWindows()"


class FrameLog:
    """Reports frame after frame, of `total` expected (0: unknown), to `stream`; a bar only on a terminal."""

    def __init__(self, total: int, bar: bool, stream: TextIO | None = None) -> None:
        self._out = stream or sys.stdout
        self._total, self._bar = total, bar or total > MANY
        self._tty = self._out.isatty()
        self._done = self._told = 0
        self._start = self._last = time.monotonic()
        self._open = False                                 # whether the bar is on the current line

    def step(self, name: str, size: tuple[int, int], boxes: str, ms: float) -> None:
        """Report one frame: its name, size (width, height) px, boxes in words, the network's ms for it."""
        self._done += 1
        if not self._bar:
            digits = len(str(self._total))
            self._out.write(f"{self._done:{digits}}/{self._total}  {shorten(name, 28):28}  "
                            f"{size[0]:>5}x{size[1]:<5} {ms:7.1f} ms  {boxes}\n")
            return
        bar = bar_text(self._done, self._total, time.monotonic() - self._start)
        self.status(f"{shorten(name, 24)}  {bar}  {boxes}", 0.1, self._done == self._total)

    def status(self, text: str, pause: float = 0.0, last: bool = False) -> None:
        """Show a line in place of the last one; without a terminal, on a line of its own now and then."""
        since = time.monotonic() - self._last
        if last or since >= (pause if self._tty else PLAIN_EVERY):
            self._last += since
            self._out.write(f"\r\x1b[K{shorten(text, 118)}" if self._tty else f"{text}\n")
            self._open = self._tty
            self._out.flush()

    def say(self, text: str) -> None:
        """Write a sentence on a line of its own."""
        self._out.write("\n" * self._open + text + "\n")
        self._open = False
        self._out.flush()

    def tell(self, faults: Sequence[tuple[object, str]]) -> None:
        """Say of each fault (file, reason) that was not told before that it was left out."""
        for _, reason in faults[self._told:]:
            self._told += 1
            self.say(f"left out: {reason}")


def bar_text(done: int, total: int, seconds: float) -> str:
    """Return a bar with percent, rate and time left, or the rate alone where the total is unknown."""
    rate = done / seconds if seconds > 0 else 0.0
    if not total or done > total:
        return f"{done} frames  {rate:5.1f} FPS"
    full = 20 * done // total
    left = int((total - done) / rate) if rate else 0
    return (f"[{'#' * full}{'.' * (20 - full)}] {done}/{total}  {100 * done // total:3} %  {rate:5.1f} FPS  "
            f"{left // 60}:{left % 60:02} left")


def shorten(text: str, length: int) -> str:
    """Return the text, or its beginning and end around "..." where it has more than `length` characters."""
    if len(text) <= length:
        return text
    tail = (length - 3) // 2
    return f"{text[:length - 3 - tail]}...{text[-tail:]}"


def why_no_window(timeout: float = 20.0) -> str:
    """Say in a sentence why no window can be opened here; "" if one can."""
    named = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if sys.platform.startswith("linux") and not named:
        return "there is no display (DISPLAY and WAYLAND_DISPLAY are unset)"
    try:                               # elsewhere: OpenCV aborts where the display does not answer
        trial = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, timeout=timeout, text=True)
    except subprocess.TimeoutExpired:
        return f"the display did not answer within {timeout:g} s"
    if trial.returncode == 0:
        return ""
    if "not implemented" in trial.stderr:
        return "this OpenCV was built without windows (exchange it as requirements-gui.txt says)"
    return f"the display refuses a window (a trial ended with code {trial.returncode})"


def open_window(title: str = "detect") -> "Window | None":
    """Open a window, or return None after a sentence that says why there is none."""
    if reason := why_no_window():
        print(f"--view-img: {reason}; continuing without a window, the results are written to files")
        return None
    return Window(title)


class Window:
    """One window; `show` returns False once the user has pressed q or Escape or closed it."""

    def __init__(self, title: str) -> None:
        self._title = title
        cv2.namedWindow(title, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO)

    def show(self, image: np.ndarray, wait_ms: int = 1) -> bool:
        """Show uint8 [H, W, 3] RGB for at least `wait_ms` ms, and return whether to continue."""
        cv2.imshow(self._title, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        key = cv2.waitKey(wait_ms) & 0xFF
        return key not in (27, ord("q")) and cv2.getWindowProperty(self._title, cv2.WND_PROP_VISIBLE) >= 1

    def hold(self, stop: Callable[[], bool]) -> None:
        """Keep the last image until a key is pressed, the window is closed, or `stop()` is true."""
        print("any key in the window ends")
        while not stop() and cv2.waitKey(50) < 0:
            if cv2.getWindowProperty(self._title, cv2.WND_PROP_VISIBLE) < 1:
                return
