"""Many short trainings on one data set: what search.py and prune.py stand on."""
from __future__ import annotations

import contextlib
import json
import math
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from data.coco.locate import locate
from deploy.artifact import digest
from models import checkpoint as checkpoints
from models.heads.loss import DetectionLoss
from models.layer import Net
from models.network import Network, from_state
from training import engine
from training.config import Recipe
from training.prepare import check_outside, check_side, enter, plain_images, read_sets
from training.run import SHOWN, Run, Validator
from utils import ddp, runs
from utils.errors import DataError, DiskError

RECALIBRATION = 256                                # images that a cut's change of statistics is taken from
STARTS = {"args.json", "pictures.json", ".lock", ".open.lock", "instances_train.json", "instances_val.json"}
State = dict[str, Tensor]


class Outcome(NamedTuple):
    """A finished training: the averaged weights after its last epoch (CPU, fp32) and what they reach."""

    net: Net
    state: State
    metrics: dict[str, float]                              # the SHOWN ones, fractions
    epochs: int
    seconds: float


def claim(config: Recipe, free: Sequence[str]) -> Path:
    """Return the run folder of this config, the fields in `free` apart, and of what its files hold.

    The same command continues in it, unless weights, net.json or annotations were changed meanwhile.
    """
    where, values = locate(config.data, config.val_split, config.seed), asdict(config)
    files = {"weights": config.weights, "cfg": values.get("cfg"), "train": where.train.json,
             "val": where.val.json}
    same = {name: value for name, value in values.items() if name not in free}
    same["content"] = {flag: digest(path) for flag, path in files.items() if path and Path(path).is_file()}
    same = json.loads(json.dumps(same, default=str))
    check_outside(config)
    for folder in reversed(runs.run_folders(config.project, config.name)):
        if (folder / "result.json").exists() or not (folder / "args.json").is_file():
            continue
        with contextlib.suppress(DataError, OSError):               # a torn one is another run's matter
            if runs.read_object(folder / "args.json") == same:
                return folder
    folder = runs.make_run_folder(config.project, config.name)
    runs.write_json(folder / "args.json", same)
    return folder


class Tuner:
    """Trains networks on one data set, each in a folder of its own: resumable, and remembered once done.

    The first process claims the folder, with `alone` locks it. Raises as prepare.read_sets does, and
    EnvironmentFault where another process holds the folder.
    """

    def __init__(self, config: Recipe, claim: Callable[[], Path], alone: bool = True) -> None:
        self.config, self.session, self.share = config, enter(config), ddp.from_main
        self.device, self.world, self.precision, self.say = self.session
        self.folder = Path(self.share(str(claim()) if self.world.main else ""))
        self.held = runs.lock(self.folder) if alone and self.world.main else None
        with self.beginning():
            self.train_set, self.val_set = read_sets(config, self.session, self.folder)
            if not any(map(len, self.val_set.boxes)):
                raise DataError(f"--data {config.data}: no box in its val split, so nothing to choose by")
        self.names, self.interrupt = self.train_set.coco.names, runs.Interrupt()
        for dataset in (self.train_set, self.val_set):
            dataset.fill_cache(progress=self.world.main, poll=self.interrupt.stop)
        self.validator = Validator(config, self.val_set, self.session, self.interrupt)
        self._measured: tuple[State, State] | None = None  # the weights last cut, and their statistics

    @contextlib.contextmanager
    def beginning(self) -> Iterator[None]:
        """Take away a folder in which nothing was begun, where the block ends in an error of the input."""
        try:
            yield
        except ValueError:                                 # every process of the search ends in the same one
            if self.world.main and {path.name for path in self.folder.iterdir()} <= STARTS:
                shutil.rmtree(self.folder, ignore_errors=True)
            raise

    def tune(self, net: Net, state: State, name: str, epochs: int, *, seed: int,
             make: Callable[[Net], Network] = Network, loss: Callable | None = None) -> Outcome:
        """Return the network fine-tuned in folder/name, or read from there; loss: as DetectionLoss.

        Raises Interrupted after a signal (saved), NumericError, DiskError, EnvironmentFault while another
        process trains there, ModelError where its weights are damaged.
        """
        folder = self.folder / name
        if not self.done(name):
            check_side(net, self.config, len(self.train_set))
            began, model = time.monotonic(), make(net)
            model.load_state_dict(state)
            run = self._run(model, folder, epochs, seed, loss or DetectionLoss(net))
            try:
                spent = self._resume(run)
                run.train()
                if self.world.main:
                    self._finish(run, epochs, spent + time.monotonic() - began)
            finally:
                run.close()
            ddp.wait()                                     # the others read what the first has written
        record = json.loads((folder / "outcome.json").read_text(encoding="utf-8"))
        found = checkpoints.load(folder / "weights" / "best.pt")
        return Outcome(found.net, found.state, record["metrics"], record["epochs"], record["seconds"])

    def done(self, name: str) -> bool:
        """Return whether the training of that name is finished."""
        return bool(self.share((self.folder / name / "outcome.json").is_file()))

    def cut(self, net: Net, state: State, way: Callable[[Net, State], tuple[Net, State]]
            ) -> tuple[Net, State]:
        """Return a trained network cut by a pass, its batch-norm statistics moved as the cut moves them.

        Both networks see the same plain images; what they differ by is added to what training left.
        """
        if self._measured is None or self._measured[0] is not state:
            self._measured = state, self._statistics(net, state)
        small, kept = way(net, state)
        before = way(net, {**state, **self._measured[1]})[1]
        return small, moved(kept, before, self._statistics(small, kept))

    @torch.no_grad()
    def val_loss(self, net: Net, state: State) -> float:
        """Return the loss on the validation set, weighted as in training; every process is asked alike."""
        loss, model = DetectionLoss(net), from_state(net, state).to(self.device)
        model, total, count = model.to(memory_format=torch.channels_last), 0.0, 0
        weights = self.config.loss_weights(loss.terms)
        for images, targets, _ in self.validator.loader:
            outputs = model(images.to(self.device).contiguous(memory_format=torch.channels_last))
            terms = loss(outputs, targets.to(self.device))
            total += len(images) * sum(weights[name] * float(value) for name, value in terms.items())
            count += len(images)
        return total / count

    def _statistics(self, net: Net, state: State) -> State:
        images, size = self._plain, self.config.batch_size
        whole = len(images) // size * size or len(images)  # a short last batch would count as a whole one
        half = engine.HALF.get(self.precision)
        return statistics(net, state, images[:whole].split(size), self.device, half)

    @cached_property
    def _plain(self) -> Tensor:
        return plain_images(self.train_set, RECALIBRATION)

    def close(self) -> None:
        """Let go of the validation images' workers, the folder and the other processes."""
        self.validator.loader.close()
        if self.held is not None:
            self.held.close()
        ddp.leave()

    def _run(self, model: Network, folder: Path, epochs: int, seed: int, loss: Callable) -> Run:
        if self.world.main:
            (folder / "weights").mkdir(parents=True, exist_ok=True)
        ddp.wait()
        lock = runs.lock(folder) if self.world.main else None
        config = self.config.training(epochs, seed, folder.name)
        data = self.train_set.for_run(seed, max(0, epochs - config.close_mosaic))
        return Run(config, folder, self.session, model, data, self.validator, loss, self.interrupt, lock=lock,
                   again="again")                          # search.py and prune.py know no --resume

    def _resume(self, run: Run) -> float:
        """Take the run's state from its last checkpoint where there is one; return the seconds it had."""
        if not (run.last.is_file() or checkpoints.previous(run.last).is_file()):
            return 0.0
        found, note = checkpoints.load_or_previous(run.last)
        if note:
            self.say(f"warning: {note}")
        if lost := run.changed(found.training):            # another machine's, say, which died here
            self.say(f"{run.folder.name}: its unfinished training was begun with other {', '.join(lost)}, "
                     "and continuing would give neither's result; it begins again")
            ddp.wait()                                     # every process has read it
            if self.world.main:
                for stale in (run.last, checkpoints.previous(run.last), run.best):
                    stale.unlink(missing_ok=True)          # nothing may come back to them
                run.log.keep_before(0)
            return 0.0
        run.take_up(found.training)
        self.say(f"{run.folder.name}: continuing from epoch {run.state.epoch + 1}, batch {run.state.batch}")
        return float(run.log.rows[-1].get("seconds", 0.0)) if run.log.rows else 0.0

    def _finish(self, run: Run, epochs: int, seconds: float) -> None:
        """Write what the training came to; what resuming would have needed goes."""
        if not run.best.is_file():
            raise DiskError(f"{run.best} is missing after training; free some space and run the same command")
        metrics = {name: run.log.rows[-1][name] for name in SHOWN}
        if not all(math.isfinite(value) for value in metrics.values()):
            raise DiskError(f"{run.folder / 'log.jsonl'} holds no finite metrics; delete {run.folder}")
        runs.write_json(run.folder / "outcome.json",
                        {"metrics": metrics, "epochs": epochs, "seconds": round(seconds, 1)})
        for stale in (run.last, checkpoints.previous(run.last)):
            stale.unlink(missing_ok=True)


@torch.no_grad()
def statistics(net: Net, state: State, batches: Iterable[Tensor], device: torch.device | str = "cpu",
               half: torch.dtype | None = None) -> State:
    """Return running means and variances (state key -> tensor) that are plain averages over the batches.

    batches: images uint8 [B, 3, S, S]. Post-training statistics of Yu and Huang 2019 (US-Net, arXiv
    1903.05134, section 3.4): a sub-network's activations are not distributed as the whole network's were.
    """
    model = from_state(net, state).to(device).to(memory_format=torch.channels_last).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None                         # a cumulative average
    for images in batches:
        images = images.to(device).float() / 255
        with torch.autocast(torch.device(device).type, half, enabled=half is not None):
            model(images.contiguous(memory_format=torch.channels_last))
    return {key: value.to("cpu").contiguous() for key, value in model.state_dict().items()
            if "running_" in key}


def moved(state: State, before: State, now: State) -> State:
    """Return the state, its running means moved by what they changed from before to now, variances scaled.

    before, now: `statistics` of the same images in the network that the state was cut from and in the cut
    one. Training saw varied images, so statistics of plain ones alone would fit neither; what is as it was
    keeps those of its training exactly.
    """
    out = dict(state)
    for key in now:
        old, first, last = state[key], before[key], now[key]
        if key.endswith("running_mean"):
            out[key] = old + (last - first)
        else:                                              # a channel that never varied has no ratio
            out[key] = torch.where(first > 0, old * (last / first), last)
    return out
