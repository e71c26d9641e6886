"""Frames, and the videos they come from and go to: read and written by PyAV, with the time of each frame."""
from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from detection.yuv import BT601, LIMITED, TOLD, Yuv, rgb
from utils.errors import DataError, DiskError
from utils.optional import needs
from utils.runs import cores

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream

GAP = 2.0                          # seconds without a frame from which on a recording leaves the time out
VIDEOS_BY = "to read videos and to write them (--nosave writes none)"
BAD = 200                          # damaged packets in a row that end a video
TICKS = 90_000                     # per second: the times of frames in a file, whatever its frame rate
# Both play in browsers. VP9 asks for no licence and takes sides that are odd or above 16384 px; x264 does
# not. A frame of 1920x1080 px takes 16.3 ms of a core as VP9, 8.0 kB at 52.6 dB; as H.264 5.2 ms, 8.5 kB,
# 50.9 dB, and a seventh of the memory. By crf 23 in place of the quantizer: 7.8 ms, 20.8 kB, 52.5 dB.
H264 = "libx264", {"preset": "ultrafast", "tune": "zerolatency", "qp": "21", "g": "100"}
VP9 = "libvpx-vp9", {"deadline": "realtime", "cpu-used": "8", "crf": "20", "b": "0", "g": "100",
                     "lag-in-frames": "0"}                 # by default 25 are held: 30 MB and two seconds
WIDEST = 16384                     # px, of H.264
# A killed process leaves a file that plays but for its last seconds
FILE = ".mp4", "mp4", {"movflags": "+hybrid_fragmented"}
LIVE = ".mkv", "matroska", {"cluster_time_limit": "1000", "flush_packets": "1"}


@dataclass(frozen=True)
class VideoInfo:
    """What a video says of itself: `frames` (0: unknown), size in px turned upright, a pixel's aspect.

    Where the file has not `counted` its frames, their number is its duration at the mean rate.
    """

    fps: float
    frames: int
    width: int
    height: int
    aspect: Fraction = Fraction(1)
    counted: bool = True


@dataclass(frozen=True)
class Frame:
    """One image to look at, number `index` from 0 in the file or stream of this `name`; `image` is it in RGB.

    `video` is None for an image file, of others `seconds` is the frame's time. Of a stream, `taken` is when
    it was read (monotonic s); a `live` one has no end, and frames before this may have been dropped.
    """

    name: str
    path: Path
    pixels: np.ndarray | Yuv                               # uint8 [H, W, 3] RGB, or as the video has them
    index: int
    video: VideoInfo | None
    taken: float = 0.0
    live: bool = False
    seconds: float = 0.0
    whole: tuple[int, int] | None = None       # height, width in px where the image is a smaller one

    @property
    def size(self) -> tuple[int, int]:
        """Return height and width in px, which boxes count from."""
        return self.whole or self.pixels.shape[:2]

    @property
    def image(self) -> np.ndarray:
        """Return it as uint8 [H, W, 3] RGB."""
        return rgb(self.pixels)


@contextmanager
def _opened(path: Path, max_pixels: float) -> "Iterator[tuple[InputContainer, VideoStream]]":
    """Open a video and its best stream. Raises DataError where there is none that can be read."""
    av = needs("av", VIDEOS_BY)
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    what = f"{path}: not a readable video ({path.stat().st_size} bytes"
    try:
        with path.open("rb") as file, av.open(file, metadata_errors="replace") as container:    # any name
            stream = container.streams.best("video")
            if stream is None or stream.codec_context is None:
                raise DataError(f"{what}, no video in it that FFmpeg knows)")
            if stream.width * stream.height > max_pixels:
                raise DataError(f"{path}: claims frames of {stream.width}x{stream.height} px, above the "
                                f"limit of {max_pixels:,} pixels; raise --max-pixels if that is right")
            stream.thread_type = "AUTO"                    # each thread holds frames
            stream.codec_context.thread_count = max(1, len(cores()) // 2)
            yield container, stream
    except av.FFmpegError as error:
        raise DataError(f"{what}; {error.strerror}); is it complete? "
                        "Converting it to an H.264 mp4 often helps") from None


def probe(path: Path, max_pixels: float = math.inf) -> VideoInfo:
    """Return what a video says of itself. Raises DataError where no frame of it can be decoded."""
    with _opened(path, max_pixels) as (container, stream):
        frame = next(decoded(container, stream), None)
        if frame is None:
            raise DataError(f"{path}: not a readable video ({path.stat().st_size} bytes): "
                            f"no frame of it can be decoded ({stream.codec_context.name})")
        size, aspect = (frame.width, frame.height), stream.sample_aspect_ratio or Fraction(1)
        if frame.rotation % 180:
            size, aspect = size[::-1], 1 / aspect
        return VideoInfo(rate_of(stream), length_of(container, stream), *size, aspect, stream.frames > 0)


def rate_of(stream: "VideoStream") -> float:
    """Return the frames per second; 25 where there are none or absurd ones, as broken headers say."""
    rate = float(stream.average_rate or stream.guessed_rate or 0)
    return rate if 0 < rate < 1000 else 25.0


def length_of(container: "InputContainer", stream: "VideoStream") -> int:
    """Return how many frames an opened video has, as far as it says so; 0: unknown."""
    seconds = (stream.duration or 0) * stream.time_base or Fraction(container.duration or 0, 1_000_000)
    length = stream.frames or round(float(seconds) * rate_of(stream))
    return length if 0 < length < 1e9 else 0


def read(path: Path, max_pixels: float = math.inf,
         damaged: Callable[[float], object] = lambda _: None) -> Iterator[tuple[np.ndarray | Yuv, float]]:
    """Yield a video's frames, upright [H, W, 3], with times in s; `damaged` gets a bad one's."""
    with _opened(path, max_pixels) as (container, stream):
        start, due = None, 0.0                             # when the next frame is expected
        if stream.start_time is not None:                  # the first frames may be damaged
            start = float(stream.start_time * stream.time_base)

        def amiss(at: float | None) -> None:
            damaged(due if at is None else at - (start or 0.0))
        for frame in decoded(container, stream, amiss):
            start = frame.time if start is None or start > (frame.time or start) else start
            now = due if frame.time is None else frame.time - start
            due = now + 1 / rate_of(stream)
            yield Yuv(frame) if Yuv.holds(frame) else upright(frame, "rgb24"), now


def upright(frame: "VideoFrame", form: str) -> np.ndarray:
    """Return a frame as uint8 [H, W, 3] in the format rgb24 or bgr24, turned as its video says."""
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format=form, threads=1), frame.rotation // 90))


def decoded(container: "InputContainer", stream: "VideoStream",
            damaged: Callable[[float | None], object] | None = None, whole: bool = False,
            ) -> "Iterator[VideoFrame]":
    """Yield the frames of an opened video; `damaged` gets the time in s (None: not known) of each bad one.

    BAD damaged packets in a row end it; where packets must be `whole`, so does one that was cut on its way.
    """
    import av
    bad, told, count, silent = 0, 0, 0, set[int]()         # silent: times of packets that gave no frame
    while bad < BAD:
        try:
            for packet in container.demux(stream):
                if damaged and packet.pts is not None and not packet.is_discard:
                    silent.add(packet.pts)
                try:
                    frames = packet.decode() if not packet.is_corrupt else None
                except av.FFmpegError:
                    frames = None
                if frames is None and damaged:
                    damaged(None)
                    told += 1
                bad = 0 if frames else bad + (frames is None)
                if bad == BAD or whole and packet.is_corrupt:
                    return
                for frame in frames or ():
                    silent.discard(frame.pts)
                    yield frame
                    count += 1
            break
        except av.InvalidDataError:                        # between packets: behind it may be others
            if damaged:
                damaged(None)
            bad += BAD if whole else 1
    # Some decoders leave a bad frame out and say nothing; packets of half an image, or none (VP8), are sound
    if damaged and len(silent) < count / 2 and "vp" not in stream.codec_context.name:
        for pts in sorted(silent)[:max(0, len(silent) - told)]:
            damaged(float(pts * stream.time_base))


def encoder(size: tuple[int, int], codec: str = "auto") -> tuple[str, dict[str, str]]:
    """Return the encoder of frames of (w, h) px and its options; "auto": H.264 where it can be."""
    import av
    able = "libx264" in av.codecs_available and not size[0] % 2 and not size[1] % 2 and max(size) <= WIDEST
    return H264 if codec == "auto" and able else VP9


class Recorder:
    """The video of a file or a stream being written, at BASE with its suffix; each frame at its time.

    Images of another size begin another file, BASE-part2. Of a `live` stream longer gaps, in which it was
    dead, are left out. `codec`: see `encoder`. Raises DiskError when the disk is full, at once.
    """

    def __init__(self, base: Path, live: bool, say: Callable[[str], None] = lambda _: None,
                 codec: str = "auto") -> None:
        self._base, self._live, self._say, self._codec = base, live, say, codec
        self._part, self._size, self._out = 0, (0, 0), None

    def write(self, image: np.ndarray | Yuv, seconds: float, info: VideoInfo) -> None:
        """Add a frame, uint8 [H, W, 3] RGB or a copy in YUV, of a time that grows, of a video like that."""
        av = needs("av", VIDEOS_BY)
        frame = image.frame if isinstance(image, Yuv) else av.VideoFrame.from_ndarray(image, format="rgb24")
        if image.shape[1::-1] != self._size or self._out is None:
            self.close()
            self._begin(frame, seconds, info)
        if self._live and seconds - self._last > GAP:
            self._start += seconds - self._last - 1 / info.fps
        self._last = seconds
        self._ticks = frame.pts = max(round((seconds - self._start) * TICKS), self._ticks + 1)
        frame.time_base, frame.duration = Fraction(1, TICKS), round(TICKS / info.fps)
        with self._on_disk():
            self._out.mux(self._stream.encode(frame))
        self._count += 1

    def _begin(self, frame: "VideoFrame", seconds: float, info: VideoInfo) -> None:
        import av
        size = frame.width, frame.height
        self._part += 1
        part = f"-part{self._part}" if self._part > 1 else ""
        suffix, form, options = LIVE if self._live else FILE
        self._path = self._base.with_name(self._base.name + part + suffix)
        self._size, self._last, self._ticks, self._count = size, seconds, -1, 0
        self._start = seconds if self._live or part else 0.0
        if part:
            self._say(f"{self._base.name}: the video continues in {self._path.name}, "
                      f"at {size[0]}x{size[1]} px")
        with self._on_disk():
            self._file = self._path.open("w+b", buffering=0)
            self._out = av.open(self._file, "w", form, options)
        rate = Fraction(info.fps).limit_denominator(1001)
        name, options = encoder(size, self._codec)
        self._stream = self._out.add_stream(name, rate=rate, options=options)
        self._stream.width, self._stream.height, self._stream.pix_fmt = *size, "yuv420p"
        context = self._stream.codec_context
        context.time_base, context.sample_aspect_ratio = Fraction(1, TICKS), info.aspect
        if frame.format.name == "yuv420p":
            for told in TOLD:
                setattr(context, told, getattr(frame, told))
        else:                                              # of RGB swscale makes this; players would guess
            context.colorspace, context.color_range = BT601, LIMITED

    @contextmanager
    def _on_disk(self) -> Iterator[None]:
        import av
        try:
            yield
        except (OSError, av.FFmpegError) as error:
            raise DiskError(f"{self._path}: {error.strerror}, after {self._count} frames; free some space, "
                            "choose another --project, or use --nosave (no images, no videos)") from None

    def close(self) -> None:
        """Finish the file; safe to call twice."""
        out, self._out = self._out, None
        if out is None:
            return
        with self._file, self._on_disk():
            out.mux(self._stream.encode(None))
            out.close()
