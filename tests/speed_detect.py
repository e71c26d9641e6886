"""How many pictures a second detect.py takes, beside `yolo predict` of another package: interleaved rounds.

    python -m tests.speed_detect --other OTHER_PYTHON --source PICTURES --runtime openvino --half --out X.json

OTHER_PYTHON is an interpreter that has ultralytics, which this project neither needs nor installs. Its
network is its own yolov3-tiny with random weights: it finds no boxes to draw, which is in its favour. Both
read the same JPEGs, run at the same side in the same runtime on as many threads as they choose themselves
(taskset pins both), and write drawn pictures. rate: pictures a second from the first picture to the last
written file, the model loaded and warm; whole: with the start of the process. With --commands the other side
is its own command, `yolo predict`, and has no rate; --count 1 is then the start.
"""
from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SIDES = ("ours", "theirs")
WRITTEN = {"ours": "detect", "theirs": "theirs"}           # folders of the drawn pictures
QUIET = {"YOLO_AUTOINSTALL": "false", "YOLO_OFFLINE": "true", "YOLO_VERBOSE": "false"}
PICTURES = (".jpg", ".jpeg")


def main() -> None:
    """Runs the rounds, prints the figures, writes the JSON; with --mode it is the other package's side."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--other", help="Python interpreter that has ultralytics")
    parser.add_argument("--weights", default="weights/micro-yolo-voc5.pt", help="checkpoint for detect.py")
    parser.add_argument("--network", default="yolov3-tiny.yaml", help="the other package's network")
    parser.add_argument("--source", type=Path, help="folder of JPEGs")
    parser.add_argument("--runtime", choices=("torch", "onnx", "openvino"), default="onnx")
    parser.add_argument("--half", action="store_true", help="detect.py --half (the other's default stays)")
    parser.add_argument("--imgsz", type=int, default=416)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--commands", action="store_true", help="time `yolo predict` on the other side")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--mode", choices=("make", "predict"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.mode:
        print(json.dumps({"make": make, "predict": predict}[args.mode](args)))
        return
    if not args.other or not args.source:
        parser.error("--other and --source are missing")
    with tempfile.TemporaryDirectory() as folder:
        args.folder = Path(folder)
        compare(args)


def compare(args: argparse.Namespace) -> None:
    """Exports both networks, runs the rounds in turn, reports."""
    pictures = sorted(p for p in args.source.iterdir() if p.suffix.lower() in PICTURES)[:args.count]
    (args.folder / "list.txt").write_text("".join(f"{p.resolve()}\n" for p in pictures))
    ours, theirs = exported(args), other(args, "make")
    found: dict[str, list[dict]] = {side: [] for side in SIDES}
    for at in range(args.rounds):
        for side in SIDES[at % 2:] + SIDES[:at % 2]:
            there = command if args.commands else predicted
            taken = detect(args, ours, len(pictures)) if side == "ours" else there(args, theirs["model"])
            found[side].append(taken)
            written = sum(p.suffix.lower() in PICTURES for p in (args.folder / WRITTEN[side]).iterdir())
            if written != len(pictures):
                raise SystemExit(f"{side}: {written} of {len(pictures)} pictures were written")
            print(side, {key: round(value, 2) for key, value in found[side][-1].items()}, flush=True)
    report(args, found, len(pictures), theirs["version"])


def exported(args: argparse.Namespace) -> str:
    """What detect.py is given: the checkpoint, or its export for the runtime."""
    if args.runtime == "torch":
        return args.weights
    subprocess.run([sys.executable, "export.py", "--weights", args.weights, "--format", args.runtime,
                    "--imgsz", str(args.imgsz), "--project", str(args.folder), "--name", "ours"], cwd=ROOT,
                   check=True)
    rows = json.loads((args.folder / "ours" / "export.json").read_text())["artifacts"]
    return str(args.folder / "ours" / rows[0]["file"])


def predicted(args: argparse.Namespace, model: str) -> dict[str, float]:
    """One run of the other package from Python: its rates."""
    return other(args, "predict", model)


def command(args: argparse.Namespace, model: str) -> dict[str, float]:
    """One run of the other package's command: pictures a second, with its start."""
    words = [str(Path(args.other).parent / "yolo"), "predict", f"model={model}", f"imgsz={args.imgsz}",
             f"source={args.folder / 'list.txt'}", f"project={args.folder}", f"name={WRITTEN['theirs']}",
             "exist_ok=True", "save=True", "verbose=False"]
    start = time.perf_counter()
    subprocess.run(words, cwd=args.folder, capture_output=True, check=True,
                   env={**os.environ, **QUIET, "YOLO_CONFIG_DIR": str(args.folder)})
    count = len((args.folder / "list.txt").read_text().splitlines())
    return {"whole": count / (time.perf_counter() - start)}


def detect(args: argparse.Namespace, weights: str, count: int) -> dict[str, float]:
    """One run of detect.py: its rates, and by another run its share of the bare network's speed."""
    source = args.folder / "list.txt"
    if count == 1:                                         # a user names the picture itself
        source = source.read_text().strip()
    words = ["--weights", weights, "--source", str(source), "--imgsz", str(args.imgsz),
             "--project", str(args.folder), "--name", WRITTEN["ours"], "--exist-ok"]
    start = time.perf_counter()
    subprocess.run([sys.executable, "detect.py", *words, "--half" if args.half else "--fp32"], cwd=ROOT,
                   check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - start
    summary = json.loads((args.folder / "detect" / "summary.json").read_text())
    if count > 1:
        words.append("--time-network")
        subprocess.run([sys.executable, "detect.py", *words, "--half" if args.half else "--fp32"], cwd=ROOT,
                       check=True, stdout=subprocess.DEVNULL)
    share = json.loads((args.folder / "detect" / "summary.json").read_text())["ratio"]
    return {"rate": summary["fps_end_to_end"], "whole": summary["frames"] / seconds, "share": share or 0.0}


def other(args: argparse.Namespace, mode: str, model: str = "") -> dict:
    """What the other interpreter answers in a mode of this file."""
    words = [args.other, str(Path(__file__).resolve()), "--mode", mode, "--folder", str(args.folder),
             "--imgsz", str(args.imgsz), "--runtime", args.runtime, "--network", args.network,
             "--model", model]
    start = time.perf_counter()
    done = subprocess.run(words, cwd=args.folder, capture_output=True, text=True, check=False,
                          env={**os.environ, **QUIET, "YOLO_CONFIG_DIR": str(args.folder)})
    if done.returncode:
        raise SystemExit(f"{args.other} --mode {mode} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    if "frames" in found:
        found["whole"] = found.pop("frames") / (time.perf_counter() - start)
    return found


def make(args: argparse.Namespace) -> dict[str, str]:
    """In the other interpreter: its network with random weights in the runtime's format."""
    import ultralytics
    model = ultralytics.YOLO(args.network)
    path = args.folder / "other.pt"                        # for a name it knows it would ask the internet
    model.save(path)
    if args.runtime != "torch":
        plain = {"simplify": False} if args.runtime == "onnx" and not find_spec("onnxslim") else {}
        path = ultralytics.YOLO(path).export(format=args.runtime, imgsz=args.imgsz, **plain)
    return {"model": str(path), "version": ultralytics.__version__}


def predict(args: argparse.Namespace) -> dict[str, float]:
    """In the other interpreter: pictures a second of its predict, which writes drawn pictures."""
    import ultralytics
    model, source = ultralytics.YOLO(args.model, task="detect"), args.folder / "list.txt"
    first = source.read_text().splitlines()[0]
    model.predict(first, imgsz=args.imgsz, verbose=False)
    start = time.perf_counter()
    found = model.predict(str(source), stream=True, imgsz=args.imgsz, verbose=False, save=True,
                          project=str(args.folder), name=WRITTEN["theirs"], exist_ok=True)
    frames = sum(1 for _ in found)
    return {"rate": frames / (time.perf_counter() - start), "frames": frames}


def report(args: argparse.Namespace, found: dict[str, list[dict]], count: int, version: str) -> None:
    """Prints and writes medians with their spread, and the ratios round by round."""
    from utils.runs import environment, write_json
    where = environment()
    where["command"] = str(where["command"]).replace(args.other, "OTHER_PYTHON")
    keys = [key for key in ("rate", "whole") if key in found["theirs"][0]]
    values = {f"{side}_{key}": [row[key] for row in found[side]] for side in SIDES for key in keys}
    values |= {f"{key}_ratio": [a[key] / b[key] for a, b in zip(found["ours"], found["theirs"])]
               for key in keys}
    values |= {"ours_rate": [row["rate"] for row in found["ours"]]}
    values["share_of_network"] = [row["share"] for row in found["ours"] if row["share"]]
    result: dict = {key: {"median": statistics.median(v), "min": min(v), "max": max(v)}
                    for key, v in values.items() if v}
    for key, value in result.items():
        print(f"{key:18} {value['median']:8.2f}   ({value['min']:.2f} .. {value['max']:.2f})")
    print(f"pictures a second, batch 1, {args.imgsz} px, {args.runtime}, {'half' if args.half else 'fp32'}")
    result |= {"unit": "pictures a second", "pictures": count, "imgsz": args.imgsz, "batch_size": 1,
               "runtime": args.runtime, "half": args.half, "commands": args.commands,
               "weights": args.weights, "rounds": args.rounds, "environment": where,
               "other": f"ultralytics {version} {args.network}, random weights"}
    if args.out:
        write_json(args.out, result)


if __name__ == "__main__":
    main()
