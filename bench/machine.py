"""What latencies depend on beside the network: facts of the machine, its counters, and reasons for distrust.

What cannot be read (in a virtual machine, outside Linux) is None and shown as unknown; it taints nothing.
"""
from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

LIBRARIES = ("torch", "torchvision", "numpy", "opencv-python-headless", "opencv-python", "onnxruntime",
             "onnxruntime-gpu", "openvino", "ncnn", "nncf", "onnx")
OURS = ("OMP_", "KMP_", "MKL_", "GOMP_", "OPENBLAS_", "ORT_", "TBB_", "CUDA_VISIBLE")
GPU = ("name", "driver_version", "clocks.sm", "clocks.max.sm", "temperature.gpu", "power.draw",
       "clocks_throttle_reasons.hw_thermal_slowdown", "clocks_throttle_reasons.sw_thermal_slowdown",
       "clocks_throttle_reasons.sw_power_cap")
OTHER_LOAD = 0.1                   # cores that other programs may keep busy on the cores we may use
STOLEN = 0.01                      # share of the time that a hypervisor may take away
JUMP = 1.0                         # seconds between two clocks: a clock that was set, or sleep
SPREAD, DRIFT = 0.15, 0.1          # quartiles' distance, and processes' medians, as shares of the median
SAMPLES, ROUNDS = 100, 3           # fewer calls or processes than these say little


def facts(root: Path = Path("/")) -> dict[str, object]:
    """The machine and its libraries as they are, beyond what runs.environment says; None: unknown.

    root: where proc and sys lie.
    """
    cpufreq = root / "sys/devices/system/cpu/cpu0/cpufreq"
    cpuinfo = _fields(root / "proc/cpuinfo")
    total = _fields(root / "proc/meminfo").get("MemTotal", "").split()
    slowest, fastest = (_text(cpufreq / f"scaling_{end}_freq") for end in ("min", "max"))
    return {"microcode": cpuinfo.get("microcode"), "affinity": cores(),
            "hypervisor": "hypervisor" in cpuinfo.get("flags", "").split() if cpuinfo else None,
            "governor": _text(cpufreq / "scaling_governor"),
            "mhz_limits": [int(slowest) // 1000, int(fastest) // 1000] if slowest and fastest else None,
            "ram_bytes": 1024 * int(total[0]) if total else None, "libc": " ".join(platform.libc_ver()),
            "kernel": platform.release(), "gpus": gpus(), "libraries": libraries(),
            "variables": {k: v for k, v in sorted(os.environ.items()) if k.startswith(OURS)}}


def cores() -> list[int]:
    """The numbers of the CPU cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def libraries() -> dict[str, str]:
    """Versions of the installed libraries that run networks and read pictures."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def gpus() -> list[dict[str, str]]:
    """What nvidia-smi says of each GPU now; empty without one."""
    if not shutil.which("nvidia-smi"):
        return []
    command = ["nvidia-smi", f"--query-gpu={','.join(GPU)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return []
    return [dict(zip(GPU, (cell.strip() for cell in line.split(",")))) for line in done.stdout.splitlines()]


def counters(root: Path = Path("/")) -> dict[str, object]:
    """Clocks and counters now; two of them tell what happened in between."""
    cpus = root / "sys/devices/system/cpu"
    throttled = [_text(path) for path in cpus.glob("cpu[0-9]*/thermal_throttle/*_throttle_count")]
    pages = _fields(root / "proc/vmstat", " ")
    power = [_text(path) for path in (root / "sys/class/power_supply").glob("BAT*/status")]
    load = _text(root / "proc/loadavg")
    return {"wall": time.time(), "monotonic": time.monotonic(), **_busy(root / "proc/stat"),
            "load": [float(v) for v in load.split()[:3]] if load else None,
            "mhz": _clock(root / "proc/cpuinfo"),
            "throttles": sum(int(v) for v in throttled if v) if throttled else None,
            "swapped": int(pages["pswpin"]) + int(pages["pswpout"]) if "pswpin" in pages else None,
            "battery": any(v == "Discharging" for v in power) if power else None, "gpus": gpus()}


def peak_memory() -> dict[str, int | None]:
    """The most memory this process has held so far, in bytes; None: unknown.

    Of this program, not of the one that started it, whose peak a process inherits in getrusage.
    """
    text = _fields(Path("/proc/self/status")).get("VmHWM", "").split()
    torch = sys.modules.get("torch")
    used = torch.cuda.max_memory_allocated() if torch and torch.cuda.is_initialized() else None
    return {"peak_rss_bytes": 1024 * int(text[0]) if text else None, "peak_gpu_bytes": used}


def machine_taints(machine: Mapping, before: Mapping, after: Mapping, own: float) -> list[str]:
    """Why times between two readings of `counters` deserve no trust; own: CPU seconds of our processes."""
    seconds = after["monotonic"] - before["monotonic"]
    out = []
    if _grew(before, after, "busy") is not None and seconds >= 1:  # the counter ticks every 10 ms
        others, stolen = _grew(before, after, "busy") - own, _grew(before, after, "stolen")
        if others > OTHER_LOAD * seconds:
            out.append(f"other programs kept {others / seconds:.2f} of the {len(machine['affinity'])} cores "
                       "busy that were used")
        if stolen > STOLEN * seconds * len(machine["affinity"]):
            out.append(f"the hypervisor took {stolen:.1f} s of CPU time away")
    limits = machine["mhz_limits"]
    if machine["governor"] not in (None, "performance") and not (limits and limits[0] == limits[1]):
        out.append(f"the CPU's clock follows the governor {machine['governor']}, not performance")
    if _grew(before, after, "throttles"):
        out.append(f"the CPU slowed down {_grew(before, after, 'throttles')} times against heat")
    if _grew(before, after, "swapped"):
        out.append(f"{_grew(before, after, 'swapped')} pages of memory went to or came from swap")
    if after["battery"]:
        out.append("the machine runs on its battery")
    if abs(jump := _grew(before, after, "wall") - seconds) > JUMP:
        out.append(f"the clock jumped by {jump:+.1f} s: it was set, or the machine slept")
    slowed = {key for gpu in after["gpus"] for key, value in gpu.items() if value == "Active"}
    return out + [f"the GPU slowed down: {key.rsplit('.', 1)[1]}" for key in sorted(slowed)]


def figure_taints(found: Mapping[str, Mapping]) -> list[str]:
    """Why the figures (bench_stats.figures, by what they are of) deserve no trust: a sentence a reason, with
    the worst of them."""
    drift = {who: (max(f["rounds"]) - min(f["rounds"])) / f["p50"] for who, f in found.items()}
    wide = f"the middle half of the calls spreads over more than {SPREAD:.0%} of the median"
    checks = (({who: f["n"] for who, f in found.items()}, lambda n: n < SAMPLES, min,
               f"fewer than {SAMPLES} calls", "{}"),
              ({who: len(f["rounds"]) for who, f in found.items()}, lambda n: n < ROUNDS, min,
               f"fewer than {ROUNDS} processes", "{}"),
              ({who: f["spread"] for who, f in found.items()}, lambda s: s > SPREAD, max, wide, "{:.0%}"),
              (drift, lambda d: d > DRIFT, max, f"processes' medians differ by more than {DRIFT:.0%}",
               "{:.0%}"))
    out = []
    for values, bad, worst, words, shape in checks:
        if hit := {who: value for who, value in values.items() if bad(value)}:
            who = worst(hit, key=hit.get)
            out.append(f"{words}, in {len(hit)} of {len(values)} figures; the worst is {who}: "
                       f"{shape.format(hit[who])}")
    return out


def _grew(before: Mapping, after: Mapping, key: str) -> float | None:
    """By how much a counter grew; None where it is unknown."""
    return None if before[key] is None or after[key] is None else after[key] - before[key]


def _busy(path: Path) -> dict[str, float | None]:
    """Seconds that the cores we may use worked, and that a hypervisor took from them, since the start."""
    text = _text(path)
    if not text:
        return {"busy": None, "stolen": None}
    wanted, busy, stolen = {f"cpu{n}" for n in cores()}, 0, 0
    for line in text.splitlines():
        name, *ticks = line.split()
        if name in wanted:
            user, nice, system, _, _, irq, soft, *more = map(int, ticks)
            busy, stolen = busy + user + nice + system + irq + soft, stolen + (more[0] if more else 0)
    rate = os.sysconf("SC_CLK_TCK")
    return {"busy": busy / rate, "stolen": stolen / rate}


def _clock(path: Path) -> list[int] | None:
    """MHz of every core now."""
    text = _text(path) or ""
    found = [int(float(line.split(":")[1])) for line in text.splitlines() if line.startswith("cpu MHz")]
    return found or None


def _fields(path: Path, mark: str = ":") -> dict[str, str]:
    """The first value of each key in a file of `key: value` lines."""
    found: dict[str, str] = {}
    for line in (_text(path) or "").splitlines():
        key, _, value = line.partition(mark)
        found.setdefault(key.strip(), value.strip())
    return found


def _text(path: Path) -> str | None:
    """A file's text without the blanks around it; None where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
