"""detect.py on videos, also when they are interrupted, and with the official network on real images."""
import json
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest

from detection.video import probe
from detection.yuv import Yuv
from tests.helpers.detect_cases import ROOT, film, match


def test_a_video_keeps_rate_size_and_length_and_its_boxes_also_in_batches(nets, tmp_path, run):
    boxes = film(tmp_path / "街 v.mp4", 25)
    code, out, _, folder = run("--weights", nets["good"], "--source", tmp_path / "街 v.mp4",
                               "--batch-size", 4, "--save-txt", "--save-json", "--time-network")
    assert code == 0 and "25 frames, 50 boxes: 25 red, 25 green" in out
    assert "FPS the network alone" in out and "25/25  100 %" in out
    info = probe(folder / "街 v.mp4")
    assert (info.frames, info.width, info.height) == (25, 320, 240) and info.fps == pytest.approx(12.5)
    labels = sorted((folder / "labels").iterdir())
    assert [path.stem for path in labels] == [f"街 v_{k:06d}" for k in range(1, 26)]
    values = np.loadtxt(labels[24]).reshape(-1, 5)
    centre, half = values[:, 1:3] * (320, 240), values[:, 3:5] * (320, 240) / 2
    match(np.hstack((centre - half, centre + half, values[:, :1])), boxes, 1.0)
    rows = json.loads((folder / "predictions.json").read_text())
    assert [row["frame"] for row in rows] == [k // 2 for k in range(50)]


@pytest.mark.parametrize(("flags", "kept"), [(("--nosave",), False), ((), True),
                                             (("--nosave", "--save-crop"), True)])
def test_pixels_are_kept_behind_the_network_only_where_something_looks(nets, tmp_path, run, monkeypatch,
                                                                        flags, kept):
    gone: list[Yuv] = []
    monkeypatch.setattr(Yuv, "forget", lambda frame: gone.append(frame))
    film(tmp_path / "v.mp4", 6)
    code, out, _, _ = run("--weights", nets["good"], "--source", tmp_path / "v.mp4", *flags)
    assert "FPS the network within the run" in out, "it is not timed again unasked"
    assert code == 0 and "6 frames, 12 boxes" in out and len(gone) == (0 if kept else 6)


def test_ctrl_c_leaves_a_playable_video_and_ends_with_130(nets, tmp_path):
    film(tmp_path / "v.mp4", 800, fps=30.0)
    child = subprocess.Popen([sys.executable, "detect.py", "--weights", nets["good"], "--device", "cpu",
                              "--source", tmp_path / "v.mp4", "--project", tmp_path / "out", "--imgsz", "640",
                              "--threads", "1"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                             text=True)
    video = tmp_path / "out" / "exp" / "v.mp4"
    deadline = time.monotonic() + 90
    while not (video.is_file() and video.stat().st_size > 0) and time.monotonic() < deadline:
        time.sleep(0.02)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=90)
    assert child.returncode == 130 and "stopped by a signal" in err and "Traceback" not in err, err
    frames = json.loads((video.parent / "summary.json").read_text())["frames"]
    info = probe(video)
    assert 0 < frames < 800 and info.frames == frames and info.fps == pytest.approx(30)
    capture = cv2.VideoCapture(str(video))
    assert sum(1 for _ in iter(lambda: capture.read()[0], False)) == frames
    assert f"{frames} frames" in out


def test_the_official_network_finds_the_buses_of_real_images(shared, tmp_path, run):
    """The first twelve buses of voc5 that fill more than 15 % of their image, at IoU 0.5 or more."""
    found = json.loads((shared / "voc5/annotations/instances_val.json").read_text())
    bus = next(category["id"] for category in found["categories"] if category["name"] == "bus")
    files = {image["id"]: image for image in found["images"]}
    large = [box for box in found["annotations"] if box["category_id"] == bus and box["area"] > 0.15
             * files[box["image_id"]]["width"] * files[box["image_id"]]["height"]][:12]
    paths = [(shared / "voc5/images" / files[box["image_id"]]["file_name"]).resolve() for box in large]
    (tmp_path / "list.txt").write_text("\n".join(map(str, paths)))
    weights = shared / "weights/yolov3-tiny.weights"
    code, _, _, folder = run("--weights", weights, "--source", tmp_path / "list.txt", "--nosave",
                             "--save-json", "--classes", "bus")
    rows = json.loads((folder / "predictions.json").read_text())
    hits = 0
    for position, box in enumerate(large, 1):
        x, y, w, h = box["bbox"]
        for a, b, c, d in (row["bbox"] for row in rows if row["image_id"] == position):
            inner = max(0, min(x + w, a + c) - max(x, a)) * max(0, min(y + h, b + d) - max(y, b))
            hits += inner / (w * h + c * d - inner) >= 0.5
    assert code == 0 and hits >= 9, f"{hits} of {len(large)} large buses found"
