"""Pascal VOC labels: XML files, pictures and lists of names."""
from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree
from xml.parsers import expat

from data.convert.labels import SUFFIXES, Box, Example, Labelled, Tally, clip_box, picture_size
from utils.errors import DataError

CORNERS = ("xmin", "ymin", "xmax", "ymax")


def read_voc(source: Path, tally: Tally, difficult: str = "crowd", zero_based: bool = False,
             lists: dict[str, str | None] | None = None) -> Labelled:
    """What a VOC folder (Annotations, JPEGImages, ImageSets/Main), or a folder of such, holds; names sorted.

    VOC corners count pixels from 1 and include both ends, so xmin 1, xmax 10 is a box 10 px wide at 0;
    `zero_based` takes the four numbers as xyxy px instead, as some labelling programs write them. `difficult`
    objects become crowd boxes (ignored), or are kept ("keep") or left out ("drop"). `lists` names the list
    file of each split; by default train or trainval, val or test. Raises DataError where the layout differs.
    """
    roots = [source] if (source / "Annotations").is_dir() else sorted(
        path.parent for path in source.glob("*/Annotations") if path.is_dir())
    if not roots:
        raise DataError(f"{source}: no Annotations folder here or one level below; needs a VOC folder with "
                        "Annotations, JPEGImages and ImageSets/Main")
    found: dict[str, list[Example]] = {"train": [], "val": []}
    for root in roots:
        prefix = "" if len(roots) == 1 else f"{root.name}/"
        for split in found:
            for key in _list(root, split, (lists or {}).get(split)):
                example = _example(root, key, prefix, tally, difficult, zero_based)
                found[split] += [example] if example else []
    names = {box.name for examples in found.values() for example in examples for box in example.boxes}
    return Labelled(tuple(sorted(names)), found)


def _list(root: Path, split: str, wanted: str | None) -> list[str]:
    """Picture names of one split; the first of the usual list files that is there."""
    names = (wanted,) if wanted else {"train": ("train", "trainval"), "val": ("val", "test")}[split]
    folder = root / "ImageSets" / "Main"
    for name in names:
        if (folder / f"{name}.txt").is_file():
            lines = (folder / f"{name}.txt").read_text(encoding="utf-8-sig").splitlines()
            return [line.split()[0] for line in lines if line.strip()]
    wanted = " or ".join(f"{name}.txt" for name in names)
    raise DataError(f"{folder}: no list {wanted} for the {split} split; "
                    f"write one, a picture's name a line, or name another by --{split}-list")


def _example(root: Path, key: str, prefix: str, tally: Tally, difficult: str, zero_based: bool,
             ) -> Example | None:
    """The picture and boxes behind one name of a list; None, counted, when either cannot be read."""
    path = root / "Annotations" / f"{key}.xml"
    try:
        tree = parse_xml(path)
    except (OSError, ValueError) as error:
        tally.add(f"pictures left out, no usable XML ({type(error).__name__})", str(path))
        return None
    named = root / "JPEGImages" / Path(tree.findtext("filename") or "").name
    file = named if named.is_file() else _picture(root / "JPEGImages", key)
    size = picture_size(file, tally, str(path))
    if file is None or size is None:
        return None
    stated = tuple(tree.findtext(f"size/{side}") or "0" for side in ("width", "height"))
    if stated not in ((str(size[0]), str(size[1])), ("0", "0")):
        tally.add("pictures whose size differs from their XML (the picture's is used)", str(path))
    boxes = []
    for item in tree.findall("object"):
        hard = (item.findtext("difficult") or "0").strip() == "1"
        box = _box(item, zero_based, hard and difficult == "crowd")
        box = clip_box(box, size) if box else None
        if box is None:
            tally.add("boxes dropped: no area inside the picture, or not four numbers", str(path))
        elif not (hard and difficult == "drop"):
            boxes.append(box)
    return Example(file, prefix + file.name, *size, tuple(boxes))


def parse_xml(path: Path) -> ElementTree.Element:
    """The root element of an XML file. Raises DataError for a DOCTYPE: its entities can fill the memory."""
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


def _box(item: ElementTree.Element, zero_based: bool, crowd: bool) -> Box | None:
    """The box of one <object>; None without a name or four numbers."""
    name = (item.findtext("name") or "").strip()
    try:
        x1, y1, x2, y2 = (float(item.findtext(f"bndbox/{key}") or "nan") for key in CORNERS)
    except ValueError:
        return None
    shift = 0 if zero_based else 1
    return Box(name, x1 - shift, y1 - shift, x2 - x1 + shift, y2 - y1 + shift, crowd) if name else None


def _picture(folder: Path, key: str) -> Path | None:
    """The picture called `key` in a folder, whatever its suffix; None where there is none."""
    names = (folder / f"{key}{suffix}" for known in SUFFIXES for suffix in (known, known.upper()))
    return next((path for path in names if path.is_file()), None)
