"""Pascal VOC labels: XML files, images and lists of names."""
from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path, PureWindowsPath
from xml.etree import ElementTree
from xml.parsers import expat

from data.convert.labels import Labels, Layout
from data.images import SUFFIXES
from data.yamlfile import read_text
from utils.errors import DataError

CORNERS = ("xmin", "ymin", "xmax", "ymax")
LISTS = {"train": ("train", "trainval"), "val": ("val", "test"), "test": ("test",)}


def voc_layout(source: Path, difficult: str = "crowd", zero_based: bool = False,
               lists: Mapping[str, str | None] | None = None) -> Layout | None:
    """Return the layout of a VOC folder (Annotations, JPEGImages, ImageSets/Main), or of a folder of such.

    VOC corners count pixels from 1 and include both ends, so xmin 1, xmax 10 is a box 10 px wide at 0;
    `zero_based` takes the four numbers as xyxy px instead. `difficult` objects become crowd boxes (ignored),
    or are kept ("keep") or left out ("drop"). `lists` names the list file of each split; by default train or
    trainval, val or test; a set without lists is undivided. Returns None where there is no XML file.
    """
    roots = [root for root in (source, *sorted(source.glob("*/"))) if (root / "Annotations").is_dir()]
    roots = roots[:1] if source in roots else roots
    if not roots and any(source.glob("*.xml")):
        roots = [source]                               # labelImg: images and XML side by side
    if not roots:
        return None
    keys: dict[str, list[tuple[Path, str]]] = {}
    for root in roots:
        divided = (root / "ImageSets/Main").is_dir() or any((lists or {}).values())
        for split in ("train", "val", "test") if divided else ("all",):
            for key in _list(root, split, lists or {}) if divided else _undivided(root):
                keys.setdefault(split, []).append((root, key))
    return Layout("Pascal VOC labels", tuple(keys), source, partial(_read, keys, difficult, zero_based))


def _undivided(root: Path) -> list[str]:
    """Return the name of every XML file of a set without lists."""
    folder = _folder(root, "Annotations")
    return [path.relative_to(folder).with_suffix("").as_posix() for path in sorted(folder.rglob("*.xml"))]


def _folder(root: Path, name: str) -> Path:
    """Return the folder of that name, or the root where everything lies side by side."""
    return root / name if (root / name).is_dir() else root


def _list(root: Path, split: str, lists: Mapping[str, str | None]) -> Iterator[str]:
    """Yield the names of one split from its list: with or without suffix, path, or a column of 1 and -1."""
    wanted, folder = lists.get(split), root / "ImageSets" / "Main"
    names = (wanted,) if wanted else LISTS[split]
    file = next((file for name in names if (file := folder / f"{name}.txt").is_file()), None)
    if file is None or (split == "test" and not (folder / "val.txt").is_file()):
        if split == "test":
            return
        raise DataError(f"{folder}: no list {' or '.join(f'{name}.txt' for name in names)} for the {split} "
                        f"split; write one, an image's name per line, or name another by --{split}-list")
    known = {path.casefold() for path in _undivided(root)}
    for line in filter(None, map(str.strip, read_text(file).splitlines())):
        for name in (line, re.sub(r"\s+-?[01]$", "", line)):
            name = re.sub(r"^(.*/)?(JPEGImages|Annotations)/", "", name.replace("\\", "/").removeprefix("./"))
            known_suffix = Path(name).suffix.lower() in (*SUFFIXES, ".xml")
            plain = str(Path(name).with_suffix("")) if known_suffix else name
            key = next((key for key in (name, plain) if key.casefold() in known), None)
            if key is not None:
                break
        yield key or plain


def _read(keys: Mapping[str, list[tuple[Path, str]]], difficult: str, zero_based: bool,
          labels: Labels) -> None:
    """Add the images and boxes behind every name to `labels`, and note those that cannot be read."""
    labels.look(file for rows in keys.values() for root, key in rows if (file := _image(root, key)))
    for split, rows in keys.items():
        for root, key in rows:
            _add(labels, split, root, key, difficult, zero_based)


def _add(labels: Labels, split: str, root: Path, key: str, difficult: str, zero_based: bool) -> None:
    """Add the image and the boxes behind one name, or note why they cannot be read."""
    path = _folder(root, "Annotations") / f"{key}.xml"
    try:
        tree = parse_xml(path)
    except (OSError, ValueError) as error:
        reason = "there is none" if isinstance(error, FileNotFoundError) else str(error).split(": ", 1)[-1]
        labels.note(split, "no-xml", "images left out, no usable XML file", f"{path} {reason}")
        return
    # The devkit's rule: Annotations/KEY.xml belongs to JPEGImages/KEY.*; <filename> is often stale
    file, named = _image(root, key), PureWindowsPath((tree.findtext("filename") or "").strip()).name
    if file is None and named and (_folder(root, "JPEGImages") / named).is_file():
        file = _folder(root, "JPEGImages") / named
        labels.note(split, "found-by-filename", "images found by <filename>, not by the XML's name", path)
    elif file is not None and named and Path(named).stem != file.stem:
        labels.note(split, "stale-filename", "<filename> is not the XML's own name and was not followed",
                    f"{path}: {named}")
    if (size := labels.add_image(split, file, path)) is None:
        return
    stated = tuple((tree.findtext(f"size/{side}") or "0").strip() for side in ("width", "height"))
    if stated not in ((str(size[0]), str(size[1])), ("0", "0")):
        labels.note(split, "size-differs", "images of another size than their XML says, kept", path)
    for item in tree.findall("object"):
        name = (item.findtext("name") or "").strip()
        hard = (item.findtext("difficult") or "0").strip().lower() in ("1", "true", "yes")
        if not (name and (box := _box(item, zero_based))):
            labels.note(split, "no-box", "boxes dropped: no name, or not four numbers", path)
        elif not (hard and difficult == "drop"):
            labels.add_box(split, file, name, box, path, hard and difficult == "crowd")


def parse_xml(path: Path) -> ElementTree.Element:
    """Return the root of an XML file in any encoding it declares, or in one that `read_text` guesses.

    Raises DataError for a DOCTYPE, whose entities can fill the memory, and for what is not XML.
    """
    data = path.read_bytes()
    declared = re.search(rb"""<\?xml[^>]*encoding=["']([\w.-]+)""", data[:200])
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else declared and declared[1].decode()
    try:
        text = data.decode(encoding) if encoding else read_text(path)
    except (LookupError, UnicodeDecodeError):
        text = read_text(path)
    text = re.sub(r"^\s*<\?xml.*?\?>", "", text.lstrip("\ufeff"), count=1, flags=re.DOTALL).strip()

    def refuse(*_: object) -> None:
        raise DataError(f"{path}: has a DOCTYPE, which labels do not need and which can do harm; remove it")

    guard = expat.ParserCreate()
    guard.StartDoctypeDeclHandler = refuse
    try:
        guard.Parse(text, True)
        return ElementTree.fromstring(text)
    except (expat.ExpatError, ElementTree.ParseError, UnicodeEncodeError) as error:
        raise DataError(f"{path}: is not XML ({error}); export it again") from None


def _box(item: ElementTree.Element, zero_based: bool) -> tuple[float, float, float, float] | None:
    """Return the box of one <object>, top-left xywh px; None without four numbers."""
    try:
        x1, y1, x2, y2 = (float(item.findtext(f"bndbox/{key}") or "nan") for key in CORNERS)
    except ValueError:
        return None
    shift = 0 if zero_based else 1
    return x1 - shift, y1 - shift, x2 - x1 + shift, y2 - y1 + shift


def _image(root: Path, key: str) -> Path | None:
    """Return the image called `key`, whatever its suffix; None where there is none."""
    folder = _folder(root, "JPEGImages")
    names = (folder / f"{key}{suffix}" for known in SUFFIXES for suffix in (known, known.upper()))
    return next((path for path in names if path.is_file()), None)
