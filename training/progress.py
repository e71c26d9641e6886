"""A progress bar with rate and time left on a terminal, a plain line now and then elsewhere."""
from __future__ import annotations

import sys
import time


class Progress:
    """Progress of `total` steps from `start`; `due()` is true once every `every` seconds."""

    def __init__(self, title: str, total: int, start: int = 0, *, show: bool = True,
                 every: float = 300.0) -> None:
        self.title, self.total, self.show, self.every = title, total, show, every
        self.first = self.at = start
        self.began = self.last_line = self.last_due = time.monotonic()
        self.pictures, self.bar, self.values = 0, None, {}

    def __enter__(self) -> "Progress":
        if self.show and sys.stderr.isatty():
            from tqdm import tqdm
            self.bar = tqdm(total=self.total, initial=self.at, desc=self.title, unit="batch",
                            dynamic_ncols=True, leave=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()
        elif self.show and self.pictures:
            self._line()

    def step(self, values: dict[str, float], pictures: int) -> None:
        """One step done on so many pictures; values are shown beside the bar."""
        self.at, self.pictures, self.values = self.at + 1, self.pictures + pictures, values
        if self.bar is not None:
            self.bar.set_postfix({k: f"{v:.3f}" for k, v in values.items()} | {"img/s": f"{self.rate():.1f}"},
                                 refresh=False)
            self.bar.update()
        elif self.show and time.monotonic() - self.last_line > 30:
            self.last_line = time.monotonic()
            self._line()

    def rate(self) -> float:
        """Pictures a second since the start."""
        return self.pictures / max(1e-9, time.monotonic() - self.began)

    def due(self) -> bool:
        """Whether `every` seconds have passed since this last said so."""
        now = time.monotonic()
        if now - self.last_due < self.every:
            return False
        self.last_due = now
        return True

    def _line(self) -> None:
        spent = time.monotonic() - self.began
        left = spent / max(1, self.at - self.first) * (self.total - self.at)
        terms = "  ".join(f"{k} {v:.3f}" for k, v in self.values.items())
        print(f"{self.title}  {self.at}/{self.total}  {terms}  {self.rate():.1f} img/s  {spent:.0f}s"
              + (f", {left:.0f}s left" if self.at < self.total else ""), flush=True)
