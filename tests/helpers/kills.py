"""A command killed by SIGKILL again and again, at other moments each time: it comes to the same answer."""
from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

KILLS = int(os.environ.get("KILLS", "0"))          # how many instead of a test's own number


def killed_often(command: Callable[[str], list[str]], folder: Path, check: Callable[[str], None], kills: int,
                 root: Path, seconds: tuple[float, float]) -> list[str]:
    """The runs that were brought to their end, each compared by `check` with what nobody disturbed.

    command: run's name -> words after `python`; folder: where its run folder lies. The same command is
    started until it has been killed `kills` times in all, `seconds` (least, most) after its start; a run that
    ends sooner, or had written its result when it was killed, is checked and the next begun. The last one is
    left alone until it ends. The moments are new at every call.
    """
    rng, names, left = random.Random(), ["killed-1-"], kills
    said = ""
    while True:
        process = subprocess.Popen([sys.executable, *command(names[-1])], cwd=root, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.PIPE, text=True,
                                   env={**os.environ, "OMP_NUM_THREADS": "1"})
        try:
            _, said = process.communicate(timeout=rng.uniform(*seconds) if left else 300)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            left -= 1
            if not (folder / names[-1] / "result.json").is_file():
                continue
        if process.returncode not in (0, -signal.SIGKILL):
            raise RuntimeError(f"{names[-1]} ended with {process.returncode} after "
                               f"{kills - left} kills: {said[-2000:]}")
        check(names[-1])
        if not left:
            return names
        names.append(f"killed-{len(names) + 1}-")
