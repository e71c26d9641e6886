"""export.py where a format fails or a signal comes: the others continue, and nothing half-done is left."""
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import export
from deploy import export as exporting
from deploy.quant.ptq import usable
from models.checkpoint import save
from tests.helpers.export_cases import checkpoint
from tests.helpers.nets import small_net
from tests.helpers.scripts import call
from utils import runs
from utils.errors import DataError, EnvironmentFault, Interrupted, ModelError

FOLDER = "runs/exp"


@pytest.fixture
def run(monkeypatch, tmp_path: Path, capsys):
    """Runs export.py on a small network in torchscript and ncnn: (exit code, stdout, stderr)."""
    for library in ("onnx", "onnxruntime", "ncnn"):
        pytest.importorskip(library, reason=f"needs {library} (requirements-export.txt)")
    monkeypatch.setattr(runs, "tune_cpu", lambda threads: None)
    save(tmp_path / "net.pt", checkpoint(small_net()))

    def go(*words: object) -> tuple[int, str, str]:
        code = call(monkeypatch, export.main, ["export.py", "--weights", tmp_path / "net.pt", "--exist-ok",
                                               "--project", tmp_path / "runs", "--format", *words])
        return code, *capsys.readouterr()
    return go


def writer(monkeypatch, form: str, before: Callable[[], object]) -> None:
    """Calls `before` whenever the format is about to be written."""
    write = exporting.WRITERS[form]
    monkeypatch.setitem(exporting.WRITERS, form, lambda *given: (before(), write(*given))[1])


def raising(error: Exception) -> Callable[[], None]:
    """A function that raises the error."""
    def fail() -> None:
        raise error
    return fail


def test_a_writer_that_raises_leaves_no_older_file_and_the_others_their_turn(run, tmp_path, monkeypatch):
    assert run("torchscript", "ncnn")[0] == 0
    writer(monkeypatch, "torchscript", raising(EnvironmentFault("no compiler; install one")))
    writer(monkeypatch, "onnx", raising(ModelError("no such layer")))
    code, said, error = run("torchscript", "ncnn", "onnx")
    assert code == 5, "the first failure's"
    assert "torchscript: failed" in said and "ncnn: kept" in said and "onnx: failed" in said
    assert "2 of 3 exports" in error and "no compiler" in error and "no such layer" in error
    assert {p.name for p in (tmp_path / FOLDER).iterdir()} == {"args.json", "export.json", "net_ncnn"}
    rows = json.loads((tmp_path / FOLDER / "export.json").read_text())["artifacts"]
    assert [row.get("error") for row in rows] == ["no compiler; install one", None, "no such layer"]


def test_a_library_that_breaks_is_raised_when_the_others_had_their_turn(run, tmp_path, monkeypatch):
    writer(monkeypatch, "torchscript", raising(KeyError("of a library")))
    with pytest.raises(KeyError, match="of a library"):
        run("torchscript", "ncnn")
    assert (tmp_path / FOLDER / "net_ncnn").is_dir()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_leaves_what_was_finished_and_nothing_else(run, tmp_path, monkeypatch, number, code):
    writer(monkeypatch, "torchscript", lambda: os.kill(os.getpid(), number))
    found, _, error = run("ncnn", "torchscript", "onnx")
    assert found == code and "stopped by a signal" in error
    assert {p.name for p in (tmp_path / FOLDER).iterdir()} == {"args.json", "export.json", "net_ncnn"}


def test_a_signal_ends_a_calibration_between_two_images():
    images, seen = [np.zeros((1, 3, 32, 32), np.uint8)] * 9, []

    def poll() -> None:
        seen.append(1)
        if len(seen) > 12:
            raise Interrupted("stopped", 143)
    polled = usable(exporting.Polled(images, poll), 32)
    with pytest.raises(Interrupted):
        list(polled)
    assert len(seen) == 13, "9 when they were checked, then 4"
    with pytest.raises(DataError, match="8 images or more"):
        usable(exporting.Polled(images[:3], poll), 32)
