"""Pictures of a run: learning curves, PR and F1 curves, confusion matrix, truths beside predictions.

Figures are objects of their own: no pyplot, no window, no global state. The functions load matplotlib.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from evaluation.metrics import Metrics

INK, GREY, BEST = "#1f2933", "#b8c0cc", "#c2410c"
COLOURS = ("#2563eb", "#ea580c", "#059669", "#9333ea", "#db2777", "#ca8a04", "#0891b2", "#65a30d", "#dc2626",
           "#64748b")
MANY = 10                          # more classes than this are grey lines without a legend
CJK_FONTS = ("Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "WenQuanYi Micro Hei",
             "WenQuanYi Zen Hei", "Microsoft YaHei", "SimHei", "PingFang SC", "Hiragino Sans GB",
             "Arial Unicode MS", "Droid Sans Fallback")
PANELS = (("Training loss", (("loss", "total"), ("box", "box"), ("obj", "objectness"), ("cls", "class"))),
          ("Average precision", (("map50", "mAP@0.5"), ("map50_95", "mAP@0.5:0.95"))),
          ("Precision and recall at the best F1", (("precision", "precision"), ("recall", "recall"))),
          ("Learning rate", (("lr", "learning rate"),)))


def results_png(rows: Sequence[dict], path: Path | str) -> Path:
    """The written picture of losses, AP, precision, recall and learning rate over the epochs.

    Rows are those of log.jsonl; rows without `epoch` are skipped, and so are missing, None and non-finite
    values.
    """
    fig = figure(11, 7)
    axes = fig.subplots(2, 2).ravel()
    rows = [row for row in rows if "epoch" in row]
    for ax, (title, lines) in zip(axes, PANELS, strict=True):
        drawn = [_line(ax, rows, key, label, COLOURS[i]) for i, (key, label) in enumerate(lines)]
        dress(ax, title, "epoch", "")
        ax.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        if not any(drawn):
            ax.text(0.5, 0.5, "not recorded", transform=ax.transAxes, ha="center", color=GREY)
        elif len(lines) > 1:
            ax.legend(frameon=False, fontsize=9)
    for ax in axes[1:3]:
        ax.set_ylim(0, 1.02)
    scored = [row for row in rows if _number(row.get("map50")) is not None]
    if scored:
        best = max(scored, key=lambda row: row["map50"])
        axes[1].plot(best["epoch"], best["map50"], "o", color=BEST, ms=6)
        _title(axes[1], f"Average precision: best mAP@0.5 {best['map50']:.3f}, epoch {best['epoch']}")
    return save(fig, path)


def pr_curve_png(metrics: Metrics, path: Path | str) -> Path:
    """The written picture of precision over recall at IoU 0.5 a class and their mean, whose area is AP50."""
    fig = figure(7.5, 5.6)
    ax = fig.subplots()
    curves = metrics.curves
    labels = [None if c.ap50 is None else f"{c.ap50:.3f}" for c in metrics.classes]
    _class_lines(ax, metrics, curves.recall, curves.pr, labels)
    if any(labels):
        _mean_line(ax, curves.recall, curves.pr, metrics.map50)
    dress(ax, "Precision over recall at IoU 0.5 (AP50 in the legend)", "recall", "precision")
    return _finish_curves(fig, ax, path)


def f1_curve_png(metrics: Metrics, path: Path | str) -> Path:
    """The written picture of F1 over the confidence a class and their mean, its best point marked."""
    fig = figure(7.5, 5.6)
    ax = fig.subplots()
    curves = metrics.curves
    labels = [None if c.f1 is None else f"{c.f1:.3f}" for c in metrics.classes]
    _class_lines(ax, metrics, curves.confidence, curves.f1, labels)
    if any(labels):
        _mean_line(ax, curves.confidence, curves.f1, metrics.f1)
        ax.plot(metrics.confidence, metrics.f1, "o", color=BEST, ms=7, label=f"at {metrics.confidence:.3f}")
    dress(ax, "F1 over confidence at IoU 0.5 (F1 at the best confidence in the legend)", "confidence", "F1")
    return _finish_curves(fig, ax, path)


def confusion_png(metrics: Metrics, path: Path | str) -> Path:
    """The written picture of the confusion matrix, rows divided by their sums; numbers where they fit."""
    counts = metrics.confusion
    names = [*_legible([c.name for c in metrics.classes]), "background"]
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    n = len(names)
    side = min(15.0, 3.4 + max(0.62 if n <= 12 else 0.36 if n <= 30 else 0.14, 0.14) * n)
    fig = figure(side + 0.8, side)
    ax = fig.subplots()
    picture = ax.imshow(share, cmap="Blues", vmin=0, vmax=1)
    size = 9 if n <= 12 else 7.5 if n <= 30 else 5.5
    ax.set_xticks(range(n), names, rotation=90 if n > 4 else 0, fontsize=size)
    ax.set_yticks(range(n), names, fontsize=size)
    ax.set_xticks(np.arange(-0.5, n), minor=True)
    ax.set_yticks(np.arange(-0.5, n), minor=True)
    ax.grid(which="minor", color="#e5e9ef", lw=0.4)
    ax.tick_params(which="both", length=0)
    if n <= 30:
        _write_numbers(ax, share, counts if n <= 12 else None, 8 if n <= 12 else 6)
    ax.set(xlabel="predicted", ylabel="truth")
    _title(ax, f"Confusion at confidence {metrics.confidence:.3f}, IoU 0.5: share of each row")
    fig.colorbar(picture, ax=ax, fraction=0.04, pad=0.02)
    return save(fig, path)


def sheet_png(pairs: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]], names: Sequence[str],
              path: Path | str) -> Path:
    """The written sheet of pictures, each with its truths on the left and its predictions on the right.

    A pair is a picture (uint8 [H, W, 3] RGB), its truths [M, 5] (xyxy px, class) and its predictions [N, 6]
    (xyxy px, score, class).
    """
    from detection.draw import contact_sheet, draw
    from detection.outputs import save_image
    images, captions = [], []
    for image, truths, found in pairs:
        images += [draw(image, truths, names), draw(image, found, names)]
        captions += ["truth", "predicted"]
    save_image(Path(path), contact_sheet(images, 4 if len(images) > 2 else 2, (400, 320), captions))
    return Path(path)


def sheet_pairs(records: Sequence, detections: np.ndarray, decode: Callable[[Path], np.ndarray],
                confidence: float, count: int = 8) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """What sheet_png draws for `count` pictures spread over the set, with detections from `confidence` on.

    Records have path and boxes [M, 5] (class, xyxy px); detections [D, 7] are (position, xyxy px, score,
    class), in px of the photo; decode reads a path as uint8 [H, W, 3] RGB.
    """
    shown = [i for i, record in enumerate(records) if len(record.boxes)] or list(range(len(records)))
    chosen = [shown[i] for i in np.linspace(0, len(shown) - 1, min(count, len(shown))).round().astype(int)]
    good = detections[detections[:, 5] >= confidence]
    return [(decode(records[i].path), records[i].boxes[:, [1, 2, 3, 4, 0]], good[good[:, 0] == i, 1:])
            for i in chosen]


def evaluation_pngs(metrics: Metrics, folder: Path | str) -> list[tuple[str, Path]]:
    """Captions and paths of the PR curve, the F1 curve and the confusion matrix, written into `folder`."""
    folder = Path(folder)
    return [("Precision over recall", pr_curve_png(metrics, folder / "pr_curve.png")),
            ("F1 over confidence", f1_curve_png(metrics, folder / "f1_curve.png")),
            ("Confusion matrix", confusion_png(metrics, folder / "confusion.png"))]


def figure(width: float, height: float) -> Figure:
    """Return an empty figure of that size in inches, without pyplot."""
    from matplotlib.figure import Figure
    return Figure(figsize=(width, height), dpi=110, layout="constrained", facecolor="white")


def save(fig: Figure, path: Path | str) -> Path:
    """Writes the figure as PNG, in fonts that know its characters."""
    from matplotlib.text import Text
    families = ["DejaVu Sans", *_installed()]
    for text in fig.findobj(Text):
        text.set_fontfamily(families)
    fig.savefig(path, format="png")
    return Path(path)


def dress(ax: Axes, title: str, x: str, y: str) -> None:
    """Title, axis names, a light grid, no box."""
    _title(ax, title)
    ax.set(xlabel=x, ylabel=y)
    ax.grid(color="#e5e9ef", lw=0.8)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def _title(ax: Axes, title: str) -> None:
    ax.set_title(title, fontsize=11, color=INK, loc="left")


def _number(value: object) -> float | None:
    """The value as a finite float, or None."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _line(ax: Axes, rows: Sequence[dict], key: str, label: str, colour: str) -> bool:
    """Whether any row has a number under `key`; if so they are drawn over the epochs."""
    points = [(row["epoch"], _number(row.get(key))) for row in rows if _number(row.get(key)) is not None]
    if points:
        ax.plot(*zip(*points, strict=True), color=colour, label=label, lw=1.8,
                marker="." if len(points) < 40 else "")
    return bool(points)


def _mean_line(ax: Axes, x: np.ndarray, curves: np.ndarray, score: float) -> None:
    """The mean over the classes with truths, on top of their lines."""
    ax.plot(x, np.nanmean(curves, 0), color=INK, lw=2.6, label=f"all classes {score:.3f}")


def _class_lines(ax: Axes, metrics: Metrics, x: np.ndarray, curves: np.ndarray,
                 labels: Sequence[str | None]) -> None:
    """A line a class that has truths: coloured and named for few classes, thin and grey for many."""
    names, many = _legible([c.name for c in metrics.classes]), len(metrics.classes) > MANY
    for k, (curve, label) in enumerate(zip(curves, labels, strict=True)):
        if label is not None:
            ax.plot(x, curve, color=GREY if many else COLOURS[k % len(COLOURS)], lw=0.8 if many else 1.5,
                    label="_" if many else f"{names[k]} {label}")
    if many:
        ax.plot([], [], color=GREY, lw=0.8, label="one line a class")


def _finish_curves(fig: Figure, ax: Axes, path: Path | str) -> Path:
    """The written figure of curves on the unit square with its legend beside them."""
    ax.set(xlim=(0, 1), ylim=(0, 1.02))
    if ax.get_legend_handles_labels()[0]:
        ax.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
    else:
        ax.text(0.5, 0.5, "no class has truths here", ha="center", color=GREY)
    return save(fig, path)


def _write_numbers(ax: Axes, share: np.ndarray, counts: np.ndarray | None, size: float) -> None:
    """Percent (and the count below it) in every cell that is not empty."""
    for (i, j), value in np.ndenumerate(share):
        if value > 0:
            text = f"{100 * value:.0f}" if counts is None else f"{100 * value:.0f} %\n{counts[i, j]}"
            colour = "white" if value > 0.55 else INK
            ax.text(j, i, text, ha="center", va="center", fontsize=size, color=colour)


def _installed() -> list[str]:
    """Names of the fonts with Chinese characters that matplotlib finds on this machine."""
    from matplotlib import font_manager
    present = {entry.name for entry in font_manager.fontManager.ttflist}
    return [name for name in CJK_FONTS if name in present]


def _legible(names: Sequence[str]) -> list[str]:
    """The names, shortened to 18 characters; "class k" where no installed font knows a name's characters."""
    from matplotlib import font_manager
    known: set[int] = set()
    for family in ("DejaVu Sans", *_installed()):
        known |= font_manager.get_font(font_manager.findfont(family)).get_charmap().keys()
    short = [name if len(name) <= 18 else name[:17] + "." for name in map(str, names)]
    return [name if all(ord(c) in known for c in name) else f"class {k}" for k, name in enumerate(short)]
