"""What an evaluation says: its figures as one flat JSON object, as lines of text and as an HTML page."""
from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple
from html import escape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

from utils.runs import write_text
from utils.text import aligned, numeric, shown

if TYPE_CHECKING:
    import numpy as np

    from data.coco.read import CocoSet
    from evaluation.evaluate import Finder
    from evaluation.metrics import Metrics

TEMPLATE = Path(__file__).with_name("report.html")
SIZES = ("small", "medium", "large")
KINDS = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg"}
CLASS_COLUMNS = ("class", "images", "boxes", "P", "R", "F1", "AP50", "AP50-95")
IMAGES = {"en": "Images", "zh": "图"}                       # heading by language
LONG = 44                          # characters from which a value gets the whole width


def summarise(metrics: Metrics, what: dict, finder: Finder, interval: bool, **settings: object) -> dict:
    """Return what was measured under flat names; `settings`: flags on which an AP or a speed depends."""
    from evaluation.curves import bootstrap_map50
    from models.count import loose_macs, macs, parameters
    from utils.runs import environment
    runtime, imgsz = finder.runtime, settings["imgsz"]
    cost = {"parameters": parameters(runtime.net), "macs": macs(runtime.net, imgsz),
            "loose_macs": loose_macs(runtime.net, imgsz)}
    how = {**dict(zip(("conf_thres", "iou_thres", "max_det"), finder.thresholds)), **settings,
           "letterbox": "centred, undistorted, border 114", "multi_label": True, "runtime": runtime.kind,
           "precision": runtime.precision, "device": str(runtime.device), "threads": runtime.threads,
           "lanes": finder.lanes, "runtime_note": runtime.note}
    speed = {stage: 1000 * value / max(metrics.images, 1) for stage, value in finder.watch.seconds.items()}
    out = {**what, **cost, "dropped_by_decoder": finder.dropped, "cut_before_nms": finder.cut,
           **metrics.as_dict(), "ms_per_image": speed, "settings": how, "environment": environment()}
    if interval:
        found = bootstrap_map50(metrics.matches)
        out["map50_interval"] = found and dict(zip(("low", "high", "median"), found))
    return out


def class_rows(metrics: Metrics) -> list[list[object]]:
    """Return a row for all classes, then one per class, by CLASS_COLUMNS; None where it is undefined."""
    whole = ["all", metrics.images, metrics.truths, metrics.precision, metrics.recall, metrics.f1,
             metrics.map50, metrics.map50_95]
    return [whole, *(list(astuple(row)) for row in metrics.classes)]


def lines(result: dict, metrics: Metrics) -> list[str]:
    """Return the evaluation as text: the class table, AP by size, cost, speed, settings, notes."""
    ap, recall = ("  ".join(f"{size} {shown(result[f'{kind}_{size}'])}" for size in SIZES)
                  for kind in ("map", "ar"))
    out = [aligned(CLASS_COLUMNS, class_rows(metrics)), "",
           "P, R, F1         " + ("undefined: no ground truth" if metrics.f1 is None else
                                  f"at confidence {result['confidence']:.3f}, the best mean F1; IoU 0.5"),
           f"AP50-95 by size  {ap}   recall  {recall}"]
    out += [f"{name:17}{text}" for name, text in _sentences(result).items()]
    if dropped := result.get("dropped_by_decoder"):
        out.append(f"warning          {dropped} non-finite or absurd boxes of the network dropped")
    if cut := result.get("cut_before_nms"):
        out.append(f"warning          {cut} boxes were too many for NMS and left out: raise --conf-thres")
    notes = [*result["notes"], *filter(None, [result["settings"]["runtime_note"]])]
    return out + [f"note             {note}" for note in notes]


def _sentences(result: dict) -> dict[str, str]:
    """What the network costs, its speed and the settings of its AP, each with what it depends on."""
    how, absent = result["settings"], ", ".join(result["without_truth"])
    stages = ", ".join(f"{stage} {ms:.1f}" for stage, ms in result["ms_per_image"].items())
    cost = (f"{result['parameters']:,} parameters, {result['macs'] / 1e9:.4g} GMACs (convolutions; "
            f"{result['loose_macs'] / 1e9:.4g} G ptflops-style), {result['bytes'] / 1e6:.1f} MB on disk")
    span = result.get("map50_interval")
    lanes = ", a batch each" if how["lanes"] > 1 else ""
    interval = {"AP50": f"{result['map50']:.3f}, 95 % interval {span['low']:.3f} .. {span['high']:.3f} over "
                        "resampled images"} if span else {}
    return {**interval, "cost": cost,
            "speed": f"{stages} ms per image (batch {how['batch_size']}, {how['precision']}, "
                     f"{how['device']}, {how['threads']} threads{lanes})",
            "settings": f"score floor {how['conf_thres']}, NMS IoU {how['iou_thres']}, at most "
                        f"{how['max_det']} boxes, input {how['imgsz']} ({how['letterbox']}), "
                        f"{result['images']} images, {len(result['classes'])} classes "
                        f"({f'without ground truth: {absent}' if absent else 'all with ground truth'}), "
                        f"{result['backend']}"}


def write_page(folder: Path, result: dict, metrics: Metrics, coco: CocoSet, found: np.ndarray,
               decode: Callable[[Path], np.ndarray], before: Sequence[tuple[str, Path]] = ()) -> Path:
    """Write the page of an evaluation, of detections `found` [D, 7], after the plots `before`."""
    from evaluation.plots import evaluation_pngs, sheet_png
    sheet = sheet_png(coco.images, found, decode, metrics.confidence, coco.names, folder / "predictions.jpg")
    images = [*before, *evaluation_pngs(metrics, folder), ("Ground truth beside predictions", sheet)]
    summary = {"mAP@0.5": metrics.map50, "mAP@0.5:0.95": metrics.map50_95, "precision": metrics.precision,
               "recall": metrics.recall, "F1": metrics.f1, "images": metrics.images,
               "ground-truth boxes": metrics.truths,
               **_sentences(result), "notes": "; ".join(result["notes"]),
               "command": result["environment"]["command"]}
    sizes = [[size, result[f"map_{size}"], result[f"ar_{size}"]] for size in SIZES]
    machine = [[key, value] for key, value in result["environment"].items() if key != "command" and value]
    return write_report(folder, f"{result['weights']} on {result['data']} ({result['split']})",
                        {label: value for label, value in summary.items() if value not in (None, "")},
                        [("Classes", CLASS_COLUMNS, class_rows(metrics)),
                         ("By size: small below 32 x 32 px, large from 96 x 96 px",
                          ("size", "AP50-95", "recall"), sizes),
                         ("Machine", ("what", "value"), machine)], images)


def write_report(folder: Path | str, title: str, summary: Mapping[str, object],
                 tables: Sequence[tuple[str, Sequence[str], Sequence[Sequence[object]]]] = (),
                 images: Sequence[tuple[str, Path | str]] = (), lang: str = "en") -> Path:
    """Write report.html of tables and images; raise ValueError for images but PNG and JPEG."""
    cells = (f"<div{_kind(text)}><dt>{escape(label)}</dt><dd>{escape(text)}</dd></div>"
             for label, text in zip(summary, map(shown, summary.values())))
    parts = ["<dl>", *cells, "</dl>", *(_table(*table) for table in tables)]
    if images:
        parts += [f"<h2>{IMAGES[lang]}</h2>", *(_figure(caption, Path(path)) for caption, path in images)]
    page = Template(TEMPLATE.read_text(encoding="utf-8"))
    path = Path(folder) / "report.html"
    write_text(path, page.substitute(lang=lang, title=escape(title), body="\n".join(parts)))
    return path


def _kind(text: str, right: bool = False) -> str:
    """The class attribute of a cell: numbers to the right, long texts may wrap or take a whole line."""
    return ' class="n"' if right else ' class="long"' if len(text) > LONG else ""


def _table(caption: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table that scrolls sideways on a narrow screen."""
    cells = [[shown(value) for value in row] for row in rows]
    right = numeric(columns, cells)

    def line(tag: str, row: Sequence[str]) -> str:
        return "".join(f"<{tag}{_kind(c, r)}>{escape(c)}</{tag}>" for c, r in zip(row, right, strict=True))
    body = "\n".join(f"<tr>{line('td', row)}</tr>" for row in cells)
    return (f"<h2>{escape(caption)}</h2>\n<div class=\"wide\"><table>\n<thead><tr>{line('th', columns)}"
            f"</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>")


def _figure(caption: str, path: Path) -> str:
    """The image's bytes inside the page, or a line that names it where the file is missing."""
    kind = KINDS.get(path.suffix.lower())
    if kind is None:
        raise ValueError(f"{path.name} is no image the page can hold: give one of {', '.join(KINDS)}")
    below, image = f"{caption}: {path.name} was not made", ""
    if path.is_file():
        data = base64.b64encode(path.read_bytes()).decode("ascii")
        below, image = caption, f'<img alt="{escape(caption)}" src="data:{kind};base64,{data}">'
    return f"<figure><figcaption>{escape(below)}</figcaption>{image}</figure>"
