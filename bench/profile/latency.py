"""Is the smaller network faster, and where not: side by side on the CPU, by layers, beside the roofline."""
from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.profile.timing import best_ms, interleaved, ratio, summary, torch_threads, warm_up
from deploy.runtimes.runtime import Runtime, torch_runtime
from deploy.runtimes.torchscript import DTYPES
from models.channels import channels, sizes
from models.count import layer_macs, macs, parameters
from models.graph import expand, grids
from models.layer import Net
from models.nodes import IMAGE, Node
from utils import runs
from utils.errors import UsageError
from utils.text import aligned

State = dict[str, Tensor]
FELL = 0.97                        # a layer's time fell when it is below this share of what it was
ALIGNED = 8                        # channel counts that are no multiple of it run slowly
NAMED = 6                          # layers a sentence names
NOISY = 0.15                       # spread from which times say little
LAYER_ROUNDS = 15
SECONDS = 60.0                     # most for the networks of a precision, and again for their layers
COPY = 192 << 20                   # bytes: several times the last cache of a desktop machine
PEAK_SECONDS = 0.12                # for each measurement of the peak
MATMUL, CHANNELS, SIDE = 1024, 128, 56


def compare_speed(networks: Mapping[str, tuple[Net, State]], imgsz: int, images: Tensor, *, threads: int = 1,
                  precisions: Sequence[str] = ("fp32", "bf16"), rounds: int = 30) -> dict[str, object]:
    """Return the latency of the named networks on this CPU, batch 1, against the first; speed_lines shows it.

    images: uint8 [N, 3, imgsz, imgsz], taken in turn; raises UsageError for others. `skipped`: precisions
    that this CPU lacks, and why. Networks have timing.summary and ratio, layers the rows of layer_table.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or not len(images) or \
            tuple(images.shape[1:]) != (3, imgsz, imgsz):
        raise UsageError(f"latency at {imgsz} needs uint8 images [N, 3, {imgsz}, {imgsz}], got "
                         f"{str(images.dtype).removeprefix('torch.')} {list(images.shape)}")
    first = macs(next(iter(networks.values()))[0], imgsz)
    counts = {name: {"parameters": parameters(net), "macs": macs(net, imgsz),
                     "mac_ratio": first / macs(net, imgsz)} for name, (net, _) in networks.items()}
    found: dict[str, dict] = {}
    skipped = {p: why for p in precisions if (why := refusal(p))}
    with torch_threads(threads):
        for precision in precisions:
            if precision not in skipped:
                found[precision] = _compare(networks, imgsz, images, threads, precision, rounds)
    return {"imgsz": imgsz, "threads": threads, "pictures": len(images), "networks": counts,
            "precisions": found, "skipped": skipped}


def latency(net: Net, state: State, imgsz: int, images: Tensor, threads: int = 1, rounds: int = 30,
            device: torch.device | str = "cpu") -> float:
    """Return the median ms of an image of uint8 [N, 3, imgsz, imgsz], in half precision where native."""
    device = torch.device(device)
    precision, _ = runs.pick_precision(device)
    with torch_threads(threads):
        single = list(images.split(1))
        runtime = torch_runtime(net, state, (), imgsz, device, precision)

        def call(at: int) -> None:
            runtime.predict(single[at % len(single)])
            if device.type == "cuda":
                torch.cuda.synchronize(device)
        warm_up({"": call})
        return summary(interleaved({"": call}, rounds, SECONDS)[""])["ms"]


def refusal(precision: str) -> str:
    """Return why a precision is not timed on this CPU; empty where it is."""
    if precision not in DTYPES:
        return f"unknown; known are {', '.join(DTYPES)}"
    if precision == "fp16":
        return "fp16 on a CPU is many times slower than fp32"
    return "this CPU has no native bf16" if precision == "bf16" and not runs.native_bf16() else ""


def _compare(networks: Mapping[str, tuple[Net, State]], imgsz: int, images: Tensor, threads: int,
             precision: str, rounds: int) -> dict[str, object]:
    """Return one precision's part of compare_speed."""
    runtimes = {name: torch_runtime(net, state, (), imgsz, "cpu", precision)
                for name, (net, state) in networks.items()}
    single = list(images.split(1))
    calls = {name: lambda at, r=runtime: r.predict(single[at % len(single)])
             for name, runtime in runtimes.items()}
    warm = warm_up(calls)
    times = interleaved(calls, rounds, SECONDS)
    first = next(iter(times.values()))
    layers = _layer_times(runtimes, single, min(rounds, LAYER_ROUNDS))
    peaks = {p: measure_peak(p, threads) for p in {r.precision for r in runtimes.values()}}
    rows = {name: layer_rows(runtime.net, imgsz, runtime.precision, layers[name], peaks[runtime.precision])
            for name, runtime in runtimes.items()}
    return {"rounds": len(first), "warm_up_rounds": warm, "peaks": peaks, "layers": rows,
            "networks": {name: {**summary(t), **ratio(first, t), "precision": runtimes[name].precision,
                                "note": runtimes[name].note} for name, t in times.items()}}


def layer_table(net: Net, state: State, imgsz: int, image: Tensor, precision: str, peak: dict,
                rounds: int = LAYER_ROUNDS) -> list[dict[str, object]]:
    """Return a row per layer of the network on one image uint8 [3, S, S]; limit_ms: what `peak` allows."""
    runtime = torch_runtime(net, state, (), imgsz, "cpu", precision)
    batch = image.reshape(1, *image.shape[-3:])
    warm_up({"": lambda _: runtime.predict(batch)})
    return layer_rows(net, imgsz, runtime.precision, _layer_times({"": runtime}, [batch], rounds)[""], peak)


def _layer_times(runtimes: Mapping[str, Runtime], single: list[Tensor],
                 rounds: int) -> dict[str, dict[str, list[float]]]:
    """Return network -> layer -> ms of every round, networks taking turns as in timing.interleaved."""
    taken = {name: [] for name in runtimes}
    interleaved({name: lambda at, n=name, r=runtime: taken[n].append(_clocked(r, single[at % len(single)]))
                 for name, runtime in runtimes.items()}, rounds, SECONDS)
    # Of a turn's two calls the second counts.
    return {name: {layer: [spent[layer] for spent in calls[1::2]] for layer in calls[0]}
            for name, calls in taken.items()}


def clocked_layers(runtime: Runtime, batch: Tensor, rounds: int) -> list[dict[str, float]]:
    """Return layer -> ms of each call on a batch uint8 [1, 3, S, S], after a warm-up."""
    warm_up({"": lambda _: runtime.predict(batch)})
    return [_clocked(runtime, batch) for _ in range(rounds)]


def _clocked(runtime: Runtime, images: Tensor) -> dict[str, float]:
    """Return layer -> ms that its nodes take in one call."""
    model, last = runtime.runner.model, time.perf_counter()
    spent = dict.fromkeys((layer.name for layer in model.net), 0.0)

    def watch(node: Node, _: Tensor) -> None:
        nonlocal last
        now = time.perf_counter()
        if node.layer:                                     # what comes before is no layer's time
            spent[node.layer] += 1e3 * (now - last)
        last = now
    model.watch = watch
    try:
        runtime.predict(images)
    finally:
        model.watch = None
    return spent


def layer_rows(net: Net, imgsz: int, precision: str, times: Mapping[str, Sequence[float]],
               peak: dict) -> list[dict[str, object]]:
    """Return rows of layer_table from measured times, layer -> ms of every round."""
    size = torch.finfo(DTYPES[precision]).bits // 8
    work, moved = layer_macs(net, imgsz), layer_bytes(net, imgsz, size)
    out, rows = channels(net).outputs, []
    for layer in net:
        taken, n = summary(times[layer.name]), work.get(layer.name, 0)
        limit = 1e3 * max(n / peak["macs_per_s"], moved[layer.name] / peak["bytes_per_s"])
        rows.append({"layer": layer.name, "op": layer.op, "width": len(out[layer.name]),
                     "ms": taken["ms"], "spread": taken["spread"], "limit_ms": limit,
                     "macs": n, "bytes": moved[layer.name],
                     "macs_per_s": 1e3 * n / taken["ms"] if taken["ms"] else 0.0,
                     "intensity": n / moved[layer.name], "bound": bound(n, moved[layer.name], peak)})
    return rows


def layer_bytes(net: Net, imgsz: int, size: int) -> dict[str, int]:
    """Return layer -> bytes it moves for one imgsz x imgsz image, numbers of `size` bytes, BN folded.

    A lower bound without caches: every weight and bias is read once, every operation reads its inputs and
    writes its output, also within a block. Activations are applied on the way and move nothing.
    """
    folded = tuple(replace(layer, bn=False) for layer in net)
    side, moved = grids(folded, imgsz), {layer.name: 0 for layer in net}
    numbers = {IMAGE: 3 * imgsz ** 2}
    for node in expand(folded).nodes:
        numbers[node.name] = node.channels * side[node.name] ** 2
        if node.type != "act":
            moved[node.layer] += numbers[node.name] + sum(numbers[name] for name in node.inputs)
    for layer, count in sizes(folded).items():
        moved[layer] += count
    return {name: size * n for name, n in moved.items()}


def measure_peak(precision: str, threads: int = 1) -> dict[str, object]:
    """Return this machine's best MACs (product, 3x3 convolution) and bytes (a large copy) per second."""
    dtype = DTYPES[precision]
    with torch_threads(threads), torch.inference_mode():
        square = torch.full((MATMUL, MATMUL), 0.5, dtype=dtype)
        matmul = MATMUL ** 3 / best_ms(lambda: square @ square, PEAK_SECONDS)
        image, kernel = (torch.full(shape, 0.5, dtype=dtype).contiguous(memory_format=torch.channels_last)
                         for shape in ((1, CHANNELS, SIDE, SIDE), (CHANNELS, CHANNELS, 3, 3)))
        work = (CHANNELS * SIDE * 3) ** 2
        conv = work / best_ms(lambda: F.conv2d(image, kernel, padding=1), PEAK_SECONDS)
        source = torch.ones(COPY, dtype=torch.uint8)
        target = torch.empty_like(source)
        copied = 2 * COPY / best_ms(lambda: target.copy_(source), PEAK_SECONDS)
    best = max(matmul, conv)
    return {"precision": precision, "threads": threads, "matmul_macs_per_s": 1e3 * matmul,
            "conv_macs_per_s": 1e3 * conv, "macs_per_s": 1e3 * best, "bytes_per_s": 1e3 * copied,
            "balance": best / copied}


def bound(macs: int, moved: int, peak: dict) -> str:
    """Return what limits a layer: "memory" where it does fewer MACs per byte than the peak's balance."""
    return "memory" if macs < peak["balance"] * moved else "compute"


def speed_lines(result: dict) -> list[str]:
    """Return what compare_speed found: an aligned table, and which layers held the network back."""
    rows, words, parts = [], [], result["precisions"].values()
    for precision, part in result["precisions"].items():
        for name, row in part["networks"].items():
            size, (low, high) = result["networks"][name], row["ratio_quartiles"]
            rows.append([f"{name}, {precision}", f"{row['ms']:.2f}", f"{row['p90_ms']:.2f}",
                         f"{100 * row['spread']:.0f} %", f"{row['ratio']:.2f}x", f"{low:.2f}-{high:.2f}",
                         f"{size['macs'] / 1e9:.4f}", f"{size['mac_ratio']:.2f}x"])
            words += [f"{name}: {row['note']}"] if row["note"] else []
        first, *others = part["layers"]
        for name in others:
            words += _reasons(f"{name}, {precision}", part["layers"][first], part["layers"][name])
    worst = max((row["spread"] for part in parts for row in part["networks"].values()), default=0.0)
    if worst > NOISY:
        words.insert(0, f"the times scatter by up to {100 * worst:.0f} %: other work shares this machine; "
                        "measure again when it is idle before trusting a ratio")
    words += [f"{precision} was not timed: {why}" for precision, why in result["skipped"].items()]
    rounds = max((part["rounds"] for part in parts), default=0)
    title = (f"latency at {result['imgsz']} px, batch 1, threads {result['threads']}: "
             f"medians of {rounds} interleaved rounds")
    columns = ("network", "ms", "p90", "spread", "as fast", "quartiles", "GMACs", "fewer MACs")
    return [title, *(aligned(columns, rows).split("\n") if rows else ()), *words]


def _reasons(who: str, before: list[dict], after: list[dict]) -> list[str]:
    """Return sentences on the layers of the second table that do less than in the first, in no less time."""
    old = {row["layer"]: row for row in before}
    less = [(old[row["layer"]], row) for row in after if row["layer"] in old
            and (row["bytes"] < old[row["layer"]]["bytes"] or row["macs"] < old[row["layer"]]["macs"])]
    slow = [(a, b) for a, b in less if b["ms"] >= FELL * a["ms"]]
    memory, compute = ([pair for pair in slow if pair[1]["bound"] == kind] for kind in ("memory", "compute"))
    share = sum(row["ms"] for row in after if row["bound"] == "memory") / sum(row["ms"] for row in after)
    first = ("every memory-bound layer that became smaller became faster"
             if any(row["bound"] == "memory" for _, row in less) else "no memory-bound layer became smaller")
    if memory:
        first = f"memory-bound and no faster, though smaller: {_named(memory)}"
    lines = [f"{first}; memory-bound layers take {100 * share:.0f} % of its time"]
    if compute:
        lines.append(f"compute-bound and no faster, though smaller: {_named(compute)}")
    if odd := [f"{row['layer']} {row['width']}" for _, row in slow if row["width"] % ALIGNED]:
        lines.append(f"among them channel counts that are no multiple of {ALIGNED}, which kernels are "
                     f"slow at: {', '.join(odd)}; try --round-to {ALIGNED}")
    return [f"{who}: {line}" for line in lines]


def _named(pairs: list[tuple[dict, dict]]) -> str:
    """Return the pairs' layers, longest first, with both times and the least that the machine allows."""
    pairs = sorted(pairs, key=lambda pair: -pair[1]["ms"])
    shown = ", ".join(f"{b['layer']} {a['ms']:.2f} -> {b['ms']:.2f} ms (limit {b['limit_ms']:.2f})"
                      for a, b in pairs[:NAMED])
    return shown + (f" and {len(pairs) - NAMED} more" if len(pairs) > NAMED else "")
