"""One `predict(batch)` over every way to run a network, chosen by the file's suffix."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from compress.fold import fold
from deploy.artifact import CUDA, format_of, main_file, onnx_metadata, onnx_session, own_precision
from deploy.runtimes.ncnn import NcnnRunner
from deploy.runtimes.openvino import OpenvinoRunner
from deploy.runtimes.torchscript import DTYPES, ScriptRunner
from models.checkpoint import load
from models.graph import INPUT, heads_of, strides
from models.layer import Net
from models.network import from_state
from models.records import from_json
from utils import runs
from utils.errors import EnvironmentFault, UsageError

# How far outputs may be off fp32's on average, as a share of their spread: of a file in export's gate, and of
# what runs here on its first batch. The shipped networks in bf16: 0.01 on noise, 0.07 on black.
HALF_SHARE, INT8_SHARE = 0.1, 0.5
ABSURD = 0.5                                   # the same for training, which learns to live with more noise


class Runner(Protocol):
    """What one library brings: head outputs, in whatever float type, and in what they were computed."""

    kind: str                                  # torch, torch-compile, torchscript, onnxruntime, ...
    precision: str                             # fp32, bf16, fp16 or int8: what is really run
    device: torch.device                       # where it runs and where its outputs are
    note: str
    exact: Callable[[], Runner] | None         # of the same file in fp32; None: nothing to compare with

    def __call__(self, images: Tensor) -> list[Tensor]:
        """Return the head outputs of uint8 images [B, 3, H, W]."""


@dataclass
class Runtime:
    """A network ready to predict, whatever runs it; half precision that is no good falls back to fp32."""

    runner: Runner
    net: Net                                   # as it was trained, with batch-norm
    names: tuple[str, ...]
    imgsz: int
    class_map: dict[str, int] = field(default_factory=dict)
    fixed: bool = False                        # whether only images of imgsz x imgsz fit

    def __post_init__(self) -> None:
        self.heads, self.stride = heads_of(self.net), max(strides(self.net).values())
        self.note, self._proven = self.runner.note, self.runner.exact is None
        self._run_by(self.runner)

    def _run_by(self, runner: Runner) -> None:
        self.runner, self.kind = runner, runner.kind
        self.precision, self.device = runner.precision, runner.device

    @torch.inference_mode()
    def predict(self, images: Tensor) -> list[Tensor]:
        """Return head outputs, fp32 [B, *shape, G, G], of images uint8 [B, 3, H, W]. Raises UsageError."""
        self._check(images)
        if not self._proven:
            self._prove(images)
        return [output.float() for output in self.runner(images)]

    def check_side(self, side: int, name: str) -> None:
        """Raise UsageError where images of side x side px do not fit the network, which is `name`."""
        if self.fixed and side != self.imgsz:
            raise UsageError(f"--imgsz {side}: {name} was exported for {self.imgsz}; leave --imgsz out, "
                             f"or export it again with --imgsz {side}")
        if side % self.stride:
            raise UsageError(f"--imgsz {side}: {name} needs a multiple of {self.stride}")

    def _check(self, images: Tensor) -> None:
        side, needed = self.imgsz, f"H, W], sides multiples of {self.stride}"
        fits = images.dtype == torch.uint8 and images.ndim == 4 and images.shape[1] == 3 and len(images) > 0
        fits = fits and not any(given % self.stride for given in images.shape[2:])
        if self.fixed:
            needed = f"{side}, {side}], what it was exported for: --imgsz {side}, or export it again"
            fits = fits and tuple(images.shape[2:]) == (side, side)
        if not fits:
            raise UsageError(f"{self.kind} got images {str(images.dtype).removeprefix('torch.')} "
                             f"{list(images.shape)}; this network needs uint8 [B, 3, {needed}")

    def _prove(self, images: Tensor) -> None:
        """Compare half precision with fp32 on the first batch, once."""
        half, exact = self.runner, self.runner.exact()
        half.exact, self._proven = None, True
        share = INT8_SHARE if half.precision == "int8" else HALF_SHARE
        if fault := half_fault(half(images), exact(images), share):
            self.note = f"{self.precision} is {fault} on this network's first batch; continuing in fp32"
            self._run_by(exact)


def half_fault(half: list[Tensor], exact: list[Tensor], share: float = ABSURD) -> str:
    """Return the fault of outputs of half precision; "" for mean errors within `share` of fp32's spread."""
    if not all(output.isfinite().all() for output in half):
        return "non-finite"
    off = any((a.float() - b).abs().mean() > share * b.std() for a, b in zip(half, exact))
    return "far off fp32" if off else ""


class TorchRunner:
    """A network in torch: batch-norm folded, channels_last; torch.compile compiles it at the first batch."""

    note = ""

    def __init__(self, net: Net, state: dict[str, Tensor], precision: str, device: torch.device,
                 compiled: bool = False) -> None:
        folded, small = fold(net, state)
        model = from_state(folded, small).to(device, DTYPES[precision])
        self.model = model.to(memory_format=torch.channels_last)
        self.kind = "torch-compile" if compiled else "torch"
        self.precision, self.device = precision, device
        # Eager: a check that may be thrown away is not worth another compilation.
        self.exact = None if precision == "fp32" else partial(TorchRunner, folded, small, "fp32", device)
        self._run = torch.compile(self.model) if compiled else self.model

    def __call__(self, images: Tensor) -> list[Tensor]:
        x = images.to(self.device, non_blocking=True).to(DTYPES[self.precision]) / 255
        x = x.contiguous(memory_format=torch.channels_last)
        if self._run is self.model:
            return self.model(x)
        try:
            return self._run(x)
        except torch._dynamo.exc.TorchDynamoException as error:
            raise EnvironmentFault("torch.compile cannot compile this network here: "
                                   f"{str(error).strip().splitlines()[0]}; it needs a C++ compiler (Debian: "
                                   "apt install g++), or --runtimes torch, which compiles nothing") from error


class OnnxRunner:
    """An ONNX Runtime session that computes in the file's own precision."""

    kind = "onnxruntime"
    exact = None                                           # a file has one precision

    def __init__(self, path: Path, precision: str, threads: int, device: torch.device) -> None:
        self.session = onnx_session(path, threads, device.type == "cuda")
        self.metadata, self.device = onnx_metadata(self.session, path), torch.device("cpu")
        self.precision = self.metadata["precision"]
        self.note = own_precision(self.precision, precision)
        if device.type == "cuda" and CUDA not in self.session.get_providers():
            self.note = "this ONNX Runtime has no CUDA (pip install onnxruntime-gpu): continuing on the CPU"

    def __call__(self, images: Tensor) -> list[Tensor]:
        given = {INPUT: images.cpu().contiguous().numpy()}
        return [torch.from_numpy(value) for value in self.session.run(self.metadata["outputs"], given)]


RUNNERS = {"onnx": OnnxRunner, "openvino": OpenvinoRunner, "ncnn": NcnnRunner, "torchscript": ScriptRunner}


def load_runtime(weights: str | Path, device: torch.device | str = "cpu", precision: str = "fp32",
                 threads: int = 0, compiled: bool = False) -> Runtime:
    """Return the runtime of a checkpoint, of darknet weights or of what export.py wrote.

    precision: fp32, bf16, fp16 or int8 as they stand; "half" and "auto": what is native here, with a note
    where that is not half. threads: of the CPU, 0 for as many as torch has. Raises ModelError for a file that
    cannot be used, EnvironmentFault with the pip line where its library is missing.
    """
    form, device = format_of(weights), torch.device(device)
    if form != "torch":
        if compiled:
            raise UsageError(f"{weights} is no checkpoint (.pt, .weights), which torch.compile needs")
        runner = RUNNERS[form](main_file(weights), precision, threads or torch.get_num_threads(), device)
        told = runner.metadata
        return Runtime(runner, from_json(told["net"]), tuple(told["names"]), told["imgsz"], told["class_map"],
                       fixed=form in ("onnx", "openvino"))
    if threads:
        torch.set_num_threads(threads)
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
    runner = TorchRunner(net, state, precision, torch.device(device), compiled)
    return Runtime(runner, net, tuple(names), imgsz, dict(class_map or {}))
