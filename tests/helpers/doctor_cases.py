"""A small data set to spoil, and the doctor called on it as from the command line."""
import io
import json
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import cv2
import numpy as np
import pytest

from data.doctor.__main__ import main
from utils import cli

SIDE = 96


def photo(seed: int, side: int = SIDE) -> np.ndarray:
    """An image uint8 [side, side, 3] of smooth random shapes, different for every seed."""
    noise = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    return cv2.resize(noise, (side, side), interpolation=cv2.INTER_CUBIC)


def content_of(split: str, count: int) -> dict:
    """A faultless COCO content of two classes, ids of its own."""
    first = 1 if split == "train" else 100
    images = [{"id": first + i, "file_name": f"{split} {i}.jpg", "width": SIDE, "height": SIDE}
              for i in range(count)]
    notes = [{"id": 2 * i + k + 1, "image_id": first + i, "category_id": 3 * k + 2, "iscrowd": 0,
              "area": 600.0, "bbox": [5.0 + i, 10.0, 20.0 + 20 * k, 30.0]}
             for i in range(count) for k in (0, 1)]
    categories = [{"id": 2, "name": "cup"}, {"id": 5, "name": "杯"}]
    return {"images": images, "annotations": notes, "categories": categories}


def write(root: Path, split: str, content: dict) -> None:
    text = json.dumps(content, ensure_ascii=False)
    (root / "annotations" / f"instances_{split}.json").write_text(text, encoding="utf-8")


class Ended(NamedTuple):
    """How the doctor ended and what it printed."""

    returncode: int
    stdout: str
    stderr: str


def doctor(root: object, *flags: object) -> Ended:
    """The doctor as typed on the command line, without the cost of a process."""
    out, err = io.StringIO(), io.StringIO()
    words = ["doctor", *map(str, (root, *flags))]
    with mock.patch.object(sys, "argv", words), redirect_stdout(out), redirect_stderr(err):
        with pytest.raises(SystemExit) as end:
            cli.run(main)
    return Ended(end.value.code or 0, out.getvalue(), err.getvalue())


def diagnosis(root: Path, *flags: object, file: Path | None = None,
              ) -> tuple[dict[str, dict], dict, Ended]:
    """Faults by rule over all parts, the whole JSON report, and how the doctor ended."""
    file = file or root.parent / "report.json"
    ended = doctor(root, "--json", file, *flags)
    assert file.is_file(), ended.stdout + ended.stderr
    report = json.loads(file.read_text(encoding="utf-8"))
    return {fault["rule"]: fault for faults in report["faults"].values() for fault in faults}, report, ended


def digest(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
