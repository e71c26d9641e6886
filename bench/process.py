"""A process that answers JSON lines: started fresh, asked in turn, waited for without end only by choice."""
from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

POLL = 0.1                         # seconds between looks at a signal


class WorkerFailed(Exception):
    """A worker that refused, by the exit code its refusal has, or died or was silent too long (0)."""

    def __init__(self, message: str, exit_code: int = 0) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Worker:
    """One process; what it writes beside its answers goes into `log`.

    It is a session of its own, so that Ctrl-C reaches the parent alone. While it is not asked it waits for
    its standard input and takes no CPU time; when the parent is gone that input ends, and so does it.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self._log = log
        with log.open("ab") as errors:
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                             stderr=errors, text=True, encoding="utf-8",
                                             env={**os.environ, **environment}, start_new_session=True)
        self._answers: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._listen, name="worker", daemon=True).start()

    def _listen(self) -> None:
        """Runs in a thread: every line the process writes, then an empty one for its end."""
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put("")

    def ask(self, message: Mapping, seconds: float, poll: Callable[[], object]) -> dict:
        """The answer to a message; `poll` is called while waiting and may raise.

        Raises WorkerFailed where the process refuses, dies, or does not answer within `seconds`.
        """
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except OSError:                                    # it is gone; the queue tells how
            pass
        end = time.monotonic() + seconds
        while True:
            poll()
            try:
                line = self._answers.get(timeout=POLL)
                break
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
        """Ends the process, at once and surely."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._process.stdin.close()

    def _death(self) -> str:
        """How the process ended, with the last line it wrote."""
        code = self._process.wait()
        try:
            name = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        except ValueError:
            name = f"ended with code {code}"
        said = self._log.read_text(encoding="utf-8", errors="replace").strip()
        return f"the process {name}" + (f": {said.splitlines()[-1][:300]}" if said else "")
