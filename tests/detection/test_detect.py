"""detect.py from flags to files: images."""
import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

import detect
from tests.helpers.detect_cases import COLOURS, NAMES, ROOT, match, save, scene
from utils.errors import DiskError

SHAPES = {"landscape": (240, 320), "portrait": (333, 250), "square": (160, 160), "large": (1200, 1600),
          "tiny": (15, 20)}


@pytest.fixture(scope="session")
def everything(nets, tmp_path_factory):
    """One run with every output over images of all shapes, a broken one among them, on a path with
    Chinese in it."""
    folder = tmp_path_factory.mktemp("照片 in")
    boxes_of = {}
    for number, (name, shape) in enumerate(SHAPES.items()):
        image, boxes_of[name] = scene(*shape, [(1, 1, number % 3), (3, 2, (number + 1) % 3)])
        save(folder / f"{name}.png", image)
    image, boxes_of["街景 1"] = scene(240, 320, [(2, 3, 2)])
    save(folder / "街景 1.jpg", image)
    save(folder / "nothing.jpg", scene(100, 120, [])[0])
    boxes_of["nothing"] = np.zeros((0, 5))
    (folder / "broken.jpg").write_bytes((folder / "nothing.jpg").read_bytes()[:300])
    out = tmp_path_factory.mktemp("out")
    without_display = {key: value for key, value in os.environ.items() if "DISPLAY" not in key}
    done = subprocess.run(
        [sys.executable, "detect.py", "--weights", nets["good"], "--source", folder, "--project", out,
         "--save-txt", "--save-conf", "--save-json", "--save-crop", "--view-img", "--threads", "1",
         "--device", "cpu"],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env=without_display | {"PYTHONIOENCODING": "utf-8"})
    return done, folder, out / "exp", boxes_of


def test_a_run_over_a_folder_ends_well_and_counts_what_it_could_not_read(everything):
    done, folder, out, boxes_of = everything
    assert done.returncode == 0, done.stderr
    assert "broken.jpg" in done.stdout and "1 files could not be read" in done.stdout
    assert f"{len(boxes_of)} frames, 11 boxes" in done.stdout and f"results in {out}" in done.stdout
    assert "FPS end to end" in done.stdout and "0 non-finite or absurd boxes dropped" in done.stdout
    assert "DISPLAY" in done.stdout, "--view-img without a display is a sentence, not an abort"
    lines = [line for line in done.stdout.splitlines() if " ms  " in line]
    assert len(lines) == len(boxes_of)
    assert any("landscape.png" in line and "1 red, 1 green" in line for line in lines)
    assert len({line.index(" ms  ") for line in lines if line.isascii()}) == 1, "the lines are aligned"
    found = json.loads((out / "summary.json").read_text())
    assert found["per_class"] == {name: int(sum((rows[:, 4] == k).sum() for rows in boxes_of.values()))
                                  for k, name in enumerate(NAMES)}
    assert found["dropped"] == 0 and len(found["left_out"]) == 1
    args = json.loads((out / "args.json").read_text())
    assert args["source"] == str(folder) and args["conf_thres"] == 0.25


@pytest.mark.parametrize("name", [*SHAPES, "街景 1", "nothing"])
def test_labels_lie_within_one_pixel_of_the_ground_truth_in_images_of_every_shape(everything, name):
    _, _, out, boxes_of = everything
    height, width = cv2.imdecode(np.fromfile(next(out.glob(f"{name}.*")), np.uint8), 1).shape[:2]
    rows = [line.split() for line in (out / "labels" / f"{name}.txt").read_text().splitlines()]
    assert all(len(row) == 6 and 0.99 < float(row[5]) <= 1 for row in rows)
    values = np.array(rows, dtype=float).reshape(-1, 6)
    centre, half = values[:, 1:3] * (width, height), values[:, 3:5] * (width, height) / 2
    match(np.hstack((centre - half, centre + half, values[:, :1])), boxes_of[name], 1.0)


def test_the_json_names_file_category_and_box_in_px(everything):
    _, _, out, boxes_of = everything
    rows = json.loads((out / "predictions.json").read_text(encoding="utf-8"))
    files = [path.name for path in sorted(out.glob("*.[jp][pn]g"))]
    assert len(rows) == 11 and {row["file_name"] for row in rows} <= set(files)
    assert {(row["category"], row["category_id"]) for row in rows} == set(zip(NAMES, (7, 9, 90)))
    for name, wanted in boxes_of.items():
        mine = [row for row in rows if Path(row["file_name"]).stem == name]
        boxes = [[*row["bbox"][:2], row["bbox"][0] + row["bbox"][2], row["bbox"][1] + row["bbox"][3],
                  NAMES.index(row["category"])] for row in mine]
        match(np.array(boxes).reshape(-1, 5), wanted, 1.0)
        assert len({row["image_id"] for row in mine}) <= 1 and all(0.99 < row["score"] <= 1 for row in mine)


def test_crops_show_their_object_and_class_names_make_safe_folders(everything):
    _, _, out, boxes_of = everything
    crops = sorted((out / "crops").glob("*/*.jpg"))
    assert len(crops) == 11 and {path.parent.name for path in crops} == {"red", "green", "蓝_色"}
    for path in crops:
        if path.name.startswith("tiny"):
            continue                                       # four px a side: JPEG keeps no colour of that
        mean = cv2.imdecode(np.fromfile(path, np.uint8), 1)[:, :, ::-1].mean((0, 1))
        label = [name.replace("/", "_") for name in NAMES].index(path.parent.name)
        assert np.abs(mean - COLOURS[label]).max() < 40, f"{path}: {mean}"
    wanted = boxes_of["large"][0]
    crop = cv2.imdecode(np.fromfile(next(path for path in crops if path.stem == "large_1"), np.uint8), 1)
    assert np.abs(np.array(crop.shape[1::-1]) - (wanted[2:4] - wanted[:2])).max() <= 2


def test_images_are_drawn_where_the_labels_say(everything):
    _, folder, out, boxes_of = everything
    before, after = (cv2.imdecode(np.fromfile(place / "large.png", np.uint8), 1) for place in (folder, out))
    assert before.shape == after.shape
    for x1, y1, _, y2, _ in boxes_of["large"].astype(int):
        part = np.s_[y1 + 80:y2 - 5, x1 - 6:x1 + 7]
        side = after[part] != before[part]
        assert side.any(2).any(1).all(), "the left side of the box is a line from top to bottom"
    assert not (out / "broken.jpg").exists()


def test_help_takes_less_than_a_second():
    """Of processor time, so that a busy machine does not matter."""
    before = os.times()
    done = subprocess.run([sys.executable, "detect.py", "--help"], cwd=ROOT, capture_output=True, text=True,
                          check=False)
    after = os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    assert done.returncode == 0 and "--save-crop" in done.stdout and spent < 1.0


def test_a_missing_source_ends_with_3_and_missing_weights_with_4(nets, tmp_path):
    path = save(tmp_path / "a.png", scene(160, 160, [])[0])
    none = tmp_path / "none"
    for weights, source, code, said in ((nets["good"], none, 3, "no such file"),
                                        (none, path, 4, "no checkpoint at")):
        done = subprocess.run([sys.executable, "detect.py", "--weights", weights, "--source", source,
                               "--project", tmp_path / "out"], cwd=ROOT, capture_output=True, text=True,
                              check=False)
        assert done.returncode == code and said in done.stderr and "Traceback" not in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists(), "nothing is made for a run that cannot begin"


def test_bad_flags_and_unknown_classes_end_with_2_and_say_what_is_known(nets, tmp_path, run, monkeypatch):
    path = save(tmp_path / "a.png", scene(160, 160, [])[0])
    good = ("--weights", nets["good"], "--source", path)
    for flags, said in (((*good, "--classes", "red", "zebra", "5"), "zebra 5: this network does not know "
                         "them; give names or numbers of: 0 red, 1 green, 2 蓝/色"),
                        ((*good, "--conf-thres", "1.5"), "between 0 and 1"),
                        ((*good, "--save-conf"), "--save-txt"),
                        ((*good, "--nosave", "--codec", "vp9"), "--codec is that of the videos"),
                        ((*good, "--codec", "av1"), "'auto', 'vp9'"),
                        (("--weights", nets["good"]), "--source is missing")):
        code, _, err, folder = run(*flags)
        assert code == 2 and said in err and not folder.exists()
    monkeypatch.setattr(detect, "SHIPPED", tmp_path / "not there.pt")
    code, _, err, _ = run("--source", path)
    assert code == 2 and "--weights is missing" in err


def test_without_weights_the_shipped_ones_are_used_and_named(nets, tmp_path, run, monkeypatch):
    monkeypatch.setattr(detect, "SHIPPED", nets["good"])
    code, out, _, _ = run("--source", save(tmp_path / "a.png", scene(160, 160, [(1, 1, 0)])[0]))
    assert code == 0 and "using the shipped" in out and "good.pt" in out and "1 red" in out


def test_a_single_broken_image_ends_with_3_and_leaves_no_folder(nets, tmp_path, run):
    (tmp_path / "a.jpg").write_bytes(b"<html>")
    code, _, err, folder = run("--weights", nets["good"], "--source", tmp_path / "a.jpg", "--save-txt")
    assert code == 3 and "a.jpg" in err and not folder.exists()


def test_a_run_that_fails_after_its_first_result_keeps_its_folder(nets, tmp_path, run, monkeypatch):
    def full(*_: object) -> None:
        raise DiskError("full")
    monkeypatch.setattr("detection.run.Run.conclude", full)
    path = save(tmp_path / "a.png", scene(160, 160, [])[0])
    code, _, _, folder = run("--weights", nets["good"], "--source", path)
    assert code == 7 and (folder / "a.png").is_file()


def test_classes_and_max_det_limit_what_is_found_and_nosave_what_is_written(nets, tmp_path, run):
    path = save(tmp_path / "a.png", scene(160, 160, [(0, 0, 0), (2, 2, 1), (4, 4, 2)])[0])
    for flags, said in ((("--classes", "green", "2"), "2 boxes: 1 green, 1 蓝/色"),
                        (("--max-det", 1), "1 boxes"), (("--conf-thres", 1), "0 boxes: no boxes")):
        code, out, _, folder = run("--weights", nets["good"], "--source", path, "--nosave", *flags)
        assert code == 0 and said in out
        assert {path.name for path in folder.iterdir()} <= {"args.json", "summary.json", ".lock"}


def test_absurd_and_non_finite_boxes_are_left_out_and_counted(nets, tmp_path, run):
    image = scene(160, 160, [(0, 0, 0), (2, 2, 0), (4, 4, 2)])[0]
    image[0:32, 96:160] = (255, 255, 0)                    # two cells of yellow: infinite
    path = save(tmp_path / "a.png", image)
    code, out, _, folder = run("--weights", nets["broken"], "--source", path, "--save-txt")
    assert code == 0 and "1 boxes: 1 蓝/色" in out and "4 non-finite or absurd boxes dropped" in out
    assert len((folder / "labels" / "a.txt").read_text().splitlines()) == 1
