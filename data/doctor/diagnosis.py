"""What the doctor finds: every fault of every split, and what the splits share."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from data.coco.clean import Fault, fault
from data.coco.locate import Located, locate, unlisted_files
from data.coco.read import CocoSet, load_json, read_coco
from data.doctor.leaks import Fingerprints, fingerprints, near_duplicates, repeats, same_bytes
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
    counts: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    numbers: dict[str, object] = field(default_factory=dict)

    @property
    def fatal(self) -> int:
        """How many kinds of fault keep the set from being used."""
        return sum(bool(f.fatal) for faults in self.faults.values() for f in faults)

    @property
    def mended(self) -> int:
        """How many kinds of fault are put right in memory or by a cleaned copy."""
        return sum(not f.fatal and f.rule not in NOTES for faults in self.faults.values() for f in faults)

    @property
    def folders(self) -> set[Path]:
        """The folders of the set, where nothing may be written."""
        splits = self.located.splits.values()
        source = Path(self.located.source)
        return {split.images for split in splits} | {split.json.parent for split in splits} | (
            {source} if source.is_dir() else set())


def read_splits(data: str, splits: tuple[str, ...], reading: Mapping[str, object],
                ) -> tuple[Located, dict[str, CocoSet], dict[str, list[Fault]]]:
    """Where the set is, what could be read, and the faults by split; val gets train's class numbers."""
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
            coco = read_coco(*located[split], strict=False, **classes, **reading)
        except DataError as error:
            faults[split].append(Fault("unreadable", 1, (), True, str(error)))
            continue
        sets[split] = coco
        faults[split] += [*coco.faults, *_empty_classes(coco)]
    return located, sets, faults


def compare(located: Located, sets: Mapping[str, CocoSet],
            ) -> tuple[dict[str, list[Fault]], dict[str, set[int]]]:
    """Faults of the set as a whole, and by split the positions a cleaned copy leaves out.

    Pictures that train and val share go from train, so that val still measures; repeats inside a split go
    but one.
    """
    prints = {split: fingerprints([r.path for r in coco.images],
                                  [min(r.width, r.height) for r in coco.images])
              for split, coco in sets.items()}
    left_out: dict[str, set[int]] = {split: set() for split in sets}
    faults = _repeated(sets, prints, left_out)
    if set(sets) == {"train", "val"}:
        train, val = sets["train"].images, sets["val"].images
        for rule, pairs, advice in (
                ("leak-same-file", same_bytes(prints["train"], prints["val"]),
                 "pictures of val that train has byte for byte: accuracy will look better than it is"),
                ("leak-near-duplicate", near_duplicates(prints["train"], prints["val"]),
                 "nearly the same picture in train and val (re-saved, resized or brightened): look at them")):
            examples = [f"train {train[i].path.name} = val {val[j].path.name}" for i, j in pairs]
            faults += fault(rule, examples, advice)
            left_out["train"] |= {i for i, _ in pairs}
        faults += _unlisted(located, sets)
    return {"set": faults}, left_out


def _repeated(sets: Mapping[str, CocoSet], prints: Mapping[str, Fingerprints],
              left_out: dict[str, set[int]]) -> list[Fault]:
    """Faults of different files with the same bytes inside a split, whose later ones join `left_out`."""
    examples = []
    for split, coco in sets.items():
        pairs = [(i, j) for i, j in repeats(prints[split]) if coco.images[i].path != coco.images[j].path]
        left_out[split] |= {j for _, j in pairs}
        examples += [f"{split} {coco.images[i].path.name} = {coco.images[j].path.name}" for i, j in pairs]
    return fault("repeated-picture", examples, "different files with the same bytes inside one split")


def _unlisted(located: Located, sets: Mapping[str, CocoSet]) -> list[Fault]:
    """The note of picture files that no split lists, not even as a picture that cannot be read."""
    named = {str(image.get("file_name", "")).replace("\\", "/").split("/")[-1]
             for split in sets for image in load_json(located[split].json)[0]["images"]}
    listed = [record.path for coco in sets.values() for record in coco.images]
    files = {path for coco in sets.values() for path in unlisted_files(listed, coco.root)}
    spare = sorted(path.name for path in files if path.name not in named)
    return fault("unlisted-file", spare, "picture files that no annotation file lists")


def _empty_classes(coco: CocoSet) -> list[Fault]:
    """The note of classes without a box: their AP is not defined and stays out of the mean."""
    present = {int(label) for image in coco.images for label in image.boxes[:, 0]}
    missing = [name for k, name in enumerate(coco.names) if k not in present]
    return fault("class-without-boxes", missing, "classes without a box here: no AP, left out of the mean")
