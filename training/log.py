"""What a run shows: a progress bar or lines, and one row an epoch as JSONL, CSV and TensorBoard events."""
from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from utils import runs
from utils.errors import DataError

LINE_SECONDS = 30                                  # between two lines where there is no terminal


class RunLog:
    """Rows of a run in log.jsonl, results.csv and TensorBoard events."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path, self.began = folder, folder / "log.jsonl", time.monotonic()
        self.rows, self.writer = [], None
        try:
            text = self.path.read_text(encoding="utf-8") if self.path.is_file() else ""
            self.rows = [json.loads(line) for line in text.splitlines()]
            if not all(type(row["epoch"]) is int for row in self.rows):
                raise ValueError("an epoch is a whole number")
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{self.path} cannot be read ({error}), it was torn or changed: restore it, or "
                            "remove it to continue without its rows") from None

    def keep_before(self, epoch: int) -> None:
        """Drop rows of `epoch` and later: a resumed run writes them again, and counts its seconds on."""
        self.rows = [row for row in self.rows if row["epoch"] < epoch]
        self.began = time.monotonic() - (self.rows[-1].get("seconds", 0.0) if self.rows else 0.0)
        self._rewrite()

    def add(self, row: dict[str, float]) -> None:
        """Append one epoch's row and the seconds so far everywhere."""
        row = {**row, "seconds": round(time.monotonic() - self.began, 1)}
        self.rows.append(row)
        self._rewrite()
        if self.writer is None:
            os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
            from torch.utils.tensorboard import SummaryWriter
            self.writer = SummaryWriter(str(self.folder))
        for key, value in row.items():
            if key != "epoch" and isinstance(value, (int, float)):
                self.writer.add_scalar(key, value, row["epoch"])
        self.writer.flush()

    def close(self) -> None:
        """Close the TensorBoard file."""
        if self.writer is not None:
            self.writer.close()

    def _rewrite(self) -> None:
        columns = list(dict.fromkeys(key for row in self.rows for key in row))
        table = [columns, *([row.get(key) for key in columns] for row in self.rows)]
        runs.write_text(self.path, "".join(json.dumps(row) + "\n" for row in self.rows))
        runs.write_text(self.folder / "results.csv",       # names and numbers: nothing to quote
                        "".join(",".join("" if cell is None else str(cell) for cell in cells) + "\n"
                                for cells in table))


class Progress:
    """A bar on a terminal, a line now and then elsewhere, over `total` batches from `start`."""

    def __init__(self, title: str, total: int, start: int, show: bool) -> None:
        self.title, self.total, self.start, self.at, self.show = title, total, start, start, show
        self.began = self.last_line = time.monotonic()
        self.images, self.bar, self.values = 0, None, {}
        if show and sys.stderr.isatty():
            from tqdm import tqdm
            self.bar = tqdm(total=total, initial=start, desc=title, unit="batch", dynamic_ncols=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()
        elif self.show and self.images:
            self._line()

    def step(self, values: dict[str, float], batches: int, images: int) -> None:
        """Count batches that are done, with their images; values are shown beside the bar."""
        self.at, self.images, self.values = self.at + batches, self.images + images, values
        rate = self.images / max(1e-9, time.monotonic() - self.began)
        if self.bar is not None:
            shown = {name: f"{value:.3f}" for name, value in values.items()}
            self.bar.set_postfix(shown | {"img/s": f"{rate:.1f}"}, refresh=False)
            self.bar.update(batches)
        elif self.show and time.monotonic() - self.last_line > LINE_SECONDS:
            self.last_line = time.monotonic()
            self._line()

    def _line(self) -> None:
        spent = max(1e-9, time.monotonic() - self.began)
        left = spent / max(1, self.at - self.start) * (self.total - self.at)
        terms = "  ".join(f"{name} {value:.3f}" for name, value in self.values.items())
        print(f"{self.title}  {self.at}/{self.total}  {terms}  {self.images / spent:.1f} img/s  {spent:.0f}s"
              + (f", {left:.0f}s left" if self.at < self.total else ""), flush=True)
