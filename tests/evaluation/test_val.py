"""val.py from flags to table, page and JSON: a perfect detector scores 1, the official weights their bar."""
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import val
from data.coco.locate import locate
from data.coco.read import read_coco
from deploy.runtimes.runtime import Runtime
from detection.outputs import save_image
from evaluation import evaluate
from models.checkpoint import Checkpoint, save
from models.heads.nms import Found
from models.network import Network, initialise
from models.zoo.build import build
from tests.evaluation.test_evaluate import in_input
from tests.helpers.scripts import call
from utils import runs

NAMES = ("bird", "DOG", "Cat")                             # the model's; the data set has cat and dog


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A checkpoint of a small random network with the classes NAMES."""
    net = build("micro-yolo-pruned", len(NAMES))
    path = tmp_path_factory.mktemp("weights") / "small.pt"
    save(path, Checkpoint(net, initialise(Network(net), 0).state_dict(), NAMES, 96))
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Five images of mixed shapes with unsafe annotation ids, gapped category ids and a crowd."""
    root = tmp_path_factory.mktemp("set")
    (root / "annotations").mkdir()
    (root / "images").mkdir()
    rng, images, boxes = np.random.default_rng(0), [], []
    for i, (height, width) in enumerate([(200, 320), (300, 100), (64, 64), (333, 501), (90, 90)]):
        noise = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
        save_image(root / "images" / f"图 {i}.png", noise)
        images.append({"id": 10 * i, "file_name": f"图 {i}.png", "width": width, "height": height})
        for k in range(i % 3 + 1 if i < 4 else 0):
            boxes.append({"id": max(0, len(boxes) - 2), "image_id": 10 * i, "category_id": (7, 3)[k % 2],
                          "iscrowd": 0, "bbox": [5.0 + 20 * k, 6.0, 18.0, height / 2], "area": 9.0 * height})
    boxes.append({**boxes[0], "id": 99, "iscrowd": 1, "bbox": [150.0, 20.0, 100.0, 100.0]})
    categories = [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}]
    content = {"images": images, "annotations": boxes, "categories": categories}
    (root / "annotations" / "instances_val.json").write_text(json.dumps(content), encoding="utf-8")
    return root


@pytest.fixture
def run_val(monkeypatch, tmp_path, capsys):
    """Runs val.py as a script would, here: flags in, (exit code, what was printed, stderr) out."""
    monkeypatch.setattr(runs, "tune_cpu", lambda: None)

    def run(*flags: object) -> tuple[int, str, str]:
        code = call(monkeypatch, val.main, ["val.py", *flags, "--project", tmp_path / "runs"])
        return code, *capsys.readouterr()
    return run


@pytest.fixture
def perfect(monkeypatch, data):
    """Make the decoder find every ground-truth box, in the input's px and in the model's classes."""
    coco, place = read_coco(*locate(data).val), []

    def find(maps: list, heads: tuple, *_: object, classes: list[int], **__: object) -> Found:
        side, out = maps[0].shape[-1] * heads[0].stride, []
        for _ in range(len(maps[0])):
            record = coco.images[len(place)]
            place.append(record)
            rows = [[*in_input(box[1:], (record.height, record.width), side), 0.9, classes[int(box[0])]]
                    for box in record.boxes.tolist()]
            out.append(np.array(rows).reshape(-1, 6))
        return Found(out, 1)
    monkeypatch.setattr(evaluate, "detections", find)
    monkeypatch.setattr(Runtime, "lanes", 1)               # it knows images by the order of its calls alone


@pytest.mark.usefixtures("perfect")
def test_a_perfect_detector_scores_one_through_letterbox_and_names(run_val, weights, data, tmp_path):
    code, said, _ = run_val("--weights", weights, "--data", data, "--batch-size", 2, "--workers", 0, "--ci",
                            "--plots", "--out", tmp_path / "results" / "row.json")
    assert code == 0
    rows = {line.split()[0]: line.split()[1:] for line in said.splitlines() if line}
    assert rows["all"] == ["5", "7", "1.000", "1.000", "1.000", "1.000", "1.000"]
    assert rows["dog"][:2] == ["2", "2"] and rows["cat"][:2] == ["4", "5"]
    assert "annotation-id-zero" in said and "duplicate-annotation-id" in said
    for piece in ("score floor 0.001", "NMS IoU 0.6", "at most 100 boxes", "input 96", "5 images",
                  "2 classes (all with ground truth)", "GMACs", "ptflops-style", "MB on disk", "network",
                  "3 non-finite or absurd"):
        assert piece in said, piece
    found = json.loads((tmp_path / "results" / "row.json").read_text())
    assert found["map50"] == found["map50_95"] == 1 and found["crowds"] == 1 and found["truths"] == 7
    assert found["map50_interval"]["low"] <= 1 <= found["map50_interval"]["high"]
    assert found["macs"] < found["loose_macs"] and found["bytes"] == weights.stat().st_size
    assert found["settings"]["imgsz"] == 96 and {"commit", "date", "command"} <= found["environment"].keys()
    folder = tmp_path / "runs" / "exp"
    assert json.loads((folder / "metrics.json").read_text()) == found
    for name in ("report.html", "pr_curve.png", "f1_curve.png", "confusion.png", "predictions.jpg"):
        assert (folder / name).stat().st_size > 300, name


def test_no_boxes_at_all_is_zero_and_a_class_without_ground_truth_is_named(run_val, weights, data, tmp_path):
    content = json.loads((data / "annotations" / "instances_val.json").read_text())
    content["categories"].append({"id": 8, "name": "Bird"})
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_val.json").write_text(json.dumps(content))
    (tmp_path / "images").symlink_to(data / "images")
    code, said, _ = run_val("--weights", weights, "--data", tmp_path, "--conf-thres", 1, "--workers", 0,
                            "--imgsz", 64)
    assert code == 0 and "without ground truth: Bird" in said and "input 64" in said
    rows = {line.split()[0]: line.split()[1:] for line in said.splitlines() if line}
    assert rows["all"][2:] == ["0.000"] * 5 and rows["Bird"] == ["0", "0"] + ["n/a"] * 5
    code, said, _ = run_val("--weights", weights, "--data", data, "--workers", 0, "--half")
    assert code == 0 and "exp2" in said                    # the first run's folder is left as it was


def test_classes_the_model_does_not_know_end_with_exit_4_and_both_lists(run_val, weights, data, tmp_path):
    content = (data / "annotations" / "instances_val.json").read_text().replace('"dog"', '"tram"')
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_val.json").write_text(content)
    (tmp_path / "images").symlink_to(data / "images")
    code, _, error = run_val("--weights", weights, "--data", tmp_path)
    assert code == 4
    assert "tram" in error and "bird, DOG, Cat" in error and "tram, cat" in error and error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("flags", "code", "words"), [
    ((), 2, "--weights is missing"), (("--weights", "x.pt"), 2, "--data is missing"),
    (("--weights", "x.pt", "--data", "y", "--imgsz", "100"), 2, "multiple of 32"),
    (("--weights", "x.pt", "--data", "y", "--iou-thres", "1.5"), 2, "between 0 and 1")])
def test_flags_that_cannot_work_are_refused(run_val, flags, code, words):
    ended, _, error = run_val(*flags)
    assert ended == code and words in error


def test_missing_files_are_named(run_val, weights, tmp_path):
    code, _, error = run_val("--weights", tmp_path / "none.pt", "--data", tmp_path)
    assert code in (3, 4) and "none.pt" in error
    code, _, error = run_val("--weights", weights, "--data", tmp_path / "nowhere")
    assert code == 3 and "nowhere" in error


def test_the_official_weights_reach_their_ap_on_real_photographs(run_val, shared, tmp_path):
    code, _, error = run_val("--weights", shared / "weights" / "yolov3-tiny.weights",
                             "--data", shared / "coco_mini", "--out", tmp_path / "official.json")
    assert code == 0, error
    found = json.loads((tmp_path / "official.json").read_text())
    assert found["map50"] >= 0.400 and found["map50_95"] >= 0.195
    assert (found["parameters"], found["macs"], found["images"]) == (8852366, 2782480896, 328)
    assert found["bytes"] > 35_000_000 and found["without_truth"] == []


def test_an_undivided_set_is_measured_on_what_its_training_left_out(run_val, weights, data, tmp_path):
    (tmp_path / "set").mkdir()
    shutil.copytree(data / "images", tmp_path / "set" / "images")
    shutil.copy(data / "annotations" / "instances_val.json", tmp_path / "set" / "labels.json")
    code, said, error = run_val("--weights", weights, "--data", tmp_path / "set", "--workers", 0,
                                "--val-split", 0.4, "--seed", 5)
    assert code == 0, error
    assert "val is 40% of it" in said and "(seed 5)" in said and "2 images" in said
    code, _, error = run_val("--weights", weights, "--data", tmp_path / "set", "--val-split", 1.5)
    assert code == 2 and "--val-split 1.5: needs 0 or more, below 1" in error
