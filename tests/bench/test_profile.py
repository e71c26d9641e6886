"""Is it faster: bytes and MACs against hand counts, times of modules whose times are known."""
import json
import time

import pytest
import torch

from bench.profile import latency, timing
from compress.fold import fold
from deploy.runtimes.runtime import torch_runtime
from models.count import layer_macs, macs
from models.layer import Layer, Net
from models.network import Network, initialise
from models.records import validate
from tests.helpers.nets import ANCHORS, NETS, residual_net, small_net
from utils import runs
from utils.errors import UsageError

SIDE = 64
FIELDS = {"layer", "op", "width", "ms", "spread", "limit_ms", "macs", "bytes", "macs_per_s", "intensity",
          "bound"}
PEAK = {"macs_per_s": 4e9, "bytes_per_s": 1e9, "balance": 4.0}


def stated(net: Net) -> tuple[Net, dict[str, torch.Tensor]]:
    """The network with fresh weights."""
    return net, initialise(Network(net), 0).state_dict()


def noise(count: int = 2) -> torch.Tensor:
    """uint8 [count, 3, SIDE, SIDE], the same every time."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, SIDE, SIDE), dtype=torch.uint8, generator=generator)


@pytest.fixture
def instant_peak(monkeypatch):
    """A peak that is not measured."""
    monkeypatch.setattr(latency, "measure_peak", lambda precision, threads: dict(PEAK))


@pytest.fixture
def three_threads():
    """Three threads of torch for a test, which starts none of them while one is asked for."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def compared() -> dict:
    """A network against itself and a larger one, in CPU time, which no neighbour on the machine adds to."""
    small = stated(small_net())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "perf_counter", time.process_time)
        patch.setattr(latency, "COPY", 8 << 20)
        networks = {"parent": small, "twin": small, "large": stated(NETS["micro-yolo"])}
        return latency.compare_speed(networks, SIDE, noise(), rounds=30)


def test_bytes_are_those_of_a_hand_count():
    counted = latency.layer_bytes(small_net(), 64, 4)
    hand = {
        # weights + biases, image in, map out: 8 x 32 x 32.
        "conv1": 8 * 3 * 9 + 8 + 3 * 64 * 64 + 8 * 32 * 32,
        "pool2": 8 * 32 * 32 + 8 * 16 * 16,
        # expand 16x8, depthwise 16x25, reduce 2x16, expand 16x2, project 16x16 with biases; in, out;
        "mb3": (16 * 8 + 16) + (16 * 25 + 16) + (2 * 16 + 2) + (16 * 2 + 16) + (16 * 16 + 16)
        + 8 * 256 + 16 * 256
        # expanded map, depthwise map, vectors of mean, squeeze and gate, product: written and read; the
        # mean's own reading of its map.
        + 2 * 16 * 256 + 2 * 16 * 256 + 2 * 16 + 2 * 2 + 2 * 16 + 2 * 16 * 256 + 16 * 256,
        "pool4": 16 * 256 + 16 * 64,
        "ds5": (16 * 9 + 16) + (32 * 16 + 32) + 16 * 64 + 2 * 16 * 64 + 32 * 64,
        "head6": 16 * 32 + 16 + 32 * 64 + 16 * 64}
    assert counted == {name: 4 * n for name, n in hand.items()}


def test_bytes_of_squeeze_excitation_concat_add_and_strides():
    net = validate((
        Layer("conv1", "conv", ("image",), 12, stride=2), Layer("se2", "se", ("conv1",), squeeze=4),
        Layer("conv3", "conv", ("se2",), 12, kernel=1, bn=False), Layer("add4", "add", ("conv3", "se2")),
        Layer("mb5", "mbconv", ("add4",), 16, stride=2, hidden=10, squeeze=2),
        Layer("up6", "upsample", ("mb5",), stride=2), Layer("cat7", "concat", ("up6", "add4")),
        Layer("head8", "head", ("cat7",), 16, 1, kind="anchor", anchors=ANCHORS, assign="best")))
    rows, half, quarter = latency.layer_bytes(net, 32, 2), 16 * 16, 8 * 8
    assert rows["se2"] == 2 * (2 * 12 * 4 + 4 + 12 + 3 * 12 * half + 2 * (12 + 4 + 12))
    assert rows["conv3"] == 2 * (12 * 12 + 12 + 2 * 12 * half)
    assert rows["add4"] == 2 * 3 * 12 * half
    weights = 10 * 12 + 10 + 10 * 9 + 10 + 2 * 10 + 2 + 10 * 2 + 10 + 16 * 10 + 16
    expanded = 10 * half                                                   # before the stride
    assert rows["mb5"] == 2 * (weights + 12 * half + 16 * quarter + 2 * expanded + (3 + 2) * 10 * quarter
                               + 2 * (10 + 2 + 10))
    assert rows["up6"] == 2 * 16 * (quarter + half)
    assert rows["cat7"] == 2 * 2 * (16 + 12) * half
    assert rows["head8"] == 2 * (16 * 28 + 16 + 28 * half + 16 * half)


@pytest.mark.parametrize("name", NETS)
def test_bytes_of_weights_and_maps_are_those_of_the_modules(name: str):
    net, state = stated(NETS[name])
    folded, small = fold(net, state)
    runtime = torch_runtime(net, state, (), SIDE)
    seen, elements = dict.fromkeys((layer.name for layer in net), 0), {"image": 3 * SIDE ** 2}

    def watch(node, value):
        elements[node.name] = value.numel()
        if node.layer and node.type != "act":                             # applied on the way
            seen[node.layer] += value.numel() + sum(elements[i] for i in node.inputs)
    runtime.runner.model.watch = watch
    runtime.predict(noise(1))
    for key, parameter in runtime.runner.model.named_parameters():
        seen[key.split(".")[0]] += parameter.numel()
    counted = latency.layer_bytes(net, SIDE, 4)
    assert counted == latency.layer_bytes(folded, SIDE, 4), "folding changes what is counted"
    assert counted == {name: 4 * n for name, n in seen.items()}


def test_the_table_names_every_layer_with_its_own_macs_and_sums_to_the_network():
    net, state = stated(residual_net())
    rows = latency.layer_table(net, state, SIDE, noise(1)[0], "fp32", PEAK, rounds=5)
    assert [row["layer"] for row in rows] == [layer.name for layer in net]
    assert {row["layer"]: row["macs"] for row in rows if row["macs"]} == layer_macs(net, SIDE)
    assert sum(row["macs"] for row in rows) == macs(net, SIDE)
    moved = latency.layer_bytes(net, SIDE, 4)
    for row in rows:
        assert set(row) == FIELDS and row["ms"] > 0 and row["bytes"] == moved[row["layer"]]
        assert row["macs_per_s"] == pytest.approx(row["macs"] / row["ms"] * 1e3)
        assert row["intensity"] == pytest.approx(row["macs"] / row["bytes"])
        assert row["bound"] == ("memory" if row["intensity"] < 4 else "compute")
        assert row["limit_ms"] == pytest.approx(max(row["macs"] / 4e6, row["bytes"] / 1e6))
    assert {row["bound"] for row in rows} == {"memory", "compute"}


def test_layers_take_the_time_of_their_modules_and_no_hook_is_left(monkeypatch):
    monkeypatch.setattr(time, "perf_counter", time.process_time)
    net, state = stated(small_net())
    runtimes = []
    monkeypatch.setattr(latency, "torch_runtime",
                        lambda *given: runtimes.append(torch_runtime(*given)) or runtimes[-1])
    built = Network.__init__

    def spin(*_: object) -> None:
        end = time.process_time() + 0.02
        while time.process_time() < end:
            pass

    def slow(self: Network, records: Net, *more: object) -> None:
        built(self, records, *more)
        self.ds5.pointwise.conv.register_forward_hook(spin)
    monkeypatch.setattr(Network, "__init__", slow)
    rows = {row["layer"]: row["ms"] for row in
            latency.layer_table(net, state, SIDE, noise(1)[0], "fp32", PEAK, rounds=5)}
    assert rows.pop("ds5") >= 20 > 2 * max(rows.values())
    times = latency._layer_times({"a": runtimes[0]}, [noise(1)], 6)["a"]
    assert {name: len(taken) for name, taken in times.items()} == dict.fromkeys((*rows, "ds5"), 6)
    assert runtimes[0].runner.model.watch is None


@pytest.mark.parametrize(("count", "moved", "expected"), [
    (399, 100, "memory"), (400, 100, "compute"), (401, 100, "compute"), (0, 1, "memory")])
def test_the_bound_is_memory_below_the_balance_alone(count: int, moved: int, expected: str):
    assert latency.bound(count, moved, PEAK) == expected


def test_the_peak_is_above_what_another_convolution_and_copy_reach_here(monkeypatch, three_threads):
    monkeypatch.setattr(latency, "COPY", 32 << 20)
    monkeypatch.setattr(time, "perf_counter", time.process_time)
    peak = latency.measure_peak("fp32", 1)
    assert torch.get_num_threads() == 3
    assert peak["macs_per_s"] == max(peak["matmul_macs_per_s"], peak["conv_macs_per_s"])
    assert peak["balance"] == pytest.approx(peak["macs_per_s"] / peak["bytes_per_s"])
    image, conv = torch.rand(1, 64, 28, 28), torch.nn.Conv2d(64, 64, 3, padding=1, bias=False)
    source, target = torch.rand(4 << 20), torch.empty(4 << 20)
    with torch.inference_mode(), timing.torch_threads(1):
        multiplied = 1e3 * (64 * 28 * 3) ** 2 / timing.best_ms(lambda: conv(image), 0.05)
        copied = 1e3 * 2 * 4 * len(source) / timing.best_ms(lambda: target.copy_(source), 0.05)
    assert multiplied / 1.5 < peak["macs_per_s"] < 20 * multiplied
    assert copied / 5 < peak["bytes_per_s"] < 5 * copied


def test_a_network_against_itself_is_as_fast_and_against_a_larger_one_faster(compared):
    assert json.loads(json.dumps(compared)) == compared
    assert set(compared) == {"imgsz", "threads", "pictures", "networks", "precisions", "skipped"}
    assert compared["networks"]["twin"]["mac_ratio"] == 1
    large = macs(NETS["micro-yolo"], SIDE)
    assert compared["networks"]["large"]["mac_ratio"] == pytest.approx(macs(small_net(), SIDE) / large)
    assert set(compared["precisions"]) == {"fp32", "bf16"} - set(compared["skipped"])
    assert (not compared["skipped"]) == runs.native_bf16()
    for part in compared["precisions"].values():
        assert part["rounds"] == 30 and part["warm_up_rounds"] >= 6
        for row in part["networks"].values():
            assert set(row) == {"ms", "p90_ms", "spread", "ratio", "ratio_quartiles", "precision", "note"}
            low, high = row["ratio_quartiles"]
            assert 0 < row["ms"] <= row["p90_ms"] and low <= row["ratio"] <= high
        assert part["networks"]["parent"]["ratio"] == 1
        assert part["networks"]["twin"]["ratio"] == pytest.approx(1, abs=0.3)
        assert part["networks"]["large"]["ratio"] < 0.7
        for name, rows in part["layers"].items():
            assert sum(row["ms"] for row in rows) == pytest.approx(part["networks"][name]["ms"], rel=0.6)


def test_half_precision_halves_the_bytes(compared):
    if "bf16" not in compared["precisions"]:
        pytest.skip("needs native bf16")
    fp32, bf16 = (compared["precisions"][p]["layers"]["parent"] for p in ("fp32", "bf16"))
    assert [row["bytes"] for row in fp32] == [2 * row["bytes"] for row in bf16]


def test_precisions_that_this_cpu_lacks_are_named_and_not_timed(monkeypatch, instant_peak):
    monkeypatch.setattr(runs, "native_bf16", lambda: False)
    found = latency.compare_speed({"a": stated(small_net())}, SIDE, noise(), rounds=5,
                                  precisions=("fp32", "bf16", "fp16", "int3"))
    assert list(found["precisions"]) == ["fp32"] and list(found["skipped"]) == ["bf16", "fp16", "int3"]
    said = "\n".join(latency.speed_lines(found))
    assert "bf16 was not timed: this CPU has no native bf16" in said and "fp16 was not timed" in said


def test_the_threads_asked_for_are_used_and_those_before_come_back(monkeypatch, instant_peak,
                                                                           three_threads):
    used, predict = set(), latency.Runtime.predict
    monkeypatch.setattr(latency.Runtime, "predict",
                        lambda self, images: used.add(torch.get_num_threads()) or predict(self, images))
    latency.compare_speed({"a": stated(small_net())}, SIDE, noise(), threads=1, rounds=1,
                          precisions=("fp32",))
    assert used == {1} and torch.get_num_threads() == 3

    def failing(self: object, images: torch.Tensor) -> None:
        raise RuntimeError("planted")
    monkeypatch.setattr(latency.Runtime, "predict", failing)
    with pytest.raises(RuntimeError, match="planted"):
        latency.compare_speed({"a": stated(small_net())}, SIDE, noise(), threads=1)
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize(("shape", "dtype"), [((1, 3, 32, 32), torch.uint8), ((0, 3, 64, 64), torch.uint8),
                                              ((3, 64, 64), torch.uint8), ((1, 3, 64, 64), torch.float32)])
def test_other_images_are_refused_with_what_is_needed(shape: tuple, dtype: torch.dtype):
    with pytest.raises(UsageError, match=r"needs uint8 images \[N, 3, 64, 64\], got"):
        latency.compare_speed({"a": stated(small_net())}, SIDE, torch.zeros(shape, dtype=dtype))


def test_networks_and_states_are_left_as_they_were(instant_peak):
    net, state = stated(small_net())
    kept = {key: value.clone() for key, value in state.items()}
    latency.compare_speed({"a": (net, state)}, SIDE, noise(), rounds=1, precisions=("fp32",))
    assert state.keys() == kept.keys() and all(torch.equal(state[key], kept[key]) for key in kept)
