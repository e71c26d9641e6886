"""Pascal VOC labels: XML files, images and lists of names."""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree
from xml.parsers import expat

from data.convert.labels import Labels
from data.images import SUFFIXES
from utils.errors import DataError

CORNERS = ("xmin", "ymin", "xmax", "ymax")


def read_voc(source: Path, labels: Labels, *, difficult: str = "crowd", zero_based: bool = False,
             lists: Mapping[str, str | None] | None = None) -> None:
    """Add to `labels` a VOC folder (Annotations, JPEGImages, ImageSets/Main), or a folder of such.

    VOC corners count pixels from 1 and include both ends, so xmin 1, xmax 10 is a box 10 px wide at 0;
    `zero_based` takes the four numbers as xyxy px instead. `difficult` objects become crowd boxes (ignored),
    or are kept ("keep") or left out ("drop"). `lists` names the list file of each split; by default train or
    trainval, val or test. Raises DataError where the layout differs.
    """
    roots = [source] if (source / "Annotations").is_dir() else sorted(
        path.parent for path in source.glob("*/Annotations") if path.is_dir())
    if not roots:
        raise DataError(f"{source}: no Annotations folder here or one level below; needs a VOC folder with "
                        "Annotations, JPEGImages and ImageSets/Main")
    for root in roots:
        for split in ("train", "val"):
            for key in _list(root, split, (lists or {}).get(split)):
                _add(labels, split, root, key, difficult, zero_based)


def _list(root: Path, split: str, wanted: str | None) -> list[str]:
    """Return the image names of one split, from the first of the usual list files that is there."""
    names = (wanted,) if wanted else {"train": ("train", "trainval"), "val": ("val", "test")}[split]
    folder = root / "ImageSets" / "Main"
    file = next((file for name in names if (file := folder / f"{name}.txt").is_file()), None)
    if file is None:
        raise DataError(f"{folder}: no list {' or '.join(f'{name}.txt' for name in names)} for the {split} "
                        f"split; write one, an image's name per line, or name another by --{split}-list")
    return [line.split()[0] for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]


def _add(labels: Labels, split: str, root: Path, key: str, difficult: str, zero_based: bool) -> None:
    """Add the image and the boxes behind one name of a list, or note why they cannot be read."""
    path = root / "Annotations" / f"{key}.xml"
    try:
        tree = parse_xml(path)
    except (OSError, ValueError) as error:
        labels.note("no-xml", f"images left out, no usable XML ({type(error).__name__})", str(path))
        return
    named = root / "JPEGImages" / Path(tree.findtext("filename") or "").name
    file = named if named.is_file() else _image(root / "JPEGImages", key)
    if (size := labels.add_image(split, file, str(path))) is None:
        return
    stated = tuple(tree.findtext(f"size/{side}") or "0" for side in ("width", "height"))
    if stated not in ((str(size[0]), str(size[1])), ("0", "0")):
        labels.note("size-differs", "images of another size than their XML says, kept", str(path))
    for item in tree.findall("object"):
        name = (item.findtext("name") or "").strip()
        hard = (item.findtext("difficult") or "0").strip() == "1"
        if not (name and (box := _box(item, zero_based))):
            labels.note("no-box", "boxes dropped: no name, or not four numbers", str(path))
        elif not (hard and difficult == "drop"):
            labels.add_box(split, file, name, box, str(path), hard and difficult == "crowd")


def parse_xml(path: Path) -> ElementTree.Element:
    """Return the root of an XML file; raise DataError for a DOCTYPE: its entities can fill the memory."""
    data = path.read_bytes()

    def refuse(*_: object) -> None:
        raise DataError(f"{path}: has a DOCTYPE, which labels do not need and which can do harm; remove it")

    guard = expat.ParserCreate()
    guard.StartDoctypeDeclHandler = refuse
    try:
        guard.Parse(data, True)
        return ElementTree.fromstring(data)
    except (expat.ExpatError, ElementTree.ParseError) as error:
        raise DataError(f"{path}: is not XML ({error}); export it again") from None


def _box(item: ElementTree.Element, zero_based: bool) -> tuple[float, float, float, float] | None:
    """Return the box of one <object>, top-left xywh px; None without four numbers."""
    try:
        x1, y1, x2, y2 = (float(item.findtext(f"bndbox/{key}") or "nan") for key in CORNERS)
    except ValueError:
        return None
    shift = 0 if zero_based else 1
    return x1 - shift, y1 - shift, x2 - x1 + shift, y2 - y1 + shift


def _image(folder: Path, key: str) -> Path | None:
    """Return the image called `key` in a folder, whatever its suffix; None where there is none."""
    names = (folder / f"{key}{suffix}" for known in SUFFIXES for suffix in (known, known.upper()))
    return next((path for path in names if path.is_file()), None)
