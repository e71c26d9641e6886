"""A training run: what the engine calls around its steps.

Prepared by prepare.py from flags, by others from their own.
"""
from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TextIO

import numpy as np
import torch

from data.dataset import DetectionSet
from data.images import decode
from data.loader import Loader, make_loader
from deploy.runtimes.runtime import torch_runtime
from evaluation import report
from evaluation.evaluate import VAL, Finder, evaluate
from evaluation.metrics import Metrics
from evaluation.plots import results_png
from models import checkpoint as checkpoints
from models.count import loose_macs, macs, parameters
from models.heads.decode import detections
from models.layer import Net, to_json
from models.network import Network
from training import engine
from training.log import RunLog
from training.optim import first_bad_layer
from utils import ddp, runs
from utils.errors import DiskError, EnvironmentFault

SHOWN = ("map50", "map50_95", "precision", "recall", "f1")
NOTES = "notes.txt"
SAVE_TRIES = 3                                     # saves that may fail in a row before the run gives up


@dataclass
class Validator:
    """Callable: (net, weights) -> metrics, the finder with its times, the detections [D, 7] of one set.

    `poll` is called between batches and may raise to stop.
    """

    dataset: DetectionSet
    loader: Loader
    device: torch.device
    precision: str
    poll: Callable[[], object] | None = None

    def __call__(self, net: Net, weights: dict[str, torch.Tensor]) -> tuple[Metrics, Finder, np.ndarray]:
        names = self.dataset.coco.names
        runtime = torch_runtime(net, weights, names, self.dataset.imgsz, self.device, self.precision)
        finder = Finder(runtime, detections, range(len(names)), *VAL)
        metrics, found = evaluate(finder, self.dataset, self.loader, progress=False, poll=self.poll)
        return metrics, finder, found

    def metrics(self, net: Net, weights: dict[str, torch.Tensor]) -> dict[str, float]:
        """map50, map50_95, precision, recall and f1 of a network, fractions; undefined ones are 0."""
        found, _, _ = self(net, weights)
        return {name: getattr(found, name) or 0.0 for name in SHOWN}


@dataclass
class Run:
    """A prepared training run: call `train`, then `close`."""

    args: argparse.Namespace
    folder: Path
    world: ddp.World
    net: Net
    train_set: DetectionSet
    loader: Loader
    validator: Validator
    state: engine.State
    settings: engine.Settings
    loss: Callable
    log: RunLog
    interrupt: runs.Interrupt
    guard: dict = field(default_factory=dict)
    lock: TextIO | None = None
    may_halve: bool = False                        # whether a full memory may change the batch size
    again: str = engine.AGAIN                      # how the same command goes on after a signal
    failed_saves: int = 0
    began: float = field(default_factory=time.monotonic)

    @property
    def last(self) -> Path:
        """Where the run continues from."""
        return self.folder / "weights" / "last.pt"

    @property
    def best(self) -> Path:
        """The weights of the best validation, without what resuming needs."""
        return self.folder / "weights" / "best.pt"

    def train(self) -> None:
        """Fits to the end, from wherever the state is.

        The best weights are then measured and shown in report.html.
        """
        if not self.last.exists():
            self.save(self.state, False)           # from the first second there is a state to come back to
        for dataset in (self.train_set, self.validator.dataset):
            dataset.fill_cache(progress=self.world.main, poll=self.interrupt.stop)
        hooks = engine.Hooks(
            self.validate, self.save, lambda: checkpoints.load_or_previous(self.last)[0].training,
            self.write_row, self.interrupt.poll, lambda: self.interrupt.code, self.replay, self.world.main,
            self.again)
        done = False
        while not done:
            try:
                engine.fit(self.state, self.settings, self.loader, self.loss, hooks)
                done = True
            except torch.OutOfMemoryError as error:
                self.halve(str(error))
        if self.world.main and not self.args.no_report:
            print(self.report())

    def halve(self, fault: str) -> None:
        """Goes back to the last checkpoint with half the pictures a batch and as many an optimizer step.

        Raises EnvironmentFault where that cannot be done: an odd batch, several processes (one that ran out
        of memory cannot tell the others), or a training that has no flags of its own.
        """
        size, nominal = self.args.batch_size, max(self.args.nominal_batch, self.args.batch_size)
        if size % 2 or self.world.size > 1 or not self.may_halve:
            raise EnvironmentFault(f"out of memory at --batch-size {size} ({fault[:80]}); the same steps in "
                                   f"less memory: --batch-size {max(1, size // 2)} --nominal-batch {nominal}")
        self.state.optimizer.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()                           # nothing to do without CUDA
        self.state.load(checkpoints.load_or_previous(self.last)[0].training)
        self.args.batch_size, self.args.nominal_batch = size // 2, nominal
        self.state.batch *= 2                              # positions are counted in batches
        self.settings = replace(self.settings, accumulate=2 * self.settings.accumulate)
        self.guard["batch size"] = size // 2
        self.loader.close()
        self.loader = make_loader(self.train_set, size // 2, seed=self.args.seed, workers=self.args.workers,
                                  pin_memory=self.state.device.type == "cuda")
        self.save(self.state, False)
        runs.write_json(self.folder / "args.json", {**vars(self.args), "resume": None})
        self.note(f"out of memory at batch size {size}: going on from the last checkpoint with {size // 2}, "
                  f"still {nominal} pictures an optimizer step; batch-norm now sees {size // 2} pictures")

    def note(self, text: str) -> None:
        """Says something that the report must repeat."""
        if self.world.main:
            print(text, flush=True)
            with open(self.folder / NOTES, "a", encoding="utf-8") as file:
                file.write(f"{text}\n")

    def validate(self, model: Network) -> dict[str, float]:
        """map50, map50_95, precision, recall and F1 of a model on the validation set."""
        started = time.monotonic()
        values = self.validator.metrics(self.net, model.state_dict())
        print(f"  val  AP50 {values['map50']:.4f}  AP {values['map50_95']:.4f}  P {values['precision']:.3f}  "
              f"R {values['recall']:.3f}  F1 {values['f1']:.3f}  ({time.monotonic() - started:.0f} s)",
              flush=True)
        return values

    def report(self) -> Path:
        """The run's report.html: the best weights measured once more, curves, confusion matrix, pictures."""
        file = self.best if self.best.is_file() else self.last
        best = checkpoints.load(file)
        metrics, finder, found = self.validator(best.net, best.state)
        cost = {"weights": str(file), "data": self.args.data, "split": "val",
                "parameters": parameters(best.net),
                "macs": macs(best.net, self.args.imgsz), "loose_macs": loose_macs(best.net, self.args.imgsz),
                "bytes": file.stat().st_size}
        result = report.summarise(metrics, cost, finder, interval=False, imgsz=self.args.imgsz,
                                  batch_size=self.args.batch_size, workers=self.args.workers,
                                  cache=self.args.cache)
        notes = self.folder / NOTES
        result["notes"] += notes.read_text(encoding="utf-8").splitlines() if notes.is_file() else []
        runs.write_json(self.folder / "metrics.json", result)
        print("\n".join(report.lines(result, metrics)))
        curves = [("Training", results_png(self.log.rows, self.folder / "results.png"))]
        return report.write_page(self.folder, result, metrics, self.validator.dataset.coco, found,
                                 lambda path: decode(path, self.args.max_pixels), curves)

    def write_row(self, row: dict) -> None:
        """One epoch's row in log.jsonl, results.csv and TensorBoard."""
        if self.world.main:
            self.log.add({**row, "seconds": round(time.monotonic() - self.began, 1)})

    def save(self, state: engine.State, best: bool) -> bool:
        """Whether last.pt (and best.pt) were written; processes other than the first leave it to that one.

        A full disk is reported and tried again at the next save, three times.
        """
        if not self.world.main:
            return True
        extra = {"epoch": state.epoch, "best": state.best,
                 "metric": self.settings.metric, "seed": self.settings.seed}
        weights = checkpoints.Checkpoint(self.net, state.ema.module.state_dict(), self.train_set.coco.names,
                                         self.args.imgsz, self.train_set.coco.class_map, extra,
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
                                "free some space, then go on with --resume") from error
            print(f"warning: {self.last} could not be written ({error}); training goes on, free some space",
                  flush=True)
            return False

    def replay(self, batch: dict) -> str:
        """Writes the batch and weights of a non-finite step, and names the first layer that overflowed."""
        model = engine.unwrap(self.state.model)
        images = batch["images"].to(self.state.device).float() / 255
        half = engine.HALF.get(self.settings.precision)
        with torch.autocast(self.state.device.type, half, enabled=half is not None):
            layer = first_bad_layer(model, images)         # on every process: batch-norm waits for all
        path = self.folder / "replay.pt"
        if self.world.main:
            buffer = io.BytesIO()
            torch.save({**batch, "state": model.state_dict(), "net": to_json(self.net), "layer": layer},
                       buffer)
            checkpoints.write_atomic(path, buffer.getbuffer())
        return f"first non-finite output: {layer}; batch and weights are in {path}"

    def close(self) -> None:
        """Lets go of workers, log and lock."""
        self.loader.close()
        self.log.close()
        if self.lock is not None:
            self.lock.close()
