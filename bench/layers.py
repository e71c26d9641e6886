"""Exports of one network side by side, layer by layer: `python -m bench.layers FILE FILE [...]`.

Files of ONNX Runtime and OpenVINO take turns; their profilers' times are added up by layer and by kind of
node: why eight bits pay in one runtime and less in another.
"""
from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

import numpy as np

from bench.profile.nodes import Nodes, by_layer, calls_of, check_format
from deploy.artifact import format_of, read_metadata
from models.records import from_json
from utils import cli, runs
from utils.errors import UsageError
from utils.text import aligned

LEAST = 0.01                                               # ms; kinds of node below are not shown


def profiled(path: str, threads: int) -> list[Nodes]:
    """Return the nodes of every call of a fresh session on one image of noise; raise as `calls_of` does.

    What OpenVINO does not compute in 8 bits it computes in fp32, also of a file whose weights are fp16.
    """
    check_format(path)
    metadata = read_metadata(path)
    side, precision = metadata["imgsz"], "int8" if metadata["precision"] == "int8" else "fp32"
    batch = np.random.default_rng(0).integers(0, 256, (1, 3, side, side), dtype=np.uint8)
    return calls_of(path, precision, threads, batch)


def beside(paths: list[str], threads: int, turns: int) -> dict[str, object]:
    """Return the record: of each file ms of a call, its spread over turns, ms by layer and by kind of node.

    Medians over the turns of medians over calls. Raises UsageError for files of different networks.
    """
    told = [read_metadata(path) for path in paths]
    if len({(data["net"], data["imgsz"]) for data in told}) > 1:
        raise UsageError(f"{', '.join(paths)} are not of one network at one side: layers do not compare")
    net, found = from_json(told[0]["net"]), {path: [] for path in paths}
    for _ in range(turns):
        for path in paths:
            found[path].append(profiled(path, threads))
    files = {}
    for path, data in zip(paths, told, strict=True):
        layers = [_median([by_layer(net, nodes) for nodes in calls]) for calls in found[path]]
        kinds = [_median([_kinds(nodes) for nodes in calls]) for calls in found[path]]
        sums = [sum(turn.values()) for turn in layers]
        key = f"{format_of(path)}_{data['precision']}"
        again = sum(name.startswith(key) for name in files)
        files[f"{key}_{again + 1}" if again else key] = {
            "file": Path(path).name, "ms": float(np.median(sums)), "spread": [min(sums), max(sums)],
            "layers": _median(layers), "kinds": _median(kinds)}
    return {"kind": "layers", "imgsz": told[0]["imgsz"], "threads": threads, "turns": turns, "files": files,
            "environment": runs.environment()}


def _kinds(nodes: Nodes) -> dict[str, float]:
    found = Counter()
    for _, kind, ms in nodes:
        found[kind] += ms
    return found


def _median(rows: list[dict[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: float(np.median([row.get(name, 0.0) for row in rows])) for name in names}


def lines(record: dict) -> list[str]:
    """Return the record as a table of ms by layer, then a line a file of ms by kind of node."""
    files = record["files"]
    first, *_ = files.values()
    rows = [[layer, *(round(of["layers"][layer], 3) for of in files.values())] for layer in first["layers"]]
    rows.append(["sum", *(round(of["ms"], 2) for of in files.values())])
    out = [f"ms a call at {record['imgsz']} px, {record['threads']} threads, by the runtimes' own profilers",
           aligned(["layer", *files], rows)]
    for name, of in files.items():
        shown = sorted(((ms, kind) for kind, ms in of["kinds"].items() if ms >= LEAST), reverse=True)
        out.append(f"{name}: " + ", ".join(f"{kind} {ms:.2f}" for ms, kind in shown))
    return out


def main() -> None:
    """Print the tables, and write the record on request."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("files", nargs="+", help="what export.py wrote: .onnx files, OpenVINO folders")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of the network (default: 1)")
    parser.add_argument("--turns", type=int, default=5, help="fresh sessions of each file (default: 5)")
    parser.add_argument("--save-json", metavar="NAME", help="also write the record to results/NAME.json")
    args = parser.parse_args()
    for name in ("threads", "turns"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} {getattr(args, name)}: needs 1 or more")
    record = beside(args.files, args.threads, args.turns)
    print("\n".join(lines(record)))
    if args.save_json:
        runs.save_record(args.save_json, record)


if __name__ == "__main__":
    cli.run(main)
