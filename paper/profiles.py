"""The profiles of tables.py as data: which commands make the records that the tables of the paper need."""
from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from models.zoo.paper import FACTORISED, TABLE2
from paper.jobs import Job

TABLES = ("table1", "table2", "table3", "table4", "figure4", "pruning")
# The layers of the paper's kernel search, as micro-yolo has them.
KERNELS = {"conv3": 3, "conv5": 5, "conv7": 3, "conv9": 5, "conv11": 3}
# Rows of Table 4: what it is, classes and input side it is counted at, the training behind it.
TABLE4 = {"yolov3-tiny": ("YOLOv3-tiny", 80, 416, "conv"),
          "yolo-lite-voc": ("YOLO-LITE, VOC", 20, 224, ""),
          "yolo-lite": ("YOLO-LITE, COCO", 80, 224, "yolo-lite"),
          "yolo-nano": ("YOLO Nano, VOC", 20, 416, "yolo-nano"),
          "micro-yolo": ("Micro-YOLO", 80, 416, "micro-yolo"),
          "micro-yolo-pruned": ("Micro-YOLO pruned, the zoo's widths", 80, 416, ""),
          "pruned": ("Micro-YOLO pruned by prune.py", 80, 416, "pruned")}
NO_FLIP = ("--augment", "no-flip")   # a mirrored digit is no digit
TRAINED = (*TABLE2, "yolo-lite", "yolo-nano")
NEEDS = {"table1": (), "table2": tuple(f"val-{row}" for row in TABLE2),
         "table4": (*(f"val-{row}" for _, _, _, row in TABLE4.values() if row),),
         "table3": ("prune",), "pruning": ("prune",), "figure4": ("search",)}


class Profile(NamedTuple):
    """What is run on which data, for how long. Flags may hold {data} and {weights}."""

    name: str
    on: str                                            # the data's name, "COCO" for the paper's
    data: str                                          # default of --data; "" where it must be given
    imgsz: int
    epochs: int                                        # of each training
    train: tuple[str, ...]                             # further flags of each training
    separate: bool                                     # DSConv and MBConv start as factors of --weights
    search: tuple[str, ...]                            # further flags of search.py
    search_epochs: int                                 # over all trials
    prune: tuple[str, ...]                             # further flags of prune.py
    prune_epochs: int                                  # expected, over all steps
    seconds: float                                     # assumed for an epoch, before one is measured
    other: float                                       # and for a job's start and its evaluation
    assumed: str                                       # where these come from
    note: str                                          # what is to be said of the accuracies
    weights: str = ""                                  # default of --weights
    gpu: bool = False


PROFILES = {
    "smoke": Profile(
        "smoke", "scenes", "scenes", 128, 3, ("--weights", "{weights}", *NO_FLIP), False,
        ("--layers", "conv9", "conv11", "--epochs", "1", *NO_FLIP), 4,
        ("--layers", "conv13", "conv15", "--epochs-per-step", "1", "--until", "stored=95%", *NO_FLIP), 4,
        24, 9,
        "2 cores without AVX-512, fp32",
        "accuracies are of the embedded digits after three epochs at 128 px, from the shipped layers where "
        "they fit: they show that the commands work and say nothing about the paper's",
        "weights/micro-yolo-voc5.pt"),
    "voc5": Profile(
        "voc5", "voc5", "", 320, 20, ("--weights", "{weights}"), True,
        ("--layers", *KERNELS, "--epochs", "5"), 160,
        # Steps of all layers at once: the paper's way takes 620 epochs and more for these sizes.
        ("--scope", "network", "--sixteenths", "2.25", "--epochs-per-step", "12", "--tolerance", "3",
         "--close-mosaic", "4", "--until", "stored=75%", "loose-macs=79%"), 12,
        70, 60, "2 cores of a Xeon with AMX, 320 px",
        "accuracies are of five classes of photographs at 320 px, from official weights: to be compared with "
        "one another, not with the paper's", "weights/yolov3-tiny.weights"),
    "coco": Profile(
        "coco", "COCO", "", 416, 100, ("--weights", "none"), False,
        ("--layers", *KERNELS, "--epochs", "20"), 640,
        ("--epochs-per-step", "20", "--until", "stored=1.92M", "loose-macs=0.87G"), 620, 118_287 / 600, 120,
        "600 images a second on one GPU, 118,287 images an epoch",
        "the paper states no epochs, no rate and no pretraining: from scratch, 100 epochs each", gpu=True),
}


def profile_jobs(profile: Profile, nets: Mapping[str, str]) -> tuple[Job, ...]:
    """Return a profile's jobs in the order they can run; `nets` holds the JSON of rows without a zoo name."""
    common = ("--data", "{data}", "--imgsz", str(profile.imgsz))
    jobs = []
    for row in TRAINED:
        own = f"{{net-{row}}}" if row in nets else row
        factors = ("--separate",) * (profile.separate and row in FACTORISED)
        flags = ("--cfg", own, *common, "--epochs", str(profile.epochs), "--val-interval", "5",
                 *profile.train, *factors)
        jobs.append(Job(f"train-{row}", "train.py", flags, "metrics.json", profile.epochs,
                        product="weights/best.pt", content=nets.get(row, "")))
    # From the network whose kernels are all 3x3: in a border of zeros they compute the same in every choice.
    # From a trained choice of the 32, that one would have been trained longer than the others.
    kernels = ("--cfg", "micro-yolo", "--weights", "{train-mixed-3}", *common, "--kernels", "3", "5",
               *profile.search)
    jobs += [Job("search", "search.py", kernels, "result.json", profile.search_epochs, ("train-mixed-3",),
                 also=f"search-{profile.name}"),
             Job("prune", "prune.py", ("--weights", "{train-micro-yolo}", *common, "--tolerance", "0.5",
                                       "--importance", "l1", *profile.prune), "result.json",
                 profile.prune_epochs, ("train-micro-yolo",), "weights/best.pt", f"prune-{profile.name}")]
    for row in (*TRAINED, "pruned"):
        source = "prune" if row == "pruned" else f"train-{row}"
        jobs.append(Job(f"val-{row}", "val.py", ("--weights", f"{{{source}}}", *common, "--batch-size", "1"),
                        "metrics.json", 0, (source,)))
    return tuple(jobs)


def duration_text(jobs: list[Job], profile: Profile, rate: float | None) -> str:
    """Return how long the jobs take at `rate` seconds per epoch, or as the profile assumes, in words."""
    epochs = sum(job.epochs for job in jobs)
    seconds = epochs * (rate or profile.seconds) + len(jobs) * profile.other
    time = f"{seconds / 3600:.0f} GPU-hours" if profile.gpu else (
        f"{seconds / 3600:.1f} hours" if seconds > 5400 else f"{seconds / 60:.0f} minutes")
    basis = f"measured here: {rate:.1f} s an epoch" if rate else f"assumed: {profile.assumed}"
    return f"{len(jobs)} jobs, {epochs} epochs, about {time} ({basis})"
