"""Training step and eager inference of this checkout beside another one, in one interleaved run.

python -m tests.speed_commit --other OTHER_CHECKOUT --rounds 20 --threads 1 --out results/speed-commit.json

Each network of each checkout lives in a process of its own that waits for its turn; a round asks all of them,
in an order drawn anew, for one training step (forward, loss, backward, fused SGD, channels_last) and one
inference (folded, channels_last). Ratios are taken round by round: other / this, above 1 where this checkout
is faster.
"""
from __future__ import annotations

import argparse
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NETWORKS = ("yolov3-tiny", "micro-yolo")
KINDS = ("train", "infer")


def main() -> None:
    """Run the rounds, print the table, write the JSON; with --worker answer to one parent."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--other", type=Path)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--imgsz", type=int, default=416)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--worker", nargs=2, metavar=("ROOT", "NETWORK"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        serve(args, *args.worker)
        return
    words = ["--threads", str(args.threads), "--imgsz", str(args.imgsz), "--batch-size", str(args.batch_size)]
    workers = {(side, name): subprocess.Popen(
        [sys.executable, str(Path(__file__).resolve()), *words, "--worker", str(root), name], text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=root)
        for side, root in (("this", ROOT), ("other", args.other.resolve())) for name in NETWORKS}
    times = {(kind, *key): [] for kind in KINDS for key in workers}
    for at in range(-2, args.rounds):                      # two rounds warm up
        for kind in KINDS:
            for key in random.Random(f"{kind} {at}").sample(list(workers), len(workers)):
                print(kind, file=workers[key].stdin, flush=True)
                taken = float(workers[key].stdout.readline())
                times[(kind, *key)] += [taken] * (at >= 0)
    for worker in workers.values():
        worker.stdin.close()
        worker.wait()
    report(args, times)


def report(args: argparse.Namespace, times: dict[tuple[str, str, str], list[float]]) -> None:
    """Print and write, in ms, each side's median with its quartiles, and the ratio round by round."""
    from utils.runs import environment, write_json
    rows = {}
    for kind in KINDS:
        for name in NETWORKS:
            this, other = times[kind, "this", name], times[kind, "other", name]
            row = {"this_ms": spread(this), "other_ms": spread(other),
                   "ratio": spread([b / a for a, b in zip(this, other)])}
            rows[f"{name} {kind}"] = row
            print(f"{name:12} {kind:6} this {row['this_ms'][1]:8.2f}  other {row['other_ms'][1]:8.2f}  "
                  "ratio {1:.3f} ({0:.3f} .. {2:.3f})".format(*row["ratio"]))
    if args.out:
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=args.other, capture_output=True,
                                text=True, check=True).stdout.strip()
        write_json(args.out, {
            "rows": rows, "unit": "ms; quartiles", "other_commit": commit, "rounds": args.rounds,
            "threads": args.threads, "imgsz": args.imgsz, "train_batch": args.batch_size, "infer_batch": 1,
            "precision": "fp32", "environment": environment()})


def spread(values: list[float]) -> list[float]:
    """The quartiles."""
    return statistics.quantiles(values, n=4, method="inclusive")


def network(root: str, name: str) -> tuple[object, object, object]:
    """The network of the checkout at root with fresh weights, the same folded, and its loss."""
    sys.path.insert(0, root)
    try:
        from compress.fold import fold
        from models.heads.loss import DetectionLoss
        from models.network import Network, from_state, initialise
        from models.zoo.build import build
        loss = DetectionLoss(build(name))
    except ImportError:                                    # checkouts before the packages had these names
        from models.decode import head_specs
        from models.fold import fold
        from models.loss import DetectionLoss

        from models.network import Network, from_state, initialise
        from models.zoo import build
        loss = DetectionLoss(head_specs(build(name)))
    model = initialise(Network(build(name)), 0)
    return model, from_state(*fold(model.net, model.state_dict())), loss


def serve(args: argparse.Namespace, root: str, name: str) -> None:
    """Answer each line of stdin with the ms of what it names."""
    model, folded, loss = network(root, name)
    import torch
    torch.set_num_threads(args.threads)
    folded = folded.to(memory_format=torch.channels_last)
    model = model.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(model.parameters(), 1e-4, momentum=0.9, nesterov=True, fused=True)
    images = torch.rand(args.batch_size, 3, args.imgsz, args.imgsz)
    images = images.contiguous(memory_format=torch.channels_last)
    targets = torch.rand(4 * args.batch_size, 6)
    targets[:, 0] = torch.arange(len(targets)) % args.batch_size
    targets[:, 1] = torch.arange(len(targets)) % 80
    targets[:, 4:] = 0.1 + 0.3 * targets[:, 4:]

    def train() -> None:
        optimizer.zero_grad()
        sum(loss(model(images), targets).values()).backward()
        optimizer.step()

    def infer() -> None:
        with torch.inference_mode():
            folded(images[:1])
    for line in sys.stdin:
        start = time.perf_counter()
        {"train": train, "infer": infer}[line.strip()]()
        print(1000 * (time.perf_counter() - start), flush=True)


if __name__ == "__main__":
    main()
