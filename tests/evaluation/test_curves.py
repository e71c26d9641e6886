"""Precision, recall, F1, confusion matrix and bootstrap against pycocotools' matching and counts by hand."""
import numpy as np
import pytest

from evaluation.coco_eval import own_ids, result_records
from evaluation.curves import bootstrap_map50, map50_of, match_at_50
from evaluation.metrics import evaluate_detections, matches_at
from tests.helpers.coco_cases import SQUARES, coco, crowded, plain_pycocotools, row


def test_the_matching_is_that_of_cocoeval_evalimgs():
    ground_truth, rows = crowded(seed=5)
    run = plain_pycocotools(ground_truth, rows)
    right, ignored, missing = set(), set(), 0
    for one in run.evalImgs:
        if one is not None and one["aRng"] == [0, 1e10]:
            ids = np.array(one["dtIds"], dtype=int) - 1
            right |= set(ids[(one["dtMatches"][0] > 0) & ~one["dtIgnore"][0]].tolist())
            ignored |= set(ids[one["dtIgnore"][0]].tolist())
            missing += int(((one["gtMatches"][0] == 0) & (one["gtIgnore"] == 0)).sum())
    clean, _ = own_ids(ground_truth)
    matches = match_at_50(clean, result_records(rows), rows, 100, 4)
    assert set(matches.row[matches.right].tolist()) == right
    assert set(matches.row[matches.ignored].tolist()) == ignored and ignored
    assert len(matches.target_image) - len(right) == missing
    assert len(matches.row) == len(rows)


def test_precision_recall_and_f1_equal_a_count_by_hand_at_every_confidence():
    ground_truth, rows = crowded(seed=2)
    out = evaluate_detections(ground_truth, rows, ("c0", "c1", "c2", "c3"))
    m, curves = out.matches, out.curves
    for at in (0, 137, 500, 730, 1000):
        confidence = curves.confidence[at]
        for k in range(4):
            shown = (m.score >= confidence) & (m.label == k)
            tp, fp = int((shown & m.right).sum()), int((shown & m.wrong).sum())
            targets = int((m.target_label == k).sum())
            assert curves.precision[k, at] == pytest.approx(tp / (tp + fp) if tp + fp else 0)
            assert curves.rate[k, at] == pytest.approx(tp / targets)
            assert curves.f1[k, at] == pytest.approx(2 * tp / (targets + tp + fp))
    assert out.f1 == pytest.approx(curves.f1.mean(0).max())
    best = np.searchsorted(curves.confidence, out.confidence)
    assert out.precision == pytest.approx(curves.precision[:, best].mean())
    assert [c.recall for c in out.classes] == pytest.approx(curves.rate[:, best].tolist())


def test_the_confusion_matrix_of_a_hand_made_image():
    # cat found; dog called a cat; owl missed; a cat seen in the void; the second box on the cat is background
    boxes = [(0, k, *square) for k, square in enumerate(SQUARES)]
    ground_truth = coco(boxes, ("cat", "dog", "owl"))
    rows = np.array([row(0, 0, SQUARES[0], 0.9), row(0, 0, SQUARES[1], 0.9),
                     row(0, 0, (300, 300, 30, 30), 0.9), row(0, 0, SQUARES[0], 0.9)])
    out = evaluate_detections(ground_truth, rows, ("cat", "dog", "owl"))
    assert out.confusion.tolist() == [[1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1], [2, 0, 0, 0]]


def test_the_confusion_matrix_adds_up_and_its_diagonal_is_the_recall():
    ground_truth, rows = crowded(seed=7)
    out = evaluate_detections(ground_truth, rows, ("c0", "c1", "c2", "c3"))
    assert out.confusion[:4].sum(1).tolist() == [c.truths for c in out.classes]
    recall = out.confusion.diagonal()[:4] / out.confusion[:4].sum(1)
    assert recall.tolist() == pytest.approx([c.recall for c in out.classes])
    m = out.matches
    assert out.confusion[:, :4].sum() == int(((m.score >= out.confidence) & ~m.ignored).sum())
    assert out.confusion[:4, :4].sum() > np.trace(out.confusion)           # some classes do get confused here


def test_all_images_once_give_pycocotools_ap50_from_the_matches():
    for seed in range(4):
        ground_truth, rows = crowded(seed=seed)
        out = evaluate_detections(ground_truth, rows, ("c0", "c1", "c2", "c3"))
        assert map50_of(out.matches, np.ones((1, 60), dtype=int))[0] == pytest.approx(out.map50, abs=1e-9)
        every = matches_at(ground_truth, rows, 4, np.linspace(.5, .95, 10))
        mean = np.mean([map50_of(at, np.ones((1, 60), dtype=int))[0] for at in every])
        assert mean == pytest.approx(out.map50_95, abs=1e-9)


def test_a_resample_equals_an_evaluation_of_the_copied_images():
    ground_truth, rows = crowded(12, classes=2, seed=3)
    rows[:, 5] += np.linspace(0, 1e-4, len(rows))              # ties across images have no one order
    matches = evaluate_detections(ground_truth, rows, ("a", "b")).matches
    draw = np.random.default_rng(1).integers(0, 12, 12)
    copied = coco([], ("a", "b"), 12)
    copied["annotations"] = [{**a, "image_id": i + 1} for i, source in enumerate(draw)
                             for a in ground_truth["annotations"] if a["image_id"] == source + 1]
    moved = [np.array([[i, *r[1:]] for r in rows if r[0] == source]) for i, source in enumerate(draw)]
    expected = evaluate_detections(copied, np.concatenate(moved), ("a", "b")).map50
    counts = np.bincount(draw, minlength=12)[None]
    assert map50_of(matches, counts)[0] == pytest.approx(expected, abs=1e-9)


def test_the_interval_holds_the_population_about_as_often_as_it_says():
    # Images drawn from a population of known AP50: the 95 % interval should hold it in most of 60 trials.
    ground_truth, rows = crowded(900, classes=1, seed=11)
    full = evaluate_detections(ground_truth, rows, ("c0",))
    rng, inside, widths = np.random.default_rng(0), 0, []
    for trial in range(60):
        chosen = np.sort(rng.choice(900, 120, replace=False))
        where = {image: i for i, image in enumerate(chosen.tolist())}
        part = coco([], ("c0",), 120)
        part["annotations"] = [{**a, "image_id": where[a["image_id"] - 1] + 1}
                               for a in ground_truth["annotations"] if a["image_id"] - 1 in where]
        kept = rows[np.isin(rows[:, 0], chosen)].copy()
        kept[:, 0] = np.searchsorted(chosen, kept[:, 0])
        out = evaluate_detections(part, kept, ("c0",))
        low, high, median = bootstrap_map50(out.matches, 200, trial)
        assert low < out.map50 < high and abs(median - out.map50) < 0.1
        widths.append(high - low)
        inside += low <= full.map50 <= high
    assert 51 <= inside, f"{inside} of 60 intervals hold the population's AP50"
    assert 0.02 < np.mean(widths) < 0.3
    assert bootstrap_map50(full.matches, 200, 1) == bootstrap_map50(full.matches, 200, 1)


def test_of_two_wrong_classes_on_one_box_the_better_score_is_the_confusion():
    ground_truth = coco([(0, 0, 0, 0, 100, 100)], ("cat", "dog", "owl"))
    rows = np.array([row(0, 2, (0, 0, 100, 95), 0.7), row(0, 1, (0, 0, 100, 60), 0.9)])
    out = evaluate_detections(ground_truth, rows, ("cat", "dog", "owl"))
    assert out.confusion.tolist() == [[0, 1, 0, 0], [0] * 4, [0] * 4, [0, 0, 1, 0]]
