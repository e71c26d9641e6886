"""What a comparison comes to, as one record: rows, fronts, verdicts, the best at each budget. No torch."""
from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from bench.compare.config import RUNTIMES
from bench.compare.judge import FIGURES, Standing, all_verdicts, at_limits, best, seed_deviation, standings
from compress.search.rows import front

Row = dict[str, object]
SPREAD = ("map50", "map50_95")                             # figures whose deviation over seeds is told


def make_record(runs: Sequence[Mapping], speed: Mapping[str, Mapping], limits: Mapping[str, Sequence[float]],
                seed: int = 0) -> dict[str, object]:
    """Return what each budget came to. speed: network -> runtime -> ms, as `speed.measure` gives it."""
    budgets = list(dict.fromkeys(run["budget"] for run in runs))
    return {budget: _of_budget([run for run in runs if run["budget"] == budget], speed, limits, seed)
            for budget in budgets}


def _of_budget(runs: Sequence[Mapping], speed: Mapping[str, Mapping], limits: Mapping[str, Sequence[float]],
               seed: int) -> dict[str, object]:
    found, by_ap = standings(runs, seed), standings(runs, seed, "map50_95")
    rows = [row_of(one, [run for run in runs if run["net"] == one.net], speed.get(one.net, {}))
            for one in found]
    costs = {key: {row["net"]: row.get(key) for row in rows} for key in ("ms", "parameters", "minutes")}
    timed = [{**row, "latency_ms": row["ms"]} for row in rows if row.get("ms") is not None]
    return {"rows": rows, **_judged(found),
            "front": [row["net"] for row in sorted((timed[i] for i in front(timed, ("map50_95", "latency"))),
                                                   key=lambda row: row["ms"])],
            "by_ap": by_ap and _judged(by_ap) or None,
            "limits": {key: at_limits(found, cost, limits.get(key, ())) for key, cost in costs.items()
                       if any(value is not None for value in cost.values())}}


def _judged(found: Sequence[Standing]) -> dict[str, object]:
    """Return who is ahead by one score, what ties with it, and all differences."""
    deviation = seed_deviation(found)
    winner, ties = best(found, deviation)
    return {"seed_deviation": deviation, "best": winner, "ties": ties,
            "verdicts": [{**one._asdict(), "tie": one.tie} for one in all_verdicts(found)]}


def row_of(standing: Standing, runs: Sequence[Mapping], speed: Mapping[str, object]) -> Row:
    """Return a network's row: counts, ms, means over seeds and their deviations; None where undefined."""
    def mean(key: str) -> float | None:
        values = [run[key] for run in runs if run.get(key) is not None]
        return statistics.fmean(values) if values else None

    ms = {runtime: speed[runtime] for runtime in RUNTIMES if runtime in speed}
    return {"net": standing.net, "seeds": len(runs),
            **{key: runs[0].get(key) for key in ("parameters", "macs", "moved")}, "bytes": speed.get("bytes"),
            **{f"ms_{runtime}": value for runtime, value in ms.items()},
            "ms": ms.get("onnx", min(ms.values()) if ms else None), "ms_spread": speed.get("spread"),
            **{key: mean(key) for key in FIGURES},
            **{f"{key}_sd": statistics.stdev([run[key] for run in runs]) if len(runs) > 1 else None
               for key in SPREAD},
            "epochs": mean("epochs"), "minutes": (mean("seconds") or 0.0) / 60}


def mean_curves(runs: Sequence[Mapping], key: str) -> dict[str, list[tuple[float, float, float, float]]]:
    """Return network -> (epoch from 1, mean, lowest, highest over seeds) where every seed has the figure."""
    by_net: dict[str, list[dict[int, float]]] = {}
    for run in runs:
        points = {int(row["epoch"]) + 1: float(row[key]) for row in run["curves"] if row.get(key) is not None}
        by_net.setdefault(run["net"], []).append(points)
    out = {}
    for net, seeds in by_net.items():
        shared = sorted(set.intersection(*map(set, seeds)))
        if shared:
            out[net] = [(at, statistics.fmean(values), min(values), max(values))
                        for at in shared if (values := [one[at] for one in seeds])]
    return out
