"""What a benchmark leaves: its report as JSON, as Markdown, as text and as a picture."""
from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from bench.cases import KEYS, SCHEMA, SCOPES, STAGES, pack
from bench.machine import counters, figure_taints
from bench.plots import benchmark_png
from bench.run import Bench, Taken
from bench.stats import contrast, figures
from bench.tables import page, text
from deploy.artifact import digest, size
from utils import runs
from utils.redact import masked

FACTS = ("kind", "note", "parameters", "macs", "loose_macs", "classes", "loads", "steady", "peak_rss_bytes",
         "peak_gpu_bytes", "variables")


def make_report(bench: Bench, environment: dict, layers: Sequence[dict], stopped: str = "") -> dict:
    """The report as JSON; docs/benchmark.md says what each key means."""
    args = bench.args
    rows = [row_of(taken) for taken in bench.taken]
    taints = list(bench.taints) + [stopped] * bool(stopped)
    for row, taken in zip(rows, bench.taken):
        peers = [t for t in bench.taken if t.status == "measured" and t.case.group == taken.case.group]
        alike = [t for t in peers if (t.case.runtime, t.case.precision) == (taken.case.runtime,
                                                                            taken.case.precision)]
        row["against"], row["beside"] = _ratios(peers, taken), _ratios(alike, taken)
    taints += figure_taints({f"{row['label']}, {scope}": found for row in rows
                             for scope, found in row["scopes"].items()})
    settings = {"source": masked(args.source or "the embedded set"), "rounds": args.rounds,
                "turns": bench.turns, "slice_seconds": bench.slice, "slice_calls": bench.calls,
                "full": args.full, "data": args.data and str(args.data),
                **{k: bench.plan[k] for k in ("pictures", "conf_thres", "iou_thres", "max_det", "scopes")}}
    return {"schema": SCHEMA, "kind": "benchmark", "tainted": taints, "settings": settings,
            "environment": {**environment, "after": counters()}, "cases": rows, "layers": list(layers)}


def _ratios(peers: Sequence[Taken], taken: Taken) -> dict:
    """How a case stands to the first of its peers, by scope; empty for that one itself."""
    if taken.status != "measured" or peers[0] is taken:
        return {}
    first = peers[0]
    return {"label": first.case.label, **{scope: contrast(first.rounds[scope], rounds, paired=True)
                                          for scope, rounds in taken.rounds.items() if scope in first.rounds}}


def row_of(taken: Taken) -> dict:
    """A case as the report holds it."""
    case = taken.case
    row = {"label": case.label, **{key: getattr(case, key) for key in KEYS}, "status": taken.status,
           "reason": taken.reason}
    if taken.status != "measured":
        return {**row, "scopes": {}, "stages": {}, "accuracy": {}, "samples": {}}
    path = Path(case.weights)
    found = {scope: figures(rounds, case.batch, taken.seconds[scope])
             for scope, rounds in taken.rounds.items()}
    return {**row, "artifact": {"file": path.name, "sha256": digest(path), "bytes": size(path)},
            **{key: taken.facts[key] for key in FACTS}, "flops": 2 * taken.facts["macs"], "scopes": found,
            "stages": {stage: figures([[taken.stages[stage]]], case.batch) for stage in STAGES
                       if stage in taken.stages},
            "accuracy": {k: v for k, v in taken.accuracy.items() if k not in ("cpu_seconds", "exit_code")},
            "samples": {scope: pack(rounds) for scope, rounds in taken.rounds.items()}}


def write(report: dict, folder: Path, save_json: str | None) -> str:
    """The report as text, after its files were written into the run folder."""
    measured = [row for row in report["cases"] if row["status"] == "measured"]
    pictures = [benchmark_png(rows, scope, folder / f"{scope}.png").name for scope in SCOPES
                if (rows := [row for row in measured if scope in row["scopes"]])]
    (folder / "benchmark.md").write_text(page(report, pictures), encoding="utf-8")
    runs.write_json(folder / "benchmark.json", report)
    if save_json:                                          # figures and verdicts, without every single call
        brief = {**report, "cases": [{**row, "samples": {}} for row in report["cases"]]}
        runs.save_record(save_json, {**brief, "figures": by_name(measured)})
    return text(report)


def by_name(measured: Sequence[dict]) -> dict[str, dict]:
    """The figures that pages quote, under names made of letters, digits and underscores alone."""
    def name(text: str) -> str:
        return re.sub(r"\W+", "_", text)
    return {name(row["label"]): {"map50": row["accuracy"].get("map50"), **{name(scope): {
        **{key: found[key] for key in ("p50", "p90", "p99", "fps")},
        **{which: row[which].get(scope) for which in ("against", "beside")}}
        for scope, found in row["scopes"].items()}} for row in measured}
