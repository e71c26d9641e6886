"""Small sets written for the tests as YOLO and Pascal VOC labels, and the COCO content they stand for."""
import json
from pathlib import Path

import numpy as np
from PIL import Image

NAMES = ("cat", "dog with hat", "猫")


def coco_example(split: str, images: int = 3) -> tuple[dict, dict[str, tuple[int, int]]]:
    """A COCO content with boxes at 1/4 px, and the image sizes by file name."""
    rng = np.random.default_rng(len(split))
    categories = [{"id": number, "name": name} for number, name in enumerate(NAMES, 1)]
    content, sizes = {"images": [], "annotations": [], "categories": categories}, {}
    for image_id in range(1, images + 1):
        width, height = (int(v) for v in rng.integers(60, 200, 2))
        name = f"{split} {image_id}.png"
        sizes[name] = (width, height)
        content["images"].append({"id": image_id, "file_name": name, "width": width, "height": height})
        for _ in range(int(rng.integers(1, 5))):
            x, y = rng.integers(0, 40, 2) / 4
            w, h = rng.integers(8, 150, 2) / 4
            content["annotations"].append({"id": len(content["annotations"]), "image_id": image_id,
                                           "category_id": int(rng.integers(1, 4)), "bbox": [x, y, w, h]})
    return content, sizes


def save_images(folder: Path, sizes: dict[str, tuple[int, int]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, size in sizes.items():
        Image.new("RGB", size, (90, 120, 30)).save(folder / name)


def boxes_of(content: dict) -> dict[str, list[tuple]]:
    """(category name, x, y, w, h) rows by bare file name, sorted."""
    files = {image["id"]: Path(image["file_name"]).name for image in content["images"]}
    names = {category["id"]: category["name"] for category in content["categories"]}
    found: dict[str, list[tuple]] = {name: [] for name in files.values()}
    for note in content["annotations"]:
        found[files[note["image_id"]]].append((names[note["category_id"]], *note["bbox"]))
    return {name: sorted(rows) for name, rows in found.items()}


def write_yolo(root: Path, split: str, content: dict, sizes: dict[str, tuple[int, int]]) -> None:
    (root / "labels" / split).mkdir(parents=True)
    for name, rows in boxes_of(content).items():
        w, h = sizes[name]
        lines = [f"{NAMES.index(row[0])} {(row[1] + row[3] / 2) / w:.7f} {(row[2] + row[4] / 2) / h:.7f} "
                 f"{row[3] / w:.7f} {row[4] / h:.7f}" for row in rows]
        (root / "labels" / split / name).with_suffix(".txt").write_text("\n".join(lines), encoding="utf-8")


def write_voc(root: Path, split: str, content: dict, sizes: dict[str, tuple[int, int]]) -> None:
    for part in ("Annotations", "ImageSets/Main"):
        (root / part).mkdir(parents=True, exist_ok=True)
    for name, rows in boxes_of(content).items():
        items = "".join(voc_object(kind, (x + 1, y + 1, x + w, y + h)) for kind, x, y, w, h in rows)
        text = (f"<annotation><filename>{name}</filename><size><width>{sizes[name][0]}</width>"
                f"<height>{sizes[name][1]}</height></size>{items}</annotation>")
        (root / "Annotations" / name).with_suffix(".xml").write_text(text, encoding="utf-8")
    listed = "\n".join(Path(name).stem.replace(" ", "_") for name in sizes)
    (root / "ImageSets" / "Main" / f"{split}.txt").write_text(listed, encoding="utf-8")


def voc_object(name: str, corners: tuple, difficult: int = 0) -> str:
    keys = ("xmin", "ymin", "xmax", "ymax")
    inner = "".join(f"<{key}>{value}</{key}>" for key, value in zip(keys, corners))
    return f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{inner}</bndbox></object>"


def make_yolo(root: Path, names_file: str = "data.yaml") -> dict[str, dict]:
    contents = {}
    for split in ("train", "val"):
        contents[split], sizes = coco_example(split)
        save_images(root / "images" / split, sizes)
        write_yolo(root, split, contents[split], sizes)
    yaml = f"names: {json.dumps(NAMES, ensure_ascii=False)}"
    text = "\n".join(NAMES) if names_file == "classes.txt" else yaml
    (root / names_file).write_text(text, encoding="utf-8")
    return contents


def make_voc(root: Path) -> dict[str, dict]:
    contents = {}
    for split in ("train", "val"):
        content, sizes = coco_example(split)
        for image in content["images"]:                     # VOC lists cannot hold blanks
            image["file_name"] = image["file_name"].replace(" ", "_")
        sizes = {name.replace(" ", "_"): size for name, size in sizes.items()}
        contents[split] = content
        save_images(root / "JPEGImages", sizes)
        write_voc(root, split, content, sizes)
    return contents
