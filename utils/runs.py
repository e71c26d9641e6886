"""A run's folder, logs, device, precision, signals and machine: what every script needs around its work."""
from __future__ import annotations

import ctypes
import gc
import io
import json
import math
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from utils.errors import DataError, EnvironmentFault, Interrupted, UsageError
from utils.optional import needs
from utils.redact import masked

if TYPE_CHECKING:
    import torch


STARTED = time.monotonic()                         # scripts import this file before anything heavy


def make_run_folder(project: str | Path, name: str, exist_ok: bool = False, own: str = "",
                    writes: Sequence[str] = ()) -> Path:
    """Make and return folder project/name, name2, name3, ... (or project/name itself with exist_ok).

    One that is there must be this script's: its args.json has `own`, a flag that no other script has, or it
    has no args.json and none of the files `writes`. Raises UsageError, EnvironmentFault.
    """
    base = Path(project)
    for at in range(1, 100_000):
        folder = base / (name if at == 1 else f"{name}{at}")
        try:
            if exist_ok and own and folder.is_dir():
                _check_own(folder, own, writes)
            folder.mkdir(parents=True, exist_ok=exist_ok)
            return folder
        except FileExistsError:
            if exist_ok or not folder.is_dir():
                raise UsageError(f"{folder} exists and is not a folder; choose another --name") from None
        except NotADirectoryError:
            raise UsageError(f"{base} is not a folder; choose another --project") from None
        except PermissionError as error:
            raise EnvironmentFault(f"cannot create {folder}: {error.strerror}; "
                                   "choose another --project") from None
    raise UsageError(f"{base} holds too many runs named {name}; choose another --name")


def _check_own(folder: Path, own: str, writes: Sequence[str]) -> None:
    """Raise UsageError where a folder is another script's, or holds a file in `writes` that no run wrote."""
    foreign = [name for name in writes if (folder / name).exists()]
    if (folder / "args.json").is_file():
        with suppress(DataError):
            foreign = [] if own in read_object(folder / "args.json") else ["args.json"]
    if foreign:
        raise UsageError(f"--exist-ok: {folder} holds {foreign[0]}, which no such run wrote; choose another "
                         "--name, or move what is there")


def run_folders(project: str | Path, name: str) -> list[Path]:
    """Return those of the folders project/name, name2, name3, ... that exist, in that order."""
    base = Path(project) / name
    rests = {path: path.name.removeprefix(base.name) for path in base.parent.glob("*")
             if path.name.startswith(base.name)}
    numbers = {path: int(rest or 1) for path, rest in rests.items() if not rest or rest.isdecimal()}
    return sorted(filter(Path.is_dir, numbers), key=numbers.get)


def lock(folder: Path) -> io.TextIOBase:
    """Return an open lock file in the folder; raise EnvironmentFault where another process holds it."""
    file = open(folder / ".lock", "a+")
    try:
        import fcntl
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)   # unlike flock's, not inherited by loader processes
    except ImportError:                                    # no such locks outside POSIX
        return file
    except OSError:
        file.close()
        raise EnvironmentFault(f"another process is writing into {folder}; wait for it, "
                               "or choose another --name") from None
    return file


@contextmanager
def run_folder(project: str | Path, name: str, exist_ok: bool, begun: Callable[[], bool]) -> Iterator[Path]:
    """Give make_run_folder's folder, locked; remove a new one where the block raises before `begun()`."""
    before = exist_ok and (Path(project) / name).exists()
    folder = make_run_folder(project, name, exist_ok)
    with lock(folder):
        try:
            yield folder
        except BaseException:
            if not (before or begun()):
                shutil.rmtree(folder, ignore_errors=True)
            raise


def write_json(path: Path, value: object) -> None:
    """Write JSON whole or not at all; numbers that JSON does not have (infinite, not a number) as null."""
    write_text(path, json.dumps(_finite(value), indent=1, ensure_ascii=False, default=str, allow_nan=False)
               + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    part = path.with_suffix(path.suffix + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def save_record(name: str, record: dict) -> Path:
    """Write results/NAME.json, which pages and tables are filled from; return its path."""
    path = Path("results") / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    write_json(path, record)
    return path


def _finite(value: object) -> object:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_object(path: Path) -> dict:
    """Return the JSON object in a file. Raises DataError where it is torn, empty or no object."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}); it was torn or changed: restore it, "
                        "or start again under another --name") from None
    if not isinstance(found, dict):
        raise DataError(f"{path} holds a {type(found).__name__} where an object is needed")
    return found


def read_record(flag: str, path: Path, kind: str) -> dict:
    """Return the record {"kind": kind, ...} that `flag` named. Raises DataError where the file is none."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{flag} {path} cannot be read: {error}") from None
    if not isinstance(record, dict) or record.get("kind") != kind:
        raise DataError(f"{flag} {path} is no record of a {kind}; give a {kind}'s JSON")
    return record


class Interrupt:
    """Remembers SIGINT, SIGTERM and SIGUSR1, so that work stops at a step's end; a second ends at once."""

    def __init__(self) -> None:
        self.signal = 0
        for number in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGUSR1", signal.SIGTERM)):
            signal.signal(number, self._remember)

    def _remember(self, number: int, frame: object) -> None:
        if self.signal:
            os._exit(128 + number)
        self.signal = number

    @property
    def code(self) -> int:
        """Return the exit code that tells of the signal: 130 or 143."""
        return 130 if self.signal == signal.SIGINT else 143

    def poll(self) -> bool:
        """Return whether a signal has arrived."""
        return bool(self.signal)

    def stop(self, what: str = "interrupted") -> None:
        """Raise Interrupted when a signal has arrived; for work that has nothing to save."""
        if self.signal:
            raise Interrupted(what, self.code)


class Device(NamedTuple):
    """Where an exported file runs, in torch.device's words."""

    type: str
    index: int | None = None

    @classmethod
    def of(cls, text: str) -> Device:
        """Return the device of cpu, cuda or cuda:1; raise ValueError for others."""
        match = re.fullmatch(r"(cpu|cuda)(?::(\d+))?", text)
        if match is None:
            raise ValueError(text)
        return cls(match[1], int(match[2]) if match[2] else None)

    def __str__(self) -> str:
        return self.type if self.index is None else f"{self.type}:{self.index}"


def pick_device(name: str, with_torch: bool = True) -> torch.device | Device:
    """Return the device of auto, cpu, cuda, cuda:1 or 1; raise EnvironmentFault where it is not there.

    with_torch: as torch sees it; else torch is not loaded, and the driver is asked.
    """
    if with_torch:
        torch = needs("torch", "to run checkpoints and to train")
        make, count = torch.device, torch.cuda.device_count() if torch.cuda.is_available() else 0
    else:
        make, count = Device.of, cuda_devices()
    if name == "auto":
        return make("cuda:0" if count else "cpu")           # torch.cuda.set_device asks for an index
    try:
        device = make(f"cuda:{name}" if name.isdigit() else "cuda:0" if name == "cuda" else name)
    except (RuntimeError, ValueError):
        raise UsageError(f"--device {name}: needs auto, cpu, cuda or a CUDA index such as 0") from None
    if device.type == "cuda":
        if device.index >= count:
            raise EnvironmentFault(f"--device {name}: {count} CUDA devices are available here; "
                                   "use --device cpu")
    return device


def cuda_devices() -> int:
    """Return how many CUDA devices the driver has; 0 without one."""
    count = ctypes.c_int(0)
    with suppress(OSError):
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
            return 0
    return count.value


def own_threads() -> int:
    """Return the threads of a network where none are given: OMP_NUM_THREADS, else the cores we may use."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdigit() and int(given) else len(cores())


def cores() -> list[int]:
    """Return the numbers of the cores this process may run on."""
    has = hasattr(os, "sched_getaffinity")
    return sorted(os.sched_getaffinity(0)) if has else list(range(os.cpu_count() or 1))


def native_bf16() -> bool:
    """Return whether this CPU multiplies bf16 in hardware (AVX512-BF16, AMX or Arm's BF16 extension)."""
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(cpu_flags())


def cpu_flags() -> set[str]:
    """Return the names of what this CPU can do, as Linux has them; none where it does not say."""
    lines = (line for line in _cpuinfo() if line.startswith(("flags", "Features")))
    return set(next(lines, "").partition(":")[2].split())


def pick_precision(device: torch.device, asked: str = "auto") -> tuple[str, str]:
    """Return the precision to run in (fp32, bf16, fp16) and a sentence when it is not what was asked for."""
    half = "fp16" if device.type == "cuda" else "bf16" if native_bf16() else "fp32"
    if asked in ("auto", "half"):
        note = "this CPU has no native bf16: half precision would be slower, continuing in fp32"
        return half, note if asked == "half" and half == "fp32" else ""
    if asked == "fp16" and device.type == "cpu":
        return half, f"fp16 on a CPU is slower than fp32; continuing in {half}"
    return asked, ""


def tune_cpu(threads: int = 0) -> None:
    """Set the network's CPU threads, and keep freed memory in the process: training is 1.5x as fast."""
    if threads:
        import torch
        torch.set_num_threads(threads)
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):            # another C library
            libc = ctypes.CDLL("libc.so.6")
            libc.mallopt(-4, 0)                            # M_MMAP_MAX: no block by mmap
            libc.mallopt(-1, 2 ** 31 - 1)                  # M_TRIM_THRESHOLD: give nothing back
            libc.mallopt(-8, 1)                            # M_ARENA_MAX: threads' own heaps are given back


@contextmanager
def importing() -> Iterator[None]:
    """Look for no garbage within the block, a fifth of torch's import, nor later among what it made."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def tune_memory() -> None:
    """Have freed memory go back to the system at once. For a runtime that keeps its own: ONNX Runtime.

    A 1080p video drawn by micro-yolo-fast: at most 235 MB resident in place of 264, as fast.
    """
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):            # another C library
            libc = ctypes.CDLL("libc.so.6")
            libc.mallopt(-3, 1_000_000)                    # M_MMAP_THRESHOLD: images by mmap
            libc.mallopt(-1, 1_000_000)                    # M_TRIM_THRESHOLD
            libc.mallopt(-8, 1)                            # M_ARENA_MAX: no heap of its own for each thread


def environment() -> dict[str, object]:
    """Return command, commit, machine, versions and date, for every JSON of figures."""
    torch = sys.modules.get("torch")                       # what was not used is not loaded for its version
    root = Path(__file__).resolve().parent.parent

    def git(*words: str) -> str:
        with suppress(OSError, subprocess.CalledProcessError):         # no git, or no repository
            return subprocess.check_output(["git", "-C", str(root), *words], text=True,
                                           stderr=subprocess.DEVNULL).strip()
        return ""
    cpu = next((line.split(":", 1)[1].strip() for line in _cpuinfo() if line.startswith("model name")),
               platform.processor())
    dirty = "+" if git("status", "--porcelain", "-uno") else ""
    return {"command": " ".join(masked(word) for word in (Path(sys.argv[0]).name, *sys.argv[1:])),
            "commit": git("rev-parse", "--short", "HEAD") + dirty,
            "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
            "cpu": cpu, "cores": os.cpu_count(),
            "gpu": torch.cuda.get_device_name(0) if torch and torch.cuda.is_available() else "",
            "threads": torch.get_num_threads() if torch else own_threads(),
            "torch": str(torch.__version__) if torch else "",
            "python": platform.python_version(), "system": platform.system()}


def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
