"""What `--fast-jpeg` saves and what it costs, on a set's val images enlarged: interleaved runs and two APs.

    python -m tests.speed.jpeg --weights X.onnx --data SETS/voc5 --also SETS/voc5 Y.pt 224 --out X.json

The images are enlarged `--times` times (Lanczos, JPEG quality 90) in a temporary folder, for want of a set of
photographs that large; what enlarging leaves out of an image, shrinking need not keep, so AP on them says
little of real ones. `--also`: a further set as it is, its network and side, for AP alone. Rate: images a
second of detect.py, from the first image to the last written label, the model loaded and warm.
"""
from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2

from data.coco.locate import locate
from utils.runs import environment, write_json

ROOT = Path(__file__).resolve().parents[2]
SIDES = {"whole": (), "fast": ("--fast-jpeg",)}


def main() -> None:
    """Make the set, run the rounds, print the figures, write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--also", nargs=3, action="append", default=[],
                        metavar=("DATA", "WEIGHTS", "SIDE"))
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        paths = enlarged(args.data, args.times, Path(folder) / "large")
        (Path(folder) / "list.txt").write_text("".join(f"{path}\n" for path in paths[:args.count]))
        rates: dict[str, list[float]] = {side: [] for side in SIDES}
        for at in range(args.rounds):
            for side in list(SIDES)[::1 - at % 2 * 2]:
                rates[side].append(rate(args.weights, Path(folder), side))
        sets = {f"{Path(args.data).name} val, {args.times} times as large": (folder + "/large", args.weights),
                **{f"{Path(data).name} val, as it is": (data, *more) for data, *more in args.also}}
        accuracy = {name: {side: measured(Path(folder), side, *given) for side in SIDES}
                    for name, given in sets.items()}
    ratios = [fast / whole for whole, fast in zip(rates["whole"], rates["fast"])]
    record = {"kind": "fast-jpeg", "weights": Path(args.weights).name, "images": len(paths[:args.count]),
              "times": args.times, "rounds": args.rounds,
              "images_a_second": {side: statistics.median(found) for side, found in rates.items()},
              "spread": {side: [min(found), max(found)] for side, found in rates.items()},
              "ratio": statistics.median(ratios), "ratio_spread": [min(ratios), max(ratios)],
              "accuracy": accuracy, "environment": {**environment(), "threads": 1}}
    print(json.dumps(record, indent=1))
    if args.out:
        write_json(args.out, record)


def enlarged(data: str, times: int, out: Path) -> list[Path]:
    """Write a set's val images and boxes, enlarged, and return the images."""
    split = locate(data).val
    content, paths = json.loads(Path(split.json).read_text(encoding="utf-8")), []
    for name in ("annotations", "images"):
        (out / name).mkdir(parents=True)
    for image in content["images"]:
        pixels = cv2.imread(str(Path(split.images) / image["file_name"]))
        large = cv2.resize(pixels, None, fx=times, fy=times, interpolation=cv2.INTER_LANCZOS4)
        paths.append(out / "images" / image["file_name"])
        cv2.imwrite(str(paths[-1]), large, [cv2.IMWRITE_JPEG_QUALITY, 90])
        image["height"], image["width"] = large.shape[:2]
    for box in content["annotations"]:
        box["bbox"], box["area"] = [value * times for value in box["bbox"]], box["area"] * times ** 2
    (out / "annotations" / "instances_val.json").write_text(json.dumps(content), encoding="utf-8")
    return paths


def rate(weights: str, folder: Path, side: str) -> float:
    """Return the images a second that detect.py goes through, writing labels alone."""
    run("detect.py", "--weights", weights, "--source", folder / "list.txt", "--nosave", "--save-txt",
        "--threads", 1, "--project", folder, "--name", "detect", "--exist-ok", *SIDES[side])
    return json.loads((folder / "detect" / "summary.json").read_text(encoding="utf-8"))["fps_end_to_end"]


def measured(folder: Path, side: str, data: str, weights: str, imgsz: str = "") -> dict[str, object]:
    """Return AP50, AP and the ms an image that val.py waits for images, read in its own process."""
    run("val.py", "--weights", weights, "--data", data, "--threads", 1, "--workers", 0, "--project", folder,
        "--name", "val", "--exist-ok", "--out", folder / "val.json", *SIDES[side],
        *(("--imgsz", imgsz) if imgsz else ()))
    found = json.loads((folder / "val.json").read_text(encoding="utf-8"))
    return {"map50": found["map50"], "map50_95": found["map50_95"], "images": found["images"],
            "imgsz": found["settings"]["imgsz"], "weights": Path(weights).name,
            "reading_ms": found["ms_per_image"]["waiting for images"]}


def run(*words: object) -> None:
    """Run a script of this checkout."""
    subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
