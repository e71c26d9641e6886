"""The choices of a kernel search. Imports no torch, so that `--help` stays instant."""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from models.zoo.tiny import SEARCHED, SWAPPED
from training.config import NetRecipe
from utils.cli import NOT_NEGATIVE, ONE_OR_MORE, option
from utils.errors import UsageError

ACCURACY = ("map50", "map50_95")
LARGEST_GRID = 256                                 # choices that are tried one by one without being asked to
# Where and how a search runs and is reported, not what its values are.
FREE = ("device", "workers", "threads", "cache", "project", "name", "save_json", "save_minutes", "against",
        "storage", "study", "known")
# What a record must say of a search for its trials to be taken as known.
SAME = ("layers", "kernels", "ops", "epochs", "imgsz", "cfg", "separate", "weights", "data", "objectives")
TRAINED_BY = ("fit_anchors", "batch_size", "optimizer", "lr", "final_lr", "momentum", "weight_decay",
              "warmup_epochs", "nominal_batch", "augment", "close_mosaic", "multi_scale", "box", "obj", "cls",
              "dfl", "clip", "ema_age", "precision", "val_split", "drop_unknown", "trust",
              "latency_threads")


@dataclass(frozen=True)
class SearchConfig(NetRecipe):
    """A search, as the flags of search.py name it; without `trials` every choice is tried."""

    project: str = "runs/search"
    epochs: int = 20
    layers: tuple[str, ...] = option(SEARCHED, "layers whose kernels are searched", nargs="+")
    kernels: tuple[int, ...] = option((3, 5), "candidates for each layer", nargs="+", type=int,
                                      choices=(1, 3, 5, 7))
    ops: tuple[str, ...] | None = option(
        None, "block types for each layer: several are searched, one is set (default: as in --cfg)",
        nargs="+", choices=SWAPPED)
    sampler: str | None = option(
        None, f"every choice, or those that TPE proposes (default: grid up to {LARGEST_GRID} choices)",
        choices=("grid", "tpe"))
    trials: int | None = option(None, "choices that are tried; needed by --sampler tpe", ONE_OR_MORE,
                                type=int)
    objectives: tuple[str, ...] = option(
        ("map50",), "what is optimised; of several the Pareto front is shown. The first accuracy says what "
        "is best", nargs="+", choices=(*ACCURACY, "params", "macs", "latency"))
    seeds: int = option(1, "seeds that the best choices are trained with", ONE_OR_MORE)
    repeat_best: int = option(3, "how many of the best are trained with all --seeds", ONE_OR_MORE)
    storage: str | None = option(
        None, "database of the search, which workers on several machines can share, e.g. "
        "postgresql://user@host/name (default: a SQLite file in the run folder)", metavar="URL")
    study: str | None = option(
        None, "the search's name in that database (default: from what its values depend on)")
    latency_threads: int = option(1, "CPU threads latency is measured with (0: all)", NOT_NEGATIVE)
    one_shot: bool = option(
        False, "train one network that holds all kernels (sandwich rule) and cut every choice out of it")
    random: int = option(2, "networks drawn a step of --one-shot, beside the largest and the smallest",
                         NOT_NEGATIVE)
    rank: str = option("loss", "what ranks the networks of --one-shot: their loss on val, which every box "
                               "moves, or the first accuracy", choices=("loss", "accuracy"))
    against: Path | None = option(None, "compare the ranks with another search's record", type=Path,
                                  metavar="JSON")
    known: tuple[Path, ...] = option(
        (), "records of the same search, whose run folders may be gone: their trials are not trained again",
        nargs="+", type=Path, metavar="JSON")
    save_json: str | None = option(None, "also write the record to results/NAME.json", metavar="NAME")

    @property
    def score(self) -> str:
        """Return what "best" means: a figure of the rows."""
        return "val_loss" if self.one_shot and self.rank == "loss" else self.accuracy

    @property
    def accuracy(self) -> str:
        """Return the first accuracy among the objectives."""
        return next(name for name in self.objectives if name in ACCURACY)

    @property
    def method(self) -> str:
        """Return how choices are tried."""
        return "one-shot" if self.one_shot else "tpe" if self.trials else "grid"

    def check(self) -> None:
        """Raise UsageError where the fields do not go together or leave nothing to search."""
        for wrong, said in (*self._faults(), *self._faults_of_space()):
            if wrong:
                raise UsageError(said)

    def _faults(self) -> list[tuple[object, str]]:
        """Return (whether it is so, what to say) for flags that exclude or need each other."""
        alone = ((len(self.ops or ()) > 1, "several --ops"), (self.sampler, "--sampler"),
                 (len(self.kernels) < 2, "a single kernel"), (self.seeds > 1, "--seeds"),
                 (self.storage or self.study, "--storage and --study"), (self.known, "--known"))
        files = (("against", self.against), *(("known", path) for path in self.known))
        return [
            (not self.cfg and not self.weights, "--cfg or --weights is missing: a network to vary"),
            (self.separate and not self.weights,
             "--separate needs --weights, whose convolutions it factorises"),
            (not set(self.objectives) & set(ACCURACY),
             f"--objectives {' '.join(self.objectives)}: needs map50 or map50_95 among them; without an "
             "accuracy the smallest network is best"),
            *((self.one_shot and given, f"{flag} and --one-shot do not go together: it trains one network "
               "whose kernels are cut, once, in one run folder") for given, flag in alone),
            *((path and not path.is_file(), f"--{flag} {path}: no such file; give a result.json of search.py")
              for flag, path in files)]

    def _faults_of_space(self) -> list[tuple[object, str]]:
        """Return (whether it is so, what to say) for a space that is empty or larger than was asked for."""
        lists = {name: getattr(self, name) or () for name in ("layers", "kernels", "ops", "objectives")}
        twice = {name: sorted({str(v) for v in given if given.count(v) > 1}) for name, given in lists.items()}
        choices = (len(self.kernels) * len(self.ops or [""])) ** len(self.layers)
        large = choices > LARGEST_GRID
        grid = self.sampler == "grid" or (self.sampler is None and not large)
        return [
            *((found, f"--{name}: {', '.join(found)} is given twice") for name, found in twice.items()),
            (choices == 1, "one kernel and one block type leave nothing to search: give several --kernels or "
             "--ops"),
            (not self.one_shot and not grid and self.trials is None,
             f"--trials is missing: there are {choices:,} choices; say how many TPE may try, or ask for all "
             "of them with --sampler grid"),
            (not self.one_shot and grid and self.trials is not None,
             f"--trials {self.trials} needs --sampler tpe; the grid tries all {choices:,} choices"),
            (self.one_shot and self.trials is None and large,
             f"--trials is missing: say how many of the {choices:,} choices are cut out and measured")]
