"""Frames a second of networks on a CUDA device, by precision, layout, compilation and graph; training too.

    python -m bench.accelerator --nets yolov3-tiny micro-yolo micro-yolo-fast net.json --save-json NAME

All variants of a network and batch take turns; a call ends when the device is done. Weights are fresh: what a
network learned changes no time. Decoding and NMS are not in the calls.
"""
from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from bench.machine import gpus
from bench.profile.timing import interleaved, summary, warm_up
from compress.fold import fold
from data.loader import Batch
from deploy.runtimes.torchscript import DTYPES
from models.count import macs, parameters
from models.heads.loss import DetectionLoss
from models.layer import Net
from models.network import Network, from_state, initialise
from models.zoo.build import build
from training import engine
from training.config import TrainConfig
from training.run import Session, make_state
from utils import cli, ddp, runs
from utils.errors import EnvironmentFault, UsageError
from utils.text import aligned

CLASSES, ROUNDS, SECONDS, STEPS = 5, 40, 1.5, 12
FORMATS = {"": torch.contiguous_format, "_channels_last": torch.channels_last}
TRAIN_BATCHES = (16, 64)


def main() -> None:
    """Measure, print the table, and write results/NAME.json."""
    parser = argparse.ArgumentParser(prog="python -m bench.accelerator", description=__doc__.splitlines()[0])
    parser.add_argument("--nets", nargs="+", default=["yolov3-tiny", "micro-yolo", "micro-yolo-fast"],
                        help="names of the zoo, net.json paths")
    parser.add_argument("--imgsz", type=int, default=416, help="input side in px")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32], help="images a call")
    parser.add_argument("--compile", nargs="*", default=[], metavar="NET",
                        help="networks that torch.compile is tried on as well: half a minute each and batch")
    parser.add_argument("--minutes", type=float, default=6.0, help="no further variant is begun after these")
    parser.add_argument("--save-json", metavar="NAME", help="also write the record to results/NAME.json")
    args = parser.parse_args()
    if strange := sorted({*args.compile} - {Path(name).stem for name in args.nets}):
        raise UsageError(f"--compile {' '.join(strange)}: not among --nets")
    if not torch.cuda.is_available():
        raise EnvironmentFault("python -m bench.accelerator times a CUDA device, and torch finds none here; "
                               "benchmark.py times CPUs")
    record: dict[str, object] = {}
    for record in measure(args):                           # one that is cut short keeps what it has
        if args.save_json:
            runs.save_record(args.save_json, record)
    print("\n".join(lines(record)))


def measure(args: argparse.Namespace) -> Iterator[dict[str, object]]:
    """Yield the record, grown by a network each time: counts, frames a second, images trained a second."""
    device, end = torch.device("cuda:0"), time.monotonic() + 60 * args.minutes
    nets = {Path(name).stem: build(name, CLASSES) for name in args.nets}
    found: dict[str, dict] = {}
    record = {"kind": "accelerator", "imgsz": args.imgsz, "networks": found, "skipped": [],
              "device": torch.cuda.get_device_name(device), "gpus": gpus(), "cuda": torch.version.cuda,
              "cudnn": torch.backends.cudnn.version(), "environment": runs.environment()}
    for name, net in nets.items():
        row = {"parameters": parameters(net), "macs": macs(net, args.imgsz)}
        row["batches"] = {batch: inference(net, args.imgsz, batch, device) for batch in args.batches}
        row["training"] = {batch: {p: training(net, args.imgsz, batch, p, device) for p in ("fp32", "fp16")}
                           for batch in TRAIN_BATCHES}
        found[name] = row
        yield record
    for name in args.compile:
        for batch in args.batches:
            if time.monotonic() > end:
                record["skipped"].append(f"{name} compiled, batch {batch}: no time left")
                continue
            found[name]["batches"][batch] |= compiled(nets[name], args.imgsz, batch, device)
            yield record
    yield record


def inference(net: Net, side: int, batch: int, device: torch.device) -> dict[str, dict]:
    """Return variant -> frames a second of batches fp [B, 3, S, S] that lie on the device already."""
    calls: dict[str, Callable] = {}
    for precision in ("fp32", "fp16"):
        for layout, memory in FORMATS.items():
            model, images = _ready(net, side, batch, device, DTYPES[precision], memory)
            calls[f"{precision}{layout}"] = lambda _, m=model, x=images: _done(m, x)
            calls[f"{precision}{layout}_graph"] = graphed(model, images)
    return _rates(calls, batch)


def compiled(net: Net, side: int, batch: int, device: torch.device) -> dict[str, dict]:
    """Return the same of torch.compile in fp16, which records graphs by itself."""
    began = time.monotonic()
    model, images = _ready(net, side, batch, device, torch.float16, torch.channels_last)
    model = torch.compile(model, mode="reduce-overhead", dynamic=False)
    for _ in range(3):
        _done(model, images)
    seconds = time.monotonic() - began
    found = _rates({"fp16_channels_last_compiled": lambda _: _done(model, images)}, batch)
    return {name: {**row, "compile_seconds": round(seconds, 1)} for name, row in found.items()}


def graphed(model: torch.nn.Module, images: Tensor) -> Callable[[int], None]:
    """Return a call that replays the model's kernels as one CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side), torch.inference_mode():
        for _ in range(3):
            model(images)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.inference_mode(), torch.cuda.graph(graph):
        kept = model(images)

    def call(_: int) -> None:
        graph.replay()
        torch.cuda.synchronize()
    call.outputs = kept                                    # the graph writes into them
    return call


def training(net: Net, side: int, batch: int, precision: str, device: torch.device) -> dict[str, float]:
    """Return images a second of training steps on one batch in memory, loss and optimizer included."""
    model = initialise(Network(net), 0).to(device).to(memory_format=torch.channels_last)
    session = Session(device, ddp.World(0, 1), precision, print)
    config = TrainConfig(imgsz=side, batch_size=batch, precision=precision)
    state, loss = make_state(model, config, session), DetectionLoss(net)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8, generator=generator)
    boxes = torch.rand(4 * batch, 4, generator=generator) * 0.4 + 0.2
    rows = torch.arange(4 * batch).float()
    targets = torch.cat(((rows % batch)[:, None], (rows % CLASSES)[:, None], boxes), 1)
    given = Batch(images.pin_memory() if device.type == "cuda" else images, targets, list(range(batch)))
    task = engine.Task(config, [given], loss, *(lambda *_: {},) * 5, None, precision)
    times = []
    state.model.train()
    for _ in range(STEPS):
        began = time.perf_counter()
        engine.step(state, config.clip, [engine.gradients(state, task, given, 0, 0)])
        torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - began))
    told = summary(times[STEPS // 2:])
    return {"images_per_second": 1e3 * batch / told["ms"], "spread": told["spread"]}


def _ready(net: Net, side: int, batch: int, device: torch.device, dtype: torch.dtype,
           memory: torch.memory_format) -> tuple[torch.nn.Module, Tensor]:
    """Return the folded network with fresh weights and a batch of noise, both on the device."""
    model = from_state(*fold(net, initialise(Network(net), 0).state_dict()))
    images = torch.rand(batch, 3, side, side, device=device).to(dtype)
    return model.to(device, dtype).to(memory_format=memory), images.contiguous(memory_format=memory)


@torch.inference_mode()
def _done(model: torch.nn.Module, images: Tensor) -> None:
    model(images)
    torch.cuda.synchronize()


def _rates(calls: dict[str, Callable], batch: int) -> dict[str, dict]:
    warm_up(calls, 8, SECONDS)
    told = {name: summary(times) for name, times in interleaved(calls, ROUNDS, SECONDS).items()}
    return {name: {"fps": 1e3 * batch / row["ms"], **row} for name, row in told.items()}


def lines(record: dict) -> list[str]:
    """Return the record as tables: a line a network and batch, and what training does."""
    nets = record["networks"].items()
    variants = list(dict.fromkeys(v for _, net in nets for found in net["batches"].values() for v in found))
    rows = [[name, batch, *(round(found[v]["fps"]) if v in found else None for v in variants)]
            for name, net in nets for batch, found in net["batches"].items()]
    trained = [[name, batch, *(round(found[p]["images_per_second"]) for p in ("fp32", "fp16"))]
               for name, net in nets for batch, found in net["training"].items()]
    return [f"frames a second at {record['imgsz']} px, {record['device']}",
            aligned(["network", "batch", *variants], rows), "",
            "training images a second, one batch in memory",
            aligned(["network", "batch", "fp32", "fp16"], trained), *record["skipped"]]


if __name__ == "__main__":
    cli.run(main)
