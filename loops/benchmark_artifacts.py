"""Checkpoints exported into a benchmark's run folder for the runtimes that need another file."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from loops.benchmark_run import Bench, Taken
from models.artifact import format_of
from utils.bench_cases import TORCH
from utils.errors import EnvironmentFault, UsageError

# (runtime, precision) -> half and int8 of the export. What is not here this project does not write.
FILES = {("onnx", "fp32"): (False, False), ("onnx", "fp16"): (True, False), ("onnx", "int8"): (False, True),
         ("openvino", "fp32"): (False, False), ("openvino", "bf16"): (False, False),
         ("openvino", "int8"): (False, True), ("ncnn", "fp32"): (False, False),
         ("ncnn", "bf16"): (False, False), ("ncnn", "fp16"): (True, False),
         ("torchscript", "fp32"): (False, False), ("torchscript", "bf16"): (True, False)}
CALIBRATION, GATE = 128, 16        # pictures of --data's train and val split, as export.py's


def export_cases(bench: Bench, folder: Path) -> None:
    """Gives every case that needs one its exported file, written once and passed by the parity gate.

    A case without a file is skipped where a library is missing or there is no such export, and failed where
    the export computes something else than the checkpoint; the case says why.
    """
    done: dict[tuple, Path | tuple[str, str, int]] = {}
    for taken in bench.taken:
        case = taken.case
        if case.runtime in TORCH or format_of(case.weights) != "torch":
            continue
        bench.poll()
        kind = FILES.get((case.runtime, case.precision))
        key = case.weights, case.runtime, kind, case.imgsz
        if kind is None:
            done[key] = "skipped", f"nothing is exported for {case.runtime} in {case.precision}", 2
        elif key not in done:
            done[key] = _export(taken, kind, bench.args.data, folder)
        found = done[key]
        if isinstance(found, Path):
            taken.case = replace(case, weights=str(found))
        else:
            taken.status, taken.reason, taken.exit_code = found


def _export(taken: Taken, kind: tuple[bool, bool], data: str | None,
            folder: Path) -> Path | tuple[str, str, int]:
    """The exported file; or status, reason and exit code of a case that cannot have one."""
    from loops import exporting, parity
    case, (half, int8) = taken.case, kind
    print(f"exporting {case.name} for {case.runtime}, {'int8' if int8 else 'half' if half else 'fp32'}, "
          f"{case.imgsz} px", flush=True)
    try:
        exporting.check_libraries([case.runtime], int8)
        checkpoint, imgsz = exporting.read(case.weights, case.imgsz)
        pictures = parity.set_pictures(data, "val", imgsz, GATE) if data else parity.embedded_pictures(imgsz)
        calibration: Sequence = parity.set_pictures(data, "train", imgsz, CALIBRATION) if int8 else ()
        job = exporting.Export(case.weights, checkpoint, imgsz, half, int8, pictures, calibration)
        target = folder / str(imgsz)
        target.mkdir(parents=True, exist_ok=True)
        row = exporting.export(job, case.runtime, target, case.name.replace("/", "-"))
    except (EnvironmentFault, UsageError) as error:
        return "skipped", str(error), error.exit_code
    if row["faults"]:
        return "failed", "the export computes something else: " + "; ".join(row["faults"]), 4
    return target / row["file"]
