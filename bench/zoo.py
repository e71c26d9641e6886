"""docs/zoo.md: every network of the zoo, counted and pictured: `python -m bench.zoo [--measure] [--check]`.

--measure times all detectors on this machine first, into results/zoo-speed.json, which the page shows.
"""
from __future__ import annotations

import argparse
import inspect
import re
import sys
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path

from bench.compare.config import RUNTIMES
from bench.profile.latency import layer_bytes
from models.count import macs, parameters
from models.graph import classes_of, strides
from models.layer import Net
from models.zoo import nano
from models.zoo.build import ZOO, build
from models.zoo.classifiers import CLASSIFIERS
from models.zoo.tiny import STEMS
from utils import cli, runs
from utils.errors import DataError
from utils.text import markdown

ROOT = Path(__file__).resolve().parent.parent
PAGE, RECORD = "docs/zoo.md", "zoo-speed"
SIDE, CLASSIFIED = 320, 224                                # px of detectors, and of classifiers
# Where a network's builder does not name its paper itself.
SOURCES = {"yolov3-tiny": "arXiv 1804.02767, darknet", "micro-yolo": "Hu & Li, ICAART 2021",
           "micro-yolo-pruned": "Hu & Li, ICAART 2021", "micro-yolo-fast": "this project",
           **dict.fromkeys(STEMS, "this project"),
           "micro-yolo-plus": "SN Computer Science 3:391", "yolov5n-class": "arXiv 1911.11929, 1803.01534",
           "yolox-nano": "arXiv 2107.08430", "nanodet-m": "arXiv 2006.04388, NanoDet's ncnn files",
           "nanodet-plus-m": "github.com/RangiLyu/nanodet, its description",
           "mobilenet-v2": "arXiv 1801.04381", "mnasnet-b1": "arXiv 1807.11626",
           "efficientnet-lite0": "arXiv 1905.11946, its Lite form", "mobilenet-v3-small": "arXiv 1905.02244",
           "mobilenet-v3-large": "arXiv 1905.02244"}
INTRO = f"""# The zoo
Every network by name, for `--cfg`. Written by `python -m bench.zoo`; `tests/bench/test_zoo_page.py` compares.
Parameters and multiply-adds are counted from the records: detectors with 80 classes at {SIDE} px, classifiers
with 1,000 at {CLASSIFIED}. MB moved: fp32 weights, operations' inputs and outputs, once an image, folded.
"""
GRAMMAR = """## Nano detectors by parts
`nano:BACKBONE+PART+...`, parts in any order, one of each kind; in **bold** what is meant where none is said.

| kind | parts |
|---|---|
| neck | **`pan`** `fpn` `bifpn` `none` |
| its blocks | **`csp-neck`** `ghost-neck` `gsconv-neck` |
| pyramid behind the backbone | **`sppf`** `aspp` `aspp-dw` `flat` (none) |
| head | **`anchor`** `free`, or another kind of `models/heads` |
| numbers | `width=64` of the finest level, `rates=3,6,9` of an ASPP, `act=swish` of the neck |

`nano:csp` is `yolov5n-class`. Below, each backbone with nothing else said.
"""
MISSING = (
    ("YOLOv5n, YOLO11n, YOLO26n themselves", "code and weights are AGPL; `compare.py --peers` trains them by "
     "their own program; `yolov5n-class` has YOLOv5n's size"),
    ("EfficientDet-D0", "weights of a sum's inputs, and towers that all levels share, are not in the "
     "vocabulary; `efficientdet-lite` weighs alike, has a tower a level and EfficientNet-Lite0"),
    ("EfficientNet-B0", "its squeeze-excitation has SiLU inside, ours ReLU; `efficientnet-lite0` has none"),
    ("SSDLite down to one cell", "grids are the image's side divided by a power of two; "
     "`ssdlite-mobilenet-v2` ends at 64 px a cell"),
    ("ThunderNet's second stage", "crops boxes from the map, which no exported graph here does; `thundernet` "
     "has its context and attention before a single stage"),
    ("MixNet, FBNet", "results of searches, no published file of which was read; a `net.json` can hold them"),
    ("PP-LCNet", "squeeze-excitation before an activated 1x1, for which there is no block; nearest is "
     "`mobilenet-v1`"),
    ("ESPNet", "a segmentation network"),
    ("SENet, ResNet, VGG, AlexNet, GoogLeNet", "named as what light networks are measured by"),
    ("NetAdapt, AMC, AutoSlim, slimmable networks", "methods, not networks: see `prune.py` and `search.py`"))


def page(record: Mapping | None) -> str:
    """Return the page's text; record: of `measured`, None where nothing was."""
    speed = record["speed"] if record else {}
    timed = [runtime for runtime in RUNTIMES if any(runtime in row for row in speed.values())]
    parts = [INTRO]
    if record:
        machine = record["environment"]
        parts.append(f"ms an image: fp32, batch 1, {record['threads']} thread(s), networks taking turns, "
                     f"{machine.get('cpu', 'CPU')}, {machine.get('date', '')}; "
                     f"[record](../results/{RECORD}.json). Largest spread of a time (quartiles over median): "
                     f"{max(row['spread'] for row in speed.values()):.0%}.\n")
    detectors = [name for name in ZOO if name not in CLASSIFIERS]
    parts += ["## Detectors", _table(detectors, SIDE, 80, speed, timed), GRAMMAR,
              _table([f"{nano.PREFIX}{name}" for name in CLASSIFIERS], SIDE, 80, speed, timed),
              "## Classifiers, which are the backbones", _table(list(CLASSIFIERS), CLASSIFIED, 1000, {}, []),
              "## Named by the surveys and not built", markdown(["network", "why"], MISSING) + "\n",
              "## Their rows", "A line a stride: block, kernel where not 3, channels; `x4`: four "
              "alike. A row that joins others says how: `add`, `concat`.", *map(_drawn, ZOO)]
    return "\n".join(parts).rstrip() + "\n"


def _table(names: list[str], side: int, classes: int, speed: Mapping[str, Mapping], timed: list[str]) -> str:
    rows = []
    for name in names:
        net = build(name, classes)
        ms = [f"{speed[name][key]:.1f}" if key in speed.get(name, {}) else "-" for key in timed]
        rows.append([f"`{name}`", f"{parameters(net):,}", f"{macs(net, side) / 1e6:,.1f}",
                     f"{sum(layer_bytes(net, side, 4).values()) / 1e6:,.1f}", *ms, source(name)])
    return markdown(["network", "parameters", "MMACs", "MB moved", *(f"ms {key}" for key in timed), "source"],
                    rows) + "\n"


def source(name: str) -> str:
    """Return where a network is from: SOURCES, else the paper that its builder's docstring names."""
    if name.startswith(nano.PREFIX):
        return "its parts'"
    make = ZOO[name]
    found = re.search(r"arXiv \d{4}\.\d{5}", inspect.getdoc(getattr(make, "func", make)) or "")
    if name not in SOURCES and not found:
        raise DataError(f"{name} names no source: bench/zoo.py SOURCES, or an arXiv number in its docstring")
    return SOURCES.get(name) or found.group()


def drawn(net: Net) -> str:
    """Return the rows of a network as text, a line a stretch of one stride."""
    at, lines = strides(net), []
    for stride, rows in groupby(net, key=lambda row: at[row.name]):
        words = []
        for word, same in groupby(" ".join(filter(None, (
                row.op, "" if row.kernel == 3 else f"k{row.kernel}", str(row.out or "")))) for row in rows):
            count = len(list(same))
            words.append(word + (f" x{count}" if count > 1 else ""))
        lines.append(f"{f'1/{stride}' if stride else '1x1':>5}  " + ", ".join(words))
    return "\n".join(lines)


def _drawn(name: str) -> str:
    net = build(name)
    return (f"<details><summary><code>{name}</code>, {len(net)} rows, {classes_of(net)} classes</summary>\n\n"
            f"```\n{drawn(net)}\n```\n</details>\n")


def measured(rounds: int = 20, threads: int = 1) -> dict[str, object]:
    """Return the record of every detector's and nano net's ms, by runtime, on this machine."""
    import torch

    from bench.compare.speed import measure
    names = [*(name for name in ZOO if name not in CLASSIFIERS), *(f"{nano.PREFIX}{b}" for b in CLASSIFIERS)]
    images = torch.randint(0, 256, (8, 3, SIDE, SIDE), dtype=torch.uint8,
                           generator=torch.Generator().manual_seed(0))
    speed = measure({name: build(name, 80) for name in names}, {}, tuple(map(str, range(80))), SIDE, images,
                    runtimes=RUNTIMES, rounds=rounds, threads=threads)
    return {"kind": "zoo-speed", "imgsz": SIDE, "threads": threads, "rounds": rounds, "speed": speed,
            "environment": runs.environment()}


def main() -> None:
    """Write the page, or say whether it is what the records count."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", action="store_true", help="time all detectors first, on idle cores")
    parser.add_argument("--check", action="store_true", help="write nothing; 3 where the page is another")
    args = parser.parse_args()
    if args.measure:
        runs.save_record(RECORD, measured())
    file = ROOT / "results" / f"{RECORD}.json"
    text = page(runs.read_object(file) if file.is_file() else None)
    if args.check and (ROOT / PAGE).read_text(encoding="utf-8") != text:
        raise DataError(f"{PAGE} is not what the records count; write it again: python -m bench.zoo")
    if not args.check:
        runs.write_text(ROOT / PAGE, text)
        print(PAGE, file=sys.stderr)


if __name__ == "__main__":
    cli.run(main)
