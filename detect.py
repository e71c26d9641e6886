"""Boxes drawn or written for a picture, a folder, a glob, a list file or a video.

    python detect.py --weights weights/micro-yolo-voc5.pt --source photos/ --save-txt
"""
from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from utils import cli

if TYPE_CHECKING:
    from utils.detector import Detector

SHIPPED = Path(__file__).resolve().parent / "weights" / "micro-yolo-voc5.pt"


def parse() -> argparse.Namespace:
    """The command line's flags, checked."""
    out = cli.parser("Boxes drawn or written for a picture, a folder, a glob, a list file or a video.",
                     "weights", "source", "imgsz", "device", "half", "conf-thres", "iou-thres", "max-det",
                     "classes", "batch-size", "threads", "max-pixels", "project", "name", "exist-ok",
                     defaults={"conf-thres": 0.25, "iou-thres": 0.45, "max-det": 300, "batch-size": 1,
                               "threads": max(1, cores() - 1), "project": "runs/detect"})
    for flag, words in {"--fp32": "full precision also where half is native (the default there is half)",
                        "--nosave": "write no pictures and videos",
                        "--save-txt": "write labels/*.txt: class and cxcywh normalised",
                        "--save-conf": "with --save-txt: the score at the end of each line",
                        "--save-json": "write predictions.json: COCO results with file names",
                        "--save-crop": "write crops/CLASS/*.jpg",
                        "--view-img": "show the drawn pictures in a window; q ends"}.items():
        out.add_argument(flag, action="store_true", help=words)
    args = cli.check(out, out.parse_args(), "source")
    if args.half and args.fp32:
        out.error("--half and --fp32 exclude each other: give one, or neither to have the faster one chosen")
    if args.save_conf and not args.save_txt:
        out.error("--save-conf adds scores to the files of --save-txt: give --save-txt as well")
    if args.weights is None and not SHIPPED.is_file():
        out.error(f"--weights is missing, and {SHIPPED.parent.name}/{SHIPPED.name} is not there to be used "
                  "instead: give a checkpoint .pt or official darknet .weights")
    return args


def cores() -> int:
    """How many cores this process may use. One is left to reading and writing by default: with two for the
    network, yolov3-tiny in bf16 on two cores went through cars.mp4 at 52 frames a second, with one at 55."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def make_detector(args: argparse.Namespace) -> "Detector":
    """The network with its thresholds, on its device and in its precision."""
    from models.decode import detections
    from models.runtimes import load_runtime
    from utils.detector import Detector, class_indices
    from utils.runs import pick_device, pick_precision
    device = pick_device(args.device)
    precision, note = pick_precision(device, "half" if args.half else "fp32" if args.fp32 else "auto")
    runtime = load_runtime(args.weights, device, precision)
    classes = class_indices(args.classes, runtime.names)
    limits = (args.conf_thres, args.iou_thres, args.max_det, classes)
    return Detector(runtime, lambda runtime, maps: detections(maps, runtime.heads, *limits),
                    lambda: load_runtime(args.weights, device, "fp32"), note)


def main() -> None:
    """Detects as the flags say."""
    args = parse()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")    # spinning threads would starve reader and writer
    from data.augment import letterbox
    from data.sources import open_source
    from utils.detector import batches, follow
    from utils.errors import Interrupted
    from utils.frame_log import FrameLog
    from utils.outputs import Outputs, in_words
    from utils.pipeline import Behind, Prefetch
    from utils.runs import Interrupt, environment, lock, make_run_folder, tune_cpu, write_json
    from utils.summary import closing_lines, figures
    from utils.window import open_window
    if args.weights is None:
        args.weights = str(SHIPPED)
        print(f"no --weights given: using the shipped {SHIPPED.parent.name}/{SHIPPED.name}")
    source = open_source(args.source, args.max_pixels)
    tune_cpu(args.threads)
    detector, interrupt = make_detector(args), Interrupt()
    size, names = args.imgsz or detector.runtime.imgsz, detector.runtime.names
    folder = make_run_folder(args.project, args.name, args.exist_ok)
    window = open_window() if args.view_img else None
    progress = FrameLog(source.total, bar=source.kind == "video")

    def write(item: tuple) -> None:
        frame, boxes, ms = item
        outputs.write(frame, boxes)
        progress.step(frame.name, frame.image.shape[1::-1], in_words(outputs.counts(boxes)), ms)
        progress.tell(source.faults)

    def go_on() -> bool:
        seen = window is None or outputs.shown is None or window.show(outputs.shown)
        return seen and not interrupt.poll()

    feed = batches(source, lambda image: letterbox(image, size), args.batch_size)
    with lock(folder), \
            Outputs(folder, names, detector.runtime.class_map, images=not args.nosave, txt=args.save_txt,
                    scores=args.save_conf, json=args.save_json, crops=args.save_crop,
                    view=bool(window)) as outputs, \
            Behind(write, 4) as writer, Prefetch(feed, 4) as reader:
        write_json(folder / "args.json", vars(args))
        images = follow(reader, detector, writer.put, go_on)
    seconds = detector.since_start()
    progress.tell(source.faults)
    if window is not None and source.kind != "video":
        window.hold(interrupt.poll)
    found = figures(outputs, detector, seconds, images, time_alone=not interrupt.poll())
    left_out = [reason for _, reason in source.faults]
    write_json(folder / "summary.json", found | {"left_out": left_out, "environment": environment()})
    for line in [*detector.notes, *closing_lines(found, len(left_out)), f"results in {folder}"]:
        progress.say(line)
    if interrupt.poll():
        raise Interrupted(f"stopped by a signal after {outputs.frames} frames; the files of these frames "
                          "are complete", interrupt.code)


if __name__ == "__main__":
    cli.run(main)
