"""The trainings of a comparison: every (network, seed, budget) once, by any number of workers, resumable."""
from __future__ import annotations

import json
import zlib
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from bench.compare import peers
from bench.compare.config import EPOCHS, FREE, CompareConfig
from bench.compare.judge import figures
from bench.profile.latency import layer_bytes
from compress.search.queue import Point, Queue, emptied
from compress.search.storage import alone
from models.count import macs, parameters
from models.layer import Net
from models.network import Network, initialise
from models.records import to_json
from models.zoo.build import build
from training.finetune import Tuner, claim
from training.prepare import check_side
from training.run import data_hash
from utils import runs


class Comparison(NamedTuple):
    """A tuner in the run folder, the networks by name, and their flags; peers have no records."""

    tuner: Tuner
    config: CompareConfig
    nets: dict[str, Net]

    @property
    def names(self) -> list[str]:
        """Return all networks, peers last."""
        return [*self.nets, *map(peers.label, self.config.peer_nets if self.config.peers else ())]


def open_comparison(config: CompareConfig) -> Comparison:
    """Return the comparison in the folder of the same command; raise as Tuner, ModelError for a name."""
    Path(config.project).mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        def own() -> Path:
            with alone(Path(config.project) / ".claim.lock"):
                folder = claim(config, FREE)
            held.enter_context(alone(folder / ".open.lock"))
            return folder
        tuner = Tuner(config, own, alone=False)
    with tuner.beginning():
        nets = {short(name): build(name, len(tuner.names)) for name in config.nets}
        for net in nets.values():
            check_side(net, config, len(tuner.train_set))
    return Comparison(tuner, config, nets)


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
    points = {"net": comparison.names, "seed": config.seed_list, "budget": list(config.budgets)}
    rows = {name: zlib.crc32(to_json(net).encode()) for name, net in comparison.nets.items()}
    settings |= {"space": points, "rows": rows}
    study = config.study or f"compare-{zlib.crc32(str(sorted(settings.items())).encode()):08x}"
    own = f"sqlite:///{tuner.folder.resolve()}/study.db".replace("{", "{{").replace("}", "}}")
    return Queue(config.storage or own, study, points, ["maximize", "minimize"], settings,
                 tuner.folder / "workers", seed=config.seed)


def run_of(comparison: Comparison, point: Point) -> dict[str, object]:
    """Return the record of one run, done here or read: figures of its best epoch, curves, counts, matches."""
    tuner, folder = comparison.tuner, comparison.tuner.folder / folder_of(point)
    row = tuner.share(runs.read_object(folder / "run.json") if (folder / "run.json").is_file() else None)
    if row is None:
        tuner.say(f"{point['net']}  seed {point['seed']}  equal {point['budget']}")
        work = _trained if point["net"] in comparison.nets else _peer
        row = {**point, **work(comparison, point)}
        if tuner.world.main:
            runs.write_json(folder / "run.json", row)
    return row


def _trained(comparison: Comparison, point: Point) -> dict[str, object]:
    tuner, config = comparison.tuner, comparison.config
    net, name = comparison.nets[point["net"]], folder_of(point)
    epochs = config.epochs if point["budget"] == EPOCHS else planned(comparison, point["net"])
    start = {} if tuner.done(name) else initialise(Network(net), point["seed"]).state_dict()
    found = tuner.tune(net, start, name, epochs, seed=point["seed"])
    metrics = tuner.share(tuner.world.main and tuner.validator(found.net, found.state)[0])
    return {**figures(metrics), **counts(net, config.imgsz), "epochs": epochs, "seconds": found.seconds,
            "curves": curves(tuner.folder / name)}


def _peer(comparison: Comparison, point: Point) -> dict[str, object]:
    tuner = comparison.tuner
    return peers.run(tuner, comparison.config, point, tuner.folder / folder_of(point))


def folder_of(point: Point) -> str:
    """Return a run's folder below the comparison's."""
    plain = "".join(c if c.isalnum() or c in "-._+=" else "-" for c in point["net"])
    return f"{point['budget']}/{plain}-s{point['seed']}"


def planned(comparison: Comparison, name: str) -> int:
    """Return the epochs of a network that fit into --minutes, from one that is trained and timed first."""
    tuner, net = comparison.tuner, comparison.nets[name]
    probe = folder_of({"net": name, "seed": 0, "budget": "first-epoch"})
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
