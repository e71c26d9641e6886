"""The ways to suppress overlapping boxes, against a loop that goes down the scores, and torchvision's."""
import numpy as np
import pytest
import torch
from torchvision.ops import nms as torchvision_nms

from models.graph import heads_of
from models.heads import nms
from models.heads.nms import NMS, detections
from tests.helpers.nets import small_net
from utils.cli import FLAGS


def crowd(count: int, seed: int) -> np.ndarray:
    """Boxes [N, 4] around a few places, many of them on each other, fp32."""
    draw = np.random.default_rng(seed)
    low = draw.integers(0, 4, (count, 2)) * 60 + draw.normal(0, 9, (count, 2))
    return np.concatenate((low, low + draw.uniform(20, 70, (count, 2))), 1).astype(np.float32)


def greedy(boxes: np.ndarray, limit: float, diou: bool) -> list[int]:
    kept: list[int] = []
    for k, (x1, y1, x2, y2) in enumerate(boxes.astype(float)):
        for a1, b1, a2, b2 in boxes[kept].astype(float):
            inner = max(0, min(x2, a2) - max(x1, a1)) * max(0, min(y2, b2) - max(y1, b1))
            value = inner / ((x2 - x1) * (y2 - y1) + (a2 - a1) * (b2 - b1) - inner)
            if diou:
                away = ((x1 + x2 - a1 - a2) / 2) ** 2 + ((y1 + y2 - b1 - b2) / 2) ** 2
                value -= away / ((max(x2, a2) - min(x1, a1)) ** 2 + (max(y2, b2) - min(y1, b1)) ** 2)
            if value > limit:
                break
        else:
            kept.append(k)
    return kept


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("limit", [0.0, 0.3, 0.6])
def test_every_way_keeps_what_a_loop_keeps(limit, seed):
    boxes = crowd(300, seed)
    plain = greedy(boxes, limit, diou=False)
    assert NMS["standard"](boxes, limit, 300) == NMS["cluster"](boxes, limit, 300) == plain
    assert torchvision_nms(torch.from_numpy(boxes), -torch.arange(300.0), limit).tolist() == plain
    by_distance = greedy(boxes, limit, diou=True)
    assert NMS["diou"](boxes, limit, 300) == by_distance and len(by_distance) > len(plain)
    assert [way(boxes, limit, 5) for way in NMS.values()] == [plain[:5], by_distance[:5], plain[:5]]


def test_a_cluster_takes_as_many_passes_as_its_chain_is_long_and_no_boxes_are_no_boxes():
    chain = np.array([[10 * k, 0, 10 * k + 30, 30] for k in range(20)], np.float32)    # each hides the next
    assert NMS["cluster"](chain, 0.4, 99) == greedy(chain, 0.4, diou=False) == list(range(0, 20, 2))
    assert all(way(np.zeros((0, 4), np.float32), 0.5, 9) == [] for way in NMS.values())


def test_the_flag_names_the_ways_and_boxes_beyond_what_nms_takes_are_counted(monkeypatch):
    assert set(FLAGS["nms"]["choices"]) == set(NMS) and FLAGS["nms"]["default"] in NMS
    head, = heads_of(small_net())
    output = torch.randn(2, *head.shape, 6, 6, generator=torch.Generator().manual_seed(0))
    output[:, :, 2:4] *= 0.3
    whole = {way: detections([output], [head], 0.05, 0.4, 500, nms=way) for way in NMS}
    assert whole["standard"].cut == 0
    for mine, theirs in zip(whole["standard"].boxes, whole["cluster"].boxes):
        np.testing.assert_array_equal(mine, theirs)
    assert sum(map(len, whole["diou"].boxes)) > sum(map(len, whole["standard"].boxes))
    every = sum(len(boxes) for boxes in detections([output], [head], 0.05, 1.0, 500).boxes)
    monkeypatch.setattr(nms, "MAX_CANDIDATES", 10)
    assert detections([output], [head], 0.05, 0.4, 500).cut == every - 20
