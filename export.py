"""Files for other runtimes, each kept only when it computes what the checkpoint does (--format onnx ncnn)."""
from __future__ import annotations

import argparse
import time
from pathlib import Path

from utils import cli

FORMATS = ("onnx", "openvino", "ncnn", "torchscript", "web")
SHARED = ("weights", "data", "val-split", "seed", "imgsz", "conf-thres", "iou-thres", "max-det", "threads",
          "project", "name", "exist-ok")
DEFAULTS = {"project": "runs/export", "conf-thres": 0.25, "iou-thres": 0.45, "max-det": 300}


def parse() -> argparse.Namespace:
    """Return the checked command line."""
    parser = cli.parser(__doc__.splitlines()[0], *SHARED, defaults=DEFAULTS)
    add = parser.add_argument
    add("--format", nargs="+", choices=FORMATS, default=["onnx"], help="what to write; several at once")
    add("--half", action="store_true", help="fp16 weights (torchscript: bf16), half the size")
    add("--int8", action="store_true", help="8-bit integers, ranges measured on --data (onnx, openvino, web)")
    add("--calibration", type=int, default=128, help="with --int8: images of --data's train split")
    add("--gate-pictures", type=int, default=16, help="images of --data's val split in the parity gate")
    add("--tolerance", type=float, default=1e-3, help="fp32: largest difference of a head output allowed")
    add("--save-json", metavar="NAME", help="also write the record to results/NAME.json")
    add("--nms", action="store_true", help="onnx: decoding and NMS inside the file, which takes one image "
                                           "and ends in boxes (px of the input), scores and classes")
    args = cli.check(parser, parser.parse_args(), "weights")
    args.format = list(dict.fromkeys(args.format))
    if args.half and args.int8:
        parser.error("--half and --int8 exclude each other: run the command once for each")
    if args.int8 and not args.data:
        parser.error("--int8 measures ranges on your own images: give --data")
    if args.int8 and (unfit := [form for form in args.format if form in ("ncnn", "torchscript")]):
        parser.error(f"--int8 is for onnx, openvino and web, not for {', '.join(unfit)}")
    if args.nms and args.format != ["onnx"]:
        parser.error(f"--nms is for --format onnx alone, not for {' '.join(args.format)}")
    if not args.nms and (idle := cli.typed(parser, ("--conf-thres", "--iou-thres", "--max-det"))):
        parser.error(f"{', '.join(idle)} without --nms, which alone puts them into a file: add --nms")
    for name in ("calibration", "gate_pictures", "tolerance"):
        if not getattr(args, name) > 0:
            parser.error(f"--{name.replace('_', '-')} {getattr(args, name)}: needs more than 0")
    return args


def main() -> None:
    """Read the checkpoint; write each format, compare it with torch, keep or refuse it."""
    args = parse()
    from functools import partial

    from data.coco.locate import locate
    from deploy import export, parity
    from deploy.artifact import digest
    from utils import runs
    from utils.errors import Interrupted
    from utils.redact import masked_values
    poll = partial(runs.Interrupt().stop, "stopped by a signal; exports finished before are complete")
    export.check_libraries(args.format, args.int8)
    runs.tune_cpu(args.threads)
    checkpoint, imgsz = export.read(args.weights, args.imgsz)
    where = locate(args.data, args.val_split, args.seed) if args.data else None
    images = parity.gate_images(where, imgsz, args.gate_pictures)
    calibration = parity.split_images(where, "train", imgsz, args.calibration) if args.int8 else ()
    nms = export.Thresholds(args.conf_thres, args.iou_thres, args.max_det) if args.nms else None
    job = export.Export(args.weights, checkpoint, imgsz, args.half, args.int8, images, calibration,
                        data=where, tolerance=args.tolerance, poll=poll, nms=nms)
    folder = runs.make_run_folder(args.project, args.name, args.exist_ok, "gate_pictures")
    runs.write_json(folder / "args.json", masked_values({**vars(args), "imgsz": imgsz}))
    rows: list[dict] = []
    record = {"kind": "export", "weights": args.weights, "source_sha256": digest(args.weights),
              "imgsz": imgsz, "names": checkpoint.names, "gate_pictures": len(images),
              "gate_on": args.data or "embedded", "artifacts": rows, "environment": runs.environment()}
    for form in args.format:
        start = time.perf_counter()
        try:
            row = export.export(job, form, folder, Path(args.weights).stem)
        except Exception as error:                         # of any library; the other formats have their turn
            if isinstance(error, Interrupted):
                raise
            row = {"format": form, "faults": [], "error": error}
        rows.append(row)
        print(f"{form}: {export.verdict(row)} after {time.perf_counter() - start:.2f} s", flush=True)
        runs.write_json(folder / "export.json", record)
    if args.save_json:
        runs.save_record(args.save_json, record)
    print(export.table(rows), folder, sep="\n")
    export.conclude(rows, args.weights)


if __name__ == "__main__":
    cli.run(main)
