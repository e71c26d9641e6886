"""The thread that reads one live stream: opens it, keeps its newest frame, and tries again when it breaks."""
from __future__ import annotations

import math
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import cv2

from detection.live.capture import Address, Limits, Refused, open_capture, why_no_camera
from detection.live.health import StreamHealth
from detection.live.streams import Stream
from detection.video import Frame, VideoInfo
from utils.cli import LEFT_BEHIND

LONGEST = 60.0                     # seconds between two tries, at most
LEAP = 2.0                         # seconds a frame's delay may change by at once; more is a clock set again
STEADY = 5.0                       # seconds a stream must have been live for its tries to count from 0 again
GRACE = 5.0                        # seconds a call may take beyond its limit before its thread is given up
BEHIND = 5.0                       # seconds a reader may fall behind a stream before it joins it again
PATIENCE = 0.95                    # share of the time limit after which a frame comes too late
STUCK = 3                          # given-up threads of one stream that may hang at a time
HOLE, HOLES = 2.5, 4               # frames' time between two of a finite video that may be a cut; how many
DEPTH = 8                          # frames of a finite video that wait for the network


class Turn:
    """One thread's time at a stream; `gone` once another has taken over, or all is over."""

    def __init__(self) -> None:
        self.gone, self.deadline = threading.Event(), math.inf

    def timed(self, seconds: float, call: Callable[[], object]) -> object:
        """Return what `call()` returns; while it runs the deadline holds."""
        self.deadline = time.monotonic() + seconds + GRACE
        try:
            return call()
        finally:
            self.deadline = math.inf


def backoff(attempt: int, chance: float) -> float:
    """Return the seconds to wait after try `attempt` (from 0): 1, 2, 4, ... 60, half of it by `chance`."""
    return min(LONGEST, 2.0 ** min(attempt, 10)) * (0.5 + 0.5 * chance)


class Lag:
    """How late frames are read, from the times they carry: the least delay seen counts as none."""

    def __init__(self) -> None:
        self._last: tuple[float, float] | None = None
        self._least = 0.0

    def behind(self, now: float, position: float) -> float:
        """Return the seconds by which a frame of time `position`, read at `now`, is later than the best."""
        delay = now - position
        if self._last is None or position == self._last[1] or abs(delay - self._last[0]) > LEAP:
            self._least = delay                            # a clock that leaps or does not move is no measure
        self._last, self._least = (delay, position), min(self._least, delay)
        return delay - self._least


class Reader:
    """Reads `stream` in a thread into a box: the newest frame alone, or of a finite video (one whose length
    the server tells) up to DEPTH; `ready` is notified of each. `refusal`: why the last try to open it failed.
    """

    def __init__(self, stream: Stream, health: StreamHealth, limits: Limits, ready: threading.Condition,
                 say: Callable[[str], None],
                 opener: Callable[[Stream, Limits], Address] = open_capture) -> None:
        self.stream, self.health, self.limits = stream, health, limits
        self.refusal: Refused | None = None
        self._ended = False                                # whether a finite video was read to its end
        self._ready, self._say, self._open = ready, say, opener
        self._box: deque[Frame] = deque()
        self._turns: list[tuple[Turn, threading.Thread]] = []
        self._trouble, self._holes = "", set[int]()

    def start(self) -> None:
        """Begin to read, in a new thread."""
        turn, name = Turn(), LEFT_BEHIND + self.stream.name
        thread = threading.Thread(target=self._work, args=(turn,), name=name, daemon=True)
        self._turns = [old for old in self._turns if old[1].is_alive()] + [(turn, thread)]
        thread.start()

    def take(self) -> Frame | None:
        """Return the next frame, or None; the caller holds `ready`."""
        self._ready.notify_all()
        return self._box.popleft() if self._box else None

    @property
    def over(self) -> bool:
        """Whether a finite video has ended and all its frames were taken."""
        return self._ended and not self._box

    def tend(self) -> None:
        """Give up a thread whose call ignores its time limit, and start another in its place."""
        turn, _ = self._turns[-1]
        if time.monotonic() <= turn.deadline or turn.gone.is_set():
            return
        if sum(thread.is_alive() for _, thread in self._turns) > STUCK:
            return                                         # as many hang already: wait until one comes back
        turn.gone.set()
        self._fail("its driver does not answer", 0.0)
        self.start()

    def stop(self) -> list[threading.Thread]:
        """Tell the threads to end, and return those that are yet to."""
        for turn, _ in self._turns:
            turn.gone.set()
        return [thread for _, thread in self._turns if thread.is_alive()]

    def _work(self, turn: Turn) -> None:
        """Open, read, wait, and again, in the thread."""
        attempt = 0
        while not turn.gone.is_set():
            self.health.moved("connecting")
            start, before = time.monotonic(), self.health.read
            try:
                reason = self._once(turn)
            except Exception as error:                     # whatever one stream brings, the others continue
                reason = f"could not be read ({type(error).__name__})"
            if turn.gone.is_set():
                return
            if self._ended:
                self.health.moved("ended")
                self._say(f"{self.stream.name}: the video has ended after {self.health.read} frames")
                with self._ready:
                    self._ready.notify_all()
                return
            attempt = 0 if self.health.read > before and time.monotonic() - start > STEADY else attempt
            pause = backoff(attempt, random.random())
            self._fail(reason, pause)
            turn.gone.wait(pause)
            attempt += 1

    def _fail(self, reason: str, pause: float) -> None:
        """Note a failure, and say it unless it is the one that was said last."""
        self.health.moved("waiting", reason, pause)
        if reason != self._trouble:
            self._trouble = reason
            self._say(f"{self.stream.name} ({self.stream.label}): {reason}; trying again, "
                      f"at intervals of up to {LONGEST:.0f} s")

    def _once(self, turn: Turn) -> str:
        """Open the stream, read until it breaks, and return why it did."""
        before = self.health.read
        try:
            capture = turn.timed(self.limits.opening, lambda: self._open(self.stream, self.limits))
            try:
                reason = self._drain(capture, turn)
            finally:
                capture.release()
            if self.health.read > before or self._ended or not self.stream.camera:
                return reason
            raise why_no_camera(self.stream)               # one in use elsewhere opens and gives nothing
        except Refused as refused:
            if not turn.gone.is_set():
                self.refusal = refused
            return refused.reason

    def _drain(self, capture: "Address", turn: Turn) -> str:
        """Read until the stream breaks, and return why it did."""
        fps, told = capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT)
        length = int(told) if self.stream.source.lower().startswith("http") and 0 < told < 1e9 else 0
        fps = float(fps) if 0 < fps < 1000 else 25.0
        already = self.health.read if length else 0        # a finite video begins again: skip those
        position, seconds = 0, 0.0
        lag = Lag() if self.stream.source.lower().startswith("rtsp") else None   # others tell no true times
        while not turn.gone.is_set():
            asked = time.monotonic()
            good, image = turn.timed(self.limits.reading, capture.read)
            now = time.monotonic()
            if turn.gone.is_set():
                break
            silent = now - asked > PATIENCE * self.limits.reading
            if not good or silent:                         # a decoder's last frame is old
                # lengths are told a little too long: a video that stops at the same frame again has ended
                self._ended = min(position, length) > 0 and (
                    position >= 0.98 * length - 1 or position == already)
                cut = "was cut" if position else "was opened, and sent no image"
                return f"sent nothing for {now - asked:.0f} s" if silent else cut
            position, before, seconds = position + 1, seconds, capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
            if length and position > 1 and seconds - before > HOLE / fps and position not in self._holes:
                self._holes.add(position)                  # FFmpeg resumes behind a cut and says nothing
                if len(self._holes) < HOLES:
                    return "was cut"
            if lag and (late := lag.behind(now, seconds)) > BEHIND:
                return f"came faster than it could be read, and was {late:.0f} s behind"
            self.health.behind = round(late, 2) if lag else None
            if position > already:
                image, name = cv2.cvtColor(image, cv2.COLOR_BGR2RGB), self.stream.name
                info = VideoInfo(fps, length, image.shape[1], image.shape[0])
                self._put(Frame(name, Path(name), image, self.health.read, info, now, not length,
                                seconds if length else now), turn)
        return ""

    def _put(self, frame: Frame, turn: Turn) -> None:
        """Put a frame into the box; one of a finite video waits for room."""
        size, before = frame.pixels.shape[1::-1], self.health.size
        with self._ready:
            while not frame.live and len(self._box) >= DEPTH and not turn.gone.is_set():
                self._ready.wait(0.1)
            dropped = len(self._box) if frame.live else 0
            if frame.live:
                self._box.clear()
            self._box.append(frame)
            self.refusal, known = None, self.health.state == "live"
            self.health.frame(size, dropped, frame.taken)
            self._ready.notify_all()
        if before and before != size:
            self._say(f"{self.stream.name}: its images are {size[0]}x{size[1]} px now; they were "
                      f"{before[0]}x{before[1]}")
        if not known:
            again = " again" if self._trouble else ""
            self._trouble = ""
            self._say(f"{self.stream.name}: live{again}, {size[0]}x{size[1]} px")
