"""Matching by what is predicted, against the papers' rules written as loops."""
import math

import pytest
import torch
from torchvision.ops import box_iou

from models.heads import assign
from models.heads.assign import Predictions, Truth, simota, task_aligned

SIDE, REACH = 64, 7


def scene(seed: int, boxes: list[tuple]) -> tuple[Predictions, Truth]:
    """Random predictions of two images on grids of 8 and 16 px, and boxes (image, class, xyxy px)."""
    draw = torch.Generator().manual_seed(seed)
    points, strides = [], []
    for stride in (16, 8):
        middles = (torch.arange(SIDE // stride) + 0.5) * stride
        y, x = torch.meshgrid(middles, middles, indexing="ij")
        points.append(torch.stack((x.reshape(-1), y.reshape(-1)), 1))
        strides.append(torch.full((len(points[-1]),), float(stride)))
    points, strides = torch.cat(points), torch.cat(strides)
    away = torch.rand(2, len(points), 4, generator=draw) * 3 * strides[:, None]
    found = Predictions(torch.rand(2, len(points), 3, generator=draw),
                        torch.cat((points - away[..., :2], points + away[..., 2:]), 2), points, strides,
                        strides * REACH)
    rows = torch.tensor([[float(v) for v in box] for box in boxes])
    return found, Truth(rows[:, 0].long(), rows[:, 1].long(), rows[:, 2:])


BOXES = [(0, 0, 4, 4, 30, 28), (0, 2, 10, 6, 60, 62), (0, 1, 12, 8, 29, 25), (1, 1, 20, 20, 23, 23),
         (1, 1, 0, 0, 64, 64)]


def middles_inside(found, box) -> list[int]:
    """Positions of the predictions whose cell's middle lies in the box; else the nearest of the finest."""
    x1, y1, x2, y2 = box
    at = [p for p, (x, y) in enumerate(found.points.tolist()) if x1 < x < x2 and y1 < y < y2]
    reached = [p for p in at for x, y in [found.points[p].tolist()]
               if max(x - x1, y - y1, x2 - x, y2 - y) <= float(found.reach[p])]
    fine = [p for p in range(len(found.points)) if found.strides[p] == found.strides.min()]
    middle = ((x1 + x2) / 2, (y1 + y2) / 2)
    return reached or at or [min(fine, key=lambda p: math.dist(found.points[p].tolist(), middle))]


def resolved(picks: dict, worth) -> dict:
    """prediction -> box, of the boxes that picked it the worthiest."""
    out = {}
    for row, places in picks.items():
        for place in places:
            if place not in out or worth(row, place) > worth(out[place], place):
                out[place] = row
    return out


def overlaps(found, truth) -> list:
    return [box_iou(box[None], found.boxes[image])[0].tolist()
            for box, image in zip(truth.boxes, truth.image.tolist())]


@pytest.mark.parametrize("seed", range(4))
def test_task_aligned_matches_are_those_of_a_loop(seed, monkeypatch):
    monkeypatch.setattr(assign, "PICKS", 5)
    found, truth = scene(seed, BOXES)
    iou = overlaps(found, truth)

    def alignment(row, p):
        score = float(found.scores[truth.image[row], p, truth.label[row]])
        return score * max(iou[row][p], 1e-3) ** 6
    picks = {}
    for row, box in enumerate(truth.boxes.tolist()):
        best = sorted(middles_inside(found, box), key=lambda p: -alignment(row, p))[:5]
        picks[row] = [(int(truth.image[row]), p) for p in best]
    wanted = resolved(picks, lambda row, place: iou[row][place[1]])
    mine = task_aligned(found, truth)
    assert dict(zip(zip(mine.image.tolist(), mine.at.tolist()), mine.row.tolist())) == wanted
    for (_, p), row, quality in zip(zip(mine.image, mine.at.tolist()), mine.row.tolist(), mine.quality):
        own = [place[1] for place, other in wanted.items() if other == row]
        scale = max(0.1, max(iou[row][q] for q in own)) / max(alignment(row, q) for q in own)
        assert float(quality) == pytest.approx(alignment(row, p) * scale, rel=1e-3)


@pytest.mark.parametrize("seed", range(4))
def test_simota_s_matches_are_those_of_a_loop(seed):
    found, truth = scene(seed, BOXES)
    iou = overlaps(found, truth)

    def cost(row, p):
        x1, y1, x2, y2 = truth.boxes[row].tolist()
        x, y = found.points[p].tolist()
        both = p in middles_inside(found, (x1, y1, x2, y2)) and central(row, p)
        chances = found.scores[truth.image[row], p].tolist()
        entropy = -sum(math.log(c if k == int(truth.label[row]) else 1 - c) for k, c in enumerate(chances))
        return entropy - 3 * math.log(iou[row][p] + 1e-8) + (0 if both else 1e5)

    def central(row, p):
        x1, y1, x2, y2 = truth.boxes[row].tolist()
        x, y = found.points[p].tolist()
        return max(abs(x - (x1 + x2) / 2), abs(y - (y1 + y2) / 2)) < 2.5 * float(found.strides[p])
    picks = {}
    for row, box in enumerate(truth.boxes.tolist()):
        near = [p for p in range(len(found.points)) if p in middles_inside(found, box) or central(row, p)]
        count = max(1, int(sum(sorted((iou[row][p] for p in near), reverse=True)[:10])))
        picks[row] = [(int(truth.image[row]), p) for p in sorted(near, key=lambda p: cost(row, p))[:count]]
    wanted = resolved(picks, lambda row, place: -cost(row, place[1]))
    mine = simota(found, truth)
    assert dict(zip(zip(mine.image.tolist(), mine.at.tolist()), mine.row.tolist())) == wanted
    for p, row, quality in zip(mine.at.tolist(), mine.row.tolist(), mine.quality.tolist()):
        assert quality == pytest.approx(iou[row][p], abs=1e-5)


@pytest.mark.parametrize("rule", [task_aligned, simota])
def test_a_box_between_all_middles_has_the_nearest_cell_of_the_finest_grid(rule):
    found, truth = scene(0, [(0, 1, 21, 21, 22, 22)])
    mine = rule(found, truth)
    assert 16 + 2 * 8 + 2 in mine.at.tolist() and set(mine.row.tolist()) == {0}
    assert (mine.quality >= 0).all() and float(mine.quality.max()) <= 1


@pytest.mark.parametrize("rule", [task_aligned, simota])
def test_of_boxes_on_each_other_the_first_has_the_predictions_and_none_is_taken_twice(rule):
    box = (8, 8, 40, 40)
    found, truth = scene(1, [(1, 2, *box), (1, 2, *box), (1, 0, 10, 10, 38, 38)])
    mine = rule(found, truth)
    places = list(zip(mine.image.tolist(), mine.at.tolist()))
    assert len(places) == len(set(places)) and set(mine.image.tolist()) == {1} and 1 not in mine.row.tolist()


@pytest.mark.parametrize("rule", [task_aligned, simota])
def test_nothing_is_matched_where_there_is_no_box(rule):
    found, _ = scene(0, BOXES)
    mine = rule(found, Truth(torch.zeros(0).long(), torch.zeros(0).long(), torch.zeros(0, 4)))
    assert all(len(part) == 0 for part in mine)
