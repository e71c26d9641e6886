"""The flags of compare.py. Imports no torch, so that `--help` stays instant."""
from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path

from training.config import Recipe, TrainConfig
from utils.cli import ONE_OR_MORE, POSITIVE, option
from utils.errors import UsageError

RUNTIMES = ("torch", "onnx", "openvino", "ncnn")
EPOCHS, MINUTES = "epochs", "minutes"                      # the budgets, as records name them
LIMITS = {"ms": "ms", "params": "parameters", "minutes": "minutes"}        # --limits key -> a row's figure
# Where and how a comparison runs and is shown, not what its trainings depend on.
FREE = ("device", "workers", "threads", "cache", "project", "name", "save_json", "save_minutes", "storage",
        "study", "nets", "seeds", "peers", "peer_nets", "runtimes", "rounds", "limits", "lang",
        "latency_threads", "rates", "measure_rates")


@dataclass(frozen=True)
class CompareConfig(Recipe):
    """A comparison of networks, as the flags of compare.py name it."""

    project: str = "runs/compare"
    nets: tuple[str, ...] = option((), "names of the zoo, nano:BACKBONE+PART+..., net.json paths", nargs="+")
    epochs: int | None = option(None, "budget: the same epochs for each", ONE_OR_MORE, type=int)
    minutes: float | None = option(None, "budget: the same wall-clock for each, validation included; epochs "
                                         "are planned from a first one", POSITIVE, type=float)
    rates: str | None = option(None, "JSON of images a second by network, from the machine whose minutes "
                                     "--minutes are (validation not counted); trainings may run on another",
                               metavar="FILE.json")
    measure_rates: str | None = option(None, "measure that file of --nets on this machine, and train nothing",
                                       metavar="FILE.json")
    seeds: int = option(3, "trainings of each network", ONE_OR_MORE)
    val_interval: int = option(1, "epochs between validations: points of the curves", ONE_OR_MORE)
    runtimes: tuple[str, ...] = option(RUNTIMES, "whose ms an image are measured at the end", nargs="*",
                                       choices=RUNTIMES)
    rounds: int = option(30, "rounds of that, networks taking turns", ONE_OR_MORE)
    latency_threads: int = option(1, "CPU threads of that", ONE_OR_MORE)
    limits: tuple[str, ...] = option((), "budgets to name a best network for: ms=20 params=2e6 minutes=5 "
                                         "(default: quartiles)", nargs="+", metavar="KEY=N")
    storage: str | None = option(None, "database that workers on several machines share, as for search.py "
                                       "(default: a SQLite file in the run folder)", metavar="URL")
    study: str | None = option(None, "the comparison's name in that database")
    peers: str | None = option(None, "virtual environment with ultralytics, whose own trainer trains "
                                     "--peer-nets in a process of its own", metavar="VENV")
    peer_nets: tuple[str, ...] = option(("yolov5n.yaml", "yolo11n.yaml"), "what it trains, from scratch",
                                        nargs="+", metavar="YAML")
    lang: str = option("en", "language of the page", choices=("en", "zh"))
    save_json: str | None = option(None, "also write the record to results/NAME.json", metavar="NAME")

    @property
    def budgets(self) -> tuple[str, ...]:
        """Return which budgets are asked for."""
        return tuple(name for name in (EPOCHS, MINUTES) if getattr(self, name))

    @property
    def seed_list(self) -> list[int]:
        """Return the seeds."""
        return list(range(self.seed, self.seed + self.seeds))

    @property
    def limit_values(self) -> dict[str, list[float]]:
        """Return cost -> the budgets that --limits names, or raise UsageError."""
        found: dict[str, list[float]] = {}
        for text in self.limits:
            key, _, value = text.partition("=")
            try:
                found.setdefault(LIMITS[key], []).append(float(value))
            except (KeyError, ValueError):
                needed = ", ".join(f"{key}=NUMBER" for key in LIMITS)
                raise UsageError(f"--limits {text}: needs {needed}") from None
        return found

    def training(self, epochs: int, seed: int, name: str) -> TrainConfig:
        """Return the config of one training: as a Recipe's, but validated along the way for the curves."""
        return replace(super().training(epochs, seed, name), val_interval=min(epochs, self.val_interval))

    def check(self) -> None:
        """Raise UsageError where the flags name nothing to do, or a thing twice."""
        twice = sorted({net for net in self.nets if self.nets.count(net) > 1})
        for wrong, said in (
                (not self.nets and not self.peers, "--nets is missing: names of networks to compare"),
                (twice, f"--nets: {', '.join(twice)} is given twice"),
                (self.measure_rates and (self.peers or self.rates or not self.nets),
                 "--measure-rates: of --nets alone, without --rates or --peers, whose rates you may add to "
                 "the file"),
                (self.rates and not self.minutes, "--rates: of which --minutes?"),
                (not self.budgets and not self.measure_rates,
                 "--epochs or --minutes is missing: what each network may spend"),
                (self.weights, f"--weights {self.weights}: what is compared starts at random"),
                (self.peers and not (Path(self.peers) / "bin" / "yolo").is_file(),
                 f"--peers {self.peers}: no bin/yolo there; name a virtual environment with ultralytics")):
            if wrong:
                raise UsageError(said)
        self.limit_values                                  # noqa: B018  a wrong one ends it before the trainings

    def settings(self) -> dict[str, object]:
        """Return what trainings depend on, beside their data."""
        return {item.name: getattr(self, item.name) for item in sorted(fields(self), key=lambda f: f.name)
                if item.name not in (*FREE, "data", "seed", "epochs", "minutes")}
