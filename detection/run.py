"""Detection from flags to files: every frame of files, or the newest frames of live streams."""
from __future__ import annotations

import argparse
import math
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from data.augment import letterbox
from detection.detector import Batch, Detector, batch_of, batches, class_indices, follow
from detection.frame_log import FrameLog
from detection.live.capture import Limits
from detection.live.feed import Feed
from detection.live.health import Board, counts_in_words
from detection.live.streams import Stream, live_streams
from detection.outputs import Outputs, in_words
from detection.sources import Source, open_source
from detection.summary import closing_lines, figures
from detection.threads import Behind, Prefetch, Pulse
from detection.window import Window, open_window
from utils.errors import DiskError, Interrupted, UsageError
from utils.redact import masked, masked_values
from utils.runs import Interrupt, environment, run_folder, tune_cpu, write_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np

    from utils.boxes import Geometry

SPARE_MB = 100                     # free on the disk below which a live recording ends, its files still whole


def detect(args: argparse.Namespace) -> None:
    """Detects as detect.py's flags say. Raises Interrupted when a signal ended it: its files are closed."""
    streams = live_streams(args.source)
    check_live(args, streams)
    source = None if streams else open_source(args.source, args.max_pixels)
    tune_cpu(args.threads)
    limits = {"conf": args.conf_thres, "iou": args.iou_thres}
    detector, interrupt = make_detector(args, args.weights, limits), Interrupt()
    window = open_window() if args.view_img else None
    with run_folder(args.project, args.name, args.exist_ok, lambda: detector.since_start() > 0) as folder:
        run = Run(args, detector, interrupt, folder, window)
        write_json(folder / "args.json", masked_values(vars(args)))
        frames = run.watch(streams) if streams else run.go_through(source)
    if interrupt.poll():
        raise Interrupted(f"stopped by a signal after {frames} frames; the files of these frames "
                          "are complete", interrupt.code)


def check_live(args: argparse.Namespace, streams: tuple[Stream, ...]) -> None:
    """Nothing, or UsageError for flags that do not go with the source or with themselves."""
    if not streams and (args.health or args.duration is not None):
        flag = "--health" if args.health else "--duration"
        raise UsageError(f"{flag} is for live sources, and --source {masked(args.source)} is none")
    for flag in ("duration", "open_timeout", "read_timeout"):
        value = getattr(args, flag)
        if value is not None and not 0 < value < math.inf:
            raise UsageError(f"--{flag.replace('_', '-')} {value}: needs more than 0 seconds")
    name = args.health
    taken = {"args.json", "summary.json", "predictions.json"}
    if name is not None and (Path(name).name != name or not name.endswith(".json") or name in taken):
        others = ", ".join(sorted(taken))
        raise UsageError(f"--health {name}: needs a name that ends in .json and is none of {others}; "
                         "the file is written into the run folder, and nothing outside of it")


def make_detector(args: argparse.Namespace, weights: str, limits: dict[str, float]) -> Detector:
    """The network of `weights` on the flags' device and in their precision.

    limits: its score and IoU thresholds, "conf" and "iou", which may change between calls.
    """
    from deploy.runtimes.runtime import load_runtime
    from models.heads.nms import detections
    from utils.runs import pick_device
    device = pick_device(args.device)
    precision = "half" if args.half else "fp32" if args.fp32 else "auto"
    runtime = load_runtime(weights, device, precision, args.threads)
    runtime.check_side(args.imgsz or runtime.imgsz, weights)
    classes = class_indices(args.classes, runtime.names)
    return Detector(runtime, lambda runtime, maps: detections(
        maps, runtime.heads, limits["conf"], limits["iou"], args.max_det, classes),
        lambda: load_runtime(weights, device, "fp32", args.threads))


@dataclass(frozen=True)
class Run:
    """A detection that is ready to begin: flags, network, signals, folder, window."""

    args: argparse.Namespace
    detector: Detector
    interrupt: Interrupt
    folder: Path
    window: Window | None

    def fit(self, image: "np.ndarray") -> tuple["np.ndarray", "Geometry"]:
        """A picture letterboxed for the network; planned anew for each, whatever its size."""
        return letterbox(image, self.args.imgsz or self.detector.runtime.imgsz)

    def outputs(self, say: "Callable[[str], None]" = print) -> Outputs:
        """What the flags want written."""
        args, runtime = self.args, self.detector.runtime
        return Outputs(self.folder, runtime.names, runtime.class_map, images=not args.nosave,
                       txt=args.save_txt, scores=args.save_conf, json=args.save_json, crops=args.save_crop,
                       view=self.window is not None, say=say)

    def go_on(self, outputs: Outputs) -> bool:
        """Whether neither a signal nor the window says that it is enough; shows the last picture there."""
        seen = self.window is None or outputs.shown is None or self.window.show(outputs.shown)
        return seen and not self.interrupt.poll()

    def go_through(self, source: Source) -> int:
        """The number of frames, once all files were gone through, or as far as the user wanted."""
        progress = FrameLog(source.total, bar=source.kind == "video")

        def write(item: tuple) -> None:
            frame, boxes, ms = item
            outputs.write(frame, boxes)
            progress.step(frame.name, frame.image.shape[1::-1], in_words(outputs.counts(boxes)), ms)
            progress.tell(source.faults)

        feed = batches(source, self.fit, self.args.batch_size or 1)
        with self.outputs() as outputs, Behind(write, 4) as writer, Prefetch(feed, 4) as reader:
            first = follow(reader, self.detector, writer.put, lambda: self.go_on(outputs))
        seconds = self.detector.since_start()
        progress.tell(source.faults)
        if self.window is not None and source.kind != "video":
            self.window.hold(self.interrupt.poll)
        found = figures(outputs, self.detector, seconds, first, time_alone=not self.interrupt.poll())
        self.conclude(found | {"left_out": [reason for _, reason in source.faults]}, progress)
        return outputs.frames

    def watch(self, streams: tuple[Stream, ...]) -> int:
        """The number of frames, once the time given was over, the window closed, or every stream ended."""
        args, board = self.args, Board((stream.name, stream.label) for stream in streams)
        progress = FrameLog(0, bar=True)
        limits = Limits(args.open_timeout, args.read_timeout)
        end = time.monotonic() + (args.duration or math.inf)

        def write(item: tuple) -> None:
            frame, boxes, _ = item
            outputs.write(frame, boxes)
            board.streams[frame.name].result(frame.taken, time.monotonic())

        def go_on() -> bool:
            pulse.check()
            return time.monotonic() < end and self.go_on(outputs)

        try:
            with self.outputs(board.say) as outputs, Behind(write, 2) as writer, \
                    Feed(streams, board, limits, args.batch_size or len(streams), go_on) as feed, \
                    Pulse(lambda: self.report(board, progress)) as pulse:
                first = follow(self.fresh(feed, board), self.detector, writer.put, lambda: True)
                if not feed.begun and not self.interrupt.poll():
                    feed.check(over=True)
        finally:
            self.report(board, progress, running=False)
        found = figures(outputs, self.detector, self.detector.since_start(), first, time_alone=False)
        found["streams"] = board.snapshot()["streams"]
        self.conclude(found | {"left_out": []}, progress)
        return outputs.frames

    def fresh(self, feed: Feed, board: Board) -> "Iterator[Batch]":
        """Batches of the streams. The first is for the network's trial; what is live of it is old then."""
        for number, frames in enumerate(feed):
            if number == 0:
                self.detector.warm_up(batch_of(frames, self.fit).images)
                for frame in frames:
                    board.streams[frame.name].skip(frame.live)
                frames = [frame for frame in frames if not frame.live]
            if frames:
                yield batch_of(frames, self.fit)

    def report(self, board: Board, progress: FrameLog, running: bool = True) -> None:
        """Says what is new and how the streams fare, on the console and in the health file.

        Raises DiskError when the disk is about to be full.
        """
        for text in board.news():
            progress.say(text)
        if self.args.health:
            write_json(self.folder / self.args.health, board.snapshot(running))
        if running:
            progress.status(board.line())
            free = shutil.disk_usage(self.folder).free / 1e6
            if not self.args.nosave and free < SPARE_MB:
                raise DiskError(f"{self.folder}: {free:.0f} MB are left on this disk; the recording ends, "
                                "its files are complete; free some space, or use --nosave")

    def conclude(self, found: dict, progress: FrameLog) -> None:
        """Writes summary.json and says the same in sentences."""
        write_json(self.folder / "summary.json", found | {"environment": environment()})
        streams = [f"{one['name']}: {one['frames_read']} frames read, {counts_in_words(one)}"
                   for one in found.get("streams", ())]
        lines = [*self.detector.notes, *streams, *closing_lines(found, len(found["left_out"]))]
        for line in [*lines, f"results in {self.folder}"]:
            progress.say(line)
