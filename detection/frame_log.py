"""What a detection says while it runs: a line a picture, or one bar for a video and for very many
pictures."""
from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TextIO

MANY = 300                         # more pictures than this get a bar instead of a line each
PLAIN_EVERY = 10.0                 # seconds between the lines that replace the bar without a terminal


class FrameLog:
    """Reports frame after frame to `stream`; `total` is the number of frames expected (0: unknown).

    On a terminal the bar is redrawn in place; elsewhere (a file, a pipe) it becomes a plain line now and
    then.
    """

    def __init__(self, total: int, bar: bool, stream: TextIO | None = None) -> None:
        self._out = stream or sys.stdout
        self._total, self._bar = total, bar or total > MANY
        self._tty = self._out.isatty()
        self._done, self._told, self._start = 0, 0, time.monotonic()
        self._last = self._start
        self._open = False                                 # whether the bar stands on the current line

    def step(self, name: str, size: tuple[int, int], boxes: str, ms: float) -> None:
        """Reports one frame: its name, size (width, height) px, its boxes in words, the network's ms for
        it."""
        self._done += 1
        if not self._bar:
            digits = len(str(self._total))
            self._out.write(f"{self._done:{digits}}/{self._total}  {shorten(name, 28):28}  "
                            f"{size[0]:>5}x{size[1]:<5} {ms:7.1f} ms  {boxes}\n")
            return
        now = time.monotonic()
        every = 0.1 if self._tty else PLAIN_EVERY
        if now - self._last >= every or self._done == self._total:
            self._last = now
            bar = bar_text(self._done, self._total, now - self._start)
            self._draw(f"{shorten(name, 24)}  {bar}  {boxes}")

    def status(self, text: str) -> None:
        """Shows a line about all streams, in place of the last one, or on a line of its own now and then."""
        now = time.monotonic()
        if self._tty or now - self._last >= PLAIN_EVERY:
            self._last = now
            self._draw(text)

    def _draw(self, text: str) -> None:
        if self._tty:
            self._out.write(f"\r\x1b[K{shorten(text, 118)}")
            self._open = True
        else:
            self._out.write(text + "\n")
        self._out.flush()

    def say(self, text: str) -> None:
        """Writes a sentence on a line of its own."""
        if self._open:
            self._out.write("\n")
            self._open = False
        self._out.write(text + "\n")
        self._out.flush()

    def tell(self, faults: Sequence[tuple[object, str]]) -> None:
        """Says of each fault (file, reason) that was not told before that it was left out."""
        for _, reason in faults[self._told:]:
            self._told += 1
            self.say(f"left out: {reason}")


def bar_text(done: int, total: int, seconds: float) -> str:
    """A bar with percent, rate and time left, or the rate alone where the total is unknown."""
    rate = done / seconds if seconds > 0 else 0.0
    if not total or done > total:
        return f"{done} frames  {rate:5.1f} FPS"
    full = 20 * done // total
    left = int((total - done) / rate) if rate else 0
    return (f"[{'#' * full}{'.' * (20 - full)}] {done}/{total}  {100 * done // total:3} %  {rate:5.1f} FPS  "
            f"{left // 60}:{left % 60:02} left")


def shorten(text: str, length: int) -> str:
    """The text itself, or its beginning and end around "..." so that it has at most `length` characters."""
    if len(text) <= length:
        return text
    tail = (length - 3) // 2
    return f"{text[:length - 3 - tail]}...{text[-tail:]}"
