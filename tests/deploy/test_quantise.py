"""Quantised ONNX files: near the exact outputs, heads in float, the same bytes, clear errors."""
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from compress.fold import fold
from deploy.artifact import write_metadata
from deploy.onnx_file import to_onnx
from deploy.quant.equalise import SMALLEST, equalise
from models.network import from_state
from tests.helpers.nets import NETS, randomised, residual_net, small_net
from utils.errors import DataError, EnvironmentFault, ModelError

onnx = pytest.importorskip("onnx", reason="needs onnx (requirements-export.txt)")
ort = pytest.importorskip("onnxruntime", reason="needs onnxruntime (requirements-export.txt)")

from deploy.quant import ptq  # noqa: E402   after the libraries are known to be there
from deploy.quant.graph import DEQUANTISED, Graph, taps  # noqa: E402
from deploy.quant.ptq import lacks_vnni, layers_sqnr, quantise_onnx  # noqa: E402
from deploy.quant.ranges import Grid, best_grid, correct, grid  # noqa: E402

SIDE = 64
NOISE = 0.2                                                # of an output's standard deviation


def smooth(count: int, side: int = SIDE) -> list[np.ndarray]:
    """Smooth images uint8 [1, 3, S, S]."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (count, 1, 3, side // 8, side // 8), dtype=np.uint8)
    return list(coarse.repeat(8, 3).repeat(8, 4))


def written(folder: Path, net, half: bool = False) -> Path:
    """Its ONNX file with metadata."""
    path = folder / "exact.onnx"
    path.write_bytes(to_onnx(net, randomised(net).state_dict(), SIDE, half))
    write_metadata(path, {"names": ["a"]})
    return path


def outputs(path: Path, images: np.ndarray) -> list[np.ndarray]:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"images": images})


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Of two networks: the exact file, the quantised one and the report."""
    found = {}
    for name, net in (("small", small_net()), ("residual", residual_net())):
        folder = tmp_path_factory.mktemp(name)
        source, target = written(folder, net), folder / "quantised.onnx"
        found[name] = source, target, quantise_onnx(source, target, smooth(8))
    return found


@pytest.mark.parametrize("name", ["small", "residual"])
def test_the_quantised_file_computes_nearly_the_same_for_any_batch(made, name):
    source, target, _ = made[name]
    images = np.concatenate(smooth(11)[8:])              # others than those it was calibrated on
    for exact, got in zip(outputs(source, images), outputs(target, images), strict=True):
        assert got.shape == exact.shape and got.dtype == np.float32
        assert np.abs(got - exact).mean() < NOISE * exact.std()
        assert np.abs(got - exact).max() > 0


@pytest.mark.parametrize("name", ["small", "residual"])
def test_convolutions_are_in_integers_but_heads_and_squeeze_excitation_in_float(made, name):
    _, target, report = made[name]
    graph = Graph(onnx.load(target))
    makers = {c.name: graph.maker[c.input[1]].op_type if c.input[1] in graph.maker else "number"
              for c in graph.convolutions}
    floats = {c for c in makers if c.startswith("head") or ".se." in c or c == "conv1"}
    assert len(floats) > 3 and all(makers[c] == "number" for c in floats)
    assert set(makers) - floats and all(makers[c] == "DequantizeLinear" for c in set(makers) - floats)
    said = {row["layer"]: row["why"] for row in report["left_float"]}
    assert {name.removesuffix(".conv") for name in floats} <= set(said) and all(said.values())
    assert set(said) - {name.removesuffix(".conv") for name in floats} == {
        "small": set(), "residual": {f"mb3.{part}.act" for part in ("expand", "depthwise")}}[name]


@pytest.mark.parametrize("name", ["small", "residual"])
def test_the_first_convolution_is_in_float_and_its_pooling_before_the_activation(made, name):
    source, target, report = made[name]
    graph, said = Graph(onnx.load(target)), {row["layer"]: row["why"] for row in report["left_float"]}
    assert [node.name for node in Graph(onnx.load(source)).entrance()] == [
        "cast", "scale", "conv1", "conv1.act", "pool2"]
    assert [node.name for node in graph.nodes if node.name in ("conv1", "conv1.act", "pool2")] == [
        "conv1", "pool2", "conv1.act"]
    conv, act = (next(n for n in graph.nodes if n.name == name) for name in ("conv1", "conv1.act"))
    assert conv.input[1] in graph.constants and "three channels" in said["conv1"]
    assert [node.op_type for node in graph.readers[act.output[0]]] == ["QuantizeLinear"]


def test_the_mean_of_a_map_is_taken_of_bytes_and_at_once(made, tmp_path):
    source, target, _ = made["small"]
    graph = Graph(onnx.load(source))
    assert [node.name for node in graph.nodes if node.op_type == "AveragePool"] == ["mb3.se.average"]
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    ort.InferenceSession(str(target), options, providers=["CPUExecutionProvider"])
    run = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert run.count("QLinearGlobalAveragePool") == 1 and "AveragePool" not in run


def test_the_metadata_and_the_names_of_the_outputs_stay(made):
    before, after = (onnx.load(path) for path in made["residual"][:2])
    assert list(before.metadata_props) == list(after.metadata_props)
    for model in (before, after):
        assert [output.name for output in model.graph.output] == ["head13", "head14"]


def test_the_report_has_a_figure_for_every_layer(made):
    source, _, report = made["small"]
    assert [row["layer"] for row in report["layers"]] == [
        "mb3.expand", "mb3.depthwise", "mb3.project", "ds5.depthwise", "ds5.pointwise", "head6"]
    assert all(8 < row["sqnr_db"] < 80 for row in report["layers"]), report["layers"]
    assert report["calibration"] == 8 and report["weight_bits"] in (7, 8)


def test_the_figures_are_those_of_numpy_by_hand(made):
    source, target, report = made["small"]
    run = [taps(Graph(onnx.load(path)), [name]) for path, name in (
        (source, "mb3.expand"), (target, "mb3.expand" + DEQUANTISED))]
    exact, other = (np.stack([next(iter(r(p).values())) for p in smooth(8)[:ptq.COMPARED]])
                    .astype(np.float64) for r in run)
    by_hand = 10 * np.log10((exact ** 2).mean() / ((exact - other) ** 2).mean())
    assert report["layers"][0]["sqnr_db"] == pytest.approx(by_hand, abs=0.01)


def test_sqnr_of_known_noise():
    exact = np.array([3.0, -4.0], np.float32)
    for other, db in ((exact, 100), (exact + np.float32([0.5, 0]), 20), (exact + 1e-9, 100)):
        rows = layers_sqnr(lambda p: {"a": p}, lambda p, other=other: {"a": other}, ["a"], [exact])
        assert rows == [{"layer": "a", "sqnr_db": pytest.approx(db, abs=0.01)}]
    rows = layers_sqnr(lambda p: {"a": p * 1.0}, lambda p: {"a": p * 1.1}, ["a"], [exact, exact * 9])
    assert rows == [{"layer": "a", "sqnr_db": 20.0}]


def test_the_same_images_give_the_same_bytes_in_another_process(made, root):
    source, target, _ = made["residual"]
    code = ("import hashlib, pathlib, sys; from tests.deploy.test_quantise import quantise_onnx, smooth\n"
            "out = pathlib.Path(sys.argv[2]); quantise_onnx(pathlib.Path(sys.argv[1]), out, smooth(8))\n"
            "print(hashlib.sha256(out.read_bytes()).hexdigest())")
    out = subprocess.run([sys.executable, "-c", code, source, target.with_name("again.onnx")], cwd=root,
                         env=os.environ | {"PYTHONHASHSEED": "5", "OMP_NUM_THREADS": "1"},
                         capture_output=True, text=True, check=True)
    assert out.stdout.split()[-1] == hashlib.sha256(target.read_bytes()).hexdigest()


@pytest.mark.parametrize(("given", "said"), [
    ([], "got 0"), (smooth(7), "got 7"), (smooth(8, 96), "[1, 3, 96, 96]"),
    ([p[0] for p in smooth(8)], "[3, 64, 64]"), ([p / 255 for p in smooth(8)], "float64")])
def test_images_that_do_not_fit_are_refused(made, tmp_path, given, said):
    with pytest.raises(DataError, match="calibration") as caught:
        quantise_onnx(made["small"][0], tmp_path / "out.onnx", given)
    assert said in str(caught.value) and not (tmp_path / "out.onnx").exists()


def test_files_that_cannot_be_quantised_are_refused(made, tmp_path, monkeypatch):
    (tmp_path / "torn.onnx").write_bytes(made["small"][0].read_bytes()[:900])
    half = written(tmp_path, small_net(), half=True)
    for path, said in ((made["small"][1], "quantised already"), (half, "not in fp32"),
                       (tmp_path / "torn.onnx", "torn.onnx"), (tmp_path / "none.onnx", "none.onnx")):
        with pytest.raises(ModelError, match=said):
            quantise_onnx(path, tmp_path / "out.onnx", smooth(8))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(EnvironmentFault, match="pip install onnxruntime"):
        quantise_onnx(made["small"][0], tmp_path / "out.onnx", smooth(8))


def test_processors_without_vnni_get_weights_of_seven_bits(made, tmp_path):
    for flags, lacks in (("fpu sse2 avx2", True), ("fpu sse2 avx512_vnni", False), ("sse2 avx_vnni", False),
                         ("asimd neon", False)):
        (tmp_path / "cpuinfo").write_text(f"processor: 0\nflags\t\t: {flags}\n")
        assert lacks_vnni(str(tmp_path / "cpuinfo")) is lacks
    assert lacks_vnni(str(tmp_path / "absent")) is False
    for narrow, most in ((True, 64), (False, 127)):
        out = tmp_path / "out.onnx"
        report = quantise_onnx(made["small"][0], out, smooth(8), narrow=narrow)
        graph = Graph(onnx.load(out))
        whole = [graph.array(name) for name in graph.constants if name.endswith("weight_quantized")]
        assert report["weight_bits"] == 8 - narrow and max(np.abs(w).max() for w in whole) == most


def test_a_grid_holds_zero_and_the_best_one_beats_every_other():
    for low, high in ((-1.0, 3.0), (0.5, 2.0), (-4.0, -1.0), (0.0, 0.0)):
        assert grid(low, high).rounded(np.zeros(1))[0] == 0
    values = np.random.default_rng(1).normal(-1, 2, 20000) * np.random.default_rng(2).choice((1, 4), 20000)
    counts, edges = np.histogram(values, 1024)

    def leaky(x: np.ndarray) -> np.ndarray:
        return np.where(x > 0, x, 0.1 * x)

    def error(tried: Grid) -> float:
        return float(((leaky(tried.rounded(values)) - leaky(values)) ** 2).mean())
    found = best_grid(counts.astype(float), edges[0], edges[-1], leaky)
    others = [grid(a * edges[0], b * edges[-1]) for a in np.linspace(0.01, 1, 30)
              for b in np.linspace(0.2, 1, 20)]
    assert error(found) < 1.05 * min(map(error, others)) < 0.9 * error(grid(edges[0], edges[-1]))


def test_a_gain_and_a_mean_that_went_astray_are_put_back(made):
    source, target, _ = made["small"]
    exact, model = Graph(onnx.load(source)), onnx.load(target)
    graph = Graph(model)
    conv = next(c for c in graph.convolutions if c.name == "ds5.depthwise")
    (_, step), (numbers, bias_step) = (graph.maker[i].input[:2] for i in conv.input[1:3])
    before = {name: graph.array(name) for name in (step, numbers, bias_step)}
    graph.put(step, before[step] * np.float32(1.2))
    graph.put(bias_step, before[bias_step] * np.float32(1.2))
    graph.put(numbers, (before[numbers] + np.round(0.5 / before[bias_step])).astype(np.int32))
    correct(exact, graph, ["ds5.depthwise"], smooth(8))
    after = Graph(model)
    assert np.abs(after.array(step) / before[step] - 1).max() < 0.03
    biases = [g[numbers] * g[bias_step] for g in (before, {n: after.array(n) for n in before})]
    assert np.abs(biases[0] - biases[1]).max() < 0.05


@pytest.mark.parametrize("name", NETS)
def test_an_equalised_network_computes_the_same(name):
    model = randomised(NETS[name])
    state = {key: value.clone() for key, value in model.state_dict().items()}
    images = torch.from_numpy(np.concatenate(smooth(2, 96)))
    net, small = equalise(NETS[name], state, [images])
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    plain, folded = fold(NETS[name], state)
    assert net == plain and any(not torch.equal(small[key], folded[key]) for key in small)
    with torch.no_grad():
        for a, b in zip(model(images), from_state(net, small)(images), strict=True):
            assert (a - b).abs().max() < 1e-4 * a.abs().max()


def test_channels_that_a_depthwise_kernel_reads_get_the_same_reach():
    model = randomised(small_net())
    with torch.no_grad():
        model.mb3.expand.bn.weight.mul_(torch.logspace(-4, 2, 16))
        model.mb3.expand.bn.bias.mul_(torch.logspace(-4, 2, 16))
    images = torch.from_numpy(np.concatenate(smooth(4)))
    reaches = []
    for net, state in ((model.net, model.state_dict()), equalise(model.net, model.state_dict(), [images])):
        other = from_state(net, state)
        other.watch = lambda node, value: (reaches.append(value.abs().amax((0, 2, 3)))
                                           if node.name == "mb3.expand.act" else None)
        with torch.no_grad():
            other(images)
    before, after = (reach / reach.max() for reach in reaches)
    wide = before > SMALLEST
    assert 0 < wide.sum() < 16 and torch.allclose(after[wide], torch.ones(int(wide.sum())), atol=1e-3)
    assert torch.allclose(after[~wide], before[~wide] / SMALLEST, rtol=1e-3)
