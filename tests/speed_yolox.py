"""Micro-YOLOs beside YOLOX-nano in ONNX Runtime: interleaved rounds on the same pictures, network alone.

    pip install --no-deps --target OTHER pixeltable-yolox loguru
    PYTHONPATH=OTHER python -m tests.speed_yolox --weights A.pt B.pt --source PICTURES --out results/X.json

YOLOX-nano (Ge et al. 2021, arXiv 2107.08430) is built by a package that no one here wrote and exported by
torch's own exporter, with random weights: time does not depend on them. It is timed as published (SiLU) and
with ReLU, which its authors do not use. Each network sees letterboxed pictures in the type that its file
takes: ours uint8, whose division by 255 is inside the file, the other's float.
"""
from __future__ import annotations

import argparse
import tempfile
import warnings
from pathlib import Path

import numpy as np

SIDE, PICTURES = 416, 16


def main() -> None:
    """Parses, exports, times in turn, prints and writes medians and the ratios round by round."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", nargs="+", required=True, help="checkpoints; the first is compared")
    parser.add_argument("--source", required=True, help="a folder of pictures")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    from bench.profile import timing
    from utils.runs import environment, write_json
    images = pictures(args.source)
    with tempfile.TemporaryDirectory() as folder:
        files = ours(args.weights, Path(folder)) | theirs(Path(folder))
        calls = {name: call(path, images, args.threads) for name, path in files.items()}
    timing.warm_up(calls)
    times = timing.interleaved(calls, args.rounds, 600)
    first = next(iter(times))
    result = {name: timing.summary(t) | timing.ratio(t, times[first]) for name, t in times.items()}
    for name, found in result.items():
        low, high = found["ratio_quartiles"]
        print(f"{name:22} {found['ms']:7.2f} ms   {first} {found['ratio']:.2f} times as fast "
              f"({low:.2f} .. {high:.2f})")
    if args.out:
        write_json(args.out, {"unit": "ms a picture", "networks": result, "first": first, "imgsz": SIDE,
                              "batch_size": 1, "precision": "fp32", "runtime": "onnxruntime",
                              "threads": args.threads, "rounds": args.rounds, "environment": environment()})


def ours(weights: list[str], folder: Path) -> dict[str, Path]:
    """Name -> ONNX file of our own writer."""
    from deploy.onnx_file import to_onnx
    from models import checkpoint as checkpoints
    out = {}
    for name in weights:
        found, key = checkpoints.load(name), Path(name).stem.replace("-", "_")
        out[key] = folder / f"{key}.onnx"
        out[key].write_bytes(to_onnx(found.net, found.state, SIDE))
    return out


def theirs(folder: Path) -> dict[str, Path]:
    """Name -> ONNX file of torch's exporter, decoding left out as in ours."""
    import torch
    from yolox.config import YoloxNano
    from yolox.models.yolo_head import YoloxHead
    from yolox.models.yolo_pafpn import YoloPafpn
    from yolox.models.yolox import YoloxModule
    out, config = {}, YoloxNano()
    for act in ("silu", "relu"):
        net = YoloxModule(YoloPafpn(config.depth, config.width, depthwise=True, act=act),
                          YoloxHead(80, config.width, act=act, depthwise=True)).eval()
        net.head.decode_in_inference = False
        out[f"yolox_nano_{act}"] = path = folder / f"yolox_nano_{act}.onnx"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")                # the exporter on its own age
            torch.onnx.export(net, (torch.rand(1, 3, SIDE, SIDE),), str(path), opset_version=17, dynamo=False)
    return out


def pictures(source: str) -> list[np.ndarray]:
    """Letterboxed pictures uint8 [1, 3, S, S], evenly chosen."""
    from data.augment import letterbox
    from data.images import decode
    files = sorted(path for path in Path(source).iterdir() if path.suffix.lower() in (".jpg", ".png"))
    chosen = [files[i * len(files) // PICTURES] for i in range(PICTURES)]
    boxed = [letterbox(decode(path), SIDE)[0] for path in chosen]
    return [np.ascontiguousarray(picture.transpose(2, 0, 1)[None]) for picture in boxed]


def call(path: Path, images: list[np.ndarray], threads: int) -> object:
    """A function of the round's number that runs the file on one of the pictures."""
    import onnxruntime as ort
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    wanted = session.get_inputs()[0]
    if wanted.type == "tensor(float)":
        images = [image.astype(np.float32) for image in images]
    return lambda at: session.run(None, {wanted.name: images[at % len(images)]})


if __name__ == "__main__":
    main()
