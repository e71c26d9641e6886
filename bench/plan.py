"""A benchmark from what was asked for to its end: images, artifacts, cases, rounds, layers and the report."""
from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bench.cases import SCOPES, TORCH, Case, Config, matrix
from bench.machine import counters, facts
from bench.report import make_report, write
from bench.run import KINDS, Bench, WorkerFailed
from data.coco.locate import locate
from deploy.artifact import format_of, needs_torch
from detection.sources import VIDEOS, open_source
from utils import runs
from utils.errors import DataError, EnvironmentFault, Interrupted, ModelError, UsageError
from utils.redact import masked, masked_values

if TYPE_CHECKING:
    from deploy.export import Export

LAYERED = {("torch", "fp32"), ("torch", "bf16"), ("onnx", "fp32"), ("openvino", "fp32"),
           ("openvino", "bf16")}           # where it can be told what each layer takes
FULL_SIZE = {("onnx", "fp32"), ("openvino", "fp32"), ("openvino", "bf16"), ("ncnn", "fp32"),
             ("ncnn", "bf16"), ("torchscript", "fp32")}     # run from an export in fp32
HALF = {("onnx", "fp16"), ("ncnn", "fp16"), ("torchscript", "bf16")}
INT8 = {("onnx", "int8"), ("openvino", "int8")}            # what is in none of the three is not written
CALIBRATION, GATE = 128, 16        # images of --data's train and val split, as export.py's


def benchmark(config: Config) -> None:
    """Measure, write and print what was asked for; raise what ended it once the rest is written."""
    device = runs.pick_device(config.device, any(map(needs_torch, config.weights)))
    files = [(Path(path), format_of(path)) for path in config.weights]
    if missing := [str(path) for path, _ in files if not path.exists()]:
        raise ModelError(f"--weights {', '.join(missing)}: no such file")
    if config.data:
        _ = locate(config.data, config.val_split, config.seed).val     # read at the end, minutes too late
    poll = partial(runs.Interrupt().stop, "stopped by a signal; what was measured is saved")
    plan = plan_of(config)                                 # before the folder: an error here leaves none
    folder = runs.make_run_folder(config.project, config.name, config.exist_ok, "rounds")
    runs.write_json(folder / "args.json", masked_values(vars(config)))
    environment = {**runs.environment(), **facts(), "before": counters()}
    environment.pop("threads")                             # this process computes nothing
    threads = list(dict.fromkeys(count or len(runs.cores()) for count in config.threads))
    cases = matrix(files, config.runtimes, config.precisions, threads, config.batch_sizes, config.imgsz,
                   str(device))
    bench = Bench(config, plan, cases, environment, folder, poll)
    layers, stopped = [], None
    try:
        export_cases(bench, folder / "artifacts")
        bench.run()
        if config.layers:
            layers = layer_tables(bench)
    except (Interrupted, EnvironmentFault, DataError, ModelError) as error:
        if isinstance(error, (DataError, ModelError)) and not bench.measured():
            raise                                          # at the start: there is nothing to report
        stopped = error                                    # what was measured before is not lost
    report = make_report(bench, layers, str(stopped or ""))
    print(write(report, folder, config.save_json), folder, sep="\n\n")
    if stopped:
        raise stopped
    conclude(bench)


def conclude(bench: Bench) -> None:
    """Raise an error of the first fault's kind where cases or accuracies are missing."""
    failed = [(taken, taken.exit_code, taken.reason) for taken in bench.taken if taken.status == "failed"]
    blind = [(taken, taken.accuracy["exit_code"], taken.accuracy["fault"])
             for taken in bench.measured() if "fault" in taken.accuracy]
    if not bench.measured():
        first = failed[0][0] if failed else bench.taken[0]
        raise KINDS.get(first.exit_code, EnvironmentFault)(f"nothing could be measured: {first.reason}")
    if faults := failed or blind:
        taken, code, reason = faults[0]
        what = ("{} failed; the others are reported" if failed else
                "the accuracy of {} could not be measured; all else is reported").format(
                    f"{len(faults)} of {len(bench.taken)} cases")
        raise KINDS.get(code, EnvironmentFault)(f"{what}. First: {taken.case.label}: {reason}")


def plan_of(config: Config) -> dict:
    """Return which images are read, with which thresholds and scopes: what every process is told."""
    from data.scenes import make_scenes
    source = open_source(config.source or str(make_scenes() / "images" / "val_*.jpg"))
    films = [path for path in source.paths if path.suffix.lower() in VIDEOS]
    if films and len(source.paths) > 1:
        raise UsageError(f"--source {masked(config.source)}: holds {len(films)} videos among "
                         f"{len(source.paths)} files; give images, or one video")
    count = min(config.pictures, len(source.paths))
    spread = np.linspace(0, len(source.paths) - 1, count).round().astype(int)
    files = [str(source.paths[at].resolve()) for at in spread]
    return {"files": files, "video": bool(films), "pictures": config.pictures if films else len(files),
            "scopes": list(SCOPES) if config.scope == "both" else [config.scope],
            "conf_thres": config.conf_thres, "iou_thres": config.iou_thres, "max_det": config.max_det}


def layer_tables(bench: Bench) -> list[dict]:
    """Return the layers of every case whose runtime tells of them: one table per size and threads."""
    out = []
    wanted = dict.fromkeys(replace(t.case, batch=1) for t in bench.measured()
                           if t.case.device == "cpu" and (t.case.runtime, t.case.precision) in LAYERED)
    for case in wanted:
        bench.poll()
        with ExitStack() as stack:
            try:
                _, found = bench.start(case, "layers", stack)
                out.append({"label": case.label, "peak": found["peak"], "rows": found["rows"]})
            except WorkerFailed as error:
                bench.taints.append(f"the layers of {case.label} were not timed: {error}")
    return out


def export_cases(bench: Bench, folder: Path) -> None:
    """Give cases their exported file, passed by the parity gate; those that cannot have one say why."""
    job = cache(partial(_job, bench))                      # the runtimes share calibration and torch's AP50
    made = cache(partial(_export, job, folder))
    for taken in bench.taken:
        case = taken.case
        if case.runtime in TORCH or format_of(case.weights) != "torch":
            continue
        bench.poll()
        kind = case.runtime, case.precision
        if kind in FULL_SIZE | HALF | INT8:
            found = made(replace(case, precision="", threads=0, batch=0), kind in HALF, kind in INT8)
        else:
            found = "skipped", f"nothing is exported for {case.runtime} in {case.precision}", 2
        if isinstance(found, Path):
            taken.case = replace(case, weights=str(found))
        else:
            taken.status, taken.reason, taken.exit_code = found


def _export(job: Callable[..., Export], folder: Path, case: Case, half: bool,
            int8: bool) -> Path | tuple[str, str, int]:
    """The exported file; or status, reason and exit code of a case that cannot have one."""
    from deploy import export
    folder /= str(case.imgsz)
    print(f"exporting {case.name} for {case.runtime}, {'int8' if int8 else 'half' if half else 'fp32'}, "
          f"{case.imgsz} px", flush=True)
    try:
        export.check_libraries([case.runtime], int8)
        folder.mkdir(parents=True, exist_ok=True)
        row = export.export(job(case.weights, case.imgsz, half, int8), case.runtime, folder,
                            case.name.replace("/", "-"))
    except (EnvironmentFault, UsageError) as error:
        return "skipped", str(error), error.exit_code
    if row["faults"]:
        return "failed", "the export computes something else: " + "; ".join(row["faults"]), 4
    return folder / row["file"]


def _job(bench: Bench, weights: str, imgsz: int, half: bool, int8: bool) -> Export:
    """What export.py would export by the same flags: with --data, AP50 is part of the gate."""
    from deploy import export, parity
    config = bench.config
    where = locate(config.data, config.val_split, config.seed) if config.data else None
    checkpoint, imgsz = export.read(weights, imgsz)
    images = parity.gate_images(where, imgsz, GATE)
    calibration = parity.split_images(where, "train", imgsz, CALIBRATION) if int8 else ()
    return export.Export(weights, checkpoint, imgsz, half, int8, images, calibration, where, poll=bench.poll)
