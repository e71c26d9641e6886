"""Every block of the registry in small networks: what is told of it without torch is what the module does.

A block without a sample here fails.
"""
import numpy as np
import pytest
import torch

from models import channels as channel_table
from models.blocks import BLOCKS
from models.channels import channels
from models.count import macs, parameters
from models.layer import Layer, Net
from models.network import Network
from models.records import from_json, to_json, validate
from tests.helpers.cuts import (
    check_folded_is_same,
    check_graph,
    check_pruned_is_masked,
    hooked,
    randomise,
    state_of,
)
from utils.errors import ModelError

IMGSZ = 32
TWO = ("stem", "stem")                                     # the second is added where a block takes one
X = ("stem",)
# op -> samples of it: its inputs, its fields.
SAMPLES: dict[str, list[tuple[tuple[str, ...], dict]]] = {
    "conv": [(X, {"out": 6}), (X, {"out": 12, "groups": 4, "dilation": 2, "stride": 2, "bn": False}),
             (X, {"out": 6, "kernel": 2, "stride": 2}), (X, {"out": 5, "kernel": 5, "pad": 0})],
    "depthwise": [(X, {}), (X, {"kernel": 5, "stride": 2, "bn": False})],
    "dsconv": [(X, {"out": 12, "kernel": 5}), (X, {"out": 6, "stride": 2, "bn": False})],
    "sepconv": [(X, {"out": 12}), (X, {"out": 6, "stride": 2})],
    "mbconv": [(TWO, {"out": 8, "hidden": 20, "squeeze": 3, "gate": "hardsigmoid", "act": "hardswish"}),
               (X, {"out": 6, "kernel": 5, "stride": 2}), (X, {"out": 6, "hidden": 9, "bn": False})],
    "sandglass": [(TWO, {"out": 8, "hidden": 4}), (X, {"out": 12, "hidden": 3}),
                  (X, {"out": 12, "hidden": 3, "stride": 2}),
                  (X, {"out": 12, "hidden": 3, "stride": 2, "full": True})],
    "bottleneck": [(TWO, {"out": 8, "hidden": 12, "groups": 3}), (X, {"out": 6, "hidden": 4, "dilation": 2})],
    "ghost": [(TWO, {"out": 8, "hidden": 12, "squeeze": 3}), (X, {"out": 12, "hidden": 6, "stride": 2})],
    "ghostconv": [(X, {"out": 12}), (X, {"out": 6, "stride": 2})],
    "shortcut": [(X, {"out": 6, "stride": 2})],
    "shufflev1": [(X, {"out": 8, "hidden": 8, "groups": 2}), (X, {"out": 8, "hidden": 4, "groups": 4}),
                  (X, {"out": 10, "hidden": 12, "groups": 2, "stride": 2, "full": True})],
    "shufflev2": [(X, {"out": 8, "hidden": 5}), (X, {"out": 12, "hidden": 6, "stride": 2})],
    "fire": [(X, {"out": 12, "squeeze": 4}), (X, {"out": 6, "squeeze": 3, "bn": False})],
    "repconv": [(X, {"out": 8}), (X, {"out": 6, "stride": 2}), (X, {"out": 8, "bn": False}),
                (X, {"out": 8, "groups": 2})],
    "sppf": [(X, {"out": 12, "hidden": 4, "kernel": 5})],
    "aspp": [(X, {"out": 6, "hidden": 4}), (X, {"out": 6, "hidden": 4, "rates": (2, 3)})],
    "dwaspp": [(X, {"out": 6, "hidden": 4, "rates": (2, 3)}), (X, {"out": 6, "hidden": 4, "bn": False})],
    "context": [(("stem", "low"), {"out": 6}), (("stem", "low"), {"out": 6, "bn": False})],
    "attend": [(("stem", "side"), {}), (("stem", "side"), {"bn": False, "gate": "hardsigmoid"})],
    "se": [(X, {"squeeze": 3, "gate": "hardsigmoid"})],
    "maxpool": [(X, {"kernel": 2}), (X, {"stride": 2}), (X, {"stride": 2, "pad": 0, "ceil": True})],
    "avgpool": [(X, {"stride": 2}), (X, {"kernel": 4, "stride": 4})],
    "upsample": [(X, {"stride": 2}), (X, {"stride": 2, "full": True})],
    "concat": [(("stem", "side"), {}), (("side", "stem", "side"), {})],
    "add": [(("stem", "side"), {}), (("stem", "side", "stem"), {})],
    "act": [(X, {"act": act}) for act in ("hardswish", "swish", "relu6", "leaky")],
    "affine": [(("image",), {})],
    "split": [(X, {"groups": 2, "part": 1}), (X, {"groups": 4, "part": 0})],
    "shuffle": [(X, {"groups": 4})],
    "classify": [(X, {"out": 5}), (X, {"out": 5, "hidden": 7, "act": "hardswish", "bias": False}),
                 (X, {"out": 5, "full": True})],
    "head": [(X, {"out": 12, "kernel": 1, "act": "linear", "kind": "anchor", "assign": "ratio",
                  "anchors": ((9.0, 9.0), (20.0, 20.0))}), (X, {"out": 8, "kind": "yolox"}),
             (("side", "stem"), {"out": 8, "kind": "yolox"})]}
CASES = [(op, at) for op, cases in SAMPLES.items() for at in range(len(cases))]


def sample(op: str, at: int) -> Net:
    """A network around a sample: channels made before it, and read after it."""
    inputs, fields = SAMPLES[op][at]
    rows = [Layer("stem", "conv", ("image",), 8, stride=2, act="relu"),
            Layer("side", "conv", ("image",), 8, 1, stride=2, act="relu"),
            *([Layer("low", "conv", ("stem",), 7, stride=2, act="relu")] if "low" in inputs else []),
            Layer("x", op, inputs, **{"act": "relu"} | fields)]
    if op not in ("classify", "head"):
        rows += [Layer("after", "conv", ("x",), 6, 1), Layer("end", "classify", ("after",), 3)]
    return validate(tuple(rows))


def unsampled(blocks: dict) -> list[str]:
    """The blocks that no sample holds to account."""
    return sorted(set(blocks) ^ set(SAMPLES))


def test_every_block_has_a_sample_and_one_without_is_found():
    assert not unsampled(BLOCKS)
    assert unsampled({**BLOCKS, "new": BLOCKS["conv"]}) == ["new"]


@pytest.mark.parametrize(("op", "at"), CASES)
def test_tables_and_counts_are_those_of_the_module(op, at):
    net = sample(op, at)
    check_graph(net, IMGSZ)
    model = Network(net).eval()
    assert sum(p.numel() for p in model.parameters()) == parameters(net)
    assert hooked(model, IMGSZ) == macs(net, IMGSZ)
    assert from_json(to_json(net)) == net


@pytest.mark.parametrize(("op", "at"), CASES)
def test_pruned_is_masked(op, at):
    assert check_pruned_is_masked(sample(op, at), IMGSZ, dtype=torch.float64) < 1e-10


@pytest.mark.parametrize(("op", "at"), CASES)
def test_folded_is_the_same(op, at):
    check_folded_is_same(sample(op, at), IMGSZ)


def without_ties(numbers, *_):
    """A tie that is not made."""


FAULTS = (ModelError, AssertionError, RuntimeError)


@pytest.mark.parametrize(("tie", "case"), [
    ("tie", ("mbconv", 0)), ("tie", ("add", 0)), ("tie", ("ghost", 0)), ("tie", ("repconv", 0)),
    ("tie_parts", ("conv", 1)), ("tie_parts", ("bottleneck", 0)), ("tie_parts", ("shufflev2", 0)),
    ("tie_parts", ("split", 0)), ("tie_parts", ("shuffle", 0))])
def test_a_tie_left_out_is_caught(monkeypatch, tie, case):
    monkeypatch.setattr(channel_table._Numbers, tie, without_ties)
    channels.cache_clear()
    try:
        with pytest.raises(FAULTS):
            check_pruned_is_masked(sample(*case), IMGSZ)
    finally:
        channels.cache_clear()


def test_a_row_cut_in_the_wrong_place_is_caught(monkeypatch):
    monkeypatch.setattr("tests.helpers.cuts.np.flatnonzero", lambda stays: np.nonzero(np.roll(stays, 1))[0])
    with pytest.raises(FAULTS):
        check_pruned_is_masked(sample("dsconv", 0), IMGSZ)


def formula(net: Net, x: torch.Tensor):
    """A network's random state, and a function that runs a convolution and batch-norm of its record x."""
    model = randomise(Network(net))
    state = state_of(model)

    def run(part: str, x: torch.Tensor, groups: int = 1, stride: int = 1) -> torch.Tensor:
        weight = state[f"x.{part}.conv.weight"]
        y = torch.nn.functional.conv2d(x, weight, None, stride, weight.shape[-1] // 2, groups=groups)
        mean, var, gain, bias = (state[f"x.{part}.bn.{leaf}"][:, None, None]
                                 for leaf in ("running_mean", "running_var", "weight", "bias"))
        return (y - mean) / (var + 1e-5).sqrt() * gain + bias
    values = {}
    model.watch = lambda node, value: values.update({node.name: value.clone()})
    with torch.no_grad():
        model(x)
    return values, run


def test_a_sandglass_is_the_formula_of_its_paper():
    values, run = formula(sample("sandglass", 0), torch.rand(2, 3, IMGSZ, IMGSZ))
    x = values["stem.act"]
    y = run("reduce", run("dw1", x, groups=8).relu())
    y = run("dw2", run("expand", y).relu(), groups=8)
    torch.testing.assert_close(values["x.sum"], x + y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("at", [0, 2])
def test_a_shufflenet_v1_unit_is_the_formula_of_its_paper(at):
    values, run = formula(sample("shufflev1", at), torch.rand(2, 3, IMGSZ, IMGSZ))
    x, stride = values["stem.act"], 2 if at else 1
    y = run("reduce", x, groups=1 if at else 2).relu()
    hidden = y.shape[1]
    y = y[:, [i // 2 + i % 2 * hidden // 2 for i in range(hidden)]]         # of each group in turn
    y = run("expand", run("depthwise", y, groups=hidden, stride=stride), groups=2)
    pooled = torch.nn.functional.avg_pool2d(x, 3, 2, 1)
    y = torch.cat((pooled, y), 1) if at else x + y
    torch.testing.assert_close(values["x.act"], y.relu(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fields", [{"kernel": 2, "stride": 2}, {"kernel": 4, "stride": 2}, {"pad": 0}])
def test_a_repconv_whose_branches_do_not_meet_is_refused(fields):
    net = (Layer("a", "repconv", ("image",), 6, **fields), Layer("end", "classify", ("a",), 3))
    with pytest.raises(ModelError, match="'a'.*odd kernel, padded to fit"):
        validate(net)
