"""What a channel costs on this device: the ms of each record against the widths of the units, measured."""
from __future__ import annotations

import importlib.util
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bench.profile.latency import clocked_layers
from bench.profile.nodes import by_layer, onnx_nodes, openvino_nodes
from bench.profile.timing import interleaved, summary, torch_threads, warm_up
from deploy.artifact import onnx_session
from deploy.onnx_file import to_onnx
from deploy.runtimes.openvino import HINTS, core
from deploy.runtimes.runtime import torch_runtime
from models.channels import channels
from models.graph import INPUT
from models.layer import Net
from models.network import Network, initialise
from models.records import to_json
from utils import runs
from utils.errors import UsageError

State = dict[str, Tensor]
Clock = Callable[[Net], dict[str, float]]                  # network -> record -> what it costs
RUNTIMES = {"onnx": "onnxruntime", "openvino": "openvino", "torch": "torch"}       # and their packages
PARTS, DEEPEST = 16, 4                                     # a table's widths: sixteenths, down to a quarter
ROUNDS, SECONDS = 30, 60.0
REST = ("reorders", "other")                               # what a runtime spends between records


class Setup(NamedTuple):
    """Where latency counts: a runtime of this CPU, its precision and threads; batch 1."""

    runtime: str
    precision: str
    threads: int

    def told(self) -> dict[str, object]:
        """Return what times depend on beside the network, for the name of a table's file."""
        package = importlib.import_module(RUNTIMES[self.runtime])
        return {**self._asdict(), "version": str(package.__version__), "cpu": runs.environment()["cpu"]}


def setup_of(runtime: str, threads: int) -> Setup:
    """Return the device of a runtime, "auto": the first that is installed; UsageError where it is not."""
    there = [name for name, package in RUNTIMES.items() if importlib.util.find_spec(package)]
    if runtime not in ("auto", *there):
        raise UsageError(f"--runtime {runtime}: {RUNTIMES[runtime]} is not installed; there are "
                         f"{', '.join(there)}")
    found = there[0] if runtime == "auto" else runtime
    native = runs.pick_precision(torch.device("cpu"))[0]
    return Setup(found, "fp32" if found == "onnx" else native, threads)


class Table(NamedTuple):
    """What records cost, and how that changes with the width of each unit, the others being whole.

    base: unit -> width in the network measured. cost: record -> its cost there. units: unit -> width ->
    record -> cost, of the records that this width changes.
    """

    base: dict[str, int]
    cost: dict[str, float]
    units: dict[str, dict[int, dict[str, float]]]

    def total(self, width: Mapping[str, int]) -> float:
        """Return the cost of a network with these widths; units that are not named are whole.

        Between measured widths lies a line; a record of several units is what each leaves of it, multiplied,
        what lies between records what each adds.
        """
        out = dict(self.cost)
        for unit, now in width.items():
            if unit not in self.units or now == self.base[unit]:
                continue
            at = sorted(self.units[unit])
            for record in self.units[unit][at[-1]]:
                whole, values = self.cost[record], [self.units[unit][w][record] for w in at]
                here = float(np.interp(now, at, values))
                if record in REST:
                    out[record] += here - whole
                elif whole:
                    out[record] *= here / whole
        return sum(out.values())

    def widths(self, unit: str, now: int, multiple: int = 1) -> list[int]:
        """Return the measured widths of a unit below `now`, the widest first."""
        return [w for w in sorted(self.units.get(unit, ()), reverse=True) if w < now and w % multiple == 0]


def grid(width: int) -> list[int]:
    """Return the widths at which a unit is measured: whole, and multiples of a power of two below it."""
    step = 1 << max(0, (width // PARTS - 1).bit_length()) if width >= PARTS else 1
    return [*(w for w in range(step, width, step) if w * DEEPEST >= width), width]


def measure(net: Net, units: Sequence[str], narrow: Callable[[dict[str, int]], Net], clock: Clock,
            step: Callable[[], object] = lambda: None) -> Table:
    """Return the table of a network; narrow: unit -> width to the network; step: called after each one."""
    whole, base = clock(net), {unit: len(channels(net).units[unit]) for unit in units}
    found: dict[str, dict[int, dict[str, float]]] = {}
    for unit in units:
        nets = {width: narrow({unit: width}) for width in grid(base[unit])[:-1]}
        costs = {base[unit]: whole}
        for width, small in nets.items():
            costs[width] = clock(small)
            step()
        touched = set(REST).union(*(_changed(net, small) for small in nets.values()))
        found[unit] = {width: {record: ms for record, ms in cost.items() if record in touched}
                       for width, cost in sorted(costs.items())}
    return Table(base, whole, found)


def _changed(net: Net, other: Net) -> set[str]:
    """Return the records that differ, in themselves or in the width of what they read."""
    mine, theirs = channels(net).outputs, channels(other).outputs
    return {a.name for a, b in zip(net, other)
            if a != b or any(len(mine[i]) != len(theirs[i]) for i in (*a.inputs, a.name))}


def read_or_measure(folder: Path, of: dict, make: Callable[[], Table]) -> Table:
    """Return the table of a folder's file for what `of` tells, measured and written where there is none."""
    text = json.dumps(of, sort_keys=True, default=str)
    path = folder / f"costs-{zlib.crc32(text.encode()):08x}.json"
    if path.is_file() and (found := runs.read_object(path)).get("of") == json.loads(text):
        units = {unit: {int(w): cost for w, cost in rows.items()} for unit, rows in found["units"].items()}
        return Table(found["base"], found["cost"], units)
    table = make()
    folder.mkdir(parents=True, exist_ok=True)
    runs.write_json(path, {"of": json.loads(text), **table._asdict()})
    return table


def told(net: Net, imgsz: int, units: Sequence[str], what: Mapping[str, object]) -> dict[str, object]:
    """Return what a table is of: the network, its side, the units, and what the costs are."""
    return {"net": zlib.crc32(to_json(net).encode()), "imgsz": imgsz, "units": list(units), **what}


def layer_clock(setup: Setup, imgsz: int) -> Clock:
    """Return the clock of a device: network -> record -> ms, medians, with what the runtime adds (REST)."""
    image = np.random.default_rng(0).integers(0, 256, (1, 3, imgsz, imgsz), dtype=np.uint8)

    def clock(net: Net) -> dict[str, float]:
        state = initialise(Network(net), 0).state_dict()
        if setup.runtime == "torch":
            with torch_threads(setup.threads):
                calls = clocked_layers(torch_runtime(net, state, (), imgsz, "cpu", setup.precision),
                                       torch.from_numpy(image), ROUNDS)
        else:
            file = to_onnx(net, state, imgsz)
            nodes = onnx_nodes(file, setup.threads, image) if setup.runtime == "onnx" else \
                openvino_nodes(core().read_model(file, b""), HINTS[setup.precision], setup.threads, image)
            calls = [by_layer(net, call) for call in nodes]
        return {record: float(np.median([call[record] for call in calls])) for record in calls[0]}
    return clock


def latency_ms(setup: Setup, net: Net, state: State, imgsz: int, images: Tensor) -> float:
    """Return the median ms of an image of uint8 [N, 3, imgsz, imgsz] in a device's runtime, not profiled."""
    run, single = _caller(setup, net, state, imgsz), [image[None] for image in images]

    def call(at: int) -> None:
        run(single[at % len(single)])
    with torch_threads(setup.threads):
        warm_up({"": call})
        return summary(interleaved({"": call}, ROUNDS, SECONDS)[""])["ms"]


def _caller(setup: Setup, net: Net, state: State, imgsz: int) -> Callable[[Tensor], object]:
    if setup.runtime == "torch":
        return torch_runtime(net, state, (), imgsz, "cpu", setup.precision).predict
    file = to_onnx(net, state, imgsz)
    if setup.runtime == "onnx":
        session = onnx_session(file, setup.threads)
        return lambda image: session.run(None, {INPUT: image.contiguous().numpy()})
    model = core().read_model(file, b"")
    model.reshape([1, 3, imgsz, imgsz])
    compiled = core().compile_model(model, "CPU", {
        "INFERENCE_PRECISION_HINT": HINTS[setup.precision], "INFERENCE_NUM_THREADS": setup.threads,
        "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1})
    return lambda image: compiled(image.contiguous().numpy())
