"""One annotation file divided into train and val: frames of a video, images of a folder stay together."""
from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from data.coco.clean import id_key
from data.coco.jsonfile import sections
from utils.errors import DataError


def divide(content: dict, share: float, seed: int, path: Path) -> dict[str, dict]:
    """Return the COCO contents of "train" and "val", which has about `share` of the images.

    Whole groups go to val (a video, a folder, names alike but for a number), or, with one group or where val
    would have a class that train lacks, the end of every group. Raises DataError for fewer than two images.
    """
    categories, images, annotations = sections(content, path)
    groups: dict[str, list[int]] = {}
    order = sorted(range(len(images)), key=lambda i: _place(images[i])[1])
    for i in order:
        groups.setdefault(_place(images[i])[0], []).append(i)
    if len(images) < 2:
        raise DataError(f"{path}: one image cannot be both train and val; name another file for val")
    labels: dict[str, set[str]] = {}
    for a in annotations:
        labels.setdefault(id_key(a.get("image_id")), set()).add(id_key(a.get("category_id")))

    def classes(positions: set[int]) -> set[str]:
        return set().union(*(labels.get(id_key(images[i].get("id")), ()) for i in positions))

    everything, chosen = set(range(len(images))), set()
    if len(groups) > 1:
        chosen = _whole(list(groups.values()), share * len(images), seed)
    if not chosen or chosen == everything or classes(chosen) - classes(everything - chosen):
        chosen = {i for rows in groups.values() for i in _tail(rows, images, share)}
    if not chosen or chosen == everything:
        chosen = set(order[-max(1, round(share * len(order))):])
    contents = {}
    for split, positions in (("train", everything - chosen), ("val", chosen)):
        kept = [image for i, image in enumerate(images) if i in positions]
        ids = {id_key(image.get("id")) for image in kept}
        lost = split == "train"                        # annotations of no image are train's to report
        every = {id_key(image.get("id")) for image in images}
        contents[split] = {**content, "categories": categories, "images": kept, "annotations": [
            a for a in annotations if (key := id_key(a.get("image_id"))) in ids or lost and key not in every]}
    return contents


def _place(image: dict) -> tuple[str, tuple]:
    """Return the group of an image, and its place in the natural order of names."""
    name = PurePosixPath(str(image.get("file_name") or "").replace("\\", "/"))
    stem = re.sub(r"_(jpe?g|png|bmp|webp)\.rf\..*$", "", name.stem)    # Roboflow's variants of one image
    parts = tuple((int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", stem))
    video = image.get("video_id")
    group = f"{name.parent}/{re.sub(r'[ _.-]*[0-9]+$', '', stem)}" if video is None else f"video {video}"
    return group, (group, parts)


def _whole(groups: Sequence[Sequence[int]], wanted: float, seed: int) -> set[int]:
    """Return the positions of whole groups, drawn by the seed, that come near the wanted number."""
    chosen: set[int] = set()
    for at in np.random.default_rng(seed).permutation(len(groups)):
        if abs(len(chosen) + len(groups[at]) - wanted) < abs(len(chosen) - wanted):
            chosen |= set(groups[at])
    return chosen or set(min(groups, key=len))


def _tail(rows: Sequence[int], images: Sequence[dict], share: float) -> Sequence[int]:
    """Return the last `share` of a group; variants of one image stay on one side."""
    first = len(rows) - round(share * len(rows))
    while 0 < first < len(rows) and _place(images[rows[first]]) == _place(images[rows[first - 1]]):
        first += 1
    return rows[first:]
