"""The doctor names every planted fault, measures the set, and writes a copy that it finds clean itself."""
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.coco.locate import locate
from data.coco.read import read_coco
from data.doctor.leaks import start_faults
from tests.helpers.doctor_cases import SIDE, content_of, diagnosis, digest, doctor, photo, write


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A faultless set of 6 train and 3 val images."""
    root = tmp_path / "a set"
    (root / "images").mkdir(parents=True)
    (root / "annotations").mkdir()
    for number, (split, count) in enumerate((("train", 6), ("val", 3))):
        write(root, split, content_of(split, count))
        for i in range(count):
            Image.fromarray(photo(100 * number + i)).save(root / "images" / f"{split} {i}.jpg", quality=92)
    return root


def test_a_faultless_set_is_clean_and_fully_described(small: Path):
    before = digest(small)
    faults, report, ended = diagnosis(small, "--imgsz", 192, "--anchors", 2, "--rate", 6, "--epochs", 10)
    assert (ended.returncode, faults) == (0, {})
    assert ended.stdout.rstrip().endswith("CLEAN: no fault found")
    assert report["class_map"] == {"2": 0, "5": 1}
    assert report["classes"]["train"] == {name: {"boxes": 6, "pictures": 6} for name in ("cup", "杯")}
    assert report["splits"]["val"] | {"annotation file": ""} == {
        "pictures": 3, "without boxes": 0, "boxes": 6, "crowd": 0, "annotation file": ""}
    assert report["sizes"]["medium"] == 12 and report["sizes"]["percentiles"]["height"] == [60.0] * 7
    assert report["anchors"]["fitted"]["anchors"] == [[40.0, 60.0], [80.0, 60.0]]
    default, fitted = (report["anchors"][kind]["mean_iou"] for kind in ("default", "fitted"))
    assert default < fitted == pytest.approx(1)
    assert "train.py --fit-anchors helps" in ended.stdout
    assert report["time"]["epoch"] == pytest.approx(1) and 10 <= report["time"]["total"] < 12
    assert digest(small) == before


def test_it_runs_as_a_module_and_ends_with_its_code(small: Path, root: Path):
    for code in (0, 3):
        command = [sys.executable, "-m", "data.doctor", str(small)]
        ended = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
        assert ended.returncode == code, ended.stdout + ended.stderr
        json_of(small, lambda content: content["annotations"][0].update(category_id=9))


def test_an_unlisted_folder_of_the_same_file_names_is_counted(small: Path):
    (small / "images").rename(small / "v1")
    for version in ("v1", "v2"):
        (small / "images" / version).mkdir(parents=True)
    for at, file in enumerate(sorted((small / "v1").iterdir())):
        Image.fromarray(photo(900 + at)).save(small / "images/v2" / file.name, quality=92)
        file.rename(small / "images/v1" / file.name)
    (small / "v1").rmdir()
    for split in ("train", "val"):
        content = content_of(split, {"train": 6, "val": 3}[split])
        for image in content["images"]:
            image["file_name"] = f"v1/{image['file_name']}"
        write(small, split, content)
    faults, _, _ = diagnosis(small)
    assert {rule: fault["count"] for rule, fault in faults.items()} == {"unlisted-file": 9}


def test_without_a_rate_the_time_estimate_follows_the_area_of_the_input(small: Path):
    time = diagnosis(small, "--imgsz", 832, "--epochs", 10)[1]["time"]
    assert time["train_rate"] == pytest.approx(5) and not time["given"]
    assert time["total"] == pytest.approx(time["reading"] + 10 * 6 / 5)


def json_of(root: Path, change: Callable[[dict], object]) -> None:
    content = content_of("train", 6)
    change(content)
    write(root, "train", content)


PLANTED: list[tuple[str, Callable[[dict], object], int, bool]] = [
    ("unknown-category", lambda c: c["annotations"][0].update(category_id=9), 1, True),
    ("duplicate-image-id", lambda c: c["images"][1].update(id=1), 1, True),
    ("size-differs", lambda c: c["images"][0].update(width=SIDE // 2), 1, True),
    ("unreadable-box", lambda c: [a.update(bbox=[1, 2, None, 4]) for a in c["annotations"][:6]], 6, True),
    ("annotation-id-zero", lambda c: c["annotations"][0].update(id=0), 1, False),
    ("duplicate-annotation-id", lambda c: c["annotations"][0].update(id=2), 1, False),
    ("same-file-twice", lambda c: c["images"][1].update(file_name="train 0.jpg"), 1, False),
    ("empty-box", lambda c: c["annotations"][3].update(bbox=[4, 4, 0, 9]), 1, False),
    ("unreadable-box", lambda c: c["annotations"][0].update(bbox=["1", 2, 3, 4]), 1, False),
    ("box-outside-image", lambda c: c["annotations"][0].update(bbox=[200, 4, 9, 9]), 1, False),
    ("box-over-the-edge", lambda c: c["annotations"][0].update(bbox=[90, 4, 50, 50]), 1, False),
    ("missing-iscrowd", lambda c: [a.pop("iscrowd") for a in c["annotations"]], 12, False),
    ("missing-area", lambda c: c["annotations"][5].pop("area"), 1, False),
    ("missing-image", lambda c: c["images"][4].update(file_name="gone.jpg"), 1, False),
    ("annotation-without-image", lambda c: c["annotations"][0].update(image_id=77), 1, False),
    ("corners-instead-of-size", lambda c: [a.update(bbox=[40 + i, 40, 80 + i, 90])
                                           for i, a in enumerate(c["annotations"])], 12, False),
    ("class-without-boxes", lambda c: [a.update(category_id=2) for a in c["annotations"]], 1, False),
    ("unlisted-file", lambda c: c["images"].pop(), 1, False)]


@pytest.mark.parametrize(("rule", "plant", "count", "fatal"), PLANTED)
def test_a_planted_fault_is_named_and_counted(
        small: Path, rule: str, plant: Callable, count: int, fatal: bool):
    json_of(small, plant)
    faults, report, ended = diagnosis(small)
    assert rule in faults, report["faults"]
    assert (faults[rule]["count"], faults[rule]["fatal"]) == (count, fatal)
    assert ended.returncode == (3 if fatal else 0)
    assert rule in ended.stdout and faults[rule]["advice"] in ended.stdout
    assert ("NOT USABLE" in ended.stdout.splitlines()[-1]) == fatal


def test_a_truncated_annotation_file_is_fatal_and_the_other_split_is_still_read(small: Path):
    file = small / "annotations/instances_train.json"
    file.write_bytes(file.read_bytes()[:300])
    faults, report, ended = diagnosis(small)
    assert ended.returncode == 3 and "byte offset" in faults["unreadable"]["advice"]
    assert report["splits"].keys() == {"val"}


def test_a_missing_split_is_a_note_and_a_missing_set_an_error(small: Path):
    (small / "annotations/instances_val.json").unlink()
    faults, _, ended = diagnosis(small)
    assert faults["missing-split"]["examples"] == ["val"] and ended.returncode == 0
    ended = doctor(small / "nowhere")
    assert ended.returncode == 3 and "does not exist" in ended.stderr


def test_damaged_files_bytes_that_repeat_and_leaks_are_found(small: Path):
    images = small / "images"
    (images / "train 1.jpg").write_bytes((images / "train 0.jpg").read_bytes())
    (images / "train 2.jpg").write_bytes((images / "val 2.jpg").read_bytes())
    brighter = np.clip(photo(100) * 1.1 + 8, 0, 255).astype(np.uint8)
    Image.fromarray(brighter).save(images / "train 3.jpg", quality=40)
    data = (images / "train 4.jpg").read_bytes()
    (images / "train 4.jpg").write_bytes(data[:len(data) // 2])
    faults, _, ended = diagnosis(small)
    found = {rule: (fault["count"], fault["examples"][0]) for rule, fault in faults.items()}
    assert found["leak-same-file"] == (1, "train train 2.jpg = val val 2.jpg")
    assert found["leak-near-duplicate"] == (1, "train train 3.jpg = val val 0.jpg")
    assert found["repeated-image-other-boxes"] == (1, "train train 0.jpg = train 1.jpg")
    assert found["undecodable-image"][0] == 1 and "train 4.jpg" in found["undecodable-image"][1]
    assert "unlisted-file" not in faults
    assert ended.returncode == 0 and "USABLE: 4 kinds of fault" in ended.stdout


def spoil_everything_mendable(root: Path) -> None:
    content = content_of("train", 6)
    notes = content["annotations"]
    notes[0].update(id=0, bbox=[90, 4, 50, 50])
    notes[1].update(id=3, bbox=[0, 0, 5, -1])
    notes[2].update(bbox=[float("nan"), 0, 5, 5])
    notes[3].update(category_id=8)
    for note in notes:
        note.pop("iscrowd")
    notes[4].update(iscrowd=1)
    content["images"][5].update(file_name="TRAIN 5.JPG")
    content["images"].append({"id": 50, "file_name": "train 4.jpg", "width": SIDE, "height": SIDE})
    notes.append({"id": 99, "image_id": 50, "category_id": 5, "bbox": [1, 1, 12, 12]})
    notes.append({"id": 98, "image_id": 50, "category_id": 2, "bbox": notes[8]["bbox"]})
    write(root, "train", content)
    rotated = Image.fromarray(photo(7)[:60])
    exif = rotated.getexif()
    exif[0x0112] = 6
    rotated.save(root / "images/train 0.jpg", exif=exif)
    (root / "images/train 3.jpg").write_bytes((root / "images/val 1.jpg").read_bytes())
    (root / "images/spare.jpg").write_bytes(b"")


def test_the_cleaned_copy_of_a_set_full_of_faults_is_clean_and_the_source_untouched(small: Path):
    spoil_everything_mendable(small)
    before, out = digest(small), small.parent / "mended"
    assert doctor(small, "--fix", out).returncode == 3 and not out.exists()
    ended = doctor(small, "--fix", out, "--drop-unknown", "--trust", "image")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "train 5 images with 8 boxes, val 3 images" in ended.stdout
    assert ended.stdout.rstrip().endswith(f"the copy in {out} is free of them")
    faults, report, ended = diagnosis(out)
    assert (faults, ended.returncode) == ({}, 0)
    assert ended.stdout.rstrip().endswith("CLEAN: no fault found")
    assert report["splits"]["train"]["crowd"] == 1 and report["class_map"] == {"2": 0, "5": 1}
    assert digest(small) == before


def test_boxes_of_the_cleaned_copy_are_those_of_training(small: Path):
    json_of(small, lambda c: c["annotations"][0].update(bbox=[90, 4, 50, 50]))
    assert doctor(small, "--fix", small.parent / "copy").returncode == 0
    first, second = (read_coco(root / "annotations/instances_train.json", root / "images")
                     for root in (small, small.parent / "copy"))
    assert second.images[0].boxes[0].tolist() == [0, 90, 4, 96, 54]
    for a, b in zip(first.images, second.images):
        assert a.path.read_bytes() == b.path.read_bytes() and np.array_equal(a.boxes, b.boxes)


@pytest.mark.parametrize(("flag", "where", "message"), [
    ("--fix", "a set/new", "lies inside the data set"),
    ("--json", "a set/r.json", "lies inside the data set"),
    ("--fix", "full", "not an empty folder")])
def test_nothing_is_written_into_the_set_or_over_anything(small: Path, flag: str, where: str, message: str):
    (small.parent / "full").mkdir()
    (small.parent / "full/mine.txt").write_text("keep")
    before = digest(small.parent)
    assert doctor(small, "--rate", "nan").returncode == 2
    ended = doctor(small, flag, small.parent / where)
    assert (ended.returncode, message in ended.stderr) == (2, True), ended.stderr
    assert digest(small.parent) == before


def test_real_photographs_have_no_leak_and_sizes_follow_the_letterbox(shared: Path, tmp_path: Path):
    faults, report, ended = diagnosis(shared / "bccd", file=tmp_path / "report.json")
    assert ended.returncode == 0 and not [rule for rule in faults if rule.startswith("leak")]
    raw = json.loads((shared / "bccd/annotations/instances_train.json").read_text())
    sides = {image["id"]: max(image["width"], image["height"]) for image in raw["images"]}
    areas = [a["bbox"][2] * a["bbox"][3] * (416 / sides[a["image_id"]]) ** 2 for a in raw["annotations"]]
    assert report["sizes"]["small"] == pytest.approx(sum(v < 32 ** 2 for v in areas), abs=5)
    assert report["anchors"]["fitted"]["mean_iou"] > report["anchors"]["default"]["mean_iou"] + 0.05


def camera(root: Path, frames: dict[str, int]) -> None:
    """Frames of one fixed camera: a background, a square that moves."""
    for split, count in frames.items():
        content = content_of(split, count)
        write(root, split, content)
        for i in range(count):
            frame = photo(1).copy()
            frame[10 + i:16 + i, 60 + len(split):66 + len(split)] = 255
            Image.fromarray(frame).save(root / "images" / f"{split} {i}.jpg", quality=95)


def test_frames_of_a_fixed_camera_are_reported_and_all_kept(small: Path):
    camera(small, {"train": 8, "val": 3})
    out = small.parent / "copy"
    ended = doctor(small, "--fix", out)
    assert "leak-near-duplicate" in ended.stdout and "left to you" in ended.stdout
    assert "train 8 images with 16 boxes" in ended.stdout
    assert "kept for you to decide: leak-near-duplicate" in ended.stdout
    assert f"the copy in {out} is free of all but leak-near-duplicate" in ended.stdout
    assert len(json.loads((out / "annotations/instances_train.json").read_text())["images"]) == 8


def test_repeats_with_the_same_boxes_go_but_one_and_train_is_never_emptied(small: Path):
    content = content_of("train", 6)
    for note in content["annotations"]:
        note["bbox"] = [5, 10, 20, 30]
    write(small, "train", content)
    first = (small / "images/train 0.jpg").read_bytes()
    (small / "images/train 1.jpg").write_bytes(first)
    faults, _, ended = diagnosis(small, "--fix", small.parent / "one")
    assert faults["repeated-image"]["fate"] == "mended" and "train 5 images" in ended.stdout
    for i in range(6):
        (small / "images" / f"train {i}.jpg").write_bytes((small / "images/val 1.jpg").read_bytes())
    faults, _, ended = diagnosis(small, "--fix", small.parent / "two")
    assert faults["leak-whole-split"]["fate"] == "left to you" and "train 6 images" in ended.stdout


def test_a_test_split_is_read_and_copied_too(small: Path):
    content = content_of("val", 3)
    write(small, "test", content)
    faults, report, ended = diagnosis(small, "--fix", small.parent / "copy")
    assert list(report["splits"]) == ["train", "val", "test"] and ended.returncode == 0
    assert (small.parent / "copy/annotations/instances_test.json").is_file()


def test_names_that_no_terminal_can_print_are_escaped(small: Path):
    content = content_of("train", 6)
    content["categories"][0]["name"], content["categories"][1]["name"] = "re\ud800d", "two\nlines"
    (small / "annotations/instances_train.json").write_text(json.dumps(content))
    (small / "annotations/instances_val.json").unlink()
    ended = doctor(small)
    assert ended.returncode == 0 and "re\\ud800d" in ended.stdout and "two\\nlines" in ended.stdout


def test_training_is_told_what_its_splits_share_and_which_classes_are_empty(small: Path):
    json_of(small, lambda c: [a.update(category_id=2) for a in c["annotations"]])
    (small / "images/train 2.jpg").write_bytes((small / "images/val 2.jpg").read_bytes())
    located = locate(small)
    train, val = (read_coco(*located[split]) for split in ("train", "val"))
    told = start_faults(train, val)
    assert [(f.rule, f.examples) for f in told["train"]] == [("class-without-boxes", ("杯",))]
    assert [(f.rule, f.examples) for f in told["val"]] == [
        ("leak-same-file", ("train train 2.jpg = val val 2.jpg",))]
