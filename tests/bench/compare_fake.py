"""Runs of networks that were never trained: boxes found or missed at random, as often as is asked for."""
from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from bench.compare.judge import packed
from evaluation.curves import Matches, map50_of

IMAGES, BOXES = 120, 4                                     # of the set, and of an image


def run_of(net: str, seed: int, skill: float, budget: str = "epochs", epochs: int = 12,
           shift: float = 0.0) -> dict:
    """A run that finds a box with chance `skill`: which, depends on the box, the network and the seed.

    shift: what this seed's training happened to be better by.
    """
    hard = np.random.default_rng(7).random(IMAGES * BOXES)               # the same boxes are hard for all
    rng = np.random.default_rng([seed, *net.encode()])
    found = .7 * hard + .3 * rng.random(len(hard)) < skill + shift
    image, label = np.arange(IMAGES).repeat(BOXES), np.tile(np.arange(BOXES) % 2, IMAGES)
    score = np.where(found, .4, .1) + .5 * rng.random(len(hard))
    count = len(hard)
    matches = Matches(np.arange(count), image, label, score, np.where(found, np.arange(count), -1),
                      np.zeros(count, bool), image, label, np.arange(count), IMAGES, 2)
    map50 = float(map50_of(matches, np.ones((1, IMAGES), int))[0])
    rows = [{"epoch": at, "map50": map50 * (1 - .8 ** (at + 1)),
             "map50_95": .5 * map50 * (1 - .8 ** (at + 1)),
             "f1": .9 * map50 * (1 - .7 ** (at + 1)), "precision": .8 * (1 - .6 ** (at + 1)),
             "recall": map50 * (1 - .75 ** (at + 1)), "box": .2 + .9 ** at + .02 * rng.random(),
             "cls": .1 + .8 ** at, "obj": .3 + .85 ** at} for at in range(epochs)]
    return {"net": net, "seed": seed, "budget": budget, "map50": map50, "map50_95": .5 * map50,
            "map_small": None, "map_medium": .4 * map50, "map_large": .6 * map50, "precision": .8,
            "recall": map50, "f1": .9 * map50, "parameters": 1000 * len(net),
            "matches": packed([matches] * 5 + [matches._replace(target=np.full(count, -1))] * 5),
            "macs": 10 ** 6 * len(net), "moved": 10 ** 6, "epochs": epochs, "seconds": 60.0 + len(net),
            "curves": rows}


def runs_of(skills: Mapping[str, float], seeds: int = 3, deviation: float = .0, **more: object) -> list[dict]:
    """Runs of networks with several seeds, whose skill moves by `deviation` from seed to seed."""
    return [run_of(net, seed, skill, shift=deviation * (seed - (seeds - 1) / 2), **more)
            for net, skill in skills.items() for seed in range(seeds)]
