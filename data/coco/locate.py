"""From what `--data` says to annotation files and image folders, and from file names to images."""
from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from data.coco.clean import Fault, fault
from data.images import SUFFIXES
from utils.errors import DataError

YAML_DEPTH = 20
YAML_LIMIT = 1_000_000             # bytes; a data set's YAML is a few lines


class Split(NamedTuple):
    """An annotation file and the folder of its images."""

    json: Path
    images: Path


@dataclass(frozen=True)
class Located:
    """Where a data set's files are; `located["train"]` is a Split, or a DataError with the paths tried."""

    source: str
    splits: dict[str, Split]
    tried: dict[str, tuple[Path, ...]]
    names: tuple[str, ...] | None = None

    def __getitem__(self, split: str) -> Split:
        if split not in self.splits:
            tried = self.tried.get(split, ())
            raise DataError(f"--data {self.source}: no annotation file for `{split}`; "
                            + (_tried(tried) if tried else f"add a line `{split}: path/to.json`"))
        return self.splits[split]

    def __contains__(self, split: str) -> bool:
        return split in self.splits

    @property
    def train(self) -> Split:
        """Return the training split; raise DataError where there is none."""
        return self["train"]

    @property
    def val(self) -> Split:
        """Return the validation split; raise DataError where there is none."""
        return self["val"]


def locate(data: str | Path) -> Located:
    """Return where the annotation files and images of a data set are; raise DataError with the paths tried.

    `data` is a YAML (path, train, val, optional names), a folder with annotations/instances_{train,val}.json
    and images/, or the word `scenes`: the embedded set, made on first use.
    """
    if str(data) == "scenes":
        from data.scenes import make_scenes
        return _from_folder(make_scenes(), "scenes")
    path = Path(data).expanduser()
    if path.is_dir():
        return _from_folder(path, str(data))
    if path.suffix.lower() in (".yaml", ".yml") and path.is_file():
        return _from_yaml(path)
    if path.exists():
        raise DataError(f"--data {data}: is neither a folder nor a YAML; give a folder with annotations/ and "
                        "images/, or a YAML with path, train and val")
    raise DataError(f"--data {data}: does not exist (looked in {Path.cwd()}); "
                    "give a folder, a YAML, or the word `scenes`")


def _from_folder(root: Path, source: str) -> Located:
    """Return the splits of a folder in COCO layout, images/ or images/<split>/ beside annotations/."""
    splits, tried = {}, {}
    for split in ("train", "val"):
        files = [root / "annotations" / f"instances_{split}{year}.json" for year in ("", "2017")] \
            + [root / "annotations" / f"{split}.json"]
        tried[split] = tuple(files)
        file = next((f for f in files if f.is_file()), None)
        if file:
            splits[split] = Split(file, _image_folder(root, file))
    if not splits:
        raise DataError(f"--data {source}: no annotation file; {_tried(tried['train'])}; "
                        "python -m data.convert makes COCO JSON from Pascal VOC and YOLO txt")
    return Located(source, splits, tried)


def _from_yaml(file: Path) -> Located:
    """Return the splits a YAML names: each a JSON file, or a mapping/pair of `json` and `images`."""
    content = read_yaml(file)
    root = Path(str(content.get("path") or ".")).expanduser()
    root = root if root.is_absolute() else file.parent / root
    if not any(content.get(split) for split in ("train", "val")):
        raise DataError(f"{file}: names neither `train` nor `val`; write path, train and val, "
                        "each split a COCO JSON")
    splits, tried = {}, {}
    for split in ("train", "val"):
        if content.get(split):
            splits[split], tried[split] = _yaml_split(file, root, split, content[split])
    return Located(str(file), splits, tried, _yaml_names(file, content.get("names")))


def _yaml_split(file: Path, root: Path, split: str, value: object) -> tuple[Split, tuple[Path, ...]]:
    """Return the split that a YAML value describes and the paths tried."""
    pair = (value.get("json"), value.get("images")) if isinstance(value, dict) else \
        tuple(value) if isinstance(value, list) and len(value) == 2 else (value, None)
    if not isinstance(pair[0], str) or not isinstance(pair[1], (str, type(None))):
        raise DataError(f"{file}: `{split}: {value}` must be the path of a COCO JSON, "
                        "or json: and images: below it")
    given = Path(pair[0])
    tried = (root / given, file.parent / given, root / "annotations" / given)
    annotation = next((path for path in tried if path.is_file()), None)
    if annotation is None:
        raise DataError(f"{file}: `{split}: {pair[0]}` is not a file; {_tried(tried)}")
    if pair[1] is None:
        return Split(annotation, _image_folder(root, annotation)), tried
    folders = (root / pair[1], file.parent / pair[1], annotation.parent / pair[1])
    folder = next((path for path in folders if path.is_dir()), None)
    if folder is None:
        raise DataError(f"{file}: `images: {pair[1]}` of `{split}` is not a folder; {_tried(folders)}")
    return Split(annotation, folder), tried


def _image_folder(root: Path, annotation: Path) -> Path:
    """Return where a JSON's images are when nobody says: images/ beside or above it, else the root."""
    folders = (parent / "images" for parent in (root, annotation.parent, annotation.parent.parent))
    return next((folder for folder in folders if folder.is_dir()), root)


def read_yaml(file: Path) -> dict:
    """Return the mapping in a small YAML file; raise DataError for tags, aliases and anything else."""
    import yaml
    size = file.stat().st_size
    if size > YAML_LIMIT:
        raise DataError(f"{file}: {size:,} bytes, a data set's YAML has at most {YAML_LIMIT:,}; "
                        "is this the right file?")
    try:
        text = file.read_text(encoding="utf-8-sig")
        _refuse_bombs(file, text)
        content = yaml.safe_load(text)
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: is not UTF-8 at byte offset {error.start}; "
                        "save it again as UTF-8") from None
    except (yaml.YAMLError, RecursionError) as error:
        first = str(error).replace("\n", " ")
        raise DataError(f"{file}: not a plain YAML ({first}); python tags and code are refused") from None
    if not isinstance(content, dict):
        raise DataError(f"{file}: must hold path, train and val; got {type(content).__name__}")
    return content


def _refuse_bombs(file: Path, text: str) -> None:
    """Raise DataError for aliases and for deep nesting, with which a few bytes can fill the memory."""
    import yaml
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > YAML_DEPTH:
            raise DataError(f"{file}: nested more than {YAML_DEPTH} deep; a data set's YAML is flat")
        if isinstance(event, yaml.AliasEvent):
            raise DataError(f"{file}: uses YAML aliases (*name), which a data set does not need; "
                            "write the values out")


def _yaml_names(file: Path, names: object) -> tuple[str, ...] | None:
    """Return the class names of a YAML: a list, or a mapping 0..K-1 -> name."""
    if names is None:
        return None
    if isinstance(names, dict) and sorted(names, key=str) == sorted(range(len(names)), key=str):
        names = [names[k] for k in range(len(names))]
    if not isinstance(names, list) or not names or len(set(map(str, names))) != len(names):
        raise DataError(f"{file}: `names` must be a list of different class names, or 0: name, 1: name, ...")
    return tuple(map(str, names))


def find_images(file_names: Sequence[str], folder: Path,
                json_path: Path) -> tuple[list[Path | None], list[Fault]]:
    """Return the path of each named image (None: missing) and faults; raise DataError when none is there."""
    paths: list[Path | None] = [_plain(name, folder) for name in file_names]
    missing = [i for i, path in enumerate(paths) if path is None]
    faults: list[Fault] = []
    if missing:
        index = _index(folder)
        for i in missing:
            key = _key(file_names[i])
            paths[i] = index.get(key) or index.get(key.rsplit("/", 1)[-1])
        other = [f"{file_names[i]} -> {paths[i].name}" for i in missing if paths[i] is not None]
        faults += fault("file-name-differs", other,
                        "found under another spelling (letter case, folder, accents)")
    missing = [file_names[i] or "(no file_name)" for i in missing if paths[i] is None]
    if len(missing) == len(paths):
        raise DataError(f"{json_path}: none of its {len(paths):,} images is in {folder}; "
                        + _tried(tuple(folder / name for name in file_names[:3]))
                        + "; check the folder of images")
    return paths, faults + fault("missing-image", missing,
                                 f"images not in {folder}, left out with their boxes")


def unlisted_files(listed: Sequence[Path], folder: Path) -> list[Path]:
    """Return the image files in a folder that are not in `listed` (the paths of every split), sorted."""
    known = {os.path.realpath(path) for path in listed}
    return sorted(path for path in _index(folder).values()
                  if path.suffix.lower() in SUFFIXES and os.path.realpath(path) not in known)


def _plain(name: str, folder: Path) -> Path | None:
    """Return the image where its name says; None elsewhere, for impossible names and circular links too."""
    try:
        path = folder / name
        return path if name and path.is_file() else None
    except (OSError, ValueError):
        return None


def _index(folder: Path) -> dict[str, Path]:
    """Return the files under a folder by relative and by bare name, levelled by `_key`."""
    index: dict[str, Path] = {}
    for top, _, files in os.walk(folder):
        for name in sorted(files):
            path = Path(top) / name
            index.setdefault(_key(str(path.relative_to(folder))), path)
            index.setdefault(_key(name), path)
    return index


def _key(name: str) -> str:
    """Return a file name as compared when the exact one is missing."""
    return unicodedata.normalize("NFC", name.replace("\\", "/")).casefold()


def _tried(paths: Sequence[Path]) -> str:
    """Return the first three paths tried, for a message."""
    return "tried " + ", ".join(str(path) for path in paths[:3])
