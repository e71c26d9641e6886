"""Images that two splits share: the same bytes, or nearly the same image by a perceptual hash."""
from __future__ import annotations

import contextlib
import filecmp
import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import cv2
import numpy as np

from data.coco.clean import Fault, fault
from data.coco.read import CocoSet, ImageRecord
from data.images import MAX_PIXELS, decode

# Together these find every re-saved, resized, noisy or grey copy of 150 VOC photographs, 99 % of brightened
# ones and 75 % of those with 3 % cropped away, and report none of 700,000 pairs of different photographs.
BITS_APART = 14                    # of 64; unrelated photographs differ in 32 or so
LEAST_CORRELATION = 0.94           # of 16x16 thumbnails; weeds out what shares only its rough shading
FLAT = 4.0                         # grey levels; below this contrast the bits are noise
REDUCED = ((256, cv2.IMREAD_REDUCED_GRAYSCALE_8), (128, cv2.IMREAD_REDUCED_GRAYSCALE_4),
           (64, cv2.IMREAD_REDUCED_GRAYSCALE_2), (0, cv2.IMREAD_GRAYSCALE))


class Fingerprints(NamedTuple):
    """What images are compared by, one row each."""

    digests: tuple[str, ...]
    bits: np.ndarray               # float32 [N, 64] of -1 and 1: darker or lighter to the right
    thumbnails: np.ndarray         # float32 [N, 256], such that a dot product is a correlation


def fingerprints(images: Sequence[ImageRecord], max_pixels: int = MAX_PIXELS) -> Fingerprints:
    """Return the fingerprints of images, whose shorter sides tell how coarsely they may be decoded."""
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        rows = list(pool.map(partial(_fingerprint, max_pixels=max_pixels), images, chunksize=16))
    digests, bits, thumbnails = zip(*rows) if rows else ((), (), ())
    return Fingerprints(tuple(digests), np.array(bits, np.float32).reshape(-1, 64),
                        np.array(thumbnails, np.float32).reshape(-1, 256))


def _fingerprint(image: ImageRecord, max_pixels: int) -> tuple[str, np.ndarray, np.ndarray]:
    """Return the digest of the bytes, 64 signs and a normalised thumbnail of one image."""
    data = np.fromfile(image.path, np.uint8)
    flag = next(flag for least, flag in REDUCED if min(image.width, image.height) >= least)
    grey = None
    with contextlib.suppress(cv2.error):
        grey = cv2.imdecode(data, flag | cv2.IMREAD_IGNORE_ORIENTATION)
    if grey is None:
        grey = cv2.cvtColor(decode(image.path, max_pixels), cv2.COLOR_RGB2GRAY)
    steps = cv2.resize(grey, (9, 8), interpolation=cv2.INTER_AREA).astype(np.float32)
    thumbnail = cv2.resize(grey, (16, 16), interpolation=cv2.INTER_AREA).astype(np.float32)
    thumbnail = (thumbnail - thumbnail.mean()) / (16 * max(float(thumbnail.std()), FLAT))
    signs = np.where(np.diff(steps, axis=1) > 0, 1, -1)
    return hashlib.blake2b(data.tobytes(), digest_size=16).hexdigest(), signs.ravel(), thumbnail.ravel()


def empty_classes(coco: CocoSet) -> list[Fault]:
    """Return the note of classes without a box: their AP is undefined and stays out of the mean."""
    present = {int(label) for image in coco.images for label in image.boxes[:, 0]}
    missing = [name for k, name in enumerate(coco.names) if k not in present]
    return fault("class-without-boxes", missing, "classes without a box here: no AP, left out of the mean")


def start_faults(train: CocoSet, val: CocoSet) -> dict[str, list[Fault]]:
    """Return by split what training says at its start; compare only files of the same checksum."""
    known = {(record.crc, record.width, record.height): record.path for record in train.records}
    same = [f"train {old.name} = val {record.path.name}" for record in val.images
            if (old := known.get((record.crc, record.width, record.height)))
            and filecmp.cmp(old, record.path, shallow=False)]
    advice = "images of val that train has byte for byte: accuracy will look too good; " \
        "python -m data.doctor finds near ones, too"
    if len(same) == len(val.images):
        advice = "EVERY image of val is one that train learns: AP will say how well these are known by " \
            "heart, not what the network does on new images; name others for val, or train alone " \
            "(--val-split 0.2)"
    return {"train": empty_classes(train), "val": empty_classes(val) + fault("leak-same-file", same, advice)}


def same_bytes(first: Fingerprints, second: Fingerprints) -> list[tuple[int, int]]:
    """Return pairs (position in first, position in second) of files with the same bytes."""
    where: dict[str, list[int]] = {}
    for i, digest in enumerate(first.digests):
        where.setdefault(digest, []).append(i)
    return [(i, j) for j, digest in enumerate(second.digests) for i in where.get(digest, ())]


def repeats(prints: Fingerprints) -> list[tuple[int, int]]:
    """Return pairs (first position, later position) of files with the same bytes inside one split."""
    first: dict[str, int] = {}
    return [(first[digest], j) for j, digest in enumerate(prints.digests) if first.setdefault(digest, j) != j]


def near_duplicates(first: Fingerprints, second: Fingerprints, block: int = 1024) -> list[tuple[int, int]]:
    """Return pairs (position in first, in second) of nearly the same, unturned image, but other bytes."""
    pairs = []
    for start in range(0, len(first.bits), block):
        agreement = first.bits[start:start + block] @ second.bits.T        # 64 - 2 x differing bits
        rows, columns = np.nonzero(agreement >= 64 - 2 * BITS_APART)
        alike = np.einsum("nd,nd->n", first.thumbnails[rows + start], second.thumbnails[columns])
        pairs += [(int(i) + start, int(j)) for i, j in
                  zip(rows[alike >= LEAST_CORRELATION], columns[alike >= LEAST_CORRELATION])]
    return [(i, j) for i, j in pairs if first.digests[i] != second.digests[j]]
