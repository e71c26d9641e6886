"""From a checkpoint to files for other runtimes, each kept only when it passes the parity gate."""
from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data.coco.locate import Located
from deploy import parity, web
from deploy.artifact import digest, format_of, make_metadata, size, write_metadata
from deploy.onnx_file import OPSET, to_onnx
from deploy.onnx_nms import OUTPUTS, BoxFile, Thresholds, add_nms
from deploy.quant.equalise import equalise
from deploy.quant.ptq import quantise_onnx, quantise_openvino, usable
from deploy.runtimes.ncnn import to_ncnn
from deploy.runtimes.openvino import read_model
from deploy.runtimes.runtime import Runtime, load_runtime
from deploy.runtimes.torchscript import to_torchscript
from evaluation.evaluate import measure
from models.checkpoint import Checkpoint, load
from models.graph import strides
from models.layer import Net
from utils.errors import ModelError, UsageError
from utils.optional import needs
from utils.text import aligned

LIBRARIES = {"onnx": ("onnx", "onnxruntime"), "openvino": ("onnx", "openvino"), "ncnn": ("ncnn",),
             "torchscript": (), "web": ("onnx", "onnxruntime")}
SAME = 0.98                            # share of boxes alike with NMS inside the file and outside
EQUALISED = 0.5                        # square roots: the range is shared by activations and weights


class Polled(list):
    """A list that polls before each item: the quantisers go through their images for minutes."""

    def __init__(self, items: Iterable, poll: Callable[[], object]) -> None:
        super().__init__(items)
        self.poll = poll

    def __iter__(self) -> Iterator:
        for item in super().__iter__():
            self.poll()
            yield item


@dataclass(frozen=True)
class Export:
    """What is exported and what it is compared with. Raises DataError for images unfit to calibrate INT8."""

    weights: str
    checkpoint: Checkpoint
    imgsz: int
    half: bool
    int8: bool
    images: Sequence[np.ndarray]                           # uint8 [3, S, S], the gate's
    calibration: Sequence[np.ndarray] = ()                 # those that INT8 measures its ranges on
    data: Located | None = None                            # a set for AP50
    tolerance: float = 1e-3
    nms: Thresholds | None = None                          # of an ONNX file that ends in boxes
    poll: Callable[[], object] = lambda: None              # called between images, ends the export by raising

    def __post_init__(self) -> None:
        if self.int8:
            usable(self.singly(), self.imgsz)
        _ = self.map50_torch                               # here: before the run has a folder

    @cached_property
    def reference(self) -> Runtime:
        """The checkpoint in torch."""
        return load_runtime(self.weights)

    @cached_property
    def map50_torch(self) -> float | None:
        """AP50 of the checkpoint in torch on `data`; None without."""
        return self.map50(self.reference) if self.data else None

    @cached_property
    def network(self) -> tuple[Net, dict[str, Tensor]]:
        """Records and weights as they are written: for INT8 with channels of like ranges."""
        net, state = self.checkpoint.net, self.checkpoint.state
        if not self.int8:
            return net, state
        return equalise(net, state, [torch.from_numpy(image) for image in self.singly()], EQUALISED)

    def map50(self, runtime: Runtime) -> float:
        """Return AP50 of a runtime on `data`."""
        return measure(runtime, self.data, self.imgsz, poll=self.poll)["map50"]

    def singly(self) -> Polled:
        """Return the calibration images as batches of one, uint8 [1, 3, S, S]."""
        return Polled((image[None] for image in self.calibration), self.poll)

    def precision(self, form: str) -> str:
        """Return the precision of the file of a format."""
        if self.int8:
            return "int8"
        return "fp32" if not self.half else "bf16" if form == "torchscript" else "fp16"


def check_libraries(forms: Sequence[str], int8: bool) -> None:
    """Raise EnvironmentFault with the pip line where a library of the wanted formats is missing."""
    for form in forms:
        for name in (*LIBRARIES[form], *(("nncf",) if int8 and form == "openvino" else ())):
            needs(name, f"for --format {form}")
    if "web" in forms:
        web.runtime_files()


def read(weights: str, imgsz: int | None) -> tuple[Checkpoint, int]:
    """Return the checkpoint and the input side. Raises UsageError for what cannot be exported."""
    if format_of(weights) != "torch":
        raise UsageError(f"--weights {weights} is an export already; give the checkpoint (.pt, .weights)")
    checkpoint = load(weights)
    side, stride = imgsz or checkpoint.imgsz, max(strides(checkpoint.net).values())
    if side % stride:
        raise UsageError(f"--imgsz {side}: this network needs a multiple of {stride}")
    return checkpoint, side


def export(job: Export, form: str, folder: Path, name: str) -> dict:
    """Return the row of one format: file, bytes, sha256, differences, faults (none: the file is in place)."""
    job.poll()
    start, precision = time.perf_counter(), job.precision(form)
    ending = f".{form}" if form in ("onnx", "torchscript") else f"_{form}"         # a file, or a folder
    end = f"{'' if precision == 'fp32' else '-' + precision}{'-nms' if job.nms else ''}{ending}"
    final = folder / f"{name}{end}"
    if final.is_dir():                                     # gone first: none is left where the gate raises
        shutil.rmtree(final)
    final.unlink(missing_ok=True)
    limits = parity.LIMITS[precision]
    if precision == "fp32":
        limits = limits._replace(diff=job.tolerance)
    work = Path(tempfile.mkdtemp(prefix=".part-", dir=folder))
    try:
        opset = OPSET if "onnx" in LIBRARIES[form] else None
        metadata = make_metadata(job.checkpoint, job.imgsz, precision, opset, job.weights)
        made, extra = WRITERS[form](job, work)
        write_metadata(made, metadata)
        other = load_runtime(made)
        found = parity.compare(job.reference, other, job.images, job.poll)
        if (exact := job.map50_torch) is not None:
            map50 = job.map50(other)
            found |= {"map50": map50, "map50_torch": exact, "map50_diff": map50 - exact}
        faults, metadata["parity"] = parity.faults(found, limits, precision == "fp32"), found
        if job.nms and not faults:
            made, faults = _with_nms(job, other, made, metadata)
        row = {"format": form, "file": final.name, "precision": precision, "bytes": size(made), **found,
               "limits": limits._asdict(), "faults": faults, **extra}
        if not faults:
            write_metadata(made, metadata)
            row |= {"bytes": size(made), "sha256": digest(made)}
            if form == "web":
                made = web.write_web(work / "web", made, metadata)
            os.replace(made, final)
        return row | {"seconds": round(time.perf_counter() - start, 2)}
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _with_nms(job: Export, plain: Runtime, made: Path, metadata: dict) -> tuple[Path, list[str]]:
    """Return the file with NMS inside that is made of an ONNX file, and its faults; metadata is completed."""
    target = made.with_name("model-nms.onnx")
    add_nms(made, target, plain.heads, job.nms)
    share = parity.same_boxes(plain, BoxFile(target), job.images, *job.nms, poll=job.poll)
    metadata["parity"]["same_boxes"] = share
    metadata["nms"] = {**job.nms._asdict(), "outputs": list(OUTPUTS)}
    alike = share is None or share >= SAME
    return target, [] if alike else [f"NMS inside finds {100 * share:.1f} % of the boxes alike, "
                                     f"{100 * SAME:g} % are needed"]


def _onnx(job: Export, work: Path) -> tuple[Path, dict]:
    target = work / "model.onnx"
    target.write_bytes(to_onnx(*job.network, job.imgsz, job.half))
    if not job.int8:
        return target, {}
    quantised = work / "model-int8.onnx"
    return quantised, {"quantisation": quantise_onnx(target, quantised, job.singly())}


def _openvino(job: Export, work: Path) -> tuple[Path, dict]:
    target, plain = work / "openvino", work / "plain.onnx"
    target.mkdir()
    plain.write_bytes(to_onnx(*job.network, job.imgsz))
    if job.int8:
        return target, {"quantisation": quantise_openvino(plain, target / "model.xml", job.singly())}
    ov = needs("openvino", "for --format openvino")      # its convert_model wraps read_model and reports home
    ov.save_model(read_model(plain), target / "model.xml", compress_to_fp16=job.half)
    return target, {}


def _ncnn(job: Export, work: Path) -> tuple[Path, dict]:
    target = work / "ncnn"
    target.mkdir()
    text, numbers = to_ncnn(*job.network, job.half)
    (target / "model.param").write_text(text, encoding="utf-8")
    (target / "model.bin").write_bytes(numbers)
    return target, {}


def _torchscript(job: Export, work: Path) -> tuple[Path, dict]:
    target = work / "model.torchscript"
    target.write_bytes(to_torchscript(*job.network, job.imgsz, job.precision("torchscript")))
    return target, {}


WRITERS: dict[str, Callable[[Export, Path], tuple[Path, dict]]] = {
    "onnx": _onnx, "openvino": _openvino, "ncnn": _ncnn, "torchscript": _torchscript, "web": _onnx}


def verdict(row: dict) -> str:
    """Return what became of a format: "failed", "refused" or "kept"."""
    return "failed" if "error" in row else "refused" if row["faults"] else "kept"


def conclude(rows: Sequence[dict], weights: str) -> None:
    """Raise what the exit code should tell: the first error, in whose words all formats are that failed."""
    lost = [row for row in rows if verdict(row) != "kept"]
    if not lost:
        return
    said = ". ".join(f"{row['format']}: {row.get('error') or '; '.join(row['faults'])}" for row in lost)
    text = f"{len(lost)} of {len(rows)} exports of {weights} were not kept. {said}"
    first = lost[0].get("error", ModelError(text))
    raise type(first)(text) if hasattr(first, "exit_code") else first


def table(rows: Sequence[dict]) -> str:
    """Return the exports as an aligned table."""
    def cells(row: dict) -> list[str]:
        if "error" in row:
            return [row["format"], *[""] * 6, "failed"]
        matched, moved = row["matched"], row.get("map50_diff")
        found = "no boxes" if matched is None else f"{100 * matched:.1f} % of {row['boxes']}"
        moved = "" if moved is None else f"{round(100 * moved, 2) + 0.0:+.2f}"     # no negative zero
        return [row["format"], row["file"], f"{row['bytes']:,}", f"{row['max_diff']:.2g}",
                f"{100 * row['mean_share']:.2g} %", found, moved, verdict(row)]
    columns = ("format", "file", "bytes", "largest difference", "mean / spread", "boxes found again",
               "AP50 points", "verdict")
    return aligned(columns, [cells(row) for row in rows])
