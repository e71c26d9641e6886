"""What is measured, as data: what was asked for, the matrix of cases, their names."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

from bench.profile.timing import Rounds
from utils.cli import ONE_OR_MORE, option

SCHEMA = 1
TORCH = ("torch", "torch-compile", "torch-plain")
RUNTIMES = (*TORCH, "torchscript", "onnx", "openvino", "ncnn")
PRECISIONS = ("fp32", "bf16", "fp16", "int8")
SCOPES = ("network", "end-to-end")
STAGES = ("decode", "preprocess", "network", "boxes and NMS", "draw")
FULL = {"iterations": 1024, "seconds": 60.0}   # of a case, over all rounds; once MLPerf's least
KEYS = ("name", "runtime", "precision", "device", "threads", "batch", "imgsz")


@dataclass(frozen=True)
class Config:
    """What benchmark.py's flags ask for; with `full`, iterations and seconds are those of all rounds."""

    weights: Sequence[str] = option(None, "checkpoints (.pt, .weights) and exported files or folders",
                                    nargs="+")
    runtimes: Sequence[str] = option(
        ("torch",), "what runs the checkpoints, exported into the run folder where needed. torch-plain is "
        "PyTorch without this project's fast path; exported files run in their own runtime", nargs="+",
        choices=RUNTIMES)
    precisions: Sequence[str] = option(
        ("fp32",), "numbers they are computed in; int8 is calibrated on the train split of --data",
        nargs="+", choices=PRECISIONS)
    threads: Sequence[int] = field(default=(1,), metadata={"nargs": "+"})
    batch_sizes: Sequence[int] = option((1,), "images a call", nargs="+", type=int)
    imgsz: Sequence[int] = option((416,), "input sides in px", nargs="+")
    device: str = "auto"
    source: str | None = None
    data: str | None = None
    val_split: float | None = None
    seed: int = 0
    scope: str = option("both", "the network alone, image files to drawn images, or both",
                        choices=(*SCOPES, "both"))
    pictures: int = option(32, "how many different ones of --source are taken in turn", ONE_OR_MORE)
    rounds: int = option(3, "how often every case is measured in a fresh process", ONE_OR_MORE)
    seconds: float = option(10.0, "of a case, scope and round",
                            (lambda v: 0 < v < 86400, "more than 0, at most a day"))
    iterations: int | None = option(None, "calls of a case, scope and round, instead of --seconds",
                                    ONE_OR_MORE, type=int)
    full: bool = option(False, f"at least {FULL['iterations']} calls and {FULL['seconds']:.0f} s of a case "
                        "and scope, over all rounds")
    layers: bool = option(False, "also time the layers in torch beside this machine's roofline")
    save_json: str | None = option(None, "also write the report to results/NAME.json", metavar="NAME")
    conf_thres: float = 0.25
    iou_thres: float = 0.45
    max_det: int = 300
    project: str = "runs/benchmark"
    name: str = "exp"
    exist_ok: bool = False


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
    named = [["/".join(p[-n:]) for p in parts] for n in range(1, max(map(len, parts)) + 1)]
    named.append(["/".join(path.parts) for path in paths])     # they differ in their suffixes alone
    return next((names for names in named if len(set(names)) == len(names)), named[-1])


def matrix(weights: Sequence[tuple[Path, str]], runtimes: Sequence[str], precisions: Sequence[str],
           threads: Sequence[int], batches: Sequence[int], sizes: Sequence[int], device: str) -> list[Case]:
    """Return every case asked for, group by group, of paths and formats; torch-plain is in fp32 alone."""
    cases, names = [], short_names([path for path, _ in weights])
    for imgsz, batch, count in product(sizes, batches, threads):
        for (path, form), name in zip(weights, names):
            for runtime, precision in product(runtimes if form == "torch" else [form], precisions):
                plain = runtime == "torch-plain"           # once, whatever precisions are asked for
                if not plain or precision == precisions[0]:
                    cases.append(Case(name, str(path), runtime, "fp32" if plain else precision, count, batch,
                                      imgsz, device))
    return cases


def pack(rounds: Rounds) -> list[list[str]]:
    """Return milliseconds of rounds and slices as JSON holds them: a text per slice, to the microsecond."""
    return [[" ".join(f"{ms:.3f}" for ms in times) for times in slices] for slices in rounds]


def unpack(rounds: Sequence[Sequence[str]]) -> list[list[list[float]]]:
    """Return what `pack` was given, to a microsecond."""
    return [[[float(ms) for ms in times.split()] for times in slices] for slices in rounds]
