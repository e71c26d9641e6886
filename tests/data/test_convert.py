"""Pascal VOC and YOLO labels become the COCO boxes they were written from; what is left out is counted."""
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.coco.clean import report_faults
from data.coco.read import read_coco
from data.coco.write import cleaned, write_layout
from data.convert.__main__ import recognised, write_converted
from data.convert.labels import Labels
from data.convert.voc import parse_xml
from tests.helpers.label_writers import NAMES, boxes_of, make_voc, make_yolo, voc_object
from utils.errors import DataError, UsageError


def assert_same_boxes(made: Path, content: dict, split: str) -> None:
    got = boxes_of(json.loads((made / "annotations" / f"instances_{split}.json").read_text(encoding="utf-8")))
    wanted = boxes_of(content)
    assert got.keys() == wanted.keys()
    for name, rows in wanted.items():
        assert [row[0] for row in got[name]] == [row[0] for row in rows]
        assert np.allclose([row[1:] for row in got[name]], [row[1:] for row in rows], atol=1e-3)


def convert(*words: object) -> subprocess.CompletedProcess:
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-m", "data.convert", *map(str, words)]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("names_file", ["data.yaml", "classes.txt"])
def test_yolo_labels_written_from_coco_come_back_as_the_same_boxes(tmp_path: Path, names_file: str):
    contents = make_yolo(tmp_path / "my set", names_file)
    ended = convert("yolo", tmp_path / "my set", "--out", tmp_path / "out")
    assert ended.returncode == 0, ended.stderr
    for split, content in contents.items():
        assert_same_boxes(tmp_path / "out", content, split)
    made = json.loads((tmp_path / "out/annotations/instances_train.json").read_text(encoding="utf-8"))
    assert all((tmp_path / "out/images" / image["file_name"]).is_file() for image in made["images"])
    assert [c["name"] for c in made["categories"]] == list(NAMES)


def test_voc_labels_written_from_coco_come_back_as_the_same_boxes(tmp_path: Path):
    contents = make_voc(tmp_path / "VOC2007")
    ended = convert("voc", tmp_path / "VOC2007", "--out", tmp_path / "out")
    assert ended.returncode == 0, ended.stderr
    for split, content in contents.items():
        assert_same_boxes(tmp_path / "out", content, split)


def test_blood_cells_survive_the_way_through_yolo_labels(tmp_path: Path, shared: Path):
    content = json.loads((shared / "bccd/annotations/instances_val.json").read_text())
    images = {image["id"]: image for image in content["images"][:12]}
    content["images"] = list(images.values())
    content["annotations"] = [note for note in content["annotations"]
                              if note["image_id"] in images and min(note["bbox"][2:]) > 0]
    kinds = [category["name"] for category in content["categories"]]
    for split in ("train", "val"):
        (tmp_path / "in" / "images" / split).mkdir(parents=True)
        (tmp_path / "in" / "labels" / split).mkdir(parents=True)
        for image in images.values():
            name, (w, h) = Path(image["file_name"]), (image["width"], image["height"])
            shutil.copy(shared / "bccd/images" / name, tmp_path / "in/images" / split)
            rows = [(kinds.index(k), (x + bw / 2) / w, (y + bh / 2) / h, bw / w, bh / h)
                    for k, x, y, bw, bh in boxes_of(content)[name.name]]
            text = "\n".join(" ".join(f"{v:.8g}" for v in row) for row in rows)
            (tmp_path / "in/labels" / split / name.with_suffix(".txt").name).write_text(text)
    (tmp_path / "in/classes.txt").write_text("\n".join(kinds))
    labels = Labels()
    write_converted(labels, recognised("yolo", tmp_path / "in"), tmp_path / "out")
    assert_same_boxes(tmp_path / "out", content, "val")
    assert not labels.faults()


def test_malformed_yolo_lines_are_counted_by_file_and_line_and_polygons_become_boxes(tmp_path: Path):
    make_yolo(tmp_path / "in")
    label = tmp_path / "in/labels/train/train 1.txt"
    label.write_text("0 0.5 0.5 0.2 0.2\nseven 0 0 1 1\n9 .5 .5 .1 .1\n0 .5 .5 .1\n1 30 20 60 40\n"
                     "0 .5 .5 nan .1\n0 .5 .5 0 .1\n2 .2 .2 .6 .2 .6 .8\n\n0 0 0 0.5 0.5\n")
    labels = Labels()
    recognised("yolo", tmp_path / "in").read(labels)
    w, h, boxes = next(iter(labels.splits["train"].values()))
    wanted = np.array([(.4, .4, .2, .2), (.2, .2, .4, .6), (0, 0, .25, .25)]) * (w, h, w, h)
    assert np.allclose([box[1:5] for box in boxes], wanted, atol=1e-4)
    assert [box[0] for box in boxes] == ["cat", "猫", "cat"]
    assert {f.rule: f.count for f in labels.faults()} == {"bad-line": 3, "not-normalised": 1, "no-box": 2,
                                                        "polygon": 1, "box-over-the-edge": 1}
    told = "\n".join(report_faults(labels.faults()))
    assert "train 1.txt:2" in told and "train 1.txt:5" in told


def test_images_without_a_label_file_are_negatives_and_damaged_ones_are_left_out(tmp_path: Path):
    make_yolo(tmp_path / "in")
    (tmp_path / "in/labels/val/val 2.txt").unlink()
    (tmp_path / "in/images/val/val 3.png").write_bytes(b"<html>not here</html>")
    labels = Labels()
    counts = write_converted(labels, recognised("yolo", tmp_path / "in"), tmp_path / "out")
    told = "\n".join(report_faults(labels.faults()))
    assert counts["val"][0] == 2 and "val 3.png" in told and "damaged" in told


def test_roboflow_folders_train_images_and_valid_images_are_understood(tmp_path: Path):
    make_yolo(tmp_path / "in")
    for split, name in (("train", "train"), ("val", "valid")):
        for part in ("images", "labels"):
            (tmp_path / "in2" / name).mkdir(parents=True, exist_ok=True)
            (tmp_path / "in" / part / split).rename(tmp_path / "in2" / name / part)
    (tmp_path / "in2/data.yaml").write_text("names: {0: a, 1: b, 2: c}\n")
    labels = Labels()
    assert recognised("yolo", tmp_path / "in2").read(labels) == ("a", "b", "c")
    assert len(labels.splits["val"]) == 3


@pytest.mark.parametrize(("difficult", "zero_based", "wanted"), [
    ("crowd", False, [("cat", 0, 0, 10, 20, False), ("dog", 4, 4, 16, 16, True)]),
    ("keep", False, [("cat", 0, 0, 10, 20, False), ("dog", 4, 4, 16, 16, False)]),
    ("drop", False, [("cat", 0, 0, 10, 20, False)]),
    ("drop", True, [("cat", 1, 1, 9, 19, False)])])
def test_voc_corners_count_from_one_and_difficult_objects_follow_the_flag(
        tmp_path: Path, difficult: str, zero_based: bool, wanted: list):
    make_voc(tmp_path)
    text = "".join((voc_object("cat", (1, 1, 10, 20)), voc_object("dog", (5, 5, 20, 20), 1),
                    voc_object("cat", ("x", 1, 2, 3))))
    (tmp_path / "Annotations/train_1.xml").write_text(f"<annotation>{text}</annotation>")
    labels = Labels()
    recognised("voc", tmp_path, difficult, zero_based).read(labels)
    _, _, boxes = next(iter(labels.splits["train"].values()))
    assert [(*box[:5], box[6]) for box in boxes] == wanted
    assert (f"not four numbers (first: {tmp_path / 'Annotations/train_1.xml'})"
            in "\n".join(report_faults(labels.faults())))


def test_two_voc_years_in_one_folder_are_joined(tmp_path: Path):
    make_voc(tmp_path / "VOCdevkit/VOC2007")
    make_voc(tmp_path / "VOCdevkit/VOC2012")
    labels = Labels()
    counts = write_converted(labels, recognised("voc", tmp_path / "VOCdevkit"), tmp_path / "out")
    assert counts["train"][0] == 6
    assert (tmp_path / "out/images/VOC2012/train_1.png").is_file()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_an_xml_with_entities_is_refused(tmp_path: Path, encoding: str):
    bomb = '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/hostname">]><annotation>&x;</annotation>'
    (tmp_path / "a.xml").write_text(f'<?xml version="1.0" encoding="{encoding}"?>{bomb}', encoding=encoding)
    with pytest.raises(DataError, match="has a DOCTYPE"):
        parse_xml(tmp_path / "a.xml")


@pytest.mark.parametrize(("spoil", "message", "code"), [
    ("no names", "no class names here; needs a YAML", 3), ("no train", "no images for the train split", 3),
    ("taken", "not an empty folder; give a new one", 2), ("no boxes", "not one box that can be used", 3),
    ("no source", "is not a folder", 3)])
def test_what_cannot_be_converted_is_said_and_leaves_nothing_behind(
        tmp_path: Path, spoil: str, message: str, code: int):
    make_yolo(tmp_path / "in")
    if spoil == "no names":
        (tmp_path / "in/data.yaml").unlink()
    if spoil == "no train":
        shutil.rmtree(tmp_path / "in/images/train")
    if spoil == "taken":
        (tmp_path / "out").mkdir()
        (tmp_path / "out/mine.txt").write_text("keep")
    if spoil == "no boxes":
        shutil.rmtree(tmp_path / "in/labels/train")
    source = tmp_path / ("nowhere" if spoil == "no source" else "in")
    before = sorted(tmp_path.rglob("*"))
    ended = convert("yolo", source, "--out", tmp_path / "out")
    assert (ended.returncode, message in ended.stderr) == (code, True), ended.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_one_image_in_both_lists_is_refused(tmp_path: Path):
    make_voc(tmp_path / "in")
    lists = tmp_path / "in/ImageSets/Main"
    (lists / "val.txt").write_text((lists / "train.txt").read_text().splitlines()[0])
    labels = Labels()
    with pytest.raises(DataError, match="must be in one split, once"):
        labels.contents(recognised("voc", tmp_path / "in").read(labels))
    with pytest.raises(DataError, match=r"no list other.txt for the val .* --val-list"):
        recognised("voc", tmp_path / "in", lists={"train": None, "val": "other"})


def test_an_existing_folder_is_never_overwritten(tmp_path: Path):
    make_yolo(tmp_path / "in")
    labels = Labels()
    write_converted(labels, recognised("yolo", tmp_path / "in"), tmp_path / "out")
    with pytest.raises(UsageError, match="give a new one"):
        write_converted(Labels(), recognised("yolo", tmp_path / "in"), tmp_path / "out")


def test_a_copy_that_fails_half_way_leaves_nothing_behind(tmp_path: Path):
    make_yolo(tmp_path / "in")
    labels = Labels()
    contents = labels.contents(recognised("yolo", tmp_path / "in").read(labels))
    sets = {split: read_coco(tmp_path / "in", tmp_path / "in", lambda _, split=split: (contents[split], []))
            for split in contents}
    (tmp_path / "in/images/val/val 3.png").unlink()
    with pytest.raises(FileNotFoundError):
        write_layout(*cleaned(sets, {}), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def yolo_set(root: Path, lines: str = "0 0.5 0.5 0.2 0.4\n", yaml: str = "names: [cat, dog, bird]\n",
             folders: tuple[str, str] = ("train", "val"), images: int = 1) -> Path:
    """A YOLO set of grey images of 100 x 50 px, all with the same lines."""
    for folder in folders:
        for i in range(images):
            image, label = (root / part / folder / f"{folder}{i}" for part in ("images", "labels"))
            for path in (image, label):
                path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (100, 50), len(folder) + i).save(image.with_suffix(".png"))
            label.with_suffix(".txt").write_text(lines)
    (root / "data.yaml").write_text(yaml)
    return root


def taken(root: Path, split: str = "train") -> tuple[list[tuple], dict[str, int]]:
    """(class, x, y, w, h) of every box of a split as the converter takes it, and what was noted how often."""
    labels = Labels()
    recognised("yolo", root).read(labels)
    rows = [row[:5] for *_, boxes in labels.splits[split].values() for row in boxes]
    return rows, {f.rule: f.count for f in labels.faults(split)}


BOX = [("cat", 40.0, 15.0, 20.0, 20.0)]


@pytest.mark.parametrize(("line", "rows", "rule"), [
    ("0 .5 .5 .2 .4 .87", BOX, "score"), ("0.0 0.5 0.5 0.2 0.4", BOX, None),
    ("1e0 .5 .5 .2 .4", [("dog", *BOX[0][1:])], None), ("0 .4 .3 .6 .3 .6 .7", BOX, "polygon"),
    ("0 .4 .3 .6 .3 .6 .7 .4 .7", BOX, "polygon"), ("0 .5 .5 .2", [], "bad-line"),
    ("0.5 .5 .5 .2 .4", [], "bad-line"), ("0,.5,.5,.2,.4", [], "bad-line"),
    ("cat .5 .5 .2 .4", [], "bad-line"), ("3 .5 .5 .2 .4", [], "bad-line"),
    ("0 50 25 20 20", [], "not-normalised")])
def test_a_yolo_line_is_a_box_or_is_counted_by_its_reason(
        tmp_path: Path, line: str, rows: list, rule: str | None):
    assert taken(yolo_set(tmp_path, line)) == (rows, {rule: 1} if rule else {})


@pytest.mark.parametrize("shape", [(2, 2), (4, 3), (17, 3)])
def test_keypoints_behind_a_box_are_no_polygon(tmp_path: Path, shape: tuple[int, int]):
    points = " .45 .5" + " 2" * (shape[1] == 3)
    line = "0 .5 .5 .2 .4" + points * shape[0]
    yaml = f"names: [cat]\nkpt_shape: [{shape[0]}, {shape[1]}]\n"
    rows, rules = taken(yolo_set(tmp_path / "told", line, yaml))
    assert rows == BOX and rules == {"keypoints": 1}
    if shape[1] == 3:
        with pytest.raises(DataError, match="hold a box and keypoints .* write `kpt_shape"):
            taken(yolo_set(tmp_path / "silent", line, images=3))


@pytest.mark.parametrize(("yaml", "names"), [
    ('names: {"0": cat, "1": dog}', ("cat", "dog")), ("names: [on, off, 1e3]", ("on", "off", "1e3")),
    ("names: {0: yes, 1: no}", ("yes", "no"))])
def test_names_are_taken_as_they_are_written(tmp_path: Path, yaml: str, names: tuple[str, ...]):
    assert recognised("yolo", yolo_set(tmp_path, yaml=yaml)).read(Labels()) == names


@pytest.mark.parametrize(("yaml", "message"), [
    ("names: {1: a, 2: b}", "must number its classes 0, 1"), ("names: [a, a]", "different class names"),
    ("names: cat", "must be a list"),
    ("names: [a]\ntrain: images/gone\nval: images/val", "`train: images/gone` is no"),
    ("names: [a]\nkpt_shape: 5", "must be two numbers")])
def test_a_yaml_that_does_not_fit_is_refused(tmp_path: Path, yaml: str, message: str):
    with pytest.raises(DataError, match=message):
        recognised("yolo", yolo_set(tmp_path, yaml=yaml))


def test_the_yaml_is_followed_and_not_the_names_of_folders(tmp_path: Path):
    root = yolo_set(tmp_path / "set", folders=("train", "val", "part1", "part2", "holdout"))
    (root / "list.txt").write_text("./images/part2/part20.png\n/other/images/part1/part10.png\ngone.png\n")
    for train, count in (("[images/part1, images/part2]", 2), ("images/part1/", 1), ("list.txt", 2),
                         ("../elsewhere/images/part2", 1), ("images/Part2", 1)):
        (root / "data.yaml").write_text(f"path: /not/here\ntrain: {train}\nval: images/holdout\ntest:\n"
                                        "names: {0: cat}\n")
        labels = Labels()
        recognised("yolo", root).read(labels)
        assert len(labels.splits["train"]) == count
        assert not any("train/" in str(path) for path in labels.splits["train"])
        assert labels.splits.keys() == {"train", "val"}


def test_two_descriptions_of_one_folder_are_refused_and_strays_ignored(tmp_path: Path):
    root = yolo_set(tmp_path, yaml="train: images/train\nval: images/val\nnames: [cat]\n")
    (root / "a.yaml").write_text("names: [person, bicycle]\n")
    (root / "compose.yml").write_text("x: &a {b: 1}\ny: *a\n")
    (root / "list.yaml").write_text("- 1\n")
    assert recognised("yolo", root).read(Labels()) == ("cat",)
    (root / "b.yaml").write_text("train: images/val\nval: images/train\nnames: [cat]\n")
    with pytest.raises(DataError, match="b.yaml and data.yaml describe different sets"):
        recognised("yolo", root)
    assert recognised("yolo", root / "b.yaml").source == root / "b.yaml"


def test_darknets_list_of_images_beside_their_labels_is_a_train_split(tmp_path: Path):
    (tmp_path / "in/obj_train_data").mkdir(parents=True)
    for i in range(3):
        Image.new("L", (100, 50), i).save(tmp_path / f"in/obj_train_data/{i}.PNG")
        (tmp_path / f"in/obj_train_data/{i}.txt").write_text("1 .5 .5 .2 .4\n")
    (tmp_path / "in/obj.data").write_text("classes = 2\ntrain = data/train.txt\nnames = data/obj.names\n")
    (tmp_path / "in/obj.names").write_text("cat\ndog\n")
    (tmp_path / "in/train.txt").write_text("".join(f"data/obj_train_data/{i}.PNG\n" for i in range(3)))
    ended = convert("yolo", tmp_path / "in", "--out", tmp_path / "out")
    assert ended.returncode == 0 and "3 pictures" in " ".join(ended.stdout.split()), ended.stderr
    made = json.loads((tmp_path / "out/annotations/instances_train.json").read_text())
    assert [a["category_id"] for a in made["annotations"]] == [2, 2, 2]


def test_labels_without_an_image_and_hidden_files_are_no_images(tmp_path: Path):
    root = yolo_set(tmp_path)
    (root / "labels/train/gone.txt").write_text("0 .5 .5 .2 .4\n")
    (root / "images/train/._train0.png").write_bytes(b"\0\5\26\7")
    assert taken(root) == (BOX, {"missing-image": 1})


def test_names_that_are_not_utf8_and_large_images_go_through(tmp_path: Path):
    root = yolo_set(tmp_path / "in")
    for part, suffix in (("images", "png"), ("labels", "txt")):
        path = root / part / "train"
        (path / f"train0.{suffix}").rename(path / os.fsdecode(b"caf\xe9." + suffix.encode()))
    ended = convert("yolo", root, "--out", tmp_path / "out", "--max-pixels", 5000)
    assert ended.returncode == 0, ended.stderr
    ended = convert("yolo", root, "--out", tmp_path / "small", "--max-pixels", 4999)
    assert ended.returncode == 3 and "--max-pixels" in ended.stderr and not (tmp_path / "small").exists()
    ended = convert("yolo", root, "--out", root / "inside")
    assert ended.returncode == 2 and "lies inside the data set" in ended.stderr


def voc_rows(root: Path) -> tuple[dict[str, list[tuple]], dict[str, int]]:
    """Boxes by image name of train, and what was noted."""
    labels = Labels()
    recognised("voc", root).read(labels)
    return ({file.name: [row[0] for row in boxes] for file, (_, _, boxes) in labels.splits["train"].items()},
            {f.rule: f.count for f in labels.faults("train")})


def test_an_xml_belongs_to_the_image_of_its_own_name(tmp_path: Path):
    make_voc(tmp_path)
    rows = voc_rows(tmp_path)[0]
    for i, other in ((1, 2), (2, 3), (3, 1)):
        path = tmp_path / f"Annotations/train_{i}.xml"
        path.write_text(path.read_text().replace(f"train_{i}.png", f"train_{other}.png"))
    assert voc_rows(tmp_path)[0] == rows and voc_rows(tmp_path)[1]["stale-filename"] == 3
    (tmp_path / "JPEGImages/train_1.png").rename(tmp_path / "JPEGImages/other.png")
    path = tmp_path / "Annotations/train_1.xml"
    path.write_text(path.read_text().replace("train_2.png", "C:\\me\\other.png"))
    found, rules = voc_rows(tmp_path)
    assert found["other.png"] == rows["train_1.png"] and rules["found-by-filename"] == 1


@pytest.mark.parametrize("line", ["my cat 1.png", "./JPEGImages/my cat 1.png", "my cat 1  1", "my cat 1",
                                  "my cat 1 -1", "VOC\\Annotations\\my cat 1.xml", "MY CAT 1"])
def test_lists_may_hold_blanks_suffixes_paths_and_a_column(tmp_path: Path, line: str):
    make_voc(tmp_path)
    for path in ("Annotations/train_1.xml", "JPEGImages/train_1.png"):
        (tmp_path / path).rename((tmp_path / path).with_stem("my cat 1" if "MY" not in line else "MY CAT 1"))
    (tmp_path / "ImageSets/Main/train.txt").write_text(f"\ufeff{line}\r\n", encoding="utf-8")
    assert len(voc_rows(tmp_path)[0]) == 1


@pytest.mark.parametrize(("head", "encoding"), [
    ('<?xml version="1.0" encoding="gb2312"?>', "gb2312"), ("", "gb2312"),
    ("\n <?xml version='1.0'?>", "utf-8"),
    ('<?xml version="1.0" encoding="utf-16"?>', "utf-16"), ("\ufeff", "utf-8")])
def test_xml_of_any_encoding_is_read(tmp_path: Path, head: str, encoding: str):
    (tmp_path / "a.xml").write_bytes(f"{head}<annotation><name>猫狗</name></annotation>".encode(encoding))
    assert parse_xml(tmp_path / "a.xml").findtext("name") == "猫狗"


def test_a_voc_set_without_lists_is_undivided(tmp_path: Path):
    make_voc(tmp_path / "set")
    shutil.rmtree(tmp_path / "set/ImageSets")
    assert recognised("voc", tmp_path / "set").splits == ("all",)
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in (*(tmp_path / "set/Annotations").iterdir(), *(tmp_path / "set/JPEGImages").iterdir()):
        shutil.copy(path, flat)
    labels = Labels()
    recognised("voc", flat).read(labels)
    assert len(labels.splits["all"]) == 6 and not labels.faults()
