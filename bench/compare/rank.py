"""Do two comparisons rank the networks alike? Kendall's tau-b and Spearman's rho with 95 % intervals."""
from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from utils import cli, runs
from utils.errors import UsageError

FIGURES = {"map50_95": "AP", "map50": "AP50"}
DRAWS = 2000
METHOD = ("95 % intervals: {draws} times, networks are drawn with replacement, and of each its seeds in "
          "either record; percentiles of what the draws give")


def tau_b(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return Kendall's tau-b [S] of rows [S, N]; NaN where either is constant."""
    first, other = (np.sign(x[:, :, None] - x[:, None]) for x in (a, b))
    return _ratio((first * other).sum((1, 2)), (first ** 2).sum((1, 2)), (other ** 2).sum((1, 2)))


def rho(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return Spearman's rho [S] of rows [S, N], equal values at their mean rank; NaN: one is constant."""
    from scipy.stats import rankdata
    first, other = (ranks - ranks.mean(1, keepdims=True) for ranks in (rankdata(x, axis=1) for x in (a, b)))
    return _ratio((first * other).sum(1), (first ** 2).sum(1), (other ** 2).sum(1))


def _ratio(both: np.ndarray, first: np.ndarray, other: np.ndarray) -> np.ndarray:
    spread = np.sqrt(first * other)
    return np.divide(both, spread, out=np.full(len(both), np.nan), where=spread > 0)


def agreement(first: Mapping[str, list[float]], other: Mapping[str, list[float]],
              seed: int = 0) -> dict[str, object]:
    """Return tau-b and rho of the means over seeds of the networks that both have, their intervals, and n.

    first, other: network -> a figure of each seed. What is not defined is None: fewer than two networks, or
    all alike. A network drawn twice has the same seeds twice, and so ties with itself alone.
    """
    shared = [net for net in first if net in other]
    rng, n, tables = np.random.default_rng(seed), len(shared), []
    out: dict[str, object] = {"n": n, "nets": shared}
    if n < 2:
        return out | dict.fromkeys(("tau_b", "tau_b_interval", "rho", "rho_interval"))
    means = [np.array([[np.mean(of[net]) for net in shared]]) for of in (first, other)]
    drawn = rng.integers(0, n, (DRAWS, n))
    for of in (first, other):
        values = [np.array(of[net])[rng.integers(0, len(of[net]), (DRAWS, len(of[net])))].mean(1)
                  for net in shared]
        tables.append(np.take_along_axis(np.stack(values, 1), drawn, 1))
    for name, of in (("tau_b", tau_b), ("rho", rho)):
        value, draws = float(of(*means)[0]), of(*tables)
        known = np.isfinite(value)
        out[name] = value if known else None
        out[f"{name}_interval"] = np.nanpercentile(draws, (2.5, 97.5)).tolist() if known else None
    return out


def scores(record: Mapping, budget: str, figure: str) -> dict[str, list[float]]:
    """Return network -> the figure of each seed at a budget; its mean alone where the record has no runs."""
    rows = record.get("runs") or record["budgets"][budget]["rows"]
    out: dict[str, list[float]] = {}
    for row in rows:
        if row.get("budget", budget) == budget and row[figure] is not None:
            out.setdefault(row["net"], []).append(row[figure])
    return out


def compared(first: Mapping, other: Mapping, budgets: tuple[str, str] | None) -> list[dict[str, object]]:
    """Return the agreement of two records of comparisons, by pair of budgets and figure.

    Without budgets each that both have. Raises UsageError where a record lacks one.
    """
    pairs = [budgets] if budgets else [(name, name) for name in first["budgets"] if name in other["budgets"]]
    has = [sorted(record["budgets"]) for record in (first, other)]
    if not pairs or any(a not in has[0] or b not in has[1] for a, b in pairs):
        raise UsageError(f"the budgets are {', '.join(has[0])} and {', '.join(has[1])}: "
                         "name one of each, --budgets A B")
    return [{"budgets": list(pair), "figure": figure,
             **agreement(scores(first, pair[0], figure), scores(other, pair[1], figure))}
            for pair in pairs for figure in FIGURES]


def lines(found: list[dict]) -> list[str]:
    """Return what was found, a sentence each."""
    def told(row: Mapping, name: str) -> str:
        if row[name] is None:
            return "undefined"
        low, high = row[f"{name}_interval"]
        return f"{row[name]:+.3f} ({low:+.3f} to {high:+.3f})"
    return [f"equal {' against '.join(dict.fromkeys(row['budgets']))}, mean {FIGURES[row['figure']]} of "
            f"{row['n']} networks: Kendall tau-b {told(row, 'tau_b')}, Spearman rho {told(row, 'rho')}"
            for row in found] + [METHOD.format(draws=DRAWS)]


def main() -> None:
    """Print how alike two records of compare.py rank their networks, and write it on request."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("records", nargs=2, metavar="RECORD.json", help="results/NAME.json of compare.py "
                        "--save-json, or a comparison.json")
    parser.add_argument("--budgets", nargs=2, choices=("epochs", "minutes"), metavar=("FIRST", "OTHER"),
                        help="epochs or minutes, of either record (default: each that both have)")
    parser.add_argument("--save-json", metavar="NAME", help="also write it to results/NAME.json")
    args = parser.parse_args()
    first, other = (runs.read_record("the record", Path(path), "compare") for path in args.records)
    found = compared(first, other, args.budgets and tuple(args.budgets))
    print("\n".join(lines(found)))
    if args.save_json:
        runs.save_record(args.save_json, {
            "kind": "compare-rank", "records": [Path(path).name for path in args.records], "agreement": found,
            "method": METHOD.format(draws=DRAWS), "threads": 1, "environment": runs.environment()})


if __name__ == "__main__":
    cli.run(main)
