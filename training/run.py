"""A training run: its parts put together, and what the engine calls around its steps."""
from __future__ import annotations

import copy
import io
import shutil
import time
import zlib
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple, TextIO

import numpy as np
import torch
from torch import nn

from data.coco.read import CocoSet
from data.dataset import DetectionSet
from data.images import decode
from data.loader import Loader, make_loader
from deploy.runtimes.runtime import torch_runtime
from evaluation import report
from evaluation.evaluate import VAL, Finder, evaluate
from evaluation.metrics import Metrics
from evaluation.plots import results_png
from models import checkpoint as checkpoints
from models.count import parameters
from models.graph import strides
from models.layer import Net
from models.network import Network
from models.records import to_json
from models.sync_bn import synchronise
from training import engine
from training.config import Recipe, TrainConfig
from training.log import RunLog
from training.optim import MovingAverage, first_bad_layer, freeze, make_optimizer
from training.plan import Clock, Costs, first_plan, later_plan, seconds_per_image
from utils import ddp, runs
from utils.errors import DiskError, EnvironmentFault

SHOWN = ("map50", "map50_95", "precision", "recall", "f1")
NOTES = "notes.txt"
TRIED_IMAGES = 32                                  # that the time of a validation is told from
SAVE_TRIES = 3                                     # saves that may fail in a row before the run gives up


class Session(NamedTuple):
    """What this process trains with: device, place among the processes, precision, and rank 0's print."""

    device: torch.device
    world: ddp.World
    precision: str
    say: Callable[..., None]


def shown(metrics: Metrics) -> dict[str, float | None]:
    """Return the SHOWN metrics, undefined ones as None."""
    return {name: getattr(metrics, name) for name in SHOWN}


class Validator:
    """Callable: (net, weights) -> metrics, the finder with its times, the detections [D, 7] of one set."""

    def __init__(self, config: Recipe, dataset: DetectionSet, session: Session,
                 interrupt: runs.Interrupt) -> None:
        self.config, self.dataset, self.session, self.interrupt = config, dataset, session, interrupt
        self.loader = self._loader(config.batch_size)
        # A rank that stopped alone would leave the others waiting.
        self.poll = None if session.world.size > 1 else interrupt.stop

    def __call__(self, net: Net, weights: dict[str, torch.Tensor]) -> tuple[Metrics, Finder, np.ndarray]:
        names, session = self.dataset.coco.names, self.session
        runtime = torch_runtime(net, weights, names, self.dataset.imgsz, session.device, session.precision)
        while True:
            finder = Finder(runtime, range(len(names)), *VAL)
            try:
                return self._once(finder)
            except torch.OutOfMemoryError:             # its batch is not training's, and says nothing of it
                size = self.loader.batch_sampler.batch_size
                if size == 1:
                    raise
                session.say(f"out of memory in validation: its batches are of {size // 2} from here on")
                self.loader = self._loader(size // 2)
                torch.cuda.empty_cache()

    def _once(self, finder: Finder) -> tuple[Metrics, Finder, np.ndarray]:
        metrics, found = evaluate(finder, self.dataset, self.loader, progress=False, poll=self.poll)
        return metrics, finder, found

    def _loader(self, size: int) -> Loader:
        return make_loader(self.dataset, size, shuffle=False, pin_memory=self.session.device.type == "cuda")

    def part(self, count: int) -> Validator:
        """Return a validator of `count` images of the set, evenly chosen."""
        coco, count = self.dataset.coco, min(count, len(self.dataset))
        chosen = [coco.images[i * len(coco.images) // count] for i in range(count)]
        few = DetectionSet(replace(coco, images=chosen), self.dataset.imgsz, cache="off",
                           max_pixels=self.dataset.max_pixels)
        return Validator(self.config, few, self.session, self.interrupt)


class Run:
    """A training run: call `train`, then `close`; may_halve: whether a full memory may halve the batch."""

    def __init__(self, config: TrainConfig, folder: Path, session: Session, model: Network,
                 train_set: DetectionSet, validator: Validator, loss: Callable, interrupt: runs.Interrupt, *,
                 lock: TextIO | None = None, may_halve: bool = False, again: str = "with --resume") -> None:
        self.config, self.folder, self.session, self.net = config, folder, session, model.net
        self.train_set, self.validator, self.loss, self.interrupt = train_set, validator, loss, interrupt
        self.lock, self.may_halve, self.again = lock, may_halve, again
        self.last, self.best, self.failed_saves = folder / "weights/last.pt", folder / "weights/best.pt", 0
        device, world, precision, _ = session
        if world.main:
            check_disk(folder, parameters(self.net, statistics=True), config.optimizer)
            runs.write_text(folder / "net.json", to_json(self.net))
        model = model.to(device).to(memory_format=torch.channels_last)
        if world.size > 1:
            model = synchronise(model)
        self.frozen = freeze(model, config.freeze)
        self.state = make_state(model, config, session, loss)
        if ddp.joined():
            self.state.model = torch.nn.parallel.DistributedDataParallel(
                model, device_ids=[device.index] if device.type == "cuda" else None, broadcast_buffers=False)
        self.loader, self.log, self.clock = self._loader(), RunLog(folder), Clock()
        if config.time:
            self.log.began = runs.STARTED
        val = validator.dataset.coco
        self.data = {"data": data_hash(train_set.coco), "images": files_hash(train_set.coco),
                     "val": checkpoints.checksum([data_hash(val), files_hash(val)]),
                     "teacher": config.teacher and zlib.crc32(Path(config.teacher).read_bytes())}

    @property
    def guard(self) -> dict[str, object]:
        """Return what must be the same for a continuation to have the same bits."""
        device, world, precision, _ = self.session
        return {"torch": str(torch.__version__), "threads": torch.get_num_threads(), "processes": world.size,
                "precision": precision, "batch size": self.config.batch_size, **self.data,
                "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"}

    def changed(self, saved: dict) -> dict[str, object]:
        """Return those entries of a checkpoint's guard that are others now; older ones have fewer."""
        before = saved["guard"]
        return {key: before[key] for key, value in self.guard.items() if before.get(key, value) != value}

    def take_up(self, saved: dict) -> None:
        """Continue from a checkpoint's training state."""
        self.state.load(saved)
        if self.session.world.main:
            self.log.keep_before(self.state.epoch)

    def train(self) -> None:
        """Fit to the end, from wherever the state is; show the best weights in report.html."""
        began = time.monotonic()
        if not self.last.exists():
            self.save(self.state, False)           # from the first second there is a state to come back to
        saving = time.monotonic() - began
        poll = partial(self.interrupt.stop, f"interrupted: run the same command {self.again} to continue")
        for dataset in (self.train_set, self.validator.dataset):
            dataset.fill_cache(progress=self.session.world.main, poll=poll)
        if self.config.time and not self.state.step:
            self.plan(saving)
        while not self.ended():
            try:
                engine.fit(self.state, self.task())
            except torch.OutOfMemoryError as error:
                self.halve(str(error))
        if self.session.world.main and not self.config.no_report:
            print(self.report())

    def ended(self) -> bool:
        """Return whether the last epoch is done, or patience has run out, which is said."""
        config, epoch = self.config, self.state.epoch
        if epoch >= config.epochs:
            return True
        found = [(row[config.metric], row["epoch"]) for row in self.log.rows
                 if row.get(config.metric) is not None]
        best, at = max(found, default=(0.0, -1))               # of equals the later, as best.pt is
        stale = epoch - 1 - at if found and config.patience else -1
        if out := ddp.from_main(stale >= config.patience):
            rate = self.state.optimizer.param_groups[0]["lr"] / config.peak_lr
            self.note(f"ended after epoch {epoch} of {config.epochs}: no {config.metric} above {best:.4f} "
                      f"since epoch {at + 1} (--patience {config.patience}); the learning rate was "
                      f"{rate:.0%} of its peak")
        return out

    def plan(self, saving: float) -> None:
        """Set what ends within --time, by steps and validations that are tried; saving: seconds of one."""
        config, model = self.config, copy.deepcopy(engine.unwrap(self.state.model))
        task = replace(self.task(), loss=copy.deepcopy(self.loss))     # what learns there is a copy, too
        image = seconds_per_image(make_state(model, config, self.session, task.loss), task)
        share = self.validator.part(TRIED_IMAGES)
        began = time.monotonic()
        share(self.net, model.state_dict())
        validation = (time.monotonic() - began) * len(self.validator.dataset) / len(share.dataset)
        self.clock.costs = costs = ddp.from_main(Costs(image, validation, saving))
        spent = ddp.from_main(time.monotonic() - self.log.began)
        self.follow(first_plan(config, len(self.train_set), costs, spent))
        new = self.config
        images = new.epoch_images or len(self.train_set)
        self.note(f"--time {new.time:.0f} s: {new.epochs} epochs of {images} images "
                  f"({1000 * image:.0f} ms each) after {spent:.0f} s of start, validated every "
                  f"{new.val_interval} ({validation:.0f} s each), the last {new.close_mosaic} without mosaic")
        self.clock.begin()

    def pause(self, state: engine.State) -> bool:
        """Return whether the step loop is to be left after an epoch: for another plan, or for good."""
        new, config = None, self.config
        if config.time and self.session.world.main:
            images = min(len(self.train_set), config.epoch_images or len(self.train_set))
            if costs := self.clock.epoch(images):
                spent = time.monotonic() - self.log.began
                new = later_plan(config, state.epoch, costs, images, spent)
        if new := ddp.from_main(new):
            self.session.say(f"--time: {new.epochs} epochs, not {config.epochs}, at this rate")
            self.follow(new)
        return new is not None or bool(config.patience)

    def follow(self, config: TrainConfig) -> None:
        """Continue by another plan: its epochs, their images, and those without mosaic."""
        self.loader.close()
        self.config = config
        self.train_set = self.train_set.for_run(config.seed, max(0, config.epochs - config.close_mosaic))
        self.loader = self._loader()
        if self.session.world.main:
            self.write_config()

    def task(self) -> engine.Task:
        """Return the engine's view of the run."""
        device, world, precision, _ = self.session
        return engine.Task(
            self.config, self.loader, self.loss, validate=self.validate, save=self.save,
            restore=self.saved_state, log=self.log.add, replay=self.replay, signals=self.interrupt,
            precision=precision, pause=self.pause, frozen=self.frozen,
            sides=self.config.sides(max(strides(self.net).values())), main=world.main,
            again=self.again, read_steps=1 if device.type == "cpu" else engine.READ_STEPS)

    def saved_state(self) -> dict:
        """Return the training state of the last checkpoint that can be read."""
        return checkpoints.load_or_previous(self.last)[0].training

    def halve(self, fault: str) -> None:
        """Return to the last checkpoint with half the images per batch and as many per optimizer step.

        Raises EnvironmentFault for an odd batch, several processes, which cannot be told, or without flags.
        """
        size, images = self.config.batch_size, self.config.accumulate * self.config.batch_size
        if size % 2 or self.session.world.size > 1 or not self.may_halve:
            nominal = max(self.config.nominal_batch, size)
            raise EnvironmentFault(f"out of memory at --batch-size {size} ({fault[:80]}); the same steps in "
                                   f"less memory: --batch-size {max(1, size // 2)} --nominal-batch {nominal}")
        self.state.optimizer.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()                           # nothing to do without CUDA
        self.state.load(self.saved_state())
        self.config = replace(self.config, batch_size=size // 2, nominal_batch=images)
        self.state.batch *= 2                              # positions are counted in batches
        self.loader.close()
        self.loader = self._loader()
        self.save(self.state, False)
        self.write_config()
        self.note(f"out of memory at batch size {size}: continuing from the last checkpoint with "
                  f"{size // 2}, still {images} images per optimizer step; "
                  f"batch-norm now sees {size // 2} images")

    def write_config(self) -> None:
        """Write args.json, which --resume reads."""
        runs.write_json(self.folder / "args.json", {**asdict(self.config), "resume": None})

    def note(self, text: str) -> None:
        """Say something that the report must repeat."""
        if self.session.world.main:
            print(text, flush=True)
            with open(self.folder / NOTES, "a", encoding="utf-8") as file:
                file.write(f"{text}\n")

    def validate(self, model: Network) -> dict[str, float | None]:
        """Return the SHOWN metrics of a model on the validation set, and print them."""
        started = time.monotonic()
        values = shown(self.validator(self.net, model.state_dict())[0])
        told = "undefined, for want of a box" if values["map50"] is None else (
            f"AP50 {values['map50']:.4f}  AP {values['map50_95']:.4f}  P {values['precision']:.3f}  "
            f"R {values['recall']:.3f}  F1 {values['f1']:.3f}")
        self.clock.validated = time.monotonic() - started
        print(f"  val  {told}  ({self.clock.validated:.0f} s)", flush=True)
        return values

    def report(self) -> Path:
        """Write report.html: the best weights measured once more, curves, confusion matrix, images."""
        config, file = self.config, self.best if self.best.is_file() else self.last
        best = checkpoints.load(file)
        metrics, finder, found = self.validator(best.net, best.state)
        what = {"weights": str(file), "data": config.data, "split": "val", "bytes": file.stat().st_size}
        result = report.summarise(metrics, what, finder, interval=False, imgsz=config.imgsz,
                                  batch_size=config.batch_size, workers=config.workers, cache=config.cache)
        notes = self.folder / NOTES
        result["notes"] += notes.read_text(encoding="utf-8").splitlines() if notes.is_file() else []
        runs.write_json(self.folder / "metrics.json", result)
        print("\n".join(report.lines(result, metrics)))
        curves = [("Training", results_png(self.log.rows, self.folder / "results.png"))]
        return report.write_page(self.folder, result, metrics, self.validator.dataset.coco, found,
                                 lambda path: decode(path, config.max_pixels), curves)

    def save(self, state: engine.State, best: bool) -> bool:
        """Return whether last.pt (and best.pt) were written; DiskError after SAVE_TRIES failures in a row."""
        if not self.session.world.main:
            return True
        extra = {"epoch": state.epoch, "best": state.best, "metric": self.config.metric,
                 "seed": self.config.seed}
        weights = checkpoints.Checkpoint(self.net, state.ema.module.state_dict(), self.train_set.coco.names,
                                         self.config.imgsz, self.train_set.coco.class_map, extra,
                                         {**state.as_dict(), "guard": self.guard})
        try:
            if best:                               # first: a run killed here writes the same one again
                checkpoints.save(self.best, replace(weights, training=None))
            checkpoints.save(self.last, weights, keep_previous=True)
            self.failed_saves = 0
            return True
        except OSError as error:
            self.failed_saves += 1
            if self.failed_saves >= SAVE_TRIES:
                raise DiskError(f"{self.last} could not be written {SAVE_TRIES} times in a row ({error}); "
                                f"free some space, then run the same command {self.again}") from error
            print(f"warning: {self.last} could not be written ({error}); training continues, free some space",
                  flush=True)
            return False

    def replay(self, batch: dict) -> str:
        """Write the batch and weights of a non-finite step, and name the first layer that overflowed."""
        model, device = engine.unwrap(self.state.model), self.session.device
        half = engine.HALF.get(self.session.precision)
        with torch.autocast(device.type, half, enabled=half is not None):
            layer = first_bad_layer(model, batch["images"].to(device).float() / 255)   # on every process
        path = self.folder / "replay.pt"
        if self.session.world.main:
            buffer = io.BytesIO()
            torch.save({**batch, "state": model.state_dict(), "net": to_json(self.net), "layer": layer},
                       buffer)
            checkpoints.write_atomic(path, buffer.getbuffer())
        return f"first non-finite output: {layer}; batch and weights are in {path}"

    def close(self) -> None:
        """Let go of workers, log and lock."""
        self.loader.close()
        self.log.close()
        if self.lock is not None:
            self.lock.close()

    def _loader(self) -> Loader:
        config, world = self.config, self.session.world
        return make_loader(self.train_set, config.batch_size // world.size, seed=config.seed,
                           workers=config.workers, rank=world.rank, world=world.size,
                           pin_memory=self.session.device.type == "cuda", part=config.epoch_images)


def make_state(model: Network, config: Recipe, session: Session, loss: Callable = None) -> engine.State:
    """Return the state in which a model begins to learn, and what of its loss learns with it."""
    beside = loss if isinstance(loss, nn.Module) else nn.Module()
    scaler = torch.amp.GradScaler(session.device.type, enabled=session.precision == "fp16")
    return engine.State(model, MovingAverage(model, config.ema_age), make_optimizer(model, config, beside),
                        scaler, session.device, beside=beside)


def check_disk(folder: Path, numbers: int, optimizer: str) -> None:
    """Raise DiskError where the checkpoints of a network of so many numbers would not fit."""
    # Three for resuming are there at a time (average, weights, optimizer), and the best weights.
    copies = 3 * (2 + {"sgd": 1, "adamw": 2}[optimizer]) + 1
    own = sum(file.stat().st_size for file in folder.glob("weights/*.pt"))     # replaced as the run continues
    need, free = 4 * numbers * copies - own, shutil.disk_usage(folder).free
    if free < need:
        raise DiskError(f"{folder}: checkpoints of this network need about {need / 1e6:.0f} MB, "
                        f"{free / 1e6:.0f} MB are free there; free some space, or choose another --project")


def files_hash(coco: CocoSet) -> int:
    """Return a number that changes with the bytes of an image file."""
    return checkpoints.checksum([r.crc for r in coco.records])


def data_hash(coco: CocoSet) -> int:
    """Return a number that changes with the images' names, sizes or boxes."""
    return checkpoints.checksum([(r.path.name, r.width, r.height, torch.from_numpy(r.boxes))
                                 for r in coco.records])
