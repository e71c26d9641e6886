"""What the doctor finds: every fault of every split, what the splits share, and the copy without faults."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data.coco.clean import Fault, fault
from data.coco.find import unlisted_files
from data.coco.locate import Located, locate
from data.coco.read import CocoSet, read_coco
from data.coco.write import cleaned, write_layout
from data.doctor.leaks import Fingerprints, empty_classes, fingerprints, near_duplicates, repeats, same_bytes
from data.doctor.survey import anchor_fits, duration, input_sizes, size_summary
from data.images import MAX_PIXELS
from utils.errors import DataError

# Worth knowing, nothing to mend; and what a copy keeps, for only a person can tell
NOTES = ("class-without-boxes", "unlisted-file", "missing-split", "empty-parent-class", "names-differ",
         "keypoints", "no-labels", "polygon", "score", "stale-filename")
LEFT = ("leak-near-duplicate", "corners-instead-of-size", "fractions-among-px", "split-without-boxes",
        "repeated-image-other-boxes", "leak-whole-split")


@dataclass(frozen=True)
class Diagnosis:
    """A data set as found: faults by split (and "set" for all), positions a copy leaves out by split."""

    located: Located
    sets: dict[str, CocoSet]
    faults: dict[str, list[Fault]]
    left_out: dict[str, set[int]]
    imgsz: int
    numbers: dict = field(default_factory=dict)      # of the first split that can be read

    @property
    def every(self) -> list[Fault]:
        """Return the faults of all parts."""
        return [f for faults in self.faults.values() for f in faults]

    @property
    def fatal(self) -> int:
        """Return how many kinds of fault keep the set from being used."""
        return sum(bool(f.fatal) for f in self.every)

    def fate(self, found: Fault) -> str:
        """Return what becomes of a fault in a cleaned copy: mended, kept (nothing is wrong), left to you."""
        whole = any(f.rule == "leak-whole-split" for f in self.every) and found.rule == "leak-same-file"
        if found.fatal or whole or found.rule in LEFT:
            return "left to you"
        return "kept" if found.rule in NOTES else "mended"

    @property
    def left(self) -> list[str]:
        """Return the rules of faults that a cleaned copy keeps and a person has to decide."""
        return sorted({f.rule for f in self.every if self.fate(f) == "left to you"})

    @property
    def folders(self) -> set[Path]:
        """Return the folders of the set, where nothing may be written."""
        splits, source = self.located.splits.values(), Path(self.located.source)
        return self.located.folders | {split.json.parent for split in splits} | (
            {source} if source.is_dir() else set()) | {
            record.path.parent for coco in self.sets.values() for record in coco.images}


def examine(data: str, splits: Sequence[str], imgsz: int, *, anchors: int = 6, epochs: int = 100,
            seed: int = 0, rate: float | None = None, reading: Mapping[str, object]) -> Diagnosis:
    """Return the diagnosis of a set; raise DataError when there is none; `reading` goes to `read_coco`."""
    located = locate(data)
    splits = splits or ("train", "val", *(("test",) if "test" in located else ()))
    sets, faults = _read_splits(located, splits, reading)
    max_pixels, numbers = reading.get("max_pixels", MAX_PIXELS), {}
    faults["set"], left_out = _compare(located, sets, max_pixels)
    if sets:
        images = next(iter(sets.values())).images
        sizes = input_sizes(images, imgsz)
        numbers = {"sizes": size_summary(sizes), "anchors": anchor_fits(sizes, anchors, seed),
                   "time": duration(images, imgsz, epochs, rate, max_pixels), "epochs": epochs}
    return Diagnosis(located, sets, faults, left_out, imgsz, numbers)


def write_copy(found: Diagnosis, out: Path) -> str:
    """Write a cleaned copy to `out`, return a sentence about it; raise DataError while a fault is fatal."""
    if found.fatal:
        raise DataError(f"{out}: no copy written: {found.fatal} kinds of fatal fault need a decision first; "
                        "see above for the flag that takes it (--drop-unknown, --trust), or correct the file")
    counts = write_layout(*cleaned(found.sets, found.left_out), out)
    dropped = sum(map(len, found.left_out.values()))
    written = ", ".join(f"{split} {n:,} images with {m:,} boxes" for split, (n, m) in counts.items())
    repeated = f"; {dropped:,} repeated images left out" if dropped else ""
    kept = f"; kept for you to decide: {', '.join(found.left)}" if found.left else ""
    return f"cleaned copy in {out}: {written}, without masks and keypoints{repeated}{kept}"


def _read_splits(located: Located, splits: Sequence[str], reading: Mapping[str, object],
                 ) -> tuple[dict[str, CocoSet], dict[str, list[Fault]]]:
    """Return what could be read, and faults by split; val gets train's class numbers."""
    sets: dict[str, CocoSet] = {}
    faults: dict[str, list[Fault]] = {}
    for split in splits:
        if split not in located:
            faults[split] = fault("missing-split", [split], "the set has no annotation file for this split")
            continue
        train = sets.get("train")
        classes = {"names": train.names, "class_map": train.class_map} if train else {"names": located.names}
        try:
            sets[split] = read_coco(*located[split], strict=False, **classes, **reading)
            faults[split] = [*sets[split].faults, *empty_classes(sets[split])]
        except DataError as error:
            faults[split] = [Fault("unreadable", 1, (), True, str(error))]
    return sets, faults


def _compare(located: Located, sets: Mapping[str, CocoSet],
             max_pixels: int) -> tuple[list[Fault], dict[str, set[int]]]:
    """Return faults of the whole set, and by split the positions that a copy leaves out: sure repeats."""
    prints = {split: fingerprints(coco.images, max_pixels) for split, coco in sets.items()}
    left_out: dict[str, set[int]] = {split: set() for split in sets}
    same, other = [], []
    for split, coco in sets.items():
        for first, second, j in ((coco.images[i], coco.images[j], j) for i, j in repeats(prints[split])):
            if first.path != second.path:
                alike = np.array_equal(*(boxes[np.lexsort(boxes.T)] for boxes in (first.boxes, second.boxes)))
                left_out[split] |= {j} if alike else set()
                (same if alike else other).append(f"{split} {first.path.name} = {second.path.name}")
    faults = fault("repeated-image", same, "different files with the same bytes inside one split")
    faults += fault("repeated-image-other-boxes", other,
                    "files with the same bytes but other boxes: which are right?")
    for split in ("val", "test") if "train" in sets else ():       # so that those still measure
        faults += _leaks(split, sets, prints, left_out["train"]) if split in sets else []
    if "train" in sets and len(left_out["train"]) == len(sets["train"].images):
        left_out["train"] = set()
        faults += fault("leak-whole-split", ["train"],
                        "all of train is in other splits: nothing was left out, make the splits again")
    if set(located.splits) - {"all"} == set(sets) and len(sets) > 1:
        listed = {item for coco in sets.values() for item in coco.listed}
        files = {path for root in {coco.root for coco in sets.values()} for path in unlisted_files(
            [item for item in listed if isinstance(item, Path)], root)}
        faults += fault("unlisted-file", sorted(path.name for path in files if path.name not in listed),
                        "image files that no annotation file lists")
    return faults, left_out


def _leaks(split: str, sets: Mapping[str, CocoSet], prints: Mapping[str, Fingerprints],
           left_out: set[int]) -> list[Fault]:
    """Return the faults of images that train shares with a split; add same files to `left_out`."""
    def examples(pairs: Sequence[tuple[int, int]]) -> list[str]:
        train, others = sets["train"].images, sets[split].images
        return [f"train {train[i].path.name} = {split} {others[j].path.name}" for i, j in pairs]

    same = same_bytes(prints["train"], prints[split])
    left_out |= {i for i, _ in same}
    return fault("leak-same-file", examples(same), f"images of {split} that train has byte for byte: "
                 "accuracy will look better than it is") + fault(
        "leak-near-duplicate", examples(near_duplicates(prints["train"], prints[split])),
        f"nearly the same image in train and {split} (re-saved, resized, or one camera): look at them")
