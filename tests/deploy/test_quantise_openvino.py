"""OpenVINO in eight bits by NNCF: near the exact outputs, heads in float, nothing told to the network."""
import subprocess
import sys

import numpy as np
import pytest

from deploy.onnx_file import to_onnx
from deploy.runtimes.openvino import core
from tests.deploy.test_quantise import NOISE, SIDE, smooth
from tests.helpers.nets import randomised, residual_net
from utils.errors import DataError, EnvironmentFault, ModelError

pytest.importorskip("nncf", reason="needs nncf (requirements-export.txt)")
pytest.importorskip("openvino", reason="needs openvino (requirements-export.txt)")

from deploy.quant.ptq import quantise_onnx, quantise_openvino  # noqa: E402  (after the libraries are known)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The exact model, the quantised one and the report."""
    folder = tmp_path_factory.mktemp("openvino")
    (folder / "net.onnx").write_bytes(to_onnx(residual_net(), randomised(residual_net()).state_dict(), SIDE))
    source, target = folder / "net.onnx", folder / "model.xml"
    return source, target, quantise_openvino(source, target, smooth(8))


def test_the_quantised_model_computes_nearly_the_same_for_any_batch(made):
    config = {"INFERENCE_PRECISION_HINT": "f32"}
    exact, other = (core().compile_model(path, "CPU", config) for path in made[:2])
    images = np.concatenate(smooth(11)[8:])
    a, b = exact(images), other(images)
    for name in ("head13", "head14"):
        assert b[name].shape == a[name].shape
        assert 0 < np.abs(a[name] - b[name]).mean() < NOISE * a[name].std()


def test_heads_and_squeeze_excitation_read_no_rounded_weights(made):
    model = core().read_model(made[1])
    rounded = {}
    for op in model.get_ops():
        if op.get_type_name() in ("Convolution", "GroupConvolution"):
            kinds, left = set(), [op.input_value(1).get_node()]
            while left:
                node = left.pop()
                kinds.add(str(node.get_output_element_type(0)))
                left += [value.get_node() for value in node.input_values()]
            rounded[op.get_friendly_name().split("/")[0]] = any("int8" in kind for kind in kinds)
    floats = {name for name in rounded if name.startswith("head") or ".se." in name}
    assert len(floats) == 10 and not any(rounded[name] for name in floats)
    assert all(rounded[name] for name in set(rounded) - floats), rounded


def test_the_report_has_a_figure_for_every_layer(made):
    report = made[2]
    layers = {row["layer"]: row["sqnr_db"] for row in report["layers"]}
    assert {"conv1", "mb3.expand", "mb3.project", "ds12.pointwise", "head13", "head14"} <= set(layers)
    assert all(8 < value <= 100 for value in layers.values()), layers
    assert report["calibration"] == 8 and {row["layer"] for row in report["left_float"]} == {
        "head13", "head14", *(f"{block}.se.{part}" for block in ("mb3", "se8", "mb9", "se11")
                              for part in ("reduce", "expand"))}


def test_what_does_not_fit_is_refused(made, tmp_path, monkeypatch):
    (tmp_path / "torn.onnx").write_bytes(made[0].read_bytes()[:500])
    quantise_onnx(made[0], tmp_path / "int8.onnx", smooth(8))
    with pytest.raises(DataError, match="got 3"):
        quantise_openvino(made[0], tmp_path / "model.xml", smooth(3))
    with pytest.raises(ModelError, match="quantised already"):
        quantise_openvino(tmp_path / "int8.onnx", tmp_path / "model.xml", smooth(8))
    with pytest.raises(ModelError, match=r"torn\.onnx"):
        quantise_openvino(tmp_path / "torn.onnx", tmp_path / "model.xml", smooth(8))
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(EnvironmentFault, match="pip install nncf"):
        quantise_openvino(made[0], tmp_path / "model.xml", smooth(8))
    assert not (tmp_path / "model.xml").exists()


def test_the_libraries_are_loaded_without_what_reports_their_use(root):
    code = ("import sys; from utils.optional import needs; needs('nncf', 'here'), needs('openvino', 'here')\n"
            "from openvino.tools.ovc import telemetry; print(type(telemetry).__module__)\n"
            "print(sorted(name for name in sys.modules if name.startswith('openvino_telemetry.')))")
    out = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert out.stdout.split("\n")[:2] == ["openvino.tools.ovc.telemetry_stub", "[]"]
