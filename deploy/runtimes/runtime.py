"""One `predict(batch)` over every way to run a network, chosen by the file's suffix."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from deploy.artifact import format_of, main_file, needs_torch
from models.graph import heads_of, strides
from models.layer import Net
from models.records import from_json
from utils import runs
from utils.boxes import on_host
from utils.errors import UsageError
from utils.optional import needs

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from utils.boxes import Values

# How far outputs may be off fp32's on average, as a share of their spread: of a file in export's gate, and of
# what runs here on its first batch. The shipped networks in bf16: 0.01 on noise, 0.07 on black.
HALF_SHARE, INT8_SHARE = 0.1, 0.5
ABSURD = 0.5                                   # the same for training, which learns to live with more noise


class Runner(Protocol):
    """What one library brings: head outputs, in whatever float type, and in what they were computed."""

    kind: str                                  # torch, torch-compile, torchscript, onnxruntime, ...
    precision: str                             # fp32, bf16, fp16 or int8: what is really run
    device: torch.device | runs.Device         # where it runs and where its outputs are
    note: str
    exact: Callable[[], Runner] | None         # of the same file in fp32; None: nothing to compare with

    def __call__(self, images: Values) -> list[Values]:
        """Return the head outputs of uint8 images [B, 3, H, W]: arrays or tensors, as the library has it."""


@dataclass
class Runtime:
    """A network ready to predict, whatever runs it; half precision that is no good falls back to fp32."""

    runner: Runner
    net: Net                                   # as it was trained, with batch-norm
    names: tuple[str, ...]
    imgsz: int
    class_map: dict[str, int] = field(default_factory=dict)
    fixed: bool = False                        # whether only images of imgsz x imgsz fit
    threads: int = 0                           # of the CPU

    def __post_init__(self) -> None:
        self.heads, self.stride = heads_of(self.net), max(strides(self.net).values())
        self.note, self.proven = self.runner.note, self.runner.exact is None
        self._run_by(self.runner)

    def _run_by(self, runner: Runner) -> None:
        self.runner, self.kind = runner, runner.kind
        self.precision, self.device = runner.precision, runner.device

    @property
    def lanes(self) -> int:
        """Return how many calls are best made at a time, each on one thread; 1 where one call takes all."""
        # torch's threads wait for each other at every layer, lanes for nothing
        return self.threads if self.kind == "torch" and self.device.type == "cpu" else 1

    def predict(self, images: Values) -> list[Values]:
        """Return head outputs, fp32 [B, *shape, G, G], of images uint8 [B, 3, H, W]. Raises UsageError.

        Of a tensor they are tensors; of an array what the library gives: torch alone needs to be there then.
        """
        self._check(images)
        if not self.proven:
            self._prove(images)
        outputs = [_fp32(output) for output in self.runner(images)]
        if isinstance(images, np.ndarray) or not isinstance(outputs[0], np.ndarray):
            return outputs
        import torch
        return [torch.from_numpy(output) for output in outputs]

    def check_side(self, side: int, name: str) -> None:
        """Raise UsageError where images of side x side px do not fit the network, which is `name`."""
        if self.fixed and side != self.imgsz:
            raise UsageError(f"--imgsz {side}: {name} was exported for {self.imgsz}; leave --imgsz out, "
                             f"or export it again with --imgsz {side}")
        if side % self.stride:
            raise UsageError(f"--imgsz {side}: {name} needs a multiple of {self.stride}")

    def _check(self, images: Values) -> None:
        kind = str(images.dtype).removeprefix("torch.")
        side, needed = self.imgsz, f"H, W], sides multiples of {self.stride}"
        fits = kind == "uint8" and images.ndim == 4 and images.shape[1] == 3 and len(images) > 0
        fits = fits and not any(given % self.stride for given in images.shape[2:])
        if self.fixed:
            needed = f"{side}, {side}], what it was exported for: --imgsz {side}, or export it again"
            fits = fits and tuple(images.shape[2:]) == (side, side)
        if not fits:
            raise UsageError(f"{self.kind} got images {kind} {list(images.shape)}; this network needs uint8 "
                             f"[B, 3, {needed}")

    def _prove(self, images: Values) -> None:
        """Compare half precision with fp32 on the first batch, once."""
        half, exact = self.runner, self.runner.exact()
        half.exact, self.proven = None, True
        share = INT8_SHARE if half.precision == "int8" else HALF_SHARE
        if fault := half_fault(half(images), exact(images), share):
            self.note = f"{self.precision} is {fault} on this network's first batch; continuing in fp32"
            self._run_by(exact)


def half_fault(half: Sequence[Values], exact: Sequence[Values], share: float = ABSURD) -> str:
    """Return the fault of outputs of half precision; "" for mean errors within `share` of fp32's spread."""
    half, exact = ([on_host(_fp32(output)) for output in outputs] for outputs in (half, exact))
    if not all(np.isfinite(output).all() for output in half):
        return "non-finite"
    off = any(np.abs(a - b).mean() > share * b.std() for a, b in zip(half, exact))
    return "far off fp32" if off else ""


def _fp32(output: Values) -> Values:
    return output.astype(np.float32, copy=False) if isinstance(output, np.ndarray) else output.float()


# Each in the module of its format, imported when it is asked for.
RUNNERS = {"onnx": "OnnxRunner", "openvino": "OpenvinoRunner", "ncnn": "NcnnRunner",
           "torchscript": "ScriptRunner"}


def load_runtime(weights: str | Path, device: torch.device | runs.Device | str = "cpu",
                 precision: str = "fp32", threads: int = 0, compiled: bool = False,
                 kept: str | Path | None = None) -> Runtime:
    """Return the runtime of a checkpoint, of darknet weights or of what export.py wrote.

    precision: fp32, bf16, fp16 or int8 as they stand; "half" and "auto": what is native here, with a note
    where that is not half. threads: of the CPU, 0 for all cores. kept: a folder for compiled models, of which
    OpenVINO has some. Raises ModelError for a file that
    cannot be used, EnvironmentFault with the pip line where its library is missing.
    """
    form = format_of(weights)
    if needs_torch(weights):
        torch = needs("torch", f"to run {weights}, where a file of export.py's (ONNX, OpenVINO, ncnn) is not")
        device = torch.device(str(device))
    else:
        device = runs.Device.of(str(device))
    if form != "torch":
        if compiled:
            raise UsageError(f"{weights} is no checkpoint (.pt, .weights), which torch.compile needs")
        make = getattr(import_module(f"deploy.runtimes.{form}"), RUNNERS[form])
        threads = threads or runs.own_threads()
        more = {"kept": kept} if form == "openvino" else {}
        runner = make(main_file(weights), precision, threads, device, **more)
        told = runner.metadata
        return Runtime(runner, from_json(told["net"]), tuple(told["names"]), told["imgsz"], told["class_map"],
                       form in ("onnx", "openvino"), threads)
    if threads:
        torch.set_num_threads(threads)
    from models.checkpoint import load
    checkpoint, note = load(weights), ""
    if precision in ("half", "auto"):
        precision, note = runs.pick_precision(device, precision)
    runtime = torch_runtime(checkpoint.net, checkpoint.state, checkpoint.names, checkpoint.imgsz, device,
                            precision, checkpoint.class_map, compiled)
    runtime.note = note
    return runtime


def torch_runtime(net: Net, state: dict[str, Tensor], names: tuple[str, ...], imgsz: int,
                  device: torch.device | str = "cpu", precision: str = "fp32",
                  class_map: dict[str, int] | None = None, compiled: bool = False) -> Runtime:
    """Return the torch runtime of a network and its state."""
    import torch

    from deploy.runtimes.torch import TorchRunner
    runner = TorchRunner(net, state, precision, torch.device(device), compiled)
    return Runtime(runner, net, tuple(names), imgsz, dict(class_map or {}), threads=torch.get_num_threads())
