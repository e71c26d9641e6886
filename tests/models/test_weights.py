"""Checkpoints and official weights: there and back, refused with a sentence when torn, changed or unsafe."""
import pickle
import struct

import pytest
import torch

from deploy.runtimes.runtime import load_runtime, torch_runtime
from models import checkpoint as checkpoints
from models.checkpoint import Checkpoint, load, load_or_previous, previous, save
from models.count import parameters
from models.files.darknet import COCO_NAMES, read_darknet, write_darknet
from models.network import Network, from_state
from models.zoo.light import yolo_lite, yolo_nano
from models.zoo.tiny import yolov3_tiny
from tests.helpers.nets import randomised, residual_net, small_net
from utils.errors import ModelError


def some(names: tuple[str, ...] = ("a", "b", "c"), **more) -> Checkpoint:
    """A checkpoint of the small network."""
    net = small_net(len(names))
    classes, extra = {"7": 0, "9": 1, "x": 2}, {"note": "é"}
    return Checkpoint(net, randomised(net).state_dict(), names, 64, classes, extra, **more)


def test_a_checkpoint_comes_back_whole(tmp_path):
    before = some(training={"epoch": 3, "rng": torch.get_rng_state(), "ema": {"w": torch.rand(3)}})
    save(tmp_path / "a.pt", before)
    after = load(tmp_path / "a.pt")
    assert (after.net, after.names, after.imgsz, after.class_map, after.extra) == (
        before.net, before.names, before.imgsz, before.class_map, before.extra)
    assert all(torch.equal(before.state[k], after.state[k]) for k in before.state)
    assert torch.equal(after.training["rng"], before.training["rng"]) and after.training["epoch"] == 3
    assert not list(tmp_path.glob("*.part"))


def test_weights_are_stored_as_fp32_whatever_they_were(tmp_path):
    half = some()
    save(tmp_path / "a.pt", Checkpoint(half.net, {k: v.bfloat16() if v.is_floating_point() else v
                                                  for k, v in half.state.items()}, half.names))
    assert {v.dtype for v in load(tmp_path / "a.pt").state.values()} == {torch.float32, torch.int64}


def test_a_checkpoint_that_is_torn_changed_or_of_another_schema_is_refused(tmp_path):
    path = tmp_path / "a.pt"
    save(path, some())
    whole = path.read_bytes()
    path.write_bytes(whole[:len(whole) // 2])
    with pytest.raises(ModelError, match="torn"):
        load(path)
    content = torch.load(_written(path, whole), weights_only=True)
    content["state"]["conv1.conv.weight"][0, 0, 0, 0] += 1
    torch.save(content, path)
    with pytest.raises(ModelError, match="checksum"):
        load(path)
    content["schema"] = 99
    torch.save(content, path)
    with pytest.raises(ModelError, match="schema 99"):
        load(path)
    torch.save({"model": 3}, path)
    with pytest.raises(ModelError, match="needs net, state and names"):
        load(path)


@pytest.mark.parametrize("field", ["names", "imgsz", "class_map", "state", "net", "extra", "training"])
@pytest.mark.parametrize("value", [5, "416", -1, 10 ** 9, [1], {"1": 99}, {7: "a"}, {"a": None}, None])
def test_a_field_of_another_type_is_a_model_error(tmp_path, field, value):
    save(tmp_path / "a.pt", some())
    content = torch.load(tmp_path / "a.pt", weights_only=True)
    del content["checksum"]
    content[field] = value
    content["checksum"] = checkpoints.checksum(content)
    torch.save(content, tmp_path / "a.pt")
    fits = field in ("extra", "training") and isinstance(value, dict | None) or (field, value) == ("imgsz", 5)
    if fits:
        assert load(tmp_path / "a.pt").names == ("a", "b", "c")
    else:
        with pytest.raises(ModelError, match="a.pt: "):
            load(tmp_path / "a.pt")


@pytest.mark.parametrize("field", ["schema", "checksum", "names", "imgsz", "class_map", "state", "net",
                                   "extra", "training"])
@pytest.mark.parametrize("value", [torch.zeros(3), torch.zeros(0), torch.eye(3).to_sparse(),
                                   torch.zeros(3, device="meta")], ids=["plain", "empty", "sparse", "meta"])
def test_a_tensor_in_a_field_s_place_is_a_model_error(tmp_path, field, value):
    save(tmp_path / "a.pt", some())
    content = torch.load(tmp_path / "a.pt", weights_only=True)
    content[field] = value
    if field != "checksum" and value.layout == torch.strided and value.device.type == "cpu":
        content["checksum"] = checkpoints.checksum({k: v for k, v in content.items() if k != "checksum"})
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(ModelError, match="a.pt"):
        load(tmp_path / "a.pt")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_a_model_error(tmp_path, value):
    save(tmp_path / "a.pt", some())
    content = torch.load(tmp_path / "a.pt", weights_only=True)
    content["state"]["conv1.conv.weight"][0, 0, 0, 0] = value
    del content["checksum"]
    content["checksum"] = checkpoints.checksum(content)
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(ModelError, match="a.pt: 1 tensors are not finite, first conv1.conv.weight"):
        load(tmp_path / "a.pt")


def _written(path, data):
    path.write_bytes(data)
    return path


class Harmful:
    """Unpickling this would write a file."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (open, (self.target, "w"))


def test_pickled_code_is_refused_and_never_run(tmp_path):
    path, mark = tmp_path / "evil.pt", tmp_path / "ran"
    torch.save({"net": Harmful(str(mark))}, path)
    with pytest.raises(ModelError, match="sandbox"):
        load(path)
    path.write_bytes(pickle.dumps(Harmful(str(mark))))
    with pytest.raises(ModelError):
        load(path)
    torch.save(Network(small_net()), path)
    with pytest.raises(ModelError, match="whole module"):
        load(path)
    assert not mark.exists()


@pytest.mark.parametrize("name", ["a.pt", "a.weights"])
@pytest.mark.parametrize(("text", "said"), [
    ("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "LFS.*git lfs pull"),
    ("\n<!DOCTYPE html>\n<html><body>Sign in</body></html>", "a web page was downloaded instead of the file"),
    ("\ufeff<HTML>", "a web page was downloaded instead of the file")])
def test_what_is_no_checkpoint_is_called_by_its_name(tmp_path, name, text, said):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(ModelError, match=said) as error:
        load(tmp_path / name)
    assert "pickled" not in str(error.value)


def test_bytes_that_are_no_checkpoint_are_refused_whatever_they_begin_with(tmp_path):
    for first in range(256):
        (tmp_path / "a.pt").write_bytes(bytes([first]) + b"omething else\nthan a checkpoint\n")
        with pytest.raises(ModelError) as error:
            load(tmp_path / "a.pt")
        assert first == 0x80 or "pickled code" not in str(error.value), error.value


def test_the_previous_checkpoint_is_kept_and_taken_when_the_last_is_damaged(tmp_path):
    path = tmp_path / "last.pt"
    save(path, some(training={"epoch": 1}), keep_previous=True)
    save(path, some(training={"epoch": 2}), keep_previous=True)
    assert load(previous(path)).training["epoch"] == 1
    path.write_bytes(b"half a fi")
    found, note = load_or_previous(path)
    assert found.training["epoch"] == 1 and "last.prev.pt" in note


def test_non_finite_weights_are_never_written(tmp_path):
    bad = some()
    bad.state["conv1.conv.weight"][0] = float("nan")
    with pytest.raises(ModelError, match="conv1.conv.weight"):
        save(tmp_path / "a.pt", bad)
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_checkpoint_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "a.pt"
    save(path, some())
    old = path.read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(checkpoints.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        save(path, some())
    assert path.read_bytes() == old and [p.name for p in tmp_path.iterdir()] == ["a.pt"]


@pytest.mark.parametrize("header", [(0, 1, 0, 77), (0, 2, 5, 2 ** 40)])
def test_darknet_weights_come_back_byte_for_byte_in_both_header_versions(tmp_path, header):
    net = yolov3_tiny(3)
    state = randomised(net).state_dict()
    write_darknet(tmp_path / "a.weights", net, state, header)
    found_net, found, found_header = read_darknet(tmp_path / "a.weights")
    assert (found_net, found_header) == (net, header)
    assert all(torch.equal(state[k], found[k]) for k in state)
    write_darknet(tmp_path / "b.weights", found_net, found, found_header)
    assert (tmp_path / "a.weights").read_bytes() == (tmp_path / "b.weights").read_bytes()


def test_darknet_numbers_lie_where_darknet_puts_them(tmp_path):
    net = yolov3_tiny(1)
    state = randomised(net).state_dict()
    write_darknet(tmp_path / "a.weights", net, state)
    raw = (tmp_path / "a.weights").read_bytes()[20:]
    first = struct.unpack("<16f", raw[:64])            # conv1: shifts, then scales, means, variances, kernel
    assert list(first) == state["conv1.bn.bias"].tolist()
    assert struct.unpack("<f", raw[4 * 64:4 * 65])[0] == state["conv1.conv.weight"][0, 0, 0, 0]


@pytest.mark.parametrize(("change", "word"), [(lambda b: b[:-4], "too short"),
                                              (lambda b: b + b"\0" * 400, "too long"),
                                              (lambda b: b[:10], "less than a darknet header"),
                                              (lambda b: b + b"\0", "a torn one")])
def test_darknet_files_of_the_wrong_length_are_refused_with_counts(tmp_path, change, word):
    net, path = yolov3_tiny(2), tmp_path / "a.weights"
    write_darknet(path, net, randomised(net).state_dict())
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ModelError, match=word) as caught:
        read_darknet(path, net)
    assert word.startswith("less") or f"{parameters(net, statistics=True):,}" in str(caught.value)


def test_darknet_files_hold_biases_and_refuse_squeeze_excitation(tmp_path):
    net = yolo_lite(2)
    state = randomised(net).state_dict()
    write_darknet(tmp_path / "lite.weights", net, state)
    _, found, _ = read_darknet(tmp_path / "lite.weights", net)
    assert state.keys() == found.keys() and all(torch.equal(state[k], found[k]) for k in state)
    for other, key in ((residual_net(), "mb3.se.reduce.weight"), (yolo_nano(2), "fca1.se.reduce.weight")):
        with pytest.raises(ModelError, match=f"cannot hold {key}.*squeeze-excitation"):
            write_darknet(tmp_path / "se.weights", other, randomised(other).state_dict())
    assert [p.name for p in tmp_path.iterdir()] == ["lite.weights"]


def test_the_official_weights_come_back_byte_for_byte(shared, tmp_path):
    source = shared / "weights" / "yolov3-tiny.weights"
    net, state, header = read_darknet(source)
    write_darknet(tmp_path / "again.weights", net, state, header)
    assert (tmp_path / "again.weights").read_bytes() == source.read_bytes()
    assert load(source).names == COCO_NAMES and parameters(net) == 8_852_366


def test_a_runtime_in_bf16_agrees_with_fp32_and_falls_back_when_it_cannot():
    net = small_net()
    state = randomised(net).state_dict()
    x = torch.randint(0, 255, (1, 3, 64, 64), dtype=torch.uint8)
    exact, half = (torch_runtime(net, state, ("a", "b", "c"), 64, precision=p) for p in ("fp32", "bf16"))
    a, b = exact.predict(x)[0], half.predict(x)[0]
    assert half.precision == "bf16" and float((a - b).abs().mean()) < 0.05 * float(a.std())
    with torch.no_grad():
        expected = from_state(net, state)(x)[0]
    torch.testing.assert_close(a, expected, rtol=1e-4, atol=1e-4)
    off = torch_runtime(net, state, ("a", "b", "c"), 64, precision="bf16")
    run = off.runner.model.forward
    off.runner.model.forward = lambda images: [m + 0.2 * m.std() for m in run(images)]
    assert torch.equal(off.predict(x)[0], a) and off.precision == "fp32"
    assert "far off" in off.note, "export's gate would refuse a file like this"
    state["ds5.pointwise.conv.weight"] *= 1e5
    huge = torch_runtime(net, state, ("a", "b", "c"), 64, precision="fp16")
    assert torch.isfinite(huge.predict(x)[0]).all() and huge.precision == "fp32" and "non-finite" in huge.note


def test_a_missing_checkpoint_says_what_is_there(tmp_path):
    save(tmp_path / "best.pt", some())
    with pytest.raises(ModelError, match="best.pt"):
        load_runtime(str(tmp_path / "bast.pt"))
