"""Checkpoints exported into a benchmark's run folder for the runtimes that need another file."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bench.cases import TORCH, Case
from bench.run import Bench
from deploy.artifact import format_of
from utils.errors import EnvironmentFault, UsageError

if TYPE_CHECKING:
    from deploy.export import Export

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
    jobs: dict[tuple, Export] = {}                         # the runtimes share calibration and torch's AP50
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
            done[key] = _export(case, kind, bench, folder / str(case.imgsz), jobs)
        found = done[key]
        if isinstance(found, Path):
            taken.case = replace(case, weights=str(found))
        else:
            taken.status, taken.reason, taken.exit_code = found


def _export(case: Case, kind: tuple[bool, bool], bench: Bench, folder: Path,
            jobs: dict[tuple, Export]) -> Path | tuple[str, str, int]:
    """The exported file; or status, reason and exit code of a case that cannot have one."""
    from deploy import export
    (half, int8), key = kind, (case.weights, kind, case.imgsz)
    print(f"exporting {case.name} for {case.runtime}, {'int8' if int8 else 'half' if half else 'fp32'}, "
          f"{case.imgsz} px", flush=True)
    try:
        export.check_libraries([case.runtime], int8)
        if key not in jobs:
            jobs[key] = _job(case, half, int8, bench)
        folder.mkdir(parents=True, exist_ok=True)
        row = export.export(jobs[key], case.runtime, folder, case.name.replace("/", "-"))
    except (EnvironmentFault, UsageError) as error:
        return "skipped", str(error), error.exit_code
    if row["faults"]:
        return "failed", "the export computes something else: " + "; ".join(row["faults"]), 4
    return folder / row["file"]


def _job(case: Case, half: bool, int8: bool, bench: Bench) -> Export:
    """What export.py would export by the same flags: with --data, AP50 is part of the gate."""
    from deploy import export, parity
    data = bench.args.data or ""
    checkpoint, imgsz = export.read(case.weights, case.imgsz)
    pictures = parity.split_images(data, "val", imgsz, GATE) if data else parity.embedded_images(imgsz)
    calibration: Sequence = parity.split_images(data, "train", imgsz, CALIBRATION) if int8 else ()
    return export.Export(case.weights, checkpoint, imgsz, half, int8, pictures, calibration, data,
                            poll=bench.poll)
