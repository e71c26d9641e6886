"""What each layer takes inside ONNX Runtime and OpenVINO: their profilers' times, added up by layer."""
from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bench.profile.latency import layer_rows
from bench.profile.timing import summary
from deploy.artifact import format_of, main_file, onnx_session, read_metadata
from deploy.runtimes.openvino import OpenvinoRunner, core
from models.graph import INPUT
from models.layer import Net
from models.records import from_json
from utils.boxes import on_host
from utils.errors import UsageError
from utils.runs import Device

if TYPE_CHECKING:
    import openvino as ov

    from utils.boxes import Values

WARM, ROUNDS = 5, 30
Nodes = list[tuple[str, str, float]]               # name, kind and ms of every node of one call, in order


def node_table(path: str | Path, precision: str, threads: int, image: Values,
               peak: dict) -> list[dict[str, object]]:
    """Return rows as of latency.layer_table, "reorders" and "other"; raise as `calls_of`."""
    calls = calls_of(path, precision, threads, np.ascontiguousarray(on_host(image)[None]))
    metadata = read_metadata(path)
    net = from_json(metadata["net"])
    return rows_of(net, metadata["imgsz"], precision, [by_layer(net, nodes) for nodes in calls], peak)


def check_format(path: str | Path) -> None:
    """Raise UsageError for a file of neither runtime."""
    if (form := format_of(path)) not in ("onnx", "openvino"):
        raise UsageError(f"{path}: layers are told by ONNX Runtime and OpenVINO alone, of ONNX and OpenVINO "
                         f"files; this is {form}")


def calls_of(path: str | Path, precision: str, threads: int, batch: np.ndarray) -> list[Nodes]:
    """Return the nodes of every call of a fresh session on a batch uint8 [B, 3, S, S].

    precision: OpenVINO's; an ONNX file has its own. Raises UsageError for a file of another format.
    """
    check_format(path)
    file = main_file(path)
    if format_of(path) == "onnx":
        return onnx_nodes(file, threads, batch)
    runner = OpenvinoRunner(file, precision, threads, Device("cpu"))
    return openvino_nodes(runner.model, runner.hint, threads, batch)


def by_layer(net: Net, nodes: Nodes) -> dict[str, float]:
    """Return ms of each layer in one call, of "reorders" and of "other", from the times of the nodes."""
    found = dict.fromkeys((*(layer.name for layer in net), "reorders", "other"), 0.0)
    for name, kind, ms in nodes:
        layer = re.split(r"[./]|_nchwc|_token_|_kernel_time", name)[0]
        found["reorders" if "Reorder" in kind else layer if layer in found else "other"] += ms
    return found


def rows_of(net: Net, imgsz: int, precision: str, calls: list[dict[str, float]],
            peak: Mapping) -> list[dict[str, object]]:
    """Return rows of all layers, then of what is no layer, from the times of several calls."""
    times = {name: [call[name] for call in calls] for name in calls[0]}
    rows = layer_rows(net, imgsz, precision, times, dict(peak))
    for name in ("reorders", "other"):
        taken = summary(times[name])
        rows.append({**dict.fromkeys(rows[0], 0), "layer": name, "op": "", "ms": taken["ms"],
                     "spread": taken["spread"], "bound": "none"})
    return rows


def onnx_nodes(model: Path | bytes, threads: int, batch: np.ndarray) -> list[Nodes]:
    """Return the nodes of every call in ONNX Runtime, which writes them into a file of its own."""
    with tempfile.TemporaryDirectory() as folder:
        session = onnx_session(model, threads, profile=str(Path(folder) / "nodes"))
        for _ in range(WARM + ROUNDS):
            session.run(None, {INPUT: batch})
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    nodes = [(event["name"], event["args"]["op_name"], event["dur"] / 1e3) for event in events
             if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")]
    each = len(nodes) // (WARM + ROUNDS)
    return [nodes[at:at + each] for at in range(WARM * each, len(nodes), each)]


def openvino_nodes(model: ov.Model, hint: str, threads: int, batch: np.ndarray) -> list[Nodes]:
    """Return the nodes of every call in OpenVINO; hint: its name of the precision."""
    model = model.clone()
    model.reshape(list(batch.shape))
    compiled = core().compile_model(model, "CPU", {
        "INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": threads, "PERF_COUNT": True})
    request = compiled.create_infer_request()
    calls = []
    for _ in range(WARM + ROUNDS):
        request.infer({0: batch})
        calls.append([(node.node_name, node.node_type, 1e3 * node.real_time.total_seconds())
                      for node in request.profiling_info])
    return calls[WARM:]
