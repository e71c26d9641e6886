"""Sets as tools export them are taken as they are: the same boxes from every layout, and honest splits."""
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.coco.divide import divide
from data.coco.locate import locate
from data.coco.read import CocoSet, read_coco
from data.convert.__main__ import recognised, write_converted
from data.convert.labels import Labels
from data.doctor.diagnosis import examine
from data.doctor.leaks import start_faults
from tests.helpers.coco_files import SIZE, content, count
from tests.helpers.label_writers import NAMES, boxes_of, make_voc, make_yolo
from utils.errors import DataError, UsageError


def coco_of(split: str, images: int = 6) -> dict:
    made = content(images, 5)
    for image in made["images"]:
        image["file_name"] = f"{split}_{image['id']}.png"
    return made


def draw(folder: Path, made: dict) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for image in made["images"]:
        Image.new("RGB", SIZE, (image["id"], 9, 9)).save(folder / Path(image["file_name"]).name)


def put(path: Path, made: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(made))


def read(data: Path | str, split: str = "train", **options: object) -> CocoSet:
    located = locate(data)
    return read_coco(*located[split], names=located.names, **options)


def boxes(data: CocoSet) -> dict[str, list]:
    """Boxes (name, x, y, w, h) by bare file name, sorted."""
    return {name: [(row[0], *np.round(row[1:], 2).tolist()) for row in rows]
            for name, rows in boxes_of(data.ground_truth()).items()}


def test_roboflows_coco_folders_are_three_splits(tmp_path: Path):
    for split in ("train", "valid", "test"):
        made = coco_of(split)
        put(tmp_path / split / "_annotations.coco.json", made)
        draw(tmp_path / split, made)
    located = locate(tmp_path)
    assert list(located.splits) == ["train", "val", "test"] and "_annotations.coco.json" in located.note
    for split, folder in (("train", "train"), ("val", "valid"), ("test", "test")):
        assert {r.path.parent.name for r in read(tmp_path, split).images} == {folder}


@pytest.mark.parametrize("json_at, images_at", [
    ("annotations/instances_default.json", "images/default"), ("labels.json", "data"),
    ("annotations/instances_default.json", "images"), ("result.json", "images"), ("export.json", ""),
    ("annotations.json", "JPEGImages")])
def test_one_json_is_divided_and_its_parts_hold_the_boxes_of_the_whole(
        tmp_path: Path, json_at: str, images_at: str):
    made = coco_of("image", 10)
    put(tmp_path / json_at, made)
    draw(tmp_path / images_at, made)
    for given in (tmp_path, tmp_path / json_at):
        train, val = (read(given, split) for split in ("train", "val"))
        assert (len(train.images), len(val.images)) == (8, 2) and count(train) + count(val) == 50
        assert boxes(train) | boxes(val) == boxes(read(given, "all"))
        assert {f.rule for f in (*train.faults, *val.faults)} <= {"file-name-differs"}
        assert "val is 20% of it" in locate(given).note
        files = locate(given).save(tmp_path)
        assert boxes(read_coco(files[1], tmp_path)) == boxes(val)
        [file.unlink() for file in files]


def test_the_share_is_asked_for_by_a_flag_and_refused_beside_a_val_split(tmp_path: Path):
    made = coco_of("image", 10)
    put(tmp_path / "annotations/instances_train.json", made)
    draw(tmp_path / "images", made)
    with pytest.raises(DataError, match="no annotation file for `val`"):
        _ = locate(tmp_path).val
    located = locate(tmp_path, val_split=0.5)
    assert len(read_coco(*located.val).images) == 5
    put(tmp_path / "annotations/instances_val.json", made)
    with pytest.raises(DataError, match="has a val split of its own"):
        locate(tmp_path, val_split=0.5)


def test_a_json_with_siblings_is_their_set_and_a_lone_val_is_not_divided(tmp_path: Path):
    for split in ("train", "val"):
        made = coco_of(split)
        put(tmp_path / f"annotations/instances_{split}2017.json", made)
        draw(tmp_path / "images", made)
    given = tmp_path / "annotations/instances_val2017.json"
    assert locate(given).val.json == given and locate(given).train.json.name == "instances_train2017.json"
    locate(given).train.json.unlink()
    assert list(locate(given).splits) == ["val"]


def frames(names: list[str], classes: list[int] | None = None) -> dict:
    return {"images": [{"id": i, "file_name": name} for i, name in enumerate(names)],
            "annotations": [{"id": i + 1, "image_id": i, "category_id": k, "bbox": [1, 1, 9, 9]}
                            for i, k in enumerate(classes or [1] * len(names))],
            "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]}


def names_of(part: dict) -> list[str]:
    return [image["file_name"] for image in part["images"]]


def test_frames_of_one_video_and_images_of_one_folder_stay_together():
    videos = [f"{where}/clip{v}_{i:04d}.jpg" for where in ("a", "b") for v in range(5) for i in range(10)]
    for seed in range(3):
        parts = divide(frames(videos), 0.2, seed, Path("x.json"))
        groups = {split: {name[:7] for name in names_of(part)} for split, part in parts.items()}
        assert len(groups["val"]) == 2 and not groups["train"] & groups["val"]
        assert parts == divide(frames(videos), 0.2, seed, Path("x.json"))
    assert divide(frames(videos), 0.2, 0, Path("x")) != divide(frames(videos), 0.2, 1, Path("x"))


def test_one_numbered_run_is_cut_once_and_variants_of_an_image_stay_on_one_side():
    one = divide(frames([f"{i}.png" for i in range(20)]), 0.2, 0, Path("x.json"))
    assert names_of(one["val"]) == ["16.png", "17.png", "18.png", "19.png"]
    variants = [f"img{i}_jpg.rf.{letter}.jpg" for i in range(10) for letter in "abc"]
    parts = divide(frames(variants), 0.2, 0, Path("x.json"))
    bases = [{name.split("_")[0] for name in names_of(part)} for part in parts.values()]
    assert not bases[0] & bases[1] and 3 <= len(names_of(parts["val"])) <= 6


def test_a_folder_of_one_class_does_not_leave_training():
    names = [f"{kind}/{i}.png" for kind in ("cat", "dog") for i in range(10)]
    parts = divide(frames(names, [1] * 10 + [2] * 10), 0.3, 0, Path("x.json"))
    assert {name[:3] for name in names_of(parts["train"])} == {"cat", "dog"}
    with pytest.raises(DataError, match="one image cannot be both"):
        divide(frames(["a.png"]), 0.2, 0, Path("x.json"))


@pytest.mark.parametrize("make", [make_yolo, make_voc])
def test_yolo_and_voc_folders_are_read_without_a_conversion(tmp_path: Path, make):
    contents = make(tmp_path / "set")
    before = sorted(tmp_path.rglob("*"))
    for split, expected in contents.items():
        got, wanted = boxes(read(tmp_path / "set", split)), boxes_of(expected)
        assert got.keys() == wanted.keys()
        for name, rows in wanted.items():
            assert [row[0] for row in got[name]] == [row[0] for row in rows]
            assert np.allclose([row[1:] for row in got[name]], [row[1:] for row in rows], atol=0.02)
    assert "converted in memory" in locate(tmp_path / "set").note and sorted(tmp_path.rglob("*")) == before


def test_the_yaml_of_yolo_is_a_set_and_a_damaged_image_is_a_fault(tmp_path: Path):
    make_yolo(tmp_path)
    (tmp_path / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [on, off, 007]\n")
    (tmp_path / "images/val/val 2.png").write_bytes(b"<html>")
    data = read(tmp_path / "data.yaml", "val")
    assert data.names == ("on", "off", "007") and {f.rule for f in data.faults} == {"undecodable-image"}
    with pytest.raises(DataError, match="claims .*--max-pixels"):
        read(tmp_path / "data.yaml", "train", max_pixels=5)


def labelme(path: Path, **more: object) -> None:
    shapes = [{"label": "cat", "points": [[10, 20], [40, 30]], "shape_type": "rectangle"},
              {"label": "dog", "points": [[5, 5], [25, 8], [9, 30]], "shape_type": "polygon"},
              {"label": "dog", "points": [[50, 40], [53, 44]], "shape_type": "circle"},
              {"label": "cat", "points": [[1, 1]], "shape_type": "point"},
              {"label": "cat", "points": [[60, 20], [80, 20], [80, 50], [60, 50]], "shape_type": "rectangle"}]
    put(path, {"version": "5", "shapes": shapes, "imagePath": f"..\\imgs\\{path.stem}.png", **more})
    Image.new("RGB", SIZE).save(path.with_suffix(".png"))


def test_a_labelme_folder_is_read_shape_by_shape(tmp_path: Path):
    for i in range(5):
        labelme(tmp_path / f"{i}.json")
    put(tmp_path / "9.json", {"shapes": [], "imagePath": "gone.png"})
    data = read(tmp_path)
    assert len(data.images) == 4 and data.names == ("cat", "dog")
    assert boxes(data)["0.png"] == [("cat", 10, 20, 30, 10), ("cat", 60, 20, 20, 30), ("dog", 5, 5, 20, 25),
                                    ("dog", 45, 35, 10, 10)]
    assert {f.rule: f.count for f in data.faults} == {"no-box": 5, "missing-image": 1}


def test_two_files_for_one_split_are_refused_with_both(tmp_path: Path):
    for name in ("a", "b"):
        put(tmp_path / f"{name}.json", coco_of("image"))
    with pytest.raises(DataError, match="a.json and b.json could each be the set"):
        locate(tmp_path)
    shutil.copy(tmp_path / "a.json", tmp_path / "instances_default.json")
    assert locate(tmp_path).train.json.name == "instances_default.json"


def test_exports_that_name_train_alone_are_divided(tmp_path: Path):
    made = coco_of("image", 10)
    put(tmp_path / "a/train/_annotations.coco.json", made)
    draw(tmp_path / "a/train", made)
    make_yolo(tmp_path / "b")
    (tmp_path / "b/data.yaml").write_text("train: images/train\nnames: [cat, dog with hat, 猫]\n")
    for folder, train, val in (("a", 8, 2), ("b", 2, 1)):
        assert [len(read(tmp_path / folder, split).images) for split in ("train", "val")] == [train, val]


def test_folders_and_lists_of_train_alone_are_divided_and_it_is_said(tmp_path: Path):
    make_yolo(tmp_path / "a", "classes.txt")
    shutil.rmtree(tmp_path / "a/images/val")
    make_yolo(tmp_path / "b")                              # its YAML has names alone
    shutil.rmtree(tmp_path / "b/images/val")
    make_voc(tmp_path / "c")
    (tmp_path / "c/ImageSets/Main/val.txt").unlink()
    for folder in "abc":
        assert "no val split: val is 20% of it" in locate(tmp_path / folder).note
        assert [len(read(tmp_path / folder, split).images) for split in ("train", "val")] == [2, 1]
        located = locate(tmp_path / folder, val_split=0.6)
        assert [len(read_coco(*located[split]).images) for split in ("train", "val")] == [1, 2]


def test_a_val_split_that_is_train_itself_is_taken_and_said_loudly(tmp_path: Path):
    make_yolo(tmp_path / "a")
    make_voc(tmp_path / "b")
    text = f"train: images/train\nval: images/train\nnames: [{', '.join(NAMES)}]\n"
    (tmp_path / "a/data.yaml").write_text(text, encoding="utf-8")
    lists = tmp_path / "b/ImageSets/Main"
    shutil.copy(lists / "train.txt", lists / "val.txt")
    put(tmp_path / "c/all.json", made := coco_of("image", 4))
    draw(tmp_path / "c/images", made)
    (tmp_path / "c/d.yaml").write_text("train: all.json\nval: all.json\n")
    for given, images in (("a", 3), ("b", 3), ("c/d.yaml", 4)):
        train, val = (read(tmp_path / given, split) for split in ("train", "val"))
        assert boxes(train) == boxes(val) and len(train.images) == images
        found, = [f for f in start_faults(train, val)["val"] if f.rule == "leak-same-file"]
        assert found.count == images and "EVERY image of val is one that train learns" in found.advice
        report = examine(str(tmp_path / given), (), 96, reading={})
        assert {"leak-same-file", "leak-whole-split"} <= set(report.left)


def test_an_xml_s_image_and_a_list_s_line_are_never_a_namesake(tmp_path: Path):
    make_voc(tmp_path / "a")
    xml = tmp_path / "a/Annotations/train_1.xml"
    text = xml.read_text(encoding="utf-8")
    Image.new("RGB", SIZE).save(tmp_path / "a/JPEGImages/train_1.bmp")
    for named in ("train_1.png", "train_1.bmp"):
        told = re.sub("<filename>.*</filename>", f"<filename>{named}</filename>", text)
        xml.write_text(told, encoding="utf-8")
        assert named in {r.path.name for r in read(tmp_path / "a").images}
    for i, name in enumerate(("1.png", "cam_a/1.png", "cam_a/2.png")):
        path = tmp_path / "b" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", SIZE, (i, 9, 9)).save(path)
        path.with_suffix(".txt").write_text("0 .5 .5 .5 .5\n")
    (tmp_path / "b/train.txt").write_text("/mnt/cam_b/1.png\nD:\\me\\cam_a\\1.png\n/mnt/gone/2.png\n")
    (tmp_path / "b/d.yaml").write_text("train: train.txt\nval: cam_a/2.png\nnames: [a]\n")
    train = read(tmp_path / "b/d.yaml")
    assert [r.path for r in train.images] == [tmp_path / "b/cam_a/1.png"]
    assert {f.rule: f.count for f in train.faults} == {"missing-image": 2}


def test_two_images_that_share_a_label_file_are_said(tmp_path: Path):
    make_yolo(tmp_path)
    Image.new("RGB", SIZE).save(tmp_path / "images/train/train 1.bmp")
    assert {f.rule: f.count for f in read(tmp_path).faults} == {"shared-labels": 1}


@pytest.mark.parametrize(("xml_in", "image_in", "splits"), [
    ("{split}", "{split}", ["train", "val"]), ("annotations", "images", ["train", "val", "all"]),
    ("Annotations/{split}", "JPEGImages/{split}", ["train", "val"]), ("", "", ["train", "val", "all"])])
def test_xml_files_find_their_images_in_the_folders_of_any_tool(
        tmp_path: Path, xml_in: str, image_in: str, splits: list[str]):
    contents = make_voc(tmp_path / "voc")
    for split, made in contents.items():
        for image in made["images"]:
            name = Path(image["file_name"])
            for source, place in ((f"Annotations/{name.stem}.xml", xml_in), (f"JPEGImages/{name}", image_in)):
                folder = tmp_path / "set" / place.format(split=split)
                folder.mkdir(parents=True, exist_ok=True)
                shutil.copy(tmp_path / "voc" / source, folder)
    located = locate(tmp_path / "set")
    assert sorted(located.splits) == sorted(splits)
    data = [read_coco(*located[split]) for split in ("train", "val")]
    assert sum(map(count, data)) == sum(len(made["annotations"]) for made in contents.values())
    assert not any(coco.faults for coco in data) or "all" in splits


def test_names_that_disagree_are_said(tmp_path: Path):
    make_yolo(tmp_path)
    (tmp_path / "classes.txt").write_text("dog\ncat\n")
    with open(tmp_path / "data.yaml", "a", encoding="utf-8") as file:
        file.write("\nnc: 80\n")
    found = {f.rule: f for f in read(tmp_path).faults}
    assert found["names-differ"].examples == ("nc: 80", "classes.txt or obj.names")


@pytest.mark.parametrize("root", ["../set", "~/set"])
def test_a_yaml_elsewhere_is_followed_however_it_is_named(tmp_path: Path, monkeypatch, root: str):
    make_yolo(tmp_path / "set", "classes.txt")
    (tmp_path / "cfg").mkdir()
    (tmp_path / "cfg/d.yaml").write_text(
        f"path: {root}\ntrain: images/train\nval: images/val\nnames: [{', '.join(NAMES)}]\n",
        encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("cfg/d.yaml", str(tmp_path / "cfg/d.yaml")):
        found = read_coco(*locate(name)["train"])
        assert len(found.images) and not [f for f in found.faults if f.rule == "file-name-differs"]
    inside = tmp_path / "set" / "images" / "train"
    with pytest.raises(UsageError, match="inside the data set"):
        write_converted(Labels(), recognised("yolo", Path("cfg/d.yaml")), inside / "copy")
    assert inside in examine("cfg/d.yaml", (), 96, reading={}).folders


def test_boxes_clipped_at_the_edge_are_counted():
    labels = Labels()
    labels.splits["train"] = {Path("a.jpg"): (100, 100, [])}
    for x in (-0.5, 50, 90):                               # half a pixel over, inside, 10 px over
        labels.add_box("train", Path("a.jpg"), "cup", (x, 20, 20, 20), f"a.txt {x}")
    found = [(f.rule, f.count, f.examples) for f in labels.faults()]
    assert found == [("box-over-the-edge", 1, ("a.txt 90",))]
