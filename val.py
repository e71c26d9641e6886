"""Measure a checkpoint on a data set: AP by pycocotools, P/R/F1, cost and speed."""
from __future__ import annotations

import argparse
from pathlib import Path

from utils import cli, runs

SHARED = ("weights", "data", "imgsz", "batch-size", "conf-thres", "iou-thres", "nms", "max-det", "device",
          "half", "threads", "workers", "cache", "max-pixels", "drop-unknown", "trust", "val-split",
          "seed", "model-cache", "project", "name", "exist-ok")
DEFAULTS = {"batch-size": 16, "conf-thres": 0.001, "iou-thres": 0.6, "max-det": 100, "cache": "off",
            "project": "runs/val"}


def parse() -> argparse.Namespace:
    """Return the checked command line."""
    parser = cli.parser(__doc__.splitlines()[0], *SHARED, defaults=DEFAULTS)
    add = parser.add_argument
    add("--split", choices=("train", "val", "test", "all"), default="val",
        help="which part of the data set; all: of one that is not divided")
    add("--fast-jpeg", action="store_true",
        help="shrink JPEGs of twice the input or more as they are decoded; AP differs by a little")
    add("--ci", action="store_true", help="95 %% interval of AP50 over resampled images")
    add("--plots", action="store_true", help="curves, confusion matrix, sample images and report.html")
    add("--save-json", action="store_true", help="write the figures to results/NAME.json")
    add("--out", type=Path, help="write the figures to this JSON file")
    return cli.check(parser, parser.parse_args(), "weights", "data")


def write(args: argparse.Namespace, folder: Path, result: dict) -> list[Path]:
    """Write the figures into the run folder and where the flags ask for them; return all places."""
    runs.write_json(folder / "metrics.json", result)
    written = [folder, *([runs.save_record(args.name, result)] if args.save_json else [])]
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        runs.write_json(args.out, result)
        written.append(args.out)
    return written


def main() -> None:
    """Read the network and the data, detect, evaluate, print, write."""
    args = parse()
    with runs.importing():
        from data.coco.clean import report_faults
        from data.coco.locate import locate
        from data.coco.read import read_coco
        from data.dataset import DetectionSet
        from data.images import decode
        from deploy.artifact import needs_torch, size
        from deploy.runtimes.cache import check_cache
        from deploy.runtimes.runtime import load_runtime
        from evaluation import report
        from evaluation.evaluate import Finder, evaluate, image_batches, matching_classes
        from utils.redact import masked_values
        interrupt = runs.Interrupt()
        runs.tune_cpu()
        check_cache(args.model_cache, args.weights)
        runtime = load_runtime(args.weights, runs.pick_device(args.device, needs_torch(args.weights)),
                               "half" if args.half else "fp32", args.threads, kept=args.model_cache)
    args.imgsz = args.imgsz or runtime.imgsz
    runtime.check_side(args.imgsz, args.weights)
    where = locate(args.data, args.val_split, args.seed)
    print(where.note, end="\n" * bool(where.note))
    coco = read_coco(*where[args.split], names=where.names, max_pixels=args.max_pixels, trust=args.trust,
                     drop_unknown=args.drop_unknown)
    finder = Finder(runtime, matching_classes(runtime.names, coco.names), args.conf_thres, args.iou_thres,
                    args.max_det, args.nms)
    folder = runs.make_run_folder(args.project, args.name, args.exist_ok, "ci", ("metrics.json",))
    runs.write_json(folder / "args.json", masked_values(vars(args)))
    for line in report_faults(coco.faults):
        print(line)
    dataset = DetectionSet(coco, args.imgsz, cache=args.cache, max_pixels=args.max_pixels,
                           fast_jpeg=args.fast_jpeg)
    dataset.fill_cache(poll=interrupt.stop)
    batches = finder.watch.waits("waiting for images",
                                 image_batches(dataset, args.batch_size, args.workers))
    metrics, found = evaluate(finder, dataset, batches, poll=interrupt.stop)
    what = {"weights": args.weights, "data": args.data, "split": args.split, "bytes": size(args.weights)}
    result = report.summarise(metrics, what, finder, args.ci, imgsz=args.imgsz, cache=args.cache,
                              nms=args.nms, batch_size=args.batch_size, workers=args.workers,
                              fast_jpeg=args.fast_jpeg)
    print("\n".join(report.lines(result, metrics)))
    written = write(args, folder, result)
    if args.plots:
        print(report.write_page(folder, result, metrics, coco, found, decode))
    print(*written, sep=", ")


if __name__ == "__main__":
    cli.run(main)
