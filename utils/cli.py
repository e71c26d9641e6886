"""Every shared flag once, its checks, and the way a script ends. Imports nothing heavy, for `--help`."""
from __future__ import annotations

import argparse
import contextlib
import errno
import io
import math
import os
import re
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import Field, field, fields
from typing import TypeVar

Config = TypeVar("Config")
Rule = tuple[Callable[[object], bool], str]        # what makes a value good, and the words for it
# ESC [K and ESC [A are a progress bar's; the last two ranges turn the direction of what follows
STEERS = re.compile("[\0-\b\v\f\x0e-\x1a\x1c-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]|\x1b(?!\\[[KA])")
LEFT_BEHIND = "reader of "         # beginning of the names of threads that may hang where none can end them
ALIASES = {"imgsz": ("--img", "--img-size"), "batch-size": ("--batch",), "conf-thres": ("--conf",),
           "iou-thres": ("--iou",)}
FLAGS: dict[str, dict] = {
    "weights": {"help": "checkpoint .pt, official darknet .weights or ncnn .bin, or what export.py wrote"},
    "cfg": {"help": "network: a zoo name such as micro-yolo, nano:BACKBONE+NECK+..., or a net.json"},
    "data": {"help": "data set: a YAML (path, train, val, names) or a folder in COCO layout"},
    "source": {"help": "image, folder, glob, list file or video; of detect.py also a camera (0) or an "
                       "address (rtsp://, http://)"},
    "imgsz": {"type": int, "help": "network input side in px, a multiple of 32"},
    "batch-size": {"type": int, "help": "images per step, over all processes"},
    "epochs": {"type": int, "help": "passes over the training set"},
    "device": {"default": "auto", "help": "auto, cpu, cuda, or a CUDA index such as 0"},
    "workers": {"type": int, "default": 1, "help": "loader processes, in val.py threads (0: none)"},
    "conf-thres": {"type": float, "help": "lowest score kept, 0..1"},
    "nms": {"choices": ("standard", "diou", "cluster"), "default": "standard",
            "help": "diou: objects side by side both stay; cluster: the standard boxes by one matrix"},
    "iou-thres": {"type": float, "help": "NMS IoU threshold, 0..1"},
    "max-det": {"type": int, "help": "most boxes per image"},
    "classes": {"nargs": "+", "help": "keep only these classes (names or numbers)"},
    "half": {"action": "store_true",
             "help": "half precision: fp16 on CUDA, bf16 on CPUs with native support; of exported files what "
                     "their runtime has natively"},
    "project": {"help": "folder of the run folders"},
    "name": {"default": "exp", "help": "run folder's name; exp, exp2, ... are taken in turn"},
    "exist-ok": {"action": "store_true", "help": "write into an existing run folder"},
    "model-cache": {"metavar": "DIR", "help": "folder that keeps compiled OpenVINO models for the next "
                                              "start; pays for networks of many layers"},
    "seed": {"type": int, "default": 0, "help": "seed of weights, order and augmentation"},
    "val-split": {"type": float, "help": "of an undivided set: the share that training took for val (0.2); "
                                         "--seed as there, too"},
    "threads": {"type": int, "default": 0, "help": "CPU threads of the network (0: all cores)"},
    "cache": {"choices": ("auto", "ram", "off"), "default": "auto",
              "help": "letterboxed images as uint8 in RAM: auto keeps them when they fit"},
    "max-pixels": {"type": int, "default": 100_000_000,
                   "help": "refuse images that claim more pixels than this"},
    "drop-unknown": {"action": "store_true",
                     "help": "drop boxes whose category is not in `categories` and continue"},
    "trust": {"choices": ("image", "json"), "default": None,
              "help": "when an image's size differs from the JSON: rescale boxes to the image, or keep them "
                      "as they are (default: refuse)"},
}
POSITIVE: Rule = (lambda v: v > 0, "more than 0")
NOT_NEGATIVE: Rule = (lambda v: v >= 0, "0 or more")
ONE_OR_MORE: Rule = (lambda v: v >= 1, "1 or more")
SHARE: Rule = (lambda v: 0 <= v <= 1, "between 0 and 1")
BELOW_ONE: Rule = (lambda v: 0 <= v < 1, "0 or more, below 1")
RULES: dict[str, Rule] = {
    "imgsz": (lambda v: 32 <= v <= 4096 and v % 32 == 0, "a multiple of 32 between 32 and 4096"),
    **dict.fromkeys(("batch_size", "batch_sizes", "epochs", "max_det", "max_pixels"), ONE_OR_MORE),
    **dict.fromkeys(("conf_thres", "iou_thres"), SHARE),
    "val_split": BELOW_ONE,
    "name": (lambda v: v.strip(" ./\\") != "", "a name for the run's folder"),
    "workers": NOT_NEGATIVE,
    "seed": (lambda v: 0 <= v < 2 ** 31, "between 0 and 2147483647"),
    "threads": (lambda v: v >= 0, "0 (all cores) or more"),
    "port": (lambda v: 0 <= v <= 65535, "between 0 and 65535"),
}


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Help in which a default is said once, and not where there is none."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, ()) or "(default" in (action.help or ""):
            return action.help
        return super()._get_help_string(action)


def parser(description: str, *names: str, defaults: dict | None = None) -> argparse.ArgumentParser:
    """Return a parser with the named shared flags; `defaults` maps names to this script's default values."""
    out = argparse.ArgumentParser(description=description, allow_abbrev=False, formatter_class=_Help)
    if unknown := set(defaults or ()) - set(names):
        raise ValueError(f"defaults for flags this script does not take: {', '.join(sorted(unknown))}")
    for name in names:
        out.add_argument(f"--{name}", *ALIASES.get(name, ()), **FLAGS[name])
    out.set_defaults(**{name.replace("-", "_"): value for name, value in (defaults or {}).items()})
    return out


def option(default: object, help: str, needs: Rule | None = None, **keywords: object) -> Field:
    """Return a field of a frozen config that is a flag too; `keywords` are add_argument's."""
    return field(default=default, metadata={"help": help, "needs": needs, **keywords})


def config_parser(description: str, config: type) -> argparse.ArgumentParser:
    """Return a parser with a flag for each `option` of a config class and each field named as in FLAGS."""
    out = parser(description)
    for item in fields(config):
        flag = item.name.replace("_", "-")
        keywords = {**FLAGS.get(flag, {}), **item.metadata, "default": item.default}
        if "help" not in keywords:                 # a field that no flag sets
            continue
        keywords.pop("needs", None)
        if isinstance(item.default, bool):
            keywords["action"] = "store_true"
        elif isinstance(item.default, int | float):
            keywords.setdefault("type", type(item.default))
        out.add_argument(f"--{flag}", *ALIASES.get(flag, ()), **keywords)
    return out


def to_config(out: argparse.ArgumentParser, args: argparse.Namespace, config: type[Config],
              *required: str) -> Config:
    """Return the checked arguments as a record, lists as tuples, or exit 2 as `check` does."""
    rules = {item.name: item.metadata["needs"] for item in fields(config) if item.metadata.get("needs")}
    args = check(out, args, *required, rules={**RULES, **rules})
    return config(**{name: tuple(value) if isinstance(value, list) else value
                     for name, value in vars(args).items()})


def check(out: argparse.ArgumentParser, args: argparse.Namespace, *required: str,
          rules: dict[str, Rule] = RULES) -> argparse.Namespace:
    """Return the same arguments, or exit 2 with what was given, what is needed and the flag's name."""
    for name in required:
        if getattr(args, name.replace("-", "_")) is None:
            out.error(f"--{name} is missing: {FLAGS[name]['help']}")
    for name, (good, needed) in rules.items():
        given = getattr(args, name, None)
        for value in given if isinstance(given, list | tuple) else [given]:
            if value is not None and not (good(value) and (isinstance(value, str) or math.isfinite(value))):
                out.error(f"--{name.replace('_', '-')} {value}: needs {needed}")
    return args


def typed(out: argparse.ArgumentParser, flags: Sequence[str]) -> list[str]:
    """Return those of the flags that are on the command line, under any of their names."""
    given = {word.split("=")[0] for word in sys.argv[1:]}
    return [flag for flag in flags if given & set(out._option_string_actions[flag].option_strings)]


class Plain(io.TextIOWrapper):
    """A stream on which nothing printed can steer the terminal: names come from files of anyone's making."""

    def write(self, text: str) -> int:
        """Write the text, control characters but those of progress bars spelled out."""
        return super().write(STEERS.sub(lambda found: found[0].encode("unicode_escape").decode(), text))


def run(main: Callable[[], object]) -> None:
    """End the process with main's outcome: 0, or one sentence on stderr and the error's exit code."""
    # Spinning OpenMP threads turn 10 ms into 40 where others want the cores; to be said before torch loads.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper) and stream is getattr(sys, f"__{name}__"):
            kept = {"encoding": stream.encoding, "line_buffering": stream.line_buffering}
            # a name that the locale lacks is spelled out
            setattr(sys, name, Plain(stream.detach(), errors="backslashreplace", **kept))
    code = 0
    try:
        main()
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        code = 141                                 # as a program that SIGPIPE ended
    except Exception as error:
        code = getattr(error, "exit_code", 3 if isinstance(error, FileNotFoundError) else None)
        if code is None and isinstance(error, OSError):
            full = error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
            code = 7 if full else 5
            error = f"{error}: " + ("the disk is full; free some space and run the same command again" if full
                                    else "name another place, or change what stands in the way there")
        if code is None:
            raise
        print(f"error: {error}", file=sys.stderr)
    if any(thread.name.startswith(LEFT_BEHIND) for thread in threading.enumerate()):
        with contextlib.suppress(OSError):
            sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)                             # a thread that hangs in FFmpeg would abort another way out
    if code:
        sys.exit(code)
