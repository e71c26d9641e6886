"""Runs cut short, at other moments each time, and the same answer all the same, bit for bit."""
from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from models.checkpoint import Checkpoint

KILLS = int(os.environ.get("KILLS", "0"))          # how many instead of a test's own number


def moments() -> random.Random:
    """Return a source of random moments, new at every call; KILL_SEED in the environment repeats them.

    The seed is printed, so that pytest shows it with a test that fails.
    """
    seed = int(os.environ.get("KILL_SEED") or random.SystemRandom().randrange(2 ** 31))
    print(f"KILL_SEED={seed}")
    return random.Random(seed)


def killed_often(command: Callable[[str], list[str]], folder: Path, check: Callable[[str], None], kills: int,
                 root: Path, seconds: tuple[float, float]) -> list[str]:
    """Return the runs that were brought to their end, each compared by `check` with what nobody disturbed.

    command: run's name -> words after `python`; folder: where its run folder lies. The same command is
    started until it has been killed `kills` times in all, `seconds` (least, most) after its start; a run that
    ends sooner, or had written its result when it was killed, is checked and the next begun. The last one is
    left alone until it ends. Raises RuntimeError where a run fails, or so many end that no kill is likely.
    """
    rng, names, left = moments(), ["killed-1-"], kills
    said = ""
    while len(names) <= 10 + 3 * kills:
        after = rng.uniform(*seconds) if left else 300
        process = subprocess.Popen([sys.executable, *command(names[-1])], cwd=root, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.PIPE, text=True,
                                   env={**os.environ, "OMP_NUM_THREADS": "1"})
        try:
            _, said = process.communicate(timeout=after)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            left -= 1
            print(f"{names[-1]} was killed {after:.2f} s after its start")
            if not (folder / names[-1] / "result.json").is_file():
                continue
        if process.returncode not in (0, -signal.SIGKILL):
            raise RuntimeError(f"{names[-1]} ended with {process.returncode} after "
                               f"{kills - left} kills: {said[-2000:]}")
        check(names[-1])
        if not left:
            return names
        names.append(f"killed-{len(names) + 1}-")
    raise RuntimeError(f"{len(names) - 1} runs ended and {kills - left} of {kills} kills happened: moments "
                       f"within {seconds} s are too late for this machine")


def same_bits(a: object, b: object, path: str = "") -> list[str]:
    """Where two nested values differ."""
    if isinstance(a, dict):
        alone = [f"{path}/{k}" for k in a.keys() ^ b.keys()]
        return alone + [d for k in a.keys() & b.keys() for d in same_bits(a[k], b[k], f"{path}/{k}")]
    if isinstance(a, (list, tuple)):
        found = [d for i, (x, y) in enumerate(zip(a, b)) for d in same_bits(x, y, f"{path}/{i}")]
        return found + [path] * (len(a) != len(b))
    equal = torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
    return [] if equal else [path]


def assert_same_run(a: Checkpoint, b: Checkpoint) -> None:
    """Fail where two last.pt differ in a bit of their weights or of what resuming needs."""
    for part in ("state", "training"):
        assert not (found := same_bits(getattr(a, part), getattr(b, part))), f"{part} differs at {found[:5]}"
