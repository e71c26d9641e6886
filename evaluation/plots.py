"""Plots of a run, without pyplot, windows or global state; matplotlib is loaded by the functions."""
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
CURVES = {"pr": ("recall", "ap50", "map50",        # over what, a class's and the mean's score, the words
                 ("Precision over recall at IoU 0.5 (AP50 in the legend)", "recall", "precision")),
          "f1": ("confidence", "f1", "f1",
                 ("F1 over confidence at IoU 0.5 (F1 at the best confidence in the legend)", "confidence",
                  "F1"))}
MANY = 10                          # more classes than this are grey lines without a legend
CJK_FONTS = ("Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "WenQuanYi Micro Hei",
             "WenQuanYi Zen Hei", "Microsoft YaHei", "SimHei", "PingFang SC", "Hiragino Sans GB",
             "Arial Unicode MS", "Droid Sans Fallback")
PANELS = (("Training loss", (("loss", "total"), ("box", "box"), ("obj", "objectness"), ("cls", "class"))),
          ("Average precision", (("map50", "mAP@0.5"), ("map50_95", "mAP@0.5:0.95"))),
          ("Precision and recall at the best F1", (("precision", "precision"), ("recall", "recall"))),
          ("Learning rate", (("lr", "learning rate"),)))


def results_png(rows: Sequence[dict], path: Path | str) -> Path:
    """Draw losses, AP, precision, recall and learning rate over the epochs, of finite values in log.jsonl."""
    fig = figure(11, 7)
    axes = fig.subplots(2, 2).ravel()
    rows = [row for row in rows if "epoch" in row]
    for ax, (title, lines) in zip(axes, PANELS, strict=True):
        drawn = [(_points(rows, key), label, colour) for (key, label), colour in zip(lines, COLOURS)]
        dress(ax, title, "epoch", "")
        for points, label, colour in drawn:
            if points:
                ax.plot(*zip(*points, strict=True), color=colour, label=label, lw=1.8,
                        marker="." if len(points) < 40 else "")
        ax.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        if not any(points for points, *_ in drawn):
            ax.text(0.5, 0.5, "not recorded", transform=ax.transAxes, ha="center", color=GREY)
        elif len(lines) > 1:
            ax.legend(frameon=False, fontsize=9)
    for ax in axes[1:3]:
        ax.set_ylim(0, 1.02)
    if scored := _points(rows, "map50"):
        epoch, best = max(scored, key=lambda point: point[1])
        axes[1].plot(epoch, best, "o", color=BEST, ms=6)
        head(axes[1], f"Average precision: best mAP@0.5 {best:.3f}, epoch {epoch}")
    return save(fig, path)


def curves_png(metrics: Metrics, kind: str, path: Path | str) -> Path:
    """Draw precision over recall ("pr") or F1 over confidence ("f1") of each class, and their mean."""
    fig = figure(7.5, 5.6)
    ax = fig.subplots()
    over, score_of, mean_of, words = CURVES[kind]
    x, curves, mean = getattr(metrics.curves, over), getattr(metrics.curves, kind), getattr(metrics, mean_of)
    scores = [getattr(c, score_of) for c in metrics.classes]
    names, many = _legible([c.name for c in metrics.classes]), len(scores) > MANY
    for k, score in enumerate(scores):
        if score is not None:
            ax.plot(x, curves[k], color=GREY if many else COLOURS[k % len(COLOURS)], lw=0.8 if many else 1.5,
                    label="_" if many else f"{names[k]} {score:.3f}")
    if many:
        ax.plot([], [], color=GREY, lw=0.8, label="one line per class")
    dress(ax, *words)
    ax.set(xlim=(0, 1), ylim=(0, 1.02))
    if any(score is not None for score in scores):
        ax.plot(x, np.nanmean(curves, 0), color=INK, lw=2.6, label=f"all classes {mean:.3f}")
        if kind == "f1":
            ax.plot(metrics.confidence, mean, "o", color=BEST, ms=7, label=f"at {metrics.confidence:.3f}")
        ax.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
    else:
        ax.text(0.5, 0.5, "no class has ground truth here", ha="center", color=GREY)
    return save(fig, path)


def confusion_png(metrics: Metrics, path: Path | str) -> Path:
    """Draw the confusion matrix, rows divided by their sums; numbers where they fit."""
    counts = metrics.confusion
    names = [*_legible([c.name for c in metrics.classes]), "background"]
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    n = len(names)
    side = min(15.0, 3.4 + max(0.62 if n <= 12 else 0.36 if n <= 30 else 0.14, 0.14) * n)
    fig = figure(side + 0.8, side)
    ax = fig.subplots()
    drawn = ax.imshow(share, cmap="Blues", vmin=0, vmax=1)
    size = 9 if n <= 12 else 7.5 if n <= 30 else 5.5
    for axis, turn in ((ax.xaxis, 90 if n > 4 else 0), (ax.yaxis, 0)):
        axis.set_ticks(range(n), names, rotation=turn, fontsize=size)
        axis.set_ticks(np.arange(-0.5, n), minor=True)
    ax.grid(which="minor", color="#e5e9ef", lw=0.4)
    ax.tick_params(which="both", length=0)
    for (i, j), value in np.ndenumerate(share) if n <= 30 else ():
        if value > 0:
            text = f"{100 * value:.0f} %\n{counts[i, j]}" if n <= 12 else f"{100 * value:.0f}"
            ax.text(j, i, text, ha="center", va="center", fontsize=8 if n <= 12 else 6,
                    color="white" if value > 0.55 else INK)
    ax.set(xlabel="predicted", ylabel="ground truth")
    head(ax, f"Confusion at confidence {metrics.confidence:.3f}, IoU 0.5: share of each row")
    fig.colorbar(drawn, ax=ax, fraction=0.04, pad=0.02)
    return save(fig, path)


def sheet_png(records: Sequence, detections: np.ndarray, decode: Callable[[Path], np.ndarray],
              confidence: float, names: Sequence[str], path: Path | str, count: int = 8) -> Path:
    """Draw `count` images spread over the set: ground truth left, predictions from `confidence` on right.

    records: path, boxes [M, 5] (class, xyxy px); detections [D, 7]; decode gives uint8 [H, W, 3] RGB.
    """
    from detection.draw import contact_sheet, draw
    from detection.outputs import save_image
    shown = [i for i, record in enumerate(records) if len(record.boxes)] or list(range(len(records)))
    chosen = [shown[i] for i in np.linspace(0, len(shown) - 1, min(count, len(shown))).round().astype(int)]
    good, images = detections[detections[:, 5] >= confidence], []
    for i in chosen:
        image = decode(records[i].path)
        images += [draw(image, records[i].boxes[:, [1, 2, 3, 4, 0]], names),
                   draw(image, good[good[:, 0] == i, 1:], names)]
    captions = ["ground truth", "predicted"] * len(chosen)
    save_image(Path(path), contact_sheet(images, 4 if len(images) > 2 else 2, (400, 320), captions))
    return Path(path)


def evaluation_pngs(metrics: Metrics, folder: Path | str) -> list[tuple[str, Path]]:
    """Draw PR curve, F1 curve and confusion matrix into `folder`; return their captions and paths."""
    folder = Path(folder)
    return [("Precision over recall", curves_png(metrics, "pr", folder / "pr_curve.png")),
            ("F1 over confidence", curves_png(metrics, "f1", folder / "f1_curve.png")),
            ("Confusion matrix", confusion_png(metrics, folder / "confusion.png"))]


def figure(width: float, height: float) -> Figure:
    """Return an empty figure of that size in inches, without pyplot."""
    from matplotlib.figure import Figure
    return Figure(figsize=(width, height), dpi=110, layout="constrained", facecolor="white")


def save(fig: Figure, path: Path | str) -> Path:
    """Write the figure as PNG, in fonts that know its characters; return the path."""
    from matplotlib.text import Text
    families = ["DejaVu Sans", *cjk_fonts()]
    for text in fig.findobj(Text):
        text.set_fontfamily(families)
        text.set_parse_math(False)                         # a class may be called "$5"
    fig.savefig(path, format="png")
    return Path(path)


def dress(ax: Axes, title: str, x: str, y: str) -> None:
    """Give the axes a title, names, a light grid and no box."""
    head(ax, title)
    ax.set(xlabel=x, ylabel=y)
    ax.grid(color="#e5e9ef", lw=0.8)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def head(ax: Axes, title: str) -> None:
    """Write the title above the left end of the axes."""
    ax.set_title(title, fontsize=11, color=INK, loc="left")


def _points(rows: Sequence[dict], key: str) -> list[tuple[int, float]]:
    """(epoch, value) of the rows that have a finite number under `key`."""
    return [(row["epoch"], float(row[key])) for row in rows
            if isinstance(row.get(key), int | float) and math.isfinite(row[key])]


def cjk_fonts() -> list[str]:
    """Return those of CJK_FONTS that matplotlib finds on this machine."""
    from matplotlib import font_manager
    present = {entry.name for entry in font_manager.fontManager.ttflist}
    return [name for name in CJK_FONTS if name in present]


def _legible(names: Sequence[str]) -> list[str]:
    """The names, shortened to 18 characters; "class k" where no installed font knows a name's characters."""
    from matplotlib import font_manager
    known: set[int] = set()
    for family in ("DejaVu Sans", *cjk_fonts()):
        known |= font_manager.get_font(font_manager.findfont(family)).get_charmap().keys()
    short = [name if len(name) <= 18 else name[:17] + "." for name in map(str, names)]
    return [name if all(ord(c) in known for c in name) else f"class {k}" for k, name in enumerate(short)]
