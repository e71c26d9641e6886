"""A script run in the test's own process."""
from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Sequence

import pytest
import torch

from utils import cli


def call(monkeypatch: pytest.MonkeyPatch, main: Callable[[], object], words: Sequence[object]) -> int:
    """The exit code of a script's `main` with these words (the script's name first) as its command line.

    The process's signals and threads are put back.
    """
    handlers = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    threads = torch.get_num_threads()
    monkeypatch.setattr(sys, "argv", list(map(str, words)))
    try:
        cli.run(main)
        return 0
    except SystemExit as end:
        return end.code
    finally:
        torch.set_num_threads(threads)
        for number, handler in handlers.items():
            signal.signal(number, handler)
