"""A video through detect.py by this code and by another: interleaved rounds, each stage, memory.

    git worktree add OLD COMMIT
    python -m tests.speed.video --old OLD --source cars.mp4 --out results/video-1080p.json

The video is scaled to --size first. Of each side: frames a second from the first to the last written,
what the network alone makes on all threads, the largest resident memory, and the drawn file's size; with
--nosave as well. stages: ms of CPU time a frame, of all threads of one process, a stage after the other:
decode, read (decode, and RGB where it is made), fit, network, boxes, draw, write. taskset pins both sides.
"""
from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

from tests.speed_detect import ROOT, exported


def main() -> None:
    """Runs the rounds, prints the figures, writes the JSON; with --mode it is one step in its own process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--old", type=Path, help="folder of the other code, with this one's packages")
    parser.add_argument("--source", type=Path, help="video")
    parser.add_argument("--weights", default="weights/micro-yolo-fast-voc5.pt", help="a .pt, or its .onnx")
    parser.add_argument("--imgsz", type=int, default=416)
    parser.add_argument("--size", type=int, nargs=2, default=(1920, 1080), metavar=("W", "H"))
    parser.add_argument("--count", type=int, default=150, help="frames")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--mode", choices=("film", "stages"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.mode:
        print(json.dumps({"film": scaled, "stages": stages}[args.mode](args)))
        return
    if not args.old or not args.source:
        parser.error("--old and --source are missing")
    with tempfile.TemporaryDirectory() as folder:
        args.folder, args.runtime = Path(folder), "onnx"
        if not args.weights.endswith(".onnx"):
            args.weights = exported(args)
        # Not here: a child's largest memory begins with what its parent had
        subprocess.run([sys.executable, __file__, "--mode", "film", "--source", args.source, "--count",
                        str(args.count), "--size", *map(str, args.size), "--out", args.folder / "film.mp4"],
                       check=True, cwd=ROOT,
                       env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL)
        report(args, rounds(args))


def scaled(args: argparse.Namespace) -> None:
    """Writes the first frames of a video at --size in H.264, as cameras do."""
    import av
    options = {"preset": "medium", "crf": "21"}
    with av.open(str(args.source)) as given, av.open(str(args.out), "w") as film:
        shown = given.streams.video[0]
        stream = film.add_stream("libx264", rate=shown.average_rate, options=options)
        stream.width, stream.height, stream.pix_fmt = *args.size, "yuv420p"
        for number, frame in enumerate(islice(given.decode(shown), args.count)):
            frame = frame.reformat(*args.size, "yuv420p", interpolation="BICUBIC")
            frame.pts, frame.time_base, frame.pict_type = number, 1 / shown.average_rate, 0
            film.mux(stream.encode(frame))
        film.mux(stream.encode(None))


def rounds(args: argparse.Namespace) -> dict[str, list[float]]:
    """Every figure of every round, by side and name; the sides take turns."""
    sides = {"old": args.old.resolve(), "new": ROOT}
    found: dict[str, list[float]] = {}
    for at in range(args.rounds):
        for side in list(sides)[::1 if at % 2 else -1]:
            row = {f"{how}_{key}": value for how, flags in (("drawn", ()), ("nosave", ("--nosave",)))
                   for key, value in detected(args, sides[side], flags).items()}
            row |= {f"stage_{key}": value for key, value in staged(args, sides[side]).items()}
            for key, value in row.items():
                found.setdefault(f"{side}_{key}", []).append(value)
            print(at, side, {key: round(value, 2) for key, value in row.items()}, flush=True)
    return found


def detected(args: argparse.Namespace, root: Path, flags: tuple[str, ...]) -> dict[str, float]:
    """One run of a side's detect.py, and another for the bare network's rate where that is asked for."""
    told, used = ran(args, root, flags)
    file_kb = {} if flags else {"file_kb": (args.folder / "run" / "film.mp4").stat().st_size / 1000}
    alone = told["fps_network_alone"]
    if alone is None:
        alone = ran(args, root, (*flags, "--time-network"))[0]["fps_network_alone"]
    return {"fps": told["fps_end_to_end"], "network_fps": alone, "share": told["fps_end_to_end"] / alone,
            "memory_mb": used.ru_maxrss * 1024 / 1e6, "core_ms": 1000 * (used.ru_utime + used.ru_stime)
            / told["frames"], **file_kb}


def ran(args: argparse.Namespace, root: Path, flags: tuple[str, ...]) -> tuple[dict, resource.struct_rusage]:
    """The summary of one run of a side's detect.py, and what it used."""
    words = ["detect.py", "--weights", args.weights, "--source", str(args.folder / "film.mp4"), "--imgsz",
             str(args.imgsz), "--project", str(args.folder), "--name", "run", "--exist-ok", *flags]
    with subprocess.Popen([sys.executable, *words], cwd=root, stdout=subprocess.DEVNULL) as child:
        _, code, used = os.wait4(child.pid, 0)
    if code:
        raise SystemExit(f"{root}: detect.py ended with {code}")
    return json.loads((args.folder / "run" / "summary.json").read_text()), used


def staged(args: argparse.Namespace, root: Path) -> dict[str, float]:
    """One run of the stages by a side's code: this file with that folder's packages."""
    words = [__file__, "--mode", "stages", "--weights", args.weights, "--imgsz", str(args.imgsz), "--source",
             str(args.folder / "film.mp4")]
    done = subprocess.run([sys.executable, *words], cwd=root, check=True, stdout=subprocess.PIPE,
                          env={**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{ROOT}"})
    return json.loads(done.stdout.splitlines()[-1])


def timed(times: list[float], work: Callable, *given: object) -> object:
    """What the work returns; its ms of CPU time go to `times`."""
    start = time.process_time()
    made = work(*given)
    times.append(1000 * (time.process_time() - start))
    return made


def stages(args: argparse.Namespace, count: int = 40) -> dict[str, float]:
    """Median ms of CPU time of each stage over some frames, the first five aside."""
    import av

    from data.augment import letterbox
    from deploy.runtimes.runtime import load_runtime
    from detection.draw import draw
    from detection.video import Recorder, probe, read
    from models.heads.nms import detections
    from utils.boxes import scale_back
    runtime, info = load_runtime(args.weights, "cpu", "fp32", 1), probe(args.source)
    out: dict[str, list[float]] = {name: [] for name in "decode read fit network boxes draw write".split()}

    def frames(name: str, items: Iterator) -> Iterator:
        for _ in range(count):
            yield timed(out[name], next, items)
    with av.open(str(args.source)) as film:
        for _ in frames("decode", film.decode(video=0)):
            pass
    video = Recorder(args.source.with_name("stages"), live=False)
    for image, at in frames("read", read(args.source)):
        fit = letterbox if not hasattr(image, "letterbox") else type(image).letterbox
        given, place = timed(out["fit"], fit, image, args.imgsz)
        maps = timed(out["network"], runtime.predict, given.transpose(2, 0, 1)[None])
        boxes = timed(out["boxes"], detections, maps, runtime.heads, 0.25, 0.45, 300)[0][0]
        boxes = scale_back(boxes, place, *image.shape[:2])
        drawn = timed(out["draw"], draw, image, boxes, runtime.names)
        timed(out["write"], video.write, drawn, at, info)
    video.close()
    return {name: statistics.median(values[5:]) for name, values in out.items()}


def report(args: argparse.Namespace, found: dict[str, list[float]]) -> None:
    """Prints and writes medians with their spread, and new over old round by round."""
    from utils.runs import environment, write_json
    names = [key.removeprefix("new_") for key in found if key.startswith("new_")]
    found |= {f"{name}_ratio": [new / old for new, old in zip(found[f"new_{name}"], found[f"old_{name}"])]
              for name in names if all(found[f"old_{name}"])}
    result: dict = {key: {"median": statistics.median(v), "min": min(v), "max": max(v)}
                    for key, v in found.items()}
    for key, value in result.items():
        print(f"{key:26} {value['median']:9.2f}   ({value['min']:.2f} .. {value['max']:.2f})")
    where = environment()
    for path in (args.weights, args.source, args.old):
        where["command"] = str(where["command"]).replace(str(path), Path(path).name)
    result |= {"kind": "video", "size": list(args.size), "frames": args.count, "imgsz": args.imgsz,
               "rounds": args.rounds, "environment": where, "unit": "frames a second, ms of a core, MB"}
    if args.out:
        write_json(args.out, result)


if __name__ == "__main__":
    main()
