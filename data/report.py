"""A diagnosis as aligned text and as JSON."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from data.coco import report_faults
from data.diagnosis import Diagnosis
from data.survey import PERCENTILES, UNSEEN


def as_text(found: Diagnosis) -> str:
    """The report for people: a table a subject."""
    parts = [f"data set {found.located.source}, network input {found.imgsz} px", _splits(found), _faults(found)]
    if found.sets:
        parts += [_classes(found), _sizes(found), _anchors(found), _time(found)]
    return "\n\n".join(parts)


def as_dict(found: Diagnosis) -> dict:
    """The report for programs: everything the text says, all faults with count, first examples and advice."""
    numbers = {key: value._asdict() if hasattr(value, "_asdict") else value for key, value in found.numbers.items()}
    if "anchors" in numbers:
        numbers["anchors"] = {kind: fit._asdict() for kind, fit in numbers["anchors"].items()}
    return {"data": str(found.located.source), "imgsz": found.imgsz, "fatal": found.fatal, "mended": found.mended,
            "splits": {split: dict(zip(SPLIT_HEAD[1:], row[1:])) for split, row in _split_rows(found).items()},
            "faults": {part: [asdict(f) for f in faults] for part, faults in found.faults.items()},
            "classes": {split: dict(zip(found.sets[split].names, counts)) for split, counts in found.counts.items()},
            "class_map": next(iter(found.sets.values())).class_map if found.sets else {},
            "verdict": verdict(found), **numbers}


def verdict(found: Diagnosis) -> str:
    """One line: clean, usable, or not usable and why."""
    if found.fatal:
        return f"NOT USABLE: {_kinds(found.fatal, 'fatal fault')}, marked `error` above"
    if found.mended:
        return (f"USABLE: {_kinds(found.mended, 'fault')}, put right in memory or only reported; "
                "--fix OUTDIR writes a copy without them")
    return "CLEAN: no fault found"


def table(head: Sequence[str], rows: Sequence[Sequence[object]], left: int = 1) -> str:
    """Aligned columns, the first `left` of them to the left, numbers with thousands commas."""
    cells = [[str(v) if not isinstance(v, int) else f"{v:,}" for v in row] for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells)]
    return "\n".join("  ".join(cell.ljust(w) if k < left else cell.rjust(w)
                               for k, (cell, w) in enumerate(zip(row, widths))).rstrip() for row in cells)


SPLIT_HEAD = ("split", "pictures", "without boxes", "boxes", "crowd", "annotation file")


def _split_rows(found: Diagnosis) -> dict[str, tuple]:
    rows = {}
    for split, coco in found.sets.items():
        boxes, crowd = (sum(len(getattr(r, name)) for r in coco.images) for name in ("boxes", "crowd"))
        empty = sum(not len(r.boxes) and not len(r.crowd) for r in coco.images)
        rows[split] = (split, len(coco.images), empty, boxes, crowd, str(Path(found.located[split].json)))
    return rows


def _splits(found: Diagnosis) -> str:
    return table(SPLIT_HEAD, list(_split_rows(found).values()))


def _faults(found: Diagnosis) -> str:
    lines = [f"{part:<5}  {line}" for part, faults in found.faults.items() for line in report_faults(faults)]
    return "\n".join(["faults", *(lines or ["none"])])


def _classes(found: Diagnosis) -> str:
    coco = next(iter(found.sets.values()))
    splits = list(found.counts)
    head = ("class", "id in the file", "number", *(f"{split} {what}" for split in splits for what in ("boxes", "pictures")))
    rows = [(coco.names[k], key, str(k), *(n for split in splits for n in found.counts[split][k]))
            for key, k in coco.class_map.items()]
    return "classes\n" + table(head, rows)


def _sizes(found: Diagnosis) -> str:
    sizes, split = found.numbers["sizes"], next(iter(found.sets))
    total = max(1, sizes.small + sizes.medium + sizes.large)
    rows = [(name, count, f"{count / total:.1%}", "#" * round(40 * count / total)) for name, count in
            (("small  < 32^2", sizes.small), ("medium < 96^2", sizes.medium), ("large", sizes.large))]
    bars = "\n".join(f"{name:<14}  {count:>8,}  {share:>6}  {bar}".rstrip() for name, count, share, bar in rows)
    spread = table(("percentile", *(str(p) for p in PERCENTILES)),
                   [(name, *(f"{v:.1f}" for v in values)) for name, values in sizes.percentiles.items() if values])
    tiny = f"\n{sizes.unseen:,} boxes are under {UNSEEN} px in both sides: too small to be found at this input; " \
           "a larger --imgsz helps" if sizes.unseen else ""
    return f"box sizes of {split}, px at the input\n{bars}\n{spread}{tiny}"


def _anchors(found: Diagnosis) -> str:
    rows = [(kind, " ".join(f"{w:.0f},{h:.0f}" for w, h in fit.anchors), f"{fit.mean_iou:.3f}", f"{fit.within_four:.1%}")
            for kind, fit in found.numbers["anchors"].items()]
    return "anchors (width,height px at the input)\n" + table(
        ("", "anchors", "mean best IoU", "within a factor of 4"), rows, left=2)


def _time(found: Diagnosis) -> str:
    t, epochs = found.numbers["time"], found.numbers["epochs"]
    source = "--rate" if t.measured else "assumed: micro-yolo in bf16 on 2 cores, right within a factor of three; " \
        "give yours by --rate"
    return (f"time: {_clock(t.reading)} to read all pictures once ({t.decode_rate:.0f} pictures/s measured, one thread), "
            f"then {_clock(t.epoch)} an epoch at {t.train_rate:.1f} pictures/s ({source}): "
            f"about {_clock(t.total)} for {epochs} epochs without evaluation")


def _clock(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _kinds(count: int, what: str) -> str:
    return f"{count} kind{'s' * (count > 1)} of {what}"
