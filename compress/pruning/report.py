"""What prune.py says before, between and after: choices, sensitivity scan, the child and its record."""
from __future__ import annotations

import argparse
import difflib
import json
from dataclasses import asdict, replace
from pathlib import Path

from bench.profile.latency import compare_speed, speed_lines
from compress.prune import prune
from compress.pruning.plan import REFERENCES, Log, Measured, Plan, arrived, cost, target_words
from compress.pruning.plots import scan_png, steps_png, widths_png
from compress.pruning.progressive import Bench, remembered_latency, sample_pictures
from compress.pruning.schedule import PARTS, Unit, narrowed
from compress.pruning.tables import scan_lines, step_lines, table3_lines
from models import checkpoint as checkpoints
from models.channels import widths
from models.layer import Net
from models.records import to_json
from training.finetune import Tuner
from utils import runs
from utils.errors import ModelError, UsageError

SCANNED = tuple(range(1, 9))                               # sixteenths a scan takes away


def chosen_units(units: list[Unit], reasons: dict[str, str], names: list[str] | None) -> list[Unit]:
    """The units of --layers, all without it. Raises UsageError for a group that cannot be cut."""
    known = {unit.name: unit for unit in units}
    for name in names or ():
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            why = reasons.get(name) or f"no such channel group{hint}"
            raise UsageError(f"--layers {name}: {why}. These can be cut: {', '.join(known)}")
    return [unit for unit in units if not names or unit.name in names]


def heading(plan: Plan, units: list[Unit], reasons: dict[str, str], folder: Path) -> list[str]:
    """The choices of this pruning, those that the paper leaves open among them, and what cannot be cut."""
    target = ", ".join(f"{name} {value:,.6g}" for name, value in plan.until) or "none"
    limit = "none" if plan.budget is None else f"{plan.budget:g} points"
    return [f"{folder}",
            f"a step: {plan.sixteenths:g}/{PARTS} of {'one' if plan.scope == 'layer' else 'every'} layer, "
            f"{plan.epochs} epochs x {plan.seeds} seed(s), at most {plan.tolerance:g} points of "
            f"{plan.metric} below {REFERENCES[plan.reference]} (decided by the {plan.decide})",
            f"cut: {plan.cut} by {plan.importance}, {plan.order} first, widths in multiples of "
            f"{plan.round_to}; teacher: {'the unpruned network' if plan.teach else 'none'}; budget {limit}; "
            f"until {target}",
            f"layers: {', '.join(f'{u.name} {u.original}' for u in units)}",
            *(f"  {group} stays whole: {why}" for group, why in reasons.items())]


def parent_cost(tuner: Tuner, parent: checkpoints.Checkpoint, until: list) -> dict[str, float]:
    """The unpruned network's value of every measure; its latency only where that is asked for."""
    found = cost(parent.net, tuner.args.imgsz)
    if "latency" in dict(until):
        found["latency"] = remembered_latency(tuner, parent.net, parent.state, "parent")
    return found


def measure_parent(bench: Bench, parent: checkpoints.Checkpoint) -> Measured:
    """What the unpruned network reaches. Raises ModelError where it finds nothing or knows other classes."""
    if tuple(parent.names) != tuple(bench.tuner.names):
        raise ModelError(f"the network knows the classes {', '.join(parent.names)}, the data has "
                         f"{', '.join(bench.tuner.names)}; fine-tune it on this data first: train.py")
    found, metric = bench.measure(parent.net, parent.state), bench.plan.metric
    if not found.metrics[metric] > 0:
        raise ModelError(f"the network's {metric} on this data is 0: nothing could be kept while pruning; "
                         "train it first")
    bench.tuner.say(f"unpruned: {metric} {found.metrics[metric]:.4f}, {found.counts['params']:,} parameters, "
                    f"{found.counts['macs'] / 1e9:.4f} GMACs")
    return found


def row_of(metrics: dict[str, float], counts: dict[str, float]) -> dict[str, float]:
    """A record's figures of one network."""
    return {**metrics, "parameters": counts["params"], "stored": counts["stored"], "macs": counts["macs"],
            "loose_macs": counts["loose-macs"]}


def scan(bench: Bench, parent: checkpoints.Checkpoint, before: Measured, units: list[Unit]) -> list[Unit]:
    """The units, least sensitive first: by the points lost at 4/16 without training, statistics anew.

    Every measurement is kept in scan.json as it is made; table and heat map are written at the end.
    """
    tuner, net, state = bench.tuner, parent.net, parent.state
    path = tuner.folder / "scan.json"
    known: dict[str, float] = json.loads(path.read_text()) if path.is_file() else {}
    for unit in units:
        for part in SCANNED:
            name, width = f"{unit.name} {part}", max(1, unit.original - part * unit.original // PARTS)
            if name in known or (width == unit.original):
                continue
            keep = bench.best_channels(net, state, narrowed(net, net, {unit.name: width}))
            small, small_state = prune(net, state, keep)
            reached = bench.measure(small, tuner.recalibrate(small, small_state))
            known[name] = bench.drop(before, reached).points
            tuner.interrupt.stop("interrupted; what was measured is kept: run the same command to go on")
            if tuner.world.main:
                runs.write_json(path, known)
                tuner.say(f"scan  {unit.name:14} {part}/{PARTS}  {known[name]:+6.2f} points lost")
    drops = [[known.get(f"{u.name} {part}", float("nan")) for part in SCANNED] for u in units]
    if tuner.world.main:
        tuner.say("\n".join(scan_lines([u.name for u in units], SCANNED, drops)))
        scan_png([u.name for u in units], SCANNED, drops, tuner.folder / "scan.png")
    quarter = {unit.name: row[3] for unit, row in zip(units, drops)}
    return sorted(units, key=lambda unit: quarter[unit.name])


def layer_rows(parent: Net, child: Net, units: list[Unit], log: Log) -> list[dict]:
    """Table 3: what each layer lost, in sixteenths of its original channels, and why it stopped there."""
    before, after = widths(parent), widths(child)
    ended = log.ended or "not reached"
    return [{"layer": u.name, "original": before[u.name], "width": after[u.name],
             "sixteenths": round(PARTS * (before[u.name] - after[u.name]) / before[u.name], 2),
             "stopped": log.stopped.get(u.name, ended)} for u in units]


def write_answer(args: argparse.Namespace, bench: Bench, log: Log,
                 parent: tuple[checkpoints.Checkpoint, Measured],
                 child: tuple[checkpoints.Checkpoint, Measured], units: list[Unit]) -> None:
    """Writes the child, its records, tables and plots into the run folder, and prints them.

    parent and child: the checkpoint and what it reaches.
    """
    tuner, folder = bench.tuner, bench.tuner.folder
    (old, before), (new, after) = ((c, row_of(m.metrics, m.counts)) for c, m in (parent, child))
    (folder / "weights").mkdir(exist_ok=True)
    best = folder / "weights" / "best.pt"
    checkpoints.save(best, replace(new, extra={"pruned_from": str(args.weights), **child[1].metrics}))
    (folder / "net.json").write_text(to_json(new.net), encoding="utf-8")
    both = {"parent": (old.net, old.state), "child": (new.net, new.state)}
    speed = compare_speed(both, args.imgsz, sample_pictures(tuner))
    rows, metric = layer_rows(old.net, new.net, units, log), bench.plan.metric
    record = {"kind": "prune", "data": str(args.data), "imgsz": args.imgsz,
              "parent": {"weights": str(args.weights), **before},
              "child": {"weights": f"{folder.name}/weights/{best.name}", **after},
              "net": to_json(new.net),
              "choices": choices(bench.plan, args), "layers": rows, "steps": log.rows,
              "ended": log.ended or "no layer is left", "epochs": sum(row["epochs"] for row in log.rows),
              "speed": speed, "environment": runs.environment()}
    widths_png(rows, folder / "widths.png")
    if log.rows:
        steps_png(log.rows, bench.plan.tolerance, folder / "steps.png", metric)
    if args.save_json:
        runs.save_record(args.save_json, record)
    runs.write_json(folder / "result.json", record)            # last: it says that the run is finished
    print("\n".join(("", *step_lines(log.rows, metric), "", *table3_lines(rows), "", *speed_lines(speed), "",
                     *last_words(metric, before, after, record["epochs"]),
                     *cautions(bench.plan, child[1]), str(best))))


def choices(plan: Plan, args: argparse.Namespace) -> dict:
    """Every choice of the pruning and of its fine-tunings, for the record."""
    return {**asdict(plan), "until": dict(plan.until), "optimizer": args.optimizer, "lr": args.lr,
            "augment": args.augment, "batch_size": args.batch_size, "seed": args.seed,
            "distill": args.distill if plan.teach else None, "layers": args.layers}


def last_words(metric: str, before: dict, after: dict, epochs: int) -> list[str]:
    """Parent and child in a sentence or two."""
    lost = 100 * (before[metric] - after[metric])
    return [f"{metric} {before[metric]:.4f} -> {after[metric]:.4f} ({lost:+.2f} lost), {epochs} epochs",
            *(f"{name:12} {before[name]:>15,} -> {after[name]:>15,}  ({after[name] / before[name] - 1:+.1%})"
              for name in ("parameters", "stored", "macs", "loose_macs"))]


def cautions(plan: Plan, child: Measured) -> list[str]:
    """What the figures alone would not tell: a target that was missed, weights that are those of one seed."""
    out = []
    if plan.until and not arrived(plan, child.counts):
        out.append(f"the target was NOT reached: {target_words(plan, child.counts)}")
    if plan.seeds > 1:
        out.append(f"figures are the mean of {plan.seeds} seeds; the weights are those of the first, whose "
                   f"AP50 is {child.first:.4f}")
    return out
