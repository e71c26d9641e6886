"""What a search found: ranks, front, spread over seeds, agreement of two rankings, table and files.

A row is a trial: its COLUMNS (latency_ms where it was measured), and kernels and ops (layer -> value).
"""
from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Sequence

from utils.errors import DataError
from utils.text import aligned

Row = dict[str, object]
OBJECTIVES = {"map50": ("map50", "maximize"), "map50_95": ("map50_95", "maximize"),
              "params": ("parameters", "minimize"), "macs": ("macs", "minimize"),
              "latency": ("latency_ms", "minimize")}
LOWER = ("val_loss",)                              # scores of which less is better
COLUMNS = ("label", "seed", "map50", "map50_95", "val_loss", "parameters", "macs", "loose_macs",
           "latency_ms", "epochs", "seconds")


def values_of(row: Row, objectives: Sequence[str]) -> list[float]:
    """Return the row's values of the objectives, in their order."""
    return [float(row[OBJECTIVES[name][0]]) for name in objectives]


def ranked(rows: Sequence[Row], score: str) -> list[int]:
    """Return positions of the rows, the best score first; of equal scores, the smaller network."""
    return sorted(range(len(rows)), key=lambda i: (-_good(rows[i], score), rows[i]["parameters"],
                                                   rows[i]["label"]))


def _good(row: Row, score: str) -> float:
    """Return a row's score, more being better."""
    return -row[score] if score in LOWER else row[score]


def front(rows: Sequence[Row], objectives: Sequence[str]) -> list[int]:
    """Return positions of the rows that no other row equals or beats in every objective and beats in one."""
    signs = [-1 if OBJECTIVES[name][1] == "maximize" else 1 for name in objectives]
    costs = [[s * v for s, v in zip(signs, values_of(row, objectives))] for row in rows]

    def beaten(mine: list[float]) -> bool:
        return any(other != mine and all(o <= m for o, m in zip(other, mine)) for other in costs)
    return [i for i, mine in enumerate(costs) if not beaten(mine)]


def spread(rows: Sequence[Row], score: str) -> list[dict[str, object]]:
    """Return choices with several seeds, the best mean first: label, seeds, values, mean, std (n - 1)."""
    out = [{"label": label, "seeds": [r["seed"] for r in same], "values": values,
            "mean": statistics.fmean(values), "std": statistics.stdev(values)}
           for label, same in _by_choice(rows).items()
           if len(values := [r[score] for r in same]) > 1]
    return sorted(out, key=lambda entry: -entry["mean"])


def best_of(rows: Sequence[Row], score: str) -> int:
    """Return the position of the best row: of choices with several seeds, if any, that of the best mean."""
    repeated, order = spread(rows, score), ranked(rows, score)
    return next(i for i in order if not repeated or rows[i]["label"] == repeated[0]["label"])


def rank_agreement(rows: Sequence[Row], others: Sequence[Row], score: str = "map50",
                   other_score: str = "") -> dict[str, object]:
    """Return how alike two searches rank the choices both have: Kendall's tau-b, Spearman's rho, number n.

    A choice's value is its mean over seeds, of the others by `other_score` where given. None where one ranks
    all alike; DataError for fewer than three.
    """
    from scipy.stats import kendalltau, spearmanr
    mine, theirs = _means(rows, score), _means(others, other_score or score)
    both = sorted(mine.keys() & theirs.keys())
    if len(both) < 3:
        raise DataError(f"the two searches have {len(both)} choices of kernels and block types in common; "
                        "3 or more are needed to compare their ranks")
    pairs = [mine[key] for key in both], [theirs[key] for key in both]
    constant = any(len(set(values)) == 1 for values in pairs)
    tau, rho = (None, None) if constant else (float(f(*pairs).statistic) for f in (kendalltau, spearmanr))
    return {"kendall": tau, "spearman": rho, "n": len(both)}


def between_seeds(rows: Sequence[Row], score: str) -> dict[str, float | int | None] | None:
    """Return the noise ceiling of a ranking: what of one seed's ranks is not chance; None without repeats.

    n: choices with several seeds. spearman: of their first two seeds, None for fewer than three choices.
    seed_std: spread of a choice over seeds, pooled; too large where only the best, lucky ones were repeated.
    choice_std: spread of all choices at one seed, pooled over the seeds that all have.
    explained: 1 - (seed_std / choice_std)^2, at least 0 (reliability): the expected correlation of two seeds.
    """
    from scipy.stats import spearmanr
    values = [[row[score] for row in same] for same in _by_choice(rows).values()]
    repeated = [found for found in values if len(found) > 1]
    if not repeated:
        return None
    freedom = sum(len(found) - 1 for found in repeated)
    within = sum(statistics.variance(found) * (len(found) - 1) for found in repeated) / freedom
    columns = zip(*values)                                 # ends with the seeds that all have
    total = statistics.fmean(map(statistics.variance, columns)) if len(values) > 1 else 0.0
    pairs = [found[0] for found in repeated], [found[1] for found in repeated]
    constant = any(len(set(side)) == 1 for side in pairs)
    return {"n": len(repeated), "seed_std": within ** 0.5, "choice_std": total ** 0.5,
            "spearman": None if len(repeated) < 3 or constant else float(spearmanr(*pairs).statistic),
            "explained": max(0.0, 1 - within / total) if total else 0.0}


def ceiling(rows: Sequence[Row], score: str) -> float | None:
    """Return the rho that a ranking free of chance can be expected to have with these rows; None if unknown.

    The root of the reliability of a choice's mean over its seeds (Spearman and Brown 1910).
    """
    found = between_seeds(rows, score)
    if found is None:
        return None
    seeds, share = min(map(len, _by_choice(rows).values())), found["explained"]
    return (seeds * share / (1 + (seeds - 1) * share)) ** 0.5


def _by_choice(rows: Sequence[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["label"], []).append(row)
    return found


def _means(rows: Sequence[Row], score: str) -> dict[tuple, float]:
    """Return (kernels, block types) -> mean score over seeds; labels of another search may be others."""
    return {(*sorted(same[0]["kernels"].items()), *sorted((same[0].get("ops") or {}).items())):
            statistics.fmean(_good(row, score) for row in same) for same in _by_choice(rows).values()}


def trials_csv(rows: Sequence[Row]) -> str:
    """Return the rows as CSV text: a column per figure, then kernel and block type per layer."""
    layers = list(dict.fromkeys(layer for row in rows for layer in row["kernels"]))
    extra = [f"{layer}.{what}" for layer in layers for what in ("kernel", "op")]
    text = io.StringIO()
    writer = csv.DictWriter(text, [*COLUMNS, *extra], extrasaction="ignore", restval="", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({**row, **{f"{k}.kernel": v for k, v in row["kernels"].items()},
                         **{f"{k}.op": v for k, v in row["ops"].items()}})
    return text.getvalue()


def table_lines(rows: Sequence[Row], score: str, best: int, marked: Sequence[int] = ()) -> list[str]:
    """Return aligned lines of the rows, the best score first, with "best" and, for `marked`, "front"."""
    timed, lost = (any(name in row for row in rows) for name in ("latency_ms", "val_loss"))
    head = ["choice", "seed", "AP50", "AP", *(["val loss"] if lost else []), "parameters", "MMACs",
            *(["ms"] if timed else []), "seconds", ""]
    body = [[row["label"], row["seed"], f"{row['map50']:.4f}", f"{row['map50_95']:.4f}",
             *([f"{row['val_loss']:.4f}"] if lost else []), row["parameters"],
             f"{row['macs'] / 1e6:.1f}", *([f"{row['latency_ms']:.2f}"] if timed else []),
             f"{row['seconds']:.0f}", " ".join(["best"] * (i == best) + ["front"] * (i in marked))]
            for i, row in ((i, rows[i]) for i in ranked(rows, score))]
    return [line.rstrip() for line in aligned(head, body).split("\n")]
