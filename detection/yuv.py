"""A video's frame as its decoder left it, in YUV: fitted, drawn on and written without a large RGB image."""
from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from data.augment import letterbox
from utils.boxes import PAD_VALUE, Geometry, letterbox_geometry

if TYPE_CHECKING:
    from av import VideoFrame

PLANAR = ("yuv420p", "yuvj420p")                           # what is drawn on and written
BT601 = 6                                                  # the matrix where none is told, FFmpeg's number
WEIGHTS = {1: (0.2126, 0.0722), 9: (0.2627, 0.0593), 10: (0.2627, 0.0593), BT601: (0.299, 0.114)}
LIMITED, FULL = 1, 2                                       # the range: 16..235, where none is told, or 0..255
TOLD = ("colorspace", "color_range", "color_primaries", "color_trc")   # what a frame says of its colours


class Yuv:
    """A frame in a YUV format; `shape` [H, W, 3] is its RGB image's. Its decoder reads it: draw on copies."""

    def __init__(self, frame: "VideoFrame") -> None:
        self.frame: VideoFrame = frame
        self.shape = frame.height, frame.width, 3

    @staticmethod
    def holds(frame: "VideoFrame") -> bool:
        """Return whether a frame is one: in YUV, upright, and of one moment."""
        return (frame.format.name.startswith(("yuv", "nv", "p0")) and not frame.rotation
                and not frame.interlaced_frame)

    def forget(self) -> None:
        """Let the pixels go, where no one will look again; the shape stays."""
        self.frame = None

    def letterbox(self, size: int) -> tuple[np.ndarray, Geometry]:
        """Return what `data.augment.letterbox` makes of the RGB image, but for a few of 255 grey levels."""
        geometry = letterbox_geometry(*self.shape[:2], size)
        if geometry.scale >= 1:
            return letterbox(rgb(self), size)
        from av.video.reformatter import Interpolation
        how = Interpolation.AREA | Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND
        small = self.frame.reformat(geometry.width, geometry.height, "rgb24", interpolation=how, threads=1)
        out = np.full((size, size, 3), PAD_VALUE, np.uint8)
        out[geometry.top:geometry.top + geometry.height,
            geometry.left:geometry.left + geometry.width] = small.to_ndarray()
        return out, geometry

    def copy(self) -> "Yuv":
        """Return a copy in yuv420p, to be drawn on; its colours mean what they did."""
        from av import VideoFrame
        if self.frame.format.name not in PLANAR:
            return Yuv(self.frame.reformat(format="yuv420p", threads=1))
        out = VideoFrame(*self.shape[1::-1], "yuv420p")    # J is told by the range alone
        for name in TOLD:
            setattr(out, name, getattr(self.frame, name))
        if self.frame.format.name == "yuvj420p":
            out.color_range = FULL
        for new, old in zip(planes(out), planes(self.frame)):
            new[:] = old
        return Yuv(out)

    def layers(self, colour: tuple[int, int, int]) -> Iterator[tuple[np.ndarray, int, int]]:
        """Yield each plane of a copy, how many px a value of it covers, and what an RGB colour is there."""
        red, _, blue = colour
        of_red, of_blue = WEIGHTS.get(self.frame.colorspace, WEIGHTS[BT601])
        luma = of_red * red + (1 - of_red - of_blue) * colour[1] + of_blue * blue
        wide = self.frame.color_range == FULL
        chroma = [(blue - luma) / (1 - of_blue) / 2, (red - luma) / (1 - of_red) / 2]
        values = [luma if wide else 16 + 219 / 255 * luma,
                  *(128 + value * (1 if wide else 224 / 255) for value in chroma)]
        for plane, step, value in zip(planes(self.frame), (1, 2, 2), values):
            yield plane, step, min(255, round(value))


def rgb(pixels: "np.ndarray | Yuv") -> np.ndarray:
    """Return an image that is in RGB already, or a frame in YUV, as uint8 [H, W, 3] RGB."""
    return pixels if isinstance(pixels, np.ndarray) else pixels.frame.to_ndarray(format="rgb24", threads=1)


def planes(frame: "VideoFrame") -> list[np.ndarray]:
    """Return the planes of a planar frame of 8 bits, uint8 [h, w], in its own memory."""
    return [np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[:, :plane.width]
            for plane in frame.planes]
