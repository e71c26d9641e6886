"""Names of an annotation file lead to the right images, or to an error that shows the candidates."""
import json
from pathlib import Path

import pytest
from PIL import Image

from data.coco.find import find_images, split_of
from data.coco.locate import locate
from data.coco.read import read_coco
from tests.helpers.coco_files import SIZE, content, read, rules
from utils.errors import DataError


def draw(path: Path, level: int) -> Path:
    """An image whose grey level says which one it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", SIZE, level).save(path)
    return path


def found(folder: Path, json_name: str, *names: str) -> tuple[list, dict[str, tuple]]:
    """Paths below the folder, and examples by rule."""
    paths, faults = find_images(names, folder / "images", folder / "annotations" / json_name)
    return ([path and path.relative_to(folder / "images").as_posix() for path in paths],
            {f.rule: f.examples for f in faults})


@pytest.mark.parametrize("name, split", [("instances_val2017", "val"), ("Train", "train"), ("valid", "val"),
                                         ("instances_default", None), ("trainval", None),
                                         ("train_val", None)])
def test_split_words_are_read_from_names(name: str, split: str | None):
    assert split_of(name) == split


def test_equal_names_in_two_splits_lead_each_file_to_its_own(tmp_path: Path):
    for k, split in enumerate(("train", "val", "test")):
        draw(tmp_path / "images" / split / "1.png", 50 * k)
    for split in ("train", "val", "test"):
        assert found(tmp_path, f"instances_{split}.json", "1.png") == ([f"{split}/1.png"], {})
    paths, faults = found(tmp_path, "instances_default.json", "1.png", "val/1.png")
    assert paths == [None, "val/1.png"] and "test/1.png or " in faults["ambiguous-image"][0]


def test_a_split_that_lacks_an_image_does_not_borrow_the_other_splits(tmp_path: Path):
    draw(tmp_path / "images/train/1.png", 1), draw(tmp_path / "images/train/2.png", 2)
    draw(tmp_path / "images/val/1.png", 3)
    assert found(tmp_path, "instances_val.json", "1.png", "2.png") == (
        ["val/1.png", None], {"missing-image": ("2.png",)})


def test_two_cameras_with_equal_names_are_told_apart_by_their_folders(tmp_path: Path):
    draw(tmp_path / "images/cam_a/1.png", 1), draw(tmp_path / "images/cam_b/1.png", 2)
    paths, faults = found(tmp_path, "a.json", r"C:\Users\me\cam_b\1.png", "/mnt/disk/cam_a/1.png")
    assert paths == ["cam_b/1.png", "cam_a/1.png"] and faults.keys() == {"file-name-differs"}
    paths, faults = found(tmp_path, "a.json", "1.png")
    assert paths == [None] and "cam_a/1.png or " in faults["ambiguous-image"][0]
    (tmp_path / "images/cam_a/1.png").unlink()
    paths, faults = found(tmp_path, "a.json", "cam_a/1.png", "cam_b/1.png")
    assert paths == [None, "cam_b/1.png"] and faults == {"missing-image": ("cam_a/1.png",)}


def test_copies_of_the_same_bytes_are_no_ambiguity(tmp_path: Path):
    draw(tmp_path / "images/a/1.png", 1), draw(tmp_path / "images/b/1.png", 1)
    assert found(tmp_path, "a.json", "1.png")[0] == ["a/1.png"]


def test_one_file_that_two_names_could_mean_is_refused(tmp_path: Path):
    draw(tmp_path / "images/1.png", 1)
    paths, faults = found(tmp_path, "a.json", "cam_a/1.png", "cam_b/1.png")
    assert paths == [None, None] and len(faults["ambiguous-image"]) == 2


@pytest.mark.parametrize("stated", ["my%20image.PNG", "file:///data/my image.png", "my image.png ",
                                    "MY IMAGE.png", "/data/local-files/?d=up/my image.png",
                                    "./sub/../my image.png", "my%2520image.png"])
def test_urls_blanks_and_letter_case_are_levelled_and_said(tmp_path: Path, stated: str):
    draw(tmp_path / "images/deep/my image.png", 1)
    paths, faults = found(tmp_path, "a.json", stated)
    assert paths == ["deep/my image.png"] and stated in faults["file-name-differs"][0]


def test_linked_folders_are_searched_and_circles_are_not_walked_for_ever(tmp_path: Path):
    draw(tmp_path / "store/1.png", 1)
    draw(tmp_path / "images/.ipynb_checkpoints/1.png", 2)
    (tmp_path / "images/disk").symlink_to(tmp_path / "store")
    (tmp_path / "store/back").symlink_to(tmp_path / "images")
    assert found(tmp_path, "a.json", "1.png")[0] == ["disk/1.png"]


def test_one_file_under_two_spellings_and_ids_is_one_file(tmp_path: Path):
    data = read(tmp_path, lambda c: c["images"][1].update(file_name="./0.png"))
    assert rules(data) == {"same-file-twice": 1}


def test_val_of_a_set_with_equal_names_reads_its_own_images(tmp_path: Path):
    for k, split in enumerate(("train", "val")):
        for i in range(3):
            draw(tmp_path / "images" / split / f"{i}.png", 100 * k + i)
        (tmp_path / "annotations").mkdir(exist_ok=True)
        (tmp_path / "annotations" / f"instances_{split}.json").write_text(json.dumps(content()))
    for split in ("train", "val"):
        data = read_coco(*locate(tmp_path)[split])
        assert data.faults == () and {r.path.parent.name for r in data.images} == {split}


def test_an_ambiguous_name_keeps_a_set_from_being_read(tmp_path: Path):
    draw(tmp_path / "images/a/x.png", 1), draw(tmp_path / "images/b/x.png", 2)
    with pytest.raises(DataError, match="ambiguous-image .*a/x.png or .*b/x.png"):
        read(tmp_path, lambda c: c["images"][0].update(file_name="x.png"))


def test_what_a_server_is_asked_besides_is_no_part_of_a_name(tmp_path: Path):
    for name in ("a?b.png", "1.png"):
        draw(tmp_path / "images" / name, 9)
    names = "https://x.org/files/1.png?size=1&v=a/b", "a?b.png"
    assert found(tmp_path, "set.json", *names)[0] == ["1.png", "a?b.png"]
