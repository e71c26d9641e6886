"""Pascal VOC labels: XML files, images and lists of names."""
from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path, PureWindowsPath
from xml.etree import ElementTree
from xml.parsers import expat

from data.coco.find import image_named, is_file, visible_files
from data.convert.labels import Labels, Layout, by_folder
from data.images import SUFFIXES
from data.yamlfile import read_text
from utils.errors import DataError

CORNERS = ("xmin", "ymin", "xmax", "ymax")
LISTS = {"train": ("train", "training", "trainval"), "val": ("val", "valid", "validation", "test"),
         "test": ("test",)}
PLACES = ("JPEGImages", "images", "Images", "imgs")    # where images lie beside a folder of XML files


def voc_layout(source: Path, difficult: str = "crowd", zero_based: bool = False,
               lists: Mapping[str, str | None] | None = None) -> Layout | None:
    """Return the layout of a VOC folder, of a folder of such, or of XML files; None without one.

    Corners are pixel numbers from 1, both ends included, or `zero_based` xyxy px. `difficult` objects are
    made "crowd" boxes, or "keep" or "drop". `lists` names the list file of each split.
    """
    lists = lists or {}
    roots = [root for root in (source, *sorted(source.glob("*/"))) if (root / "Annotations").is_dir()]
    roots = [source] if source in roots else roots
    if any(_list(root, split, lists) for root in roots for split in LISTS) or any(lists.values()):
        files = {split: [file for root in roots for file in _listed(root, split, lists)] for split in LISTS}
        files = {split: paths for split, paths in files.items() if paths}
    else:
        files = by_folder((path for path in visible_files(source) if path.suffix.lower() == ".xml"), source)
    if not files:
        return None
    return Layout("Pascal VOC labels", tuple(files), source, partial(_read, files, difficult, zero_based))


def _list(root: Path, split: str, lists: Mapping[str, str | None]) -> Path | None:
    """Return the list file of a split, in any letter case; None without one: CVAT's is default.txt."""
    known = {file.stem.lower(): file for file in sorted((root / "ImageSets/Main").glob("*.txt"))}
    wanted = lists.get(split)
    names = (wanted.lower(),) if wanted else LISTS[split]
    return next((known[name] for name in names if name in known), None)


def _listed(root: Path, split: str, lists: Mapping[str, str | None]) -> Iterator[Path]:
    """Yield the XML files of a split by its list: names, with suffix, path or a column of 1 and -1."""
    file, folder = _list(root, split, lists), root / "ImageSets" / "Main"
    if split == "test" and file == _list(root, "val", lists) or \
            file is None and split != "train" and not lists.get(split):
        return                                         # there may be none, or test is taken as val
    if file is None:
        names = [lists.get(split)] if lists.get(split) else ("train", "trainval")
        raise DataError(f"{folder}: no list {' or '.join(f'{name}.txt' for name in names)} for the {split} "
                        f"split; write one, an image's name per line, or name another by --{split}-list")
    labels = root / "Annotations"
    known = {path.relative_to(labels).with_suffix("").as_posix().casefold(): path
             for path in labels.rglob("*.xml")}
    for line in filter(None, map(str.strip, read_text(file).splitlines())):
        name = re.sub(r"^(.*/)?(JPEGImages|Annotations)/", "", line.replace("\\", "/").removeprefix("./"))
        tries = [re.sub(rf"(?i)({'|'.join(map(re.escape, (*SUFFIXES, '.xml')))})$", "", text)
                 for text in (name, re.sub(r"\s+-?[01]$", "", name))]
        yield next((known[key] for key in (name.casefold(), *map(str.casefold, tries)) if key in known),
                   labels / f"{tries[-1]}.xml")


def _read(files: Mapping[str, list[Path]], difficult: str, zero_based: bool, labels: Labels) -> None:
    """Add the images and boxes of every XML file to `labels`, and note those that cannot be read."""
    images = {path: image_named(path.stem, _places(path)) for paths in files.values() for path in paths}
    labels.look(filter(None, images.values()))
    for split, paths in files.items():
        for path in paths:
            _add(labels, split, path, images[path], difficult, zero_based)


def _add(labels: Labels, split: str, path: Path, file: Path | None, difficult: str,
         zero_based: bool) -> None:
    """Add the image `file` and the boxes of one XML file, or note why they cannot be read."""
    try:
        tree = parse_xml(path)
    except (OSError, ValueError) as error:
        reason = "there is none" if isinstance(error, FileNotFoundError) else str(error).split(": ", 1)[-1]
        return labels.note(split, "no-xml", "images left out, no usable XML file", f"{path} {reason}")
    # The devkit's rule: Annotations/KEY.xml belongs to JPEGImages/KEY.*; <filename> is often stale
    named = PureWindowsPath((tree.findtext("filename") or "").strip()).name
    given = next((place / named for place in _places(path) if named and is_file(place / named)), None)
    if file and given and given.parent == file.parent and given.stem == file.stem:
        file = given                                   # of images that differ by their suffix alone
    if file is None:
        file = given
        if file:
            labels.note(split, "found-by-filename", "images found by <filename>, not by the XML's name", path)
    elif named and Path(named).stem != path.stem:
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
    """Return the root of an XML file in any encoding; raise DataError for a DOCTYPE or what is not XML."""
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


def _places(path: Path) -> list[Path]:
    """Return the folders that may hold the image of an XML file: beside Annotations/, its own, beside it."""
    parts = path.parent.parts
    at = [i for i, part in enumerate(parts) if part.lower() in ("annotations", "labels", "xml", "xmls")]
    beside = [Path(*parts[:at[-1]], name, *parts[at[-1] + 1:]) for name in PLACES if at]
    return [*beside, path.parent, *(path.parent.parent / name for name in PLACES)]
