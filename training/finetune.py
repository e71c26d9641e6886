"""Many short trainings on one data set: what search.py and prune.py stand on."""
from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from compress.recalibrate import recalibrate
from data.coco.locate import locate
from data.dataset import DetectionSet
from deploy.artifact import digest
from models import checkpoint as checkpoints
from models.graph import strides
from models.heads.loss import DetectionLoss
from models.layer import Net
from models.network import Network
from training import engine
from training.assembly import assemble, make_validator
from training.prepare import enter, plain_pictures, read_sets
from training.run import SHOWN, Run, Validator
from utils import ddp, runs
from utils.errors import DiskError, UsageError

RECALIBRATION = 256                                # pictures that batch-norm statistics are taken from anew
NEW = {"val_interval": 0, "no_report": True, "resume": None, "accept": False}


class Outcome(NamedTuple):
    """A finished training: the averaged weights after its last epoch (CPU, fp32) and what they reach."""

    net: Net
    state: dict[str, Tensor]
    metrics: dict[str, float]                              # map50, map50_95, precision, recall, f1: fractions
    epochs: int
    seconds: float


def claim(args: argparse.Namespace, free: Sequence[str]) -> Path:
    """The run folder of these flags, those in `free` apart, and of what their files hold.

    The same command goes on in it. Where the weights, the net.json or the annotations were changed meanwhile,
    finished trainings of the old ones would be taken for the new ones': then it is another folder.
    """
    where, held = locate(args.data), {}
    files = {"weights": args.weights, "cfg": getattr(args, "cfg", None), "train": where.train.json,
             "val": where.val.json}
    for flag, path in files.items():
        if path and Path(path).is_file():
            held[flag] = digest(path)
    same = {name: value for name, value in vars(args).items() if name not in free}
    return _unfinished(Path(args.project), args.name, {**same, "content": held})


def _unfinished(project: Path, name: str, args: dict) -> Path:
    """The newest project/name* whose args.json is `args` and that holds no result.json, else a new one."""
    plain = json.loads(json.dumps(args, default=str))
    for at in range(len(list(project.glob(f"{name}*"))) + 1, 0, -1):
        folder = project / (name if at == 1 else f"{name}{at}")
        if (folder / "result.json").exists() or not (folder / "args.json").is_file():
            continue
        if json.loads((folder / "args.json").read_text(encoding="utf-8")) == plain:
            return folder
    folder = runs.make_run_folder(project, name)
    runs.write_json(folder / "args.json", plain)
    return folder


class Tuner:
    """Trains networks on one data set, each in a folder of its own: resumable, and remembered once done.

    What a caller does with the outcomes may be killed at any moment: run again, it reads the finished
    trainings, goes on with the one that was cut off, and so comes to the same end.
    """

    def __init__(self, args: argparse.Namespace, folder: Path, world: ddp.World, precision: str,
                 train_set: DetectionSet, validator: Validator, interrupt: runs.Interrupt,
                 say: Callable[..., None]) -> None:
        self.args, self.folder, self.world, self.precision = args, folder, world, precision
        self.train_set, self.validator, self.interrupt, self.say = train_set, validator, interrupt, say
        self.device, self.val_set = validator.device, validator.dataset
        self.names, self.held = train_set.coco.names, None

    @classmethod
    def open(cls, args: argparse.Namespace, claim: Callable[[], Path], alone: bool = True) -> Tuner:
        """A tuner for checked flags: torchrun's processes joined, the folder claimed, data read and cached.

        claim gives the folder and is called by the first process only; with `alone` that one holds its lock.
        Raises as prepare.read_sets does, and EnvironmentFault where another process holds the folder.
        """
        device, world, precision, say = enter(args)
        folder = Path(ddp.from_main(str(claim()) if world.main else ""))
        held = runs.lock(folder) if alone and world.main else None
        train_set, val_set = read_sets(args, world, folder, say)
        interrupt = runs.Interrupt()
        for dataset in (train_set, val_set):
            dataset.fill_cache(progress=world.main, poll=interrupt.stop)
        validator = make_validator(args, val_set, world, device, precision, interrupt)
        tuner = cls(args, folder, world, precision, train_set, validator, interrupt, say)
        tuner.held = held
        return tuner

    def tune(self, net: Net, state: dict[str, Tensor], name: str, epochs: int, *, seed: int | None = None,
             make: Callable[[Net], Network] = Network, loss: Callable | None = None) -> Outcome:
        """The network fine-tuned in folder/name, read from there where that is done already.

        loss: (maps, targets, images) -> {term: scalar}, DetectionLoss by default; make: records -> module
        whose state dict has the layout's keys. Raises Interrupted after a signal (saved), NumericError,
        DiskError, and EnvironmentFault while another living process trains there.
        """
        folder = self.folder / name
        if self.done(name):
            return read_outcome(folder)
        if self.args.imgsz % (stride := max(strides(net).values())):
            raise UsageError(f"--imgsz {self.args.imgsz}: this network needs a multiple of {stride}")
        began = time.monotonic()
        run = self._run(net, state, folder, epochs, self.args.seed if seed is None else seed, make, loss)
        try:
            spent = self._resume(run)
            run.train()
            if self.world.main:
                self._finish(run, epochs, spent + time.monotonic() - began)
        finally:
            run.close()
        ddp.wait()                                         # the others read what the first has written
        return read_outcome(folder)

    def done(self, name: str) -> bool:
        """Whether the training of that name is finished."""
        return bool(self.share((self.folder / name / "outcome.json").is_file()))

    def measure(self, net: Net, state: dict[str, Tensor]) -> dict[str, float]:
        """map50, map50_95, precision, recall and f1 (fractions) on the validation set, without training."""
        found = self.validator.metrics(net, state) if self.world.main else None
        return ddp.from_main(found)

    def recalibrate(self, net: Net, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The state with batch-norm statistics of plain training pictures; the argument is not changed."""
        pictures, size = plain_pictures(self.train_set, RECALIBRATION), self.args.batch_size
        whole = len(pictures) // size * size or len(pictures)  # a short last batch would count as a whole one
        half = engine.HALF.get(self.precision)
        return recalibrate(net, state, pictures[:whole].split(size), self.device, half)

    def share(self, value: object) -> object:
        """The value that rank 0 holds."""
        return ddp.from_main(value)

    def close(self) -> None:
        """Lets go of the validation pictures' workers and of the other processes."""
        self.validator.loader.close()
        if self.held is not None:
            self.held.close()
        ddp.leave()

    def _run(self, net: Net, state: dict[str, Tensor], folder: Path, epochs: int, seed: int, make: Callable,
             loss: Callable | None) -> Run:
        if self.world.main:
            (folder / "weights").mkdir(parents=True, exist_ok=True)
        ddp.wait()
        held = runs.lock(folder) if self.world.main else None
        args = argparse.Namespace(**{**vars(self.args), **NEW, "epochs": epochs, "seed": seed,
                                     "val_interval": epochs, "name": folder.name})
        model = make(net)
        model.load_state_dict(state)
        data = self.train_set.for_run(seed, max(0, epochs - args.close_mosaic))
        run = assemble(args, folder, self.world, self.precision, model, data, self.validator,
                       loss or DetectionLoss(net), self.interrupt)
        run.lock, run.again = held, "once more"            # search.py and prune.py know no --resume
        return run

    def _resume(self, run: Run) -> float:
        """Seconds the run had before, its state taken from its last checkpoint where there is one."""
        if not run.last.is_file():
            return 0.0
        found, note = checkpoints.load_or_previous(run.last)
        if note:
            self.say(f"warning: {note}")
        lost = [key for key, value in run.guard.items() if found.training["guard"].get(key) != value]
        if lost:                                           # another machine's, say, which died here
            self.say(f"{run.folder.name}: its unfinished training was begun with other {', '.join(lost)}, "
                     "and going on would give neither's result; it begins anew")
            if run.world.main:
                run.log.keep_before(0)
            return 0.0
        run.state.load(found.training)
        if run.world.main:
            run.log.keep_before(run.state.epoch)
        self.say(f"{run.folder.name}: going on from epoch {run.state.epoch + 1}, batch {run.state.batch}")
        return float(run.log.rows[-1].get("seconds", 0.0)) if run.log.rows else 0.0

    def _finish(self, run: Run, epochs: int, seconds: float) -> None:
        """Writes what the training came to; what resuming would have needed goes."""
        if not run.best.is_file():
            raise DiskError(f"{run.best} is missing after training; free some space and run the same command")
        row = run.log.rows[-1]
        metrics = {name: row[name] for name in SHOWN}
        if not all(math.isfinite(value) for value in metrics.values()):
            raise DiskError(f"{run.folder / 'log.jsonl'} holds no finite metrics; delete {run.folder}")
        runs.write_json(run.folder / "outcome.json",
                        {"metrics": metrics, "epochs": epochs, "seconds": round(seconds, 1)})
        for stale in (run.last, checkpoints.previous(run.last)):
            stale.unlink(missing_ok=True)


def read_outcome(folder: Path) -> Outcome:
    """The outcome of a finished training in `folder`. Raises ModelError where its weights are damaged."""
    record = json.loads((folder / "outcome.json").read_text(encoding="utf-8"))
    found = checkpoints.load(folder / "weights" / "best.pt")
    return Outcome(found.net, found.state, record["metrics"], record["epochs"], record["seconds"])
