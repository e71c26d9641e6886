"""Frames, and the videos they come from and go to: read one by one, written to files that play."""
from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.errors import DataError, DiskError

HELD = 8                           # frames that set a recording's rate; they wait in memory until then
WAIT = 2.0                         # seconds after which fewer must do
GAP = 2.0                          # seconds without a frame from which on the time is left out


@dataclass(frozen=True)
class VideoInfo:
    """What a video says of itself: frames per second (> 0), frames (0: unknown), size in px as shown."""

    fps: float
    frames: int
    width: int
    height: int


@dataclass(frozen=True)
class Frame:
    """One image to look at: uint8 [H, W, 3] RGB.

    `name` is its file's name, made unique within the source also without its suffix; `index` counts from 0
    within the file; `video` is None for an image file. Of a stream, `taken` is when it was read (monotonic
    s); `live` tells that frames before it may have been dropped, and that the stream has no end.
    """

    name: str
    path: Path
    image: np.ndarray
    index: int
    video: VideoInfo | None
    taken: float = 0.0
    live: bool = False


def probe(path: Path) -> VideoInfo:
    """Return rate, length and shown size of a video. Raises DataError where no frame can be read."""
    import cv2
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    capture = cv2.VideoCapture(str(path))
    try:
        good, image = capture.read() if capture.isOpened() else (False, None)
        fps, frames = capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT)
    finally:
        capture.release()
    if not good:
        raise DataError(f"{path}: not a readable video ({path.stat().st_size} bytes); is it complete? "
                        "Converting it to an H.264 mp4 often helps")
    rate = float(fps) if 0 < fps < 1000 else 25.0          # NaN, 0 and 90000 are what broken headers say
    length = int(frames) if 0 < frames < 1e9 else 0        # recorded live, or without an index
    return VideoInfo(rate, length, image.shape[1], image.shape[0])


def read(path: Path) -> Generator[np.ndarray, None, int]:
    """Yield every frame of a video in order, uint8 [H, W, 3] RGB, turned upright, and return their number."""
    import cv2
    capture = cv2.VideoCapture(str(path))
    count = 0
    try:
        while True:
            good, image = capture.read()
            if not good:
                return count
            count += 1
            yield cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    finally:
        capture.release()


class VideoFile:
    """A video being written, mp4 or mkv by its suffix (MPEG-4 part 2, which every OpenCV wheel can write).

    An mp4 is playable once closed. `count` is the number of frames so far.
    """

    def __init__(self, path: Path, fps: float, width: int, height: int) -> None:
        import cv2
        self.path, self.fps, self.size, self.count = path, fps, (width, height), 0
        self._out = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), fps, self.size)
        if not self._out.isOpened():
            raise DiskError(f"{path}: this OpenCV cannot begin a video of {width}x{height} px; is the folder "
                            "writable and the disk not full? --nosave runs without images and videos")

    def write(self, image: np.ndarray) -> None:
        """Add one frame, uint8 [H, W, 3] RGB; another size than the first frame's is fitted to it."""
        import cv2
        if image.shape[1::-1] != self.size:
            image = cv2.resize(image, self.size)
        self._out.write(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        self.count += 1

    def close(self) -> None:
        """Finish the file. Raises DiskError where frames are missing: OpenCV is silent on a full disk."""
        self._out.release()
        try:
            held = probe(self.path).frames if self.count else 0
        except DataError:
            held = 0
        if held < self.count:
            raise DiskError(f"{self.path}: {held} of {self.count} frames reached the disk; is it full? "
                            "--nosave runs without images and videos")


class Recorder:
    """The video of a live stream, BASE.mkv, at a fixed rate: that of its first frames.

    A frame is placed where its time says: the one before it is repeated up to there, and one that comes too
    early for the rate is left out. Longer gaps, in which the stream was dead, are left out. Images of another
    size begin another file, BASE-part2.mkv, because a file has one size. Matroska, because it plays also when
    the process was killed (but for the last seconds): an mp4 without its end does not.
    """

    def __init__(self, base: Path, say: Callable[[str], None] = lambda _: None) -> None:
        self._base, self._say, self._part = base, say, 0
        self._file: VideoFile | None = None
        self._held: list[tuple[float, np.ndarray]] = []
        self._start = 0.0
        self._last: np.ndarray | None = None

    def write(self, image: np.ndarray, taken: float) -> None:
        """Add a frame, uint8 [H, W, 3] RGB, that was taken at `taken` (monotonic s)."""
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
        """Open the file at the held frames' rate (the median of their distances), and write them."""
        held, self._held = self._held, []
        between = np.diff([taken for taken, _ in held])
        rate = 1 / max(1 / 60, float(np.median(between))) if len(between) else 1.0
        self._part += 1
        name = f"{self._base.name}-part{self._part}.mkv" if self._part > 1 else f"{self._base.name}.mkv"
        height, width = held[0][1].shape[:2]
        self._file = VideoFile(self._base.parent / name, round(max(1.0, rate), 1), width, height)
        self._start = held[0][0]
        if self._part > 1:
            self._say(f"{self._base.name}: the video continues in {name}, at {width}x{height} px")
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
        """Finish the file; safe to call twice. Raises DiskError where frames are missing."""
        if self._held:
            self._begin()
        file, self._file, self._last = self._file, None, None
        if file is not None:
            file.close()
