"""From --data to annotation files, and from file names to images (cases 13, 18, 21, 27)."""
import json
import os
from pathlib import Path

import pytest
from PIL import Image

from data.coco.find import unlisted_files
from data.coco.locate import locate
from data.coco.read import read_coco
from tests.helpers.coco_files import SIZE, content, count, read, rules, write
from utils.errors import DataError


def make_set(root: Path, splits: tuple[str, ...] = ("train", "val")) -> Path:
    """A folder in COCO layout."""
    (root / "annotations").mkdir(parents=True)
    write(root, content())
    (root / "set.json").unlink()
    for split in splits:
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content()))
    return root


def test_a_folder_in_coco_layout_is_located(tmp_path: Path):
    root = make_set(tmp_path / "数据 集")
    for given in (root, str(root)):
        found = locate(given)
        annotation, images, _ = found["train"]
        assert annotation == root / "annotations" / "instances_train.json" and images == root / "images"
        assert found.val.json.name == "instances_val.json" and found.names is None
        assert count(read_coco(*found.val)) == 24


def test_a_folder_without_a_split_says_which_paths_were_tried(tmp_path: Path):
    found = locate(make_set(tmp_path / "a", ("val",)))
    assert "val" in found and "train" not in found
    with pytest.raises(DataError, match="no annotation file for `train`; tried .*instances_train.json, .*, "):
        _ = found.train
    (tmp_path / "b").mkdir()
    with pytest.raises(DataError, match="no annotation file; tried .*instances_train.json.*data.convert"):
        locate(tmp_path / "b")


@pytest.mark.parametrize("text", [
    "path: .\ntrain: annotations/instances_train.json\nval: annotations/instances_val.json\n",
    "train: instances_train.json\nval: instances_val.json\nnames: [cat, dog]\n",
    "path: {root}\ntrain: [annotations/instances_train.json, images]\nval: annotations/instances_val.json\n",
    "train: {{json: annotations/instances_train.json, images: images}}\nval: annotations/instances_val.json\n"
    "names: {{0: cat, 1: dog}}\n"], ids=range(4))
def test_a_yaml_names_the_splits_in_any_of_its_forms(tmp_path: Path, text: str):
    root = make_set(tmp_path / "set")
    (root / "data.yaml").write_text(text.format(root=root))
    found = locate(root / "data.yaml")
    for split in ("train", "val"):
        assert found[split].json.samefile(root / "annotations" / f"instances_{split}.json")
        assert found[split].images.samefile(root / "images")
    assert found.names == (("cat", "dog") if "names" in text else None)


@pytest.mark.parametrize("text, message", [
    ("train: !!python/object/apply:os.system ['touch pwned']", "not a plain YAML.*python tags .*refused"),
    ("a: &a [x, x]\nb: &b [*a, *a]\ntrain: *b", "uses YAML aliases"), ("train: [", "not a plain YAML"),
    ("- a\n- b", "must hold path, train and val; got list"), ("path: .", "names neither `train` nor `val`"),
    ("train: 5", "`train: 5` is not a file"),
    ("train: no.json", "`train: no.json` is not a file; tried .*, .*, "),
    ("train: {json: set.json, images: nope}", "`images: nope` of `train` is not a folder; tried .*nope"),
    ("train: set.json\nnames: [a, a]", "`names` must be a list of different"),
    ("#" * 1_000_001, "1,000,001 bytes"),
    ("[" * 900_000, "nested more than 20 deep"), ("train: '\\x80", "not a plain YAML")], ids=range(12))
def test_a_yaml_that_is_wrong_or_hostile_is_refused(tmp_path: Path, text: str, message: str,
                                                    monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, content())
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(DataError, match=message):
        locate(tmp_path / "data.yaml")
    assert not (tmp_path / "pwned").exists()


def test_a_data_argument_that_is_nothing_is_named(tmp_path: Path):
    with pytest.raises(DataError, match="nowhere: does not exist .*the word `scenes`"):
        locate(tmp_path / "nowhere")
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(DataError, match="is neither a folder nor a YAML"):
        locate(tmp_path / "a.txt")


def test_missing_images_are_left_out_and_reported(tmp_path: Path):
    data = read(tmp_path, lambda c: c["images"][2].update(file_name="gone.jpg"))
    assert rules(data) == {"missing-image": 1} and data.faults[0].examples == ("gone.jpg",)
    assert len(data.images) == 2 and count(data) == 16


def test_no_image_found_is_an_error_with_the_first_three_paths(tmp_path: Path):
    path, folder = write(tmp_path, content())
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError) as caught:
        read_coco(path, tmp_path / "empty")
    tried = ", ".join(str(tmp_path / "empty" / f"{i}.png") for i in range(3))
    assert "none of its 3 images" in str(caught.value) and f"tried {tried}" in str(caught.value)


@pytest.mark.parametrize("stated, real", [
    ("A B.PNG", "a b.png"), ("train/x.png", "x.png"), ("deep\\x.png", "deep/x.png"),
    ("caf\u00e9.png", "cafe\u0301.png")])
def test_other_spellings_of_a_name_are_found_and_said(tmp_path: Path, stated: str, real: str):
    def change(c: dict) -> None:
        c["images"][0]["file_name"] = stated

    (tmp_path / "images" / "deep").mkdir(parents=True)
    Image.new("RGB", SIZE).save(tmp_path / "images" / real)
    data = read(tmp_path, change)
    assert len(data.images) == 3 and rules(data).get("file-name-differs", 1) == 1
    assert os.path.samefile(data.images[0].path, tmp_path / "images" / real)


def test_spaces_and_chinese_in_every_part_of_the_path_work(tmp_path: Path):
    folder = tmp_path / "数据 集"
    folder.mkdir()
    coco = content()
    coco["images"][0]["file_name"] = "图 一.png"
    coco["categories"][0]["name"] = "猫"
    path, images = write(folder, coco)
    (images / "0.png").rename(images / "图 一.png")
    data = read_coco(path, images)
    assert data.names[0] == "猫" and data.faults == () and len(data.images) == 3


@pytest.mark.parametrize("name", ["x" * 5000 + ".png", "a\0b.png", "", None, 7])
def test_an_impossible_file_name_is_a_missing_image(tmp_path: Path, name: object):
    data = read(tmp_path, lambda c: c["images"][0].update(file_name=name))
    assert rules(data) == {"missing-image": 1} and len(data.images) == 2


def test_undecodable_images_are_left_out_with_the_reason(tmp_path: Path):
    path, folder = write(tmp_path, content())
    (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:60])
    data = read_coco(path, folder)
    assert [r.path.name for r in data.images] == ["0.png", "2.png"]
    assert rules(data) == {"undecodable-image": 1}
    assert data.faults[0].examples[0].startswith("1.png is ")
    for i in range(3):
        (folder / f"{i}.png").write_text("<html>")
    with pytest.raises(DataError, match="not one image can be used(.|\n)*not an image"):
        read_coco(path, folder)


def test_files_that_no_list_names_are_found(tmp_path: Path):
    data = read(tmp_path)
    Image.new("RGB", (9, 9)).save(tmp_path / "images" / "extra.JPG")
    (tmp_path / "images" / "notes.txt").write_text("x")
    found = unlisted_files([r.path for r in data.images], tmp_path / "images")
    assert [p.name for p in found] == ["extra.JPG"]


def test_annotations_of_no_image_are_dropped_and_string_ids_meet_numbers(tmp_path: Path):
    data = read(tmp_path, lambda c: (c["annotations"][0].update(image_id=999),
                                     c["annotations"][1].update(image_id="11"),
                                     c["annotations"][2].update(image_id=12.0, category_id=1.0)))
    assert rules(data) == {"annotation-without-image": 1} and count(data) == 23
