"""Measure a checkpoint on a data set: AP by pycocotools, P/R/F1, cost and speed."""
from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from utils import cli

if TYPE_CHECKING:
    from data.coco.read import CocoSet
    from models.layer import Net

SHARED = ("weights", "data", "imgsz", "batch-size", "conf-thres", "iou-thres", "max-det", "device", "half",
          "threads", "workers", "cache", "max-pixels", "drop-unknown", "trust", "project", "name", "exist-ok")
DEFAULTS = {"batch-size": 16, "conf-thres": 0.001, "iou-thres": 0.6, "max-det": 100, "cache": "off",
            "project": "runs/val"}


def parse() -> argparse.Namespace:
    """The checked command line."""
    parser = cli.parser(__doc__.splitlines()[0], *SHARED, defaults=DEFAULTS)
    add = parser.add_argument
    add("--split", choices=("train", "val"), default="val", help="which part of the data set")
    add("--ci", action="store_true", help="95 %% interval of AP50 over resampled pictures")
    add("--plots", action="store_true", help="curves, confusion matrix, sample pictures and report.html")
    add("--save-json", action="store_true", help="write the figures to results/NAME.json")
    add("--out", type=Path, help="write the figures to this JSON file")
    return cli.check(parser, parser.parse_args(), "weights", "data")


def read_truths(args: argparse.Namespace) -> CocoSet:
    """The truths of --split. Raises as read_coco does."""
    from data.coco.locate import locate
    from data.coco.read import read_coco
    where = locate(args.data)
    return read_coco(*where[args.split], names=where.names, max_pixels=args.max_pixels, trust=args.trust,
                     drop_unknown=args.drop_unknown)


def cost(args: argparse.Namespace, net: Net) -> dict:
    """What is measured on what, and what it takes: parameters, MACs in both counts, bytes on disk."""
    from deploy.artifact import size
    from models.count import loose_macs, macs, parameters
    return {"weights": args.weights, "data": args.data, "split": args.split, "parameters": parameters(net),
            "macs": macs(net, args.imgsz), "loose_macs": loose_macs(net, args.imgsz),
            "bytes": size(args.weights)}


def write(args: argparse.Namespace, folder: Path, result: dict) -> list[Path]:
    """Writes the figures into the run folder and where --save-json and --out say; the latter files."""
    from utils import runs
    runs.write_json(folder / "metrics.json", result)
    others = [runs.save_record(args.name, result)] if args.save_json else []
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        runs.write_json(args.out, result)
        others.append(args.out)
    return others


def main() -> None:
    """Reads the network and the data, detects, evaluates, prints, writes."""
    args = parse()
    from data.coco.clean import report_faults
    from data.dataset import DetectionSet, make_loader
    from data.images import decode
    from deploy.runtimes.runtime import load_runtime
    from evaluation import figures
    from evaluation.evaluate import evaluate
    from evaluation.inference import Finder, matching_classes
    from models.heads.nms import detections
    from utils import runs
    from utils.redact import masked_values
    interrupt = runs.Interrupt()
    runs.tune_cpu(args.threads)
    device = runs.pick_device(args.device)
    runtime = load_runtime(args.weights, device, "half" if args.half else "fp32")
    args.imgsz = args.imgsz or runtime.imgsz
    runtime.check_side(args.imgsz, args.weights)
    coco = read_truths(args)
    finder = Finder(runtime, detections, matching_classes(runtime.names, coco.names), args.conf_thres,
                    args.iou_thres, args.max_det)
    folder = runs.make_run_folder(args.project, args.name, args.exist_ok)
    runs.write_json(folder / "args.json", masked_values(vars(args)))
    for line in report_faults(coco.faults):
        print(line)
    dataset = DetectionSet(coco, args.imgsz, cache=args.cache, max_pixels=args.max_pixels)
    dataset.fill_cache(poll=interrupt.stop)
    batches = finder.watch.waits("waiting for pictures",
                                 make_loader(dataset, args.batch_size, shuffle=False, workers=args.workers))
    metrics, found = evaluate(finder, dataset, batches, poll=interrupt.stop)
    paid = {**cost(args, runtime.net), "dropped_by_decoder": finder.dropped}
    result = figures.summarise(metrics, paid, finder, figures.settings(args, runtime), args.ci)
    print("\n".join(figures.lines(result, metrics)))
    others = write(args, folder, result)
    if args.plots:
        print(figures.write_page(folder, result, metrics, coco, found, decode))
    print(folder, *others, sep=", ")


if __name__ == "__main__":
    cli.run(main)
