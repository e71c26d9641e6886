"""Memory of train.py, val.py, detect.py and its server, by images, batch, streams and cache.

    python -m tests.memory --counts 100 400 --out results/memory.json

Each case is the real script as a process of its own; the memory of all its processes is looked at twice a
second, shared pages counted once (PSS). grown_mb: the median of the last quarter of the samples at work less
that of the second. larger_than_memory: --cache auto is told of a tenth of the memory that the set would need.
Images are generated (data/scenes.py). The thousands are those of --set (or generated ones), each under many
names: train.py reads every file, and trains on 480 an epoch, three epochs, of which the last is timed.
"""
from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SIDE, SECONDS, PORT = 160, 12.0, 8765              # px of images and input; of live streams; of the server
EVERY = 0.5                                       # seconds between looks
LIMITED = "--limited"                              # bytes that --cache auto is told of, then train.py's flags
TRAIN = ("train.py", "--cfg", "micro-yolo", "--weights", "none", "--imgsz", SIDE, "--no-report", "--threads",
         1, "--precision", "fp32", "--val-interval", 99)
VAL = ("val.py", "--imgsz", 416, "--threads", 2, "--weights")
DETECT = ("detect.py", "--weights", ROOT / "weights/micro-yolo-voc5.pt", "--imgsz", 416, "--threads", 2)


def main() -> None:
    """Measure all cases, print a line each, write the JSON; with --limited be train.py in small memory."""
    if sys.argv[1:2] == [LIMITED]:
        return limited(int(sys.argv[2]), sys.argv[3:])
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--counts", type=int, nargs=2, default=(100, 400), metavar=("FEW", "MANY"))
    parser.add_argument("--thousands", type=int, default=10000, help="images of the largest set")
    parser.add_argument("--set", type=Path, help="whose training images those are (default: generated)")
    parser.add_argument("--only", nargs="+", help="names of cases begin with one of these")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, measure in cases(*args.counts, Path(folder), args.set, args.thousands).items():
            if not args.only or name.startswith(tuple(args.only)):
                found[name] = measure()
                print(f"{name:28} " + "  ".join(f"{key} {value}" for key, value in found[name].items()),
                      flush=True)
                record(args, found)


def record(args: argparse.Namespace, found: dict[str, dict]) -> None:
    """Write what was found so far."""
    if args.out:
        from utils.runs import environment, write_json
        given = f" --set SETS/{args.set.resolve().name}" if args.set else ""
        where = {**environment(), "command": "python -m tests.memory --counts {} {}".format(*args.counts)
                 + f" --thousands {args.thousands}{given}"}
        write_json(args.out, {"kind": "memory", "unit": "MB of 10^6 bytes, PSS over all processes",
                              "side": SIDE, "counts": list(args.counts), "runs": found,
                              "environment": where})


def limited(size: int, words: list[str]) -> None:
    """Run train.py as where `size` bytes of memory are free."""
    import train
    from data import dataset
    from utils import cli
    dataset.available_ram = lambda: size
    sys.argv = ["train.py", *words]
    cli.run(train.main)


def cases(few: int, many: int, folder: Path, given: Path | None,
          thousands: int) -> dict[str, Callable[[], dict]]:
    """Return what measures each case, by name."""
    sets = {count: scenes(folder / f"set{count}", count) for count in (few, many)}
    lists = {count: listed(sets[count], folder / f"{count}.txt", count) for count in sets}
    val, out = (*VAL, untrained(folder / "untrained.pt")), {}

    def add(name: str, command: tuple, *more: object, work: Callable | None = None, **fields: object) -> None:
        words = [*command, *more, "--project", folder / "runs", "--name", name]
        out[name] = lambda: {**fields, **watched(words, work)}
    for count in sets:
        for cache in ("auto", "off"):
            add(f"train_{count}_{cache}", TRAIN, "--data", sets[count], "--cache", cache, "--epochs",
                2 * many // count, images=count, batch=16, seen=2 * many)
            add(f"val_{count}_{'ram' if cache == 'auto' else cache}", val, "--data", sets[count], "--cache",
                cache, images=count, batch=16)
        add(f"detect_{count}", DETECT, "--source", lists[count], images=count, batch=1)
        out[f"serve_{count}"] = lambda count=count: {"images": count, **watched(
            [*DETECT, "--serve", "--port", PORT], lambda: ask(sets[many], count))}
    for batch in (4, 64):
        add(f"train_batch_{batch}", TRAIN, "--data", sets[few], "--epochs", 4, "--batch-size", batch,
            images=few, batch=batch)
        add(f"val_batch_{batch}", val, "--data", sets[few], "--batch-size", batch, images=few, batch=batch)
    for streams in (1, 2, 4):
        out[f"streams_{streams}"] = lambda streams=streams: {"streams": streams, **live(streams, folder)}
    add("larger_than_memory", small(many), "--data", sets[many], "--cache", "auto", "--epochs", 4,
        images=many, batch=16, seen=4 * many)
    for count in (thousands // 10, thousands):
        for name, begin in (("thousands", TRAIN), ("thousands_in_a_tenth", small(count))):
            out[f"{name}_{count}"] = lambda count=count, begin=begin, name=name: timed(
                [*begin, "--data", repeated(given or sets[many], folder / f"{name}{count}", count)],
                folder / "runs" / f"{name}_{count}", count)
    return out


def small(count: int) -> tuple:
    """Return train.py's command where a tenth of what so many images need is free."""
    return ("-m", "tests.memory", LIMITED, count * SIDE ** 2 * 3 // 10, *TRAIN[1:])


def timed(words: list, run: Path, count: int) -> dict:
    """Return what is seen of three epochs of 480 of a set's images, and the images/s of the last."""
    seen = watched([*words, "--cache", "auto", "--epochs", 3, "--epoch-images", 480, "--project", run.parent,
                    "--name", run.name])
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    took = rows[-1]["seconds"] - rows[-2]["seconds"]
    return {"images": count, "batch": 16, "seen": 1440, **seen, "images_per_second": round(480 / took, 1)}


def repeated(data: Path, folder: Path, count: int) -> Path:
    """Return a set of `count` training images, those of `data` as links, and its val split."""
    (folder / "annotations").mkdir(parents=True)
    (folder / "images").mkdir()
    train, val = (json.loads((data / f"annotations/instances_{split}.json").read_text())
                  for split in ("train", "val"))
    boxes: dict[int, list[dict]] = {}
    for box in train["annotations"]:
        boxes.setdefault(box["image_id"], []).append(box)
    links, images, again = [(image["file_name"],) * 2 for image in val["images"]], [], []
    for at in range(count):
        image = train["images"][at % len(train["images"])]
        links.append((image["file_name"], f"again{at}{Path(image['file_name']).suffix}"))
        images.append({**image, "id": at, "file_name": links[-1][1]})
        again += [{**box, "image_id": at} for box in boxes.get(image["id"], ())]
    train |= {"images": images, "annotations": [{**box, "id": at} for at, box in enumerate(again, 1)]}
    for source, name in links:
        os.symlink((data / "images" / source).resolve(), folder / "images" / name)
    for split, content in (("train", train), ("val", val)):
        (folder / f"annotations/instances_{split}.json").write_text(json.dumps(content))
    return folder


def scenes(folder: Path, count: int) -> Path:
    """Return a generated set of so many images in each split."""
    from data.scenes import make_scenes
    return make_scenes(folder, train=count, val=count, size=SIDE)


def untrained(file: Path) -> Path:
    """Write and return a checkpoint of micro-yolo for the set's classes, which sees next to nothing."""
    from data.scenes import NAMES
    from models.checkpoint import Checkpoint, save
    from models.network import Network, initialise
    from models.zoo.build import build
    net = build("micro-yolo", len(NAMES))
    save(file, Checkpoint(net, initialise(Network(net), 0, prior=1e-4).state_dict(), tuple(NAMES), 416))
    return file


def listed(data: Path, file: Path, count: int) -> Path:
    """Write and return a list of so many images of a set."""
    file.write_text("\n".join(map(str, sorted((data / "images").iterdir())[:count])))
    return file


def ask(data: Path, count: int) -> None:
    """Send so many images to the server, one after the other."""
    from tests.helpers.serve_cases import Client
    client, images = Client(PORT, ""), sorted((data / "images").iterdir())
    for _ in range(600):
        with suppress(OSError):
            client.first = json.loads(client.ask("GET", "/api/models")[2])["models"][0]["id"]
            break
        time.sleep(0.2)
    for k in range(count):
        status, body = client.detect(images[k % len(images)].read_bytes())
        if status != 200:
            raise RuntimeError(f"the server answered {status}: {body}")


def live(streams: int, folder: Path) -> dict:
    """Return what is seen of detect.py on so many MJPEG cameras for SECONDS."""
    from data.images import decode
    from tests.helpers.live_cases import MjpegCamera
    image = decode(next(folder.glob("set*/images/*")))[:, :, ::-1]
    cameras = [MjpegCamera(lambda _: image, 10.0).begin() for _ in range(streams)]
    sources = folder / f"cameras{streams}.txt"
    sources.write_text("\n".join(camera.address() for camera in cameras))
    try:
        return watched([*DETECT, "--source", sources, "--duration", SECONDS, "--project", folder / "runs",
                        "--name", f"streams{streams}", "--open-timeout", 60])
    finally:
        for camera in cameras:
            camera.kill()


def watched(words: list, work: Callable[[], None] | None = None) -> dict[str, float]:
    """Run a command, or for as long as `work` takes; return peak and growth in MB. Raises RuntimeError."""
    import threading
    child = subprocess.Popen([sys.executable, *map(str, words)], cwd=ROOT, stdout=subprocess.DEVNULL,
                             stderr=subprocess.PIPE, text=True)
    failed: list[Exception] = []

    def worker() -> None:
        try:
            work()
        except Exception as error:
            failed.append(error)
        child.send_signal(signal.SIGINT)
    if work is not None:
        threading.Thread(target=worker, daemon=True).start()
    samples: list[tuple[float, float]] = []
    while child.poll() is None:
        samples.append((time.monotonic(), sum(map(memory, tree(child.pid)))))
        time.sleep(EVERY)
    if failed or child.returncode not in (0, 130):
        raise RuntimeError(f"{' '.join(map(str, words))}: {failed or child.stderr.read()[-2000:]}")
    sizes = [size for _, size in samples]
    # at work: from the first sample with half of the most on, without the last ones, of the end
    begun = next(at for at, size in enumerate(sizes) if size >= max(sizes) / 2)
    busy = sizes[begun:max(begun + 4, len(sizes) - 2)]
    quarter = len(busy) // 4
    parts = busy[quarter:2 * quarter], busy[3 * quarter:]
    before, after = (statistics.median(part or busy) for part in parts)
    return {"peak_mb": round(max(sizes)), "grown_mb": round(after - before),
            "seconds": round(samples[-1][0] - samples[0][0])}


def tree(pid: int) -> list[int]:
    """Return a process and all that descend from it."""
    out = [pid]
    for at in out:
        with suppress(OSError):
            for task in os.listdir(f"/proc/{at}/task"):
                out += map(int, Path(f"/proc/{at}/task/{task}/children").read_text().split())
    return out


def memory(pid: int) -> float:
    """Return the MB of a process, a page that n processes share as the n-th part; 0 when it is gone."""
    with suppress(OSError):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024 / 1e6
    with suppress(OSError):                                # no such file, or not for us: all pages
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    return 0.0


if __name__ == "__main__":
    main()
