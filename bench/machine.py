"""Facts of the machine that latencies depend on, its counters, and reasons for distrust; None is unknown."""
from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib.metadata import distributions
from pathlib import Path

from utils.runs import cores

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
    """Return the machine and its libraries, beyond runs.environment; None: unknown. root: of proc and sys."""
    cpufreq = root / "sys/devices/system/cpu/cpu0/cpufreq"
    cpuinfo = _fields(root / "proc/cpuinfo")
    total = _fields(root / "proc/meminfo").get("MemTotal", "").split()
    slowest, fastest = (_text(cpufreq / f"scaling_{end}_freq") for end in ("min", "max"))
    installed = {found.name: found.version for found in distributions()}
    return {"microcode": cpuinfo.get("microcode"), "affinity": cores(),
            "hypervisor": "hypervisor" in cpuinfo.get("flags", "").split() if cpuinfo else None,
            "governor": _text(cpufreq / "scaling_governor") or None,
            "mhz_limits": [int(slowest) // 1000, int(fastest) // 1000] if slowest and fastest else None,
            "ram_bytes": 1024 * int(total[0]) if total else None, "libc": " ".join(platform.libc_ver()),
            "kernel": platform.release(), "gpus": gpus(),
            "libraries": {name: installed[name] for name in LIBRARIES if name in installed},
            "variables": {k: v for k, v in sorted(os.environ.items()) if k.startswith(OURS)}}


def gpus() -> list[dict[str, str]]:
    """Return what nvidia-smi says of each GPU now; empty without one."""
    command = ["nvidia-smi", f"--query-gpu={','.join(GPU)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return []
    return [dict(zip(GPU, (cell.strip() for cell in line.split(",")))) for line in done.stdout.splitlines()]


def counters(root: Path = Path("/")) -> dict[str, object]:
    """Return clocks and counters now; two readings tell what happened in between."""
    cpus = root / "sys/devices/system/cpu"
    throttled = [_text(path) for path in cpus.glob("cpu[0-9]*/thermal_throttle/*_throttle_count")]
    pages = _fields(root / "proc/vmstat", " ")
    power = [_text(path) for path in (root / "sys/class/power_supply").glob("BAT*/status")]
    mhz = [int(float(line.split(":")[1])) for line in _text(root / "proc/cpuinfo").splitlines()
           if line.startswith("cpu MHz")]
    return {"wall": time.time(), "monotonic": time.monotonic(), **_busy(_text(root / "proc/stat")),
            "load": [float(v) for v in _text(root / "proc/loadavg").split()[:3]] or None, "mhz": mhz or None,
            "throttles": sum(int(v) for v in throttled if v) if throttled else None,
            "swapped": int(pages["pswpin"]) + int(pages["pswpout"]) if "pswpin" in pages else None,
            "battery": any(v == "Discharging" for v in power) if power else None, "gpus": gpus()}


def peak_memory() -> dict[str, int | None]:
    """Return the most memory this process has held so far, in bytes; None: unknown."""
    # Not by getrusage, in which a process inherits the peak of the one that started it.
    text = _fields(Path("/proc/self/status")).get("VmHWM", "").split()
    torch = sys.modules.get("torch")
    used = torch.cuda.max_memory_allocated() if torch and torch.cuda.is_initialized() else None
    return {"peak_rss_bytes": 1024 * int(text[0]) if text else None, "peak_gpu_bytes": used}


def machine_taints(machine: Mapping, before: Mapping, after: Mapping, own: float) -> list[str]:
    """Return why times between two readings of `counters` deserve no trust; own: our CPU seconds."""
    grew = {key: None if None in (before[key], after[key]) else after[key] - before[key]
            for key in ("monotonic", "wall", "busy", "stolen", "throttles", "swapped")}
    seconds, out = grew["monotonic"], []
    if grew["busy"] is not None and seconds >= 1:          # the counter ticks every 10 ms
        others, cpus = grew["busy"] - own, len(machine["affinity"])
        if others > OTHER_LOAD * seconds:
            out.append(f"other programs kept {others / seconds:.2f} of the {cpus} cores busy that were used")
        if grew["stolen"] > STOLEN * seconds * cpus:
            out.append(f"the hypervisor took {grew['stolen']:.1f} s of CPU time away")
    limits = machine["mhz_limits"]
    if machine["governor"] not in (None, "performance") and not (limits and limits[0] == limits[1]):
        out.append(f"the CPU's clock follows the governor {machine['governor']}, not performance")
    if grew["throttles"]:
        out.append(f"the CPU slowed down {grew['throttles']} times against heat")
    if grew["swapped"]:
        out.append(f"{grew['swapped']} pages of memory went to or came from swap")
    if after["battery"]:
        out.append("the machine runs on its battery")
    if abs(jump := grew["wall"] - seconds) > JUMP:
        out.append(f"the clock jumped by {jump:+.1f} s: it was set, or the machine slept")
    slowed = {key for gpu in after["gpus"] for key, value in gpu.items() if value == "Active"}
    return out + [f"the GPU slowed down: {key.rsplit('.', 1)[1]}" for key in sorted(slowed)]


def figure_taints(found: Mapping[str, Mapping]) -> list[str]:
    """Return why the figures (timing.figures, by what they are of) deserve no trust, with the worst."""
    checks = (("fewer than {} calls", lambda f: f["n"], min, SAMPLES, "{}"),
              ("fewer than {} processes", lambda f: len(f["rounds"]), min, ROUNDS, "{}"),
              ("the middle half of the calls spreads over more than {:.0%} of the median",
               lambda f: f["spread"], max, SPREAD, "{:.0%}"),
              ("processes' medians differ by more than {:.0%}",
               lambda f: (max(f["rounds"]) - min(f["rounds"])) / f["p50"], max, DRIFT, "{:.0%}"))
    out = []
    for words, of, worst, limit, shape in checks:
        values = {who: of(figures) for who, figures in found.items()}
        if hit := {who: v for who, v in values.items() if v != limit and worst(v, limit) == v}:
            who = worst(hit, key=hit.get)
            out.append(f"{words.format(limit)}, in {len(hit)} of {len(values)} figures; the worst is {who}: "
                       f"{shape.format(hit[who])}")
    return out


def _busy(stat: str) -> dict[str, float | None]:
    """Seconds that the cores we may use worked, and that a hypervisor took from them, since the start."""
    if not stat:
        return {"busy": None, "stolen": None}
    wanted, busy, stolen = {f"cpu{n}" for n in cores()}, 0, 0
    for name, *ticks in map(str.split, stat.splitlines()):
        if name in wanted:
            user, nice, system, _, _, irq, soft, *more = map(int, ticks)
            busy, stolen = busy + user + nice + system + irq + soft, stolen + sum(more[:1])
    rate = os.sysconf("SC_CLK_TCK")
    return {"busy": busy / rate, "stolen": stolen / rate}


def _fields(path: Path, mark: str = ":") -> dict[str, str]:
    """The first value of each key in a file of `key: value` lines."""
    lines = (line.partition(mark) for line in reversed(_text(path).splitlines()))
    return {key.strip(): value.strip() for key, _, value in lines}


def _text(path: Path) -> str:
    """A file's text without the blanks around it; empty where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
