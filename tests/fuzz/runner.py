"""One kind of input being fuzzed: mutation NUMBER of a SEED, tried in a folder."""
import random
import shutil
from pathlib import Path

from tests.fuzz.guard import Guard
from tests.fuzz.kinds import KINDS


class Fuzz:
    """The sound inputs of a kind below `place`; `refused` counts the project's own errors."""

    def __init__(self, kind: str, place: Path, guard: Guard) -> None:
        self.name, self.kind, self._guard = kind, KINDS[kind], guard
        self.folder = place / kind
        self.folder.mkdir()
        self.paths = self.kind.make(self.folder)
        self._sound = {path: path.read_bytes() for path in self.paths}
        self.refused, self.last = 0, (Path(), b"")
        for path in dict.fromkeys(self.paths):             # what is sound must pass, or the rest says nothing
            self.kind.use(self.folder, path) if path.suffix != ".weights" else None

    def one(self, seed: int, number: int) -> str:
        """Try mutation `number`, and return what went wrong as text; "" for nothing."""
        rng = random.Random(f"{self.name} {seed} {number}")
        path = rng.choice(self.paths)
        changed = self.kind.change(self._sound[path], rng)
        path.write_bytes(changed)
        self.last = path, changed

        def use() -> None:
            try:
                self.kind.use(self.folder, path)
            except Exception as error:
                self.refused += isinstance(getattr(error, "exit_code", None), int)
                raise
        try:
            return self._guard.fault(use)
        finally:
            path.write_bytes(self._sound[path])

    def keep(self, folder: Path, fault: str) -> None:
        """Write the last changed file and what happened into a folder."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / self.last[0].name).write_bytes(self.last[1])
        (folder / "fault.txt").write_text(fault, encoding="utf-8", errors="replace")
