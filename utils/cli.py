"""Every shared flag once, its checks, and the way a script ends.

Imports nothing heavy: `--help` stays instant.
"""
from __future__ import annotations

import argparse
import contextlib
import os
import sys
import threading
from collections.abc import Callable, Sequence

LEFT_BEHIND = "reader of "         # beginning of the names of threads that may hang where none can end them
FLAGS: dict[str, tuple[tuple[str, ...], dict]] = {
    "weights": (("--weights",), {
        "help": "checkpoint .pt, official darknet .weights, or what export.py wrote"}),
    "cfg": (("--cfg",), {
        "help": "network: a zoo name such as micro-yolo (the README lists them) or a net.json"}),
    "data": (("--data",), {"help": "data set: a YAML (path, train, val, names) or a folder in COCO layout"}),
    "source": (("--source",), {"help": "picture, folder, glob, list file or video; of detect.py also "
                                      "a camera (0) or an address (rtsp://, http://)"}),
    "imgsz": (("--imgsz", "--img", "--img-size"), {
        "type": int, "help": "network input side in px, a multiple of 32"}),
    "batch-size": (("--batch-size", "--batch"), {"type": int, "help": "pictures a step, over all processes"}),
    "epochs": (("--epochs",), {"type": int, "help": "passes over the training set"}),
    "device": (("--device",), {"default": "auto", "help": "auto, cpu, cuda, or a CUDA index such as 0"}),
    "workers": (("--workers",), {"type": int, "default": 1,
                                 "help": "loader processes (0: load in the main process)"}),
    "conf-thres": (("--conf-thres", "--conf"), {"type": float, "help": "lowest score kept, 0..1"}),
    "iou-thres": (("--iou-thres", "--iou"), {"type": float, "help": "NMS IoU threshold, 0..1"}),
    "max-det": (("--max-det",), {"type": int, "help": "most boxes a picture"}),
    "classes": (("--classes",), {"nargs": "+", "help": "keep only these classes (names or numbers)"}),
    "half": (("--half",), {"action": "store_true",
                           "help": "half precision: fp16 on CUDA, bf16 on CPUs with native support; of "
                                   "exported files what their runtime has natively"}),
    "project": (("--project",), {"help": "folder of the run folders"}),
    "name": (("--name",), {"default": "exp", "help": "run folder's name; exp, exp2, ... are taken in turn"}),
    "exist-ok": (("--exist-ok",), {"action": "store_true", "help": "write into an existing run folder"}),
    "seed": (("--seed",), {"type": int, "default": 0, "help": "seed of weights, order and augmentation"}),
    "threads": (("--threads",), {"type": int, "default": 0,
                                 "help": "CPU threads of the network (0: all cores)"}),
    "cache": (("--cache",), {"choices": ("auto", "ram", "off"), "default": "auto",
                             "help": "letterboxed pictures as uint8 in RAM: auto keeps them when they fit"}),
    "max-pixels": (("--max-pixels",), {"type": int, "default": 100_000_000,
                                       "help": "refuse pictures that claim more pixels than this"}),
    "drop-unknown": (("--drop-unknown",), {
        "action": "store_true", "help": "drop boxes whose category is not in `categories` and go on"}),
    "trust": (("--trust",), {"choices": ("image", "json"), "default": None,
                             "help": "when a picture's size differs from the JSON: rescale boxes to the "
                                     "picture, or keep them as they are (default: refuse)"}),
}


def parser(description: str, *names: str, defaults: dict | None = None) -> argparse.ArgumentParser:
    """A parser with the named shared flags; `defaults` maps flag names to this script's default values."""
    out = argparse.ArgumentParser(description=description, allow_abbrev=False,
                                  formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    for name in names:
        options, keywords = FLAGS[name]
        keywords = dict(keywords)
        if defaults and name in defaults:
            keywords["default"] = defaults[name]
        out.add_argument(*options, **keywords)
    unknown = set(defaults or ()) - set(names)
    if unknown:
        raise ValueError(f"defaults for flags this script does not take: {', '.join(sorted(unknown))}")
    return out


RULES: dict[str, tuple[Callable[[object], bool], str]] = {
    "imgsz": (lambda v: 32 <= v <= 4096 and v % 32 == 0, "a multiple of 32 between 32 and 4096"),
    "batch_size": (lambda v: v >= 1, "1 or more"),
    "batch_sizes": (lambda v: v >= 1, "1 or more"),
    "epochs": (lambda v: v >= 1, "1 or more"),
    "workers": (lambda v: v >= 0, "0 or more"),
    "conf_thres": (lambda v: 0 <= v <= 1, "between 0 and 1"),
    "iou_thres": (lambda v: 0 <= v <= 1, "between 0 and 1"),
    "max_det": (lambda v: v >= 1, "1 or more"),
    "seed": (lambda v: 0 <= v < 2 ** 31, "between 0 and 2147483647"),
    "threads": (lambda v: v >= 0, "0 (all cores) or more"),
    "max_pixels": (lambda v: v >= 1, "1 or more"),
    "port": (lambda v: 0 <= v <= 65535, "between 0 and 65535"),
}


def check(out: argparse.ArgumentParser, args: argparse.Namespace, *required: str) -> argparse.Namespace:
    """The same arguments, or exit 2 with what was given, what is needed and the flag's name."""
    for name in required:
        if getattr(args, name.replace("-", "_")) is None:
            out.error(f"--{name} is missing: {FLAGS[name][1]['help']}")
    for name, (good, needed) in RULES.items():
        given = getattr(args, name, None)
        for value in given if isinstance(given, list) else [given]:
            if value is not None and not good(value):
                out.error(f"--{name.replace('_', '-')} {value}: needs {needed}")
    return args


def typed(out: argparse.ArgumentParser, flags: Sequence[str]) -> list[str]:
    """Those of the flags that are on the command line, under any of their names, whatever their values."""
    given = {word.split("=")[0] for word in sys.argv[1:]}
    return [flag for flag in flags if given & set(out._option_string_actions[flag].option_strings)]


def run(main: Callable[[], object]) -> None:
    """Ends the process with main's outcome: 0, or one sentence on stderr and the error's exit code."""
    # OpenMP threads that spin while they wait turn 10 ms into 40 or more when loader processes or neighbours
    # want the same cores; it must be said before torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    code = _outcome(main)
    if any(thread.name.startswith(LEFT_BEHIND) for thread in threading.enumerate()):
        with contextlib.suppress(OSError):
            sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)                             # a thread that hangs in FFmpeg would abort another way out
    if code:
        sys.exit(code)


def _outcome(main: Callable[[], object]) -> int:
    """The exit code of `main()`, once its error was said; errors that are no user's are raised."""
    try:
        main()
        return 0
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 141                                 # as a program that SIGPIPE ended
    except Exception as error:
        code = getattr(error, "exit_code", None)
        if code is None and isinstance(error, OSError) and error.errno == 28:
            code = 7
            error = OSError(f"{error}: the disk is full; free some space and run the same command again")
        if code is None and isinstance(error, FileNotFoundError):
            code = 3
        if code is None:
            raise
        print(f"error: {error}", file=sys.stderr)
        return code
