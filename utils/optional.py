"""Libraries that only some formats need: imported where they are used, and missed in one sentence."""
from __future__ import annotations

import importlib
import os
import sys
from types import ModuleType

from utils.errors import EnvironmentFault


def report_nothing() -> None:
    """Keep openvino and nncf, imported later, from telling their makers over the network what they did."""
    sys.modules.setdefault("openvino_telemetry", None)
    os.environ.setdefault("NNCF_CI", "1")


def needs(name: str, what_for: str) -> ModuleType:
    """Return the imported library; raise EnvironmentFault with the pip line where it is missing or broken."""
    report_nothing()
    try:
        return importlib.import_module(name)
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError)
        reason = "is not installed" if missing else f"cannot be loaded ({error})"
        raise EnvironmentFault(f"{name} {reason}, and it is needed {what_for}: pip install {name}; the "
                               "requirements*.txt name the versions") from error


class Lazy:
    """A stand-in for a library that is imported when one of its names is first asked for."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> object:
        return getattr(importlib.import_module(self._name), attribute)
