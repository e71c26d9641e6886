"""From a checkpoint to files for other runtimes, each kept only when it passes the parity gate."""
from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from deploy import parity
from deploy.artifact import digest, make_card, size, write_card
from deploy.onnx_file import OPSET, to_onnx
from deploy.runtimes.runtime import Runtime, load_runtime
from evaluation.evaluate import measure
from models.checkpoint import Checkpoint, load
from models.layer import Net
from utils.errors import UsageError
from utils.optional import needs

LIBRARIES = {"onnx": ("onnx", "onnxruntime"), "openvino": ("onnx", "openvino"), "ncnn": ("ncnn",),
             "torchscript": (), "web": ("onnx", "onnxruntime")}
ENDINGS = {"onnx": ".onnx", "openvino": "_openvino", "ncnn": "_ncnn", "torchscript": ".torchscript",
           "web": "_web"}
FROM_ONNX = ("onnx", "openvino", "web")
EQUALISED = 0.5                        # square roots: the range is shared by activations and weights


class Polled(list):
    """A list that polls before each item: the quantisers go through their pictures for minutes."""

    def __init__(self, items: Iterable, poll: Callable[[], object]) -> None:
        super().__init__(items)
        self.poll = poll

    def __iter__(self) -> Iterator:
        for item in super().__iter__():
            self.poll()
            yield item


@dataclass
class Export:
    """What is exported and what it is held against.

    pictures: uint8 [3, S, S], the gate's. calibration: those that INT8 measures its ranges on. data: a set
    for AP50, or "". poll: called between pictures, ends the export by raising.
    """

    weights: str
    checkpoint: Checkpoint
    imgsz: int
    half: bool
    int8: bool
    pictures: Sequence[np.ndarray]
    calibration: Sequence[np.ndarray] = ()
    data: str = ""
    tolerance: float = 1e-3
    poll: Callable[[], object] = lambda: None
    reference: Runtime = field(init=False)

    def __post_init__(self) -> None:
        if self.int8:                                      # here, before anything is measured or written
            from deploy.quant.ptq import usable
            usable(self.singly(), self.imgsz)
        self.reference = load_runtime(self.weights)
        self.truth = self.map50(self.reference) if self.data else None

    @cached_property
    def network(self) -> tuple[Net, dict[str, Tensor]]:
        """Records and weights as they are written: for INT8 with channels of like ranges."""
        net, state = self.checkpoint.net, self.checkpoint.state
        if not self.int8:
            return net, state
        from deploy.quant.equalise import equalise
        return equalise(net, state, [torch.from_numpy(p) for p in self.singly()], EQUALISED)

    def map50(self, runtime: Runtime) -> float:
        """AP50 of a runtime on the data set."""
        return measure(runtime, self.data, self.imgsz, poll=self.poll)["map50"]

    def singly(self) -> Polled:
        """The calibration pictures as batches of one, uint8 [1, 3, S, S]."""
        return Polled((picture[None] for picture in self.calibration), self.poll)

    def precision(self, form: str) -> str:
        """The precision of the file of a format."""
        if self.int8:
            return "int8"
        return "fp32" if not self.half else "bf16" if form == "torchscript" else "fp16"

    def limits(self, precision: str) -> parity.Limits:
        """What the file may be off by."""
        limits = parity.LIMITS[precision]
        return limits._replace(diff=self.tolerance) if precision == "fp32" else limits


def check_libraries(forms: Sequence[str], int8: bool) -> None:
    """Raises EnvironmentFault with the pip line where a library of the wanted formats is missing."""
    for form in forms:
        for name in (*LIBRARIES[form], *(("nncf",) if int8 and form == "openvino" else ())):
            needs(name, f"for --format {form}")
    if "web" in forms:
        from deploy.web import runtime_files
        runtime_files()


def read(weights: str, imgsz: int | None) -> tuple[Checkpoint, int]:
    """The checkpoint and the input side. Raises ModelError and UsageError for what cannot be exported."""
    from deploy.artifact import format_of
    from models.graph import strides
    if format_of(weights) != "torch":
        raise UsageError(f"--weights {weights} is an export already; give the checkpoint (.pt, .weights)")
    checkpoint = load(weights)
    side, stride = imgsz or checkpoint.imgsz, max(strides(checkpoint.net).values())
    if side % stride:
        raise UsageError(f"--imgsz {side}: this network needs a multiple of {stride}")
    return checkpoint, side


def export(job: Export, form: str, folder: Path, name: str) -> dict:
    """The row of one format: file, bytes, sha256, differences, faults (none: the file is in its place).

    The file is made in a hidden folder of the run and moved to its name when it has passed. An older one of
    that name goes first, so that none is left where the writer or the gate raises.
    """
    job.poll()
    start, precision = time.perf_counter(), job.precision(form)
    final = folder / f"{name}{'' if precision == 'fp32' else '-' + precision}{ENDINGS[form]}"
    _remove(final)
    work = Path(tempfile.mkdtemp(prefix=".part-", dir=folder))
    try:
        card = make_card(job.checkpoint, job.imgsz, precision, OPSET if form in FROM_ONNX else None,
                         job.weights)
        made, extra = WRITERS[form](job, work, card)
        found = _held_against(job, made)
        wrong = parity.faults(found, job.limits(precision), precision == "fp32")
        row = {"format": form, "file": final.name, "precision": precision, "bytes": size(made), **found,
               "limits": job.limits(precision)._asdict(), "faults": wrong, **extra}
        if not wrong:
            write_card(made, card | {"parity": found})
            row |= {"bytes": size(made), "sha256": digest(made)}
            os.replace(_web(made, card | {"parity": found}) if form == "web" else made, final)
        return row | {"seconds": round(time.perf_counter() - start, 2)}
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _held_against(job: Export, made: Path) -> dict:
    """The differences between the file and torch in fp32."""
    other = load_runtime(made)
    found = parity.compare(job.reference, other, job.pictures, job.poll)
    if job.truth is not None:
        map50 = job.map50(other)
        found |= {"map50": map50, "map50_torch": job.truth, "map50_diff": map50 - job.truth}
    return found


def _remove(path: Path) -> None:
    """Takes an earlier export away: its name is for a file that passed."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _onnx(job: Export, work: Path, card: dict) -> tuple[Path, dict]:
    target = work / "model.onnx"
    target.write_bytes(to_onnx(*job.network, job.imgsz, card, job.half))
    if not job.int8:
        return target, {}
    from deploy.quant.ptq import quantise_onnx
    quantised = work / "model-int8.onnx"
    report = quantise_onnx(target, quantised, job.singly())
    write_card(quantised, card)
    return quantised, {"quantisation": report}


def _openvino(job: Export, work: Path, card: dict) -> tuple[Path, dict]:
    from deploy.runtimes.openvino import core
    ov = needs("openvino", "for --format openvino")
    target, report = work / "openvino", {}
    target.mkdir()
    # Not by its convert_model, which wraps this same reader and reports home.
    model = core().read_model(to_onnx(*job.network, job.imgsz))
    if job.int8:
        from deploy.quant.openvino import quantise_openvino
        plain = work / "plain.xml"
        ov.save_model(model, plain, compress_to_fp16=False)
        report = {"quantisation": quantise_openvino(plain, target / "model.xml", job.singly())}
    else:
        ov.save_model(model, target / "model.xml", compress_to_fp16=job.half)
    write_card(target, card)
    return target, report


def _ncnn(job: Export, work: Path, card: dict) -> tuple[Path, dict]:
    from deploy.ncnn_file import to_ncnn
    target = work / "ncnn"
    target.mkdir()
    text, numbers = to_ncnn(*job.network, job.half)
    (target / "model.param").write_text(text, encoding="utf-8")
    (target / "model.bin").write_bytes(numbers)
    write_card(target, card)
    return target, {}


def _torchscript(job: Export, work: Path, card: dict) -> tuple[Path, dict]:
    from deploy.runtimes.torchscript import to_torchscript
    target = work / "model.torchscript"
    target.write_bytes(to_torchscript(*job.network, job.imgsz, card, card["precision"]))
    return target, {}


def _web(model: Path, card: dict) -> Path:
    """The folder with the page around an ONNX file."""
    from deploy.web import write_web
    target = model.parent / "web"
    write_web(target, model, card)
    return target


WRITERS: dict[str, Callable[[Export, Path, dict], tuple[Path, dict]]] = {
    "onnx": _onnx, "openvino": _openvino, "ncnn": _ncnn, "torchscript": _torchscript, "web": _onnx}
