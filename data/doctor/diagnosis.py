"""What the doctor finds: every fault of every split, what the splits share, and the copy without faults."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from data.coco.clean import Fault, fault
from data.coco.jsonfile import load_json
from data.coco.locate import Located, locate, unlisted_files
from data.coco.read import CocoSet, read_coco
from data.coco.write import cleaned, write_layout
from data.doctor.leaks import fingerprints, near_duplicates, repeats, same_bytes
from data.doctor.survey import anchor_fits, duration, input_sizes, size_summary
from utils.errors import DataError

NOTES = ("class-without-boxes", "unlisted-file", "missing-split")      # worth knowing, nothing to mend


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
    def fatal(self) -> int:
        """Return how many kinds of fault keep the set from being used."""
        return sum(bool(f.fatal) for faults in self.faults.values() for f in faults)

    @property
    def mended(self) -> int:
        """Return how many kinds of fault are put right in memory or by a cleaned copy."""
        return sum(not f.fatal and f.rule not in NOTES for faults in self.faults.values() for f in faults)

    @property
    def folders(self) -> set[Path]:
        """Return the folders of the set, where nothing may be written."""
        splits, source = self.located.splits.values(), Path(self.located.source)
        return {split.images for split in splits} | {split.json.parent for split in splits} | (
            {source} if source.is_dir() else set())


def examine(data: str, splits: tuple[str, ...], imgsz: int, *, anchors: int = 6, epochs: int = 100,
            seed: int = 0, rate: float | None = None, reading: dict | None = None) -> Diagnosis:
    """Return the diagnosis of a data set (`locate` says what `data` may be); `reading` goes to `read_coco`.

    Raises DataError only when nothing can be found at all; unreadable annotation files are fatal faults.
    """
    located, sets, faults = _read_splits(data, splits, reading or {})
    between, left_out = _compare(located, sets)
    numbers = {}
    if sets:
        images = next(iter(sets.values())).images
        sizes = input_sizes(images, imgsz)
        numbers = {"sizes": size_summary(sizes), "anchors": anchor_fits(sizes, imgsz, anchors, seed),
                   "time": duration(images, imgsz, epochs, rate), "epochs": epochs}
    return Diagnosis(located, sets, {**faults, "set": between}, left_out, imgsz, numbers)


def write_copy(found: Diagnosis, out: Path) -> str:
    """Write a cleaned copy to `out`, return a sentence about it; raise DataError while a fault is fatal."""
    if found.fatal:
        raise DataError(f"{out}: no copy written: {found.fatal} kinds of fatal fault need a decision first; "
                        "see above for the flag that takes it (--drop-unknown, --trust), or correct the file")
    counts = write_layout(*cleaned(found.sets, found.left_out), out)
    dropped = sum(map(len, found.left_out.values()))
    written = ", ".join(f"{split} {n:,} images with {m:,} boxes" for split, (n, m) in counts.items())
    repeated = f"; {dropped:,} repeated images left out" if dropped else ""
    return f"cleaned copy in {out}: {written}{repeated}"


def _read_splits(data: str, splits: tuple[str, ...], reading: Mapping[str, object],
                 ) -> tuple[Located, dict[str, CocoSet], dict[str, list[Fault]]]:
    """Return where the set is, what could be read, and faults by split; val gets train's class numbers."""
    located = locate(data)
    sets: dict[str, CocoSet] = {}
    faults: dict[str, list[Fault]] = {split: [] for split in splits}
    for split in splits:
        if split not in located:
            faults[split] += fault("missing-split", [split], "the set has no annotation file for this split")
            continue
        classes: dict[str, object] = {"names": located.names}
        if "train" in sets:
            classes = {"names": sets["train"].names, "class_map": sets["train"].class_map}
        try:
            coco = sets[split] = read_coco(*located[split], strict=False, **classes, **reading)
        except DataError as error:
            faults[split].append(Fault("unreadable", 1, (), True, str(error)))
            continue
        present = {int(label) for image in coco.images for label in image.boxes[:, 0]}
        missing = [name for k, name in enumerate(coco.names) if k not in present]
        faults[split] += [*coco.faults, *fault(
            "class-without-boxes", missing, "classes without a box here: no AP, left out of the mean")]
    return located, sets, faults


def _compare(located: Located, sets: Mapping[str, CocoSet]) -> tuple[list[Fault], dict[str, set[int]]]:
    """Return faults of the set as a whole, and by split the positions a cleaned copy leaves out.

    Images that train and val share go from train, so that val still measures; of repeats one stays.
    """
    prints = {split: fingerprints([r.path for r in coco.images],
                                  [min(r.width, r.height) for r in coco.images])
              for split, coco in sets.items()}
    left_out: dict[str, set[int]] = {split: set() for split in sets}
    examples = []
    for split, coco in sets.items():
        pairs = [(i, j) for i, j in repeats(prints[split]) if coco.images[i].path != coco.images[j].path]
        left_out[split] |= {j for _, j in pairs}
        examples += [f"{split} {coco.images[i].path.name} = {coco.images[j].path.name}" for i, j in pairs]
    faults = fault("repeated-image", examples, "different files with the same bytes inside one split")
    if set(sets) != {"train", "val"}:
        return faults, left_out
    train, val = sets["train"].images, sets["val"].images
    for rule, pairs, advice in (
            ("leak-same-file", same_bytes(prints["train"], prints["val"]),
             "images of val that train has byte for byte: accuracy will look better than it is"),
            ("leak-near-duplicate", near_duplicates(prints["train"], prints["val"]),
             "nearly the same image in train and val (re-saved, resized or brightened): look at them")):
        examples = [f"train {train[i].path.name} = val {val[j].path.name}" for i, j in pairs]
        faults += fault(rule, examples, advice)
        left_out["train"] |= {i for i, _ in pairs}
    return faults + _unlisted(located, sets), left_out


def _unlisted(located: Located, sets: Mapping[str, CocoSet]) -> list[Fault]:
    """Return the note of image files that no split lists, not even as an image that cannot be read."""
    named = {str(image.get("file_name", "")).replace("\\", "/").split("/")[-1]
             for split in sets for image in load_json(located[split].json)[0]["images"]}
    listed = [record.path for coco in sets.values() for record in coco.images]
    files = {path for coco in sets.values() for path in unlisted_files(listed, coco.root)}
    spare = sorted(path.name for path in files if path.name not in named)
    return fault("unlisted-file", spare, "image files that no annotation file lists")
