"""web/detect.js gives what data/augment.py, models/heads/ and utils/boxes.py give: run by node, without a
browser."""
import json
import shutil
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from data.augment import letterbox
from models.heads.anchor import AnchorHead
from models.heads.free import FreeHead
from models.heads.nms import detections
from models.heads.yolox import YoloxHead
from models.layer import Layer
from utils.boxes import letterbox_geometry, scale_back

PLACE = ("scale", "left", "top", "width", "height")
SHAPES = [(375, 500), (500, 333), (720, 1280), (1000, 777), (416, 416), (208, 208), (100, 60), (415, 417),
          (832, 832), (1, 3000), (417, 416), (400, 300)]
HEADS = tuple(AnchorHead(Layer("head", "head", ("x",), 24, anchors=anchors, xy_scale=reach), stride)
              for anchors, stride, reach in (
                  (((10.0, 14.0), (23.0, 27.0), (37.0, 58.0)), 16, 2.0),
                  (((81.0, 82.0), (135.0, 169.0), (344.0, 319.0)), 32, 1.0)))
YOLOX = tuple(YoloxHead(Layer("head", "head", ("x",), 9), stride) for stride in (16, 32))
FREE = tuple(FreeHead(Layer("head", "head", ("x",), 36, bins=8, centre=centre), stride)
             for centre, stride in ((0.5, 16), (0.0, 32)))
LIMITS = [(0.25, 0.45, 300), (0.001, 0.6, 100), (0.6, 0.0, 300), (0.3, 1.0, 7), (0.0, 0.5, 300),
          (1.0, 0.5, 300)]
SIZES = [(w, h, s) for w in (1, 2, 3, 333, 640, 1919) for h in (1, 5, 479, 1080) for s in (32, 320, 416)]


def images() -> list[np.ndarray]:
    """Smooth images with noise and hard edges, one a shape."""
    draw, made = np.random.default_rng(3), []
    for height, width in SHAPES:
        rough = draw.integers(0, 256, (max(1, height // 9), max(1, width // 9), 3)).astype(np.uint8)
        image = cv2.resize(rough, (width, height), interpolation=cv2.INTER_CUBIC)
        made.append(np.clip(image + draw.integers(-20, 20, image.shape), 0, 255).astype(np.uint8))
    return made


def random_maps(number: int, classes: int, anchors: int = 3) -> list[torch.Tensor]:
    """Raw maps with a few sure cells; the last sets have absurd and non-finite numbers."""
    draw = torch.Generator().manual_seed(number)
    maps = [torch.randn(1, anchors, 5 + classes, cells, cells, generator=draw) * 1.5 for cells in (10, 5)]
    for m in maps:
        m[:, :, 4] -= 2.0
    if number >= 4:
        maps[0][0, -2 % anchors, 3, 2, 2], maps[0][0, -2 % anchors, 4, 2, 2] = 60.0, 9.0
        maps[0][0, -2 % anchors, 5:, 2, 2] = 9.0
        maps[1][0, 0, 7, 1, 1] = float("nan")
        maps[1][0, -1, 4, 4, 4] = float("inf")
    return maps


def random_free(number: int) -> list[torch.Tensor]:
    """Raw maps of heads without anchors, 4 classes, as above."""
    draw = torch.Generator().manual_seed(number)
    maps = [torch.randn(1, 36, cells, cells, generator=draw) * 1.5 for cells in (10, 5)]
    if number >= 4:
        maps[0][0, 30, 2, 2], maps[1][0, 2, 1, 1] = float("nan"), float("inf")
    return maps


CASES = [(heads, made, limits) for heads, make in (
             (HEADS, lambda k: random_maps(k, 4)), (FREE, random_free),
             (YOLOX, lambda k: random_maps(k, 4, 1)))
         for made, limits in ((make(k), limits) for k, limits in enumerate(LIMITS))]


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> tuple[dict, dict, Path]:
    """The cases, what JavaScript answered, and the folder of its images."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs node, absent here")
    folder = tmp_path_factory.mktemp("web")
    cases: dict = {"letterboxes": [], "maps": [], "boxes": [], "sizes": SIZES}
    for k, image in enumerate(images()):
        rgba = np.concatenate((image, np.full((*image.shape[:2], 1), 255, np.uint8)), 2)
        rgba.tofile(folder / f"picture{k}")
        height, width = image.shape[:2]
        cases["letterboxes"].append({"file": f"picture{k}", "width": width, "height": height, "size": 416})
    for k, (heads, made, (conf, iou, most)) in enumerate(CASES):
        files = []
        for m in made:
            name = f"maps{k}.{m.shape[-1]}"
            m.numpy().tofile(folder / name)
            files.append({"file": name, "cells": m.shape[-1]})
        limits = {"conf": conf, "iou": iou, "maxDet": most}
        told = [{"kind": h.kind, "stride": h.stride, **h.metadata()} for h in heads]
        cases["maps"].append({"files": files, "heads": told, "limits": limits})
    rows = np.random.default_rng(0).uniform(-30, 450, (40, 6)).tolist()
    cases["boxes"] = [{"rows": rows, "width": w, "height": h, "size": 416}
                      for w, h in ((500, 375), (90, 1000))]
    (folder / "cases.json").write_text(json.dumps(cases))
    script = Path(__file__).with_name("web_detect.mjs")
    subprocess.run([node, script, folder], check=True, capture_output=True, text=True)
    return cases, json.loads((folder / "answers.json").read_text()), folder


def test_an_image_lies_where_python_puts_it(both):
    _, answers, _ = both
    for (width, height, size), found in zip(SIZES, answers["sizes"], strict=True):
        assert tuple(found[name] for name in PLACE) == tuple(letterbox_geometry(height, width, size))


def test_letterboxed_pixels_differ_from_python_s_by_one_at_most(both):
    _, answers, folder = both
    for k, image in enumerate(images()):
        wanted, place = letterbox(image, 416)
        found = np.fromfile(folder / f"picture{k}.out", np.uint8).reshape(3, 416, 416).transpose(1, 2, 0)
        off = np.abs(found.astype(int) - wanted)
        assert tuple(answers["letterboxes"][k][name] for name in PLACE) == tuple(place)
        assert off.max() <= 1 and off.mean() < 0.002, (image.shape, off.max(), off.mean())


def test_boxes_of_random_maps_are_python_s_in_the_same_order(both):
    _, answers, _ = both
    counts = []
    for (heads, made, limits), found in zip(CASES, answers["maps"], strict=True):
        wanted = detections(made, heads, *limits)
        rows = np.array(found["boxes"], float).reshape(-1, 6)
        assert rows.shape == wanted.boxes[0].shape and found["dropped"] == wanted.dropped
        np.testing.assert_allclose(rows, wanted.boxes[0], rtol=1e-4, atol=1e-3)
        counts.append((len(rows), found["dropped"]))
    for first in range(0, len(counts), len(LIMITS)):
        own = counts[first:first + len(LIMITS)]
        assert max(n for n, _ in own) > 40 and max(d for _, d in own) >= 2 and own[-1][0] == 0


def test_boxes_return_to_the_image_as_in_python(both):
    cases, answers, _ = both
    for case, found in zip(cases["boxes"], answers["boxes"], strict=True):
        place = letterbox_geometry(case["height"], case["width"], case["size"])
        wanted = scale_back(np.array(case["rows"]), place, case["height"], case["width"])
        np.testing.assert_allclose(np.array(found), wanted, atol=1e-9)
