"""Which network is best, by rule: paired draws of images, spread over seeds, ties within two standard errors.

A run is a record of `trainings.run_of`: net, seed, budget, figures, its matches with the ground truth.
"""
from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

from evaluation.curves import Matches, map50_of
from evaluation.metrics import Metrics, matches_at

DRAWS, TIE = 1000, 2.0                                     # resamples of the images; standard errors
AP_DRAWS = 200                                             # of AP, which costs ten of AP50's each
IOUS = tuple(np.linspace(.5, .95, 10).round(2).tolist())
FIGURES = ("map50", "map50_95", "map_small", "map_medium", "map_large", "precision", "recall", "f1")
FIELDS = ("image", "label", "score")                       # of a detection that is kept
SCORES = ("map50", "map50_95")                             # what networks are compared by, each for itself


def figures(metrics: Metrics, truth: dict, detections: np.ndarray) -> dict[str, object]:
    """Return what tables and this judge read of an evaluation of detections [D, 7] for a COCO dict."""
    matches = matches_at(truth, detections, len(metrics.classes), IOUS, max_det=metrics.max_det)
    return {**{name: getattr(metrics, name) for name in FIGURES}, "matches": packed(matches)}


def packed(by_iou: Sequence[Matches]) -> str:
    """Return matches, at AP50's IoU alone or at all IOUS, as short text.

    Without what ranks below a class's last right one: no AP feels it.
    """
    first = by_iou[0]
    right, ignored = (np.stack([getattr(one, name) for one in by_iou]) for name in ("right", "ignored"))
    kept = np.zeros(len(first.image), bool)
    for k in np.unique(first.label):
        mine = first.label == k
        floor = first.score[mine & right.any(0)].min(initial=np.inf)
        kept |= mine & (first.score >= floor)
    values = {name: getattr(first, name)[kept].tolist() for name in FIELDS}
    values |= {"right": right[:, kept].astype(int).tolist(), "ignored": ignored[:, kept].astype(int).tolist(),
               "target_image": first.target_image.tolist(), "target_label": first.target_label.tolist(),
               "images": first.images, "classes": first.classes}
    return base64.b64encode(zlib.compress(json.dumps(values).encode())).decode()


def unpacked(text: str) -> list[Matches]:
    """Return what `packed` kept, as far as average precision depends on it."""
    found = json.loads(zlib.decompress(base64.b64decode(text)))
    # Runs of before have AP50's matches alone, as one row.
    right, ignored = (np.atleast_2d(np.array(found[name], bool)) for name in ("right", "ignored"))
    whole = {name: np.array(found[name], int) for name in ("image", "label", "target_image", "target_label")}
    whole |= {"row": np.arange(right.shape[1]), "score": np.array(found["score"], float),
              "target_index": np.arange(len(found["target_image"])), "images": found["images"],
              "classes": found["classes"]}
    return [Matches(target=np.where(good, 0, -1), ignored=crowd, **whole)
            for good, crowd in zip(right, ignored)]


class Standing(NamedTuple):
    """A network at one budget: a score of its seeds, and the mean over seeds in each draw of images [S]."""

    net: str
    scores: tuple[float, ...]
    draws: np.ndarray

    @property
    def mean(self) -> float:
        """Return the mean over seeds."""
        return float(np.mean(self.scores))


class Verdict(NamedTuple):
    """What stands between two networks: the difference of their means and its standard error."""

    first: str
    other: str
    difference: float
    error: float
    by_images: float
    by_seeds: float | None                                 # None: no network has two seeds

    @property
    def tie(self) -> bool:
        """Return whether chance explains the difference."""
        return abs(self.difference) <= TIE * self.error


def standings(runs: Sequence[Mapping], seed: int = 0, score: str = SCORES[0]) -> list[Standing]:
    """Return the networks of the runs of one budget, the best first. All must be of one validation set.

    Empty where a run lacks the matches of a score of SCORES.
    """
    by_net: dict[str, list[Mapping]] = {}
    for run in runs:
        by_net.setdefault(run["net"], []).append(run)
    found, times, ious = [], *((DRAWS, 1) if score == SCORES[0] else (AP_DRAWS, len(IOUS)))
    for net, mine in by_net.items():
        matches = [unpacked(run["matches"])[:ious] for run in mine]
        if any(len(one) < ious for one in matches):
            return []
        n = matches[0][0].images                           # the same draws for each: differences pair
        draws = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=times)
        found.append(Standing(net, tuple(run[score] for run in mine),
                              np.mean([map50_of(at, draws) for one in matches for at in one], 0)))
    return sorted(found, key=lambda standing: -standing.mean)


def seed_deviation(found: Sequence[Standing]) -> float | None:
    """Return the deviation of a training of one network from another of it, pooled; None without repeats."""
    freedom = sum(len(one.scores) - 1 for one in found)
    within = sum(np.var(one.scores) * len(one.scores) for one in found)
    return float(np.sqrt(within / freedom)) if freedom else None


def verdict(a: Standing, b: Standing, deviation: float | None) -> Verdict:
    """Return what stands between two networks; deviation: that of `seed_deviation`."""
    by_images = float(np.nanstd(a.draws - b.draws, ddof=1))
    by_seeds = None if deviation is None else deviation * float(
        np.sqrt(1 / len(a.scores) + 1 / len(b.scores)))
    error = float(np.hypot(by_images, by_seeds or 0.0))
    return Verdict(a.net, b.net, a.mean - b.mean, error, by_images, by_seeds)


def best(found: Sequence[Standing], deviation: float | None) -> tuple[str, list[str]]:
    """Return the network of the best mean, and those that tie with it."""
    first = found[0]
    return first.net, [one.net for one in found[1:] if verdict(first, one, deviation).tie]


def all_verdicts(found: Sequence[Standing]) -> list[Verdict]:
    """Return what stands between any two networks."""
    deviation = seed_deviation(found)
    return [verdict(a, b, deviation) for a, b in combinations(found, 2)]


def at_limits(found: Sequence[Standing], costs: Mapping[str, float | None],
              limits: Sequence[float] = ()) -> list[dict[str, object]]:
    """Return, for each budget of a cost, the best network that keeps it, and its ties.

    costs: net -> its cost; None takes no part. limits: the budgets; without any the costs' quartiles.
    """
    known = {net: cost for net, cost in costs.items() if cost is not None}
    deviation, rows = seed_deviation(found), []
    wanted = limits or sorted({float(v) for v in np.quantile(list(known.values()), (.25, .5, .75, 1),
                                                             method="higher")} if known else [])
    for limit in wanted:
        fits = [one for one in found if known.get(one.net, np.inf) <= limit]
        if not fits:
            rows.append({"limit": limit, "best": None, "ties": [], "of": 0})
            continue
        net, ties = best(fits, deviation)
        rows.append({"limit": limit, "best": net, "map50": fits[0].mean, "ties": ties, "of": len(fits)})
    return rows
