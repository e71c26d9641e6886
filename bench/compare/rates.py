"""Minutes of another machine: how many training images a second it takes, by network, and the epochs of that.

The file is JSON, {"machine": TEXT, "rates": {NET: IMAGES A SECOND}}, or the second object alone.
"""
from __future__ import annotations

import statistics
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from bench.compare.config import CompareConfig
from bench.compare.trainings import built
from data.loader import make_loader
from models.heads.loss import DetectionLoss
from models.layer import Net
from models.network import Network, initialise
from training import engine
from training.finetune import Tuner
from training.plan import OFF, seconds_per_image
from training.run import make_state
from utils import runs
from utils.errors import UsageError

TURNS, TURN = 3, 8.0                                       # turns of each network; seconds of one


def write_rates(config: CompareConfig) -> dict[str, float]:
    """Write --measure-rates: the median of TURNS turns of each network, and what they were measured with.

    Returns network -> images a second. Nothing is validated or kept. Raises as the trainings do.
    """
    with tempfile.TemporaryDirectory() as folder:
        tuner = Tuner(config, lambda: Path(folder), alone=False)
        try:
            if tuner.world.size > 1:
                raise UsageError("--measure-rates: one process alone; leave out torchrun")
            turns = _measured(tuner, built(config, tuner))
        finally:
            tuner.close()
    found = {name: statistics.median(values) for name, values in turns.items()}
    facts = runs.environment()
    gpu = tuner.device.type == "cuda"
    machine = facts["gpu"] if gpu else f"{facts['cpu']}, {torch.get_num_threads()} thread(s)"
    runs.write_json(Path(config.measure_rates), {
        "kind": "rates", "machine": machine, "threads": torch.get_num_threads(), "imgsz": config.imgsz,
        "batch_size": config.batch_size, "precision": tuner.precision, "data": Path(config.data).name,
        "images": len(tuner.train_set), "rates": found, "turns": turns, "environment": facts})
    return found


def _measured(tuner: Tuner, nets: Mapping[str, Net]) -> dict[str, list[float]]:
    """Return the images a second of each turn of each network, the networks taking turns."""
    config = replace(tuner.config.training(1, tuner.config.seed, "rates"), time=TURN / OFF)
    loader = make_loader(tuner.train_set.for_run(config.seed, 1), config.batch_size, seed=config.seed,
                         workers=config.workers, pin_memory=tuner.device.type == "cuda")
    turns: dict[str, list[float]] = {name: [] for name in nets}
    try:
        for at in range(TURNS):
            for name, net in nets.items():
                turns[name].append(1 / seconds_per_image(*_task(tuner, config, net, loader)))
                tuner.say(f"turn {at + 1}/{TURNS}  {name}: {turns[name][-1]:.2f} images/s")
    finally:
        loader.close()
    return turns


def _task(tuner: Tuner, config: CompareConfig, net: Net,
          loader: object) -> tuple[engine.State, engine.Task]:
    """Return a state at its beginning and the part of a task that a step reads."""
    model = initialise(Network(net), config.seed).to(tuner.device).to(memory_format=torch.channels_last)
    none: dict = dict.fromkeys(("validate", "save", "restore", "log", "replay"))
    return make_state(model, config, tuner.session), engine.Task(
        config, loader, DetectionLoss(net), **none, signals=tuner.interrupt, precision=tuner.precision)
