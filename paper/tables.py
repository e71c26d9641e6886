"""The paper's tables put together: claims, counts of networks and run records to tables of cells."""
from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import NamedTuple

from models.channels import channels
from models.count import loose_macs, macs, parameters
from models.layer import Net
from models.records import from_json
from models.zoo.build import DETECTORS, with_heads
from models.zoo.paper import block_nets, table2_nets
from paper.claims import Cell, Claim, Column, Form, Table, claim_text, claimed
from paper.profiles import KERNELS, TABLE2, TABLE4, Profile
from utils.errors import ModelError

Counts = Mapping[str, float]                           # trained, statistics, macs, loose_macs of one network
COUNTED = (Column("statistics", "parameters with statistics", "parameters"),
           Column("trained", "parameters trained", "parameters"),
           Column("loose_macs", "MACs, ptflops-style", "MACs"), Column("macs", "MACs, pure", "MACs"))
TRAINED, LOOSE = COUNTED[1]._replace(key="parameters"), COUNTED[2]
TWO_COUNTS = ("parameters are judged by the count that includes batch-norm's statistics, MACs by the "
              "ptflops-style count that the paper's figures fit; FLOPs and operations of other systems are "
              "twice the pure MACs")
WIDTHS = (16, 32, 64, 128, 256, 512)                   # Table 1's input widths
MEASURED = ("map50", "map50_drop", "sixteenths", "kernels")    # columns measured on the profile's data


class Source(NamedTuple):
    """What tables are made from: claims, counts by row, profile, records by job, layer_weights' widths."""

    claims: Sequence[Claim]
    counts: Mapping[str, Counts]
    profile: Profile
    records: Mapping[str, dict]
    widths: Mapping[int, Mapping[str, tuple[int, int]]] = {}

    def measured(self, row: str) -> tuple[float | None, float | None]:
        """Return mAP@0.5 in per cent and frames a second of the network alone, of a row's run of val.py."""
        record = self.records.get(f"val-{row}")
        return (100 * record["map50"], 1000 / record["ms_per_image"]["network"]) if record else (None, None)

    def cells(self, table: str, row: str, columns: Iterable[Column],
              values: Mapping[str, object]) -> tuple[Cell, ...]:
        """Return a cell per column, with the claim on it."""
        return tuple(Cell(values.get(c.key), claimed(self.claims, table, row, c.key),
                          self.profile.on if c.key in MEASURED else "") for c in columns)

    def map50_column(self) -> Column:
        """Return the column of accuracies."""
        return Column("map50", f"mAP@0.5 on {self.profile.on}", "%")


def count(net: Net, imgsz: int) -> dict[str, int]:
    """Return parameters and MACs of a network, each in both counts."""
    return {"trained": parameters(net), "statistics": parameters(net, statistics=True),
            "macs": macs(net, imgsz), "loose_macs": loose_macs(net, imgsz)}


def count_rows(records: dict[str, dict]) -> dict[str, dict]:
    """Return the counts of each row of Tables 2 and 4; of the pruned network where a record carries it."""
    out = {row: count(net, 416) for row, net in table2_nets().items()}
    out |= {row: count(DETECTORS[name](classes), imgsz) for row, (_, classes, imgsz, _) in TABLE4.items()
            if (name := row.removesuffix("-voc")) in DETECTORS}
    if text := records.get("prune", {}).get("net"):
        out["pruned"] = count(with_heads(from_json(text), 80), 416)
    return out


def layer_weights() -> dict[int, dict[str, tuple[int, int]]]:
    """Return {input width: {layer type: weights by records, by hooks}}; raise ModelError if they differ."""
    out = {cin: {} for cin in WIDTHS}
    for cin in WIDTHS:
        for kind, net in block_nets(cin):
            sizes = [p.shape for p in channels(net).params if p.node.layer == "block"]
            total, hooked = sum(prod(size) for size in sizes if len(size) == 4), hooked_weights(net, "block")
            if total != hooked:
                raise ModelError(f"{kind} {cin} -> {2 * cin}: {total:,} weights by records, {hooked:,} by "
                                 "the built network; models/channels.py and models/blocks.py differ")
            out[cin][kind] = total, hooked
    return out


def hooked_weights(net: Net, name: str) -> int:
    """Return kernel weights of the convolutions of a layer that an image passes, counted by hooks."""
    import torch

    from models.network import Network
    model, seen = Network(net).eval(), {}
    for key, module in getattr(model, name).named_modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda conv, _, __, key=key: seen.update({key: conv.weight.numel()}))
    with torch.inference_mode():
        model(torch.zeros(1, 3, 32, 32))
    return sum(seen.values())


def layers_table(source: Source) -> Table:
    """Return Table 1: the weights of a layer by its type and width."""
    kinds = list(next(iter(source.widths.values())))
    columns = tuple(Column(f"{kind} {how}", f"{kind}, {how}", "parameters")
                    for kind in kinds for how in ("records", "modules"))
    rows = tuple((str(cin), tuple(Cell(count) for kind in kinds for count in counts[kind]))
                 for cin, counts in source.widths.items())
    return Table("table1", "Table 1. Weights of a 3x3 layer by its type and input width, twice as wide out",
                 columns, rows,
                 ("records: counted from them alone; modules: by hooks on the convolutions of a built one",
                  "MBConv: hidden width twice the input, squeeze-and-excitation of a sixteenth of it",
                  "the paper's values are not known"))


def types_table(source: Source) -> Table:
    """Return Table 2: the network built of one layer type, and of the mix."""
    columns = (*COUNTED, Column("size_ratio", "times smaller", "x"),
               Column("macs_ratio", "times fewer MACs", "x"), source.map50_column(),
               Column("map50_drop", "mAP@0.5 against all Conv", "points"))
    base, (full, _), rows = source.counts["conv"], source.measured("conv"), []
    for row, label in TABLE2.items():
        counts, (found, _) = source.counts[row], source.measured(row)
        values = {**counts, "map50": found}
        if row != "conv":
            values |= {"size_ratio": base["statistics"] / counts["statistics"],
                       "macs_ratio": base["loose_macs"] / counts["loose_macs"],
                       "map50_drop": None if None in (found, full) else found - full}
        rows.append((label, source.cells("table2", row, columns, values)))
    return Table("table2", "Table 2. The network built of one layer type", columns, tuple(rows),
                 (TWO_COUNTS, "counts at 416 px for 80 classes; all heads' centres reach beyond their cell",
                  _accuracy(source, TABLE2)))


def channels_table(source: Source) -> Table:
    """Return Table 3: the sixteenths of its channels that every layer lost."""
    columns = (Column("original", "channels", "channels", True), Column("width", "left", "channels", True),
               Column("sixteenths", f"removed, on {source.profile.on}", "sixteenths"),
               Column("stopped", "why it stopped", "text", True))
    found = {row["layer"]: row for row in source.records.get("prune", {}).get("layers", ())}

    def position(layer: str) -> tuple[int, str]:           # conv9 before conv11
        return int("".join(filter(str.isdigit, layer.split(".")[0])) or 0), layer
    names = {*found, *(c.row for c in source.claims if c.table == "table3")}
    rows = tuple((name, source.cells("table3", name, columns, found.get(name, {})))
                 for name in sorted(names, key=position))
    return Table("table3", "Table 3. Channels that pruning removed", columns, rows,
                 ("the notes say that most layers cannot lose more than 2/16 and that 11 and 13 lose more",
                  *_pruning_notes(source)))


def systems_table(source: Source) -> Table:
    """Return Table 4: the systems side by side, with size, cost, accuracy and speed."""
    columns = (*COUNTED, Column("size", "MB, fp32", "MB"), source.map50_column(),
               Column("fps", "FPS here", "FPS"))
    rows = []
    for row, (label, classes, imgsz, trained) in TABLE4.items():
        counts, (map50, fps) = source.counts.get(row, {}), source.measured(trained)
        size = 4 * counts["statistics"] / 2 ** 20 if counts else None      # as YOLO Nano's lists have it
        # The paper's pruned network is what pruning on COCO gives; elsewhere only its counts can be compared.
        claims = "micro-yolo-pruned" if source.profile.on == "COCO" and row == "pruned" else row
        rows.append((f"{label} ({classes} classes, {imgsz} px)", source.cells(
            "table4", claims, columns, {**counts, "size": size, "map50": map50, "fps": fps})))
    return Table("table4", "Table 4. Detectors compared", columns, tuple(rows),
                 (TWO_COUNTS, "MB: four bytes a parameter, statistics included, 2^20 bytes a MB",
                  "no verdict on FPS: no claim names a machine that is here; " + _speed(source),
                  _accuracy(source, [row for *_, row in TABLE4.values() if row])))


def kernels_table(source: Source) -> Table:
    """Return Figure 4 as a table: the kernel sets that were tried, best first."""
    columns = (TRAINED, LOOSE, source.map50_column(), Column("runs", "runs", "count", True),
               Column("kernels", "best kernels", "text"))
    record = source.records.get("search", {})
    points, best = kernel_points(record)
    rows = []
    for point in sorted(points, key=lambda p: -p["map50"]):
        values = {**point, "map50": 100 * point["map50"], "kernels": None}
        rows.append((point["label"], source.cells("figure4", "", columns, values)))
    found = points[best]["kernels"] if points else {}
    answer = (",".join(str(found[layer]) for layer in KERNELS) if found.keys() >= KERNELS.keys() else
              ", ".join(f"{layer} {kernel}" for layer, kernel in found.items()) or None)
    rows.append(("layers 3, 5, 7, 9, 11", source.cells("figure4", "best", columns, {"kernels": answer})))
    how = "no search yet" if not record else (f"layers searched: {', '.join(record['layers'])}; "
                                              f"{record['epochs']} epochs a trial; counted at "
                                              f"{record['imgsz']} px")
    return Table("figure4", "Figure 4. Kernel sets: accuracy against parameters", columns, tuple(rows),
                 (how, _accuracy(source, ())))


def kernel_points(record: Mapping) -> tuple[list[dict], int]:
    """Return a search's kernel sets, each with its mean map50 over `runs` trials, and the best's position."""
    groups: dict[str, list[dict]] = {}
    for trial in record.get("trials", ()):
        label = trial.get("label") or "".join(map(str, trial["kernels"].values()))
        groups.setdefault(label, []).append(trial)
    points = [{**trials[0], "label": label, "runs": len(trials),
               "map50": sum(t["map50"] for t in trials) / len(trials)} for label, trials in groups.items()]
    if not points:
        return [], 0
    chosen = record["trials"][record["best"]]
    return points, next(at for at, p in enumerate(points) if p["kernels"] == chosen["kernels"]
                        and p.get("ops") == chosen.get("ops"))


def steps_table(source: Source) -> Table:
    """Return the pruning figure as a table: every step, accepted or rejected."""
    columns = (Column("sixteenths", "removed", "sixteenths"), Column("width", "left", "channels", True),
               TRAINED, source.map50_column(), Column("drop", "points lost", "points"),
               Column("said", "outcome", "text", True), Column("epochs", "epochs", "count", True))
    rows = []
    for step in source.records.get("prune", {}).get("steps", ()):
        said = "accepted" if step["accepted"] else "rejected"
        values = {**step, "map50": 100 * step["map50"], "said": said}
        rows.append((f"{step['step']} {step['layer']}", tuple(Cell(values.get(c.key)) for c in columns)))
    return Table("pruning", "Progressive pruning, step by step", columns, tuple(rows), _pruning_notes(source))


MAKERS = {"table1": layers_table, "table2": types_table, "table3": channels_table, "table4": systems_table,
          "figure4": kernels_table, "pruning": steps_table}


def paper_rows(claims: Sequence[Claim], counts: Mapping[str, Counts]) -> Form:
    """Return the marked table `paper`: what the paper states of each zoo network, and what is counted."""
    header = ("network", "parameters, paper", "with statistics", "trained", "MACs, paper",
              "MACs, ptflops-style", "MACs, pure")

    def said(name: str, column: str) -> str:
        claim = claimed(claims, "table4", name, column) if name.startswith("micro-yolo") else None
        return claim_text(claim) if claim and claim.mark in ("N", "W:abstract") else ""    # paper, reader
    return header, [(f"`{name}`", said(name, "statistics"), f"{n['statistics']:,}", f"{n['trained']:,}",
                     said(name, "loose_macs").replace("GMACs", "G"), f"{n['loose_macs'] / 1e9:.3f} G",
                     f"{n['macs'] / 1e9:.3f} G") for name, n in counts.items()]


def _accuracy(source: Source, rows: Iterable[str]) -> str:
    """What is to be said of the accuracies, and which are missing."""
    missing = [row for row in rows if f"val-{row}" not in source.records]
    return "; ".join([f"profile {source.profile.name}: {source.profile.note}",
                      *([f"not run yet: {', '.join(missing)}"] if missing else ())])


def _speed(source: Source) -> str:
    """What the frames a second were measured with, each set of conditions once."""
    said = {}
    for name, record in source.records.items():
        if name.startswith("val-"):
            how, env = record["settings"], record["environment"]
            machine = env["gpu"] if how["device"] != "cpu" else f"{env['cpu']}, {how['threads']} threads"
            said[f"{machine}, {how['precision']}, {how['imgsz']} px, batch {how['batch_size']}"] = None
    return "ours is the network alone on " + ("; ".join(said) or "no machine yet")


def _pruning_notes(source: Source) -> tuple[str, ...]:
    """The choices of a pruning, and what it made of the whole network."""
    record = source.records.get("prune")
    if not record:
        return ("not run yet",)
    before, after = record["parent"], record["child"]
    choices = ", ".join(f"{key} {value}" for key, value in record.get("choices", {}).items())
    return (f"mAP@0.5 {100 * before['map50']:.1f} to {100 * after['map50']:.1f}, parameters "
            f"{before['parameters']:,} to {after['parameters']:,}, MACs {before['macs'] / 1e9:.3f} to "
            f"{after['macs'] / 1e9:.3f} G, {record['epochs']} epochs", f"choices: {choices}",
            _accuracy(source, ()))
