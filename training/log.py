"""A run's rows: one an epoch, as JSONL, CSV and TensorBoard events."""
from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path


class RunLog:
    """Rows of a run in log.jsonl, results.csv and TensorBoard events."""

    def __init__(self, folder: Path, tensorboard: bool = True) -> None:
        self.folder, self.path, self.tensorboard = folder, folder / "log.jsonl", tensorboard
        text = self.path.read_text() if self.path.is_file() else ""
        self.rows, self.writer = [json.loads(line) for line in text.splitlines()], None

    def keep_before(self, epoch: int) -> None:
        """Drops rows of `epoch` and later: they are about to be written again by a resumed run."""
        self.rows = [row for row in self.rows if row["epoch"] < epoch]
        self._rewrite()

    def add(self, row: dict[str, float]) -> None:
        """Appends one epoch's row everywhere."""
        self.rows.append(row)
        self._rewrite()
        if not self.tensorboard:
            return
        if self.writer is None:
            os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
            from torch.utils.tensorboard import SummaryWriter
            self.writer = SummaryWriter(str(self.folder))
        for key, value in row.items():
            if key != "epoch" and isinstance(value, (int, float)):
                self.writer.add_scalar(key, value, row["epoch"])
        self.writer.flush()

    def close(self) -> None:
        """Closes the TensorBoard file."""
        if self.writer is not None:
            self.writer.close()

    def _rewrite(self) -> None:
        columns = list(dict.fromkeys(key for row in self.rows for key in row))
        table = io.StringIO()
        writer = csv.DictWriter(table, columns)
        writer.writeheader()
        writer.writerows(self.rows)
        lines = "".join(json.dumps(row) + "\n" for row in self.rows)
        for path, text in ((self.path, lines), (self.folder / "results.csv", table.getvalue())):
            part = path.with_suffix(path.suffix + ".part")
            part.write_text(text, encoding="utf-8")
            os.replace(part, path)
