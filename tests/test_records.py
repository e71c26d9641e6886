"""Records: JSON there and back, refusals that name the layer, and counts that match the papers."""
import json

import pytest
import torch

from models.count import layer_macs, loose_macs, macs, parameters, table
from models.layout import layout, shape, widths
from models.network import Network
from models.spec import from_json, heads, to_json
from models.zoo import build, micro_yolo, micro_yolo_pruned, substitute, with_heads, yolov3_tiny
from tests.nets import NETS, residual_net, small_net
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
    net, seen = NETS[name], []
    model = Network(net).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda m, i, o: seen.append(o[0].numel() * m.weight[0].numel()))
    with torch.no_grad():
        model(torch.rand(1, 3, 64, 64))
    assert sum(seen) == macs(net, 64) == sum(layer_macs(net, 64).values())
    rows = table(net, 64)
    assert sum(p.numel() for p in model.parameters()) == parameters(net) == sum(r["parameters"] for r in rows)


def test_macs_are_half_of_torchs_flops():
    from torch.utils.flop_counter import FlopCounterMode
    net = micro_yolo(80)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        Network(net).eval()(torch.rand(1, 3, 416, 416))
    assert counter.get_total_flops() == 2 * macs(net, 416)


@pytest.mark.parametrize("name", NETS)
def test_the_layout_names_every_tensor_and_shape(name):
    net = NETS[name]
    found = {k: tuple(v.shape) for k, v in Network(net).state_dict().items()
             if not k.endswith("num_batches_tracked")}
    width = widths(net)
    assert {p.key: shape(p, width) for p in layout(net)} == found


def broken(**change) -> str:
    """JSON of the small net with fields of its layer ds5 changed."""
    data = json.loads(to_json(small_net()))
    row = next(r for r in data["layers"] if r["name"] == "ds5")
    row.update(change)
    return json.dumps(data)


@pytest.mark.parametrize(("change", "words"), [
    ({"op": "dscnv"}, ["ds5", "unknown op", "did you mean 'dsconv'"]), ({"out": 0}, ["ds5", "out is 0"]),
    ({"out": -4}, ["ds5", "out is -4"]), ({"inputs": ["head6"]}, ["ds5", "head6", "not an earlier layer"]),
    ({"inputs": ["nowhere"]}, ["ds5", "nowhere"]), ({"kernel": 4}, ["ds5", "kernel is 4"]),
    ({"out": "32"}, ["ds5", "out must be int"]), ({"act": "mish"}, ["ds5", "unknown activation"]),
    ({"name": "conv1"}, ["conv1", "used twice"]), ({"hiden": 3}, ["ds5", "did you mean 'hidden'"]),
    ({"stride": 3}, ["ds5", "stride is 3"]), ({"out": 10 ** 9}, ["ds5", "1 to 65536"])])
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


def test_inputs_of_different_size_are_refused_before_anything_is_built():
    net = residual_net()
    wrong = tuple(
        layer if layer.name != "up10" else layer.__class__("up10", "maxpool", layer.inputs, stride=1)
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
    code = ("import sys; import models.zoo, models.count, models.layout, models.spec; "
            "assert 'torch' not in sys.modules and 'numpy' not in sys.modules")
    subprocess.run([sys.executable, "-c", code], check=True)
