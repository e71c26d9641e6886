"""The pass over a data set: geometry of mixed image sizes, classes by name, timing, and stopping."""
import time
from threading import Lock
from typing import NamedTuple

import numpy as np
import pytest
import torch

from evaluation import evaluate
from evaluation.evaluate import (
    Finder,
    Stopwatch,
    collect_detections,
    image_batches,
    matching_classes,
    one_thread_each,
    shares,
)
from models.heads.nms import Found
from utils.boxes import letterbox_geometry
from utils.errors import DataError, Interrupted, ModelError

SIZES = [(200, 320), (300, 100), (64, 64), (333, 501), (1000, 37)]         # height, width


class Batch(NamedTuple):
    """A batch as the loader gives it."""

    images: torch.Tensor
    indices: list[int]


def in_input(box: list[float], size: tuple[int, int], side: int | tuple[int, int]) -> list[float]:
    """An xyxy box in px of an image of (height, width), in px of its letterboxed input."""
    geometry = letterbox_geometry(*size, side)
    sx, sy = geometry.width / size[1], geometry.height / size[0]
    return [box[0] * sx + geometry.left, box[1] * sy + geometry.top, box[2] * sx + geometry.left,
            box[3] * sy + geometry.top]


@pytest.mark.parametrize("side", [(96, 96), (64, 160)])
def test_boxes_come_back_to_their_own_images_in_any_order(side):
    ground_truth = [[1.0, 2.0, w - 3.0, h - 4.0] for h, w in SIZES]
    order, seen = [3, 1, 4, 0, 2], []

    def predict(images: torch.Tensor) -> list[torch.Tensor]:
        out = []
        for _ in images:
            position = order[len(seen)]
            seen.append(position)
            corner = in_input(ground_truth[position], SIZES[position], side)
            rows = [[*corner, 0.9, position]] * (position % 3)             # none, one, two
            out.append(torch.tensor(rows).reshape(-1, 6))
        return out
    batches = [Batch(torch.zeros(2, 3, *side, dtype=torch.uint8), order[:2]),
               Batch(torch.zeros(3, 3, *side, dtype=torch.uint8), order[2:])]
    rows = collect_detections(batches, predict, SIZES)
    assert rows.dtype == np.float64 and rows[:, 0].tolist() == [1, 4, 2, 2] == rows[:, 6].tolist()
    for row in rows:
        assert row[1:5] == pytest.approx(ground_truth[int(row[0])], abs=1e-3)
        assert row[5] == pytest.approx(0.9)


def test_boxes_that_reach_into_the_border_are_cut_at_the_image():
    rows = collect_detections([Batch(torch.zeros(1, 3, 64, 64, dtype=torch.uint8), [0])],
                              lambda images: [torch.tensor([[-50.0, -50, 900, 900, 0.5, 1]])], [(200, 320)])
    assert rows.tolist() == [[0, 0, 0, 320, 200, 0.5, 1]]


def test_no_images_and_no_boxes_are_empty_rows():
    assert collect_detections([], list, []).shape == (0, 7)
    none = collect_detections([Batch(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), [0])],
                              lambda images: [torch.zeros(0, 6)], [(20, 20)])
    assert none.shape == (0, 7)


def test_poll_ends_the_pass_after_the_batch_at_hand():
    seen = []

    def poll() -> None:
        if len(seen) == 2:
            raise Interrupted("stopped", 143)

    def predict(images: torch.Tensor) -> list[torch.Tensor]:
        seen.append(len(images))
        return [torch.zeros(0, 6)]
    batches = [Batch(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), [i]) for i in range(5)]
    with pytest.raises(Interrupted):
        collect_detections(batches, predict, [(20, 20)] * 5, poll=poll)
    assert len(seen) == 2


def test_lanes_predict_side_by_side_on_one_thread_each_and_rows_come_in_order():
    running, at_once, threads, tried, guard = [], [], [], [], Lock()
    before = torch.get_num_threads()

    def predict(images: torch.Tensor) -> list[torch.Tensor]:
        mine = int(images[0, 0, 0, 0])
        with guard:
            running.append(mine)
            at_once.append(len(running))
            threads.append(torch.get_num_threads())
        time.sleep(0.05 if mine % 2 else 0.1)              # so that later ones are done first
        with guard:
            running.remove(mine)
            tried.append(mine)
        return [torch.tensor([[0.0, 0, 9, 9, 0.5, mine]])]
    batches = [Batch(torch.full((1, 3, 32, 32), i, dtype=torch.uint8), [i]) for i in range(6)]
    torch.set_num_threads(3)
    try:
        with one_thread_each(2):
            rows = collect_detections(batches, predict, [(20, 20)] * 6, lanes=2, tried=lambda: tried)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert rows[:, 0].tolist() == rows[:, 6].tolist() == [0, 1, 2, 3, 4, 5]
    assert at_once[:2] == [1, 1] and max(at_once) == 2, "the first is tried alone"
    assert set(threads) == {1}


def test_a_batch_is_divided_among_the_lanes_in_order():
    batches = [Batch(torch.arange(count).view(-1, 1, 1, 1), list(range(count))) for count in (5, 1, 4)]
    parts = list(shares(batches, 2))
    assert [part.indices for part in parts] == [[0, 1, 2], [3, 4], [0], [0, 1], [2, 3]]
    assert all(part.images.flatten().tolist() == part.indices for part in parts)


def test_classes_are_matched_by_name_whatever_their_order_or_case():
    model = ("person", "bicycle", "car", "Motor Cycle", "bus")
    assert matching_classes(model, ("Bus", "person", " motor cycle")) == [4, 0, 3]
    assert matching_classes(("Cat", "cat"), ("cat", "Cat")) == [1, 0]
    with pytest.raises(ModelError) as error:
        matching_classes(model, ("car", "tram", "Car"))
    assert "tram" in str(error.value) and "Motor Cycle" in str(error.value) and error.value.exit_code == 4


def test_the_finder_asks_for_the_wanted_classes_and_renames_them(monkeypatch):
    class Runtime:
        """Passes the images on as maps."""

        device, heads, lanes = torch.device("cpu"), ("a head",), 1

        def predict(self, images: torch.Tensor) -> list[torch.Tensor]:
            return [images]

    def decode(maps: list, heads: tuple, *thresholds: float, **how: object) -> Found:
        assert (heads, thresholds) == (("a head",), (0.1, 0.6, 7))
        assert how == {"classes": [4, 0, 3], "multi_label": True, "nms": "diou"}
        return Found([np.array([[0.0, 0, 9, 9, 0.8, 3], [0, 0, 9, 9, 0.7, 4]]), np.zeros((0, 6))], 2, 5)
    monkeypatch.setattr(evaluate, "detections", decode)
    finder = Finder(Runtime(), [4, 0, 3], 0.1, 0.6, 7, "diou")
    boxes = finder(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
    assert boxes[0][:, 5].tolist() == [2, 0] and boxes[0][:, 4].tolist() == pytest.approx([0.8, 0.7])
    assert boxes[1].shape == (0, 6) and (finder.dropped, finder.cut) == (2, 5)
    finder(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
    assert finder.dropped == 4 and set(finder.watch.seconds) == {"network", "boxes and NMS"}


def test_the_stopwatch_adds_up_blocks_and_waiting(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    watch = Stopwatch()
    for _ in range(3):
        with watch.stage("work"):
            pass
    assert list(watch.waits("waiting", "ab")) == ["a", "b"]
    assert watch.seconds == {"work": 3, "waiting": 3}                      # the end is waited for as well


class Plain:
    """A data set of images of one value, one of which may be damaged."""

    def __init__(self, count: int, damaged: int = -1) -> None:
        self.count, self.damaged = count, damaged

    def __len__(self) -> int:
        return self.count

    def plain(self, index: int) -> np.ndarray:
        if index == self.damaged:
            raise DataError(f"{index}: is damaged")
        return np.full((4, 4, 3), index, np.uint8)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_images_come_in_order_whoever_reads_them_and_a_damaged_one_is_named(workers):
    made = list(image_batches(Plain(7), 3, workers))
    assert [batch.indices for batch in made] == [[0, 1, 2], [3, 4, 5], [6]]
    assert [int(image[0, 0, 0]) for batch in made for image in batch.images] == list(range(7))
    assert made[2].images.shape == (1, 3, 4, 4) and made[0].images.dtype == np.uint8
    taken = image_batches(Plain(7, damaged=4), 2, workers)
    assert next(taken).indices == [0, 1] and next(taken).indices == [2, 3]
    with pytest.raises(DataError, match="4: is damaged"):
        next(taken)
