"""Jobs that make run records, under a digest of their command: which are done or missing, running those."""
from __future__ import annotations

import hashlib
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from statistics import median_high
from typing import NamedTuple

from utils.errors import CodedError, Interrupted
from utils.runs import Interrupt, write_json

DONE, COLLECT, RESUME, RUN = "done", "to collect", "to resume", "to run"
BULKY = ("confusion", "classes")   # of an evaluation's figures: not needed in a table
FINDS_ITS_RUN = ("prune.py", "search.py")      # the same command resumes the same folder
POLL = 0.2                         # seconds between looks at a signal while a job runs


class Job(NamedTuple):
    """One command of the project."""

    name: str
    script: str
    flags: tuple[str, ...]                             # with places: {data}, {train-conv} (its product)
    outcome: str                                       # JSON in the run folder once it is done
    epochs: int = 0
    needs: tuple[str, ...] = ()
    product: str = ""
    also: str = ""                                     # a record made by hand that can stand in in a table
    content: str = ""                                  # what it depends on beside its flags


class Place(NamedTuple):
    """Where jobs run: the scripts' folder, the folder of records, that of runs, and the values of places."""

    root: Path
    records: Path
    runs: Path
    values: dict[str, str]


class JobFailed(CodedError):
    """A script of a job that ended with an error; the exit code is the script's."""


def digest(text: str) -> str:
    """Return the SHA-256 of a text, its first 8 hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()[:8]


class Plan:
    """The jobs of a profile at their place."""

    def __init__(self, jobs: Iterable[Job], place: Place) -> None:
        self.jobs, self.place = {job.name: job for job in jobs}, place

    def key(self, name: str) -> str:
        """Return a digest of the job's command and of those it builds on, wherever data and weights lie."""
        job = self.jobs[name]
        return digest(json.dumps([job.script, job.flags, job.content, [self.key(n) for n in job.needs]]))

    def folder(self, name: str) -> Path:
        """Return the job's run folder: the newest with an outcome, else the one it starts in."""
        base = f"{name}-{self.key(name)}"
        found = [p for p in self.place.runs.glob(f"{base}*") if (p / self.jobs[name].outcome).is_file()]
        return max(found, key=lambda p: p.stat().st_mtime, default=self.place.runs / base)

    def record(self, name: str) -> dict | None:
        """Return the job's record, whichever plan made it, or the one made by hand that stands in for it."""
        also = self.place.records.parent / f"{self.jobs[name].also}.json"
        paths = [path for path in (self.place.records / f"{name}.json", also) if path.is_file()]
        return json.loads(paths[0].read_text(encoding="utf-8")) if paths else None

    def records(self) -> dict[str, dict]:
        """Return every job's record that there is."""
        return {name: found for name in self.jobs if (found := self.record(name))}

    def state(self, name: str, product: bool = False) -> str:
        """Return DONE, COLLECT, RESUME or RUN; product: a job whose product is gone is not done."""
        job, folder, record = self.jobs[name], self.folder(name), self.record(name)
        if not product or not job.product or (folder / job.product).is_file():
            if record and record.get("key") == self.key(name):
                return DONE
            if (folder / job.outcome).is_file():
                return COLLECT
        cut_short = job.script == "train.py" and (folder / "weights" / "last.pt").is_file()
        return RESUME if cut_short else RUN

    def missing(self, names: Iterable[str]) -> list[tuple[Job, str]]:
        """Return what is left to do for these jobs, in order, with states."""
        left: dict[str, str] = {}

        def visit(name: str, product: bool) -> None:
            if (state := self.state(name, product)) != DONE:
                left[name] = state
                for need in self.jobs[name].needs:
                    visit(need, state != COLLECT)
        for name in names:
            visit(name, False)
        return [(job, left[job.name]) for job in self.jobs.values() if job.name in left]

    def command(self, name: str, state: str = RUN) -> list[str]:
        """Return the script and its flags, places filled in."""
        job = self.jobs[name]
        if state == RESUME:
            return [job.script, "--resume", str(self.folder(name))]
        products = {n: str(self.folder(n) / self.jobs[n].product) for n in job.needs}
        flags = [flag.format_map({**self.place.values, **products}) for flag in job.flags]
        own = () if job.script in FINDS_ITS_RUN else ("--exist-ok",)
        folder = ("--project", str(self.place.runs), "--name", f"{name}-{self.key(name)}")
        return [job.script, *flags, *folder, *own]

    def collect(self, name: str, seconds: float | None) -> None:
        """Write the record: the outcome, the network's records where there are any, key and wall time."""
        job, folder = self.jobs[name], self.folder(name)
        content = json.loads((folder / job.outcome).read_text(encoding="utf-8"))
        record = {key: value for key, value in content.items() if key not in BULKY}
        record |= {"job": name, "key": self.key(name), "job_epochs": job.epochs, "job_seconds": seconds}
        if (folder / "net.json").is_file():
            record["net"] = (folder / "net.json").read_text(encoding="utf-8")
        self.place.records.mkdir(parents=True, exist_ok=True)
        write_json(self.place.records / f"{name}.json", record)

    def run(self, names: Iterable[str]) -> int:
        """Run what is missing and return how many jobs that were. Raises Interrupted and JobFailed."""
        left, interrupt = self.missing(names), Interrupt()
        for at, (job, state) in enumerate(left, 1):
            seconds = None
            if state != COLLECT:
                command = self.command(job.name, state)
                print(f"[{at}/{len(left)}] {job.name}: {shlex.join(command)}", flush=True)
                began, fresh = time.monotonic(), not self.folder(job.name).exists()
                _run(job, self.place.root, command, interrupt)
                seconds = round(time.monotonic() - began, 1) if fresh else None
            if not (outcome := self.folder(job.name) / job.outcome).is_file():
                raise JobFailed(f"{job.name} ended well and left no {outcome}", 1)
            self.collect(job.name, seconds)
        return len(left)

    def rate(self) -> float | None:
        """Return seconds per epoch, the median over trainings that ran in one go; None before the first."""
        rates = [r["job_seconds"] / r["job_epochs"] for r in self.records().values()
                 if r.get("job_seconds") and r.get("job_epochs")]
        return median_high(rates) if rates else None


def _run(job: Job, root: Path, command: list[str], interrupt: Interrupt) -> None:
    """Run a script to its end; raise Interrupted or JobFailed, which say how to resume."""
    # A session of its own: a signal reaches it once, from here; a second would end it unsaved.
    child = subprocess.Popen([sys.executable, str(root / command[0]), *command[1:]], start_new_session=True)
    told = 0
    try:
        while (code := child.poll()) is None:
            if interrupt.signal != told:
                told = interrupt.signal
                child.send_signal(told)
            time.sleep(POLL)
    finally:
        if child.poll() is None:
            child.terminate()
    if interrupt.poll() or code in (130, 143):
        code = interrupt.code if interrupt.poll() else code
        raise Interrupted(f"stopped during {job.name}; the same command resumes it", code)
    if code:
        raise JobFailed(f"{job.name} ended with code {code}: {shlex.join(command)}; mend what it says and "
                        "give the same command again: what is done is not run twice",
                        code if 0 < code < 8 else 1)
