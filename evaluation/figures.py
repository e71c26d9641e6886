"""What an evaluation says: its figures as one flat JSON object, as lines of text and as a page."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from evaluation.report import CLASS_COLUMNS, aligned, class_rows, shown, write_report

if TYPE_CHECKING:
    from argparse import Namespace

    import numpy as np

    from detection.detector import Runs
    from evaluation.inference import Finder
    from evaluation.metrics import Metrics

SIZES = ("small", "medium", "large")


class Truths(Protocol):
    """What is needed of a data set: class names, and records with path and boxes [M, 5] (class, xyxy px)."""

    names: Sequence[str]
    images: Sequence


def settings(args: Namespace, runtime: Runs) -> dict:
    """What an AP and a speed depend on, from val.py's flags and what the runtime made of them."""
    import torch
    kept = ("conf_thres", "iou_thres", "max_det", "imgsz", "batch_size", "workers", "cache")
    return {**{name: getattr(args, name) for name in kept}, "letterbox": "centred, undistorted, border 114",
            "multi_label": True, "runtime": runtime.kind, "precision": runtime.precision,
            "device": str(runtime.device), "threads": torch.get_num_threads(), "runtime_note": runtime.note}


def summarise(metrics: Metrics, cost: dict, finder: Finder, how: dict, interval: bool) -> dict:
    """Everything measured under flat names: `cost`, the metrics, ms a picture by stage, settings, machine.

    `interval` adds the bootstrap's 95 % interval of AP50 over pictures.
    """
    from evaluation.bootstrap import bootstrap_map50
    from utils.runs import environment
    speed = {stage: 1000 * value / max(metrics.images, 1) for stage, value in finder.watch.seconds.items()}
    out = {**cost, **metrics.as_dict(), "ms_per_image": speed, "settings": how, "environment": environment()}
    if interval:
        low, high, median = bootstrap_map50(metrics.matches)
        out["map50_interval"] = {"low": low, "high": high, "median": median}
    return out


def lines(result: dict, metrics: Metrics) -> list[str]:
    """The evaluation in text: the class table, AP by size, cost, speed and the settings it depends on."""
    by_size = "  ".join(f"{size} {shown(result[f'map_{size}'])}" for size in SIZES)
    recall = "  ".join(f"{size} {shown(result[f'ar_{size}'])}" for size in SIZES)
    out = [aligned(CLASS_COLUMNS, class_rows(metrics)), "",
           f"P, R, F1         at confidence {result['confidence']:.3f}, the best mean F1; IoU 0.5",
           f"AP50-95 by size  {by_size}   recall  {recall}"]
    if span := result.get("map50_interval"):
        out.append(f"AP50             {result['map50']:.3f}, 95 % interval {span['low']:.3f} .. "
                   f"{span['high']:.3f} over resampled pictures")
    out += [f"cost             {cost_text(result)}", f"speed            {speed_text(result)}",
            f"settings         {settings_text(result)}"]
    if dropped := result.get("dropped_by_decoder"):
        out.append(f"warning          {dropped} non-finite or absurd boxes of the network dropped")
    notes = [*result["notes"], *filter(None, [result["settings"]["runtime_note"]])]
    return out + [f"note             {note}" for note in notes]


def cost_text(result: dict) -> str:
    """Parameters, both MAC counts by name, and the file's size."""
    pure, loose = result["macs"] / 1e9, result["loose_macs"] / 1e9
    return (f"{result['parameters']:,} parameters, {pure:.4g} GMACs (convolutions; the paper's looser count "
            f"{loose:.4g} G), {result['bytes'] / 1e6:.1f} MB on disk")


def speed_text(result: dict) -> str:
    """Milliseconds a picture by stage, with what they depend on."""
    settings = result["settings"]
    stages = ", ".join(f"{stage} {ms:.1f}" for stage, ms in result["ms_per_image"].items())
    return (f"{stages} ms a picture (batch {settings['batch_size']}, {settings['precision']}, "
            f"{settings['device']}, {settings['threads']} threads)")


def settings_text(result: dict) -> str:
    """What the AP depends on: thresholds, input, pictures, classes, evaluator."""
    settings, without = result["settings"], result["without_truth"]
    absent = f"without truth: {', '.join(without)}" if without else "all with truths"
    return (f"score floor {settings['conf_thres']}, NMS IoU {settings['iou_thres']}, at most "
            f"{settings['max_det']} boxes, input {settings['imgsz']} ({settings['letterbox']}), "
            f"{result['images']} pictures, {len(result['classes'])} classes ({absent}), {result['backend']}")


def write_page(folder: Path, result: dict, metrics: Metrics, coco: Truths, found: np.ndarray,
               decode: Callable[[Path], np.ndarray], before: Sequence[tuple[str, Path]] = ()) -> Path:
    """The report.html of an evaluation in `folder`, its curves and a sheet of pictures beside it.

    `found` [D, 7] are the detections, `decode` reads a picture as uint8 [H, W, 3] RGB; `before` are captions
    and plots to show first.
    """
    from evaluation.plots import evaluation_pngs, sheet_pairs, sheet_png
    pairs = sheet_pairs(coco.images, found, decode, metrics.confidence)
    images = [*before, *evaluation_pngs(metrics, folder)]
    images.append(("Truth beside prediction", sheet_png(pairs, coco.names, folder / "predictions.jpg")))
    span = result.get("map50_interval")
    summary = {"mAP@0.5": metrics.map50, "mAP@0.5:0.95": metrics.map50_95, "precision": metrics.precision,
               "recall": metrics.recall, "F1": metrics.f1, "pictures": metrics.images,
               "truths": metrics.truths,
               **({"AP50, 95 % interval": f"{span['low']:.3f} .. {span['high']:.3f}"} if span else {}),
               "cost": cost_text(result), "speed": speed_text(result), "settings": settings_text(result),
               **({"notes": "; ".join(result["notes"])} if result["notes"] else {}),
               "command": result["environment"]["command"]}
    sizes = [[size, result[f"map_{size}"], result[f"ar_{size}"]] for size in SIZES]
    machine = [[key, value] for key, value in result["environment"].items() if key != "command" and value]
    return write_report(folder, f"{result['weights']} on {result['data']} ({result['split']})", summary,
                        [("Classes", CLASS_COLUMNS, class_rows(metrics)),
                         ("By size: small below 32 x 32 px, large from 96 x 96 px",
                          ("size", "AP50-95", "recall"), sizes),
                         ("Machine", ("what", "value"), machine)], images)
