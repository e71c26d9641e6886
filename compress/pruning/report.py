"""What prune.py says: choices, sensitivity scan, tables, the child and its record."""
from __future__ import annotations

import difflib
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial

from bench.profile.latency import compare_speed, speed_lines
from compress.importance import without_norm
from compress.prune import prune
from compress.pruning.config import REFERENCES
from compress.pruning.plots import LABELS, scan_png, steps_png, widths_png
from compress.pruning.progressive import Bench, Log, Measured, arrived, target_words
from compress.pruning.schedule import PARTS, Unit, narrowed
from models import checkpoint as checkpoints
from models.channels import widths
from models.layer import Net
from models.records import to_json
from training.prepare import TIMED_IMAGES, plain_images
from utils import runs
from utils.errors import ModelError, UsageError
from utils.text import aligned

SCANNED = tuple(range(1, 9))                               # sixteenths a scan takes away
# What a record tells of the choices: where the paper leaves one open, and how steps were fine-tuned.
CHOICES = ("tolerance", "reference", "control", "scope", "sixteenths", "metric", "cut", "importance",
           "per", "runtime", "order", "decide", "seeds", "round_to", "budget", "optimizer", "lr", "augment",
           "batch_size", "seed", "layers")


def chosen_units(units: list[Unit], reasons: dict[str, str], names: Sequence[str] | None) -> list[Unit]:
    """Return the units of --layers, all without it. Raises UsageError for one that cannot be cut."""
    known = {unit.name: unit for unit in units}
    for name in names or ():
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            why = reasons.get(name) or f"no such unit{hint}"
            raise UsageError(f"--layers {name}: {why}. These can be cut: {', '.join(known)}")
    return [unit for unit in units if not names or unit.name in names]


def heading(bench: Bench, units: list[Unit], reasons: dict[str, str]) -> list[str]:
    """Return the choices of this pruning as lines, and what cannot be cut."""
    return [str(bench.tuner.folder), ", ".join(f"{name} {value}" for name, value in choices(bench).items()),
            f"a step's loss is counted against {REFERENCES[bench.config.reference]}",
            f"layers: {', '.join(f'{u.name} {u.original}' for u in units)}",
            *(f"  {group} stays whole: {why}" for group, why in reasons.items()), *_by_l2(bench)]


def _by_l2(bench: Bench) -> list[str]:
    """Return the line that says for which units --importance bn takes another rule."""
    found = without_norm(bench.origin) if bench.config.importance == "bn" else []
    return [f"importance bn: {', '.join(found)} have no batch-norm: theirs is the L2 norm"] if found else []


def measure_parent(bench: Bench, parent: checkpoints.Checkpoint) -> Measured:
    """Return what the unpruned network reaches. Raises ModelError for one of no use or other classes."""
    if tuple(parent.names) != tuple(bench.tuner.names):
        raise ModelError(f"the network knows the classes {', '.join(parent.names)}, the data has "
                         f"{', '.join(bench.tuner.names)}; fine-tune it on this data first: train.py")
    found, metric = bench.measure(parent.net, parent.state), bench.config.metric
    if not found.metrics[metric] > 0:
        raise ModelError(f"the network's {metric} on this data is 0: nothing could be kept while pruning; "
                         "train it first")
    bench.tuner.say(f"unpruned: {metric} {found.metrics[metric]:.4f}, {found.counts['params']:,} parameters, "
                    f"{found.counts['macs'] / 1e9:.4f} GMACs")
    return found


def scan(bench: Bench, parent: checkpoints.Checkpoint, before: Measured, units: list[Unit]) -> list[Unit]:
    """Return the units, least sensitive first: by points lost at 4/16 untrained, statistics moved."""
    tuner, net, state = bench.tuner, parent.net, parent.state
    path = tuner.folder / "scan.json"
    known: dict[str, float] = json.loads(path.read_text()) if path.is_file() else {}
    for unit in units:
        for part in SCANNED:
            name, width = f"{unit.name} {part}", max(1, unit.original - part * unit.original // PARTS)
            if name in known or (width == unit.original):
                continue
            keep = bench.best_channels(net, state, narrowed(net, net, {unit.name: width}))
            reached = bench.measure(*tuner.cut(net, state, partial(prune, keep=keep)))
            known[name] = bench.drop(before, reached).points
            tuner.interrupt.stop("interrupted; what was measured is kept: run the same command to continue")
            if tuner.world.main:
                runs.write_json(path, known)
                tuner.say(f"scan  {unit.name:14} {part}/{PARTS}  {known[name]:+6.2f} points lost")
    drops = [[known.get(f"{u.name} {part}", float("nan")) for part in SCANNED] for u in units]
    if tuner.world.main:
        tuner.say("\n".join(scan_lines([u.name for u in units], SCANNED, drops)))
        scan_png([u.name for u in units], SCANNED, drops, tuner.folder / "scan.png")
    quarter = {unit.name: row[3] for unit, row in zip(units, drops)}
    # What is too narrow to lose 4/16 comes last: a NaN has no order.
    return sorted(units, key=lambda unit: (math.isnan(quarter[unit.name]), quarter[unit.name]))


def layer_rows(parent: Net, child: Net, units: list[Unit], log: Log) -> list[dict]:
    """Return Table 3: what each layer lost, in sixteenths of its original channels, and why no more."""
    before, after = widths(parent), widths(child)
    ended = log.ended or "not reached"
    return [{"layer": u.name, "original": before[u.name], "width": after[u.name],
             "sixteenths": round(PARTS * (before[u.name] - after[u.name]) / before[u.name], 2),
             "stopped": log.stopped.get(u.name, ended)} for u in units]


def write_answer(bench: Bench, log: Log, parent: tuple[checkpoints.Checkpoint, Measured],
                 child: tuple[checkpoints.Checkpoint, Measured], units: list[Unit],
                 against: dict[str, dict]) -> None:
    """Write and print the child, its record, tables and plots; parent, child: and what they reach.

    against: what `compared` returns.
    """
    config, tuner, folder = bench.config, bench.tuner, bench.tuner.folder
    (old, before), (new, after) = ((c, m.figures) for c, m in (parent, child))
    (folder / "weights").mkdir(exist_ok=True)
    best = folder / "weights" / "best.pt"
    checkpoints.save(best, replace(new, extra={"pruned_from": str(config.weights), **child[1].metrics}))
    (folder / "net.json").write_text(to_json(new.net), encoding="utf-8")
    both = {"parent": (old.net, old.state), "child": (new.net, new.state)}
    speed = compare_speed(both, config.imgsz, plain_images(tuner.val_set, TIMED_IMAGES))
    rows, metric = layer_rows(old.net, new.net, units, log), bench.config.metric
    record = {"kind": "prune", "data": str(config.data), "imgsz": config.imgsz,
              "parent": {"weights": str(config.weights), **before},
              "child": {"weights": f"{folder.name}/weights/{best.name}", **after},
              "net": to_json(new.net), "choices": choices(bench), "layers": rows, "steps": log.rows,
              "ended": log.ended or "no layer is left", "epochs": sum(row["epochs"] for row in log.rows),
              "against": against, "speed": speed, "environment": runs.environment()}
    widths_png(rows, folder / "widths.png")
    if log.rows:
        steps_png(log.rows, config.tolerance, folder / "steps.png", metric)
    if config.save_json:
        runs.save_record(config.save_json, record)
    runs.write_json(folder / "result.json", record)            # last: it says that the run is finished
    print("\n".join(("", *step_lines(log.rows, metric), "", *table3_lines(rows), "", *speed_lines(speed), "",
                     *last_words(bench, before, after, record["epochs"], child[1]),
                     *against_lines(against, metric), str(best))))


def compared(bench: Bench, parent: Measured, child: Measured, log: Log) -> dict[str, dict]:
    """Return what the child lost against the unpruned network and, where asked for, the control.

    Each: its metrics, the epochs it was fine-tuned, points lost and their 95 % interval over images (None for
    a metric without one).
    """
    config, sides = bench.config, {"the unpruned network": (0, parent)}
    if config.control or config.reference == "control":
        sides["the control"] = log.accepted, bench.control(log.accepted, parent)
    return {name: {**reached.metrics, "epochs": steps * config.epochs_per_step,
                   **bench.drop(reached, child)._asdict()} for name, (steps, reached) in sides.items()}


def against_lines(against: dict[str, dict], metric: str) -> list[str]:
    """Return a line a reference of `compared`."""
    return [f"against {name} ({side['epochs']} epochs of fine-tuning, {LABELS[metric]} {side[metric]:.4f}): "
            f"{side['points']:+.2f} points lost"
            + (" (95 %: {:+.1f} to {:+.1f})".format(*side["interval"]) if side["interval"] else "")
            for name, side in against.items()]


def choices(bench: Bench) -> dict:
    """Return every choice of the pruning and of its fine-tunings, for the record."""
    config, teach = bench.config, bench.config.teacher == "parent"
    return {**{name: getattr(config, name) for name in CHOICES}, "epochs": config.epochs_per_step,
            "until": bench.targets, "teach": teach, "distill": config.distill if teach else None}


def last_words(bench: Bench, before: dict, after: dict, epochs: int, child: Measured) -> list[str]:
    """Return parent and child in a few lines, and what the figures would not tell."""
    metric, seeds = bench.config.metric, bench.config.seeds
    lost = 100 * (before[metric] - after[metric])
    out = [f"{metric} {before[metric]:.4f} -> {after[metric]:.4f} ({lost:+.2f} lost), {epochs} epochs",
           *(f"{name:12} {before[name]:>15,} -> {after[name]:>15,}  ({after[name] / before[name] - 1:+.1%})"
             for name in ("parameters", "stored", "macs", "loose_macs"))]
    if bench.targets and not arrived(bench.targets, child.counts):
        out.append(f"the target was NOT reached: {target_words(bench.targets, child.counts)}")
    if seeds > 1:
        out.append(f"figures are the mean of {seeds} seeds; the weights are those of the first, whose "
                   f"AP50 is {child.first:.4f}")
    return out


def table3_lines(layers: Sequence[dict]) -> list[str]:
    """Return the paper's Table 3 of `layer_rows`, and the sums, as lines."""
    rows = [[row["layer"], row["original"], row["width"], f"{row['sixteenths']:g}/16"] for row in layers]
    before, after = (sum(row[key] for row in layers) for key in ("original", "width"))
    lost = 16 * (before - after) / before if before else 0.0
    total = ["all", before, after, f"{lost:.2g}/16"]
    return _told(("layer", "original", "width", "taken away"), [*rows, total],
                 "stopped because", [*(row["stopped"] for row in layers), ""])


def step_lines(steps: Sequence[dict], metric: str = "map50") -> list[str]:
    """Return a line per step of a record: what was cut, reached and lost (points), size, cost, verdict."""
    digits = len(str(len(steps)))
    rows = [[f"{row['step']:{digits}} {row['layer']}", f"{row['sixteenths']:g}/16", row["width"],
             f"{row[metric]:.4f}", _signed(row["drop"]), " to ".join(map(_signed, row["interval"] or ())),
             f"{row['parameters'] / 1e6:.3f}", f"{row['macs'] / 1e9:.4f}", row["epochs"],
             str(timedelta(seconds=round(row["seconds"])))] for row in steps]
    columns = ("step", "taken", "width", LABELS[metric], "lost", "95 %", "M params", "GMACs", "epochs",
               "time")
    return _told(columns, rows, "", ["accepted" if row["accepted"] else "rejected" for row in steps])


def scan_lines(units: Sequence[str], sixteenths: Sequence[int],
               drops: Sequence[Sequence[float]]) -> list[str]:
    """Return a line per layer: the drops [units][sixteenths] in points, "-" for NaN."""
    rows = [[unit, *("-" if math.isnan(value) else _signed(value, 1) for value in row)]
            for unit, row in zip(units, drops, strict=True)]
    return aligned(["points lost by", *(f"{n:g}/16" for n in sixteenths)], rows).split("\n")


def _told(columns: Sequence[str], rows: Sequence[Sequence[object]], title: str,
          words: Sequence[str]) -> list[str]:
    """Return an aligned table whose last column holds words, set left."""
    head, *lines = aligned(columns, rows).split("\n")
    return [f"{line}  {word}".rstrip() for line, word in zip((head, *lines), (title, *words), strict=True)]


def _signed(value: float, digits: int = 2) -> str:
    """Return the value with its sign, which a zero has not."""
    rounded = round(value, digits)
    return f"{rounded:+.{digits}f}" if rounded else f"{0:.{digits}f}"
