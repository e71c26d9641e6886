"""How live streams fare: what was read and dropped, how late results are, which one waits and why."""
from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

from detection.screen import shorten

WINDOW = 5.0                       # seconds over which rates are counted
RECENT = 256                       # results whose latency is told


class StreamHealth:
    """The counts of one stream, which is connecting, live, waiting or ended, kept by several threads."""

    def __init__(self, name: str, address: str) -> None:
        self.name, self.address, self.state = name, address, "connecting"
        self.read = self.dropped = self.results = self.reconnects = 0
        self.size: tuple[int, int] | None = None
        self.behind: float | None = None                   # seconds the reader is late, where known (RTSP)
        self._error, self._error_time, self._due = "", "", 0.0     # the last one, kept when it is over
        self._reads, self._done = deque[float](maxlen=600), deque[float](maxlen=600)
        self._latency = deque[float](maxlen=RECENT)
        self._lock = threading.Lock()

    def moved(self, state: str, error: str = "", wait: float = 0.0) -> None:
        """Note a new state; `wait`: the seconds until the next try."""
        with self._lock:
            self.state, self._due = state, time.monotonic() + wait
            if error:
                self._error, self._error_time = error, _now()

    def frame(self, size: tuple[int, int], dropped: int, now: float) -> None:
        """Count a frame of (width, height) px that was read, and those that it pushed out unseen."""
        with self._lock:
            self.reconnects += self.state != "live" and self.read > 0
            self.state, self.size = "live", size
            self.read, self.dropped = self.read + 1, self.dropped + dropped
            self._reads.append(now)

    def skip(self, count: int) -> None:
        """Count frames that were taken and not looked at."""
        with self._lock:
            self.dropped += count

    def result(self, taken: float, now: float) -> None:
        """Count a frame that was read at `taken` and whose boxes are written `now`, in monotonic seconds."""
        with self._lock:
            self.results += 1
            self._done.append(now)
            self._latency.append(now - taken)

    def snapshot(self) -> dict[str, object]:
        """Return everything, ready for JSON: rates over 5 seconds, latencies over the last 256 results."""
        with self._lock:
            now, times = time.monotonic(), list(self._latency)
            p50, p90 = (1000 * np.percentile(times, (50, 90))).round(1).tolist() if times else (None, None)
            wait = max(0.0, self._due - now) if self.state == "waiting" else 0.0
            return {"name": self.name, "address": self.address, "state": self.state,
                    "retry_in_seconds": round(wait, 1), "size": list(self.size) if self.size else None,
                    "fps": _rate(self._done, now), "fps_read": _rate(self._reads, now),
                    "frames_read": self.read, "frames_dropped": self.dropped, "results": self.results,
                    "latency_ms": {"p50": p50, "p90": p90}, "behind_seconds": self.behind,
                    "reconnects": self.reconnects,
                    "last_error": self._error, "last_error_time": self._error_time}


class Board:
    """All streams' health, and sentences for the user, which any thread may add."""

    def __init__(self, streams: Iterable[tuple[str, str]]) -> None:
        self.streams = {name: StreamHealth(name, address) for name, address in streams}
        self._said: deque[str] = deque(maxlen=1000)
        self._start = time.monotonic()
        self.say = self._said.append

    def news(self) -> list[str]:
        """Return the sentences that were added since the last call."""
        return [self._said.popleft() for _ in range(len(self._said))]

    def snapshot(self, running: bool = True) -> dict[str, object]:
        """Return what the health file holds."""
        return {"time": _now(), "running": running, "seconds": round(time.monotonic() - self._start, 1),
                "rss_mb": rss_mb(), "streams": [health.snapshot() for health in self.streams.values()]}

    def line(self, width: int = 118) -> str:
        """Return the status line: every stream where that fits, else the sums and those that are not live."""
        found = [health.snapshot() for health in self.streams.values()]
        whole = " | ".join(in_short(one) for one in found)
        if len(whole) <= width:
            return whole
        live = [one for one in found if one["state"] == "live"]
        sums = f"{len(live)} of {len(found)} live, {sum(one['fps'] for one in found):.1f} FPS"
        return " | ".join([sums, *(in_short(one) for one in found if one["state"] != "live")])


def in_short(found: dict) -> str:
    """Return a few words on a stream's snapshot."""
    words = found["state"]
    if words == "waiting":
        words += f" {found['retry_in_seconds']:.0f} s: {shorten(found['last_error'], 32)}"
    return f"{found['name']} {counts_in_words(found) if words == 'live' else words}"


def counts_in_words(found: dict) -> str:
    """Return rate, latency and what was dropped of a stream's snapshot."""
    p50, p90 = found["latency_ms"]["p50"], found["latency_ms"]["p90"]
    late = f"{p50:.0f}/{p90:.0f} ms" if p50 is not None else "no results yet"
    again = f", {found['reconnects']} reconnects" if found["reconnects"] else ""
    return f"{found['fps']:.1f} FPS {late}, {found['frames_dropped']} dropped{again}"


def rss_mb() -> float | None:
    """Return the resident memory of this process in MB; None where the system does not say (Linux does)."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((round(int(line.split()[1]) / 1024, 1) for line in lines if line.startswith("VmRSS")), None)


def _rate(times: Iterable[float], now: float) -> float:
    """Return the events per second over the last WINDOW seconds; 0 for fewer than two."""
    recent = [at for at in times if now - at <= WINDOW]
    span = recent[-1] - recent[0] if recent else 0.0
    return round((len(recent) - 1) / span, 2) if span else 0.0


def _now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
