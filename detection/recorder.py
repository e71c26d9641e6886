"""The video of a live stream: it plays at the speed at which things happened."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from detection.video import VideoFile

HELD = 8                           # frames that set the rate; they wait in memory until then
WAIT = 2.0                         # seconds after which fewer must do
GAP = 2.0                          # seconds without a frame from which on the time is left out


class Recorder:
    """Writes frames with their times to BASE.mkv, a file of a fixed rate: that of its first frames.

    A frame stands where its time says: the one before it is repeated up to there, and one that comes too
    early for the rate is left out. Longer gaps, in which the stream was dead, are left out. Pictures of
    another size begin another file, BASE-part2.mkv, because a file has one size. Matroska, because it plays
    also when the process was killed (but for the last seconds): an mp4 without its end does not.
    """

    def __init__(self, base: Path, say: Callable[[str], None] = lambda _: None) -> None:
        self._base, self._say, self._part = base, say, 0
        self._file: VideoFile | None = None
        self._held: list[tuple[float, np.ndarray]] = []
        self._start = 0.0
        self._last: np.ndarray | None = None

    def write(self, image: np.ndarray, taken: float) -> None:
        """Adds a frame, uint8 [H, W, 3] RGB, that was taken at `taken` (monotonic s)."""
        before = self._held[-1][1] if self._held else self._last
        if before is not None and before.shape != image.shape:
            self.close()
        if self._file is not None:
            self._add(image, taken)
            return
        self._held.append((taken, image))
        if len(self._held) == HELD or taken - self._held[0][0] >= WAIT:
            self._begin()

    def _begin(self) -> None:
        """Opens the file at the held frames' rate (the median of their distances), and writes them."""
        held, self._held = self._held, []
        between = np.diff([taken for taken, _ in held])
        rate = 1 / max(1 / 60, float(np.median(between))) if len(between) else 1.0
        self._part += 1
        name = f"{self._base.name}-part{self._part}.mkv" if self._part > 1 else f"{self._base.name}.mkv"
        height, width = held[0][1].shape[:2]
        self._file = VideoFile(self._base.parent / name, round(max(1.0, rate), 1), width, height)
        self._start = held[0][0]
        if self._part > 1:
            self._say(f"{self._base.name}: the video goes on in {name}, at {width}x{height} px")
        for taken, image in held:
            self._add(image, taken)

    def _add(self, image: np.ndarray, taken: float) -> None:
        fps, count = self._file.fps, self._file.count
        due = round((taken - self._start) * fps)           # frames that belong before this one
        if due - count > GAP * fps:
            self._start += (due - count) / fps
            due = count
        for _ in range(count, due):
            self._file.write(self._last)
        if due >= count:
            self._file.write(image)
        self._last = image

    def close(self) -> None:
        """Finishes the file; safe to call twice. Raises DiskError where frames are missing."""
        if self._held:
            self._begin()
        file, self._file, self._last = self._file, None, None
        if file is not None:
            file.close()
