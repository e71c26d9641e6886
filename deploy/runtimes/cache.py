"""Compiled models in a folder that the user names: found by all that they depend on, proven before use."""
from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path

from deploy.artifact import format_of
from utils.errors import UsageError

CHECK = 32                                                 # bytes of an entry's checksum, before its content


def check_cache(folder: str | None, weights: str | Path) -> None:
    """Raise UsageError where --model-cache is given for weights that nothing is kept of."""
    if folder and format_of(weights) != "openvino":
        raise UsageError(f"--model-cache keeps compiled OpenVINO models, and {weights} is none: leave it out")


class ModelCache:
    """Compiled models in `folder`, made with the first that is kept; `made_of`: what all of them depend on.

    An entry is named by the SHA-256 of all it was made of, and begins with that of its name and content: one
    that is torn, changed or another's is told, and made anew. Who wrote it is not told, so the folder must
    be the user's own. What fails is said on stderr once, and costs the time that the cache would have saved.
    """

    def __init__(self, folder: str | Path, *made_of: object) -> None:
        self.folder, self.made_of, self._silent = Path(folder), made_of, False

    def read(self, *words: object) -> bytes | None:
        """Return the model kept under these words, all it was made of besides; None where there is none."""
        name = self._name(words)
        try:
            data = (self.folder / name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            return self.say(f"{name} cannot be read ({error.strerror or error})")
        if data[:CHECK] != _sum(name, memoryview(data)[CHECK:]):
            return self.say(f"{name} is damaged, and is made anew")
        return data[CHECK:]

    def write(self, content: bytes, *words: object) -> None:
        """Keep a model under these words, whole or not at all."""
        name, part = self._name(words), ""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            handle, part = tempfile.mkstemp(".part", dir=self.folder)      # threads and processes write here
            with open(handle, "wb") as file:
                file.write(_sum(name, content))
                file.write(content)
            os.replace(part, self.folder / name)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.unlink(part)
            self.say(f"nothing can be kept ({error.strerror or error})")

    def _name(self, words: tuple[object, ...]) -> str:
        told = json.dumps([*self.made_of, *words], sort_keys=True, default=str)
        return f"{hashlib.sha256(told.encode()).hexdigest()}.model"

    def say(self, fault: str) -> None:
        """Tell what failed, the first time; the model is made without the folder then."""
        if not self._silent:
            print(f"warning: --model-cache {self.folder}: {fault}; continuing without", file=sys.stderr)
        self._silent = True


def _sum(name: str, content: bytes | memoryview) -> bytes:
    found = hashlib.sha256(name.encode())
    found.update(content)
    return found.digest()
