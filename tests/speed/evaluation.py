"""Seconds of val.py, from the command to its last line, in this checkout and another: interleaved rounds.

    python -m tests.speed.evaluation --other CHECKOUT --data SETS/voc5 --threads 2 --out X.json

Both evaluate the same checkpoint on the same set in torch and fp32. AP of both sides is in the record, and so
are the stages' ms an image as each side counts them.
"""
from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from utils.runs import environment, write_json

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    """Run the rounds, print the figures, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--other", type=Path, required=True, help="another checkout")
    parser.add_argument("--weights", type=Path, default=ROOT / "weights/micro-yolo-voc5.pt")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    found: dict[str, list[tuple[float, dict]]] = {"this": [], "other": []}
    with tempfile.TemporaryDirectory() as folder:
        for at in range(args.rounds):
            for side in random.Random(at).sample(list(found), 2):
                found[side].append(once(args, ROOT if side == "this" else args.other, Path(folder)))
            print("  ".join(f"{side} {runs[-1][0]:.2f} s" for side, runs in found.items()), flush=True)
    record(args, found)


def once(args: argparse.Namespace, root: Path, folder: Path) -> tuple[float, dict]:
    """Return the seconds of one evaluation and its metrics.json."""
    out = folder / "figures.json"
    words = [sys.executable, root / "val.py", "--weights", args.weights.resolve(), "--data",
             args.data.resolve(), "--threads", args.threads, "--project", folder, "--out", out]
    began = time.perf_counter()
    subprocess.run([str(word) for word in words], cwd=root, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began, json.loads(out.read_text(encoding="utf-8"))


def record(args: argparse.Namespace, found: dict[str, list[tuple[float, dict]]]) -> None:
    """Print the medians and the ratio by round; write them with both sides' AP and stages."""
    ratios = [other / this for (this, _), (other, _) in zip(found["this"], found["other"], strict=True)]
    made = {"kind": "evaluation-speed", "weights": args.weights.name, "data": args.data.name,
            "threads": args.threads, "rounds": args.rounds, "unit": "s of the whole command",
            "ratio": spread(ratios)}
    for side, runs in found.items():
        stages = {name: median(one["ms_per_image"][name] for _, one in runs)
                  for name in runs[0][1]["ms_per_image"]}
        made[side] = {"seconds": spread([seconds for seconds, _ in runs]), "images": runs[0][1]["images"],
                      "commit": runs[0][1]["environment"]["commit"] or args.other.name,
                      "ms_per_image": stages,
                      **{key: runs[0][1][key] for key in ("map50", "map50_95")}}
    print(f"this {made['this']['seconds']}, other {made['other']['seconds']}, ratio {made['ratio']}")
    if args.out:
        command = f"python -m tests.speed.evaluation --rounds {args.rounds} --threads {args.threads}"
        write_json(args.out, {**made, "environment": {**environment(), "command": command}})


def spread(values: list[float]) -> dict[str, float]:
    """Return the median, the smallest and the largest."""
    return {"median": median(values), "min": min(values), "max": max(values)}


if __name__ == "__main__":
    main()
