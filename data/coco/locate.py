"""From what `--data` says to annotations and images: a COCO layout, YAML, one file, or other labels."""
from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

from data.coco.clean import Fault
from data.coco.divide import divide
from data.coco.find import SPLIT_WORDS, split_of
from data.coco.jsonfile import load_json, sections
from data.convert.labelme import labelme_layout
from data.convert.labels import Labels, Layout
from data.convert.via import via_layout
from data.convert.voc import voc_layout
from data.convert.yolo import yolo_layout
from data.images import MAX_PIXELS
from data.yamlfile import NOTHING, read_yaml, yaml_names, yaml_root
from utils.errors import DataError

VAL_SHARE = 0.2                    # of an undivided set, unless told otherwise
PEEKED = 20                        # JSON files of a folder that are opened to see what they are


class Split(NamedTuple):
    """What `read_coco(*split)` takes: annotation file, image folder, and what makes content without one."""

    json: Path
    images: Path
    content: Callable[[int], tuple[dict, list[Fault]]] | None = None      # of the largest number of pixels


@dataclass(frozen=True)
class Located:
    """Where a data set's files are, by split ("all": undivided); an absent one is a DataError."""

    source: str
    splits: dict[str, Split]
    tried: dict[str, tuple[Path, ...]]
    names: tuple[str, ...] | None = None
    note: str = ""                 # what was recognised, as a sentence
    elsewhere: tuple[Path, ...] = ()       # image folders that a description names, wherever they are

    def __getitem__(self, split: str) -> Split:
        if split not in self.splits:
            tried = self.tried.get(split, ())
            raise DataError(f"--data {self.source}: no annotation file for `{split}`; "
                            + (_tried(tried) if tried else f"add a line `{split}: path/to.json`")
                            + "; --val-split 0.2 takes it from train" * (split == "val" and "train" in self))
        return self.splits[split]

    def __contains__(self, split: str) -> bool:
        return split in self.splits

    @property
    def folders(self) -> set[Path]:
        """Return the folders of images as far as they are known unread: nothing is ever written there."""
        return {*(split.images for split in self.splits.values()), *self.elsewhere}

    @property
    def train(self) -> Split:
        """Return the training split; raise DataError where there is none."""
        return self["train"]

    @property
    def val(self) -> Split:
        """Return the validation split; raise DataError where there is none."""
        return self["val"]

    def save(self, folder: Path, max_pixels: int = MAX_PIXELS) -> list[Path]:
        """Write the two parts of a set divided here as JSON files into a run folder; return their paths."""
        files = [folder / f"instances_{split}.json" for split in ("train", "val") if "all" in self]
        for file, split in zip(files, ("train", "val")):
            file.write_text(json.dumps(self[split].content(max_pixels)[0]), encoding="utf-8")
        return files


def locate(data: str | Path, val_split: float | None = None, seed: int = 0) -> Located:
    """Return where the annotations and images of a data set are; raise DataError with the paths tried.

    `data` is a YAML, a folder (COCO, YOLO, VOC, labelme), a COCO JSON, or `scenes`: made on first use. A set
    without splits is divided, `val_split` of its images (0.2) for val; if given, also one of train alone.
    """
    located = _locate(data)
    if val_split is not None and "val" in located:
        raise DataError(f"--data {data}: has a val split of its own; leave --val-split out")
    whole = next((split for split in ("all", "train") if split in located), None)
    named = located.tried and val_split is None            # a layout of ours that names its splits itself
    if "val" in located or whole is None or (whole == "train" and named):
        return located
    return _divided(located, whole, VAL_SHARE if val_split is None else val_split, seed)


def _divided(located: Located, whole: str, share: float, seed: int) -> Located:
    """Return the set with its one split divided into train and val when they are read."""
    split = located[whole]

    @cache
    def parts(max_pixels: int) -> tuple[dict[str, dict], list[Fault]]:
        content, faults = split.content(max_pixels) if split.content else load_json(split.json)
        return divide(content, share, seed, split.json), faults

    def part(name: str, max_pixels: int) -> tuple[dict, list[Fault]]:
        contents, faults = parts(max_pixels)
        return contents[name], list(faults) if name == "train" else []

    splits = {name: Split(split.json, split.images, partial(part, name)) for name in ("train", "val")}
    what = "no val split" if whole == "train" else "undivided"
    note = f"{located.note}; {what}: val is {share:.0%} of it, by whole videos or folders (seed {seed})"
    return replace(located, splits={**located.splits, **splits, "all": split}, note=note.removeprefix("; "))


def _locate(data: str | Path) -> Located:
    """Return where a set is, as it is."""
    if str(data) == "scenes":
        from data.scenes import make_scenes
        return _from_folder(make_scenes(), "scenes")
    path = Path(data).expanduser()
    try:
        if path.is_dir():
            return _from_folder(path, str(data))
        if path.suffix.lower() in (".yaml", ".yml") and path.is_file():
            return _from_yaml(path)
        if path.suffix.lower() == ".json" and path.is_file():
            return _from_json(path)
    except OSError as error:
        raise DataError(f"--data {data}: cannot be read ({error.strerror or error})") from None
    if path.exists():
        raise DataError(f"--data {data}: is neither a folder nor a YAML nor a COCO JSON; give a folder with "
                        "annotations/ and images/, or a YAML with path, train and val")
    raise DataError(f"--data {data}: does not exist (looked in {Path.cwd()}); "
                    "give a folder, a YAML, or the word `scenes`")


def _from_folder(root: Path, source: str) -> Located:
    """Return the splits of a folder: COCO JSON where tools put it, else the labels of another format."""
    below, names = root / "annotations", ("instances_{}.json", "instances_{}2017.json", "{}.json")
    tried = {split: tuple(below / name.format(split) for name in names) for split in SPLIT_WORDS}
    splits = {split: Split(file, _image_folder(root, file)) for split, files in tried.items()
              if (file := next(filter(Path.is_file, files), None))}
    if splits:
        return Located(source, splits, tried)
    files = _coco_files(root)
    if len(set(files) - {"test"}):
        found = {split: Split(file, _image_folder(root, file)) for split, file in files.items()}
        what = ", ".join(str(file.relative_to(root)) for file in files.values())
        return Located(source, found, {}, note=f"COCO JSON: {what}")
    for recognise in (yolo_layout, voc_layout, labelme_layout, via_layout):
        if layout := recognise(root):
            return _converted(layout, root, source)
    raise DataError(f"--data {source}: no annotation file; {_tried(tried['train'])}; no other COCO JSON, "
                    "YOLO, Pascal VOC, labelme, Supervisely or VIA labels either (python -m data.convert "
                    "says what it misses)")


def _coco_files(root: Path) -> dict[str, Path]:
    """Return a folder's COCO JSON by split ("all": undivided); raise DataError for two of the same split."""
    folders = [root, *(path for path in sorted(root.glob("*/")) if split_of(path.name))]
    files: dict[str, list[Path]] = {}
    for place in (place for folder in folders for place in (folder, folder / "annotations")):
        parent = next(filter(None, map(split_of, place.relative_to(root).parts)), "all")
        for file in filter(_is_coco, sorted(place.glob("[!.]*.json"))[:PEEKED]):
            files.setdefault(split_of(file.name.split(".")[0]) or parent, []).append(file)
    if len(files) > 1:
        files.pop("all", None)                         # the whole beside its parts
    for split, same in files.items():
        usual = (f"instances_{split}.json", "_annotations.coco.json", "instances_default.json")
        files[split] = [file for file in same if file.name in usual] if len(same) > 1 else same
        if len(files[split]) != 1:
            raise DataError(f"{root}: {' and '.join(str(file.relative_to(root)) for file in same[:3])} could "
                            f"each be {'the set' if split == 'all' else split}; give the right file itself "
                            "or a YAML with train: and val:")
    return {split: files[split][0] for split in (*SPLIT_WORDS, "all") if split in files}


def _is_coco(file: Path) -> bool:
    """Return whether a JSON file has the sections of a COCO file, without parsing it: it may be large."""
    try:
        data = file.read_bytes()
    except OSError:
        return False
    return re.match(rb"(\xef\xbb\xbf)?\s*\{", data) is not None and all(
        f'"{key}"'.encode() in data for key in ("images", "annotations"))


def _from_json(file: Path) -> Located:
    """Return the set of one JSON file: with its siblings of other splits, else undivided."""
    if not _is_coco(file):
        if layout := via_layout(file):
            return _converted(layout, file.parent, str(file))
        sections(load_json(file)[0], file)             # says what it lacks
    root = file.parent.parent if file.parent.name == "annotations" else file.parent
    named = split_of(file.name.split(".")[0])
    split = named or split_of(file.parent.name)        # Roboflow's train/_annotations.coco.json
    siblings = {other: path for other, words in SPLIT_WORDS.items() for there in reversed(words)
                if (path := _sibling(file, split, there, bool(named))).is_file()} if split else {}
    if len(siblings) < 2:                              # nobody trains on a part of a file that is called val
        siblings = {"all" if named in (None, "train") else named: file}
    found = {other: Split(path, _image_folder(root, path)) for other, path in siblings.items()}
    what = "one COCO JSON" if "all" in found else f"COCO JSON of {', '.join(found)}"
    return Located(str(file), found, {}, note=f"{what}, images below {_image_folder(root, file)}")


def _sibling(file: Path, split: str, word: str, by_name: bool) -> Path:
    """Return where the JSON of the split called `word` would be, beside that of `split`."""
    text = file.name if by_name else file.parent.name
    own = max((known for known in SPLIT_WORDS[split] if known in text.lower()), key=len)
    other = re.sub(own, lambda found: word.title() if found[0].istitle() else word, text, count=1, flags=re.I)
    return file.with_name(other) if by_name else file.parent.with_name(other) / file.name


def _converted(layout: Layout, root: Path, source: str) -> Located:
    """Return the splits of labels in another format, read and converted when they are first asked for."""
    @cache
    def contents(max_pixels: int) -> tuple[Labels, dict[str, dict]]:
        labels = Labels(max_pixels)
        return labels, labels.contents(layout.read(labels))

    def content(split: str, max_pixels: int) -> tuple[dict, list[Fault]]:
        labels, made = contents(max_pixels)
        if split not in made:
            raise DataError(f"{layout.source}: no image of the {split} split can be used")
        return made[split], labels.faults(split)

    splits = {split: Split(layout.source, root, partial(content, split)) for split in layout.splits}
    return Located(source, splits, {}, note=f"{layout.what}, converted in memory", elsewhere=layout.folders)


def _from_yaml(file: Path) -> Located:
    """Return the splits a YAML names: each a JSON, a pair of `json` and `images`, or YOLO's folders."""
    content = read_yaml(file)
    given = {split: content.get(split) for split in SPLIT_WORDS
             if content.get(split) not in (None, *NOTHING)}
    if not given.keys() & {"train", "val"}:
        raise DataError(f"{file}: names neither `train` nor `val`; write path, train and val, "
                        "each split a COCO JSON")
    if content.get("names") and ".json" not in str(given).lower():
        return _converted(yolo_layout(file), file.parent, str(file))
    root = yaml_root(file, content)
    splits, tried = {}, {}
    for split, value in given.items():
        splits[split], tried[split] = _yaml_split(file, root, split, value)
    return Located(str(file), splits, tried, yaml_names(file, content.get("names")))


def _yaml_split(file: Path, root: Path, split: str, value: object) -> tuple[Split, tuple[Path, ...]]:
    """Return the split that a YAML value describes and the paths tried."""
    pair = (value.get("json"), value.get("images")) if isinstance(value, dict) else \
        tuple(value) if isinstance(value, list) and len(value) == 2 else (value, None)
    if not isinstance(pair[0], str) or not isinstance(pair[1], (str, type(None))):
        raise DataError(f"{file}: `{split}: {value}` must be the path of a COCO JSON, "
                        "or json: and images: below it")
    tried = tuple(place / pair[0] for place in (root, file.parent, root / "annotations"))
    annotation = next(filter(Path.is_file, tried), None)
    if annotation is None:
        raise DataError(f"{file}: `{split}: {pair[0]}` is not a file; {_tried(tried)}")
    folders = [place / pair[1] for place in (root, file.parent, annotation.parent) if pair[1] is not None]
    folder = next(filter(Path.is_dir, folders), None)
    if folders and folder is None:
        raise DataError(f"{file}: `images: {pair[1]}` of `{split}` is not a folder; {_tried(folders)}")
    return Split(annotation, folder or _image_folder(root, annotation)), tried


def _image_folder(root: Path, annotation: Path) -> Path:
    """Return where a JSON's images are when nobody says: images/ beside or above it, else the root."""
    folders = (parent / "images" for parent in (annotation.parent, root, annotation.parent.parent))
    return next((folder for folder in folders if folder.is_dir()), root)


def _tried(paths: Sequence[Path]) -> str:
    """Return the first three paths tried, for a message."""
    return "tried " + ", ".join(str(path) for path in paths[:3])
