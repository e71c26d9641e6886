"""A benchmark from flags to its end: pictures, artifacts and cases, then rounds, layers and the report."""
from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np

from bench.artifacts import export_cases
from bench.bar import Bar
from bench.cases import matrix
from bench.machine import cores, counters, facts
from bench.process import WorkerFailed
from bench.report import make_report, write
from bench.run import KINDS, LOADING, Bench
from data.coco.locate import locate
from deploy.artifact import format_of
from detection.sources import VIDEOS, open_source
from utils import runs
from utils.errors import DataError, EnvironmentFault, Interrupted, ModelError, UsageError
from utils.redact import masked, masked_values

LAYERED = {("torch", "fp32"), ("torch", "bf16"), ("onnx", "fp32"), ("openvino", "fp32"),
           ("openvino", "bf16")}           # where it can be told what each layer takes


def benchmark(args: Namespace) -> Path:
    """The run folder of a benchmark, after it was measured, written and printed.

    Raises Interrupted after a signal, DataError or ModelError for pictures or an artifact that cannot be
    used, with everything measured so far written, and what `conclude` does.
    """
    device = runs.pick_device(args.device)
    files = [(Path(path), format_of(path)) for path in args.weights]
    if missing := [str(path) for path, _ in files if not path.exists()]:
        raise ModelError(f"--weights {', '.join(missing)}: no such file")
    if args.data:
        _ = locate(args.data).val                          # read at the end alone: minutes too late to refuse
    interrupt, plan = runs.Interrupt(), plan_of(args)      # before the folder: a refusal leaves none
    folder = runs.make_run_folder(args.project, args.name, args.exist_ok)
    runs.write_json(folder / "args.json", masked_values(vars(args)))
    environment = {**runs.environment(), **facts(), "before": counters()}
    environment.pop("threads")                             # this process computes nothing
    threads = list(dict.fromkeys(count or len(cores()) for count in args.threads))
    cases = matrix(files, args.runtimes, args.precisions, threads, args.batch_sizes, args.imgsz, str(device))
    bench = Bench(args, plan, cases, environment, folder, interrupt)
    layers: list[dict] = []
    stopped: Exception | None = None
    try:
        export_cases(bench, folder / "artifacts")
        with Bar(bench.total()) as bar:
            bench.run(bar)
        if args.layers:
            layers = layer_tables(bench)
    except (Interrupted, EnvironmentFault, DataError, ModelError) as error:
        if isinstance(error, (DataError, ModelError)) and not bench.measured():
            raise                                          # at the start: there is nothing to report
        stopped = error                                    # what was measured before is not lost
    report = make_report(bench, environment, layers, str(stopped or ""))
    print(write(report, folder, args.save_json), folder, sep="\n\n")
    if stopped:
        raise stopped
    conclude(bench)
    return folder


def conclude(bench: Bench) -> None:
    """Raises what the exit code should tell: the first fault's kind where cases or accuracies are missing."""
    failed = [taken for taken in bench.taken if taken.status == "failed"]
    kind = KINDS.get((failed or bench.taken)[0].exit_code, EnvironmentFault)
    if not bench.measured():
        raise kind(f"nothing could be measured: {(failed or bench.taken)[0].reason}")
    if failed:
        raise kind(f"{len(failed)} of {len(bench.taken)} cases failed; the others are reported. "
                   f"First: {failed[0].case.label}: {failed[0].reason}")
    if blind := [taken for taken in bench.measured() if "fault" in taken.accuracy]:
        found = blind[0].accuracy
        raise KINDS.get(found["exit_code"], EnvironmentFault)(
            f"the accuracy of {len(blind)} of {len(bench.taken)} cases could not be measured; all else is "
            f"reported. First: {blind[0].case.label}: {found['fault']}")


def plan_of(args: Namespace) -> dict:
    """Which pictures are read, with which thresholds and scopes: what every process is told."""
    source = open_source(args.source or embedded())
    films = [path for path in source.paths if path.suffix.lower() in VIDEOS]
    if films and len(source.paths) > 1:
        raise UsageError(f"--source {masked(args.source)}: holds {len(films)} videos among "
                         f"{len(source.paths)} files; give pictures, or one video")
    files = [str(path.resolve()) for path in spread(source.paths, args.pictures)]
    return {"files": files, "video": bool(films), "pictures": args.pictures if films else len(files),
            "scopes": ["network", "end-to-end"] if args.scope == "both" else [args.scope],
            "conf_thres": args.conf_thres, "iou_thres": args.iou_thres, "max_det": args.max_det}


def embedded() -> str:
    """The validation pictures of the embedded set, as a glob; made on first use."""
    from data.scenes import make_scenes
    return str(make_scenes() / "images" / "val_*.jpg")


def spread(items: Sequence[Path], count: int) -> list[Path]:
    """`count` of the items, evenly chosen, or all."""
    chosen = np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)
    return [items[at] for at in chosen]


def layer_tables(bench: Bench) -> list[dict]:
    """The layers of every case whose runtime tells of them: one table a size and number of threads."""
    out: list[dict] = []
    wanted = dict.fromkeys(replace(t.case, batch=1) for t in bench.measured()
                           if t.case.device == "cpu" and (t.case.runtime, t.case.precision) in LAYERED)
    for case in wanted:
        bench.poll()
        with ExitStack() as stack:
            try:
                worker = bench.start(case.threads, stack)
                found = worker.ask({"do": "layers", **bench.plan, **vars(case)}, LOADING, bench.poll)
            except WorkerFailed as error:
                bench.taint([f"the layers of {case.label} were not timed: {error}"])
                continue
        out.append({"label": case.label, "peak": found["peak"], "rows": found["rows"]})
    return out
