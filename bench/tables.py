"""A benchmark's report as tables and sentences. No speed is given without all that it depends on."""
from __future__ import annotations

from collections.abc import Mapping, Sequence

from bench.cases import KEYS, SCOPES, STAGES, label, shared
from utils.text import aligned, markdown, shown

MEANING = {"network": "network alone: uint8 images in memory to head outputs",
           "end-to-end": "end to end: image files to drawn images, one stage after the other"}
SPEED = ("case", "p50", "p90", "p99", "FPS = batch/p50", "sustained", "as fast (95 %)", "verdict")
COST = ("case", "AP50", "parameters", "GMACs", "GFLOPs", "MB", "load s", "first ms", "warm-up", "peak MB")
LAYERS = ("layer", "op", "width", "ms", "limit", "MMACs", "MB", "GMAC/s", "MACs/byte", "bound")
Table = tuple[str, Sequence[str], list[list[str]]]


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
