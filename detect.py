"""Draw or write the boxes of images, videos, cameras and streams.

    python detect.py --weights weights/yolox-nano-coco80.pt --source photo.jpg
    python detect.py --weights weights/micro-yolo-voc5.pt --source images/ --save-txt
    python detect.py --source rtsp://user:password@camera/stream --health health.json
"""
from __future__ import annotations

import argparse
import dataclasses
import os
from pathlib import Path
from typing import TypeVar

from utils import cli

T = TypeVar("T")
SHIPPED = Path(__file__).resolve().parent / "weights" / "micro-yolo-voc5.pt"
SWITCHES = {"--fp32": "full precision also where half is native (the default there is half)",
            "--nosave": "write no images and videos",
            "--save-txt": "write labels/*.txt: class and cxcywh normalised",
            "--save-conf": "with --save-txt: the score at the end of each line",
            "--save-json": "write predictions.json: COCO results with file names",
            "--save-crop": "write crops/CLASS/*.jpg",
            "--view-img": "show the drawn images in a window; q ends",
            "--fast-jpeg": "with --nosave: JPEGs of twice the network's input or more are shrunk as they are "
                           "decoded; boxes differ by a little",
            "--time-network": "at the end, also time the network alone on all threads: half a second more",
            "--serve": "show a page in the browser instead: cameras, images, videos"}
VALUES = {"--health": (str, None, "live: file NAME.json in the run folder, written each second"),
          "--duration": (float, None, "live: seconds after which to end"),
          "--open-timeout": (float, 30.0, "live: seconds for opening; if none opens: code 5 (cameras) or 3"),
          "--read-timeout": (float, 10.0, "live: seconds without a frame after which to connect again"),
          "--host": (str, "127.0.0.1", "with --serve: the address to listen at"),
          "--port": (int, 8000, "with --serve: the port (0: a free one)")}
PAGE = ("--host", "--port", "--origin")    # what only --serve heeds, and what it does not
NO_PAGE = ("--source", "--batch-size", "--project", "--name", "--exist-ok", "--nosave", "--codec",
           "--save-txt", "--save-conf", "--save-json", "--save-crop", "--view-img", "--fast-jpeg",
           "--time-network", "--health", "--duration", "--open-timeout", "--read-timeout")


def parse() -> argparse.Namespace:
    """Return the command line's flags, checked."""
    out = cli.parser("Draw or write the boxes of an image, a folder, a glob, a list file, a video, a camera "
                     "(0, /dev/video0), an rtsp:// or http:// stream, or a list file of several.",
                     "weights", "source", "imgsz", "device", "half", "conf-thres", "iou-thres", "nms",
                     "max-det", "classes", "batch-size", "threads", "max-pixels", "model-cache",
                     "project", "name", "exist-ok",
                     defaults={"conf-thres": 0.25, "iou-thres": 0.45, "max-det": 300, "batch-size": None,
                               "threads": None, "project": "runs/detect"})
    for flag, words in SWITCHES.items():
        out.add_argument(flag, action="store_true", help=words)
    for flag, (kind, default, words) in VALUES.items():
        out.add_argument(flag, type=kind, default=default, help=words)
    out.add_argument("--codec", choices=("auto", "vp9"), default="auto",
                     help="of videos written: H.264 where PyAV has x264 and both sides are even, else VP9; "
                          "or VP9 always, which asks for no licence and takes three times as long")
    out.add_argument("--origin", nargs="+", default=[],
                     help="with --serve, behind a proxy: the page's addresses there, as https://cam.example.org")
    args = out.parse_args()
    if args.serve and (idle := cli.typed(out, NO_PAGE)):
        out.error(f"--serve shows a page, which opens its own sources and writes nothing, and does not heed "
                  f"{', '.join(idle)}: give --serve without, or these without --serve")
    if not args.serve and (idle := cli.typed(out, PAGE)):
        out.error(f"{', '.join(idle)} without --serve, whose page alone has an address: add --serve, or "
                  "leave this out")
    cli.check(out, args, *[] if args.serve else ["source"])
    if args.half and args.fp32:
        out.error("--half and --fp32 exclude each other: give one, or neither to have the faster one chosen")
    if args.save_conf and not args.save_txt:
        out.error("--save-conf adds scores to the files of --save-txt: give --save-txt as well")
    if args.nosave and args.codec != "auto":
        out.error("--codec is that of the videos which --nosave leaves out: give one of the two")
    if args.fast_jpeg and (args.save_crop or args.view_img or not args.nosave):
        out.error("--fast-jpeg reads large JPEGs at a part of their size, so nothing can be drawn or cut: "
                  "give --nosave as well, and leave out --save-crop and --view-img")
    if args.weights is None and not SHIPPED.is_file():
        out.error(f"--weights is missing, and {SHIPPED.parent.name}/{SHIPPED.name} is not there to be used "
                  "instead: give a checkpoint .pt or official darknet .weights")
    return args


def own_threads(weights: str) -> int:
    """Return the network's threads where --threads is not given, by what was measured on two cores.

    One core is left to reading and writing: yolov3-tiny in torch, bf16, went through cars.mp4 at 52 frames a
    second with two threads, at 55 with one. Runtimes that take calls side by side get all: yolov3-tiny in
    OpenVINO, bf16, over 364 JPEGs, 61 against 37.
    """
    from deploy.artifact import format_of
    from detection.detector import LANED
    from utils.runs import cores
    count = len(cores())
    return count if format_of(weights) in LANED else max(1, count - 1)


def configured(kind: type[T], args: argparse.Namespace) -> T:
    """Return a configuration of that dataclass, each of its fields from the flag of its name."""
    return kind(**{field.name: getattr(args, field.name) for field in dataclasses.fields(kind)})


def main() -> None:
    """Detect as the flags say."""
    args = parse()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")    # spinning threads would starve reader and writer
    if args.weights is None:
        args.weights = str(SHIPPED)
        print(f"no --weights given: using the shipped {SHIPPED.parent.name}/{SHIPPED.name}")
    args.threads = own_threads(args.weights) if args.threads is None else args.threads
    if args.serve:
        from detection.detector import NetworkConfig
        from detection.serve.app import serve
        serve(configured(NetworkConfig, args), args.host, args.port, args.origin)
    else:
        from detection.run import DetectConfig, detect
        detect(configured(DetectConfig, args))


if __name__ == "__main__":
    cli.run(main)
