"""Live streams as batches of their newest frames, whichever have one; a dead stream holds up none."""
from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence

from detection.live.capture import Limits, open_capture
from detection.live.health import Board
from detection.live.reader import Reader
from detection.live.streams import Stream
from detection.video import Frame
from utils.errors import DataError, EnvironmentFault

TICK = 0.1                         # seconds between looks at what else there is to do while no frame comes
PATIENCE = 1.0                     # seconds that threads get to end in


class Feed:
    """Lists of up to `most` frames, of each stream at most one, as soon as there are any; a context manager.

    Iterating ends when `go_on()` is false or all streams were finite videos. Where none gives a frame within
    the time for opening, EnvironmentFault (cameras) or DataError (addresses) says why; once one has, `begun`,
    broken streams are tried again for ever.
    """

    def __init__(self, streams: Sequence[Stream], board: Board, limits: Limits, most: int,
                 go_on: Callable[[], bool], opener: Callable = open_capture) -> None:
        self._go_on, self._limits, self._most, self.begun = go_on, limits, most, False
        self._ready, self._turn, self._start = threading.Condition(), 0, 0.0
        self.readers = [Reader(stream, board.streams[stream.name], limits, self._ready, board.say, opener)
                        for stream in streams]

    def __enter__(self) -> "Feed":
        self._start = time.monotonic()
        for reader in self.readers:
            reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Tell all threads to end, and wait a moment for them; one that hangs in a driver stays behind."""
        left = [thread for reader in self.readers for thread in reader.stop()]
        with self._ready:
            self._ready.notify_all()
        deadline = time.monotonic() + PATIENCE
        for thread in left:
            thread.join(max(0.0, deadline - time.monotonic()))

    def __iter__(self) -> Iterator[list[Frame]]:
        while self._go_on():
            with self._ready:
                taken = self._take() or (self._ready.wait(TICK) and self._take()) or []
            for reader in self.readers:
                reader.tend()
            self.begun = self.begun or bool(taken)
            if taken:
                yield taken
            elif all(reader.over for reader in self.readers):
                return
            elif not self.begun:
                self.check()

    def _take(self) -> list[Frame]:
        """Return one frame of each reader that has one, up to `most`, beginning behind the last served."""
        taken, count, first = [], len(self.readers), self._turn
        for at in range(first, first + count):
            frame = self.readers[at % count].take() if len(taken) < self._most else None
            if frame is not None:
                taken.append(frame)
                self._turn = (at + 1) % count
        return taken

    def check(self, over: bool = False) -> None:
        """Raise why no stream came, once time is up, waiting is of no use, or all is `over`."""
        found = [reader.refusal for reader in self.readers]
        hopeless = all(refusal is not None and refusal.final for refusal in found)
        if not (over or hopeless or time.monotonic() - self._start > self._limits.opening):
            return
        reason = found[0].reason if found[0] else "sent no image"
        more = f" (and {len(found) - 1} more, none of which sent an image)" if len(found) > 1 else ""
        seconds = "" if hopeless else f" within {time.monotonic() - self._start:.0f} s (--open-timeout)"
        kind = EnvironmentFault if all(reader.stream.camera for reader in self.readers) else DataError
        raise kind(f"--source {self.readers[0].stream.label}: {reason}{more}; no image came{seconds}")
