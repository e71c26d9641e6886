"""How fast a network is cut: our `prune` beside torch-pruning, the same channels, in interleaved rounds.

    python -m tests.speed_prune --rounds 30 --threads 1 --out results/prune-speed.json

A step takes 1/16 of the channels of one layer away. ours: `prune`, from records and state to records and
state. module: the same, and a Network that holds the result. torch_pruning: its dependency graph, the group
of the layer, and the cut, from a module to that module made smaller; the copy it works on is not timed.
cut: the same without the graph's making.
"""
from __future__ import annotations

import argparse
import copy
import statistics
import time
from pathlib import Path

WAYS = ("ours", "module", "torch_pruning", "cut")


def main() -> None:
    """Runs the rounds over every layer that can be cut, prints the table, writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cfg", default="micro-yolo")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--side", type=int, default=64, help="px of the picture that torch-pruning follows")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()

    import torch

    from models.channels import channels, widths
    from models.network import Network, initialise
    from models.zoo.build import build
    torch.set_num_threads(args.threads)
    model = initialise(Network(build(args.cfg)), 0).eval()
    width, frozen = widths(model.net), channels(model.net).frozen
    layers = [group for group, n in width.items() if group not in frozen and "." not in group and n >= 16]
    times = {way: {layer: [] for layer in layers} for way in WAYS}
    for at in range(-1, args.rounds):                      # the first round warms up
        for layer in layers:
            for way, seconds in step(model, layer, width[layer], at, args.side).items():
                times[way][layer] += [1000 * seconds] if at >= 0 else []
    report(args, times)


def step(model: object, layer: str, width: int, seed: int, side: int) -> dict[str, float]:
    """Seconds that each way takes for the same random sixteenth of a layer; the results are compared."""
    import random

    import torch
    import torch_pruning as tp

    from compress.prune import prune
    from models.network import from_state
    gone = sorted(random.Random(f"{layer} {seed}").sample(range(width), width // 16))
    keep = {layer: sorted({*range(width)} - {*gone})}
    state, theirs, x = model.state_dict(), copy.deepcopy(model), torch.rand(1, 3, side, side)
    start = time.perf_counter()
    net, small = prune(model.net, state, keep)
    pruned = time.perf_counter()
    ours = from_state(net, small)
    built = time.perf_counter()
    graph = tp.DependencyGraph().build_dependency(theirs, example_inputs=x)
    traced = time.perf_counter()
    graph.get_pruning_group(last(getattr(theirs, layer)), tp.prune_conv_out_channels, idxs=gone).prune()
    end = time.perf_counter()
    with torch.no_grad():
        if not all(torch.allclose(a, b, atol=1e-4) for a, b in zip(ours(x), theirs(x))):
            raise RuntimeError(f"the two ways disagree on {layer}")
    return dict(zip(WAYS, (pruned - start, built - start, end - built, end - traced)))


def last(block: object) -> object:
    """The convolution that makes a block's outputs."""
    return getattr(block, "project", getattr(block, "pointwise", block)).conv


def report(args: argparse.Namespace, times: dict[str, dict[str, list[float]]]) -> None:
    """Prints and writes, in ms, the median and spread of each way over all steps, and of each layer."""
    from importlib.metadata import version

    from utils.runs import environment, write_json
    whole = {way: [ms for layer in rows.values() for ms in layer] for way, rows in times.items()}
    ratio = [a / b for a, b in zip(whole["torch_pruning"], whole["ours"])]
    result = {way: spread(values) for way, values in (whole | {"torch_pruning_over_ours": ratio}).items()}
    result["layers"] = {layer: {way: spread(rows[layer]) for way, rows in times.items()}
                        for layer in times["ours"]}
    result |= {"network": args.cfg, "rounds": args.rounds, "torch_threads": args.threads, "side": args.side,
               "unit": "ms a step", "torch_pruning_version": version("torch-pruning"),
               "environment": environment()}
    for name in (*WAYS, "torch_pruning_over_ours"):
        value = result[name]
        print(f"{name:24} {value['median']:7.2f}   ({value['low']:.2f} .. {value['high']:.2f}, "
              f"max {value['max']:.2f})")
    for layer, rows in result["layers"].items():
        print(f"  {layer:10} " + "  ".join(f"{way} {rows[way]['median']:.2f}" for way in WAYS))
    if args.out:
        write_json(args.out, result)


def spread(values: list[float]) -> dict[str, float]:
    """Median, 5th and 95th percentile, least and greatest."""
    cuts = statistics.quantiles(values, n=20, method="inclusive")
    return {"median": statistics.median(values), "low": cuts[0], "high": cuts[-1], "min": min(values),
            "max": max(values)}


if __name__ == "__main__":
    main()
