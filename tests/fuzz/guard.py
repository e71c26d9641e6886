"""What a fuzzed call may not do: run over 10 s, take 2 GiB, write outside its folder, end in other errors."""
from __future__ import annotations

import contextlib
import faulthandler
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

SECONDS, BYTES = 10, 2 * 2 ** 30


class Hang(BaseException):
    """A call that took too long; no handler of the project's catches it."""


WRITES = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate")


class Guard:
    """Watches calls in this process; `writes` lists what was written outside the folder `place`."""

    def __init__(self, folder: Path) -> None:
        self.place, self.writes, self._on = folder, list[str](), False
        self._inside = os.path.realpath(folder)
        sys.addaudithook(self._look)

    def _look(self, event: str, args: tuple) -> None:
        if not self._on or event not in WRITES:
            return
        path, flags = args[0], args[2] if event == "open" else os.O_WRONLY
        if not isinstance(path, str | bytes) or not (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return
        place = os.path.realpath(os.fsdecode(path))
        if not place.startswith((self._inside, "/dev/null", "/proc/")):
            self.writes.append(f"{event} {place}")

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Time and watch a block; Hang is raised in it, and 10 s later the process ends with a traceback."""
        def late(*_: object) -> None:
            raise Hang
        before, self._on = signal.signal(signal.SIGALRM, late), True
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        faulthandler.dump_traceback_later(2 * SECONDS, exit=True, file=sys.__stderr__)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
            self._on = False

    def fault(self, call: Callable[[], object]) -> str:
        """What a call did that it must not, as text; "" when it ended well or in the project's own error."""
        self.writes.clear()
        try:
            with self.watching():
                call()
        except Hang:
            return f"a hang over {SECONDS} s\n{traceback.format_exc()}"
        except Exception as error:
            # utils.cli.run makes a sentence of what the system says
            system = isinstance(error, OSError) and not isinstance(error, TimeoutError)
            if not (system or isinstance(getattr(error, "exit_code", None), int)):
                return traceback.format_exc()
        return f"writes outside its folder: {self.writes[:5]}" if self.writes else ""


def limit_memory() -> None:
    """Let this process grow by 2 GiB from here on: what asks for more gets a MemoryError."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limit = pages * resource.getpagesize() + BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))


def peak() -> float:
    """The most memory this process has held so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
