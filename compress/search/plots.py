"""Figure 4: accuracy against parameters, every network of a search labelled by its kernels."""
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from evaluation.plots import BEST, COLOURS, GREY, INK, dress, figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

POINT, LINE = COLOURS[0], COLOURS[2]
MANY = 120                                         # more networks than this: only the front's are labelled
RINGS = (9, 15, 22, 30, 40, 52, 66)                # px between a point and its label
COMPASS = (90, 270, 45, 135, 315, 225, 0, 180, 65, 115, 295, 245)
Box = tuple[float, float, float, float]            # x0, y0, x1, y1 px


def figure4_png(rows: Sequence[Mapping], best: int, front: Sequence[int], path: Path | str) -> Path:
    """Write the plot of map50 (in %) over parameters; best and front: positions of rows that are marked."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    fig = figure(11, 6.6)
    FigureCanvasAgg(fig)
    ax = fig.subplots()
    scale, unit = (1e6, "M") if max(row["parameters"] for row in rows) >= 1e6 else (1e3, "k")
    points = [(row["parameters"] / scale, 100 * row["map50"]) for row in rows]
    steps = sorted(points[i] for i in front)
    ax.plot(*zip(*steps), color=LINE, lw=1.4, drawstyle="steps-post", zorder=2, label="Pareto front")
    ax.scatter(*zip(*points), s=22, color=POINT, zorder=3, label=f"{len(rows)} networks")
    ax.scatter(*points[best], s=130, marker="*", color=BEST, zorder=4,
               label=f"best: {rows[best]['label']}, {points[best][1]:.1f} %")
    dress(ax, "Accuracy and parameters of the kernels tried", f"parameters ({unit})", "mAP@0.5 (%)")
    ax.margins(0.05, 0.12)
    ax.ticklabel_format(useOffset=False)
    ax.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(0, -0.09), ncols=3)
    named = range(len(rows)) if len(rows) <= MANY else sorted({*front, best})
    label_points(ax, [(points[i], rows[i]["label"], i == best) for i in named], points)
    fig.savefig(path, format="png")
    return Path(path)


def label_points(ax: Axes, wanted: Sequence[tuple[tuple[float, float], str, bool]],
                 points: Sequence[tuple[float, float]]) -> None:
    """Write a label beside each point, away from points and from the labels before it."""
    from matplotlib.patheffects import withStroke
    fig = ax.figure
    fig.canvas.draw()                              # only now it is known where the points come to lie
    renderer, to_px = fig.canvas.get_renderer(), ax.transData.transform
    taken: list[Box] = [(x - 4, y - 4, x + 4, y + 4) for x, y in map(to_px, points)]
    taken += [(x - 10, y - 8, x + 10, y + 10) for x, y in (to_px(p) for p, _, strong in wanted if strong)]
    frame = ax.get_window_extent(renderer).extents
    for point, text, strong in sorted(wanted, key=lambda w: (not w[2], -w[0][1], w[0][0])):
        look = {"fontsize": 8 if len(wanted) <= 40 else 6.5, "color": BEST if strong else INK,
                "fontweight": "bold" if strong else "normal"}
        drawn = ax.text(*point, text, ha="center", va="center", zorder=5, **look)
        drawn.set_path_effects([withStroke(linewidth=2.5, foreground="white")])
        size = drawn.get_window_extent(renderer)
        x, y = to_px(point)
        cx, cy, ring = _place(x, y, size.width, size.height, taken, frame)
        taken.append((cx - size.width / 2, cy - size.height / 2, cx + size.width / 2, cy + size.height / 2))
        drawn.set_position(ax.transData.inverted().transform((cx, cy)))
        if ring > RINGS[1]:
            end = ax.transData.inverted().transform((cx, cy + math.copysign(size.height / 2, y - cy)))
            ax.plot(*zip(point, end), color=GREY, lw=0.5, zorder=1)


def _place(x: float, y: float, width: float, height: float, taken: Sequence[Box],
           frame: np.ndarray) -> tuple[float, float, float]:
    """Return a label's middle for the point (x, y), px, and its ring: the nearest place that covers least."""
    best, others = (math.inf, x, y, 0.0), np.array(taken)
    for ring, angle in product(RINGS, map(math.radians, COMPASS)):
        cx = x + math.cos(angle) * (ring + width / 2 - 4)
        cy = y + math.sin(angle) * (ring + height / 2 - 4)
        box = np.array((cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2))
        outside = (box[:2] < frame[:2]).any() or (box[2:] > frame[2:]).any()
        shared = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
        covered = shared.clip(0).prod(1).sum() + 1e6 * outside
        if covered < best[0]:
            best = (covered, cx, cy, ring)
        if not covered:
            break
    return best[1:]
