"""The trainings of a comparison: every (network, seed, budget) once, by any number of workers, resumable."""
from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import NamedTuple

from bench.compare import peers
from bench.compare.config import EPOCHS, FREE, MINUTES, CompareConfig
from bench.compare.judge import figures
from bench.profile.latency import layer_bytes
from compress.search.queue import Point, Queue, emptied, shared_tuner
from evaluation.evaluate import written
from models.count import macs, parameters
from models.layer import Net
from models.network import Network, initialise
from models.records import to_json
from models.zoo.build import build
from training.finetune import Outcome, Tuner
from training.prepare import check_side
from training.run import data_hash
from utils import runs
from utils.errors import UsageError


class Rates(NamedTuple):
    """How many training images a second a machine takes, by network; machine: in words."""

    machine: str
    images: dict[str, float]


class Comparison(NamedTuple):
    """A tuner in the run folder, the networks by name, and their flags; peers have no records.

    rates: of the machine whose minutes --minutes are; None: of this one's clock.
    """

    tuner: Tuner
    config: CompareConfig
    nets: dict[str, Net]
    rates: Rates | None = None

    @property
    def names(self) -> list[str]:
        """Return all networks, peers last."""
        return names_of(self.config)

    def epochs(self, name: str) -> int | None:
        """Return the epochs of a network within --minutes at its rate, at least one; None without --rates."""
        if self.rates is None or self.config.minutes is None:
            return None
        images = 60 * self.config.minutes * self.rates.images[name]
        return max(1, int(images / len(self.tuner.train_set)))

    def minutes(self, name: str, epochs: int) -> float:
        """Return the minutes that so many epochs are at a network's rate."""
        return epochs * len(self.tuner.train_set) / self.rates.images[name] / 60


def open_comparison(config: CompareConfig) -> Comparison:
    """Return the comparison in the folder of the same command; raise as Tuner, ModelError for a name."""
    rates = read_rates(config)
    tuner = shared_tuner(config, FREE)
    return Comparison(tuner, config, built(config, tuner), rates)


def built(config: CompareConfig, tuner: Tuner) -> dict[str, Net]:
    """Return the networks by name, for the tuner's classes; raise ModelError, or UsageError for a side."""
    with tuner.beginning():
        nets = {short(name): build(name, len(tuner.names)) for name in config.nets}
        for net in nets.values():
            check_side(net, config, len(tuner.train_set))
    return nets


def read_rates(config: CompareConfig) -> Rates | None:
    """Return what --rates holds of the networks that are compared, None without it.

    Raises UsageError for a network or rate that is missing and for another side or batch, DataError for a
    torn file.
    """
    if not config.rates:
        return None
    if not (path := Path(config.rates)).is_file():
        raise UsageError(f"--rates {path}: no such file; --measure-rates FILE.json writes one")
    found = runs.read_object(path)
    for key in ("imgsz", "batch_size"):
        if found.get(key, getattr(config, key)) != getattr(config, key):
            raise UsageError(f"--rates {path}: measured with {key} {found[key]}, which is "
                             f"{getattr(config, key)} here; measure again, or give that one")
    given, names = found.get("rates", found), names_of(config)
    wrong = [name for name in names
             if not isinstance(given.get(name), int | float) or not 0 < given[name] < float("inf")]
    if wrong:
        raise UsageError(f"--rates {path}: no images a second, as a number, of {', '.join(wrong)}")
    return Rates(str(found.get("machine", path.stem)), {name: float(given[name]) for name in names})


def names_of(config: CompareConfig) -> list[str]:
    """Return the networks of a comparison as records name them, peers last."""
    return [*map(short, config.nets), *map(peers.label, config.peer_nets if config.peers else ())]


def short(name: str) -> str:
    """Return how a network is called: a file by its stem, others by their name."""
    return Path(name).stem if name.endswith(".json") else name


def all_runs(comparison: Comparison) -> tuple[list[dict], list[dict]]:
    """Return the records of all runs and those that failed, trained here or by others."""
    tuner, config = comparison.tuner, comparison.config

    def work(point: Point) -> tuple[dict, list[float]]:
        row = run_of(comparison, point)
        return row, [row["map50_95"], row["seconds"]]
    wanted = {(net, seed, budget) for net in comparison.names for seed in config.seed_list
              for budget in config.budgets}
    done, failed = ([row for row in rows if (row["net"], row["seed"], row["budget"]) in wanted]
                    for rows in emptied(_queue(comparison) if tuner.world.main else None, tuner, work))
    return done, failed


def _queue(comparison: Comparison) -> Queue:
    """Return the queue of all runs, in the study that depends on what their figures do."""
    tuner, config = comparison.tuner, comparison.config
    settings = {**config.settings(), "images": data_hash(tuner.train_set.coco),
                "val": data_hash(tuner.val_set.coco),
                **{budget: getattr(config, budget) for budget in config.budgets}}
    if comparison.rates:
        settings["planned"] = {name: comparison.epochs(name) for name in comparison.names}
    points = {"net": comparison.names, "seed": config.seed_list, "budget": list(config.budgets)}
    rows = {name: zlib.crc32(to_json(net).encode()) for name, net in comparison.nets.items()}
    settings |= {"space": points, "rows": rows}
    study = config.study or f"compare-{zlib.crc32(str(sorted(settings.items())).encode()):08x}"
    own = f"sqlite:///{tuner.folder.resolve()}/study.db".replace("{", "{{").replace("}", "}}")
    return Queue(config.storage or own, study, points, ["maximize", "minimize"], settings,
                 tuner.folder / "workers", seed=config.seed)


def run_of(comparison: Comparison, point: Point) -> dict[str, object]:
    """Return the record of one run, done here or read: figures of its best epoch, curves, counts, matches."""
    tuner, folder = comparison.tuner, comparison.tuner.folder / folder_of(comparison, point)
    row = tuner.share(runs.read_object(folder / "run.json") if (folder / "run.json").is_file() else None)
    if row is None:
        tuner.say(f"{point['net']}  seed {point['seed']}  equal {point['budget']}")
        work = _trained if point["net"] in comparison.nets else _peer
        row = {**point, **work(comparison, point)}
        if tuner.world.main:
            runs.write_json(folder / "run.json", row)
    if comparison.rates:                                   # a row's minutes are those that were given
        row |= {"trained_seconds": row["seconds"],
                "seconds": 60 * comparison.minutes(row["net"], row["epochs"])}
    return row


def _trained(comparison: Comparison, point: Point) -> dict[str, object]:
    tuner, config = comparison.tuner, comparison.config
    net, name = comparison.nets[point["net"]], folder_of(comparison, point)
    epochs = config.epochs if point["budget"] == EPOCHS else (
        comparison.epochs(point["net"]) or planned(comparison, point["net"]))
    start = {} if tuner.done(name) else initialise(Network(net), point["seed"]).state_dict()
    found = tuner.tune(net, start, name, epochs, seed=point["seed"])
    judged = tuner.share(tuner.world.main and _judged(tuner, found))
    return {**judged, **counts(net, config.imgsz), "epochs": epochs, "seconds": found.seconds,
            "curves": curves(tuner.folder / name)}


def _judged(tuner: Tuner, found: Outcome) -> dict[str, object]:
    metrics, _, detections = tuner.validator(found.net, found.state)
    return figures(metrics, *written(tuner.val_set.coco, detections))


def _peer(comparison: Comparison, point: Point) -> dict[str, object]:
    tuner = comparison.tuner
    return peers.run(tuner, comparison.config, point, tuner.folder / folder_of(comparison, point),
                     comparison.epochs(point["net"]))


def folder_of(comparison: Comparison, point: Point) -> str:
    """Return a run's folder below the comparison's: another one for other epochs by --rates."""
    plain = "".join(c if c.isalnum() or c in "-._+=" else "-" for c in point["net"])
    epochs = comparison.epochs(point["net"]) if point["budget"] == MINUTES else None
    return f"{point['budget']}/{plain}-s{point['seed']}" + (f"-e{epochs}" if epochs else "")


def planned(comparison: Comparison, name: str) -> int:
    """Return the epochs of a network that fit into --minutes, from one that is trained and timed first."""
    tuner, net = comparison.tuner, comparison.nets[name]
    probe = folder_of(comparison, {"net": name, "seed": 0, "budget": "first-epoch"})
    start = {} if tuner.done(probe) else initialise(Network(net), 0).state_dict()
    seconds = tuner.tune(net, start, probe, 1, seed=0).seconds
    return max(1, int(60 * comparison.config.minutes / max(seconds, 1e-3)))


def counts(net: Net, imgsz: int) -> dict[str, int]:
    """Return parameters, MACs, and the bytes moved for one image in fp32, batch-norm folded."""
    return {"parameters": parameters(net), "macs": macs(net, imgsz),
            "moved": sum(layer_bytes(net, imgsz, 4).values())}


def curves(folder: Path) -> list[dict[str, float]]:
    """Return a run's rows, an epoch each."""
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in row.items() if isinstance(value, int | float)} for row in rows]
