"""What channels cost, measured: tables with planted cliffs, and a pruning that goes by them."""
import json
from types import SimpleNamespace

import pytest
import torch

from bench.profile.costs import (
    Setup,
    Table,
    grid,
    latency_ms,
    layer_clock,
    measure,
    read_or_measure,
    setup_of,
    told,
)
from compress.pruning.config import PruneConfig
from compress.pruning.progressive import Bench
from compress.pruning.schedule import cheapest, narrowed, prunable
from models.channels import channels, widths, with_widths
from models.count import layer_macs, macs
from models.network import Network, initialise
from models.zoo.tiny import micro_yolo_fast
from tests.helpers.nets import small_net
from utils.errors import UsageError


def table_of(net, clock):
    """The table of all units of a network that a pruning cuts."""
    units = [unit.name for unit in prunable(net)[0]]
    return measure(net, units, lambda new: with_widths(net, narrowed(net, net, new)), clock)


def stairs(net):
    """A runtime that computes 32 output channels at a time, and for which conv9 is dear above 208."""
    out, work = channels(net).outputs, layer_macs(net, 416)
    up = {name: -(-len(ids) // 32) * 32 / len(ids) for name, ids in out.items()}
    return {name: n * up[name] * (5 if name == "conv9" and len(out[name]) > 208 else 1)
            for name, n in work.items()}


def test_the_steps_of_a_runtime_are_where_widths_come_to_lie():
    net = micro_yolo_fast(5)
    table, now = table_of(net, stairs), widths(net)
    units = [unit.name for unit in prunable(net)[0]]
    even = {unit: [1 / now[unit]] * now[unit] for unit in units}
    new = cheapest(table, {unit: now[unit] for unit in units}, even, 0.25 * table.total({}))
    assert new["conv9"] <= 208, "the planted cliff is passed, not stopped before"
    for unit, width in new.items():                        # every width is the last before its costs rise
        wider = [w for w in table.units[unit] if w > width][0]
        assert table.total({unit: width}) < table.total({unit: wider}), (unit, width)
    assert table.total(new) <= 0.75 * table.total({})
    flat = Table(now, table.cost, {unit: dict.fromkeys(rows, rows[now[unit]])
                                   for unit, rows in table.units.items()})
    assert cheapest(flat, {unit: now[unit] for unit in units}, even, 1.0) == {}


def test_what_matters_stays_and_what_costs_little_stays():
    table = Table({"a": 4, "b": 4}, {"x": 8.0, "y": 8.0},
                  {"a": {w: {"x": 2.0 * w} for w in (1, 2, 3, 4)},
                   "b": {w: {"y": 7 + w / 4} for w in (1, 2, 3, 4)}})
    equal = {"a": [.25] * 4, "b": [.25] * 4}
    assert cheapest(table, {"a": 4, "b": 4}, equal, 3.0) == {"a": 2}       # b saves an eighth of what a does
    assert "b" in cheapest(table, {"a": 4, "b": 4}, {"a": [.25] * 4, "b": [97.0, .01, .01, .01]}, 0.7)
    assert cheapest(table, {"a": 4, "b": 4}, equal, 3.0, multiple=4) == {}


def test_a_total_is_the_product_of_what_units_leave_of_a_record_on_lines_between_widths():
    table = Table({"a": 8, "b": 4}, {"x": 10.0, "y": 2.0, "other": 1.0},
                  {"a": {4: {"x": 6.0, "other": 1.0}, 8: {"x": 10.0, "other": 1.0}},
                   "b": {2: {"x": 5.0, "other": 0.5}, 4: {"x": 10.0, "other": 1.0}}})
    assert table.total({}) == 13 and table.total({"a": 6}) == pytest.approx(11)
    assert table.total({"a": 4, "b": 2}) == pytest.approx(6 * 0.5 + 2 + 0.5)
    loud = table._replace(units={u: {**rows, min(rows): {**rows[min(rows)], "other": 4.0}}
                                 for u, rows in table.units.items()})
    assert loud.total({"a": 4, "b": 2}) == pytest.approx(6 * 0.5 + 2 + 1 + 3 + 3), "what is added adds up"
    assert table.widths("a", 8) == [4] and table.widths("b", 4, 4) == []
    assert grid(16) == [*range(4, 17)] and grid(220) == [*range(64, 220, 16), 220] and grid(3) == [1, 2, 3]


def test_by_macs_a_table_is_near_the_count_of_any_cut():
    net = micro_yolo_fast(5)
    table = table_of(net, lambda small: layer_macs(small, 416))
    assert table.total({}) == macs(net, 416)
    cut = {"conv5": 48, "conv7": 96, "conv9": 192, "conv13": 640}
    whole = macs(with_widths(net, narrowed(net, net, cut)), 416)
    assert table.total(cut) == pytest.approx(whole, rel=0.01)


def test_a_table_is_measured_once_for_a_network_and_device(tmp_path):
    table, made = Table({"a": 2}, {"x": 1.0}, {"a": {1: {"x": .5}, 2: {"x": 1.0}}}), []

    def make():
        made.append(1)
        return table
    of = told(small_net(), 96, ["a"], {"cpu": "one", "threads": 1})
    assert read_or_measure(tmp_path, of, make) == table == read_or_measure(tmp_path, of, make)
    assert len(made) == 1 and len(list(tmp_path.iterdir())) == 1
    read_or_measure(tmp_path, {**of, "cpu": "another"}, make)
    assert len(made) == 2 and json.loads(next(tmp_path.iterdir()).read_text())["of"]["imgsz"] == 96


@pytest.mark.parametrize("runtime", ["onnx", "openvino", "torch"])
def test_every_record_has_its_time_in_a_runtime_and_the_whole_has_one(runtime):
    if runtime != "torch":
        pytest.importorskip({"onnx": "onnxruntime"}.get(runtime, runtime))
    setup, net = Setup(runtime, "fp32", 1), small_net()
    found = layer_clock(setup, 96)(net)
    assert {layer.name for layer in net} <= set(found) and all(ms >= 0 for ms in found.values())
    assert sum(found[name] > 0 for name in ("conv1", "mb3", "ds5", "head6")) == 4
    state = initialise(Network(net), 0).state_dict()
    images = torch.randint(0, 255, (2, 3, 96, 96), dtype=torch.uint8)
    assert latency_ms(setup, net, state, 96, images) > 0
    assert setup_of(runtime, 2)[::2] == (runtime, 2) and setup.told()["cpu"]


def test_a_runtime_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "torch")
    assert setup_of("auto", 1).runtime == "torch"
    with pytest.raises(UsageError, match="onnxruntime is not installed; there are torch"):
        setup_of("onnx", 1)


def test_a_step_by_cost_saves_its_share_and_keeps_the_strongest_channels(tmp_path):
    net, made = small_net(), object.__new__(Bench)
    made.config = PruneConfig(per="macs", scope="network", sixteenths=4, imgsz=96)
    made.origin, made.taken = net, {}
    made.tuner = SimpleNamespace(world=SimpleNamespace(main=True), folder=tmp_path, share=lambda value: value,
                                 interrupt=SimpleNamespace(stop=lambda: None))
    state = initialise(Network(net), 0).state_dict()
    kept = made.choose(net, state, prunable(net)[0])
    small = with_widths(net, {unit: len(indices) for unit, indices in kept.items()})
    assert macs(small, 96) <= 0.76 * macs(net, 96)
    assert list(tmp_path.glob("costs-*.json")), "the table stands in the run folder"
