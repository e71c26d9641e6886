"""The flags of every script that trains, and their ranges."""
from __future__ import annotations

import argparse
import math
from collections.abc import Callable


def add_training_flags(add: Callable) -> None:
    """Declares how networks are trained; add is a parser's add_argument."""
    add("--optimizer", choices=("adamw", "sgd"), default="adamw", help="AdamW, or SGD with Nesterov momentum")
    add("--lr", type=float, help="peak learning rate (default: 0.002 for adamw, 0.01 for sgd)")
    add("--final-lr", type=float, default=0.01, help="share of --lr at the end of the cosine")
    add("--momentum", type=float, default=0.937, help="SGD momentum, AdamW beta1")
    add("--weight-decay", type=float, default=5e-4, help="on kernels only, never on batch-norm or biases")
    add("--warmup-epochs", type=float, default=1.0, help="epochs of linear warm-up")
    add("--nominal-batch", type=int, default=16,
        help="pictures an optimizer step; smaller batches are accumulated")
    add("--clip", type=float, default=10.0, help="largest gradient norm")
    add("--ema-decay", type=float, default=0.9998, help="decay of the weights' moving average")
    add("--ema-ramp", type=float, default=300.0, help="optimizer steps over which that decay grows")
    add("--augment", choices=("none", "light", "no-flip", "default"), default="default",
        help="training pictures' variety")
    add("--close-mosaic", type=int, default=10, help="last epochs without mosaic")
    add("--multi-scale", action="store_true",
        help="vary the input side by half to one and a half, a new one each step")
    add("--precision", choices=("auto", "fp32", "bf16", "fp16"), default="auto",
        help="of the forward pass in training")
    add("--box", type=float, default=5.0, help="weight of the box loss (1 - CIoU)")
    add("--obj", type=float, default=1.0, help="weight of the objectness loss")
    add("--cls", type=float, default=1.0, help="weight of the class loss")
    add("--distill", type=float, default=1.0, help="weight of the teacher's part in the loss")
    add("--save-minutes", type=float, default=5.0, help="minutes between saves within an epoch")


RANGES: dict[str, Callable[[float], bool]] = {
    "lr": lambda v: v > 0, "nominal_batch": lambda v: v >= 1, "val_interval": lambda v: v >= 1,
    "momentum": lambda v: 0 <= v < 1, "weight_decay": lambda v: v >= 0, "clip": lambda v: v > 0,
    "ema_decay": lambda v: 0 <= v < 1, "ema_ramp": lambda v: v > 0, "box": lambda v: v >= 0,
    "obj": lambda v: v >= 0, "cls": lambda v: v >= 0, "distill": lambda v: v >= 0,
    "final_lr": lambda v: 0 <= v <= 1, "warmup_epochs": lambda v: v >= 0, "save_minutes": lambda v: v >= 0,
    "close_mosaic": lambda v: v >= 0}


def check_ranges(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Ends with a usage message where a number is out of its range or not finite."""
    for name, good in RANGES.items():
        value = getattr(args, name, None)
        if value is not None and not (good(value) and math.isfinite(value)):
            parser.error(f"--{name.replace('_', '-')} {value} is out of range")
