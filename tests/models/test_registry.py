"""Every detector of the registry, and a nano net a part of the grammar: what is new is covered by itself."""
import io

import numpy as np
import pytest
import torch

from compress.importance import channel_scores
from compress.prune import prune
from deploy.artifact import write_metadata
from deploy.onnx_file import to_onnx
from models.channels import channels
from models.checkpoint import Checkpoint, load, save
from models.count import macs, parameters
from models.graph import heads_of, strides
from models.heads import HEADS
from models.heads.loss import DetectionLoss
from models.heads.nms import detections
from models.layer import Net
from models.network import Network, initialise
from models.records import from_json, to_json
from models.zoo import nano
from models.zoo.build import DETECTORS, ZOO, build
from models.zoo.classifiers import CLASSIFIERS
from tests.helpers.cuts import (
    check_folded_is_same,
    check_pruned_is_masked,
    hooked,
    masked,
    randomise,
    run,
    state_of,
)
from tests.helpers.export_cases import by_ncnn
from utils.errors import ModelError

OURS = [kind for kind, head in HEADS.items() if head.__module__.startswith("models.")]   # not other tests'
PARTS = [f"nano:csp+{word}" for field, words in nano.parts().items()
         for word in (OURS if field == "kind" else words)]
NAMES = [name for name in ZOO if name not in CLASSIFIERS]
ALL = [*NAMES, *PARTS, *(f"nano:{backbone}+aspp-dw+ghost-neck" for backbone in CLASSIFIERS)]
SAMPLE = ["yolov5n-class", "thundernet", "efficientdet-lite", "nano:shufflenet-v2+aspp-dw+gsconv-neck"]
SIDE = 64


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Four images, each of its own noise with a brighter box, and the boxes."""
    images = 0.3 * torch.rand(4, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    rows = [[0, 0, .5, .5, .5, .5], [1, 1, .375, .5, .5, .75], [2, 0, .625, .375, .5, .5],
            [3, 1, .5, .5, .75, .5]]
    for image, label, x, y, w, h in rows:
        left, top, right, low = (int(v * SIDE) for v in (x - w / 2, y - h / 2, x + w / 2, y + h / 2))
        images[int(image), int(label), top:low, left:right] = 1
    return images, torch.tensor(rows)


def step(net: Net) -> dict[str, torch.Tensor]:
    """The loss terms of one step."""
    model, loss = initialise(Network(net), 0).train(), DetectionLoss(net)
    terms = loss(model(batch()[0]), batch()[1])
    sum(terms.values()).backward()
    assert all(value.isfinite() for value in terms.values())
    still = [key for key, value in model.named_parameters() if value.grad is None]
    assert not still and all(value.grad.isfinite().all() for value in model.parameters())
    return terms


@pytest.mark.parametrize("name", ALL)
def test_it_builds_counts_what_hooks_count_and_reads_back(name):
    net = build(name, 3)
    side = max(SIDE, *strides(net).values())
    assert from_json(to_json(net)) == net and heads_of(net)[0].classes == 3
    with torch.device("meta"):
        model = Network(net).eval()
        assert hooked(model, side) == macs(net, side)
    assert sum(p.numel() for p in model.parameters()) == parameters(net)


def test_the_baseline_is_of_yolov5ns_size_and_micro_yolo_plus_of_its_ratios():
    """Published: 1.9 M and 4.5 GFLOPs at 640; 3.18 and 2.44 times less than YOLOv3-tiny."""
    net, tiny, plus = build("yolov5n-class"), build("yolov3-tiny"), build("micro-yolo-plus")
    assert net == build("nano:csp+pan")
    assert abs(parameters(net) / 1.9e6 - 1) < .03 and abs(2 * macs(net, 640) / 4.5e9 - 1) < .03
    assert abs(parameters(tiny) / parameters(plus) / 3.18 - 1) < .003
    assert abs(macs(tiny, 416) / macs(plus, 416) / 2.44 - 1) < .003


def test_nanodet_plus_is_of_the_published_size():
    """1.17 M parameters and 0.9 GFLOPs at 320 px."""
    net = build("nanodet-plus-m")
    assert abs(parameters(net) / 1.17e6 - 1) < .03 and abs(2 * macs(net, 320) / .9e9 - 1) < .03
    assert [head.stride for head in heads_of(net)] == [8, 16, 32, 64]


def test_names_are_read_in_any_order_and_reach_the_rows():
    assert build("nano:ghostnet+aspp+fpn") == build("nano:ghostnet+fpn+aspp")
    net = build("nano:csp+fpn+aspp-dw+rates=2,4+width=48+act=relu", 3)
    pyramid = next(row for row in net if row.name == "pyramid")
    assert (pyramid.rates, pyramid.out, pyramid.act) == ((2, 4), 192, "relu")
    assert parameters(build("nano:csp+width=32")) < parameters(build("nano:csp"))


@pytest.mark.parametrize(("name", "said"), [
    ("nano:ghotnet+pan", "did you mean 'ghostnet'"), ("nano:csp+pam", "did you mean 'pan'"),
    ("nano:csp+asp", "did you mean 'aspp'"), ("nano:csp+anchr", "did you mean 'anchor'"),
    ("nano:csp+gost-neck", "did you mean 'ghost-neck'"), ("nano:csp+widht=32", "did you mean 'width'"),
    ("nano:csp+pan+fpn", "two of neck"), ("nano:csp+width=x", "whole number"), ("nano:csp+width=33", "of 8"),
    ("nano:csp+rates=1,2", "add aspp"), ("nano:csp+act=swihs", "did you mean 'swish'"), ("nano:", "unknown")])
def test_a_wrong_name_is_told_what_was_meant(name, said):
    with pytest.raises(ModelError, match=said):
        build(name, 3)


@pytest.mark.parametrize("name", SAMPLE)
def test_a_step_is_finite_and_a_checkpoint_comes_back(name, tmp_path):
    net = build(name, 2)
    step(net)
    state = initialise(Network(net), 1).state_dict()
    save(tmp_path / "a.pt", Checkpoint(net, state, ("a", "b"), SIDE))
    found = load(tmp_path / "a.pt")
    assert found.net == net and all(torch.equal(found.state[key], state[key]) for key in found.state)


@pytest.mark.parametrize("name", [name for name in ALL if name not in SAMPLE])
def test_a_step_of_every_other_net_is_finite(name):
    step(build(name, 2))


@pytest.mark.parametrize("name", [*(name for name in NAMES if name not in DETECTORS), *PARTS])
def test_it_prunes_exactly_and_folds(name):
    """Units that cannot be cut say why."""
    net = build(name, 2)
    table = channels(net)
    assert all(table.frozen.values()) and set(table.units) > set(table.frozen)
    assert check_pruned_is_masked(net, SIDE, keeps=1, dtype=torch.float64) < 1e-8
    check_folded_is_same(net, SIDE, tolerance=1e-4)


@pytest.mark.parametrize("name", ALL)
def test_half_the_channels_of_every_unit_by_l1_compute_what_the_net_masked_to_them_does(name):
    """A network is one at every width, as a slimmable one: each unit that can be cut halves."""
    net = build(name, 2)
    table, side = channels(net), max(SIDE, *strides(net).values())
    model = randomise(Network(net).double())
    state, halves = state_of(model), {}
    for unit in table.units.keys() - table.frozen.keys():
        scores = channel_scores(net, state, unit, "l1")
        halves[unit] = sorted(scores.topk((len(scores) + 1) // 2).indices.tolist())
    small, cut = prune(net, state, halves)
    assert all(len(channels(small).units[unit]) == len(kept) for unit, kept in halves.items())
    assert parameters(small) < .45 * parameters(net) or name.startswith("nano:shuffle")
    image = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(1)).double()
    with torch.no_grad():
        theirs = torch.func.functional_call(model, masked(net, state, halves), image)
    for ours, exact in zip(run(small, cut, image), theirs):
        assert (ours - exact).abs().max() <= 1e-8 * exact.abs().max()


@pytest.mark.parametrize("name", [*NAMES, *PARTS[::3], "nano:ghostnet+aspp", "nano:shufflenet-v1-g3"])
def test_onnx_ncnn_and_openvino_compute_what_torch_does(name, tmp_path):
    ort = pytest.importorskip("onnxruntime", reason="needs onnxruntime (requirements-export.txt)")
    pytest.importorskip("openvino", reason="needs openvino (requirements-export.txt)")
    from deploy.runtimes.openvino import core
    net = build(name, 2)
    model = initialise(Network(net), 0).eval()
    images = torch.randint(0, 256, (1, 3, SIDE, SIDE), dtype=torch.uint8,
                           generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = [out.numpy() for out in model(images)]
    file = to_onnx(net, model.state_dict(), SIDE)
    session = ort.InferenceSession(file, providers=["CPUExecutionProvider"])
    compiled = core().compile_model(core().read_model(io.BytesIO(file)), "CPU",
                                    {"INFERENCE_PRECISION_HINT": "f32"})
    found = {"onnx": session.run(None, {"images": images.numpy()}),
             "openvino": list(compiled([images.numpy()]).values()),
             "ncnn": [by_ncnn(net, model.state_dict(), images[0], tmp_path).reshape(wanted[0].shape)]}
    for form, outputs in found.items():
        for out, exact in zip(outputs, wanted):
            # GhostNet's random outputs are small differences of large numbers.
            limit = (1e-3 if "ghostnet" in name else 1e-4) * np.abs(exact).max()
            assert out.shape == exact.shape and np.abs(out - exact).max() <= limit, form


@pytest.mark.parametrize("name", ["thundernet", SAMPLE[-1]])
def test_its_onnx_file_is_quantised_to_integers(name, tmp_path):
    pytest.importorskip("onnx", reason="needs onnx (requirements-export.txt)")
    ort = pytest.importorskip("onnxruntime", reason="needs onnxruntime (requirements-export.txt)")
    from deploy.quant.ptq import quantise_onnx
    net = build(name, 2)
    source, target = tmp_path / "a.onnx", tmp_path / "q.onnx"
    source.write_bytes(to_onnx(net, initialise(Network(net), 0).state_dict(), SIDE))
    write_metadata(source, {"names": ["a", "b"]})
    images = [np.random.default_rng(i).integers(0, 256, (1, 3, SIDE, SIDE), dtype=np.uint8) for i in range(8)]
    quantise_onnx(source, target, images)
    exact, small = (ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(
        None, {"images": images[0]}) for path in (source, target))
    assert target.stat().st_size < source.stat().st_size
    assert all(np.abs(a - b).mean() < .5 * a.std() for a, b in zip(exact, small))


@pytest.mark.parametrize("name", ["nano:csp+aspp-dw+width=32", "nano:ghostnet+fpn+ghost-neck+width=32"])
def test_it_learns_four_images_by_heart(name):
    net = build(name, 2)
    (images, targets), model, loss = batch(), initialise(Network(net), 0).train(), DetectionLoss(net)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for _ in range(60):
        optimizer.zero_grad()
        terms = loss(model(images), targets)
        sum(loss.terms[term] * value for term, value in terms.items()).backward()
        optimizer.step()
    with torch.no_grad():                                  # in training mode: statistics of 60 steps lag
        found = detections(model(images), heads_of(net), .3, .5, 5)
    for boxes, (_, label, x, y, w, h) in zip(found.boxes, targets.tolist()):
        best = boxes[boxes[:, 4].argmax()]
        assert int(best[5]) == int(label)
        middle = (best[:2] + best[2:4]) / 2 / SIDE - [x, y]
        sides = (best[2:4] - best[:2]) / SIDE - [w, h]
        assert abs(middle).max() < .15 and abs(sides).max() < .3
