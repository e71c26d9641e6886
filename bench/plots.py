"""The picture of a benchmark: accuracy against latency, or latencies with their spread."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.cases import KEYS, label, shared
from compress.search.plots import label_points
from evaluation import plots
from evaluation.plots import COLOURS, INK


def benchmark_png(rows: Sequence[Mapping], scope: str, path: Path) -> Path:
    """The written picture of measured cases: AP50 against the median latency of a scope, of those that have
    one; where none has, a bar a case with lines to its 90th and 99th percentile."""
    if rated := [row for row in rows if row["accuracy"].get("map50") is not None]:
        return _against(rated, scope, path)
    common, names = _words(rows)
    fig = plots.figure(10, 1.6 + 0.42 * len(rows))
    ax = fig.subplots()
    for at, row in enumerate(rows):
        found = row["scopes"][scope]
        ax.barh(at, found["p50"], color=_colour(row, rows), height=0.62)
        ax.plot((found["p50"], found["p90"]), (at, at), color=INK, lw=3)
        ax.plot((found["p90"], found["p99"]), (at, at), color=INK, lw=1)
        ax.text(found["p99"], at, f"  {found['p50']:.2f}", va="center", fontsize=8, color=INK)
    ax.set_yticks(range(len(rows)), names, fontsize=8)
    ax.invert_yaxis()
    ax.margins(x=0.1)
    plots.dress(ax, f"Latency, {scope}, with lines to the 90th and 99th percentile; {common}",
                 "median ms a call", "")
    return plots.save(fig, path)


def _against(rows: Sequence[Mapping], scope: str, path: Path) -> Path:
    """AP50 over latency, a point a case with a line over the middle 80 % of its processes' calls."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    fig = plots.figure(10, 6.2)
    FigureCanvasAgg(fig)                                   # labels are placed where the points come to lie
    ax = fig.subplots()
    points = [(row["scopes"][scope]["p50"], 100 * row["accuracy"]["map50"]) for row in rows]
    for row, (x, y) in zip(rows, points):
        found = row["scopes"][scope]
        ax.plot((found["min"], found["p90"]), (y, y), color=_colour(row, rows), lw=1)
        ax.plot(x, y, "o", color=_colour(row, rows), ms=7)
    common, names = _words(rows)
    plots.dress(ax, f"Accuracy and latency, {scope}, with lines from the least to the 90th percentile; "
                 f"{common}", "median ms a call", "mAP@0.5, %")
    ax.margins(0.1, 0.15)
    label_points(ax, [(point, name, False) for name, point in zip(names, points)], points)
    return plots.save(fig, path)


def _words(rows: Sequence[Mapping]) -> tuple[str, list[str]]:
    """What all cases have in common, and what tells each from the others."""
    same = shared(rows)
    return label(rows[0], same), [label(row, [key for key in KEYS if key not in same]) for row in rows]


def _colour(row: Mapping, rows: Sequence[Mapping]) -> str:
    """A colour for each artifact."""
    names = list(dict.fromkeys(other["name"] for other in rows))
    return COLOURS[names.index(row["name"]) % len(COLOURS)]
