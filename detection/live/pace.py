"""When to try a broken stream again, and how far its reader has fallen behind it."""
from __future__ import annotations

LONGEST = 60.0                     # seconds between two tries, at most
LEAP = 2.0                         # seconds a frame's delay may change by at once; more is a clock set anew


def backoff(attempt: int, chance: float) -> float:
    """Seconds to wait after the failed try number `attempt` (from 0): 1, 2, 4, ... 60, of which `chance`
    (0..1) decides the second half, so that many streams do not all come back at once."""
    return min(LONGEST, 2.0 ** min(attempt, 10)) * (0.5 + 0.5 * chance)


class Lag:
    """How late frames are read, from the times they carry: the least delay seen counts as none."""

    def __init__(self) -> None:
        self._last: tuple[float, float] | None = None
        self._least = 0.0

    def behind(self, now: float, position: float) -> float:
        """Seconds by which a frame of time `position`, read at `now`, is later than the quickest one was.

        A delay that leaps, or a time that stands still, says that the stream's clock is no measure: it counts
        from there anew.
        """
        delay = now - position
        if self._last is None or position == self._last[1] or abs(delay - self._last[0]) > LEAP:
            self._least = delay
        self._last, self._least = (delay, position), min(self._least, delay)
        return delay - self._least
