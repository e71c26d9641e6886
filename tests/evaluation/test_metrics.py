"""Evaluation against pycocotools run plainly, and against cases whose AP is known by hand."""
import copy
import json

import numpy as np
import pytest

from evaluation.curves import bootstrap_map50
from evaluation.metrics import evaluate_detections
from tests.helpers.coco_cases import SQUARES, coco, crowded, plain_pycocotools, row, twelve
from utils.errors import DataError


def test_the_twelve_numbers_are_pycocotools_own():
    ground_truth, rows = crowded()
    run = plain_pycocotools(ground_truth, rows)
    ours = evaluate_detections(ground_truth, rows, ("c0", "c1", "c2", "c3"), backend="pycocotools")
    assert twelve(ours) == pytest.approx(run.stats.tolist(), abs=1e-15)
    per_class = run.eval["precision"][:, :, :, 0, 2].mean((0, 1))
    assert [c.ap for c in ours.classes] == pytest.approx(per_class.tolist(), abs=1e-12)
    assert 0.05 < ours.map50 < 0.95


def test_the_fast_backend_gives_the_same_everything():
    pytest.importorskip("faster_coco_eval", reason="faster-coco-eval is not installed: nothing to compare")
    for seed in range(3):
        ground_truth, rows = crowded(seed=seed)
        slow, fast = (evaluate_detections(ground_truth, rows, ("c0", "c1", "c2", "c3"), backend=b)
                      for b in ("pycocotools", "faster"))
        assert twelve(fast) == pytest.approx(twelve(slow), abs=1e-12)
        assert [c.ap50 for c in fast.classes] == pytest.approx([c.ap50 for c in slow.classes], abs=1e-12)
        assert (slow.precision, slow.recall, slow.f1) == (fast.precision, fast.recall, fast.f1)
        assert (slow.confusion == fast.confusion).all()
        assert "faster" in fast.backend and "pycocotools" in slow.backend


def test_auto_falls_back_to_pycocotools_where_the_fast_one_is_missing(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "faster_coco_eval", None)
    ground_truth, rows = crowded(10)
    assert "pycocotools" in evaluate_detections(ground_truth, rows, "abcd").backend
    with pytest.raises(ImportError):
        evaluate_detections(ground_truth, rows, "abcd", backend="faster")
    with pytest.raises(ValueError, match="quick.*auto"):
        evaluate_detections(ground_truth, rows, "abcd", backend="quick")


@pytest.mark.parametrize("backend", ["pycocotools", "auto"])
def test_perfect_detections_score_one(backend):
    ground_truth = coco([(0, 0, *SQUARES[0]), (0, 1, *SQUARES[1]), (1, 1, *SQUARES[2])], images=2)
    rows = np.array([row(0, 0, SQUARES[0]), row(0, 1, SQUARES[1]), row(1, 1, SQUARES[2])])
    out = evaluate_detections(ground_truth, rows, ("cat", "dog"), backend=backend)
    assert (out.map50_95, out.map50, out.map75, out.ar_100) == (1, 1, 1, 1)
    assert (out.precision, out.recall, out.f1) == (1, 1, 1)
    assert out.confusion.tolist() == [[1, 0, 0], [0, 2, 0], [0, 0, 0]]
    assert (out.images, out.truths, out.crowds, out.detections) == (2, 3, 0, 3)


def test_a_known_ranking_has_the_ap_computed_by_hand():
    # Right, wrong, right of two boxes: precision 1 up to recall 0.5, then 2/3; 51 and 50 of the 101 points.
    ground_truth = coco([(0, 0, *SQUARES[0]), (0, 0, *SQUARES[1])], ("cat",))
    rows = np.array([row(0, 0, SQUARES[0], 0.9), row(0, 0, SQUARES[2], 0.8), row(0, 0, SQUARES[1], 0.7)])
    out = evaluate_detections(ground_truth, rows, ("cat",))
    assert out.map50 == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert (out.precision, out.recall) == (pytest.approx(2 / 3), 1.0)  # F1 0.8 beats 2/3 at a higher score
    assert out.confidence <= 0.7
    assert out.curves.pr.mean() == pytest.approx(out.map50)


def test_a_box_of_iou_two_thirds_counts_at_four_of_ten_thresholds():
    ground_truth = coco([(0, 0, 0, 0, 90, 100)], ("cat",))
    out = evaluate_detections(ground_truth, np.array([row(0, 0, (0, 0, 60, 100))]), ("cat",))
    assert (out.map50, out.map75, out.map50_95) == (1, 0, pytest.approx(0.4))


@pytest.mark.parametrize("backend", ["pycocotools", "auto"])
def test_annotation_id_zero_and_duplicate_ids_do_not_cost_a_perfect_result_its_score(backend):
    rows = np.array([row(0, 0, SQUARES[0]), row(0, 0, SQUARES[1]), row(0, 1, SQUARES[2])])
    for ids, sentence in (((0, 1, 2), "id 0"), ((5, 5, 5), "2 duplicate"), ((0, 0, 7), "duplicate")):
        ground_truth = coco([(0, 0, *SQUARES[0]), (0, 0, *SQUARES[1]), (0, 1, *SQUARES[2])])
        for annotation, number in zip(ground_truth["annotations"], ids, strict=True):
            annotation["id"] = number
        before = copy.deepcopy(ground_truth)
        assert plain_pycocotools(ground_truth, rows).stats[1] < 1          # the fault this guards against
        out = evaluate_detections(ground_truth, rows, ("cat", "dog"), backend=backend)
        assert (out.map50, out.map50_95) == (1, 1)
        assert sentence in " ".join(out.notes)
        assert ground_truth == before


def test_foreign_ids_gapped_or_text_are_mapped_by_their_order():
    ground_truth = coco([(0, 0, *SQUARES[0]), (0, 1, *SQUARES[1])])
    ground_truth["images"][0]["id"] = 4711
    for annotation, label in zip(ground_truth["annotations"], ("90", "7"), strict=True):
        annotation.update(image_id=4711, category_id=label)
        del annotation["iscrowd"], annotation["area"]
    ground_truth["categories"] = [{"id": "90", "name": "dog"}, {"id": "7", "name": "cat"}]
    rows = np.array([row(0, 1, SQUARES[0]), row(0, 0, SQUARES[1])])
    out = evaluate_detections(ground_truth, rows, ("cat", "dog"))
    assert out.map50_95 == 1


def test_what_does_not_fit_together_is_refused_by_name():
    ground_truth = coco([(0, 0, *SQUARES[0])])
    with pytest.raises(DataError, match="1 class names for 2 categories"):
        evaluate_detections(ground_truth, np.zeros((0, 7)), ("cat",))
    with pytest.raises(DataError, match="class outside 0..1, the first 2"):
        evaluate_detections(ground_truth, np.array([row(0, 2, SQUARES[0])]), ("cat", "dog"))
    with pytest.raises(DataError, match="image position outside 0..0"):
        evaluate_detections(ground_truth, np.array([row(1, 0, SQUARES[0])]), ("cat", "dog"))
    ground_truth["annotations"][0]["category_id"] = 9
    with pytest.raises(DataError, match="category 9"):
        evaluate_detections(ground_truth, np.zeros((0, 7)), ("cat", "dog"))
    twice = coco([])
    twice["images"] *= 2
    with pytest.raises(DataError, match="occurs twice"):
        evaluate_detections(twice, np.zeros((0, 7)), ("cat", "dog"))


def test_a_detection_on_a_crowd_is_neither_right_nor_wrong():
    ground_truth = coco([(0, 0, *SQUARES[0]), (0, 0, 150, 150, 200, 200, 1)], ("cat",))
    alone = np.array([row(0, 0, SQUARES[0], 0.5)])
    on_crowd = [row(0, 0, (160, 160, 60, 60), 0.4), row(0, 0, (220, 220, 60, 60), 0.3)]
    out, less = (evaluate_detections(ground_truth, rows, ("cat",))
                 for rows in (np.vstack((alone, on_crowd)), alone))
    assert twelve(out) == twelve(less)
    assert (out.map50, out.precision, out.truths, out.crowds) == (1, 1, 1, 1)
    assert out.confusion.tolist() == [[1, 0], [0, 0]]
    far = evaluate_detections(ground_truth, np.vstack((alone, row(0, 0, (60, 60, 30, 30)))), ("cat",))
    assert far.map50 < 1                                                   # beside the crowd it is wrong


def test_a_class_without_ground_truth_is_not_available_and_outside_the_mean():
    ground_truth = coco([(0, 0, *SQUARES[0])], ("cat", "dog", "owl"))
    rows = np.array([row(0, 0, SQUARES[0]), row(0, 1, SQUARES[1])])
    out = evaluate_detections(ground_truth, rows, ("cat", "dog", "owl"))
    assert out.map50 == 1 and out.precision == 1
    assert [c.ap50 for c in out.classes] == [1, None, None] == [c.f1 for c in out.classes]
    assert out.without_truth == ("dog", "owl")
    assert out.confusion[3, 1] == 1                                        # but its detection is a false one


def test_empty_results_are_zero_and_empty_ground_truth_is_undefined():
    ground_truth, nothing = coco([(0, 0, *SQUARES[0])]), np.zeros((0, 7))
    one_box = np.array([row(0, 0, SQUARES[0])])
    for backend in ("pycocotools", "auto"):
        for one, rows in ((ground_truth, nothing), (coco([]), one_box), (coco([]), nothing)):
            out = evaluate_detections(one, rows, ("cat", "dog"), backend=backend)
            zero = 0 if one is ground_truth else None
            assert (out.map50, out.map75, out.map50_95, out.ar_1, out.ar_10, out.ar_100) == (zero,) * 6
            assert (out.precision, out.recall, out.f1) == (zero,) * 3
            assert bootstrap_map50(out.matches, 20) == (zero if zero is None else (0, 0, 0))
        out = evaluate_detections({"images": [], "categories": []}, nothing, (), backend=backend)
        assert (out.map50, out.images) == (None, 0)


def test_non_finite_and_inside_out_boxes_are_dropped_and_counted():
    ground_truth = coco([(0, 0, *SQUARES[0])], ("cat",))
    bad = [[0, np.nan, 0, 5, 5, 0.99, 0], [0, 0, 0, np.inf, 5, 0.99, 0], [0, 9, 9, 5, 5, 0.99, 0],
           [0, 0, 0, 5, 5, np.nan, 0]]
    out = evaluate_detections(ground_truth, np.array([*bad, row(0, 0, SQUARES[0], 0.1)]), ("cat",))
    assert (out.map50, out.dropped, out.detections) == (1, 4, 1)
    assert "4 non-finite" in out.notes[0]


def test_max_det_keeps_the_best_scores_and_names_its_limit():
    ground_truth = coco([(0, 0, *SQUARES[0]), (0, 0, *SQUARES[1])], ("cat",))
    rows = np.array([row(0, 0, SQUARES[1], 0.5), row(0, 0, SQUARES[0], 0.9)])
    out = evaluate_detections(ground_truth, rows, ("cat",), max_det=1)
    assert (out.ar_100, out.recall, out.max_det) == (0.5, 0.5, 1)
    assert len(out.matches.row) == 1 and out.matches.row[0] == 1
    many = np.concatenate([[row(0, 0, SQUARES[2], 0.9)] * 150, rows])   # 150 wrong ones before the right one
    assert evaluate_detections(ground_truth, many, ("cat",), max_det=100).ar_100 == 0
    assert evaluate_detections(ground_truth, many, ("cat",), max_det=300).ar_100 == 1


def test_metrics_become_json_and_the_arguments_stay_as_they_were(capsys):
    ground_truth, rows = crowded(10)
    before = copy.deepcopy(ground_truth), rows.copy()
    out = evaluate_detections(ground_truth, rows, ("c0", "c1", "c2", "c3"))
    assert before[0] == ground_truth and (before[1] == rows).all()
    assert capsys.readouterr().out == ""
    text = json.loads(json.dumps(out.as_dict(), allow_nan=False))
    assert text["map50"] == out.map50 and len(text["classes"]) == 4 and len(text["confusion"]) == 5
    assert out.curves.f1.shape == (4, 1001) and not {"matches", "curves"} & text.keys()
