"""Plots and tables of a pruning: what is drawn and written is what the record says."""
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from compress.pruning import plots as prune_plots
from compress.pruning.report import scan_lines, step_lines, table3_lines
from evaluation import plots

LAYERS = [{"layer": "conv1", "original": 16, "width": 15, "sixteenths": 1, "stopped": "over the tolerance"},
          {"layer": "conv13", "original": 1024, "width": 640, "sixteenths": 6, "stopped": "a real drop"},
          {"layer": "conv14.hidden", "original": 256, "width": 256, "sixteenths": 0, "stopped": "whole"},
          {"layer": "conv22", "original": 128, "width": 110, "sixteenths": 2.25, "stopped": "丢失"}]
NAN = float("nan")


def step(number: int, layer: str, map50: float, drop: float, accepted: bool, interval: list | None,
         parameters: int) -> dict:
    """A row of a record's steps."""
    return {"step": number, "layer": layer, "sixteenths": number, "width": 32 - 2 * number, "map50": map50,
            "map50_95": map50 / 2, "drop": drop, "interval": interval, "accepted": accepted, "epochs": 20,
            "seconds": 3725.4 * number, "parameters": parameters, "macs": 400 * parameters}


STEPS = [step(1, "conv3", 0.470, 0.30, True, [-0.5, 1.1], 2_500_000),
         step(2, "conv3", 0.475, -0.20, True, None, 2_400_000),
         step(3, "conv3", 0.460, 1.50, False, [0.4, 2.6], 2_300_000),
         step(4, "conv5", 0.474, 0.001, True, [-0.9, 0.9], 2_350_000)]


@pytest.fixture
def figures(monkeypatch, no_warning) -> list:
    """The figures that are saved, in order; any warning of the library is an error."""
    saved, save = [], plots.save
    monkeypatch.setattr(plots, "save", lambda fig, path: (saved.append(fig), save(fig, path))[1])
    return saved


def pixels(path: Path) -> np.ndarray:
    """The image [H, W, 3] of a file that is a PNG."""
    import cv2
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    return cv2.imread(str(path))


def drawn(path: Path) -> bool:
    """Whether the written plot is of a screen's size and holds something, though mostly background."""
    image = pixels(path)
    return min(image.shape[:2]) >= 180 and 0.002 < (image < 200).any(2).mean() < 0.9


def texts(ax: object) -> list[str]:
    """What is written inside an axes."""
    return [text.get_text() for text in ax.texts]


def lines(ax: object) -> dict[str, tuple[list, list]]:
    """Label -> (x, y) of the named lines of an axes."""
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in ax.get_lines()
            if not line.get_label().startswith("_")}


def overlaps(fig: object) -> list[tuple[str, str]]:
    """Pairs of texts inside the axes of a figure that lie on each other."""
    fig.canvas.draw()
    boxes = [(text.get_text(), text.get_window_extent()) for ax in fig.axes for text in ax.texts
             if text.get_text()]
    return [(a, b) for i, (a, box) in enumerate(boxes) for b, other in boxes[:i] if box.overlaps(other)]


def test_widths_have_a_bar_before_and_after_and_their_sixteenths(tmp_path, figures):
    assert drawn(prune_plots.widths_png(LAYERS, tmp_path / "widths.png"))
    wide, lost = figures[0].axes
    bars = [patch.get_width() for patch in wide.patches]
    assert bars == [16, 1024, 256, 128, 15, 640, 256, 110]
    assert [patch.get_width() for patch in lost.patches] == [1, 6, 0, 2.25]
    assert texts(wide) == ["16 → 15", "1024 → 640", "256", "128 → 110"]
    assert texts(lost) == ["1/16", "6/16", "0/16", "2.25/16"]
    assert [label.get_text() for label in wide.get_yticklabels()] == [row["layer"] for row in LAYERS]
    tops = [patch.get_window_extent().y1 for patch in wide.patches[:4]]
    assert tops == sorted(tops, reverse=True), "the first layer is on top"
    assert not overlaps(figures[0])
    for ax in figures[0].axes:                             # the numbers stay inside
        assert max(text.get_window_extent().x1 for text in ax.texts) <= ax.get_window_extent().x1 + 1


def test_steps_show_accuracy_interval_tolerance_verdict_and_size(tmp_path, figures):
    assert drawn(prune_plots.steps_png(STEPS, 0.5, tmp_path / "steps.png"))
    top, bottom = figures[0].axes
    seen = lines(top)
    assert seen["accepted"] == ([1, 2, 4], pytest.approx([47.0, 47.5, 47.4]))
    assert seen["rejected"] == ([3], [46.0])
    assert seen["reference less 0.5 points"] == ([1, 2, 3, 4], pytest.approx([46.8, 46.8, 47.0, 46.901]))
    bars = {line.get_xdata()[0]: list(line.get_ydata()) for line in top.get_lines()
            if line.get_label().startswith("_")}
    assert bars == {1: pytest.approx([46.2, 47.8]), 3: pytest.approx([44.9, 47.1]),
                    4: pytest.approx([46.501, 48.301])}
    assert lines(bottom)["accepted"] == ([1, 2, 4], [2.5, 2.4, 2.35])
    assert lines(bottom)["rejected"] == ([3], [2.3])
    assert texts(top) == ["conv3", "conv5"] and len(figures[0].legends[0].get_texts()) == 3


def test_steps_of_another_metric_show_that_one(tmp_path, figures):
    rows = [{**row, "interval": None} for row in STEPS]
    prune_plots.steps_png(rows, 0.5, tmp_path / "steps.png", metric="map50_95")
    top = figures[0].axes[0]
    assert lines(top)["rejected"] == ([3], [23.0]) and "0.5:0.95" in top.get_ylabel()
    assert "interval" not in top.get_title(loc="left")


def test_names_of_layers_do_not_lie_on_each_other(tmp_path, figures):
    def rows(names: list[str], each: int) -> list[dict]:
        return [{**STEPS[0], "step": each * i + k + 1, "layer": name, "accepted": k == 0}
                for i, name in enumerate(names) for k in range(each)]
    for names, each in (([f"conv{k}" for k in range(1, 40, 2)], 1),
                        ([f"conv{k}.hidden" for k in range(15)], 5),
                        (["a very long name of a layer that nobody has"], 1)):
        assert drawn(prune_plots.steps_png(rows(names, each), 0.5, tmp_path / "steps.png"))
        assert len(texts(figures[-1].axes[0])) == len(names)
        assert not overlaps(figures[-1])


def test_the_scan_writes_every_measured_cell_and_leaves_the_others_grey(tmp_path, figures):
    drops = [[0.04, 1.26, NAN], [-0.04, -2.0, 61.7]]
    path = prune_plots.scan_png(["conv1", "conv13.hidden"], (1, 2, 8), drops, tmp_path / "scan.png")
    assert drawn(path)
    ax = figures[0].axes[0]
    cells = {text.get_position(): text.get_text() for text in ax.texts}
    assert cells == {(0, 0): "0.0", (1, 0): "1.3", (0, 1): "0.0", (1, 1): "-2.0", (2, 1): "61.7"}
    assert [label.get_text() for label in ax.get_xticklabels()] == ["1/16", "2/16", "8/16"]
    figures[0].canvas.draw()
    image, height = pixels(path)[..., ::-1], figures[0].canvas.get_width_height()[1]

    def colour(x: float, y: float) -> tuple:
        column, row = ax.transData.transform((x, y)).astype(int)
        return tuple(image[height - row, column].tolist())
    assert "#{:02x}{:02x}{:02x}".format(*colour(2.3, 0.3)) == prune_plots.EMPTY
    reds = [colour(x + 0.3, y + 0.3)[1] for x, y in ((1, 1), (0, 0), (1, 0), (2, 1))]
    assert reds == sorted(reds, reverse=True) and len(set(reds)) == 4, "darker where more is lost"


def test_a_scan_of_twelve_layers_is_legible(tmp_path, figures):
    drops = np.random.default_rng(0).uniform(-1, 100, (12, 8))
    drops[3, 4] = NAN
    prune_plots.scan_png([f"conv{k}" for k in range(12)], range(1, 9), drops, tmp_path / "scan.png")
    fig, ax = figures[0], figures[0].axes[0]
    assert len(ax.texts) == 95 and not overlaps(fig)
    wide, high = ax.get_window_extent().width / 8, ax.get_window_extent().height / 12
    for text in ax.texts:
        box = text.get_window_extent()
        assert box.width < 0.9 * wide and box.height < 0.9 * high


@pytest.mark.parametrize("drops", [[[NAN, NAN]], [[-1.0, -2.0]], [[0.0, float("inf")]]])
def test_a_scan_without_a_loss_is_no_crash(tmp_path, figures, drops: list):
    assert pixels(prune_plots.scan_png(["conv1"], (1, 2), drops, tmp_path / "scan.png")).size
    assert len(texts(figures[0].axes[0])) == np.isfinite(drops).sum()


def test_nothing_to_draw_is_a_sentence(tmp_path, figures):
    prune_plots.widths_png([], tmp_path / "a.png")
    prune_plots.steps_png([], 0.5, tmp_path / "b.png")
    prune_plots.scan_png([], (1, 2), [], tmp_path / "c.png")
    said = [texts(fig.axes[0]) for fig in figures]
    assert said == [["no layer can be cut"], ["no step was made"], ["nothing was scanned"]]
    assert table3_lines([])[1].split() == ["all", "0", "0", "0/16"]
    assert len(step_lines([])) == len(scan_lines([], (1, 2), [])) == 1


def test_pyplot_and_matplotlib_stay_away_until_something_is_drawn(tmp_path, root):
    code = ("import sys\nfrom compress.pruning.plots import widths_png\nprint('matplotlib' in sys.modules)\n"
            f"widths_png([], {str(tmp_path / 'w.png')!r})\nprint('matplotlib.pyplot' in sys.modules)")
    out = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["False", "False"]


def test_table_3_is_aligned_and_adds_up():
    text = table3_lines(LAYERS)
    assert text[0].split("  ")[0] == "layer" and text[0].endswith("stopped because")
    at = text[0].index("stopped because")
    ends = {line[:at].rstrip()[-3:] for line in text[1:]}
    assert ends == {"/16"} and len({len(line[:at].rstrip()) for line in text}) == 1, "set right"
    assert [line[at:] for line in text[1:5]] == [row["stopped"] for row in LAYERS]
    cells = [line[:at].split() for line in text[1:]]
    assert cells[1] == ["conv13", "1,024", "640", "6/16"] and cells[3] == ["conv22", "128", "110", "2.25/16"]
    assert cells[4] == ["all", "1,424", "1,021", "4.5/16"]             # 16 x 403 / 1424


def test_steps_are_written_with_interval_size_cost_and_verdict():
    text = step_lines(STEPS)
    verdicts = [line.split()[-1] for line in text[1:]]
    assert verdicts == ["accepted", "accepted", "rejected", "accepted"]
    assert {line.index(word) for line, word in zip(text[1:], verdicts)} == {len(text[0]) + 2}, "aligned"
    assert text[1].split() == ("1 conv3 1/16 30 0.4700 +0.30 -0.50 to +1.10 2.500 1.0000 20 1:02:05 "
                               "accepted").split()
    assert text[2].split() == "2 conv3 2/16 28 0.4750 -0.20 2.400 0.9600 20 2:04:11 accepted".split()
    assert text[3].endswith("3:06:16  rejected") and " 0.00 " in text[4]
    other = step_lines(STEPS, "map50_95")
    assert "0.2300" in other[3] and "mAP@0.5:0.95" in other[0]
    many = step_lines([{**STEPS[0], "step": k} for k in (9, 10)] * 5)
    assert many[1].startswith(" 9 conv3 ") and many[2].startswith("10 conv3 ")


def test_the_scan_is_written_with_signs_and_a_dash_where_nothing_was_measured():
    text = scan_lines(["conv1", "conv13.hidden"], (1, 8), [[0.04, NAN], [-0.04, 12.34]])
    assert [line.split() for line in text] == [
        ["points", "lost", "by", "1/16", "8/16"], ["conv1", "0.0", "-"], ["conv13.hidden", "0.0", "+12.3"]]
    assert len({len(line) for line in text}) == 1
