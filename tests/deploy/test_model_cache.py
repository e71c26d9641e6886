"""--model-cache: the same numbers whatever lies in the folder, and nothing compiled twice."""
import errno

import numpy as np
import pytest

from deploy.artifact import digest
from deploy.runtimes.cache import CHECK, ModelCache
from deploy.runtimes.runtime import load_runtime
from tests.helpers.export_cases import batch, checkpoint, exported
from tests.helpers.nets import residual_net
from tests.helpers.scripts import call

for library in ("onnx", "openvino"):
    pytest.importorskip(library, reason=f"needs {library} (requirements-export.txt)")
IMAGES = batch().numpy()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A small network as OpenVINO's files and as ONNX."""
    return exported(tmp_path_factory.mktemp("made"), checkpoint(residual_net()), ("openvino", "onnx"))


@pytest.fixture
def written(monkeypatch):
    """The number of entries written since the test began, as a list's length."""
    done, write = [], ModelCache.write
    monkeypatch.setattr(ModelCache, "write", lambda *args: (done.append(1), write(*args))[1])
    return done


def outputs(path, kept=None, precision="fp32", threads=1):
    return load_runtime(path, precision=precision, threads=threads, kept=kept).predict(IMAGES)


def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_second_load_compiles_nothing_and_computes_the_same(made, tmp_path, written):
    kept, before = tmp_path / "new" / "kept", digest(made["openvino"])
    plain = outputs(made["openvino"])
    assert same(outputs(made["openvino"], kept), plain) and len(written) == 2  # for one image, for all
    assert same(outputs(made["openvino"], kept), plain) and len(written) == 2
    assert len(list(kept.iterdir())) == 2 and digest(made["openvino"]) == before
    outputs(made["openvino"], kept, threads=2)
    assert len(written) == 4, "other settings are another model"


def test_another_file_is_another_model(made, tmp_path, written):
    other = exported(tmp_path, checkpoint(residual_net(), {key: value * 1.5 for key, value in checkpoint(
        residual_net()).state.items()}), ("openvino",))["openvino"]
    first = outputs(made["openvino"], tmp_path / "kept")
    assert not same(outputs(other, tmp_path / "kept"), first) and len(written) == 4


@pytest.mark.parametrize("harm", ["torn", "changed", "empty", "swapped", "folder"])
def test_a_spoilt_entry_is_told_and_made_anew(made, tmp_path, written, capsys, harm):
    plain = outputs(made["openvino"], tmp_path)
    one, two = sorted(tmp_path.iterdir())
    whole = one.read_bytes(), two.read_bytes()
    for entry, other in ((one, whole[1]), (two, whole[0])):
        data = bytearray(entry.read_bytes())
        data[CHECK + len(data) // 2] ^= 1
        spoilt = {"torn": whole[0][:-9], "changed": bytes(data), "empty": b"", "swapped": other}
        entry.unlink() if harm == "folder" else entry.write_bytes(spoilt[harm])
        if harm == "folder":
            entry.mkdir()
    assert same(outputs(made["openvino"], tmp_path), plain) and len(written) == 4
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith(f"warning: --model-cache {tmp_path}: ")
    if harm != "folder":
        assert same(outputs(made["openvino"], tmp_path), plain) and len(written) == 4
    assert not list(tmp_path.glob("*.part"))


def test_what_the_library_refuses_is_told_and_made_anew(made, tmp_path, written, capsys, monkeypatch):
    plain = outputs(made["openvino"], tmp_path)
    monkeypatch.setattr(ModelCache, "read", lambda *_: b"no model, and proven by its own checksum")
    assert same(outputs(made["openvino"], tmp_path), plain) and len(written) == 4
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "OpenVINO refuses what it wrote (" in said


def test_a_full_disk_and_a_folder_that_is_none_cost_nothing_but_time(made, tmp_path, capsys, monkeypatch):
    plain = outputs(made["openvino"])
    (tmp_path / "file").write_text("")
    assert same(outputs(made["openvino"], tmp_path / "file"), plain)
    assert capsys.readouterr().err.count("\n") == 1

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr("os.replace", full)
    assert same(outputs(made["openvino"], tmp_path / "kept"), plain)
    assert "No space left" in capsys.readouterr().err and not list((tmp_path / "kept").iterdir())


def test_formats_that_keep_nothing_are_refused(made, tmp_path, monkeypatch, capsys):
    import detect
    import val
    words = ["--weights", made["onnx"], "--model-cache", tmp_path, "--project", tmp_path]
    assert call(monkeypatch, val.main, ["val.py", "--data", "scenes", *words]) == 2
    from PIL import Image
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    assert call(monkeypatch, detect.main, ["detect.py", "--source", tmp_path / "a.png", *words]) == 2
    assert capsys.readouterr().err.count("leave it out") == 2
