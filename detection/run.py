"""Detection from flags to files: every frame of files, or the newest frames of live streams."""
from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from deploy.artifact import format_of, needs_torch
from deploy.runtimes.cache import check_cache
from detection.detector import Batch, Detector, NetworkConfig, batch_of, batches, follow, make_detector
from detection.live.capture import Limits
from detection.live.feed import Feed
from detection.live.health import Board, counts_in_words
from detection.live.streams import Stream, live_streams
from detection.outputs import Outputs, in_words
from detection.screen import FrameLog, Window, open_window
from detection.sources import Source, open_source
from detection.threads import behind, prefetch
from detection.video import VIDEOS_BY
from detection.yuv import Yuv
from utils.boxes import Geometry
from utils.errors import DiskError, Interrupted, UsageError
from utils.optional import needs
from utils.redact import masked, masked_values
from utils.runs import Interrupt, environment, run_folder, tune_cpu, tune_memory, write_json

SPARE_MB = 100                     # free on the disk below which a live recording ends, its files still whole
EVERY = 1.0                        # seconds between reports on live streams


@dataclass(frozen=True)
class DetectConfig(NetworkConfig):
    """A detection: detect.py's flags of these names."""

    source: str
    batch_size: int | None
    project: str
    name: str
    exist_ok: bool
    nosave: bool
    codec: str
    save_txt: bool
    save_conf: bool
    save_json: bool
    save_crop: bool
    view_img: bool
    fast_jpeg: bool
    time_network: bool
    health: str | None
    duration: float | None
    open_timeout: float
    read_timeout: float


def detect(config: DetectConfig) -> None:
    """Detect as `config` says. Raises Interrupted when a signal ended it: its files are closed."""
    streams = live_streams(config.source)
    check_live(config, streams)
    check_cache(config.model_cache, config.weights)
    if streams and not config.nosave:
        needs("av", VIDEOS_BY)                             # now, not at the first frame
    source = None if streams else open_source(config.source, config.max_pixels)
    check_folder(config, source.paths if source else ())
    if needs_torch(config.weights):
        tune_cpu()
    elif format_of(config.weights) == "onnx":
        tune_memory()
    many = source is not None and source.total != 1
    detector, interrupt = make_detector(config, config.weights, many), Interrupt()
    if source is not None and config.fast_jpeg:
        source.side = detector.size
    window = open_window() if config.view_img else None
    with run_folder(config.project, config.name, config.exist_ok,
                    lambda: detector.since_start() > 0) as folder:
        run = Run(config, detector, interrupt, folder, window)
        write_json(folder / "args.json", masked_values(asdict(config)))
        frames = run.watch(streams) if streams else run.go_through(source)
    if interrupt.poll():
        raise Interrupted(f"stopped by a signal after {frames} frames; the files of these frames "
                          "are complete", interrupt.code)


def check_live(config: DetectConfig, streams: tuple[Stream, ...]) -> None:
    """Raise UsageError for flags that do not go with the source or with themselves."""
    if config.fast_jpeg and streams:
        raise UsageError(f"--fast-jpeg is for files, and --source {masked(config.source)} is live")
    for flag, given in (("--health", config.health), ("--duration", config.duration is not None)):
        if given and not streams:
            raise UsageError(f"{flag} is for live sources, and --source {masked(config.source)} is none")
    for flag, value in (("--duration", config.duration), ("--open-timeout", config.open_timeout),
                        ("--read-timeout", config.read_timeout)):
        if value is not None and not 0 < value < math.inf:
            raise UsageError(f"{flag} {value}: needs more than 0 seconds")
    name, taken = config.health, ("args.json", "predictions.json", "summary.json")
    if name is not None and (Path(name).name != name or not name.endswith(".json") or name in taken):
        raise UsageError(f"--health {name}: needs a name that ends in .json and is none of "
                         f"{', '.join(taken)}; it is written into the run folder, nothing outside of it")


def check_folder(config: DetectConfig, paths: Sequence[Path]) -> None:
    """Raise UsageError where --exist-ok would write over the source, or what no detection wrote."""
    folder = Path(config.project, config.name)
    if not (config.exist_ok and folder.is_dir()):
        return
    for path in paths:
        if path.resolve().is_relative_to(folder.resolve()):
            raise UsageError(f"--exist-ok: {folder} holds the source {path}, which is then at risk; choose "
                             "another --name")
    content = sorted(entry.name for entry in folder.iterdir() if entry.name != ".lock")
    try:
        args = json.loads((folder / "args.json").read_text(encoding="utf-8")) if content else ["save_crop"]
    except (OSError, ValueError):
        args = []
    if "save_crop" not in args:
        raise UsageError(f"--exist-ok: {folder} holds {content[0]} and is not the folder of a detection; "
                         "choose another --name")


@dataclass(frozen=True)
class Run:
    """A detection that is ready to begin: configuration, network, signals, folder, window."""

    config: DetectConfig
    detector: Detector
    interrupt: Interrupt
    folder: Path
    window: Window | None

    def outputs(self, say: Callable[[str], None] = print) -> Outputs:
        """Return the writer of what is wanted."""
        config, runtime = self.config, self.detector.runtime
        return Outputs(self.folder, runtime.names, runtime.class_map, images=not config.nosave,
                       txt=config.save_txt, scores=config.save_conf, json=config.save_json,
                       crops=config.save_crop, view=self.window is not None, say=say, codec=config.codec)

    def go_on(self, outputs: Outputs) -> bool:
        """Show the last image in the window; return whether neither a signal nor the window ends it."""
        seen = self.window is None or outputs.shown is None or self.window.show(outputs.shown)
        return seen and not self.interrupt.poll()

    def go_through(self, source: Source) -> int:
        """Detect in all files, or as far as the user wants, and return the number of frames."""
        progress = FrameLog(source.total, bar=source.kind == "video")

        def write(item: tuple) -> None:
            frame, boxes, ms = item
            outputs.write(frame, boxes)
            progress.step(frame.name, frame.size[::-1], in_words(outputs.counts(boxes)), ms)
            progress.tell(source.faults)

        def fit(pixels: np.ndarray | Yuv) -> tuple[np.ndarray, Geometry]:
            fitted = self.detector.fit(pixels)
            if isinstance(pixels, Yuv) and not outputs.looks:
                pixels.forget()
            return fitted

        feed = batches(source, fit, self.config.batch_size or 1)
        with self.outputs() as outputs, behind(write, 2) as put, closing(prefetch(feed, 2)) as reader:
            first = follow(reader, self.detector, put, lambda: self.go_on(outputs))
        seconds = self.detector.since_start()
        progress.tell(source.faults)
        if self.window is not None and source.kind != "video":
            self.window.hold(self.interrupt.poll)
        found = self.figures(outputs, seconds, first)
        return self.conclude(found | {"left_out": [reason for _, reason in source.faults]}, progress)

    def watch(self, streams: tuple[Stream, ...]) -> int:
        """Detect until the time is over, the window closed, or every stream ended; return the frames."""
        config, board = self.config, Board((stream.name, stream.label) for stream in streams)
        progress = FrameLog(0, bar=True)
        limits = Limits(config.open_timeout, config.read_timeout)
        end, due = math.inf, 0.0                           # --duration counts from the first frame

        def write(item: tuple) -> None:
            frame, boxes, _ = item
            outputs.write(frame, boxes)
            board.streams[frame.name].result(frame.taken, time.monotonic())

        def go_on() -> bool:
            nonlocal end, due
            now = time.monotonic()
            if now >= due:
                due = now + EVERY
                self.report(board, progress)
            if feed.begun and end == math.inf:
                end = now + (config.duration or math.inf)
            return now < end and self.go_on(outputs)

        try:
            with self.outputs(board.say) as outputs, behind(write, 2) as put, \
                    Feed(streams, board, limits, config.batch_size or len(streams), go_on) as feed:
                first = follow(self.fresh(feed, board), self.detector, put, lambda: True)
                if not feed.begun and not self.interrupt.poll():
                    feed.check(over=True)
        finally:
            self.report(board, progress, running=False)
        found = self.figures(outputs, self.detector.since_start(), first)
        return self.conclude(found | {"streams": board.snapshot()["streams"], "left_out": []}, progress)

    def fresh(self, feed: Feed, board: Board) -> Iterator[Batch]:
        """Yield batches of the streams. The first is the network's trial; what is live of it is old then."""
        fit = self.detector.fit
        for number, frames in enumerate(feed):
            if number == 0:
                self.detector.warm_up(batch_of(frames, fit).images)
                for frame in frames:
                    board.streams[frame.name].skip(frame.live)
                frames = [frame for frame in frames if not frame.live]
            if frames:
                yield batch_of(frames, fit)

    def report(self, board: Board, progress: FrameLog, running: bool = True) -> None:
        """Say what is new and how the streams fare, here and in the health file. Raises DiskError."""
        for text in board.news():
            progress.say(text)
        if self.config.health:
            write_json(self.folder / self.config.health, board.snapshot(running))
        if running:
            progress.status(board.line())
            free = shutil.disk_usage(self.folder).free / 1e6
            if not self.config.nosave and free < SPARE_MB:
                raise DiskError(f"{self.folder}: {free:.0f} MB are left on this disk; the recording ends, "
                                "its files are complete; free some space, or use --nosave")

    def figures(self, outputs: Outputs, seconds: float, images: np.ndarray | None) -> dict:
        """Return what summary.json holds, of a run of `seconds` from first frame to last written file."""
        detector, frames = self.detector, outputs.frames
        fps = frames / seconds if seconds else 0.0
        told = {"frames": frames, "boxes": int(outputs.per_class.sum()), "per_class": outputs.counts(),
                "dropped": detector.dropped, "notes": detector.notes, "fps_end_to_end": fps,
                "fps_network_in_run": frames / detector.seconds if detector.seconds else 0.0,
                "imgsz": list(images.shape[-2:]) if images is not None else None,
                "batch_size": len(images) if images is not None else None,
                "precision": detector.runtime.precision, "device": str(detector.runtime.device),
                "threads": detector.runtime.threads * detector.lanes, "lanes": detector.lanes}
        # again, on a batch [B, 3, S, S]: within the run it shares its cores with reading and writing
        asked = self.config.time_network and images is not None and not self.interrupt.poll()
        alone = detector.alone(images) if asked else None
        return told | {"fps_network_alone": alone, "ratio": fps / alone if alone else None}

    def conclude(self, found: dict, progress: FrameLog) -> int:
        """Write summary.json, say the same in sentences, and return the number of frames."""
        write_json(self.folder / "summary.json", found | {"environment": environment()})
        streams = [f"{one['name']}: {one['frames_read']} frames read, {counts_in_words(one)}"
                   for one in found.get("streams", ())]
        against = (f"{found['fps_network_alone']:.1f} FPS the network alone: {100 * found['ratio']:.0f} %"
                   if found["ratio"] else f"{found['fps_network_in_run']:.1f} FPS the network within the run")
        lines = [*found["notes"], *streams,
                 f"{found['frames']} frames, {found['boxes']} boxes: {in_words(found['per_class'])}",
                 f"{found['fps_end_to_end']:.1f} FPS end to end, {against} ({found['precision']}, "
                 f"{found['threads']} threads, {found['device']})",
                 f"{found['dropped']} non-finite or absurd boxes dropped"]
        if left_out := len(found["left_out"]):
            lines.append(f"{left_out} files could not be read or not to their end")
        progress.say("\n".join([*lines, f"results in {self.folder}"]))
        return found["frames"]
