"""Annotation files as they are in the wild: refused, mended or mapped, and never silently."""
import json
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.coco.clean import report_faults
from data.coco.locate import locate
from data.coco.read import read_coco
from tests.helpers.coco_files import SIZE, Change, content, count, perfect_ap, read, rules, write
from utils.errors import DataError


def test_a_sound_set_has_no_faults_and_its_boxes_are_corners(tmp_path: Path):
    data = read(tmp_path)
    assert data.faults == () and data.names == ("cat", "dog") and data.class_map == {"1": 0, "2": 1}
    first = data.images[0]
    assert (first.id, first.path.name, first.width, first.height) == (10, "0.png", *SIZE)
    assert first.boxes.dtype == np.float32 and first.boxes[0].tolist() == [0, 5, 6, 25, 16]
    assert count(data) == 24 and first.areas.tolist() == [150] * 8 and first.crowd.shape == (0, 5)


# Case 1: the file
@pytest.mark.parametrize("raw, message", [
    (b"", r"byte offset 0 of 0: the file is empty"), (b" \n", "the file is empty"),
    (b'{"images": [{"id": 1}, {"id', r"byte offset 24 of 27: the file breaks off \(truncated\)"),
    (b'{"images": [], "annotations": [', r"byte offset 31 of 31: the file breaks off"),
    (b'{"images": [1,, 2]}', r"byte offset 14 of 19: Expecting value"),
    (b'{"images": "\xff\xfe"}', "not UTF-8 at byte offset 12 of 16"),
    ('{"图": [1,, 2]}'.encode(), "byte offset 11 of 16"),
    ('{"images": []}'.encode("utf-16"), "not UTF-8 at byte offset 0"),
    (b"[1, 2]", "holds a JSON list; a COCO file is an object"), (b"[" * 100_000, "cannot be read as JSON"),
], ids=range(10))
def test_a_broken_file_is_refused_with_its_byte_offset(tmp_path: Path, raw: bytes, message: str):
    with pytest.raises(DataError, match=f"set.json: .*{message}"):
        read_coco(*write(tmp_path, raw))


def test_a_byte_order_mark_alone_is_accepted_and_said(tmp_path: Path):
    data = read_coco(*write(tmp_path, b"\xef\xbb\xbf" + json.dumps(content()).encode()))
    assert count(data) == 24 and rules(data) == {"byte-order-mark": 1}


def test_a_missing_annotation_file_is_named(tmp_path: Path):
    with pytest.raises(DataError, match="nowhere.json: cannot be read"):
        read_coco(tmp_path / "nowhere.json", tmp_path)


# Case 2: the sections
@pytest.mark.parametrize("key", ["categories", "images", "annotations"])
def test_a_missing_section_is_named(tmp_path: Path, key: str):
    with pytest.raises(DataError, match=f"has no `{key}`.*needs all three"):
        read(tmp_path, lambda c: c.pop(key))
    with pytest.raises(DataError, match=f"`{key}` must be a list of objects"):
        read(tmp_path, lambda c: c.update({key: [1]}))


def test_no_annotations_at_all_leaves_negatives(tmp_path: Path):
    data = read(tmp_path, lambda c: c["annotations"].clear())
    assert len(data.images) == 3 and count(data) == 0 and data.ground_truth()["annotations"] == []


# Case 3: categories that are not listed
def test_unknown_categories_are_refused_with_ids_and_counts_unless_dropped(tmp_path: Path):
    def change(c: dict) -> None:
        for a in c["annotations"][:3]:
            a["category_id"] = 77
        c["annotations"][3]["category_id"] = 9

    message = r"unknown-category\s+4 .*--drop-unknown.*id 77: 3 boxes; category id 9: 1 boxes"
    with pytest.raises(DataError, match=message):
        read(tmp_path, change)
    data = read(tmp_path, change, drop_unknown=True)
    assert count(data) == 20 and rules(data) == {"unknown-category": 4}


# Case 4: category ids
@pytest.mark.parametrize("ids, expected", [
    ((5, 90), {"5": 0, "90": 1}), ((1, 0), {"0": 0, "1": 1}), (("b", "a"), {"a": 0, "b": 1}),
    (("10", "9"), {"9": 0, "10": 1}), ((-1, 3), {"-1": 0, "3": 1})])
def test_any_kind_of_category_id_maps_to_classes_in_order(tmp_path: Path, ids: tuple, expected: dict):
    def change(c: dict) -> None:
        new = dict(zip((1, 2), ids))
        for category in c["categories"]:
            category["id"] = new[category["id"]]
        for a in c["annotations"]:
            a["category_id"] = new[a["category_id"]]

    data = read(tmp_path, change)
    assert data.class_map == expected
    assert {data.names[int(k)] for r in data.images for k in r.boxes[:, 0]} == {"cat", "dog"}
    assert data.names[expected[str(ids[0])]] == "cat" and data.names[int(data.images[0].boxes[0, 0])] == "cat"


@pytest.mark.parametrize("change, message", [
    (lambda c: c["categories"][1].update(id=1), "category ids must be unique, got '1' more than once"),
    (lambda c: c["categories"][1].update(id="1"), "category ids must be unique, got '1' more than once"),
    (lambda c: c["categories"][1].update(name="cat"), "names must be unique, got 'cat' more than once"),
    (lambda c: c["categories"][1].pop("name"), "no `id` or no `name`"),
    (lambda c: c.update(categories=[]), "is empty")])
def test_ambiguous_categories_are_refused(tmp_path: Path, change: Change, message: str):
    with pytest.raises(DataError, match=message):
        read(tmp_path, change)


def test_names_alone_order_the_classes_and_must_agree(tmp_path: Path):
    data = read(tmp_path, names=("dog", "cat"))
    assert data.names == ("dog", "cat") and data.class_map == {"1": 1, "2": 0}
    assert data.images[0].boxes[0, 0] == 1
    with pytest.raises(DataError, match="`names` lists dog, bird but `categories` holds cat, dog"):
        read(tmp_path, names=("dog", "bird"))


def test_the_validation_file_takes_the_classes_of_training(tmp_path: Path):
    train = read(tmp_path)

    def renumber(c: dict) -> None:
        c["categories"] = [{"id": 1, "name": "dog"}, {"id": 8, "name": "cat"}]
        for a in c["annotations"]:
            a["category_id"] = {1: 8, 2: 1}[a["category_id"]]

    val = read(tmp_path, renumber, names=train.names, class_map=train.class_map)
    assert (val.names, val.class_map) == (train.names, train.class_map)
    assert rules(val) == {"category-ids-differ": 2}
    assert all(np.array_equal(a.boxes, b.boxes) for a, b in zip(train.images, val.images))
    fewer = read(tmp_path, lambda c: (c["categories"].pop(), c.update(annotations=c["annotations"][::2])),
                 names=train.names, class_map=train.class_map)
    assert fewer.names == ("cat", "dog") and fewer.faults == ()
    with pytest.raises(DataError, match=r"bird \(id 3\) not among the 2 classes trained on"):
        read(tmp_path, lambda c: c["categories"].append({"id": 3, "name": "bird"}), names=train.names,
             class_map=train.class_map)


def test_official_gapped_ids_give_the_same_set_as_ids_one_to_eighty(shared: Path):
    folder = shared / "coco_mini"
    plain, gapped = (read_coco(folder / "annotations" / f"instances_val{kind}.json", folder / "images")
                     for kind in ("", "_official_ids"))
    assert plain.names == gapped.names and len(plain.names) == 80
    assert gapped.class_map["90"] == 79 == plain.class_map["80"]
    for a, b in zip(plain.images, gapped.images):
        assert a.path == b.path and np.array_equal(a.boxes, b.boxes) and np.array_equal(a.crowd, b.crowd)
    trained = read_coco(folder / "annotations" / "instances_val_official_ids.json", folder / "images",
                        names=plain.names, class_map=plain.class_map, verify=False)
    assert all(np.array_equal(a.boxes, b.boxes) for a, b in zip(plain.images, trained.images))


# Cases 5 and 6: annotation ids
def test_annotation_ids_are_renumbered_so_that_pycocotools_scores_a_perfect_result_one(tmp_path: Path):
    def change(c: dict) -> None:
        for a in c["annotations"]:
            a["id"] = a["id"] // 4 * 4       # 0, 0, 0, 4, 4, 4, 4, ...

    data = read(tmp_path, change)
    assert rules(data) == {"duplicate-annotation-id": 6, "annotation-id-zero": 3}
    expected = data.ground_truth()
    assert [a["id"] for a in expected["annotations"]] == list(range(1, 25))
    assert perfect_ap(expected) == pytest.approx(1.0)


# Case 7: image ids and files
def test_duplicate_image_ids_are_refused(tmp_path: Path):
    with pytest.raises(DataError, match=r"error\s+duplicate-image-id\s+1 .*10 \(2 times\)"):
        read(tmp_path, lambda c: c["images"][1].update(id=10))


def test_one_file_under_two_ids_is_a_warning(tmp_path: Path):
    data = read(tmp_path, lambda c: c["images"][1].update(file_name="0.png"))
    assert rules(data) == {"same-file-twice": 1} and data.faults[0].examples == ("0.png (2 times)",)


# All of them
def test_several_fatal_faults_are_told_at_once_and_only_recorded_when_not_strict(tmp_path: Path):
    def change(c: dict) -> None:
        c["annotations"][0]["category_id"] = 5
        c["images"][0]["width"] = 7

    with pytest.raises(DataError) as caught:
        read(tmp_path, change)
    assert "unknown-category" in str(caught.value) and "size-differs" in str(caught.value)
    assert caught.value.exit_code == 3
    data = read(tmp_path, change, strict=False)
    assert {f.rule for f in data.faults if f.fatal} == {"unknown-category", "size-differs"}
    assert len(data.images) == 3


def test_the_report_is_one_aligned_line_a_fault_fatal_ones_first(tmp_path: Path):
    def change(c: dict) -> None:
        c["annotations"][1]["bbox"] = [1, 1, 0, 0]
        c["images"][0]["width"] = 7

    data = read(tmp_path, change, strict=False)
    lines = report_faults(data.faults)
    assert lines[0].startswith("error    size-differs  1  ")
    assert lines[1].startswith("warning  empty-box     1  ")
    assert "(first: annotation 2 bbox [1, 1, 0, 0])" in lines[1] and report_faults(()) == []


def test_reading_writes_nothing_into_the_data_set(tmp_path: Path):
    path, folder = write(tmp_path, content())
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    (tmp_path.parent / "run").mkdir(exist_ok=True)
    read_coco(path, folder, memo=tmp_path.parent / "run" / "memo.json")
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


def test_reading_takes_time_in_proportion_to_the_boxes(tmp_path: Path):
    images, path = 2000, tmp_path / "big.json"
    Image.new("RGB", SIZE).save(tmp_path / "a.png")
    coco = content(images, 50)
    for image in coco["images"]:
        image["file_name"] = "a.png"
    for n, annotation in enumerate(coco["annotations"]):
        annotation["bbox"][1] = n // images / 2        # none is there twice
    path.write_text(json.dumps(coco))
    start = time.process_time()
    data = read_coco(path, tmp_path, verify=False)
    assert time.process_time() - start < 6         # 0.7 s here; a square law would take minutes
    assert count(data) == 100_000


def test_the_cleaned_ground_truth_of_the_real_set_scores_a_perfect_result_one(shared: Path):
    data = read_coco(*locate(shared / "coco_mini").val)
    expected = data.ground_truth()
    assert data.faults == () and sum(a["iscrowd"] for a in expected["annotations"]) == 25
    assert perfect_ap(expected) == pytest.approx(1.0)
