"""The embedded data set: scikit-learn's digits on its photographs, made on first use, the same every time."""
from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from data.coco.jsonfile import coco_content
from utils import cli
from utils.errors import DataError

# Words, so that `--classes 3` can only mean a number
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
MANIFEST = "scenes.json"
VERSION = 1                        # raise when the rendering changes, so that old sets are made again
SMALLEST, LARGEST = 16, 120        # px, the longer side of a digit's box in a 320 px image
TILT = 25                          # degrees; 6 and 9 stay apart
MIN_VISIBLE = 0.65                 # share of every digit's ink that later digits leave uncovered
MAX_BOX_OVERLAP = 0.3              # of the smaller box: above it even a perfect detector loses boxes to NMS


class Material(NamedTuple):
    """What a split is made of: scans [n, 8, 8] in 0..1, labels [n], backgrounds (uint8 [h, w, 3] RGB)."""

    scans: np.ndarray
    labels: np.ndarray
    regions: tuple[np.ndarray, ...]


def default_folder() -> Path:
    """Return the folder the set is made in unless told otherwise: datasets/scenes beside the code."""
    return Path(__file__).resolve().parent.parent / "datasets" / "scenes"


def make_scenes(folder: str | Path | None = None, train: int = 800, val: int = 200, size: int = 320,
                seed: int = 0) -> Path:
    """Return the folder of the set, made whole where it is not there; raise DataError for another's files."""
    folder = Path(folder) if folder is not None else default_folder()
    if min(train, val) < 1 or size < 160:
        raise DataError(f"scenes: {train} train and {val} val images of {size} px: "
                        "needs 1 or more of each and 160 px or more")
    wanted = {"version": VERSION, "train": train, "val": val, "size": size, "seed": seed}
    if _manifest(folder) == wanted:
        return folder
    if folder.exists() and _manifest(folder) is None and any(folder.iterdir()):
        raise DataError(f"{folder}: holds files that are not a scenes set and would be overwritten; "
                        "give an empty or a new folder")
    part = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    try:
        _render(part, {"train": train, "val": val}, size, seed)
        (part / MANIFEST).write_text(json.dumps(wanted))
        if folder.exists() and _manifest(folder) != wanted:
            shutil.rmtree(folder)
        if not folder.exists():    # another process may have finished the same set meanwhile
            os.replace(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def _manifest(folder: Path) -> dict | None:
    """Return the parameters a finished set was made with; None where there is none."""
    try:
        return json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError):
        return None


def _render(folder: Path, counts: dict[str, int], size: int, seed: int) -> None:
    """Write both splits' images and annotation files."""
    (folder / "images").mkdir(parents=True)
    (folder / "annotations").mkdir()
    first_id = 1
    for number, (split, material) in enumerate(_materials(seed).items()):
        images = []
        for position in range(counts[split]):
            image, found = scene(material, size, np.random.default_rng([seed, number, position]))
            images.append((f"{split}_{position:04d}.jpg", size, size,
                           [(label + 1, x, y, w, h, w * h, 0) for label, x, y, w, h in found]))
            _write_jpeg(folder / "images" / images[-1][0], image)
        content = coco_content(images, dict(enumerate(NAMES, 1)), first_id,
                               {"description": "handwritten digits on photographs", "version": VERSION})
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
        first_id += counts[split]


def _materials(seed: int) -> dict[str, Material]:
    """Return each split's own share: 80/20 of the shuffled scans, left and right parts of photographs."""
    from sklearn.datasets import load_digits, load_sample_images
    digits = load_digits()
    order = np.random.default_rng([seed, 99]).permutation(len(digits.target))
    cut = len(order) * 4 // 5
    backgrounds = [(image, int(image.shape[1] * 0.62)) for image in load_sample_images().images]
    parts = {"train": (order[:cut], tuple(image[:, :x] for image, x in backgrounds)),
             "val": (order[cut:], tuple(image[:, x:] for image, x in backgrounds))}
    return {split: Material(digits.images[rows].astype(np.float32) / 16, digits.target[rows], regions)
            for split, (rows, regions) in parts.items()}


def scene(material: Material, size: int,
          rng: np.random.Generator) -> tuple[np.ndarray, list[tuple[int, ...]]]:
    """Return an image uint8 [size, size, 3] RGB and its digits (label, x, y, w, h; top-left, whole px)."""
    image = _background(material.regions, size, rng).astype(np.float32)
    masks: list[tuple[np.ndarray, float]] = []           # the ink still visible, and how much it was
    found: list[tuple[int, ...]] = []
    for _ in range(int(rng.integers(1, 7))):
        for _attempt in range(8):
            row = int(rng.integers(len(material.labels)))
            mask, box = _digit(material.scans[row], size, rng)
            if _fits(mask, box, masks, found):
                _ink(image, mask, box, rng)
                masks.append((mask, float(mask.sum())))
                found.append((int(material.labels[row]), *box))
                break
    return np.clip(image, 0, 255).astype(np.uint8), found


def _background(regions: tuple[np.ndarray, ...], size: int, rng: np.random.Generator) -> np.ndarray:
    """Return a crop of one region [size, size, 3], mirrored and toned at random."""
    region = regions[int(rng.integers(len(regions)))]
    side = int(rng.integers(120, min(region.shape[:2]) - 4))
    y, x = (int(rng.integers(0, length - side + 1)) for length in region.shape[:2])
    crop = cv2.resize(region[y:y + side, x:x + side], (size, size), interpolation=cv2.INTER_CUBIC)
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    return np.clip(crop * rng.uniform(0.6, 1.15) + rng.uniform(-10, 25), 0, 255)


def _digit(scan: np.ndarray, size: int, rng: np.random.Generator) -> tuple[np.ndarray, tuple[int, ...]]:
    """Return a scan turned, scaled and placed: mask float32 [size, size] in 0..1, and its box (xywh px)."""
    padded = np.pad(scan, 2)
    target = (SMALLEST + (LARGEST - SMALLEST) * rng.random() ** 1.2) * size / 320
    angle = rng.uniform(-TILT, TILT)
    turned = cv2.getRotationMatrix2D((5.5, 5.5), angle, target / 8)
    side = int(target * 1.9) + 4
    turned[:, 2] += side / 2 - 5.5
    # INTER_CUBIC keeps strokes round where bilinear shows the 8x8 grid
    drawn = cv2.warpAffine(padded, turned, (side, side), flags=cv2.INTER_CUBIC)
    drawn = np.clip((drawn - 0.35) / 0.3, 0, 1)
    rows, columns = np.flatnonzero((drawn > 0.4).any(1)), np.flatnonzero((drawn > 0.4).any(0))
    drawn = drawn[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1]
    shrink = target / max(drawn.shape)
    h, w = (max(3, round(length * shrink)) for length in drawn.shape)
    drawn = cv2.resize(drawn, (w, h), interpolation=cv2.INTER_AREA if shrink < 1 else cv2.INTER_LINEAR)
    x, y = int(rng.integers(0, size - w + 1)), int(rng.integers(0, size - h + 1))
    mask = np.zeros((size, size), np.float32)
    mask[y:y + h, x:x + w] = drawn
    return mask, (x, y, w, h)


def _fits(mask: np.ndarray, box: tuple[int, ...], masks: list[tuple[np.ndarray, float]],
          found: list[tuple[int, ...]]) -> bool:
    """Return whether a new digit on top leaves every earlier one legible."""
    x, y, w, h = box
    for (other, total), (_, ox, oy, ow, oh) in zip(masks, found):
        shared = max(0, min(x + w, ox + ow) - max(x, ox)) * max(0, min(y + h, oy + oh) - max(y, oy))
        if shared > MAX_BOX_OVERLAP * min(w * h, ow * oh):
            return False
        if (other * (1 - mask)).sum() < MIN_VISIBLE * total:
            return False
    for other, _ in masks:         # earlier inks lose the covered part for the digits still to come
        other *= 1 - mask
    return True


def _ink(image: np.ndarray, mask: np.ndarray, box: tuple[int, ...], rng: np.random.Generator) -> None:
    """Paint the mask into the float image [H, W, 3], in a colour unlike what lies beneath."""
    x, y, w, h = box
    patch = image[y:y + h, x:x + w]
    beneath = float(patch.mean())
    for _attempt in range(20):
        colour = rng.uniform(0, 255, 3)
        if abs(colour.mean() - beneath) > 80:
            break
    else:
        colour = np.full(3, 250.0 if beneath < 128 else 10.0)
    alpha = mask[y:y + h, x:x + w, None] * rng.uniform(0.75, 1.0)
    patch += alpha * (colour - patch)


def _write_jpeg(path: Path, image: np.ndarray) -> None:
    """Write uint8 [H, W, 3] RGB as JPEG of quality 92, under any file name."""
    _, encoded = cv2.imencode(".jpg", image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])
    path.write_bytes(encoded.tobytes())


def main() -> None:
    """Make the set in the folder named on the command line."""
    parser = cli.parser("Make the embedded data set: digits on photographs.", "seed")
    parser.add_argument("--out", default=str(default_folder()), help="folder of the set")
    parser.add_argument("--train", type=int, default=800, help="training images")
    parser.add_argument("--val", type=int, default=200, help="validation images")
    parser.add_argument("--size", type=int, default=320, help="image side in px")
    args = cli.check(parser, parser.parse_args())
    print(make_scenes(args.out, args.train, args.val, args.size, args.seed))


if __name__ == "__main__":
    cli.run(main)
