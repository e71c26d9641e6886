"""Plots of a run: what is drawn is what was measured, for any number and script of class names."""
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from detection.outputs import save_image
from evaluation import plots
from evaluation.metrics import Metrics, evaluate_detections
from tests.helpers.coco_cases import crowded

ROWS = [{"epoch": e, "loss": 3 / e, "box": 1 / e, "obj": 1.5 / e, "cls": 0.5 / e, "map50": 0.1 * e,
         "map50_95": 0.05 * e, "precision": 0.12 * e, "recall": 0.1 * e, "lr": 0.01} for e in range(1, 7)]


def measured(classes: int = 4, names: list[str] | None = None) -> Metrics:
    """Metrics of random images with `classes` classes."""
    ground_truth, rows = crowded(60, classes)
    return evaluate_detections(ground_truth, rows, names or [f"c{k}" for k in range(classes)])


def pixels(path: Path) -> np.ndarray:
    """The image [H, W, 3] as written."""
    import cv2
    return cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)


def assert_drawn(path: Path, least: tuple[int, int]) -> None:
    """The file is an image of at least (width, height) px with something on it."""
    image = pixels(path)
    assert image.shape[1] >= least[0] and image.shape[0] >= least[1]
    assert 0.001 < (image < 200).any(2).mean() < 0.9, "blank, or black"


@pytest.fixture
def figures(monkeypatch) -> list:
    """The figures that are saved, in order, instead of files alone."""
    saved, save = [], plots.save
    monkeypatch.setattr(plots, "save", lambda fig, path: (saved.append(fig), save(fig, path))[1])
    return saved


def lines(ax: object) -> dict[str, tuple[list, list]]:
    """Label -> (x, y) of the lines of an axes."""
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in ax.get_lines()}


def test_learning_curves_show_every_row_that_was_logged(tmp_path, figures):
    rows = [dict(row) for row in ROWS]
    rows[2]["map50"], rows[3]["loss"] = None, float("nan")
    del rows[4]["precision"]
    path = plots.results_png([*rows, {"note": "resumed"}], tmp_path / "results.png")
    assert_drawn(path, (900, 600))
    loss, ap, pr, rate = figures[0].axes
    assert lines(loss)["box"] == ([1, 2, 3, 4, 5, 6], [1 / e for e in range(1, 7)])
    assert lines(loss)["total"][0] == [1, 2, 3, 5, 6]
    assert lines(ap)["mAP@0.5"][0] == [1, 2, 4, 5, 6]
    assert lines(pr)["precision"][0] == [1, 2, 3, 4, 6] and lines(pr)["recall"][0] == [1, 2, 3, 4, 5, 6]
    assert lines(rate)["learning rate"][1] == [0.01] * 6
    assert "0.600, epoch 6" in ap.get_title(loc="left")


def test_one_epoch_or_none_is_no_crash(tmp_path, no_warning):
    for rows in (ROWS[:1], [], [{"epoch": 1}]):
        assert_drawn(plots.results_png(rows, tmp_path / "results.png"), (900, 600))


def test_the_mean_pr_curve_has_ap50_as_its_area(tmp_path, figures):
    metrics = measured()
    assert_drawn(plots.curves_png(metrics, "pr", tmp_path / "pr.png"), (700, 500))
    drawn = lines(figures[0].axes[0])
    assert np.mean(drawn[f"all classes {metrics.map50:.3f}"][1]) == pytest.approx(metrics.map50)
    assert np.mean(drawn[f"c2 {metrics.classes[2].ap50:.3f}"][1]) == pytest.approx(metrics.classes[2].ap50)


def test_the_f1_curve_marks_the_best_confidence(tmp_path, figures):
    metrics = measured()
    assert_drawn(plots.curves_png(metrics, "f1", tmp_path / "f1.png"), (700, 500))
    drawn = lines(figures[0].axes[0])
    assert drawn[f"at {metrics.confidence:.3f}"] == ([metrics.confidence], [metrics.f1])
    assert max(drawn[f"all classes {metrics.f1:.3f}"][1]) == pytest.approx(metrics.f1)


@pytest.mark.usefixtures("no_warning")
def test_classes_without_ground_truth_have_no_line_and_no_class_at_all_a_sentence(tmp_path, figures):
    ground_truth, rows = crowded(20, 2)
    ground_truth["categories"].append({"id": 9, "name": "ghost"})
    plots.evaluation_pngs(evaluate_detections(ground_truth, rows, ("a", "b", "ghost")), tmp_path)
    assert not any("ghost" in label for label in lines(figures[0].axes[0]))
    empty = evaluate_detections({**ground_truth, "annotations": []}, rows, ("a", "b", "ghost"))
    plots.evaluation_pngs(empty, tmp_path)
    assert "no class has ground truth" in figures[3].axes[0].texts[0].get_text()


def test_the_confusion_matrix_writes_shares_and_counts_of_few_classes(tmp_path, figures):
    metrics = replace(measured(2, ["cat", "dog"]), confusion=np.array([[3, 1, 0], [0, 4, 4], [2, 0, 0]]))
    assert_drawn(plots.confusion_png(metrics, tmp_path / "confusion.png"), (400, 400))
    ax = figures[0].axes[0]
    texts = {text.get_position(): text.get_text() for text in ax.texts}
    assert texts == {(0, 0): "75 %\n3", (1, 0): "25 %\n1", (1, 1): "50 %\n4", (2, 1): "50 %\n4",
                     (0, 2): "100 %\n2"}
    assert [label.get_text() for label in ax.get_yticklabels()] == ["cat", "dog", "background"]


def test_eighty_classes_stay_legible_and_carry_no_numbers(tmp_path, figures):
    metrics = measured(80, [f"a rather long class name {k}" for k in range(80)])
    written = plots.evaluation_pngs(metrics, tmp_path)
    for (_, path), least in zip(written, ((700, 500), (700, 500), (1500, 1500)), strict=True):
        assert_drawn(path, least)
    pr, _, confusion = (figure.axes[0] for figure in figures)
    assert len(pr.get_legend().get_texts()) == 2           # the mean, and what the grey lines are
    assert not confusion.texts
    size = confusion.get_yticklabels()[0].get_fontsize() / 72 * 110        # px, against the height of a row
    assert size < confusion.get_window_extent().height / 81 * 1.1


def test_chinese_names_are_drawn_or_replaced_never_boxes(tmp_path, no_warning):
    metrics = measured(3, ["红细胞", "white 白", "plain"])
    for _, path in plots.evaluation_pngs(metrics, tmp_path):
        assert_drawn(path, (400, 400))
    legible = plots._legible(["红细胞", "plain", "ünïcode"])
    assert legible[1:] == ["plain", "ünïcode"]
    assert legible[0] == ("红细胞" if plots.cjk_fonts() else "class 0")


class Record:
    """An image of a set: its path and boxes."""

    def __init__(self, path: Path, boxes: np.ndarray) -> None:
        self.path, self.boxes = path, boxes


def test_a_sheet_shows_ground_truth_left_and_predictions_right(tmp_path):
    record = Record(tmp_path / "a.png", np.array([[0, 20.0, 20, 60, 60]]))
    path = plots.sheet_png([record], np.zeros((0, 7)), lambda path: np.full((100, 120, 3), 90, np.uint8), 0.5,
                           ["cat"], tmp_path / "sheet.png")
    sheet = pixels(path)
    middle = sheet.shape[1] // 2
    grey = [(np.ptp(half.astype(int), axis=2) < 12).mean() for half in (sheet[:, :middle], sheet[:, middle:])]
    assert grey[0] < 0.999 < grey[1], "a coloured box on the left alone"
    plots.sheet_png([], np.zeros((0, 7)), pixels, 0.5, ["cat"], tmp_path / "empty.png")


def test_the_sheet_takes_images_across_the_set_and_detections_above_the_confidence(tmp_path, monkeypatch):
    records = [Record(tmp_path / f"图 {i}.png", np.array([[1, 2, 3, 40, 50]], np.float32)[:i % 10])
               for i in range(20)]
    for i, record in enumerate(records):
        save_image(record.path, np.full((60, 80, 3), i, np.uint8))
    rows = np.array([[i, 1, 2, 30, 40, score, 0] for i in range(20) for score in (0.9, 0.1)], dtype=float)
    drawn = []
    monkeypatch.setattr("detection.draw.draw",
                        lambda image, boxes, names: drawn.append((image, boxes)) or image)
    plots.sheet_png(records, rows, pixels, 0.5, ["a", "b"], tmp_path / "sheet.png", count=3)
    assert [image[0, 0, 0] for image, _ in drawn[::2]] == [1, 9, 19]      # 0 and 10 show no ground truth
    assert [boxes.tolist() for _, boxes in drawn] == [[[2, 3, 40, 50, 1]], [[1, 2, 30, 40, 0.9, 0]]] * 3
    drawn.clear()
    plots.sheet_png(records[:1], rows[:0], pixels, 0.5, ["a", "b"], tmp_path / "sheet.png")
    assert len(drawn) == 2, "where no image has ground truth, one is shown all the same"


def test_plotting_leaves_pyplot_alone(tmp_path, root):
    code = ("import sys\nfrom evaluation.plots import results_png\nprint('matplotlib' in sys.modules)\n"
            f"results_png([{{'epoch': 1, 'loss': 1.0}}], {str(tmp_path / 'r.png')!r})\n"
            "print('matplotlib.pyplot' in sys.modules)")
    out = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["False", "False"]
