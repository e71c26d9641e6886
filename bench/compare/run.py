"""A comparison from its flags to its page."""
from __future__ import annotations

from pathlib import Path

import torch

from bench.compare import report
from bench.compare.config import CompareConfig
from bench.compare.rates import write_rates
from bench.compare.record import make_record
from bench.compare.speed import measure
from bench.compare.trainings import Comparison, all_runs, open_comparison
from training.prepare import TIMED_IMAGES
from training.start import plain_images, settle
from utils import runs
from utils.errors import NumericError


def compare(config: CompareConfig) -> None:
    """Train what is left, then measure speeds and write the record and page. Raises as the trainings do."""
    config = settle(config)
    if config.measure_rates:
        found = write_rates(config)
        print("\n".join([*(f"{rate:9.2f} images/s  {name}" for name, rate in found.items()),
                         config.measure_rates]))
        return
    comparison = open_comparison(config)
    try:
        found, failed = all_runs(comparison)
        if not found:
            raise NumericError(f"no run ended well: {failed[0]['net']}: {failed[0]['error']}")
        if comparison.tuner.world.main:
            record = _record(comparison, found, failed)
            lines = report.write(record, found, comparison.tuner.folder, config.lang)
            if config.save_json:
                kept = ("net", "seed", "budget", "epochs", "seconds", "map50", "map50_95")
                runs.save_record(config.save_json,
                                 record | {"runs": [{key: run.get(key) for key in kept} for run in found]})
            print("\n".join([*lines, *(f"failed: {row['net']} seed {row['seed']}: {row['error']}"
                                       for row in failed)]))
    finally:
        comparison.tuner.close()


def _record(comparison: Comparison, found: list[dict], failed: list[dict]) -> dict[str, object]:
    """Return the record of all budgets, and what it was measured with."""
    tuner, config = comparison.tuner, comparison.config
    peers = {run["net"]: Path(run["onnx"]) for run in found if Path(run.get("onnx") or "").is_file()}
    speed = measure(comparison.nets, peers, tuner.names, config.imgsz,
                    plain_images(tuner.val_set, TIMED_IMAGES), runtimes=config.runtimes, rounds=config.rounds,
                    threads=config.latency_threads)
    budgets = make_record(found, speed, config.limit_values, config.seed)
    return {"kind": "compare", "data": Path(config.data).name, "imgsz": config.imgsz,
            "nets": comparison.names, "seeds": config.seeds, "epochs": config.epochs,
            "minutes": config.minutes, "minutes_of": comparison.rates and comparison.rates.machine,
            "rates": comparison.rates and comparison.rates.images, "latency_threads": config.latency_threads,
            "training": config.settings(), "budgets": budgets,
            "speed": speed, "runs_done": len(found), "failed": len(failed),
            "threads": torch.get_num_threads(), "environment": runs.environment()}
