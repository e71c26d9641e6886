"""Milliseconds an image of every network of a comparison, by runtime, taking turns on this machine."""
from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from bench.profile.timing import interleaved, summary, torch_threads, warm_up
from deploy.artifact import make_metadata, onnx_session, size, write_metadata
from deploy.export import WRITERS, Export
from deploy.runtimes.runtime import Runtime, load_runtime, torch_runtime
from models.checkpoint import Checkpoint
from models.layer import Net
from models.network import Network, initialise

SECONDS = 60.0                                             # most for a runtime's networks


def measure(nets: Mapping[str, Net], files: Mapping[str, Path], names: tuple[str, ...], imgsz: int,
            images: torch.Tensor, *, runtimes: tuple[str, ...], rounds: int, threads: int) -> dict[str, dict]:
    """Return network -> {runtime: median ms, ..., "spread": of the worst runtime, "bytes": of its ONNX file}.

    What a network learned changes no time: fresh weights are run, in fp32, batch 1. images: uint8 [N, 3,
    imgsz, imgsz], taken in turn. files: ONNX files of other programs, timed in ONNX Runtime alone.
    """
    found: dict[str, dict] = {name: {"spread": 0.0} for name in (*nets, *files)}
    single = list(images.split(1))
    with tempfile.TemporaryDirectory() as folder, torch_threads(threads):
        for runtime in runtimes:
            calls: dict[str, Callable] = {}
            for at, (name, net) in enumerate(nets.items()):
                run = _load(net, names, imgsz, runtime, Path(folder) / f"{runtime}{at}", threads)
                calls[name] = lambda i, run=run: run.predict(single[i % len(single)])
                if runtime == "onnx":
                    found[name]["bytes"] = size(Path(folder) / f"{runtime}{at}" / "model.onnx")
            if runtime == "onnx":
                calls |= {name: _foreign(path, single, threads) for name, path in files.items()}
                for name, path in files.items():
                    found[name]["bytes"] = size(path)
            if not calls:
                continue
            warm_up(calls)
            for name, times in interleaved(calls, rounds, SECONDS).items():
                told = summary(times)
                found[name] |= {runtime: told["ms"], "spread": max(found[name]["spread"], told["spread"])}
    return found


def _load(net: Net, names: tuple[str, ...], imgsz: int, runtime: str, folder: Path, threads: int) -> Runtime:
    """Return a network with fresh weights in a runtime, its file in `folder`."""
    given = Checkpoint(net, initialise(Network(net), 0).state_dict(), names, imgsz)
    if runtime == "torch":
        return torch_runtime(net, given.state, names, imgsz, "cpu", "fp32")
    folder.mkdir()
    made, _ = WRITERS[runtime](Export("", given, imgsz, False, False, ()), folder)
    write_metadata(made, make_metadata(given, imgsz, "fp32"))
    return load_runtime(made, "cpu", "fp32", threads)


def _foreign(path: Path, single: list[torch.Tensor], threads: int) -> Callable:
    """Return a call that runs another program's ONNX file on the images as fp32 in 0..1."""
    session = onnx_session(path, threads)
    given = session.get_inputs()[0].name
    arrays = [image.float().div(255).numpy() for image in single]
    return lambda i: session.run(None, {given: arrays[i % len(arrays)]})
