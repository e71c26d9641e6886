"""Image to training image: letterbox, mosaic, albumentations. Boxes: float32 [M, 5] (class, xyxy px)."""
from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from utils.boxes import PAD_VALUE, Geometry, letterbox_geometry
from utils.errors import DataError

FILES = (".yaml", ".yml", ".json")             # how the name of a serialised pipeline ends
MIN_SIDE = 2                       # px; a smaller box teaches nothing
MIN_VISIBLE = 0.2                  # of a box's area; a sliver at the edge teaches the wrong thing


@dataclass(frozen=True)
class Augment:
    """Strength of the variation of training images; all zero leaves them as they are."""

    mosaic: float = 0.0            # probability of four images in one
    flip: float = 0.0              # probability of a mirror; 0 where direction matters (digits, text)
    hue: float = 0.0               # largest shift, as a share of the colour circle
    saturation: float = 0.0        # largest relative change
    value: float = 0.0             # largest relative change of brightness
    degrees: float = 0.0           # largest rotation
    translate: float = 0.0         # largest shift, as a share of the side
    scale: float = 0.0             # at most 1 + scale times larger, or smaller
    shear: float = 0.0             # largest shear in degrees
    mixup: float = 0.0             # share of images mixed with another
    also: tuple[str, ...] = ()     # names of TRANSFORMS that follow
    own: str = ""                  # a pipeline as albumentations serialises it: all but mosaic and mixup


DEFAULT = Augment(mosaic=1.0, flip=0.5, hue=0.015, saturation=0.6, value=0.4, translate=0.1, scale=0.5)
PRESETS = {"none": Augment(), "default": DEFAULT,
           "light": Augment(flip=0.5, hue=0.01, saturation=0.3, value=0.2, translate=0.05, scale=0.2),
           "no-flip": replace(DEFAULT, flip=0.0)}
# Further transforms by the name that `Augment.also` gives: albumentations -> a transform of its.
TRANSFORMS: dict[str, Callable[[Any], Any]] = {}


def preset(name: str) -> Augment:
    """Return the named strength (no-flip is for digits and text), or that of a pipeline's file.

    Raises ValueError for an unknown name, DataError for a file that holds no pipeline or one of no use.
    """
    if name.endswith(FILES):
        return _from_file(Path(name))
    if name not in PRESETS:
        raise ValueError(f"augmentation {name!r}: needs one of {', '.join(PRESETS)}")
    return PRESETS[name]


def letterbox(image: np.ndarray, size: int | tuple[int, int]) -> tuple[np.ndarray, Geometry]:
    """Centre the undistorted image uint8 [H, W, 3] on grey [S, S, 3] (size: int or (h, w)) and say where."""
    geometry = letterbox_geometry(*image.shape[:2], size)
    height, width = (size, size) if isinstance(size, int) else size
    if image.shape[:2] != (geometry.height, geometry.width):
        # INTER_AREA averages when shrinking, where INTER_LINEAR would skip pixels of small objects
        how = cv2.INTER_AREA if geometry.scale < 1 else cv2.INTER_LINEAR
        image = cv2.resize(image, (geometry.width, geometry.height), interpolation=how)
    out = np.full((height, width, 3), PAD_VALUE, np.uint8)
    out[geometry.top:geometry.top + geometry.height, geometry.left:geometry.left + geometry.width] = image
    return out, geometry


def letterbox_boxes(boxes: np.ndarray, geometry: Geometry, height: int, width: int) -> np.ndarray:
    """Move boxes [M, 5] of a height x width image to px of the input; utils.boxes.scale_back undoes it."""
    ratio = np.array((geometry.width / width, geometry.height / height) * 2, np.float32)
    offset = np.array((geometry.left, geometry.top) * 2, np.float32)
    return np.concatenate((boxes[:, :1], boxes[:, 1:] * ratio + offset), 1).astype(np.float32)


def mosaic(tiles: Sequence[tuple[np.ndarray, np.ndarray]], size: int,
           rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Join four images (uint8 [h, w, 3] unpadded, boxes [M, 5]) into one [S, S, 3] with boxes [N, 5].

    Each fills its quarter around a random centre, without grey. Bochkovskiy et al. 2020, arXiv 2004.10934.
    """
    out = np.empty((size, size, 3), np.uint8)
    middle_x, middle_y = (int(size * v) for v in rng.uniform(0.3, 0.7, 2))
    corners = ((0, 0, middle_x, middle_y), (middle_x, 0, size, middle_y),
               (0, middle_y, middle_x, size), (middle_x, middle_y, size, size))
    found = []
    for (image, boxes), (left, top, right, bottom) in zip(tiles, corners):
        height, width = image.shape[:2]
        fill = max((right - left) / width, (bottom - top) / height)
        zoom = rng.uniform(fill, max(fill, 1.0))
        view_w, view_h = (right - left) / zoom, (bottom - top) / zoom      # the cut, in px of the image
        x, y = rng.uniform(0, max(0.0, width - view_w)), rng.uniform(0, max(0.0, height - view_h))
        x0, y0 = int(x), int(y)
        x1, y1 = min(width, max(x0 + 1, round(x + view_w))), min(height, max(y0 + 1, round(y + view_h)))
        out[top:bottom, left:right] = cv2.resize(image[y0:y1, x0:x1], (right - left, bottom - top))
        ratio = ((right - left) / (x1 - x0), (bottom - top) / (y1 - y0))
        moved = (boxes[:, 1:] - np.array((x0, y0) * 2, np.float32)) * np.array(ratio * 2, np.float32)
        moved += np.array((left, top) * 2, np.float32)
        found.append(clip_boxes(np.concatenate((boxes[:, :1], moved), 1), left, top, right, bottom))
    return out, np.concatenate(found).astype(np.float32)


def clip_boxes(boxes: np.ndarray, left: float, top: float, right: float, bottom: float) -> np.ndarray:
    """Cut boxes [M, 5] to a rectangle and drop those that keep too little of themselves."""
    low, high = np.array((left, top), np.float32), np.array((right, bottom), np.float32)
    corners = np.concatenate((boxes[:, 1:3].clip(low, high), boxes[:, 3:5].clip(low, high)), 1)
    sides, before = corners[:, 2:] - corners[:, :2], (boxes[:, 3:5] - boxes[:, 1:3]).prod(1)
    keep = (sides.min(1, initial=np.inf) >= MIN_SIDE) & (sides.prod(1) >= MIN_VISIBLE * before)
    return np.concatenate((boxes[:, :1], corners), 1)[keep]


def mix(image: np.ndarray, other: np.ndarray, share: float) -> np.ndarray:
    """Return two images uint8 [S, S, 3] in one, `share` of the first (mixup, 2018, arXiv 1710.09412)."""
    return cv2.addWeighted(image, share, other, 1 - share, 0)


class Pipeline:
    """Affine, mirror and colour; calls are independent, each with its own generator."""

    def __init__(self, settings: Augment) -> None:
        self.settings = settings
        self._compose: Any = None    # built at the first call, or before

    def build(self) -> None:
        """Import and build what the calls need, once for all the workers that this process starts later."""
        if self._compose is None:
            self._compose = _compose(self.settings)

    def __call__(self, image: np.ndarray, boxes: np.ndarray,
                 rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Vary an image uint8 [S, S, 3] and its boxes [M, 5], by `rng` alone."""
        self.build()
        # one stream for all transforms; set_random_seed would start each of them with the same numbers
        python_random = random.Random(int(rng.integers(2 ** 62)))
        self._compose.set_random_state(rng, python_random)
        out = self._compose(image=image, bboxes=np.roll(boxes, -1, axis=1))
        rows = np.asarray(out["bboxes"], np.float32).reshape(-1, 5)
        same = (out["image"].shape, out["image"].dtype) == (image.shape, image.dtype)
        if not same or not np.isfinite(rows).all():
            raise DataError(f"--augment: the pipeline made {out['image'].dtype} {out['image'].shape} of "
                            f"{image.dtype} {image.shape}, or boxes without a place: leave out what changes "
                            "size or type (ToFloat, Normalize, ToTensorV2, a Resize or crop to another side)")
        return out["image"], np.roll(rows, 1, axis=1)


def _compose(settings: Augment) -> Any:
    """Build the albumentations pipeline of these settings; boxes are rows (xyxy px, class)."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")     # else it asks PyPI for its newest version
    import albumentations as A
    s, steps = settings, []
    rules = A.BboxParams(format="pascal_voc", label_fields=[], min_width=MIN_SIDE, min_height=MIN_SIDE,
                         min_visibility=MIN_VISIBLE, clip=True)
    if s.own:
        return A.Compose(_read(s.own), bbox_params=rules)
    if any((s.degrees, s.translate, s.scale, s.shear)):
        steps.append(A.Affine(scale=(1 / (1 + s.scale), 1 + s.scale), keep_ratio=True,
                              translate_percent=(-s.translate, s.translate), rotate=(-s.degrees, s.degrees),
                              shear=(-s.shear, s.shear), fill=PAD_VALUE, p=1.0))
    steps.append(A.HorizontalFlip(p=s.flip))
    if any((s.hue, s.saturation, s.value)):
        steps.append(_colour_step(s))
    steps += [TRANSFORMS[name](A) for name in s.also]
    return A.Compose(steps, bbox_params=rules)


def _read(text: str) -> list[Any]:
    """Return the transforms of a serialised pipeline, whose own rules for boxes give way to ours."""
    import albumentations as A
    import yaml
    found = A.from_dict(yaml.safe_load(text))      # only transforms of its own register, by name
    return list(found.transforms) if type(found) is A.Compose else [found]


def _from_file(path: Path) -> Augment:
    """Return mosaic and the pipeline in a file, tried on an image. Raises DataError."""
    try:
        settings = Augment(mosaic=DEFAULT.mosaic, own=path.read_text(encoding="utf-8"))
        image = np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)
        boxes = np.array([[0, 20, 20, 70, 60]], np.float32)
        for seed in range(4):
            Pipeline(settings)(image, boxes, np.random.default_rng(seed))
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except Exception as error:                     # transforms raise what they like
        raise DataError(f"--augment {path} is no albumentations pipeline that can be used: "
                        f"{type(error).__name__}: {error}; write it with albumentations' A.save") from None
    return settings


def _colour_step(settings: Augment) -> Any:
    """Build a transform that varies colours by one matrix: 0.1 ms at 416 px, HueSaturationValue takes 1.6."""
    import albumentations as A

    class ColourMatrix(A.ImageOnlyTransform):
        """`shift_colours` with amounts drawn within the settings' limits."""

        def get_params(self) -> dict[str, Any]:
            limits = (settings.hue, settings.saturation, settings.value)
            return {"amounts": self.random_generator.uniform(-1, 1, 3) * limits}

        def apply(self, img: np.ndarray, amounts: np.ndarray, **_: Any) -> np.ndarray:
            return shift_colours(img, *amounts)

    return ColourMatrix(p=1.0)


def shift_colours(image: np.ndarray, hue: float, saturation: float, value: float) -> np.ndarray:
    """Turn the hue of an image uint8 [H, W, 3] RGB by a share of the circle, scale the others by 1 + x."""
    cos, sin = np.cos(2 * np.pi * hue), np.sin(2 * np.pi * hue)
    axis = np.array(((0, -1, 1), (1, 0, -1), (-1, 1, 0))) / np.sqrt(3)
    turn = cos * np.eye(3) + (1 - cos) / 3 + sin * axis          # Rodrigues about (1, 1, 1)
    luma = np.tile((0.299, 0.587, 0.114), (3, 1))
    stretch = (1 + saturation) * np.eye(3) - saturation * luma
    return cv2.transform(image, (1 + value) * stretch @ turn)
