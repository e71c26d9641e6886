"""What is measured, as data: what was asked for, the matrix of cases, their names."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from bench.stats import Rounds

SCHEMA = 1
TORCH = ("torch", "torch-compile", "torch-plain")
EXPORTED = ("torchscript", "onnx", "openvino", "ncnn")
RUNTIMES = (*TORCH, *EXPORTED)
PRECISIONS = ("fp32", "bf16", "fp16", "int8")
SCOPES = ("network", "end-to-end")
STAGES = ("decode", "preprocess", "network", "boxes and NMS", "draw")
KEYS = ("name", "runtime", "precision", "device", "threads", "batch", "imgsz")


@dataclass(frozen=True)
class Config:
    """What benchmark.py's flags ask for; with `full`, iterations and seconds are those of all rounds."""

    weights: Sequence[str]
    runtimes: Sequence[str]
    precisions: Sequence[str]
    threads: Sequence[int]
    batch_sizes: Sequence[int]
    imgsz: Sequence[int]
    device: str
    source: str | None
    data: str | None
    scope: str
    pictures: int
    rounds: int
    seconds: float
    iterations: int | None
    full: bool
    layers: bool
    save_json: str | None
    conf_thres: float
    iou_thres: float
    max_det: int
    project: str
    name: str
    exist_ok: bool


@dataclass(frozen=True)
class Case:
    """An artifact in a runtime and how it is run; name: the artifact's in tables, weights: its path."""

    name: str
    weights: str
    runtime: str
    precision: str
    threads: int
    batch: int
    imgsz: int
    device: str

    @property
    def label(self) -> str:
        """All that a figure of this case depends on, in words."""
        return label(vars(self))

    @property
    def group(self) -> tuple:
        """What cases that are measured against each other have in common."""
        return self.imgsz, self.batch, self.threads


def label(row: Mapping, keys: Sequence[str] = KEYS) -> str:
    """Return a case, or the `keys` of it alone, in words."""
    words = {"threads": f"{row['threads']} thread{'s' * (row['threads'] != 1)}",
             "batch": f"batch {row['batch']}", "imgsz": f"{row['imgsz']} px"}
    parts = [words.get(key, row[key]) for key in KEYS if key in keys]
    named = sum(key in keys for key in KEYS[:3])           # the artifact, its runtime and precision
    return ", ".join([" ".join(parts[:named])] * bool(named) + parts[named:])


def shared(rows: Sequence[Mapping]) -> list[str]:
    """Return the KEYS beyond artifact, runtime and precision in which all rows are alike."""
    return [key for key in KEYS[3:] if len({row[key] for row in rows}) == 1]


def short_names(paths: Sequence[Path]) -> list[str]:
    """Return names of artifacts: as much of each path's end as tells them apart, without suffix."""
    parts = [path.with_suffix("").parts for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(p[-length:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    return ["/".join(path.parts) for path in paths]        # they differ in their suffixes alone


def matrix(weights: Sequence[tuple[Path, str]], runtimes: Sequence[str], precisions: Sequence[str],
           threads: Sequence[int], batches: Sequence[int], sizes: Sequence[int], device: str) -> list[Case]:
    """Return every case that was asked for, those of one group together, in the order of the flags.

    weights: paths and their formats. What is exported runs in its own runtime, weights ("torch") in all of
    `runtimes`. torch-plain is what eager PyTorch does by itself, in fp32.
    """
    cases, names = [], short_names([path for path, _ in weights])
    for imgsz, batch, count in product(sizes, batches, threads):
        for (path, form), name in zip(weights, names):
            for runtime, precision in product(runtimes if form == "torch" else [form], precisions):
                if runtime == "torch-plain":
                    if precision != precisions[0]:
                        continue
                    precision = "fp32"
                cases.append(Case(name, str(path), runtime, precision, count, batch, imgsz, device))
    return cases


def pack(rounds: Rounds) -> list[list[str]]:
    """Return milliseconds of rounds and slices as JSON holds them: a text per slice, to the microsecond."""
    return [[" ".join(f"{ms:.3f}" for ms in times) for times in slices] for slices in rounds]


def unpack(rounds: Sequence[Sequence[str]]) -> list[list[list[float]]]:
    """Return what `pack` was given, to a microsecond."""
    return [[[float(ms) for ms in times.split()] for times in slices] for slices in rounds]
