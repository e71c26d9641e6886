"""How networks are trained: frozen records that the flags of train.py, prune.py and search.py become."""
from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import UnionType
from typing import get_args, get_origin, get_type_hints

from utils.cli import BELOW_ONE, FLAGS, NOT_NEGATIVE, ONE_OR_MORE, POSITIVE, SHARE, option

DEFAULT_LR = {"sgd": 0.01, "adamw": 0.002}
SECONDS = {"s": 1, "m": 60, "h": 3600}


def duration(text: str) -> float:
    """Return the seconds of 90s, 15m or 1.5h; raise argparse's error."""
    try:
        return float(text[:-1]) * SECONDS[text[-1:]]
    except (KeyError, ValueError):
        raise argparse.ArgumentTypeError(f"{text!r}: needs a number and s, m or h, e.g. 15m") from None


def batch(text: str) -> int:
    """Return the images of a batch, 0 for auto; raise argparse's error."""
    if text == "auto":
        return 0
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: needs 1 or more, or auto")
    return int(text)


def known_preset(name: str) -> bool:
    """Return whether data/augment.py has this preset, or it is a file. OpenCV is loaded only for flags."""
    from data.augment import FILES, PRESETS
    return name in PRESETS or name.endswith(FILES)


def rate(defaults: Mapping[str, float]) -> float | None:
    """Return the option --lr of a script whose defaults, by optimizer, are these."""
    told = ", ".join(f"{value:g} for {name}" for name, value in sorted(defaults.items()))
    return option(None, f"peak learning rate (default: {told})", POSITIVE, type=float)


@dataclass(frozen=True)
class Recipe:
    """What every training depends on, one field a flag; the configs of the three scripts add their own."""

    weights: str | None = None
    data: str | None = None
    imgsz: int | None = option(None, "network input side in px, a multiple of 32 (default: the side of "
                                     "--weights)", type=int)
    batch_size: int = 16
    device: str = "auto"
    workers: int = 1
    threads: int = 0
    cache: str = "auto"
    max_pixels: int = 100_000_000
    drop_unknown: bool = False
    trust: str | None = None
    project: str = "runs/train"
    name: str = "exp"
    seed: int = 0
    metric: str = "map50"                          # a validation's figure that the best network is best at
    optimizer: str = option("adamw", "AdamW, or SGD with Nesterov momentum", choices=("adamw", "sgd"))
    lr: float | None = rate(DEFAULT_LR)
    final_lr: float = option(0.01, "share of --lr at the end of the cosine", SHARE)
    momentum: float = option(0.937, "SGD momentum, AdamW beta1", BELOW_ONE)
    weight_decay: float = option(5e-4, "on kernels only, never on batch-norm or biases", NOT_NEGATIVE)
    warmup_epochs: float = option(1.0, "epochs of linear warm-up", NOT_NEGATIVE)
    nominal_batch: int = option(16, "images per optimizer step; smaller batches are accumulated", ONE_OR_MORE)
    clip: float = option(10.0, "largest gradient norm", POSITIVE)
    ema_age: float = option(0.02, "mean age of the averaged weights, as a share of the steps taken so far "
                                  "(0: no averaging)", BELOW_ONE)
    val_split: float | None = option(None, "share of an undivided set for val, by whole videos or folders "
                                           "(default: 0.2)", BELOW_ONE, type=float)
    augment: str = option("default", "variety of the training images: none, light, no-flip, default, another "
                                     "preset of data/augment.py, or an albumentations pipeline after mosaic, "
                                     "as its own A.save writes it (.yaml, .json)",
                         (known_preset, "none, light, no-flip, default, a preset of your own or a .yaml"))
    mixup: float = option(0.0, "share of the training images that are mixed with another's", SHARE)
    close_mosaic: int = option(10, "last epochs without mosaic", NOT_NEGATIVE)
    multi_scale: bool = option(False, "vary the input side by half to one and a half, a new one each step")
    precision: str = option("auto", "of the forward pass in training; auto: fp16 on CUDA, bf16 on CPUs that "
                                    "have it, in train.py only if first steps are faster in it, else fp32",
                            choices=("auto", "fp32", "bf16", "fp16"))
    box: float | None = option(None, "weight of the box loss (default: the head's: 5, of a free one 2.5)",
                               NOT_NEGATIVE, type=float)
    obj: float | None = option(None, "weight of the objectness loss (1)", NOT_NEGATIVE, type=float)
    cls: float | None = option(None, "weight of the class loss (1)", NOT_NEGATIVE, type=float)
    dfl: float | None = option(None, "weight of the loss of an anchor-free head's distributions (0.5)",
                               NOT_NEGATIVE, type=float)
    distill: float = option(1.0, "weight of the teacher's part in the loss", NOT_NEGATIVE)
    save_minutes: float = option(5.0, "minutes between saves within an epoch", NOT_NEGATIVE)

    @property
    def start(self) -> str | None:
        """Return the checkpoint that training starts from; None for random weights."""
        return None if self.weights == "none" else self.weights

    @property
    def peak_lr(self) -> float:
        """Return the learning rate after the warm-up."""
        return self.lr or DEFAULT_LR[self.optimizer]

    @property
    def accumulate(self) -> int:
        """Return the number of batches per optimizer step."""
        return max(1, round(self.nominal_batch / self.batch_size))

    def loss_weights(self, terms: Mapping[str, float]) -> dict[str, float]:
        """Return each loss term's weight: this config's where it names one, else that in `terms`."""
        given = {name: getattr(self, name, None) for name in terms}
        return {name: weight if given[name] is None else given[name] for name, weight in terms.items()}

    def training(self, epochs: int, seed: int, name: str) -> TrainConfig:
        """Return the config of one training by this recipe, validated once at its end, without a report."""
        shared = {item.name: getattr(self, item.name) for item in fields(Recipe)}
        return TrainConfig(**shared | {"seed": seed, "name": name}, epochs=epochs, val_interval=epochs,
                           no_report=True)


@dataclass(frozen=True)
class NetRecipe(Recipe):
    """A recipe for a network that is built, or started from a checkpoint's weights."""

    cfg: str | None = None
    epochs: int = 100
    separate: bool = option(False, "start DSConv and MBConv layers as factors (SVD) of the checkpoint's "
                                   "convolutions of the same name; larger kernels hold the same factors")
    fit_anchors: bool = option(False, "fit the heads' anchors to the training boxes by k-means")


@dataclass(frozen=True)
class TrainConfig(NetRecipe):
    """One training, as the flags of train.py name it."""

    weights: str | None = option(None, "checkpoint to start from: .pt, darknet .weights, ncnn .bin; none: at "
                                       "random (default: the one that comes with the project for --cfg)")
    cfg: str | None = option(None, "network: a zoo name such as micro-yolo (the README lists them) or a "
                                   "net.json (default: that of --weights)")
    backbone_weights: str | None = option(
        None, "classifier whose layers of the same name the network takes: lite0, mobilenet-v2 (packages) or "
        "a FILE, the state dict of torchvision or timm, or an ncnn .bin; the rest starts at random",
        metavar="NAME|FILE")
    batch_size: int = option(16, "images per step, over all processes; auto: what fits a CUDA device",
                             NOT_NEGATIVE, type=batch)
    exist_ok: bool = False
    teacher: str | None = option(None, "checkpoint whose predictions are learned as well, for the classes "
                                       "that both know by name")
    unlabelled: str | None = option(None, "folder of further training images without ground truth, of "
                                          "which --teacher or --self-distill alone speaks")
    distill_features: float = option(0.0, "weight of the teacher's features in the loss: what its heads read "
                                          "at the strides that both networks have", NOT_NEGATIVE)
    self_distill: bool = option(False, "learn what the run's own average predicts as well, from the end of "
                                       "warm-up on, with weight --distill")
    metric: str = option("map50", "what the best network is best at", choices=("map50", "map50_95"))
    val_interval: int = option(1, "epochs between validations; the last one always validates", ONE_OR_MORE)
    patience: int = option(0, "end after so many epochs without a better --metric (0: never)", NOT_NEGATIVE)
    time: float | None = option(None, "end within this time (90s, 15m, 1.5h), start and report included: "
                                      "epochs and validations are planned by what first steps take", POSITIVE,
                                type=duration)
    epoch_images: int | None = option(None, "images of an epoch, others each time (default: all; --time sets "
                                            "it for a large set)", ONE_OR_MORE, type=int)
    class_weights: tuple[str, ...] = option(
        (), "weights of classes in the class loss: auto (by the root of their rarity), a JSON of name: "
        "weight, or NAME=WEIGHT ...; the rest 1", nargs="+")
    cycles: int = option(1, "cosines one after another, each from the peak rate (warm restarts)", ONE_OR_MORE)
    freeze: tuple[str, ...] = option((), "layers that do not learn, batch-norm's statistics included: a "
                                         "number of the first ones, or names", nargs="+")
    no_report: bool = option(False, "no plots and no report.html at the end")
    resume: str | None = option(None, "continue a run folder (default: the newest)", nargs="?", const="",
                                metavar="RUN")
    accept: bool = option(False, "resume although the continuation will not be bit-exact")

    @property
    def warmup(self) -> float:
        """Return the epochs of warm-up, at most a quarter of all."""
        return min(self.warmup_epochs, self.epochs / 4)

    def sides(self, stride: int) -> tuple[int, ...]:
        """Return the input sides (px, multiples of the stride) of multi-scale training; none without it."""
        lowest = max(stride, self.imgsz // 2 // stride * stride)
        return tuple(range(lowest, self.imgsz * 3 // 2 + 1, stride)) if self.multi_scale else ()


def misfits(saved: Mapping[str, object]) -> list[str]:
    """Return the names of values of an args.json that no field of TrainConfig ever has."""
    hints = {name: get_args(hint) if isinstance(hint, UnionType) else (hint,)
             for name, hint in get_type_hints(TrainConfig).items()}
    kinds = {name: [get_origin(kind) or kind for kind in of_name] for name, of_name in hints.items()}
    choices = {item.name: {**FLAGS.get(item.name, {}), **item.metadata}.get("choices")
               for item in fields(TrainConfig)}

    def fits(name: str, value: object) -> bool:
        kind = tuple if isinstance(value, list) and all(isinstance(v, str) for v in value) else type(value)
        alike = kind in kinds[name] or kind is int and float in kinds[name]
        return alike and (value is None or not choices[name] or value in choices[name])
    return [name for name, value in saved.items() if name in kinds and not fits(name, value)]
