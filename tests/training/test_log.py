"""The rows of a run: what a resumed one keeps, and how it counts on."""
import json
from pathlib import Path

import pytest

from training.log import RunLog
from utils.errors import DataError


def test_a_resumed_run_counts_its_seconds_on(tmp_path: Path):
    rows = [{"epoch": epoch, "loss": 1.0, "seconds": 1000.0 * (epoch + 1)} for epoch in range(3)]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    log = RunLog(tmp_path)
    log.keep_before(2)
    log.add({"epoch": 2, "loss": 0.5})
    log.close()
    seconds = [json.loads(line)["seconds"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert seconds[:2] == [1000.0, 2000.0] and 2000 <= seconds[2] < 2600


@pytest.mark.parametrize("text", [b'{"epoch": 0}\n{"epo', b"[1]\n", b'{"loss": 1}\n', b'{"epoch": "0"}\n',
                                  b"\xff\n"])
def test_rows_that_were_torn_or_changed_are_a_sentence(tmp_path: Path, text: bytes):
    (tmp_path / "log.jsonl").write_bytes(text)
    with pytest.raises(DataError, match="log.jsonl cannot be read .* remove it to continue without"):
        RunLog(tmp_path)
