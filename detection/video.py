"""Frames, and the videos they come from and go to: reading one by one, and writing a file that plays."""
from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.errors import DataError, DiskError


@dataclass(frozen=True)
class VideoInfo:
    """What a video says of itself: frames a second (always > 0), frames (0: unknown), size in px as it is
    shown."""

    fps: float
    frames: int
    width: int
    height: int


@dataclass(frozen=True)
class Frame:
    """One picture to look at: uint8 [H, W, 3] RGB.

    `name` is its file's name, made unique within the source also without its suffix; `index` counts from 0
    within the file; `video` is None for a picture. Of a stream, `taken` is when it was read (monotonic s);
    `live` tells that frames before it may have been dropped, and that the stream has no end.
    """

    name: str
    path: Path
    image: np.ndarray
    index: int
    video: VideoInfo | None
    taken: float = 0.0
    live: bool = False


def probe(path: Path) -> VideoInfo:
    """Rate, length and shown size of a video; raises DataError where its first frame cannot be read."""
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
    """Every frame of a video in order, uint8 [H, W, 3] RGB, turned upright; the generator returns their
    number."""
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
                            "writable and the disk not full? --nosave runs without pictures and videos")

    def write(self, image: np.ndarray) -> None:
        """Adds one frame, uint8 [H, W, 3] RGB; another size than the first frame's is fitted to it."""
        import cv2
        if image.shape[1::-1] != self.size:
            image = cv2.resize(image, self.size)
        self._out.write(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        self.count += 1

    def close(self) -> None:
        """Finishes the file; raises DiskError where frames are missing: OpenCV is silent on a full disk."""
        self._out.release()
        try:
            held = probe(self.path).frames if self.count else 0
        except DataError:
            held = 0
        if held < self.count:
            raise DiskError(f"{self.path}: {held} of {self.count} frames reached the disk; is it full? "
                            "--nosave runs without pictures and videos")
