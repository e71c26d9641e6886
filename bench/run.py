"""Every case in fresh processes that take turns, so that what slows the machine hits all alike."""
from __future__ import annotations

import json
import math
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from statistics import median

from tqdm import tqdm

from bench.cases import SCOPES, STAGES, Case, Config
from bench.machine import counters, machine_taints
from data.dataset import available_ram
from utils.errors import CodedError, DataError, EnvironmentFault, ModelError, UsageError

SCRIPT = Path(__file__).resolve().parent.parent / "benchmark.py"
POLL = 0.1                         # seconds between looks at a signal
SLICE = 0.5                        # seconds of a turn, at most
TURNS = (8, 40)                    # slices of a round, least and most
LOADING = 1800.0                   # seconds after which a process that loads is given up (compilers are slow)
NEEDED = 0.7e9                     # bytes a process may need; the memory is asked for before it starts
LOAD = ("import_seconds", "load_seconds", "first_ms", "warm_up_rounds", "warm_up_seconds")
KINDS = {2: UsageError, 3: DataError, 4: ModelError}       # by exit code; else EnvironmentFault


class WorkerFailed(CodedError):
    """A worker that reported an error, with its exit code, or died or was silent too long (0)."""


class Worker:
    """A process that answers JSON lines and knows no Ctrl-C; what else it writes goes into `log`."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self._log = log
        with log.open("ab") as errors:
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                             stderr=errors, text=True, encoding="utf-8",
                                             env={**os.environ, **environment}, start_new_session=True)
        self._answers: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._listen, name="worker", daemon=True).start()

    def _listen(self) -> None:
        with self._process.stdout as answers:
            for line in answers:
                self._answers.put(line)
        self._answers.put("")                              # its end

    def ask(self, message: Mapping, seconds: float, poll: Callable[[], object]) -> dict:
        """Return the answer; `poll` may raise. Raises WorkerFailed for an error, death or silence."""
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except OSError:                                    # it is gone; the queue tells how
            pass
        end, line = time.monotonic() + seconds, None
        while line is None:
            poll()
            try:
                line = self._answers.get(timeout=POLL)
            except queue.Empty:
                if time.monotonic() > end:
                    self.kill()
                    raise WorkerFailed(f"no answer within {seconds:.0f} s") from None
        if not line:
            raise WorkerFailed(self._death())
        answer = json.loads(line)
        if "error" in answer:
            self.kill()
            raise WorkerFailed(answer["error"], answer["exit_code"])
        return answer

    def kill(self) -> None:
        """End the process, at once and surely."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._process.stdin.close()

    def _death(self) -> str:
        """How the process ended, with the last line it wrote."""
        code = self._process.wait()
        known = {-number.value: f"was killed by {number.name}" for number in signal.Signals}
        said = self._log.read_text(encoding="utf-8", errors="replace").strip()
        return (f"the process {known.get(code, f'ended with code {code}')}"
                + (f": {said.splitlines()[-1][:300]}" if said else ""))


@dataclass
class Taken:
    """A case and what was measured of it; status: waiting, measured, skipped or failed, with the reason."""

    case: Case
    status: str = "waiting"
    reason: str = ""
    exit_code: int = 0
    facts: dict = field(default_factory=dict)
    rounds: dict[str, list[list[list[float]]]] = field(default_factory=dict)
    stages: dict[str, list[float]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    accuracy: dict = field(default_factory=dict)

    def add(self, scope: str, answer: dict, number: int) -> None:
        """Take in a slice of round `number`."""
        times = answer["times"]
        if scope == SCOPES[1]:
            for stage, column in zip(STAGES, zip(*times)):
                self.stages.setdefault(stage, []).extend(column)
            times = [sum(parts) for parts in times]
        rounds = self.rounds.setdefault(scope, [])
        rounds.extend([] for _ in range(number + 1 - len(rounds)))
        rounds[number].append(times)
        self.seconds[scope] = self.seconds.get(scope, 0.0) + answer["seconds"]
        for key in ("peak_rss_bytes", "peak_gpu_bytes"):
            self.facts[key] = max(self.facts.get(key) or 0, answer[key] or 0) or None
        self.facts["cpu_seconds"], self.status = answer["cpu_seconds"], "measured"

    @property
    def alive(self) -> bool:
        """Whether it is to be measured further."""
        return self.status in ("waiting", "measured")

    def fail(self, error: WorkerFailed) -> None:
        """Note why it cannot be measured: skipped where that cannot be done here (2, 5), else failed."""
        self.reason, self.exit_code = str(error), error.exit_code
        self.status = "skipped" if error.exit_code in (2, 5) else "failed"


class Bench:
    """The cases of a benchmark, measured round by round; `taints` says why to distrust; plan: plan_of."""

    def __init__(self, config: Config, plan: dict, cases: Sequence[Case], machine: dict, folder: Path,
                 poll: Callable[[], object]) -> None:
        self.config, self.plan, self.machine, self.folder, self.poll = config, plan, machine, folder, poll
        self.taken, self.taints = [Taken(case) for case in cases], []
        calls, seconds = config.iterations or 0, 0.0 if config.iterations else config.seconds
        if config.full:                                    # over all rounds, and both at least
            calls, seconds = math.ceil(calls / config.rounds), config.seconds / config.rounds
        self.turns = min(TURNS[1], max(TURNS[0], round(seconds / SLICE)))
        self.calls, self.slice = max(1, math.ceil(calls / self.turns)), seconds / self.turns

    def measured(self) -> list[Taken]:
        """Return the cases of which something was measured."""
        return [taken for taken in self.taken if taken.status == "measured"]

    def run(self) -> None:
        """Measure all rounds of all groups, then the accuracies that were asked for."""
        count, rounds = sum(taken.alive for taken in self.taken), self.config.rounds
        each = len(self.plan["scopes"]) * self.slice * self.turns
        minutes = max(1, round(rounds * count * (each + 10) / 60))     # some 10 s until a process is warm
        say(f"{count} cases, {rounds} round(s), at least {each:g} s and {self.calls * self.turns} calls a "
            f"scope each: {minutes} min or more")
        with tqdm(total=self.turns * rounds * len(self.taken), unit="turn", leave=False, dynamic_ncols=True,
                  disable=None) as bar:
            for _, group in groupby(self.taken, key=lambda taken: taken.case.group):
                members = list(group)
                for number in range(rounds):
                    alive = [taken for taken in members if taken.alive]
                    turn = number % max(1, len(alive))
                    self.round(alive[turn:] + alive[:turn], number, bar)
        if self.config.data:
            self.accuracies()

    def round(self, members: list[Taken], number: int, bar: tqdm) -> None:
        """Load one fresh process per case, one after the other; then let them take turns."""
        title = f"round {number + 1}/{self.config.rounds}  "
        with ExitStack() as stack:
            workers = [(taken, worker) for taken in members if (worker := self.begin(taken, number, stack))]

            def spent() -> float:
                return time.process_time() + sum(taken.facts["cpu_seconds"] for taken, _ in workers)
            before, began = counters(), spent()
            for turn in range(self.turns):
                at = turn % max(1, len(workers))
                for taken, worker in workers[at:] + workers[:at]:
                    if taken.alive:
                        self.turn(taken, worker, number)
                    bar.set_description_str(title + taken.case.label, refresh=False)
                    bar.update()
            self.taints += [f"round {number + 1}: {reason}" for reason
                            in machine_taints(self.machine, before, counters(), spent() - began)]
        for taken, _ in workers:
            found = ", ".join(f"{scope} p50 {median(ms for s in rounds[number] for ms in s):.2f} ms"
                              for scope, rounds in taken.rounds.items() if len(rounds) > number)
            say(f"{title}{taken.case.label}: {f'{taken.status}: {taken.reason}' if taken.reason else found}")

    def begin(self, taken: Taken, number: int, stack: ExitStack) -> Worker | None:
        """Return the case's process; None where it failed; raise DataError or ModelError in round 0."""
        try:
            worker, answer = self.start(taken.case, "load", stack)
        except WorkerFailed as error:
            taken.fail(error)
            if error.exit_code in (3, 4) and not number:
                raise KINDS[error.exit_code](f"{taken.case.label}: {error}") from None
            return None
        if not number:
            self.settle(taken, answer)
        load = {key: answer[key] for key in LOAD}
        taken.facts = {**taken.facts, **answer, "loads": [*taken.facts.get("loads", []), load]}
        if not answer["steady"]:
            self.taints.append(f"round {number + 1}: {taken.case.label}: not steady after "
                               f"{answer['warm_up_rounds']} rounds of warm-up")
        return None if taken.status == "skipped" else worker

    def start(self, case: Case, do: str, stack: ExitStack) -> tuple[Worker, dict]:
        """Return a process that ends with the stack, and its answer. Raises EnvironmentFault for memory."""
        left = available_ram()
        if left < NEEDED:
            raise EnvironmentFault(f"{left / 1e9:.1f} GB of memory are left, too little for one more process "
                                   "beside the others: give fewer --weights, --runtimes or --precisions")
        worker = Worker([sys.executable, str(SCRIPT), "--worker"], {"OMP_NUM_THREADS": str(case.threads)},
                        self.folder / "workers.log")
        stack.callback(worker.kill)
        return worker, worker.ask({"do": do, **self.plan, **vars(case)}, LOADING, self.poll)

    def settle(self, taken: Taken, answer: dict) -> None:
        """Call the case by the precision that is really run; skip it where another case is that already."""
        real = replace(taken.case, precision=answer["precision"], device=answer["device"])
        if any(other.case == real for other in self.taken if other is not taken):
            why = [f"it runs in {real.precision} and would be measured twice", answer["note"]]
            taken.status, taken.reason = "skipped", ": ".join(filter(None, why))
        else:
            taken.case = real

    def turn(self, taken: Taken, worker: Worker, number: int) -> None:
        """Measure a slice of each scope, or note why that failed."""
        limit = 60 + 20 * self.slice + 20 * self.calls * taken.facts["first_ms"] / 1e3
        order = {"do": "slice", "seconds": self.slice, "calls": self.calls}
        try:
            for scope in self.plan["scopes"]:
                taken.add(scope, worker.ask({**order, "scope": scope}, limit, self.poll), number)
        except WorkerFailed as error:
            taken.fail(error)

    def accuracies(self) -> None:
        """Measure the AP of every artifact in its runtime and precision, once for each size."""
        known: dict[Case, dict] = {}
        for taken in self.measured():
            artifact = replace(taken.case, threads=0, batch=0)
            if artifact not in known:
                say(f"accuracy of {taken.case.label}")
                with ExitStack() as stack:
                    try:
                        worker, _ = self.start(taken.case, "load", stack)
                        known[artifact] = worker.ask({"do": "accuracy", "data": [
                            self.config.data, self.config.val_split, self.config.seed]}, math.inf, self.poll)
                    except WorkerFailed as error:
                        known[artifact] = {"fault": str(error), "exit_code": error.exit_code}
            taken.accuracy = known[artifact]


def say(text: str) -> None:
    """Print a line that stays; a progress bar makes way for it."""
    tqdm.write(text)
    sys.stdout.flush()
