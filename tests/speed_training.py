"""How fast a training step is as shipped, beside plain eager PyTorch: interleaved rounds, fresh processes.

    python -m tests.speed_training --rounds 3 --threads 2 --out results/training-speed.json

plain: fp32, NCHW, unfused SGD, the library's memory defaults, one batch in memory. memory: the shipped step
fed from the same batch in memory. shipped: the same with the loader, its augmentation and one worker process,
on the embedded set.

    git archive COMMIT | tar -x -C /tmp/before
    python -m tests.speed_training --cfg micro-yolo --against /tmp/before --modes memory

takes turns with that commit, and compares processor time, which neighbours move less, and losses as well.
"""
from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

MODES = ("plain", "memory", "shipped")
WARM = 4                                                   # steps before the clock starts


def main() -> None:
    """Runs the rounds, prints the table, writes the JSON; with --mode runs one measurement."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cfg", default="yolov3-tiny")
    parser.add_argument("--imgsz", type=int, default=416)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--against", type=Path, help="a folder with another commit's files")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    parser.add_argument("--mode", choices=MODES)
    args = parser.parse_args()
    if args.mode:
        print(json.dumps(measure(args)))
        return
    here = Path(__file__).resolve().parent.parent
    cases = [(mode, mode, here) for mode in args.modes]
    cases += [(f"{mode} before", mode, args.against) for mode in args.modes if args.against]
    runs: dict[str, list[dict]] = {name: [] for name, *_ in cases}
    for _ in range(args.rounds):
        for name, mode, folder in cases:
            runs[name].append(in_process(args, mode, folder))
            print(name, f"{runs[name][-1]['rate']:.1f} img/s, {runs[name][-1]['cpu_ms']:.1f} ms of processor "
                  "an image", flush=True)
    report(args, runs)


def in_process(args: argparse.Namespace, mode: str, folder: Path) -> dict:
    """Runs one measurement on the packages in `folder`, in a process of its own."""
    words = [f"--{k.replace('_', '-')}={getattr(args, k)}"
             for k in ("cfg", "imgsz", "batch_size", "steps", "threads")]
    done = subprocess.run([sys.executable, "-P", __file__, f"--mode={mode}", *words], capture_output=True,
                          text=True, check=True, cwd=folder, env={**os.environ, "PYTHONPATH": str(folder)})
    return json.loads(done.stdout.splitlines()[-1])


def report(args: argparse.Namespace, runs: dict[str, list[dict]]) -> None:
    """Prints and writes medians with their spread, and ratios, taken round by round."""
    from utils.runs import environment, write_json
    rates = {name: [run["rate"] for run in of] for name, of in runs.items()}
    pairs = [("shipped", "plain"), ("shipped", "memory"), *((name.split()[0], name) for name in rates
                                                            if name.endswith(" before"))]
    ratios = {f"{a}_over_{b}".replace(" ", "_"): [x / y for x, y in zip(rates[a], rates[b])]
              for a, b in pairs if {a, b} <= rates.keys()}
    for a, b in pairs[2:]:
        ratios[f"{a}_cpu_saved"] = [y["cpu_ms"] / x["cpu_ms"] for x, y in zip(runs[a], runs[b])]
        ratios[f"{a}_losses_differ"] = [max(abs(p / q - 1) for p, q in zip(x["losses"], y["losses"]))
                                        for x, y in zip(runs[a], runs[b])]
    result = {k: {"median": statistics.median(v), "min": min(v), "max": max(v)}
              for k, v in (rates | ratios).items()}
    for name in (*rates, *ratios):
        value = result[name]
        print(f"{name:28} {value['median']:8.4g}   ({value['min']:.4g} .. {value['max']:.4g})")
    result |= {"network": args.cfg, "imgsz": args.imgsz, "batch_size": args.batch_size,
               "threads": args.threads, "unit": "pictures a second", "environment": environment()}
    if args.out:
        write_json(args.out, result)


def measure(args: argparse.Namespace) -> dict:
    """Pictures a second after WARM steps, processor ms an image (of all steps), mean losses."""
    if not (Path.cwd() / "training").is_dir():
        return measure_without_rooms(args)
    import torch

    from data.augment import preset
    from data.coco.locate import locate
    from data.coco.read import read_coco
    from data.dataset import DetectionSet
    from data.loader import make_loader
    from models.heads.loss import DetectionLoss
    from models.network import Network, initialise
    from models.zoo.build import build
    from training import engine
    from training.config import TrainConfig
    from training.optim import MovingAverage, make_optimizer
    from utils import runs
    torch.set_num_threads(args.threads)
    coco = read_coco(*locate("scenes").train)
    dataset = DetectionSet(coco, args.imgsz, preset("default"))
    dataset.fill_cache(progress=False)
    net = build(args.cfg, 10)
    model, loss = initialise(Network(net), 0).train(), DetectionLoss(net)
    real = make_loader(dataset, args.batch_size, workers=1 if args.mode == "shipped" else 0)
    batch = next(iter(real)) if args.mode != "shipped" else None
    began = time.process_time()
    if args.mode == "plain":
        return told(args, plain(args, model, loss, batch), began, {})
    runs.tune_cpu(args.threads)
    model = model.to(memory_format=torch.channels_last)
    config = TrainConfig(epochs=1, optimizer="sgd", lr=1e-3, momentum=0.9, nominal_batch=1)
    state = engine.State(model, MovingAverage(model, 0.02), make_optimizer(model, config),
                         torch.amp.GradScaler("cpu", enabled=False), torch.device("cpu"))
    precision = runs.pick_precision(torch.device("cpu"))[0]
    loader = Timed(real if batch is None else [batch] * 999, args.steps)
    engine.train_one_epoch(state, engine.Task(
        config, loader, loss, *[lambda *_: None] * 5, signals=SimpleNamespace(poll=lambda: False, code=0),
        precision=precision, main=False))
    return told(args, args.batch_size * (args.steps - WARM) / loader.seconds(), began, state.sums)


def measure_without_rooms(args: argparse.Namespace) -> dict:
    """The same of commits up to 3a4e83f, whose modules lie elsewhere."""
    import engine
    import torch
    from data.locate import locate
    from models.decode import head_specs
    from models.loss import DetectionLoss
    from utils.optim import make_ema, make_optimizer

    from data.augment import preset
    from data.coco import read_coco
    from data.dataset import DetectionSet
    from data.loader import make_loader
    from models.network import Network, initialise
    from models.zoo import build
    from utils import runs
    torch.set_num_threads(args.threads)
    dataset = DetectionSet(read_coco(*locate("scenes").train), args.imgsz, preset("default"))
    dataset.fill_cache(progress=False)
    net = build(args.cfg, 10)
    model, loss = initialise(Network(net), 0).train(), DetectionLoss(head_specs(net))
    real = make_loader(dataset, args.batch_size, workers=1 if args.mode == "shipped" else 0)
    batch = next(iter(real)) if args.mode != "shipped" else None
    began = time.process_time()
    if args.mode == "plain":
        return told(args, plain(args, model, loss, batch), began, {})
    runs.tune_cpu(args.threads)
    model = model.to(memory_format=torch.channels_last)
    state = engine.State(model, make_ema(model, 0.9998, 1000), make_optimizer(model, "sgd", 1e-3, 0.9, 5e-4),
                         torch.amp.GradScaler("cpu", enabled=False), torch.device("cpu"))
    settings = engine.Settings(1, 1e-3, warmup_epochs=1., weights={"box": 5., "obj": 1., "cls": 1.},
                               precision=runs.pick_precision(torch.device("cpu"))[0])
    loader = Timed(real if batch is None else [batch] * 999, args.steps)
    engine.train_one_epoch(state, settings, loader, loss, engine.Hooks(
        *[lambda *_: None] * 4, lambda: False, lambda: 0, lambda _: "", main=False))
    return told(args, args.batch_size * (args.steps - WARM) / loader.seconds(), began, state.sums)


def told(args: argparse.Namespace, rate: float, began: float, sums: dict[str, float]) -> dict:
    """One measurement as its process prints it."""
    return {"rate": rate, "cpu_ms": 1000 * (time.process_time() - began) / (args.batch_size * args.steps),
            "losses": [value / args.steps for name, value in sums.items() if name != "count"]}


class Timed:
    """The first `steps` batches of a loader, and the time from the warm ones to the end of the last step."""

    def __init__(self, source: object, steps: int) -> None:
        self.source, self.steps, self.times = source, steps, []

    def set_epoch(self, epoch: int, start: int) -> None:
        """Passes the epoch on where there is one."""
        if hasattr(self.source, "set_epoch"):
            self.source.set_epoch(epoch, start)

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> object:
        for at, batch in enumerate(self.source):
            self.times.append(time.perf_counter())
            if at == self.steps:
                return
            yield batch

    def seconds(self) -> float:
        """Seconds from the request of the first timed batch to the one after the last."""
        return self.times[self.steps] - self.times[WARM]


def plain(args: argparse.Namespace, model: object, loss: object, batch: object) -> float:
    """Pictures a second of plain eager training."""
    import torch
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9, nesterov=True)
    for at in range(args.steps):
        if at == WARM:
            start = time.perf_counter()
        optimizer.zero_grad()
        sum(loss(model(batch.images.contiguous().float() / 255), batch.targets).values()).backward()
        optimizer.step()
    return args.batch_size * (args.steps - WARM) / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
