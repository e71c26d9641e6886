"""Anchors: fitted boxes against known clusters, brute force, and the real photographs."""
import json

import numpy as np
import pytest

from data.anchors import anchor_recall, fit_anchors
from utils.errors import DataError

TINY = [(10, 14), (23, 27), (37, 58), (81, 82), (135, 169), (344, 319)]


def _iou_of_pair(a: tuple, b: tuple) -> float:
    inner = min(a[0], b[0]) * min(a[1], b[1])
    return inner / (a[0] * a[1] + b[0] * b[1] - inner)


def test_well_separated_clusters_are_found_within_two_percent():
    rng = np.random.default_rng(1)
    wanted = np.array([(12, 20), (60, 40), (150, 300)], dtype=float)
    sizes = np.concatenate([centre * np.exp(rng.normal(0, 0.05, (200, 2))) for centre in wanted])
    assert np.allclose(fit_anchors(sizes, 3, seed=0), wanted, rtol=0.02)


def test_as_many_distinct_sizes_as_anchors_are_returned_as_they_are():
    sizes = np.array([(10, 10), (10, 10), (50, 20), (200, 210)], dtype=float)
    assert np.allclose(fit_anchors(sizes, 3), [(10, 10), (50, 20), (200, 210)], rtol=1e-3)


def test_same_seed_same_anchors_sorted_by_area():
    sizes = np.exp(np.random.default_rng(2).normal(3.5, 0.9, (500, 2)))
    first, second = fit_anchors(sizes, 6, seed=7), fit_anchors(sizes, 6, seed=7)
    assert first == second
    areas = [w * h for w, h in first]
    assert areas == sorted(areas) and len(first) == 6


def test_fitted_anchors_beat_random_choices_of_boxes():
    rng = np.random.default_rng(3)
    sizes = np.exp(rng.normal(3.5, 0.9, (800, 2)))
    fitted = anchor_recall(sizes, fit_anchors(sizes, 6))[0]
    drawn = [sizes[rng.choice(800, 6, replace=False)] for _ in range(200)]
    assert fitted > max(anchor_recall(sizes, [tuple(s) for s in some])[0] for some in drawn)


def test_recall_equals_a_plain_double_loop():
    sizes = np.exp(np.random.default_rng(4).normal(3, 1.5, (60, 2)))
    best = [max(_iou_of_pair(s, a) for a in TINY) for s in sizes]
    fits = [any(max(s[0] / a[0], a[0] / s[0], s[1] / a[1], a[1] / s[1]) < 4 for a in TINY) for s in sizes]
    mean, share = anchor_recall(sizes, TINY)
    assert mean == pytest.approx(np.mean(best)) and share == pytest.approx(np.mean(fits)) and 0 < share < 1


def test_no_boxes_have_no_recall():
    assert anchor_recall(np.zeros((0, 2)), TINY) == (None, None)


@pytest.mark.parametrize(("sizes", "count", "word"), [
    ([(10, 10), (10, 10)], 2, "only 1 different"), ([(10, 0)], 1, "positive"), ([(10, np.nan)], 1, "finite"),
    ([], 1, "only 0 different"), ([(1, 2)], 0, "one anchor or more")])
def test_impossible_requests_say_what_is_needed(sizes: list, count: int, word: str):
    with pytest.raises(ValueError, match=word):
        fit_anchors(np.array(sizes, dtype=float), count)


def test_ten_thousand_boxes_take_seconds_not_minutes():
    import time
    sizes = np.exp(np.random.default_rng(5).normal(3.5, 0.9, (10_000, 2)))
    start = time.process_time()
    fit_anchors(sizes, 9)
    assert time.process_time() - start < 10


def test_blood_cells_are_fitted_better_than_by_the_official_anchors(shared):
    raw = json.loads((shared / "bccd/annotations/instances_train.json").read_text())
    images = {image["id"]: image for image in raw["images"]}
    scale = {key: 416 / max(image["width"], image["height"]) for key, image in images.items()}
    sizes = np.array([np.array(a["bbox"][2:]) * scale[a["image_id"]] for a in raw["annotations"]])
    sizes = sizes[(sizes > 1).all(1)]
    assert anchor_recall(sizes, fit_anchors(sizes, 6))[0] > anchor_recall(sizes, TINY)[0] + 0.05


def test_boxes_too_small_for_any_anchor_are_said():
    sizes = np.exp(np.random.default_rng(0).normal(-3.5, 0.2, (50, 2)))
    with pytest.raises(DataError, match="anchors that fit have sides of .* raise --imgsz"):
        fit_anchors(sizes, 3)


def test_the_doctor_advises_fitted_anchors_where_boxes_are_alike():
    from data.doctor.report import _anchors
    from data.doctor.survey import ALIKE, anchor_fits
    rng = np.random.default_rng(0)
    alike = rng.normal((60, 60), 3, (300, 2))
    many = np.exp(rng.uniform(np.log(8), np.log(400), (300, 2)))
    for sizes, said in ((alike, "--fit-anchors helps"), (many, "train without --fit-anchors"),
                        (alike[:1], "too few different boxes")):
        fits = anchor_fits(sizes, 6, 0)
        assert said in _anchors(fits)
        assert ("fitted" in fits) == (len(sizes) > 1)
    tight, loose = (anchor_fits(sizes, 6, 0)["fitted"]["mean_iou"] for sizes in (alike, many))
    assert tight > ALIKE > loose
