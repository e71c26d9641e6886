"""Official weights as ncnn files: told by their convolutions, read number by number, refused where torn."""
import re
import struct

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from compress.fold import fold
from deploy.runtimes.ncnn import to_ncnn
from models.checkpoint import load
from models.count import macs, parameters
from models.files.darknet import COCO_NAMES
from models.files.ncnn import read_ncnn
from models.network import from_state
from models.zoo.official import OFFICIAL
from tests.helpers.nets import randomised
from utils.errors import ModelError

CASES = [(official, 3) for official in OFFICIAL] + [(OFFICIAL[0], 80)]


def write(folder, official, classes, half=False):
    """A file as its authors' exporter makes it, batch-norm folded, and the folded state."""
    net = official.build(classes)
    folded, state = fold(net, randomised(net).state_dict())
    text, numbers = to_ncnn(folded, state, half)
    (folder / "a.param").write_text(text)
    (folder / "a.bin").write_bytes(numbers)
    return state


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The files of a network of three classes: (text, bytes)."""
    folder = tmp_path_factory.mktemp("ncnn")
    write(folder, OFFICIAL[0], 3)
    return (folder / "a.param").read_text(), (folder / "a.bin").read_bytes()


@pytest.mark.parametrize(("official", "classes"), CASES, ids=lambda x: getattr(x, "name", x))
def test_numbers_come_back_and_the_network_is_told_by_its_convolutions(tmp_path, official, classes):
    state = write(tmp_path, official, classes)
    net, found, known = read_ncnn(tmp_path / "a.bin")
    assert (net, known) == (official.folded(classes), official)
    given = official.rule()
    first = next(key for key in found if key not in given)
    for key, value in found.items():
        if key in given:
            assert value.flatten().tolist() == given[key].tolist()
        else:
            wanted = state[key].flip(1) if official.bgr and key == first else state[key]
            assert torch.equal(value, wanted), key
    assert len(found) == len(state) + 2


def test_numbers_of_half_precision_are_read_as_they_stand(tmp_path):
    state = write(tmp_path, OFFICIAL[0], 3, half=True)
    _, found, _ = read_ncnn(tmp_path / "a.bin")
    assert all(torch.equal(found[key], value.half().float() if key.endswith("weight") else value)
               for key, value in state.items())


def test_a_focus_layer_becomes_the_convolution_over_pixels_that_it_is(tmp_path, small):
    """ncnn's YoloV5Focus puts column and row of a 2x2 window, the row first, behind the colours."""
    text, numbers = small
    kernel = torch.randn(16, 12, 3, 3, generator=torch.Generator().manual_seed(0))
    lines = text.splitlines()
    at = next(n for n, line in enumerate(lines) if " stem.linear " in line)
    words = lines[at].replace("1=6", "1=3").replace("3=2", "3=1").replace("4=2", "4=1").split()
    source = words[4]
    words[4] = "focused"
    lines[at:at + 1] = [f"YoloV5Focus focus 1 1 {source} focused", " ".join(words)]
    lines[1] = f"{len(lines) - 2} {int(lines[1].split()[1]) + 1}"
    (tmp_path / "a.param").write_text("\n".join(lines) + "\n")
    (tmp_path / "a.bin").write_bytes(numbers[:4] + kernel.numpy().tobytes() + numbers[4 + 4 * 1728:])
    _, state, _ = read_ncnn(tmp_path / "a.bin")
    image = torch.rand(1, 3, 12, 16)
    focused = torch.cat([image[..., row::2, column::2] for column in (0, 1) for row in (0, 1)], 1)
    torch.testing.assert_close(F.conv2d(image, state["stem.conv.weight"], stride=2, padding=2),
                               F.conv2d(focused, kernel, padding=1))


FAULTS = {
    "too short: it ends within head32.cls": lambda text, raw: (text, raw[:-8]),
    "too long: 4 bytes": lambda text, raw: (text, raw + bytes(4)),
    "integers .flag 0xd4b38": lambda text, raw: (text, struct.pack("<I", 0x000D4B38) + raw[4:]),
    "begins with '<html>' instead of 7767517": lambda text, raw: ("<html>\n", raw),
    "holds .* layers and says 9": lambda text, raw: (text.replace(text.splitlines()[1], "9 9", 1), raw),
    "type LSTM; known are": lambda text, raw: (text.replace("Swish ", "LSTM ", 1), raw),
    "yolox-nano: its convolution stem.conv is .*swish.*hardswish":
        lambda text, raw: (text.replace("Swish  ", "HardSwish  ", 1), raw),
    "td4_in.conv is .* reads": lambda text, raw: (re.sub(r"lateral5\.\d td4_up", "dark5 td4_up", text), raw),
    "names 1 values and says 2": lambda text, raw: (re.sub(r"(1 1 images) .*", r"\1", text), raw)}


@pytest.mark.parametrize("said", FAULTS)
def test_what_is_torn_or_another_network_is_refused_with_the_place(tmp_path, small, said):
    text, raw = FAULTS[said](*small)
    (tmp_path / "a.param").write_text(text)
    (tmp_path / "a.bin").write_bytes(raw)
    with pytest.raises(ModelError, match=said):
        read_ncnn(tmp_path / "a.bin")


def test_a_bin_file_alone_asks_for_its_param(tmp_path):
    (tmp_path / "a.bin").write_bytes(bytes(100))
    with pytest.raises(ModelError, match="there is no a.param"):
        load(tmp_path / "a.bin")


def test_the_input_rule_is_a_record_that_training_leaves_alone(tmp_path):
    write(tmp_path, OFFICIAL[0], 3)
    found = load(tmp_path / "a.bin")
    model = from_state(found.net, found.state)
    assert {name for name, _ in model.named_buffers()} == set(OFFICIAL[0].rule())
    assert parameters(found.net) == sum(p.numel() for p in model.parameters())
    image = torch.rand(1, 3, 32, 32)
    seen = {}
    model.watch = lambda node, value: seen.setdefault(node.name, value.clone())
    model(image)
    mean, deviation = (torch.tensor(value).view(3, 1, 1) for value in OFFICIAL[0][2:4])
    torch.testing.assert_close(seen["input.conv"], (255 * image - mean) / deviation, rtol=1e-5, atol=1e-5)


def test_counts_are_the_published_ones():
    """C1 of the paper's tables: 0.91 M and 1.08 GFLOPs, in which batch-norm and activations are counted."""
    net = OFFICIAL[0].build(80)
    assert parameters(net) == 912_159 and macs(net, 416) == 522_553_408
    assert round(parameters(net) / 1e6, 2) == 0.91


def test_official_outputs_are_those_of_ncnn(shared):
    """The library itself runs the file; the array that it is given must outlive the extractor."""
    ncnn = pytest.importorskip("ncnn", reason="needs the ncnn package")
    path = shared / "weights" / "yolox-nano.bin"
    found = load(path)
    assert found.names == COCO_NAMES and found.imgsz == 416

    class Focus(ncnn.Layer):
        def __init__(self):
            super().__init__()
            self.one_blob_only = True

        def forward(self, bottom, top, opt):
            given = np.array(bottom)
            joined = np.concatenate([given[:, y::2, x::2] for x in (0, 1) for y in (0, 1)])
            top.clone_from(ncnn.Mat(joined), opt.blob_allocator)
            return 0
    net, kept = ncnn.Net(), []
    net.opt.use_fp16_storage = net.opt.use_fp16_packed = net.opt.use_bf16_storage = False
    net.register_custom_layer("YoloV5Focus", lambda: kept.append(Focus()) or kept[-1], lambda layer: None)
    assert not net.load_param(str(path.with_suffix(".param"))) and not net.load_model(str(path))
    image = torch.randint(0, 256, (1, 3, 416, 416), dtype=torch.uint8,
                          generator=torch.Generator().manual_seed(0))
    mean, deviation = (np.float32(value)[:, None, None] for value in OFFICIAL[0][2:4])
    scaled = np.ascontiguousarray((image[0].numpy() - mean) / deviation)
    extractor, held = net.create_extractor(), ncnn.Mat(scaled)
    extractor.input("images", held)
    theirs = torch.from_numpy(np.array(extractor.extract("output")[1]))
    with torch.no_grad():
        mine = torch.cat([output[0, 0].flatten(1).T for output in from_state(found.net, found.state)(image)])
    mine[:, 4:] = mine[:, 4:].sigmoid()
    assert (mine - theirs).abs().max() < 1e-3
