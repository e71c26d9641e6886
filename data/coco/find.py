"""From the file names of an annotation file to images on disk: never the wrong one under the right name."""
from __future__ import annotations

import filecmp
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote

from data.coco.clean import Fault, fault
from data.images import SUFFIXES
from utils.errors import DataError

SPLIT_WORDS = {"train": ("train", "training"), "val": ("val", "valid", "validation"),
               "test": ("test", "testing")}


def split_of(name: str) -> str | None:
    """Return the split that a file or folder name speaks of; None where it names none, or several."""
    words = set(re.split(r"[^a-z]+", name.lower()))
    found = [split for split, known in SPLIT_WORDS.items() if words & set(known)]
    return found[0] if len(found) == 1 else None


def visible_files(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder, also of linked folders, without hidden ones; walk no circle twice."""
    seen = set()
    for top, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(top)
        if real in seen:
            folders[:] = files[:] = []
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__MACOSX")
        yield from (Path(top, name) for name in sorted(files) if not name.startswith("."))


def image_files(folder: Path) -> list[Path]:
    """Return the image files below a folder, sorted."""
    return sorted(path for path in visible_files(folder) if path.suffix.lower() in SUFFIXES)


def image_named(stem: str, folders: Iterable[Path]) -> Path | None:
    """Return the first image of that name in folders, whatever its suffix; None where there is none."""
    paths = (folder / f"{stem}{suffix}" for folder in folders for known in SUFFIXES
             for suffix in (known, known.upper()))
    return next(filter(is_file, paths), None)


def find_images(names: Sequence[str], folder: Path, json_path: Path) -> tuple[list[Path | None], list[Fault]]:
    """Return the path of each named image (None: missing) and faults; raise DataError when none is there.

    What is not where the name says is sought by the longest end of its path, in any spelling; several files
    that fit equally well, or one file that fits two names, are a fatal fault.
    """
    split = split_of(json_path.name.split(".")[0]) or split_of(json_path.parent.name)
    own = [path for word in SPLIT_WORDS.get(split, ()) for path in sorted(folder.glob(f"{word}*/"))
           if split_of(path.name) == split]
    places = (*own, folder, json_path.parent)
    direct = [next(filter(is_file, (place / name for place in places if name)), None) for name in names]
    paths, unclear = list(direct), {}
    if None in direct:
        strict = any(path is not None and path.is_relative_to(place) for path in direct for place in own)
        search = _Search(names, folder, split, strict)
        found = {i: search.candidates(names[i]) for i, path in enumerate(direct) if path is None}
        unclear = {i: f"{names[i]}: {' or '.join(map(str, files[:2]))}" for i, files in found.items()
                   if len(files) > 1}
        paths = [found[i][0] if i not in unclear and found.get(i) else path for i, path in enumerate(direct)]
    claims: dict[Path, set[str]] = {}
    for path, name in zip(paths, names):
        claims.setdefault(path, set()).add(_key(name))
    for i, path in enumerate(paths):
        if path is not None and direct[i] is None and len(claims[path]) > 1:
            unclear[i] = f"{path} for {' and '.join(sorted(claims[path])[:2])}"
    paths = [None if i in unclear else path for i, path in enumerate(paths)]
    other = [f"{name} -> {path}" for name, path, plain in zip(names, paths, direct) if path and not plain]
    missing = [name or "(no file_name)" for i, name in enumerate(names) if not (paths[i] or i in unclear)]
    if len(missing) == len(names):
        tried = ", ".join(str(folder / name) for name in names[:3])
        raise DataError(f"{json_path}: none of its {len(names):,} images is in {folder}; tried {tried}; "
                        "check the folder of images")
    return paths, [
        *fault("file-name-differs", other, "found under another spelling (letter case, folder, accents)"),
        *fault("ambiguous-image", list(unclear.values()), "a name fits several images, or an image several "
               "names: write the path below the image folder into `file_name`", True),
        *fault("missing-image", missing, f"images not in {folder}, left out with their boxes")]


class _Search:
    """The files below an image folder by levelled bare name, and the rules of which one a name may mean."""

    def __init__(self, names: Sequence[str], folder: Path, split: str | None, strict: bool) -> None:
        self.split, self.strict, self.folder = split, strict, folder
        self.index: dict[str, list[Path]] = {}
        for path in visible_files(folder):
            self.index.setdefault(_key(path.name), []).append(path)
        self.namesakes = Counter(key.rsplit("/", 1)[-1] for key in set(map(_key, names)))

    def candidates(self, name: str) -> list[Path]:
        """Return the files that a name may mean: none, one, or several that fit equally well."""
        parts = _key(name).split("/")
        ends = {path: _key(path.relative_to(self.folder).as_posix()).split("/")
                for path in self.index.get(parts[-1], ()) if is_file(path)}
        shared = {path: len(os.path.commonprefix((parts[::-1], end[::-1]))) for path, end in ends.items()}
        best = [path for path in ends if shared[path] == max(shared.values())]
        splits = {path: next(filter(None, map(split_of, ends[path][:-1])), None) for path in best}
        best = [path for path in best if splits[path] and splits[path] == self.split] or best
        best = [path for i, path in enumerate(best)
                if not any(filecmp.cmp(path, other, shallow=False) for other in best[:i])]
        if len(best) != 1:
            return best
        # one end contains the other, or no second name of the file could mean it
        fits = shared[best[0]] == min(len(parts), len(ends[best[0]])) or self.namesakes[parts[-1]] == 1
        stranger = self.strict and splits[best[0]] not in (None, self.split) and splits[best[0]] not in map(
            split_of, parts[:-1])
        return best if fits and not stranger else []


def unlisted_files(listed: Sequence[Path], folder: Path) -> list[Path]:
    """Return the image files in a folder that are not in `listed` (the paths of every split), sorted."""
    known = {os.path.realpath(path) for path in listed}
    return [path for path in image_files(folder) if os.path.realpath(path) not in known]


def is_file(path: Path) -> bool:
    """Return whether a path leads to a file; no for names that no system takes."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _key(name: str) -> str:
    """Return a path as compared when the exact one is missing: case, accents, slashes and URLs levelled."""
    name = re.sub(r"^(\w+://[^?]*)\?.*", r"\1", name.split("?d=")[-1])        # what a server is asked besides
    name = unquote(unquote(name)).removeprefix("file://").replace("\\", "/")
    parts = (part.strip() for part in unicodedata.normalize("NFC", name).casefold().split("/"))
    return "/".join(part for part in parts if part not in ("", ".", "..")) or name
