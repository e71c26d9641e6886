"""Records: JSON there and back, refusals that name the layer, and counts that match the papers."""
import json
from dataclasses import replace

import pytest
import torch

from models.channels import shapes, sizes
from models.count import layer_macs, loose_macs, macs, parameters
from models.heads.loss import DetectionLoss
from models.layer import Layer, heads
from models.network import Network, initialise
from models.records import from_json, to_json
from models.zoo.build import DETECTORS, build, with_heads
from models.zoo.light import yolo_lite, yolo_nano
from models.zoo.tiny import micro_yolo, micro_yolo_pruned, substitute, yolov3_tiny
from tests.helpers.nets import NETS, hooked_macs, residual_net, small_net
from utils.errors import ModelError


@pytest.mark.parametrize("name", NETS)
def test_a_net_comes_back_from_json_as_it_was(name):
    assert from_json(to_json(NETS[name])) == NETS[name]


@pytest.mark.parametrize(("build_net", "params", "with_statistics", "pure", "loose"), [
    (yolov3_tiny, 8_852_366, 8_858_734, 2_782_480_896, 2.806e9),
    (micro_yolo, 2_548_565, 2_565_045, 1_054_678_336, 1.099e9),
    (micro_yolo_pruned, 1_908_980, 1_923_240, 829_921_480, 0.8685e9)])
def test_counts_are_those_of_the_papers(build_net, params, with_statistics, pure, loose):
    net = build_net()
    assert parameters(net) == params
    assert parameters(net, statistics=True) == with_statistics
    assert macs(net, 416) == pure
    assert abs(loose_macs(net, 416) / loose - 1) < 5e-4


@pytest.mark.parametrize("name", NETS)
def test_counts_match_the_modules_and_what_hooks_see(name):
    net = NETS[name]
    model = Network(net).eval()
    assert hooked_macs(model, 64) == macs(net, 64) == sum(layer_macs(net, 64).values())
    assert sum(p.numel() for p in model.parameters()) == parameters(net) == sum(sizes(net).values())


@pytest.mark.parametrize(("net", "side", "params", "claimed"), [
    (yolo_lite(20), 224, 0.572e6, 240.0e6), (yolo_lite(80), 416, 0.649e6, 840.7e6),
    (yolo_nano(20), 416, 2.89e6, 2.03e9), (yolo_nano(80), 416, 3.02e6, None)])
def test_the_light_nets_count_what_is_known_of_them(net, side, params, claimed):
    assert abs(parameters(net) / params - 1) < 0.002
    assert claimed is None or abs(macs(net, side) / claimed - 1) < 0.002


def test_a_squeeze_excitation_is_counted_by_the_rules_of_the_loose_count():
    """Two 1x1 convolutions at one cell and their biases, an activation, and the mean over every element."""
    net = residual_net()
    pool = Layer("se8", "maxpool", ("pool8",), kernel=2)   # counted alike: once for each input element
    without = tuple(pool if layer.name == "se8" else layer for layer in net)
    assert parameters(net) - parameters(without) == 2 * 12 * 4 + 4 + 12
    assert macs(net, 64) - macs(without, 64) == 2 * 12 * 4
    assert loose_macs(net, 64) - loose_macs(without, 64) == 2 * 12 * 4 + (4 + 12) + 4


@pytest.mark.parametrize("name", ["micro-yolo", "yolo-lite", "yolo-nano"])
def test_macs_are_half_of_torchs_flops(name):
    from torch.utils.flop_counter import FlopCounterMode
    net, side = DETECTORS[name](80), 224 if name == "yolo-lite" else 416
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        Network(net).eval()(torch.rand(1, 3, side, side))
    assert counter.get_total_flops() == 2 * macs(net, side)


WIDE = {f"{name}.se.{part}.weight" for name in ("fca1", "se8") for part in ("reduce", "expand")}


@pytest.mark.parametrize("name", [*DETECTORS, "residual"])
def test_every_network_learns_one_batch(name):
    """Every tensor gets a finite gradient that is not all zero somewhere along the way, and the loss falls.

    Squeezes inside blocks may be one channel wide, and a ReLU of one channel can be silent.
    """
    net = NETS["residual"] if name == "residual" else DETECTORS[name](3)
    model, loss = initialise(Network(net), 0).train(), DetectionLoss(net)
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(2, 3, 96, 96, generator=generator)
    targets = torch.tensor([[0, 1, .5, .5, .3, .4], [1, 2, .3, .6, .8, .9], [1, 0, .7, .2, .1, .1]])
    optimizer, losses, reached = torch.optim.AdamW(model.parameters(), lr=3e-3), [], set()
    for _ in range(6):
        optimizer.zero_grad()
        total = sum(loss(model(x), targets).values())
        total.backward()
        assert all(p.grad.isfinite().all() for p in model.parameters())
        reached |= {key for key, p in model.named_parameters() if p.grad.any()}
        optimizer.step()
        losses.append(float(total.detach()))
    assert losses[-1] < 0.97 * losses[0], losses
    assert reached >= {key for key, _ in model.named_parameters() if ".se." not in key or key in WIDE}


def test_a_squeeze_excitation_is_the_formula_of_its_paper():
    net, seen = residual_net(), {}
    model = initialise(Network(net), 0).eval()
    model.watch = lambda node, value: seen.update({node.name: value})
    with torch.no_grad():
        model(torch.rand(1, 3, 64, 64))
    x, state = seen["pool8"], model.se8.se.state_dict()
    w = {key: value.flatten(1) if value.dim() > 1 else value for key, value in state.items()}
    hidden = (w["reduce.weight"] @ x.mean((2, 3))[0] + w["reduce.bias"]).clamp(min=0)
    gate = 1 / (1 + (-(w["expand.weight"] @ hidden + w["expand.bias"])).exp())
    torch.testing.assert_close(seen["se8.se"], x * gate[:, None, None])


@pytest.mark.parametrize("name", NETS)
def test_the_table_names_every_tensor_and_shape(name):
    net = NETS[name]
    found = {k: tuple(v.shape) for k, v in Network(net).state_dict().items()
             if not k.endswith("num_batches_tracked")}
    assert shapes(net) == found


def broken(**change) -> str:
    """JSON of the small net with fields of its layer ds5 changed."""
    data = json.loads(to_json(small_net()))
    row = next(r for r in data["layers"] if r["name"] == "ds5")
    row.update(change)
    return json.dumps(data)


@pytest.mark.parametrize(("change", "words"), [
    ({"op": "dscnv"}, ["ds5", "unknown op", "did you mean 'dsconv'"]), ({"out": 0}, ["ds5", "out is 0"]),
    ({"out": -4}, ["ds5", "out is -4"]), ({"inputs": ["head6"]}, ["ds5", "head6", "not an earlier layer"]),
    ({"inputs": ["nowhere"]}, ["ds5", "nowhere"]), ({"kernel": 4}, ["ds5", "kernel of 4"]),
    ({"out": "32"}, ["ds5", "out must be int"]), ({"act": "mish"}, ["ds5", "unknown activation"]),
    ({"name": "conv1"}, ["conv1", "used twice"]), ({"hiden": 3}, ["ds5", "did you mean 'hidden'"]),
    ({"stride": 99}, ["ds5", "stride is 99"]), ({"out": 10 ** 9}, ["ds5", "1 to 65536"]),
    ({"op": "se"}, ["ds5", "squeeze is 0", "1 to 65536"]), ({"op": "sandglass"}, ["ds5", "hidden is 0"]),
    ({"op": "aspp", "hidden": 4, "rates": [0]}, ["ds5", "rates"]),
    ({"op": "conv", "groups": 5}, ["ds5", "groups=5"]), ({"kind": "anchor"}, ["ds5", "only a head"]),
    ({"op": "se", "squeeze": 4, "stride": 2}, ["ds5", "stride is 2", "only 1"])])
def test_a_record_that_cannot_be_built_is_named(change, words):
    with pytest.raises(ModelError) as caught:
        from_json(broken(**change))
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize("text", [
    "", "[]", "{}", '{"schema": 9, "layers": []}', '{"schema": 1, "layers": []}',
    '{"schema": 1, "layers": [3]}', "[" * 100_000])
def test_what_is_no_network_is_refused_with_a_sentence(text):
    with pytest.raises(ModelError):
        from_json(text)


OLD = """{"schema": 1, "layers": [
{"name": "conv1", "op": "conv", "inputs": ["image"], "out": 8, "stride": 2},
{"name": "pool2", "op": "maxpool", "inputs": ["conv1"], "stride": 2},
{"name": "wide", "op": "head", "inputs": ["pool2"], "out": 16, "act": "linear", "kernel": 1, "xy_scale": 2.0,
 "anchors": [[9, 9], [20, 20]]},
{"name": "near", "op": "head", "inputs": ["conv1"], "out": 16, "act": "linear", "kernel": 1,
 "anchors": [[9, 9], [20, 20]]}]}"""


def test_a_description_of_the_first_schema_is_read_to_what_it_meant():
    net = {layer.name: layer for layer in from_json(OLD)}
    assert net["pool2"].kernel == 2 and net["wide"].kind == net["near"].kind == "anchor"
    assert (net["wide"].assign, net["near"].assign) == ("ratio", "best")
    assert from_json(to_json(tuple(net.values()))) == tuple(net.values())


def test_the_rule_of_matching_is_the_record_s_own_and_not_the_reach_of_its_centres():
    net = from_json(OLD)
    other = tuple(replace(layer, assign="best") if layer.name == "wide" else layer for layer in net)
    targets = torch.tensor([[0, 1, .5, .5, .16, .16]])
    outputs = Network(net).eval()(torch.rand(1, 3, 64, 64))
    assert DetectionLoss(net)(outputs, targets) != DetectionLoss(other)(outputs, targets)


def test_a_description_of_a_newer_schema_says_so():
    with pytest.raises(ModelError, match="schema 3, this version reads 1 to 2.*newer version"):
        from_json(OLD.replace('"schema": 1', '"schema": 3'))


def test_inputs_of_different_size_are_refused_before_anything_is_built():
    net = residual_net()
    wrong = tuple(
        layer if layer.name != "up10" else layer.__class__("up10", "maxpool", layer.inputs, kernel=2)
        for layer in net)
    with pytest.raises(ModelError, match="cat11.*strides"):
        Network(wrong)


def test_substitute_changes_only_the_rows_it_names():
    base = yolov3_tiny()
    new = substitute(base, {"conv5": "mbconv"}, {"conv5": 5, "conv9": 7})
    assert [a.name for a, b in zip(base, new) if a != b] == ["conv5", "conv9"]
    five = next(layer for layer in new if layer.name == "conv5")
    assert (five.op, five.kernel, five.hidden, five.squeeze) == ("mbconv", 5, 64, 2)
    with pytest.raises(ModelError, match="pool2"):
        substitute(base, {"pool2": "mbconv"})


def test_heads_take_any_classes_and_anchors(tmp_path):
    net = with_heads(micro_yolo(80), 7, (((10, 10),), ((5, 5), (6, 6))))
    assert [(h.out, len(h.anchors)) for h in heads(net)] == [(12, 1), (24, 2)]
    (tmp_path / "net.json").write_text(to_json(net))
    assert build(str(tmp_path / "net.json")) == net
    assert heads(build(str(tmp_path / "net.json"), 3))[0].out == 8


def test_an_unknown_network_name_suggests_the_nearest():
    with pytest.raises(ModelError, match="did you mean 'micro-yolo'"):
        build("micro_yolo")


def test_records_need_no_torch():
    import subprocess
    import sys
    code = ("import sys; import models.zoo.tiny, models.count, models.channels, models.layer; "
            "assert 'torch' not in sys.modules")
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_head_of_one_input_is_given_one():
    text = to_json(small_net()).replace('"inputs": ["ds5"]', '"inputs": ["ds5", "ds5"]')
    with pytest.raises(ModelError, match="head6.*needs one input, got 2"):
        from_json(text)
