"""A diagnosis as aligned text and as JSON."""
from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from data.coco.clean import printable, report_faults
from data.doctor.diagnosis import NOTES, Diagnosis
from data.doctor.survey import ALIKE, PERCENTILES, UNSEEN, class_counts
from utils.text import aligned

SPLIT_HEAD = ("split", "images", "without boxes", "boxes", "crowd", "annotation file")


def as_text(found: Diagnosis) -> str:
    """Return the report for people: a table per subject."""
    note = f" ({found.located.note})" if found.located.note else ""
    pairs = sorted(((part, f) for part, faults in found.faults.items() for f in faults),
                   key=lambda pair: not pair[1].fatal)              # the order of report_faults
    told = report_faults([f for _, f in pairs])
    lines = [f"{part:<5}  {found.fate(f):<11}  {line}" for (part, f), line in zip(pairs, told)]
    parts = [f"data set {found.located.source}{note}, network input {found.imgsz} px",
             aligned(SPLIT_HEAD, _split_rows(found)), "\n".join(["faults", *(lines or ["none"])])]
    if found.sets:
        parts += [_classes(found), _sizes(found.numbers["sizes"], next(iter(found.sets))),
                  _anchors(found.numbers["anchors"]), _time(found.numbers["time"], found.numbers["epochs"])]
    return "\n".join(map(printable, "\n\n".join(parts).split("\n")))


def as_dict(found: Diagnosis) -> dict:
    """Return the report for programs: everything the text says, and faults with count, examples, advice."""
    keys = ("pictures", *SPLIT_HEAD[2:])                   # the key that earlier reports have
    return {"data": str(found.located.source), "imgsz": found.imgsz, "fatal": found.fatal,
            "mended": _mended(found), "verdict": verdict(found), **found.numbers,
            "splits": {split: dict(zip(keys, row)) for split, *row in _split_rows(found)},
            "faults": {part: [asdict(f) | {"count": int(f.count), "fatal": bool(f.fatal),
                                           "fate": found.fate(f)} for f in faults]
                       for part, faults in found.faults.items()},
            "classes": {split: {name: {"boxes": boxes, "pictures": images}
                                for name, (boxes, images) in zip(coco.names, class_counts(coco))}
                        for split, coco in found.sets.items()},
            "class_map": next(iter(found.sets.values())).class_map if found.sets else {}}


def verdict(found: Diagnosis, copy: Path | None = None) -> str:
    """Return one line: clean, usable, or not usable and why; `copy` is where a cleaned copy was written."""
    if found.fatal:
        return f"NOT USABLE: {found.fatal} kind{'s' * (found.fatal > 1)} of fatal fault, marked `error` above"
    if count := _mended(found):
        them = f"all but {', '.join(found.left)}" if found.left else "them"
        remedy = f"the copy in {copy} is free of" if copy else "--fix OUTDIR writes a copy without"
        kinds = f"{count} kind{'s' * (count > 1)} of fault"
        return f"USABLE: {kinds}, put right in memory or only reported; {remedy} {them}"
    return "CLEAN: no fault found"


def _mended(found: Diagnosis) -> int:
    """Return how many kinds of fault are put right in memory or by a copy, or left to the user."""
    return sum(not f.fatal and f.rule not in NOTES for f in found.every)


def _split_rows(found: Diagnosis) -> list[tuple]:
    """Return one row per split, as SPLIT_HEAD says."""
    rows = []
    for split, coco in found.sets.items():
        boxes, crowd = (sum(len(getattr(r, name)) for r in coco.images) for name in ("boxes", "crowd"))
        empty = sum(not len(r.boxes) and not len(r.crowd) for r in coco.images)
        rows.append((split, len(coco.images), empty, boxes, crowd, str(found.located[split].json)))
    return rows


def _classes(found: Diagnosis) -> str:
    """Return the table of classes."""
    coco, counts = next(iter(found.sets.values())), [class_counts(coco) for coco in found.sets.values()]
    head = [f"{split} {what}" for split in found.sets for what in ("boxes", "images")]
    rows = [(printable(coco.names[k]), printable(key), str(k), *(n for split in counts for n in split[k]))
            for key, k in coco.class_map.items()]
    return "classes\n" + aligned(("class", "id in the file", "number", *head), rows)


def _sizes(sizes: dict, split: str) -> str:
    """Return bars and percentiles of box sizes."""
    total = max(1, sizes["small"] + sizes["medium"] + sizes["large"])
    lines = [f"box sizes of {split}, px at the input"]
    for name, key in (("small  < 32^2", "small"), ("medium < 96^2", "medium"), ("large", "large")):
        count, share = sizes[key], sizes[key] / total
        lines.append(f"{name:<14}  {count:>8,}  {share:>6.1%}  {'#' * round(40 * share)}".rstrip())
    rows = [(name, *(f"{v:.1f}" for v in values)) for name, values in sizes["percentiles"].items() if values]
    lines.append(aligned(("percentile", *map(str, PERCENTILES)), rows))
    if sizes["unseen"]:
        lines.append(f"{sizes['unseen']:,} boxes are under {UNSEEN} px on both sides: too small to be found "
                     "at this input; a larger --imgsz helps")
    return "\n".join(lines)


def _anchors(fits: dict[str, dict]) -> str:
    """Return the table of anchors."""
    rows = []
    for kind, fit in fits.items():
        iou, share = fit["mean_iou"], fit["within_four"]
        rows.append((kind, " ".join(f"{w:.3g},{h:.3g}" for w, h in fit["anchors"]),
                     "-" if iou is None else f"{iou:.3f}", "-" if share is None else f"{share:.1%}"))
    table = aligned(("", "anchors", "mean best IoU", "within a factor of 4"), rows)
    return f"anchors (width,height px at the input)\n{table}\n{_advice(fits)}"


def _advice(fits: dict[str, dict]) -> str:
    """Return when fitted anchors help, by what they did on other sets (docs/results.md)."""
    iou = fits.get("fitted", {}).get("mean_iou")
    if iou is None:
        return "too few different boxes to fit anchors to: train without --fit-anchors"
    if iou >= ALIKE:
        return (f"boxes of like shapes (fitted {iou:.2f}, {ALIKE} or more): train.py --fit-anchors helps, "
                "from some 15 epochs on; the heads then start anew")
    return (f"boxes of many shapes (fitted {iou:.2f}, under {ALIKE}): train without --fit-anchors, which "
            "would make the heads start anew")


def _time(t: dict, epochs: int) -> str:
    """Return the time estimate with what it assumes."""
    seconds = t["total"], t["reading"], t["epoch"]
    total, reading, epoch = (f"{s:.0f} s" if s < 90 else f"{s / 60:.0f} min" if s < 5400 else
                             f"{s / 3600:.1f} h" for s in seconds)
    source = "given by --rate" if t["given"] else \
        "assumed: micro-yolo in bf16 on 2 cores, within a factor of three; better give --rate"
    return (f"training time: about {total} for {epochs} epochs, evaluation not counted\n"
            f"read all images once  {reading:>7}  {t['decode_rate']:>6,.0f} images/s "
            "(measured on a sample, one thread)\n"
            f"every epoch after it  {epoch:>7}  {t['train_rate']:>6,.1f} images/s ({source})")
