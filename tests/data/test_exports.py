"""What labelling tools export is taken as it is, as a folder and as a file: every box, at its place.

Each writer makes a small set as its tool does, and returns what a user would give as --data.
"""
import base64
import io
import json
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import train as script
from data.coco.locate import locate
from data.coco.read import read_coco
from data.convert.__main__ import recognised, write_converted
from data.convert.labels import Labels
from models.records import to_json
from tests.helpers.label_writers import voc_object
from tests.helpers.nets import small_net
from tests.helpers.scripts import call
from utils.errors import DataError

SIZE, NAMES, COUNT = (96, 64), ("cat", "dog"), 10
BOXES = [(4.0, 6.0, 30.0, 20.0, 0), (40.0, 10.0, 36.0, 44.0, 1)]      # x, y, w, h px, class; of every image
Given = tuple[Path, ...]


def stems(split: str = "a") -> list[str]:
    return [f"{split}_{i:02d}" for i in range(COUNT)]


def draw(folder: Path, names: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for at, name in enumerate(names):
        Image.new("RGB", SIZE, (at * 9, 90, len(str(folder)) % 200)).save(folder / name)


def polygon(x: float, y: float, w: float, h: float) -> list[float]:
    return [x, y, x + w, y, x + w, y + h, x, y + h]


def coco(names: list[str], first_class: int = 1, **annotation: object) -> dict:
    """COCO content; keys of `annotation` that are functions get the box, None takes a key away."""
    images = [{"id": i, "file_name": name, "width": SIZE[0], "height": SIZE[1]}
              for i, name in enumerate(names)]
    notes = []
    for image in images:
        for *box, k in BOXES:
            note = {"id": len(notes) + 1, "image_id": image["id"], "category_id": k + first_class,
                    "bbox": box, "area": box[2] * box[3], "iscrowd": 0, "segmentation": []}
            for key, value in annotation.items():
                note[key] = value(*box) if callable(value) else value
            notes.append({key: value for key, value in note.items() if value is not None})
    return {"info": {}, "licenses": [], "images": images, "annotations": notes,
            "categories": [{"id": k + first_class, "name": name, "supercategory": ""}
                           for k, name in enumerate(NAMES)]}


def put(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def roboflow(root: Path) -> Given:
    """Three folders, JSON beside the images, category 0 the project's name."""
    for split in ("train", "valid", "test"):
        names = [f"{stem}_jpg.rf.0f{at}.jpg" for at, stem in enumerate(stems(split))]
        draw(root / split, names)
        made = coco(names)
        made["categories"] = [{"id": 0, "name": "pets", "supercategory": "none"}] + [
            {**c, "supercategory": "pets"} for c in made["categories"]]
        put(root / split / "_annotations.coco.json", made)
    (root / "README.roboflow.txt").write_text("pets - v1")
    return root, root / "train/_annotations.coco.json"


def cvat(root: Path) -> Given:
    names = [f"{stem}.jpg" for stem in stems()]
    draw(root / "images/default", names)
    made = coco(names, segmentation=lambda *box: [polygon(*box)],
                attributes={"occluded": False, "rotation": 0.0})
    return root, put(root / "annotations/instances_default.json", made)


def cvat_project(root: Path) -> Given:
    """A project's subsets, named by people."""
    for split in ("Train", "Validation"):
        names = [f"{stem}.jpg" for stem in stems(split)]
        draw(root / "images" / split, names)
        put(root / f"annotations/instances_{split}.json", coco(names))
    return root, root / "annotations/instances_Train.json"


def label_studio(root: Path) -> Given:
    names = [f"4b1{at}a-my%20{stem}.jpg" for at, stem in enumerate(stems())]
    draw(root / "images", names)
    made = coco([f"images/{name}" for name in names], 0, ignore=0)
    return root, put(root / "result.json", made)


def label_studio_on_windows(root: Path) -> Given:
    """Version 1.16: the path to the server's media folder."""
    names = [f"cb06{at}-{stem}.png" for at, stem in enumerate(stems())]
    draw(root / "images", names)
    places = [f"..\\..\\label-studio\\label-studio\\media\\upload\\4\\{name}" for name in names]
    return root, put(root / "result.json", coco(places, 0, ignore=0))


def labelme_coco(root: Path) -> Given:
    """As labelme's own labelme2coco.py: category 0 is the background, images in JPEGImages."""
    names = [f"{stem}.jpg" for stem in stems()]
    draw(root / "JPEGImages", names)
    made = coco([f"JPEGImages/{name}" for name in names], segmentation=lambda *box: [polygon(*box)])
    made["categories"] = [{**c, "supercategory": None} for c in made["categories"]]
    made |= {"type": "instances", "licenses": [{"url": None, "id": 0, "name": None}]}
    return root, put(root / "annotations.json", made)


def x_anylabeling(root: Path) -> Given:
    """COCO written beside the folder of images that was opened; the whole project is given."""
    names = [f"{stem}.png" for stem in stems()]
    draw(root / "images", names)
    made = coco(names, ignore=0)
    for stem in stems():                               # its own labels stay where they were
        labelme_file(root / "images" / f"{stem}.json", f"{stem}.png", four=True)
    return root, put(root / "annotations/coco_detection.json", made)


def via_coco(root: Path) -> Given:
    """Image ids as text in annotations, one flat polygon."""
    names = [f"{stem}.jpg" for stem in stems()]
    draw(root, names)
    made = coco(names, segmentation=lambda *box: polygon(*box))
    for note in made["annotations"]:
        note["image_id"] = str(note["image_id"])
    return root, put(root / "via_export_coco.json", made)


def makesense(root: Path) -> Given:
    names = [f"{stem}.jpg" for stem in stems()]
    draw(root / "photos", names)
    made = coco(names, segmentation=lambda *box: [polygon(*box)])
    made["info"] = {"description": "my-project-name"}
    return root, put(root / "labels_my-project-name_2026-01-01-10-00-00.json", made)


def masks_only(root: Path) -> Given:
    """Polygons and no boxes."""
    names = [f"{stem}.jpg" for stem in stems()]
    draw(root / "images", names)
    made = coco(names, bbox=None, area=None, segmentation=lambda *box: [polygon(*box)])
    return root, put(root / "annotations.json", made)


def rle_only(root: Path) -> Given:
    """Run lengths and no boxes."""
    def runs(x: float, y: float, w: float, h: float) -> dict:
        x, y, w, h = map(int, (x, y, w, h))
        counts = [x * SIZE[1] + y]
        for _ in range(w - 1):
            counts += [h, SIZE[1] - h]
        counts += [h, SIZE[0] * SIZE[1] - sum(counts) - h]
        return {"size": [SIZE[1], SIZE[0]], "counts": counts}
    names = [f"{stem}.jpg" for stem in stems()]
    draw(root / "images", names)
    return root, put(root / "annotations.json", coco(names, bbox=None, segmentation=runs))


def labelme_file(path: Path, image: str, four: bool = False) -> None:
    shapes = [{"label": NAMES[k], "shape_type": "rectangle", "group_id": None, "flags": {}, "points":
               [[x, y], [x + w, y], [x + w, y + h], [x, y + h]] if four else [[x + w, y + h], [x, y]]}
              for x, y, w, h, k in BOXES]
    put(path, {"version": "5.4.1", "flags": {}, "shapes": shapes, "imagePath": image, "imageData": None,
               "imageHeight": SIZE[1], "imageWidth": SIZE[0]})


def labelme(root: Path) -> Given:
    for stem in stems():
        draw(root, [f"{stem}.jpg"])
        labelme_file(root / f"{stem}.json", f"{stem}.jpg")
    return (root,)


def via_export(root: Path) -> Given:
    names = [f"{stem}.jpg" for stem in stems()]
    draw(root, names)
    entries = {}
    for at, name in enumerate(names):
        regions = [{"shape_attributes": {"name": "rect", "x": x, "y": y, "width": w, "height": h},
                    "region_attributes": {"pet": {NAMES[k]: True} if at % 2 else NAMES[k]}}
                   for x, y, w, h, k in BOXES]
        entries[f"{name}123"] = {"filename": name, "size": 123, "file_attributes": {},
                                 "regions": {str(i): r for i, r in enumerate(regions)} if at % 3 else regions}
    return root, put(root / "via_region_data.json", entries)


def via_project(root: Path) -> Given:
    root, file = via_export(root)
    entries = json.loads(file.read_text())
    file.unlink()
    return root, put(root / "via_project.json", {"_via_settings": {}, "_via_img_metadata": entries,
                                                 "_via_attributes": {"region": {"pet": {}}}})


def supervisely(root: Path) -> Given:
    """Projects hold data sets of img/ and ann/; one object is a bitmap."""
    png = io.BytesIO()
    Image.new("1", (36, 44), 1).save(png, "PNG")
    (x, y, w, h, k), (x2, y2, _, _, k2) = BOXES
    objects = [{"classTitle": NAMES[k], "geometryType": "rectangle", "points": {
        "exterior": [[x, y], [x + w, y + h]], "interior": []}},
        {"classTitle": NAMES[k2], "geometryType": "bitmap", "bitmap": {"origin": [int(x2), int(y2)], "data":
         base64.b64encode(zlib.compress(png.getvalue())).decode()}}]
    for stem in stems():
        draw(root / "ds0/img", [f"{stem}.jpg"])
        put(root / f"ds0/ann/{stem}.jpg.json", {"description": "", "tags": [], "objects": objects,
                                                "size": {"width": SIZE[0], "height": SIZE[1]}})
    put(root / "meta.json", {"classes": [{"title": name, "shape": "any"} for name in NAMES], "tags": []})
    return (root,)


def yolo(root: Path) -> Given:
    """As Roboflow and Label Studio write it: a YAML whose paths begin with ../."""
    for split in ("train", "valid"):
        draw(root / split / "images", [f"{stem}.jpg" for stem in stems(split)])
        (root / split / "labels").mkdir()
        rows = [f"{k} {(x + w / 2) / SIZE[0]} {(y + h / 2) / SIZE[1]} {w / SIZE[0]} {h / SIZE[1]}"
                for x, y, w, h, k in BOXES]
        for stem in stems(split):
            (root / split / f"labels/{stem}.txt").write_text("\n".join(rows))
    (root / "data.yaml").write_text("train: ../train/images\nval: ../valid/images\n\nnc: 2\n"
                                    f"names: {list(NAMES)}\n\nroboflow:\n  version: 1\n")
    return root, root / "data.yaml"


def voc(root: Path) -> Given:
    """As Roboflow writes it: XML files beside the images of each split."""
    for split in ("train", "valid"):
        for stem in stems(split):
            draw(root / split, [f"{stem}.jpg"])
            items = "".join(voc_object(NAMES[k], (x + 1, y + 1, x + w, y + h)) for x, y, w, h, k in BOXES)
            (root / split / f"{stem}.xml").write_text(
                f"<annotation><folder></folder><filename>{stem}.jpg</filename><path>{stem}.jpg</path>"
                f"<size><width>{SIZE[0]}</width><height>{SIZE[1]}</height><depth>3</depth></size>{items}"
                "</annotation>")
    return (root,)


COCO_EXPORTS = (roboflow, cvat, cvat_project, label_studio, label_studio_on_windows, labelme_coco,
                x_anylabeling, via_coco, makesense, masks_only, rle_only)
OTHER_EXPORTS = (labelme, via_export, via_project, supervisely, yolo, voc)

DIVIDED = (8, 2)                                       # of the ten images of an undivided set
NAMED = (roboflow, cvat_project, yolo, voc)     # these divide themselves
HARMLESS = {"empty-parent-class", "file-name-differs", "box-from-mask", "missing-area", "no-box"}


@pytest.mark.parametrize("export", [*COCO_EXPORTS, *OTHER_EXPORTS])
def test_an_export_is_read_as_it_is(tmp_path: Path, export: Callable[[Path], Given]):
    for given in export(tmp_path / "my set"):
        where = locate(given)
        train = read_coco(*where.train, names=where.names)
        val = read_coco(*where.val, names=train.names, class_map=train.class_map)
        wanted = (10, 10) if export in NAMED else DIVIDED
        assert (len(train.images), len(val.images)) == wanted and where.note
        assert train.names == NAMES and {f.rule for f in train.faults} <= HARMLESS
        assert not {r.path for r in train.images} & {r.path for r in val.images}
        expected = [[k, x, y, x + w, y + h] for x, y, w, h, k in BOXES]
        for record in (*train.images, *val.images):
            rows = record.boxes[np.argsort(record.boxes[:, 0])]
            assert np.allclose(rows, expected, atol=1e-3), (given, record.path, rows)


def test_a_file_among_folders_of_splits_is_their_set(tmp_path: Path):
    folder, file = roboflow(tmp_path)
    assert {split: part.json.parent.name for split, part in locate(file).splits.items()} == {
        "train": "train", "val": "valid", "test": "test"}
    (tmp_path / "valid/_annotations.coco.json").unlink(), (tmp_path / "test/_annotations.coco.json").unlink()
    assert set(locate(file).splits) == {"train", "val", "all"}          # divided
    assert all(part.json == file for part in locate(file).splits.values())


def test_a_class_that_could_be_one_of_two_attributes_is_asked_for(tmp_path: Path):
    _, file = via_export(tmp_path)
    file.write_text(file.read_text().replace('"pet": "', '"colour": "'))
    with pytest.raises(DataError, match="attributes (colour, pet|pet, colour); rename"):
        read_coco(*locate(file).train)
    file.write_text(file.read_text().replace('"pet": ', '"Class": '))
    assert read_coco(*locate(file).train).names == ("cat", "dog")       # of the half that has it


@pytest.mark.slow
@pytest.mark.parametrize("export", COCO_EXPORTS[:8])
def test_an_export_trains_with_no_other_preparation(tmp_path: Path, monkeypatch, export):
    (tmp_path / "net.json").write_text(to_json(small_net(2)))
    for at, given in enumerate(export(tmp_path / "my set")):
        before = sorted((tmp_path / "my set").rglob("*"))
        assert call(monkeypatch, script.main, [
            "train.py", "--cfg", tmp_path / "net.json", "--data", given, "--imgsz", 64, "--epochs", 1,
            "--workers", 0, "--threads", 1, "--project", tmp_path / "runs", "--name", f"r{at}", "--no-report",
            "--precision", "fp32"]) == 0
        assert (tmp_path / f"runs/r{at}/weights/best.pt").is_file()
        assert sorted((tmp_path / "my set").rglob("*")) == before


def test_a_list_of_no_split_and_images_in_a_folder_beside_are_an_undivided_set(tmp_path: Path):
    """CVAT's VOC lists all in default.txt; MakeSense's XML files come in a folder of their own."""
    voc(tmp_path / "set")
    for place in ("cvat/Annotations", "cvat/JPEGImages", "cvat/ImageSets/Main", "sense/labels_pets",
                  "sense/images"):
        (tmp_path / place).mkdir(parents=True)
    for stem in stems("train"):
        for kind, places in ((".xml", ("cvat/Annotations", "sense/labels_pets")),
                             (".jpg", ("cvat/JPEGImages", "sense/images"))):
            for place in places:
                shutil.copy(tmp_path / "set/train" / f"{stem}{kind}", tmp_path / place)
    (tmp_path / "cvat/ImageSets/Main/default.txt").write_text("\n".join(stems("train")))
    for name in ("cvat", "sense"):
        where = locate(tmp_path / name)
        counts = [len(read_coco(*where[split]).images) for split in ("train", "val")]
        assert counts == [8, 2]
    for split, word in (("train", "Train"), ("val", "Validation")):
        listed = "\n".join(stems("train")[split == "val"::2])
        (tmp_path / f"cvat/ImageSets/Main/{word}.txt").write_text(listed)
    where = locate(tmp_path / "cvat")
    assert [len(read_coco(*where[split]).images) for split in ("train", "val")] == [5, 5]


def test_labels_of_any_case_are_read_and_absent_ones_are_named(tmp_path: Path):
    root, file = yolo(tmp_path)
    for text in list(root.rglob("*.txt")):
        text.rename(text.with_suffix(".TXT"))
    assert [len(r.boxes) for r in read_coco(*locate(file).train).images] == [2] * 10
    shutil.rmtree(root / "train/labels")
    with pytest.raises(DataError, match="10 images without a label file, .*first: .*train_00"):
        read_coco(*locate(file).train)


def test_a_converted_copy_of_via_and_supervisely_holds_the_same_boxes(tmp_path: Path):
    for export, kind in ((via_project, "via"), (supervisely, "labelme")):
        given = export(tmp_path / kind)[-1]
        write_converted(Labels(), recognised(kind, given), tmp_path / f"{kind} copy")
        for record in read_coco(*locate(tmp_path / f"{kind} copy", val_split=0.2).train).images:
            assert record.boxes.tolist() == [[k, x, y, x + w, y + h] for x, y, w, h, k in BOXES]
