"""A queue of points that many workers empty together, each point taken by one of them: an Optuna study.

A dead worker's point is taken again: at once where its lock can be seen, else when its heart has been still
for GRACE seconds. What a point means is not known here.
"""
from __future__ import annotations

import os
import platform
import random
import shutil
import threading
import time
import uuid
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from datetime import datetime, timedelta
from itertools import product
from math import prod
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, Trial

from compress.search import storage as storages
from compress.search.storage import alone
from training.config import Recipe
from training.finetune import Tuner, claim
from utils import runs
from utils.errors import EnvironmentFault, NumericError

Point = dict[str, object]
PAUSE = 1.0                            # seconds between looks at a queue whose last points others work on


def shared_tuner(config: Recipe, free: Sequence[str], locked: bool = False) -> Tuner:
    """Return the tuner of a folder that workers of the same command share, the fields in `free` apart.

    One at a time claims and opens it. locked: until its end, too. Raises as Tuner does.
    """
    Path(config.project).mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        def own() -> Path:
            with alone(Path(config.project) / ".claim.lock"):
                folder = claim(config, free)
            held.enter_context(alone(folder / ".open.lock"))
            return folder
        return Tuner(config, own, locked)


class Queue:
    """Points of a space that are to be evaluated: `take` one, then `finish` it or `give_back` it.

    space: parameter -> candidates; all combinations are evaluated, or `trials` different ones that TPE
    proposes, each a function of the seed and of the values known by then. directions: "maximize" or
    "minimize" for each value. settings: what values depend on. home: a folder for this worker's sign of life.
    Raises UsageError for other settings than the study's or a bad URL, EnvironmentFault for a bad storage.
    """

    def __init__(self, url: str, name: str, space: Mapping[str, Sequence], directions: Sequence[str],
                 settings: Mapping[str, object], home: Path, trials: int = 0, seed: int = 0) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.space, self.trials, self.seed = {k: list(v) for k, v in space.items()}, trials, seed
        self.choices = {k: optuna.distributions.CategoricalDistribution(v) for k, v in self.space.items()}
        size = prod(len(v) for v in self.space.values())
        self.wanted = min(trials, size) if trials else size
        self.file = storages.lock_file(url)
        with alone(self.file):
            self.storage = storages.open_storage(url)
            self.study = optuna.create_study(storage=self.storage, study_name=name, load_if_exists=True,
                                             directions=list(directions))
            storages.agree(self.study, settings)
        token = f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
        folder = (home / token).resolve()
        folder.mkdir(parents=True)
        self.held = runs.lock(folder)
        self.worker = {"host": platform.node(), "folder": str(folder)}
        self.current: Trial | None = None
        self.quiet = threading.Event()

    def take(self, wait: Callable[[int], object] = lambda running: None) -> Point | None:
        """Return a point that is nobody's, None when all are done; `wait` while others hold some."""
        while True:
            with alone(self.file):
                self._take_back()
                self.current = self._claim()
                running = len(self._trials("RUNNING"))
            if self.current is not None:
                self._keep_alive(self.current.number)
                return dict(self.current.params)
            if not running:
                return None
            wait(running)
            time.sleep(PAUSE)

    def finish(self, values: Sequence[float] | None, record: Mapping[str, object]) -> bool:
        """End the point that was taken (None: it would fail again); False where it was taken away before."""
        with alone(self.file):
            return self._end(self.current.number, "COMPLETE" if values else "PRUNED", values, record)

    def give_back(self) -> None:
        """Put the point that was taken back, for another worker or a later start."""
        if self.current is not None:
            with alone(self.file):
                self._put_back(self.current.number)

    def records(self) -> list[dict]:
        """Return what `finish` was given of every ended point, in the order of the space."""
        rank = {key: {value: at for at, value in enumerate(values)} for key, values in self.space.items()}
        ended = sorted(self._trials("COMPLETE", "PRUNED"),
                       key=lambda trial: [rank[key][trial.params[key]] for key in self.space])
        return [trial.user_attrs["record"] for trial in ended]

    def close(self) -> None:
        """Let go of the storage and of this worker's sign of life."""
        self.quiet.set()
        self.held.close()
        shutil.rmtree(self.worker["folder"], ignore_errors=True)
        self.storage.remove_session()
        self.storage.engine.dispose()

    def _trials(self, *states: str) -> list[FrozenTrial]:
        """Return trials in the given states; without any, all that count."""
        return [t for t in self.study.get_trials(deepcopy=False)
                if (t.state.name in states if states else t.state.name != "FAIL")]

    def _take_back(self) -> None:
        """Put dead workers' points back; of a grid, also those that got lost and, at first, all."""
        for trial in self._trials("RUNNING"):
            dead = self._dead(trial)
            if dead:
                self._put_back(trial.number)
            elif dead is False:                    # seen to live, however long ago its heart could beat
                self.storage.record_heartbeat(self._id(trial.number))
        optuna.storages.fail_stale_trials(self.study)
        if not self.trials:
            known = self._known()
            for values in product(*self.space.values()):
                if values not in known:
                    self._add(dict(zip(self.space, values)))

    def _claim(self) -> Trial | None:
        """Return a trial of this worker's own, running; None when none is left to take."""
        while True:
            known, waiting = self._trials(), self._trials("WAITING")
            if not waiting and len(known) >= self.wanted:
                return None
            # Asked only where no point waits: never of a grid, all of whose points were queued.
            self.study.sampler = optuna.samplers.TPESampler(
                seed=self._seed(len(known) - len(waiting)), multivariate=True, constant_liar=True)
            with warnings.catch_warnings(), suppress(optuna.exceptions.UpdateFinishedTrialError):
                warnings.simplefilter("ignore")    # the heartbeat is beaten here, not by Study.optimize
                trial = self.study.ask(self.choices)
                self.storage.record_heartbeat(self._id(trial.number))
                trial.set_user_attr("worker", self.worker)
                earlier = self._known(trial.number)
                if self._key(trial.params) not in earlier and len(earlier) < self.wanted:
                    return trial
                # TPE came back to a known point, or another worker was faster (several databases have no lock
                # around a look and a step): of several trials of a point only the first one counts.
                self._end(trial.number, "FAIL")
                if len(self._trials()) < self.wanted:
                    self._add(self._untried())

    def _untried(self) -> Point:
        """Return a point nobody has tried, drawn evenly."""
        known = self._known()
        draw = random.Random(self._seed(len(known)))
        while self._key(point := {key: draw.choice(values) for key, values in self.space.items()}) in known:
            pass
        return point

    def _seed(self, count: int) -> int:
        return zlib.crc32(f"{self.seed} {count}".encode())

    def _key(self, params: Point) -> tuple:
        return tuple(params.get(key) for key in self.space)

    def _known(self, before: float = float("inf")) -> set[tuple]:
        """Return the points of all trials that count and have a number below `before`."""
        return {self._key(t.params) for t in self._trials() if t.number < before}

    def _dead(self, trial: FrozenTrial) -> bool | None:
        """Return whether the worker of a running trial is dead; None where only its heartbeat can tell."""
        worker = trial.user_attrs.get("worker")
        if worker is None:                         # it died before it could sign, or is about to
            still = datetime.now() - trial.datetime_start > timedelta(seconds=storages.GRACE)
            return True if still or self.file is not None else None
        lock = Path(worker["folder"], ".lock")
        if worker == self.worker or worker["host"] != self.worker["host"] or not lock.is_file():
            return None
        try:
            runs.lock(lock.parent).close()
            return True if os.name == "posix" else None
        except EnvironmentFault:
            return False
        except OSError:                            # another user's
            return None

    def _put_back(self, number: int) -> None:
        if self._end(number, "FAIL"):
            storages.put_again(self.study, next(t for t in self.study.get_trials() if t.number == number))

    def _add(self, point: Point) -> None:
        self.study.add_trial(optuna.create_trial(state=optuna.trial.TrialState.WAITING, params=point,
                                                 distributions=self.choices))

    def _end(self, number: int, state: str, values: Sequence[float] | None = None,
             record: Mapping | None = None) -> bool:
        """Return whether this call ended the trial: not when it had ended before."""
        if self.current is not None and number == self.current.number:
            self.quiet.set()
            self.current = None
        try:
            if record is not None:
                self.storage.set_trial_user_attr(self._id(number), "record", dict(record))
            self.study.tell(number, values, state=optuna.trial.TrialState[state])
            return True
        except (ValueError, optuna.exceptions.UpdateFinishedTrialError):
            return False

    def _id(self, number: int) -> int:
        study = self.storage.get_study_id_from_name(self.study.study_name)
        return self.storage.get_trial_id_from_study_id_trial_number(study, number)

    def _keep_alive(self, number: int) -> None:
        """Beat the trial's heart from a thread until it is ended."""
        self.quiet, trial = threading.Event(), self._id(number)

        def beat(quiet: threading.Event) -> None:
            while not quiet.wait(storages.HEARTBEAT):
                with suppress(optuna.exceptions.StorageInternalError):     # the next one may get through
                    self.storage.record_heartbeat(trial)
            self.storage.remove_session()
        threading.Thread(target=beat, args=(self.quiet,), daemon=True).start()


def emptied(queue: Queue | None, tuner: "Tuner",
            work: Callable[[Point], tuple[dict, Sequence[float]]],
            named: Callable[[Point], dict] = dict) -> tuple[list[dict], list[dict]]:
    """Return the rows of a queue's points and those that failed, worked here or by others; close it.

    queue: None but in the first process, which the others follow. work: point -> row and values. named:
    point -> how the row of one that failed begins: NumericError is not tried again, it would end the same.
    """
    said: set[int] = set()

    def wait(running: int) -> None:
        tuner.interrupt.stop("stopped by a signal; the same command continues")
        if running not in said:
            said.add(running)
            tuner.say(f"waiting: other workers have {running} to finish")
    try:
        while (point := tuner.share(queue.take(wait) if queue else None)) is not None:
            try:
                row, values = work(point)
            except NumericError as error:
                row, values = {**named(point), "error": str(error)}, None
            if queue:
                queue.finish(values, row)
        rows = tuner.share(queue.records() if queue else None)
    except BaseException:
        if queue:
            queue.give_back()
        raise
    finally:
        if queue:
            queue.close()
    return [row for row in rows if "error" not in row], [row for row in rows if "error" in row]
