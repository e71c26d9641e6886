"""YOLO text labels: one file per image, one line per box; the set's YAML or .data file is followed."""
from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from data.coco.find import SPLIT_WORDS, image_files
from data.convert.labels import Labels, Layout
from data.images import SUFFIXES
from data.yamlfile import NOTHING, read_text, read_yaml, yaml_names, yaml_root
from utils.errors import DataError

NAMES = ("classes.txt", "labels/classes.txt", "obj.names")


class _Description(NamedTuple):
    """What describes a YOLO set: a file or folder, class names, places of each split, keypoint columns."""

    file: Path
    names: Sequence[str]
    splits: Mapping[str, Sequence[Path]]
    keypoints: int = 0
    notes: Sequence[str] = ()      # what disagrees with the names


def yolo_layout(given: Path) -> Layout | None:
    """Return the layout of a YOLO folder or its YAML, None where it is neither; raise DataError if broken."""
    found = _from_yaml(given, read_yaml(given)) if given.is_file() else _description(given)
    if found is None:
        return None
    what = f"YOLO labels described by {found.file.name}" if found.file.is_file() else "YOLO folders"
    folders = {folder for places in found.splits.values() for place in places
               for folder in _image_folders(place, found.file.parent)}
    return Layout(what, tuple(found.splits), found.file, partial(_read, found), tuple(sorted(folders)))


def _image_folders(place: Path, root: Path) -> set[Path]:
    """Return the folders of images that an entry of a split names; of a list, as its lines have them."""
    if place.is_dir():
        return {place}
    if place.suffix.lower() in SUFFIXES:
        return {place.parent}
    named = {line.strip().replace("\\", "/").rpartition("/")[0] for line in read_text(place).splitlines()}
    return {root / folder for folder in named if folder}


def _description(root: Path) -> _Description | None:
    """Return the description of a folder by its one YAML with names or *.data file, else by its folders."""
    found, broken = [], []
    for file in sorted([*root.glob("*.yaml"), *root.glob("*.yml"), *root.glob("*.data")]):
        try:
            content = _darknet(file) if file.suffix == ".data" else read_yaml(file)
            found += [(file, content)] if content.get("names") and ".json" not in str(content) else []
        except DataError as error:
            broken.append(error)                       # a stray YAML of another tool
    best = [(file, c) for file, c in found if any(c.get(split) for split in ("train", "val"))] or found
    if len({repr((c.get("names"), c.get("train"), c.get("val"))) for _, c in best}) > 1:
        raise DataError(f"{best[0][0]} and {best[1][0].name} describe different sets; "
                        "give the one that is right in place of the folder, or remove the other")
    if best:
        return _from_yaml(*best[0])
    names, splits = _listed_names(root), _folders(root)
    labelled = any((root / "labels").glob("**/*.txt")) or any(
        next(path.parent.glob("labels/*.txt"), None) for paths in splits.values() for path in paths)
    if not names and labelled:
        raise broken[0] if broken else DataError(
            f"{root}: no class names here; needs a YAML with `names` (0: cat) or classes.txt")
    return _Description(root, names, _trainable(root, splits)) if names and splits else None


def _listed_names(root: Path) -> list[str]:
    """Return the class names of a text file, one a line; none where there is no such file."""
    file = next((root / name for name in NAMES if (root / name).is_file()), None)
    return [line.strip() for line in read_text(file).splitlines() if line.strip()] if file else []


def _from_yaml(file: Path, content: Mapping[str, object]) -> _Description:
    """Return the description that a YAML, or a .data file read as one, gives; raise DataError if it fails."""
    names = yaml_names(file, content.get("names"))
    if names is None:
        raise DataError(f"{file}: no `names`; write the class names, 0: cat, 1: dog, ...")
    roots = [root for root in (yaml_root(file, content), file.parent) if root.is_dir()]
    splits: dict[str, list[Path]] = {}
    for split in SPLIT_WORDS:
        value = content.get(split) or (content.get("valid") if split == "val" else None)
        for entry in map(str, value if isinstance(value, list) else [value]):
            place = None if entry in NOTHING else _place(entry, *roots)
            if place is not None:
                splits.setdefault(split, []).append(place)
            elif entry not in NOTHING and split != "test":     # often named and not there
                tried = " and ".join(dict.fromkeys(str(root / entry) for root in roots))
                raise DataError(f"{file}: `{split}: {entry}` is no folder, list or image; tried {tried}")
    if not splits.keys() & {"train", "val"}:
        splits = _trainable(file.parent, _folders(file.parent))
    shape = content.get("kpt_shape") or (0, 0)
    try:
        keypoints = int(shape[0]) * int(shape[1])
    except (ValueError, TypeError, IndexError, KeyError):
        raise DataError(f"{file}: `kpt_shape: {shape}` must be two numbers, such as [17, 3]") from None
    notes = [f"nc: {content.get('nc')}"] * (str(content.get("nc", len(names))) != str(len(names)))
    notes += ["classes.txt or obj.names"] * (_listed_names(file.parent) not in ([], list(names)))
    return _Description(file, names, splits, keypoints, notes)


def _darknet(file: Path) -> dict:
    """Return darknet's .data file (names, train, valid = path) as the mapping a YAML would give."""
    pairs = dict(line.partition("=")[::2] for line in read_text(file).splitlines() if "=" in line)
    content = {key.strip(): value.strip() for key, value in pairs.items()}
    listed = _place(content.get("names", "obj.names"), file.parent)
    if listed is not None and listed.is_file():
        content["names"] = [line.strip() for line in read_text(listed).splitlines() if line.strip()]
    if content.get("valid") == content.get("train"):
        content.pop("valid", None)                     # darknet wants both; many name one list twice
    return content


def _place(entry: str, *roots: Path) -> Path | None:
    """Return the folder, list or image that an entry names below a root, also by another machine's path."""
    parts = _parts(entry)
    for end in (Path(entry), *(Path(*parts[start:]) for start in range(len(parts)))):      # the longest first
        for path in (root / end for root in roots):
            if path.exists():                          # an absolute entry takes the root's place
                return path
            alike = re.compile(re.escape(path.name) + r"\d*", re.IGNORECASE)      # Train for train, val2017
            others = [] if path.suffix else [p for p in path.parent.glob("*") if alike.fullmatch(p.name)]
            if len(others) == 1:
                return others[0]
    return None


def _parts(entry: str) -> list[str]:
    """Return the names in a path of any system."""
    return [part for part in entry.replace("\\", "/").split("/") if part not in ("", ".", "..")]


def _folders(root: Path) -> dict[str, list[Path]]:
    """Return the image folders of each split by their names: images/train, train/images, or images alone."""
    splits: dict[str, list[Path]] = {}
    for split, words in SPLIT_WORDS.items():
        for parent in (root / "images", root):
            for folder in sorted(parent.glob("*")):
                if folder.is_dir() and re.fullmatch(rf"({'|'.join(words)})\d*", folder.name.lower()):
                    inner = folder / "images"
                    splits.setdefault(split, []).append(inner if inner.is_dir() else folder)
            if splits.get(split):
                break
        if len(splits.get(split, ())) > 1:
            raise DataError(f"{root}: {' and '.join(p.name for p in splits[split])} could each be the "
                            f"{split} split; name the right one in a YAML (train:, val:, names:)")
    whole = root / "images" if (root / "images").is_dir() else root
    return splits or ({"all": [whole]} if next(iter(image_files(whole)), None) else {})


def _trainable(root: Path, splits: dict[str, list[Path]]) -> dict[str, list[Path]]:
    """Return the folders of splits; raise DataError where there are some and not train."""
    if splits and not splits.keys() & {"train", "all"}:
        raise DataError(f"{root}: no images for the train split; needs one of the folders "
                        "images/train, train/images, or a YAML that names it")
    return splits


def _read(found: _Description, labels: Labels) -> Sequence[str]:
    """Add every split of a set to `labels`, images without a file as negatives; return the class names."""
    poses: list[bool] = []
    for note in found.notes:
        labels.note(next(iter(found.splits)), "names-differ", "`names` of the YAML were followed", note)
    for split, places in found.splits.items():
        files = [file for place in places for file in _images(place, found.file.parent, labels, split)]
        labels.look(files)
        used = set()
        for file in files:
            text = _label_file(file)
            if text in used - {None}:
                labels.note(split, "shared-labels", "images that differ by their suffix alone: each was "
                            "given the boxes of their one label file", file)
            used.add(text)
            if size := labels.add_image(split, file, file):
                if text is None:
                    labels.note(split, "no-labels", "images without a label file, beside it or in labels/: "
                                "taken as empty", file)
                for place, name, xywh in _boxes(text, found, labels, split, poses) if text else ():
                    labels.add_box(split, file, name, [v * side for v, side in zip(xywh, size * 2)], place)
        for folder in sorted({text.parent for text in used if text and "labels" in text.parts}):
            for text in sorted(set(folder.glob("*.txt")) - used):
                if text.name != "classes.txt":
                    labels.note(split, "missing-image", "labels without an image file, left out", text)
    if len(poses) >= 3 and all(poses):
        raise DataError(f"{found.file}: the lines hold a box and keypoints that lie in it, not polygons; "
                        "write `kpt_shape: [number of keypoints, 2 or 3]` into the YAML")
    return found.names


def _images(place: Path, root: Path, labels: Labels, split: str) -> list[Path]:
    """Return the images of a folder, of a list file (missing ones are noted), or the one image."""
    if place.is_dir():
        return image_files(place)
    if place.suffix.lower() in SUFFIXES:
        return [place]
    lines = list(filter(None, map(str.strip, read_text(place).splitlines())))
    namesakes = Counter(name for line in lines for name in _parts(line)[-1:])

    def image_of(line: str) -> Path | None:
        file = _place(line, place.parent, root)        # cam_a/1.png is no cam_b/1.png
        alone = file is None or namesakes[file.name] < 2 or _parts(line)[-2:-1] in ([], [file.parent.name])
        return file if alone else None

    files = [(line, image_of(line)) for line in lines]
    for line in (line for line, file in files if file is None):
        labels.note(split, "missing-image", "images of a list, not found, left out", f"{place}: {line}")
    return [file for _, file in files if file]


def _label_file(image: Path) -> Path | None:
    """Return the label file of an image: below labels/ where it lies below images/, else beside it."""
    parts = image.with_suffix(".txt").parts
    at = [i for i, part in enumerate(parts) if part.lower() == "images"][-1:]
    found = [Path(*parts[:i], name, *parts[i + 1:]) for i in at for name in ("labels", "Labels")]
    return next((text.with_suffix(suffix) for text in (*found, Path(*parts)) for suffix in (".txt", ".TXT")
                 if text.with_suffix(suffix).is_file()), None)


def _boxes(path: Path, found: _Description, labels: Labels, split: str,
           poses: list[bool]) -> Iterator[tuple[str, str, Sequence[float]]]:
    """Yield (place, class name, top-left xywh) of a label file's lines; note the others.

    A line is class and cxcywh (normalised after EXIF rotation), a score or keypoints behind, or a polygon.
    """
    try:
        lines = read_text(path).splitlines()
    except DataError as error:
        return labels.note(split, "unreadable-labels", "label files left out", error)
    for place, line in ((f"{path}:{number}", line) for number, line in enumerate(lines, 1)):
        if not (words := line.split()):
            continue
        try:
            number, *values = (float(word) for word in words)
        except ValueError:
            number, values = -1.0, []
        count = len(values)
        known = number.is_integer() and 0 <= number < len(found.names)
        pose = found.keypoints and count == 4 + found.keypoints
        if not known or count < 4 or not (pose or count in (4, 5) or count % 2 == 0 or _keypoints(values)):
            labels.note(split, "bad-line", "lines dropped: not a known class number and 4 numbers", place)
        elif max(map(abs, values[:4] if pose else values)) > 2:     # normalised ones stay below
            labels.note(split, "not-normalised", "lines dropped: numbers above 2 are px, not 0..1", place)
        elif pose or count < 6:
            rule = "keypoints" if pose else "score"
            if count > 4:
                labels.note(split, rule, f"lines with {rule} behind the box, which were left out", place)
            cx, cy, w, h = values[:4]
            yield place, found.names[int(number)], (cx - w / 2, cy - h / 2, w, h)
        else:
            poses.append(_keypoints(values))
            labels.note(split, "polygon", "polygons of which the box was taken", place)
            (x1, x2), (y1, y2) = ((min(axis), max(axis)) for axis in (values[0::2], values[1::2]))
            yield place, found.names[int(number)], (x1, y1, x2 - x1, y2 - y1)


def _keypoints(values: Sequence[float]) -> bool:
    """Return whether numbers read as a box (cxcywh) and points inside it, each with visibility 0, 1 or 2."""
    (cx, cy, w, h), rest = values[:4], values[4:]
    points = list(zip(rest[0::3], rest[1::3], rest[2::3]))
    inside = (v == 0 or max(abs(x - cx) - w / 2, abs(y - cy) - h / 2) < 0.01 for x, y, v in points)
    return bool(points) and len(rest) % 3 == 0 and {v for *_, v in points} <= {0, 1, 2} and all(inside)
