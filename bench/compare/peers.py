"""Networks of ultralytics, trained by its own command in the user's environment, judged by our evaluation.

Nothing of it is imported: `VENV/bin/yolo` runs as a process, on links to the set in its own layout, and
leaves text files. Curves are its own figures; what tables say is ours, of the boxes that it wrote.
"""
from __future__ import annotations

import csv
import json
import os
import subprocess
import time
from pathlib import Path

import numpy as np

from bench.compare.config import EPOCHS, CompareConfig
from bench.compare.judge import figures
from data.coco.read import CocoSet
from evaluation.evaluate import written
from evaluation.metrics import Metrics, evaluate_detections
from training.finetune import Tuner
from utils import runs
from utils.errors import EnvironmentFault

COLUMNS = {"train/box_loss": "box", "train/cls_loss": "cls", "train/dfl_loss": "dfl", "train/obj_loss": "obj",
           "metrics/precision(B)": "precision", "metrics/recall(B)": "recall", "metrics/mAP50(B)": "map50",
           "metrics/mAP50-95(B)": "map50_95", "time": "seconds"}
CONF, IOU, BOXES = 0.001, 0.7, 100                         # its own of a validation, COCO's number of boxes


def label(yaml: str) -> str:
    """Return how a peer is called."""
    return f"ultralytics:{Path(yaml).stem}"


def run(tuner: Tuner, config: CompareConfig, point: dict, folder: Path,
        epochs: int | None = None) -> dict[str, object]:
    """Return the record of a peer's training; "onnx" is its file to be timed.

    epochs: those within --minutes by --rates; None: its own program keeps the minutes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    data = write_yolo(tuner.train_set.coco, tuner.val_set.coco, tuner.folder / "yolo")
    yaml = next(name for name in config.peer_nets if label(name) == point["net"])
    place, budget = [f"project={folder.resolve()}", "exist_ok=True"], point["budget"]
    epochs = config.epochs if budget == EPOCHS else epochs
    spend = [f"epochs={epochs}"] if epochs else ["epochs=1000", f"time={config.minutes / 60}"]
    shared = [f"data={data.resolve()}", f"imgsz={config.imgsz}", f"batch={config.batch_size}", "workers=1",
              f"device={'cpu' if tuner.device.type == 'cpu' else 0}"]
    began, last = time.monotonic(), folder / "train/weights/last.pt"
    start = [f"model={yaml}", "pretrained=False"]
    start = [f"model={last.resolve()}", "resume=True"] if last.is_file() else start
    _yolo(config, "train", *start, *spend, *shared, f"seed={point['seed']}", "plots=False", "name=train",
          *place)
    seconds, best = time.monotonic() - began, (folder / "train/weights/best.pt").resolve()
    _yolo(config, "val", f"model={best}", *shared, "save_txt=True", "save_conf=True", f"conf={CONF}",
          f"iou={IOU}", f"max_det={BOXES}", "plots=False", "name=val", *place)
    _yolo(config, "export", f"model={best}", "format=onnx", f"imgsz={config.imgsz}", needed=False)
    judged = figures(*judged_of(tuner.val_set.coco, folder / "val/labels"))
    onnx = best.with_suffix(".onnx")
    curves = read_curves(folder / "train/results.csv")
    return {**judged, "parameters": _parameters(onnx), "macs": None, "moved": None,
            "epochs": len(curves), "seconds": round(seconds, 1), "curves": curves,
            "onnx": str(onnx) if onnx.is_file() else None}


def _yolo(config: CompareConfig, what: str, *words: str, needed: bool = True) -> None:
    """Run its command. Raises EnvironmentFault with its last lines where it fails and is `needed`."""
    command = [str((Path(config.peers) / "bin" / "yolo").absolute()), "detect", what, *words]
    command = [part for part in command if part != "detect" or what != "export"]
    threads = {"OMP_NUM_THREADS": str(config.threads)} if config.threads else {}
    out = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **threads})
    if out.returncode and needed:
        said = " / ".join((out.stderr or out.stdout).strip().splitlines()[-3:])
        raise EnvironmentFault(f"{' '.join(command)} ended with {out.returncode}: {said[-400:]}; "
                               "the same command continues once it is put right")


def write_yolo(train: CocoSet, val: CocoSet, folder: Path) -> Path:
    """Return the YAML of the set in YOLO's layout: links to the images, a line a box, crowds left out.

    Images are called by their place, so that two of one name stay two.
    """
    lines = [f"path: {folder.resolve()}", "train: images/train", "val: images/val", "names:"]
    for split, coco in (("train", train), ("val", val)):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True, exist_ok=True)
        for at, record in enumerate(coco.images):
            link = folder / "images" / split / f"{at}{record.path.suffix}"
            if not link.is_symlink():
                link.symlink_to(record.path.resolve())
            side = np.array([record.width, record.height] * 2, float)
            boxes = record.boxes[:, 1:].astype(float) / side
            middle = np.hstack(((boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]))
            rows = [" ".join([str(int(k)), *(f"{v:.6f}" for v in box)])
                    for k, box in zip(record.boxes[:, 0], middle)]
            runs.write_text(folder / "labels" / split / f"{at}.txt", "".join(f"{row}\n" for row in rows))
    lines += [f"  {k}: {json.dumps(name, ensure_ascii=False)}" for k, name in enumerate(train.names)]
    runs.write_text(folder / "data.yaml", "\n".join(lines) + "\n")
    return folder / "data.yaml"


def judged_of(coco: CocoSet, labels: Path) -> tuple[Metrics, dict, np.ndarray]:
    """Return our metrics of the boxes in its text files (class, cx, cy, w, h normalised, score).

    And what they are of: the set's COCO dict and the boxes [D, 7].
    """
    found = []
    for at, record in enumerate(coco.images):
        file = labels / f"{at}.txt"
        if not file.is_file():                             # it writes none for an image without a box
            continue
        rows = np.array([line.split() for line in file.read_text().splitlines()], float).reshape(-1, 6)
        side = np.array([record.width, record.height], float)
        middle, half = rows[:, 1:3] * side, rows[:, 3:5] * side / 2
        found.append(np.column_stack((np.full(len(rows), at), middle - half, middle + half, rows[:, [5, 0]])))
    truth, rows = written(coco, np.concatenate(found) if found else np.zeros((0, 7)))
    return evaluate_detections(truth, rows, coco.names, max_det=BOXES), truth, rows


def read_curves(file: Path) -> list[dict[str, float]]:
    """Return the rows of its results.csv under our names, with F1 of its precision and recall."""
    out = []
    for at, row in enumerate(csv.DictReader(file.read_text(encoding="utf-8").splitlines())):
        found = {ours: float(row[key]) for key in row if (ours := COLUMNS.get(key.strip()))}
        p, r = found.get("precision", 0.0), found.get("recall", 0.0)
        out.append({"epoch": at, **found, "f1": 2 * p * r / (p + r) if p + r else 0.0})
    return out


def _parameters(path: Path) -> int | None:
    """Return the numbers that an ONNX file holds, its batch-norms folded; None without the file."""
    if not path.is_file():
        return None
    from utils.optional import needs
    onnx = needs("onnx", "to count a peer's parameters")
    return sum(int(np.prod(tensor.dims)) for tensor in onnx.load(path).graph.initializer)
