"""Every case in fresh processes that take turns, so that what slows the machine hits all alike."""
from __future__ import annotations

import math
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from statistics import median

from bench.bar import Bar
from bench.cases import SCOPES, STAGES, Case
from bench.machine import counters, machine_taints
from bench.process import Worker, WorkerFailed
from data.dataset import available_ram
from utils.errors import DataError, EnvironmentFault, ModelError, UsageError
from utils.runs import Interrupt

SCRIPT = Path(__file__).resolve().parent.parent / "benchmark.py"
SLICE = 0.5                        # seconds of a turn, at most
TURNS = (8, 40)                    # slices of a round, least and most
LOADING = 1800.0                   # seconds after which a process that loads is given up (compilers are slow)
NEEDED = 0.7e9                     # bytes a process may need; the memory is asked for before it starts
LOAD = ("import_seconds", "load_seconds", "first_ms", "warm_up_rounds", "warm_up_seconds")
KINDS = {2: UsageError, 3: DataError, 4: ModelError}       # by exit code; else EnvironmentFault
REFUSED = {2: "skipped", 5: "skipped"}     # exit codes of what cannot be done here; the others failed


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
        """Takes in a slice of round `number`."""
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
        self.status = "measured"


    def fail(self, error: WorkerFailed) -> None:
        """Notes why it cannot be measured: the process refused, which skips the case, or it broke."""
        self.reason, self.exit_code = str(error), error.exit_code
        self.status = REFUSED.get(error.exit_code, "failed")

    def words(self, number: int) -> str:
        """What round `number` gave, in a line."""
        if self.reason:
            return f"{self.case.label}: {self.status}: {self.reason}"
        found = ", ".join(f"{scope} p50 {median(ms for s in rounds[number] for ms in s):.2f} ms"
                          for scope, rounds in self.rounds.items() if len(rounds) > number)
        return f"{self.case.label}: {found}"


class Bench:
    """The cases of a benchmark, measured round by round; `taints` says why the figures deserve no trust.

    plan: which pictures are read, thresholds, scopes; it goes to every process as it is.
    """

    def __init__(self, args: Namespace, plan: dict, cases: Sequence[Case], machine: dict, folder: Path,
                 interrupt: Interrupt) -> None:
        self.args, self.plan, self.machine = args, plan, machine
        self.folder, self.interrupt = folder, interrupt
        self.taken = [Taken(case) for case in cases]
        self.taints: list[str] = []
        self.scopes = plan["scopes"]
        calls = math.ceil(args.iterations / args.rounds) if args.full else args.iterations or 0
        seconds = args.seconds / args.rounds if args.full else 0.0 if args.iterations else args.seconds
        self.turns = min(TURNS[1], max(TURNS[0], round(seconds / SLICE)))
        self.calls, self.slice = max(1, math.ceil(calls / self.turns)), seconds / self.turns

    def measured(self) -> list[Taken]:
        """The cases of which something was measured."""
        return [taken for taken in self.taken if taken.status == "measured"]

    def total(self) -> int:
        """How many turns all rounds have."""
        return self.turns * self.args.rounds * len(self.taken)

    def forecast(self) -> str:
        """What is to come, in a line; a process takes some ten seconds to be loaded and warm."""
        count = sum(taken.status == "waiting" for taken in self.taken)
        each, calls = len(self.scopes) * self.slice * self.turns, self.calls * self.turns
        minutes = self.args.rounds * count * (each + 10) / 60
        return (f"{count} cases, {self.args.rounds} round(s), at least {each:g} s and {calls} calls a scope "
                f"each: {max(1, round(minutes))} min or more")

    def run(self, bar: Bar) -> None:
        """Measures all rounds of all groups, then the accuracies that were asked for."""
        bar.say(self.forecast())
        for _, group in groupby(self.taken, key=lambda taken: taken.case.group):
            members = list(group)
            for number in range(self.args.rounds):
                alive = [taken for taken in members if taken.status in ("waiting", "measured")]
                turn = number % max(1, len(alive))
                self.round(alive[turn:] + alive[:turn], number, bar)
        if self.args.data:
            self.accuracies(bar)

    def round(self, members: list[Taken], number: int, bar: Bar) -> None:
        """One fresh process a case, loaded one after the other; then they take turns."""
        with ExitStack() as stack:
            workers = [(taken, worker) for taken in members if (worker := self.begin(taken, number, stack))]
            spent = {id(taken): taken.facts["cpu_seconds"] for taken, _ in workers}
            before, own = counters(), -time.process_time() - sum(spent.values())
            for turn in range(self.turns):
                at = turn % max(1, len(workers))
                for taken, worker in workers[at:] + workers[:at]:
                    if taken.status != "failed":
                        spent[id(taken)] = self.turn(taken, worker, number) or spent[id(taken)]
                    bar.step(f"round {number + 1}/{self.args.rounds}  {taken.case.label}")
            own += time.process_time() + sum(spent.values())
            self.taint([f"round {number + 1}: {reason}" for reason
                        in machine_taints(self.machine, before, counters(), own)])
        for taken, _ in workers:
            bar.say(f"round {number + 1}/{self.args.rounds}  {taken.words(number)}")

    def begin(self, taken: Taken, number: int, stack: ExitStack) -> Worker | None:
        """A process with the case loaded and warm; None where it cannot be, which the case then says.

        Raises DataError or ModelError where the pictures or the artifact are at fault: the user will want to
        know that at once.
        """
        try:
            worker = self.start(taken.case.threads, stack)
            answer = worker.ask({"do": "load", **self.plan, **vars(taken.case)}, LOADING, self.poll)
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
            self.taint([f"round {number + 1}: {taken.case.label}: not steady after "
                        f"{answer['warm_up_rounds']} rounds of warm-up"])
        return None if taken.status == "skipped" else worker

    def start(self, threads: int, stack: ExitStack) -> Worker:
        """A new process that ends with the stack. Raises EnvironmentFault where memory is short."""
        left = available_ram()
        if left < NEEDED:
            raise EnvironmentFault(f"{left / 1e9:.1f} GB of memory are left, too little for one more process "
                                   "beside the others: give fewer --weights, --runtimes or --precisions")
        variables = {"OMP_NUM_THREADS": str(threads)}
        worker = Worker([sys.executable, str(SCRIPT), "--worker"], variables, self.folder / "workers.log")
        stack.callback(worker.kill)
        return worker

    def settle(self, taken: Taken, answer: dict) -> None:
        """The case under the precision that is really run; skipped where another case is that already."""
        real = replace(taken.case, precision=answer["precision"], device=answer["device"])
        if any(other.case == real for other in self.taken if other is not taken):
            taken.status = "skipped"
            taken.reason = f"it runs in {real.precision} and would be measured twice" + \
                (f": {answer['note']}" if answer["note"] else "")
        else:
            taken.case = real

    def turn(self, taken: Taken, worker: Worker, number: int) -> float:
        """CPU seconds of the worker so far, after a slice of each scope; 0 where it died."""
        spent = 0.0
        for scope in self.scopes:
            limit = 60 + 20 * self.slice + 20 * self.calls * taken.facts["first_ms"] / 1e3
            try:
                answer = worker.ask({"do": "slice", "scope": scope, "seconds": self.slice,
                                     "calls": self.calls}, limit, self.poll)
            except WorkerFailed as error:
                taken.fail(error)
                return 0.0
            taken.add(scope, answer, number)
            spent = answer["cpu_seconds"]
        return spent

    def accuracies(self, bar: Bar) -> None:
        """AP of every artifact in its runtime and precision, once for each size."""
        known: dict[tuple, dict] = {}
        for taken in self.taken:
            case = taken.case
            key = case.weights, case.runtime, case.precision, case.imgsz
            if taken.status == "measured" and key not in known:
                bar.say(f"accuracy of {case.label}")
                with ExitStack() as stack:
                    try:
                        worker = self.start(case.threads, stack)
                        worker.ask({"do": "load", **self.plan, **vars(case)}, LOADING, self.poll)
                        known[key] = worker.ask({"do": "accuracy", "data": self.args.data}, math.inf,
                                                self.poll)
                    except WorkerFailed as error:
                        known[key] = {"fault": str(error), "exit_code": error.exit_code}
            taken.accuracy = known.get(key, {})

    def poll(self) -> None:
        """Raises Interrupted after a signal."""
        self.interrupt.stop("stopped by a signal; what was measured is saved")

    def taint(self, reasons: Sequence[str]) -> None:
        """Notes reasons for distrust."""
        self.taints += reasons
