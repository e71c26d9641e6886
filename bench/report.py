"""A benchmark's report: made, written as JSON, tables and a plot, read again and compared with another."""
from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.cases import KEYS, SCHEMA, SCOPES, STAGES, label, pack, shared, unpack
from bench.machine import counters, figure_taints
from bench.profile.timing import contrast, figures
from bench.run import Bench, Taken
from compress.search.plots import label_points
from deploy.artifact import digest, size
from evaluation import plots
from evaluation.plots import COLOURS
from utils import runs
from utils.errors import DataError, UsageError
from utils.redact import masked
from utils.text import aligned, markdown, shown

FACTS = ("kind", "note", "parameters", "macs", "loose_macs", "classes", "loads", "steady", "peak_rss_bytes",
         "peak_gpu_bytes", "variables")
BRIEF = ("p50", "p90", "p99", "fps")
SAME = ("imgsz", "batch", "threads", "device", "cpu")      # without these two times are of different things
LOOKED = ("pictures", "conf_thres", "iou_thres", "max_det")    # ... and end to end without these
MEANING = {"network": "network alone: uint8 images in memory to head outputs",
           "end-to-end": "end to end: image files to drawn images, one stage after the other"}
SPEED = ("case", "p50", "p90", "p99", "FPS = batch/p50", "sustained", "as fast (95 %)", "verdict")
COST = ("case", "AP50", "parameters", "GMACs", "GFLOPs", "MB", "load s", "first ms", "warm-up", "peak MB")
LAYERS = ("layer", "op", "width", "ms", "limit", "MMACs", "MB", "GMAC/s", "MACs/byte", "bound")
Table = tuple[str, Sequence[str], list[list[str]]]


def make_report(bench: Bench, layers: Sequence[dict], stopped: str = "") -> dict:
    """Return the report as JSON; docs/benchmark.md says what each key means."""
    config, rows = bench.config, []
    measured = bench.measured()
    for taken in bench.taken:
        case = taken.case
        peers = [other for other in measured if other.case.group == case.group]
        alike = [other for other in peers
                 if (other.case.runtime, other.case.precision) == (case.runtime, case.precision)]
        rows.append({**row_of(taken), "against": _ratios(peers, taken), "beside": _ratios(alike, taken)})
    taints = bench.taints + [stopped] * bool(stopped) + figure_taints(
        {f"{row['label']}, {scope}": found for row in rows for scope, found in row["scopes"].items()})
    settings = {"source": masked(config.source or "the embedded set"), "rounds": config.rounds,
                "turns": bench.turns, "slice_seconds": bench.slice, "slice_calls": bench.calls,
                "full": config.full, "data": config.data and str(config.data),
                **{key: bench.plan[key] for key in (*LOOKED, "scopes")}}
    return {"schema": SCHEMA, "kind": "benchmark", "tainted": taints, "settings": settings,
            "environment": {**bench.machine, "after": counters()}, "cases": rows, "layers": list(layers)}


def _ratios(peers: Sequence[Taken], taken: Taken) -> dict:
    """How many times as fast a case is as the first of its peers, by scope; empty for that one itself."""
    if taken.status != "measured" or peers[0] is taken:
        return {}
    return {"label": peers[0].case.label,
            **{scope: contrast(peers[0].rounds[scope], rounds, paired=True)
               for scope, rounds in taken.rounds.items() if scope in peers[0].rounds}}


def row_of(taken: Taken) -> dict:
    """Return a case as the report holds it."""
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
    """Write the report's files into the run folder and to results/SAVE_JSON.json; return it as text."""
    measured = [row for row in report["cases"] if row["status"] == "measured"]
    images = [benchmark_png(rows, scope, folder / f"{scope}.png").name for scope in SCOPES
              if (rows := [row for row in measured if scope in row["scopes"]])]
    (folder / "benchmark.md").write_text(page(report, images), encoding="utf-8")
    runs.write_json(folder / "benchmark.json", report)
    if save_json:                                          # figures and verdicts, without every single call
        brief = [{**row, "samples": {}} for row in report["cases"]]
        runs.save_record(save_json, {**report, "cases": brief, "figures": by_name(measured)})
    return text(report)


def by_name(measured: Sequence[dict]) -> dict[str, dict]:
    """Return the figures that pages quote, by names made of letters, digits and underscores alone."""
    def name(text: str) -> str:
        return re.sub(r"\W+", "_", text)
    return {name(row["label"]): {"map50": row["accuracy"].get("map50"), **{name(scope): {
        **{key: found[key] for key in BRIEF},
        **{which: row[which].get(scope) for which in ("against", "beside")}}
        for scope, found in row["scopes"].items()}} for row in measured}


def tables(report: Mapping) -> list[Table]:
    """Return caption, columns and rows of every table; what all cases have in common is in the caption."""
    measured = [row for row in report["cases"] if row["status"] == "measured"]
    same = shared(report["cases"])
    rest, common = [key for key in KEYS if key not in same], label(report["cases"][0], same)
    out = []
    for scope in SCOPES:
        there = [row for row in measured if scope in row["scopes"]]
        rows = [[label(row, rest), *_speed(row, scope)] for row in there]
        columns = SPEED
        if any(row["beside"] for row in there):            # several artifacts in one runtime and precision
            columns = (*SPEED, f"beside {there[0]['name']} in the same")
            rows = [[*cells, _ratio(row["beside"].get(scope))] for cells, row in zip(rows, there)]
        out += [(f"{MEANING[scope]}; ms a call; {common}", columns, rows)] if rows else []
    stages = [[label(row, rest), *(f"{row['stages'][stage]['p50']:.2f}" for stage in STAGES)]
              for row in measured if row["stages"]]
    left = [[label(row, rest), f"{row['status']}: {row['reason'] or 'stopped before'}"]
            for row in report["cases"] if row["status"] != "measured"]
    left += [[label(row, rest), f"accuracy: {row['accuracy']['fault']}"] for row in measured
             if "fault" in row["accuracy"]]
    out += [(f"{what}; {common}", columns, rows) for what, columns, rows in (
        ("stages of end to end: median ms a call", ("case", *STAGES), stages),
        ("what they cost", COST, [[label(row, rest), *_cost(row)] for row in measured]),
        ("not measured", ("case", "why"), left)) if rows]
    return out + [_layers(table) for table in report["layers"]]


def _speed(row: Mapping, scope: str) -> list[str]:
    found, against = row["scopes"][scope], row["against"].get(scope)
    kept = "" if found["sustained_fps"] is None else f"{found['sustained_fps']:.1f}"
    return [*(f"{found[key]:.2f}" for key in ("p50", "p90", "p99")), f"{found['fps']:.1f}", kept,
            _ratio(against), against["verdict"] if against else "the first"]


def _ratio(found: Mapping | None) -> str:
    """How many times as fast, with the interval; empty for the case that the others are compared with."""
    return f"{found['ratio']:.2f}x ({found['low']:.2f} .. {found['high']:.2f})" if found else ""


def _cost(row: Mapping) -> list[str]:
    load, peak, accuracy = row["loads"], row["peak_rss_bytes"], row["accuracy"].get("map50")
    return ["" if accuracy is None else f"{accuracy:.4f}", f"{row['parameters']:,}",
            f"{row['macs'] / 1e9:.3f}", f"{row['flops'] / 1e9:.3f}", f"{row['artifact']['bytes'] / 1e6:.2f}",
            f"{min(one['load_seconds'] for one in load):.2f}", f"{min(one['first_ms'] for one in load):.1f}",
            f"{max(one['warm_up_rounds'] for one in load)} rounds",
            f"{peak / 1e6:.0f}" if peak else "unknown"]


def _layers(table: Mapping) -> Table:
    """The layers of a network, those that take longest first, with what bounds them."""
    peak, rows = table["peak"], sorted(table["rows"], key=lambda row: -row["ms"])
    total, limit = (sum(row[key] for row in rows) for key in ("ms", "limit_ms"))
    bound, beside = (sum(row["ms"] for row in rows if row["bound"] == kind) for kind in ("memory", "none"))
    caption = (f"layers of {table['label']}: {total:.2f} ms, of which memory-bound layers take "
               f"{100 * bound / total:.0f} % and what is no layer {100 * beside / total:.0f} %; the roofline "
               f"of this machine, {peak['macs_per_s'] / 1e9:.1f} GMAC/s and {peak['bytes_per_s'] / 1e9:.1f} "
               f"GB/s, allows {limit:.2f} ms")
    cells = [[row["layer"], row["op"], str(row["width"]), f"{row['ms']:.3f}", f"{row['limit_ms']:.3f}",
              f"{row['macs'] / 1e6:.1f}", f"{row['bytes'] / 1e6:.2f}", f"{row['macs_per_s'] / 1e9:.1f}",
              f"{row['intensity']:.1f}", row["bound"]] for row in rows]
    return caption, LAYERS, cells


def banner(report: Mapping) -> list[str]:
    """Return what taints the figures, in lines; none when nothing does."""
    reasons = report["tainted"]
    head = f"TAINTED: {len(reasons)} reasons not to trust these figures"
    return [head, *(f"- {reason}" for reason in reasons)] if reasons else []


def conditions(report: Mapping) -> list[str]:
    """Return where and how it was measured, in lines; what could not be read is said to be unknown."""
    at, how = report["environment"], report["settings"]
    load, mhz = at["before"]["load"], at["before"]["mhz"]
    read = {key: "unknown" if at[key] is None else shown(at[key])
            for key in ("governor", "microcode", "hypervisor")}
    clocks = ", ".join(map(str, mhz)) + " MHz" if mhz else "unknown"
    gpus = "".join(f"; GPU {gpu['name']}, driver {gpu['driver_version']}" for gpu in at["gpus"])
    versions = ", ".join(f"{name} {number}" for name, number in at["libraries"].items())
    return [f"{at['cpu']}, {len(at['affinity'])} of {at['cores']} cores, microcode {read['microcode']}, "
            f"governor {read['governor']}, clocks {clocks}, hypervisor {read['hypervisor']}{gpus}",
            f"{at['system']} {at['kernel']}, Python {at['python']}, {versions}; commit {at['commit']}, "
            f"{at['date']}",
            f"load average before {load[0] if load else 'unknown'}; {how['rounds']} round(s) of fresh "
            f"processes, {how['turns']} interleaved slices each; {how['pictures']} different images from "
            f"{how['source']}; score floor {how['conf_thres']}, NMS IoU {how['iou_thres']}"]


def text(report: Mapping) -> str:
    """Return the report for a terminal."""
    parts = ["\n".join(conditions(report))]
    parts += [f"{caption}\n{aligned(columns, rows)}" for caption, columns, rows in tables(report)]
    return "\n\n".join([*parts, "\n".join(banner(report))]).rstrip()


def page(report: Mapping, images: Sequence[str]) -> str:
    """Return the report in Markdown."""
    parts = ["# Benchmark", "\n".join(f"> {line}" for line in banner(report)),
             "\n".join(f"- {line}" for line in conditions(report)),
             *(f"![{name}]({name})" for name in images)]
    parts += [f"## {caption[:1].upper()}{caption[1:]}\n\n{markdown(columns, rows)}"
              for caption, columns, rows in tables(report)]
    return "\n\n".join(part.rstrip() for part in parts if part) + "\n"


def benchmark_png(rows: Sequence[Mapping], scope: str, path: Path) -> Path:
    """Draw the median latency per case with its 90th and 99th percentile, against AP50 where there is any."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    rated = [row for row in rows if row["accuracy"].get("map50") is not None]
    rows = rated or rows
    fig = plots.figure(10, 6.2 if rated else 1.6 + 0.42 * len(rows))
    FigureCanvasAgg(fig)                                   # label_points asks where the points are drawn
    ax, same = fig.subplots(), shared(rows)
    artifacts = list(dict.fromkeys(row["name"] for row in rows))
    names = [label(row, [key for key in KEYS if key not in same]) for row in rows]
    points = [(row["scopes"][scope]["p50"], 100 * row["accuracy"]["map50"] if rated else at)
              for at, row in enumerate(rows)]
    for row, (x, y) in zip(rows, points):
        found, colour = row["scopes"][scope], COLOURS[artifacts.index(row["name"]) % len(COLOURS)]
        ax.plot((found["p90"], found["p99"]), (y, y), color=colour, lw=0.6)
        ax.plot((found["min"], found["p90"]), (y, y), color=colour, lw=1.6)
        ax.plot(x, y, "o", color=colour, ms=7)
    what, y = ("Accuracy and latency", "mAP@0.5, %") if rated else ("Latency", "")
    plots.dress(ax, f"{what}, {scope}, with lines from the least to the 90th and 99th percentile; "
                f"{label(rows[0], same)}", "median ms a call", y)
    ax.margins(0.1, 0.15)
    if rated:
        label_points(ax, [(point, name, False) for name, point in zip(names, points)], points)
    else:
        ticks = [f"{name}: {x:.2f} ms" for name, (x, _) in zip(names, points)]
        ax.set_yticks(range(len(rows)), ticks, fontsize=8)
        ax.invert_yaxis()
    return plots.save(fig, path)


def read_report(path: Path) -> dict:
    """Return a benchmark's report. Raises DataError where the file is none, or of another schema."""
    report = runs.read_record("--compare", path, "benchmark")
    if report.get("schema") != SCHEMA:
        raise DataError(f"--compare {path} has schema {report.get('schema')}, this version reads {SCHEMA}; "
                        "measure again")
    if not all(row["samples"] for row in report["cases"] if row["status"] == "measured"):
        raise DataError(f"--compare {path} holds figures without the calls they are of, as results/ keeps "
                        "them; give the benchmark.json of the run folder")
    return report


def pairs(first: Mapping, other: Mapping, select: Sequence[str] = ()) -> list[tuple[dict, dict]]:
    """Return the cases of two reports that belong together; raise UsageError if `select` does not tell."""
    sides = [[row for row in report["cases"] if row["status"] == "measured"] for report in (first, other)]
    if select:
        sides = [[row for row in side if text in label(row)]
                 for side, text in zip(sides, [*select, select[-1]])]
    known = {label(row): row for row in sides[1]}
    same = [(row, known[label(row)]) for row in sides[0] if label(row) in known]
    if same and len(select) < 2:
        return same
    if len(sides[0]) == len(sides[1]) == 1:
        return [(sides[0][0], sides[1][0])]
    shown = ["".join(f"\n  {label(row)}" for row in side) or " none" for side in sides]
    raise UsageError("--select: say which case of each report is meant, by a part of its label. The first "
                     f"has{shown[0]}\nand the second{shown[1]}")


def compare(paths: Sequence[Path], select: Sequence[str], scopes: Sequence[str], force: bool) -> list[str]:
    """Return which cases are faster. Raises UsageError where settings differ, unless forced."""
    first, other = map(read_report, paths)
    out: list[str] = []
    for a, b in pairs(first, other, select):
        one, two = ({**report["settings"], "cpu": report["environment"]["cpu"], **row}
                    for report, row in ((first, a), (other, b)))
        for scope in (scope for scope in scopes if scope in a["scopes"] and scope in b["scopes"]):
            unlike = [f"{key.replace('_', ' ')} ({one[key]} and {two[key]})"
                      for key in (*SAME, *(LOOKED if scope == "end-to-end" else ())) if one[key] != two[key]]
            if unlike and not force:
                raise UsageError(f"not compared: {label(a)} and {label(b)} differ in {', '.join(unlike)}. "
                                 "Measure both alike, or insist with --force")
            out += [f"warning: compared although they differ in {', '.join(unlike)}"] * bool(unlike)
            # Cases of one run took turns, so that what slowed one slowed the other.
            found = contrast(unpack(a["samples"][scope]), unpack(b["samples"][scope]),
                             paired=first == other and not unlike)
            says = {"faster": "is faster than", "slower": "is slower than"}.get(
                found["verdict"], "is not significantly different from")
            out.append(f"{scope}: {label(b)} {says} {label(a)}: {found['ratio']:.3f} times as fast, 95 % "
                       f"interval {found['low']:.3f} .. {found['high']:.3f}: {found['verdict']}")
    for path, report in zip(paths, (first, other)):
        out += [f"warning: {path} is TAINTED: {reason}" for reason in report["tainted"]]
    return list(dict.fromkeys(out))
