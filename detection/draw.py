"""Boxes and labels drawn on images of any size, and sheets of such images."""
from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import cache
from typing import TypeVar

import cv2
import numpy as np

from detection.yuv import Yuv

HERSHEY = cv2.FONT_HERSHEY_SIMPLEX
UNICODE = hasattr(cv2, "FontFace")  # OpenCV 5 writes more than ASCII, by a font of its own
TEXT_PX = 27.0                     # height of a text line at font scale 1, as cv2.getTextSize gives it
GOLDEN = 0.6180339887498949        # steps of the golden ratio never bring two hues close to each other soon
Image = TypeVar("Image", np.ndarray, Yuv)
CROWD = 100                        # labels that later ones make way for; more leave no free place


@cache
def colour(index: int) -> tuple[int, int, int]:
    """Return the RGB colour (0..255) of class `index`, from OKLCH (Ottosson 2020): equal steps look equal."""
    lightness = (0.70, 0.58, 0.82)[index % 3]
    hue = 2 * math.pi * ((0.08 + index * GOLDEN) % 1)
    a, b = 0.19 * math.cos(hue), 0.19 * math.sin(hue)
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    linear = (4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short,
              -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short,
              -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short)
    light = np.clip(linear, 0, 1)                          # to sRGB by IEC 61966-2-1
    coded = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return tuple((255 * coded).round().astype(int).tolist())


def text_colour(background: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return black or white RGB, whichever stands out more from `background` by Rec. 709 luminance."""
    red, green, blue = background
    return (0, 0, 0) if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 128 else (255, 255, 255)


def stroke(height: int, width: int) -> tuple[int, float]:
    """Return line width in px (at least 1) and font scale that read well on an image of height x width px."""
    side = (height + width) / 2
    return max(1, round(side * 0.0036)), (5 + 0.018 * side) / TEXT_PX


def draw(image: Image, boxes: np.ndarray, names: Sequence[str], scores: bool = True,
         labels: bool = True, line: int | None = None) -> Image:
    """Return a copy of the image, uint8 [H, W, 3] RGB or in YUV, with its finite boxes and their labels.

    `boxes` [N, 6] holds xyxy px, score, class, or [N, 5] xyxy, class: ground truth, which carries no score.
    """
    out = image.copy() if isinstance(image, Yuv) else np.array(image, order="C")
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, np.shape(boxes)[-1] if len(boxes) else 6)
    boxes = boxes[np.isfinite(boxes).all(1)]
    height, width = out.shape[:2]
    auto, scale = stroke(height, width)
    thick = auto if line is None else line
    inset = thick // 2                                     # a line, drawn centred, stays inside the image
    limits = np.maximum(inset, np.array([width, height]) - 1 - inset)
    corners = np.clip(boxes[:, :4].round().reshape(-1, 2, 2), inset, limits).astype(int).tolist()
    for row, (low, high) in zip(boxes[::-1], corners[::-1]): # the best, which come first, on top
        _rectangle(out, low, high, colour(int(row[-1])), thick)
    placed: list[tuple[int, int, int, int]] = []
    for row in boxes if labels else ():
        text = class_name(int(row[-1]), names)
        if scores and len(row) > 5:
            text += f" {row[4]:.2f}"
        _label(out, text, row, scale, colour(int(row[-1])), placed)
    return out


def class_name(index: int, names: Sequence[str]) -> str:
    """Return the name of class `index`, or its number where it has none or OpenCV's font cannot write it."""
    name = names[index] if 0 <= index < len(names) else f"class {index}"
    return name if name.isascii() or UNICODE else f"class {index}"


def _label(out: Image, text: str, row: np.ndarray, scale: float, fill: tuple[int, int, int],
           placed: list[tuple[int, int, int, int]]) -> None:
    """Write one filled label where it covers the `placed` ones least, and add its place to them."""
    height, width = out.shape[:2]
    (text_w, text_h), base = cv2.getTextSize(text, HERSHEY, scale, 1)
    if text_w + 4 > width:                                 # a long name on a narrow image
        scale = max(0.2, scale * (width - 4) / text_w)
        (text_w, text_h), base = cv2.getTextSize(text, HERSHEY, scale, 1)
    pad = max(1, round(text_h * 0.15))
    size = (text_w + 2 * pad, text_h + base + pad)
    x, y = _place(row, size, (width, height), placed)
    placed.append((x, y, x + size[0], y + size[1]))
    _rectangle(out, (x, y), (x + size[0] - 1, y + size[1] - 1), fill, cv2.FILLED)
    for plane, step, value in _layers(out, text_colour(fill)):
        part = plane[y // step:(y + size[1]) // step + 1, x // step:(x + size[0]) // step + 1]
        wide = part.repeat(step, 0).repeat(step, 1)        # text of another scale would have other gaps
        foot = (pad + x % step, y % step + text_h + pad // 2)
        cv2.putText(wide, text, foot, HERSHEY, scale, value, 1, cv2.LINE_AA)
        part[:] = cv2.resize(wide, part.shape[1::-1], interpolation=cv2.INTER_AREA)


def _layers(out: Image, fill: tuple[int, int, int]) -> Iterable[tuple[np.ndarray, int, object]]:
    """Return the arrays to draw on, how many px a value of each covers, and what the colour is there."""
    return out.layers(fill) if isinstance(out, Yuv) else ((out, 1, fill),)


def _rectangle(out: Image, low: Sequence[int], high: Sequence[int], fill: tuple[int, int, int],
               thick: int) -> None:
    for plane, step, value in _layers(out, fill):
        corners = [(x // step, y // step) for x, y in (low, high)]
        # half as thick, and odd, so that it lies on both sides of its middle
        cv2.rectangle(plane, *corners, value, thick if step == 1 or thick < 0 else (thick + 1) // 2 | 1)


def _place(row: np.ndarray, size: tuple[int, int], image: tuple[int, int],
           placed: list[tuple[int, int, int, int]]) -> tuple[int, int]:
    """Return the corner (x, y) of a label of `size` (w, h) px inside the image, best clear of `placed`."""
    x1, y1, x2, y2 = (int(value) for value in row[:4].round())
    best, least = (0, 0), math.inf
    for wanted_x in (x1, x2 - size[0]):                    # at the box's left, then at its right end
        for wanted_y in (y1 - size[1], y1, y2 + 1, y2 - size[1]):      # above, inside its top, below, inside
            x = max(0, min(wanted_x, image[0] - size[0]))
            y = max(0, min(wanted_y, image[1] - size[1]))
            cover = sum(max(0, min(x + size[0], x2) - max(x, x1)) * max(0, min(y + size[1], y2) - max(y, y1))
                        for x1, y1, x2, y2 in placed[:CROWD])      # px of other labels
            if cover < least:
                best, least = (x, y), cover
            if cover == 0:
                return best
    return best


def contact_sheet(images: Sequence[np.ndarray], columns: int, cell: tuple[int, int] = (320, 320),
                  captions: Sequence[str] = (), gap: int = 6) -> np.ndarray:
    """Return one image [H, W, 3] (uint8 RGB) of all images, captioned, undistorted in cells of (w, h) px."""
    columns = max(1, min(columns, len(images)))
    rows = max(1, math.ceil(len(images) / columns))
    head = 22 if any(captions) else 0
    step_x, step_y = cell[0] + gap, cell[1] + head + gap
    sheet = np.full((rows * step_y + gap, columns * step_x + gap, 3), 255, np.uint8)
    for position, image in enumerate(images):
        x, y = gap + position % columns * step_x, gap + position // columns * step_y
        text = captions[position] if position < len(captions) else ""
        while text and cv2.getTextSize(text, HERSHEY, 0.5, 1)[0][0] > cell[0]:
            text = text[:-2] + "." if len(text) > 2 else ""
        cv2.putText(sheet, text, (x, y + 15), HERSHEY, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
        scale = min(cell[0] / image.shape[1], cell[1] / image.shape[0])
        size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
        small = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
        left, top = x + (cell[0] - size[0]) // 2, y + head + (cell[1] - size[1]) // 2
        sheet[top:top + size[1], left:left + size[0]] = small
    return sheet
