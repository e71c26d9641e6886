"""The embedded set: complete, the same every time, its boxes on the ink, its splits apart."""
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from data.coco.locate import locate
from data.coco.read import CocoSet, read_coco
from data.images import decode
from data.scenes import NAMES, _digit, _ink, _materials, make_scenes, scene
from utils.errors import DataError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small set of images of the usual size."""
    return make_scenes(tmp_path_factory.mktemp("made") / "scenes", train=60, val=20)


@pytest.fixture(scope="module")
def train(folder: Path) -> CocoSet:
    """Its training split, read."""
    return read_coco(*locate(folder).train)


def content(folder: Path) -> dict[str, bytes]:
    """Every file's bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_the_set_is_faultless_coco(folder: Path, train: CocoSet):
    val = read_coco(*locate(folder).val)
    assert train.faults == val.faults == () and train.names == val.names == NAMES
    assert (len(train.images), len(val.images)) == (60, 20)
    assert all((r.width, r.height) == (320, 320) and 1 <= len(r.boxes) <= 6 for r in train.images)


def test_digits_are_of_all_classes_and_sizes(train: CocoSet):
    boxes = np.concatenate([r.boxes for r in train.images])
    longer = (boxes[:, 3:] - boxes[:, 1:3]).max(1)
    assert set(boxes[:, 0]) == set(range(10))
    assert longer.min() >= 16 and longer.max() <= 120 and longer.min() < 25 and longer.max() > 100


def test_the_same_seed_gives_the_same_bytes_and_another_seed_other_ones(tmp_path: Path):
    a, b, c = (make_scenes(tmp_path / name, train=4, val=2, seed=seed)
               for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    assert content(a) == content(b) and content(a) != content(c)


def test_boxes_are_tight_around_the_ink():
    material = _materials(0)["train"]
    for seed in range(30):
        rng = np.random.default_rng(seed)
        mask, (x, y, w, h) = _digit(material.scans[seed], 320, rng)
        ys, xs = np.nonzero(mask > 0.3)
        seen = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
        assert np.abs(seen - [x, y, x + w, y + h]).max() <= 2


@pytest.mark.parametrize("level", [0, 60, 128, 200, 255])
def test_ink_stands_out_from_what_lies_beneath(level: int):
    for seed in range(40):
        image = np.full((20, 20, 3), level, np.float32)
        _ink(image, np.ones((20, 20), np.float32), (5, 5, 10, 10), np.random.default_rng(seed))
        assert abs(image[5:15, 5:15].mean() - level) >= 60, "80 levels apart, 75 % opaque or more"
        assert (image[:5] == level).all()


def test_training_and_validation_share_no_scan_and_no_background():
    splits = _materials(0)
    scans = {name: {s.tobytes() for s in m.scans} for name, m in splits.items()}
    assert len(scans["train"] & scans["val"]) <= 1        # the bundled scans may hold a twin
    assert len(splits["train"].labels) + len(splits["val"].labels) == 1797
    for left, right in zip(splits["train"].regions, splits["val"].regions):
        assert not np.shares_memory(left[:, -1], right[:, 0]) and left.shape[1] + right.shape[1] == 640


def test_a_complete_set_is_left_alone_and_other_parameters_make_it_again(tmp_path: Path):
    folder = make_scenes(tmp_path / "s", train=3, val=1)
    (folder / "images" / "train_0000.jpg").write_bytes(b"mark")
    assert make_scenes(folder, train=3, val=1) == folder
    assert (folder / "images" / "train_0000.jpg").read_bytes() == b"mark"
    make_scenes(folder, train=2, val=1)
    assert len(list((folder / "images").iterdir())) == 3 and not list(tmp_path.glob("*.part"))


def test_files_of_others_are_never_overwritten(tmp_path: Path):
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(DataError, match="holds files that are not a scenes set"):
        make_scenes(tmp_path, train=1, val=1)
    assert (tmp_path / "mine.txt").read_text() == "x"
    with pytest.raises(DataError, match="0 train and 1 val images"):
        make_scenes(tmp_path / "new", train=0, val=1)


def test_an_interrupted_run_leaves_no_half_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def stop(path: Path, image: np.ndarray) -> None:
        if path.name == "train_0002.jpg":
            raise KeyboardInterrupt
        path.write_bytes(b"x")

    monkeypatch.setattr("data.scenes._write_jpeg", stop)
    with pytest.raises(KeyboardInterrupt):
        make_scenes(tmp_path / "s", train=3, val=1)
    assert list(tmp_path.iterdir()) == []


def test_the_word_scenes_makes_the_set_on_first_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from data import scenes as module
    monkeypatch.setattr(module, "default_folder", lambda: tmp_path / "datasets" / "scenes")
    monkeypatch.setattr(module, "make_scenes", lambda: make_scenes(train=2, val=1))
    found = locate("scenes")
    assert found.train.json == tmp_path / "datasets" / "scenes" / "annotations" / "instances_train.json"
    assert len(read_coco(*found.val).images) == 1


def test_the_command_line_makes_a_set_and_says_where(tmp_path: Path, root: Path):
    command = [sys.executable, "-m", "data.scenes", "--out", str(tmp_path / "s"), "--train", "2",
               "--val", "1"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, str(tmp_path / "s"))
    assert json.loads((tmp_path / "s" / "scenes.json").read_text())["train"] == 2


def test_a_thousand_images_take_under_fifteen_seconds(tmp_path: Path):
    start = time.process_time()
    make_scenes(tmp_path / "s", train=90, val=10)
    assert time.process_time() - start < 1.5 + 1       # a tenth of the set, and a second for imports


def test_images_decode_to_what_was_drawn(folder: Path):
    image, _ = scene(_materials(0)["train"], 320, np.random.default_rng([0, 0, 7]))
    stored = decode(folder / "images" / "train_0007.jpg")
    assert np.abs(image.astype(int) - stored).mean() < 4
