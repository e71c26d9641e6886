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
from evaluation.metrics import Metrics

DRAWS, TIE = 1000, 2.0                                     # resamples of the images; standard errors
FIGURES = ("map50", "map50_95", "map_small", "map_medium", "map_large", "precision", "recall", "f1")
FIELDS = ("image", "label", "score", "right", "ignored")   # of a detection that is kept
SCORE = "map50"                                            # what networks are compared by


def figures(metrics: Metrics) -> dict[str, object]:
    """Return what tables and this judge read of an evaluation."""
    return {**{name: getattr(metrics, name) for name in FIGURES}, "matches": packed(metrics.matches)}


def packed(matches: Matches) -> str:
    """Return matches as short text, without what ranks below a class's last right one: no AP feels it."""
    kept = np.zeros(len(matches.image), bool)
    for k in np.unique(matches.label):
        mine = matches.label == k
        floor = matches.score[mine & matches.right].min(initial=np.inf)
        kept |= mine & (matches.score >= floor)
    values = {name: getattr(matches, name)[kept].tolist() for name in FIELDS if name != "score"}
    values |= {"score": matches.score[kept].tolist(), "target_image": matches.target_image.tolist(),
               "target_label": matches.target_label.tolist(), "images": matches.images,
               "classes": matches.classes}
    return base64.b64encode(zlib.compress(json.dumps(values).encode())).decode()


def unpacked(text: str) -> Matches:
    """Return what `packed` kept, as far as average precision depends on it."""
    found = json.loads(zlib.decompress(base64.b64decode(text)))
    right = np.array(found["right"], bool)
    count, targets = len(right), len(found["target_image"])
    whole = {name: np.array(found[name], int) for name in ("image", "label", "target_image", "target_label")}
    return Matches(row=np.arange(count), score=np.array(found["score"], float), target=np.where(right, 0, -1),
                   ignored=np.array(found["ignored"], bool), target_index=np.arange(targets),
                   images=found["images"], classes=found["classes"], **whole)


class Standing(NamedTuple):
    """A network at one budget: AP50 of its seeds, and the mean over seeds in each draw of the images [S]."""

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


def standings(runs: Sequence[Mapping], seed: int = 0) -> list[Standing]:
    """Return the networks of the runs of one budget, the best first. All must be of one validation set."""
    by_net: dict[str, list[Mapping]] = {}
    for run in runs:
        by_net.setdefault(run["net"], []).append(run)
    found = []
    for net, mine in by_net.items():
        matches = [unpacked(run["matches"]) for run in mine]
        n = matches[0].images                              # the same draws for each: differences pair
        draws = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=DRAWS)
        found.append(Standing(net, tuple(run[SCORE] for run in mine),
                              np.mean([map50_of(one, draws) for one in matches], 0)))
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
