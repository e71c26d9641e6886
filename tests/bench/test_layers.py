"""Two runtimes' files of one network beside each other, layer by layer."""
from pathlib import Path

import numpy as np
import pytest

from bench import layers
from deploy import export
from models.checkpoint import Checkpoint, save
from tests.helpers.nets import randomised, residual_net, small_net
from utils.errors import UsageError


def exported(folder: Path, net, forms: tuple[str, ...]) -> list[str]:
    """Its files at 64 px."""
    model, path = randomised(net), folder / "net.pt"
    save(path, Checkpoint(model.net, model.state_dict(), ("a", "b", "c"), 64))
    noise = [np.random.default_rng(0).integers(0, 255, (3, 64, 64), np.uint8)]
    job = export.Export(str(path), export.read(str(path), 64)[0], 64, False, False, noise)
    rows = [export.export(job, form, folder, "net") for form in forms]
    assert not any(row["faults"] for row in rows)
    return [str(folder / row["file"]) for row in rows]


def test_every_layer_has_its_time_in_both_runtimes(tmp_path: Path, capsys, monkeypatch):
    for library in ("onnx", "onnxruntime", "openvino"):
        pytest.importorskip(library, reason=f"needs {library}")
    files, saved = exported(tmp_path, small_net(), ("onnx", "openvino")), {}
    monkeypatch.setattr(layers.runs, "save_record", saved.__setitem__)
    monkeypatch.setattr("sys.argv", ["layers", *files, files[0], "--turns", "1", "--save-json", "a"])
    layers.main()
    record, out = saved["a"], capsys.readouterr().out
    assert list(record["files"]) == ["onnx_fp32", "openvino_fp32", "onnx_fp32_2"] and record["imgsz"] == 64
    for name, of in record["files"].items():
        assert all(of["layers"][layer] > 0 for layer in ("conv1", "mb3", "ds5", "head6")), (name, of)
        assert of["ms"] == pytest.approx(sum(of["layers"].values()), rel=1e-6)
        assert any("Conv" in kind for kind in of["kinds"])
    assert "conv1" in out and "openvino_fp32: " in out


def test_files_of_other_networks_or_formats_are_refused(tmp_path: Path):
    pytest.importorskip("onnx", reason="needs onnx (requirements-export.txt)")
    pytest.importorskip("onnxruntime", reason="needs onnxruntime (requirements-export.txt)")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    [first] = exported(tmp_path / "a", small_net(), ("onnx",))
    [other] = exported(tmp_path / "b", residual_net(), ("onnx",))
    with pytest.raises(UsageError, match="not of one network"):
        layers.beside([first, other], 1, 1)
    with pytest.raises(UsageError, match="ONNX and OpenVINO files"):
        layers.profiled(str(tmp_path / "a" / "net.pt"), 1)
