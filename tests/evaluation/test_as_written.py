"""AP of an evaluation is that of pycocotools, run by itself on the user's own JSON file."""
import contextlib
import copy
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from data.coco.read import read_coco
from data.dataset import DetectionSet
from data.loader import make_loader
from evaluation.evaluate import evaluate
from tests.helpers.coco_cases import twelve

SIDE = 64


def random_set(rng: np.random.Generator) -> dict:
    """A COCO file with gapped ids, crowds, repeated, empty and overhanging boxes, images without any."""
    ids = rng.permutation(1000)[:9]
    images = [{"id": int(i) + 7, "file_name": f"{i}.png", "width": SIDE, "height": 48} for i in ids]
    categories = [{"id": int(i) * 3 + 2, "name": f"c{i}"} for i in rng.permutation(20)[:4]]
    notes: list[dict] = []
    for image in images[2:]:                               # two without a box
        for _ in range(int(rng.integers(0, 7))):
            x, y, w, h = (round(float(v), 2) for v in (*rng.uniform(0, 40, 2), *rng.uniform(0, 34, 2)))
            notes.append({"image_id": image["id"], "category_id": categories[int(rng.integers(3))]["id"],
                          "bbox": [x, y, w, h], "area": round(w * h * float(rng.uniform(.5, 1.1)), 2),
                          "iscrowd": int(rng.random() < .12)})
    notes += copy.deepcopy([notes[int(i)] for i in rng.integers(0, len(notes), 4)])
    notes += [{**notes[0], "bbox": [5.0, 5.0, 0.0, 9.0], "area": 0.0},
              {**notes[1], "bbox": [70.0, 5.0, 9.0, 9.0], "area": 81.0}]
    for note, number in zip(notes, rng.permutation(5000)[:len(notes)]):
        note["id"] = int(number) + 1
    return {"images": images, "categories": categories, "annotations": notes}


class Guesses:
    """In place of a network: boxes near the ground truth and beside it, in px of the letterboxed input."""

    thresholds, lanes = (0.001, 0.6, 100), 1

    def __init__(self, rows: list[np.ndarray]) -> None:
        self.rows = iter(rows)

    def __call__(self, images: torch.Tensor) -> list[torch.Tensor]:
        return [torch.from_numpy(next(self.rows)) for _ in images]


def guesses(coco: dict, rng: np.random.Generator) -> list[np.ndarray]:
    """Detections [N, 6] (xyxy px of the input, score, class) of each image in turn."""
    order = sorted(c["id"] for c in coco["categories"])
    found = []
    for image in coco["images"]:
        rows = [[x + dx, y + 8 + dy, x + w + dx, y + h + 8 + dy, round(rng.random(), 1),      # many equal
                 order.index(a["category_id"])]
                for a in coco["annotations"] if a["image_id"] == image["id"]
                for x, y, w, h in [a["bbox"]] for dx, dy in rng.normal(0, 1.5, (2, 2))]
        found.append(np.array(rows, float).reshape(-1, 6))
    return found


def by_itself(file: Path, results: list[dict]) -> list[float]:
    """pycocotools' twelve numbers of results for an untouched file."""
    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO(str(file))
        run = COCOeval(reference, reference.loadRes(results), "bbox")
        run.evaluate(), run.accumulate(), run.summarize()
    return list(run.stats)


@pytest.mark.parametrize("seed", range(30))
def test_ap_is_pycocotools_on_the_users_own_file(tmp_path: Path, seed: int):
    rng = np.random.default_rng(seed)
    original = random_set(rng)
    (tmp_path / "set.json").write_text(json.dumps(original))
    for image in original["images"]:
        Image.new("RGB", (SIDE, 48)).save(tmp_path / image["file_name"])
    coco = read_coco(tmp_path / "set.json", tmp_path)
    assert {"duplicate-box", "empty-box", "box-outside-image"} <= {f.rule for f in coco.faults}
    dataset = DetectionSet(coco, SIDE, cache="off")
    finder = Guesses(guesses(original, rng))
    batches = make_loader(dataset, 4, shuffle=False, workers=0)
    metrics, found = evaluate(finder, dataset, batches, progress=False)
    ids, order = [i["id"] for i in original["images"]], sorted(c["id"] for c in original["categories"])
    results = [{"image_id": ids[int(i)], "bbox": [x1, y1, x2 - x1, y2 - y1], "score": score,
                "category_id": order[int(k)]} for i, x1, y1, x2, y2, score, k in found.tolist()]
    assert np.allclose(twelve(metrics), by_itself(tmp_path / "set.json", results), rtol=0, atol=1e-9)


def test_what_is_learned_is_clean_where_what_is_measured_is_not(tmp_path: Path):
    Image.new("RGB", (SIDE, 48)).save(tmp_path / "a.png")
    box = {"image_id": 1, "category_id": 1, "bbox": [50, 3, 20.5, 9], "area": 90, "iscrowd": 0}
    made = {"images": [{"id": 1, "file_name": "a.png", "width": SIDE, "height": 48}],
            "categories": [{"id": 1, "name": "c"}],
            "annotations": [{**box, "id": 4}, {**box, "id": 9}, {**box, "id": 10, "bbox": [1, 2, -3, 4]}]}
    (tmp_path / "set.json").write_text(json.dumps(made))
    coco = read_coco(tmp_path / "set.json", tmp_path)
    assert coco.images[0].boxes.tolist() == [[0, 50, 3, 64, 12]]
    assert [a["bbox"] for a in coco.as_written()[0]["annotations"]] == [[50, 3, 20.5, 9]] * 2
