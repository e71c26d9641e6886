"""darknet's cfg files as records: each section as darknet computes it, and what cannot be said is refused."""
import numpy as np
import pytest
import torch

from models.checkpoint import load
from models.count import macs, parameters
from models.files.darknet import beside, write_darknet
from models.graph import heads_of
from models.network import Network, from_state
from models.zoo.cfg import from_cfg
from models.zoo.tiny import yolov3_tiny
from tests.helpers.cuts import check_folded_is_same, check_pruned_is_masked
from tests.helpers.nets import randomised
from utils.errors import ModelError

CONV = "[convolutional]\nbatch_normalize=1\nfilters={}\nsize={}\nstride={}\npad=1\nactivation=leaky\n"
HEAD = ("[convolutional]\nsize=1\nstride=1\npad=1\nfilters=14\nactivation=linear\n"
        "[yolo]\nmask = {}\nanchors = 10,14,  23,27,  37,58\nclasses=2\nnum=3\n")
MIXED = ("[net]\nwidth=64\nheight=64\nchannels=3\n" + CONV.format(8, 3, 2)                # 1
         + "# bottleneck\n" + CONV.format(8, 1, 1)
         + CONV.format(8, 3, 1).replace("size", "groups=8\nsize")                         # 3: depthwise
         + CONV.format(8, 1, 1).replace("leaky", "linear")
         + "[dropout]\nprobability=.15\n[shortcut]\nfrom=-5\nactivation=linear\n"         # 6: of 1 and 4
         + CONV.format(12, 3, 2)
         + "[maxpool]\nsize=3\nstride=1\n[route]\nlayers=-2\n[maxpool]\nstride=1\nsize=5\n"
         + "[route]\nlayers=-1,-3,6\n" + CONV.format(10, 3, 2) + HEAD.format("1,2")      # 11, 12, 13, 14
         + "[route]\nlayers=11\n[upsample]\nstride=2\n[route]\nlayers=-1,6\ngroups=2\n"
         + "group_id=1\n" + HEAD.format("0,1"))


def test_each_section_is_a_row_of_the_same_meaning():
    net, side = from_cfg(MIXED)
    assert side == 64 and [row.name for row in net] == [
        "conv1", "conv2", "conv3", "conv4", "add6", "conv7", "pool8", "pool10", "cat11", "conv12", "head13",
        "up16", "cat17", "part17", "head18"]
    assert {row.name: row.inputs for row in net if row.op in ("add", "concat", "split")} == {
        "add6": ("conv4", "conv1"), "cat11": ("pool10", "pool8", "conv7"), "cat17": ("up16", "conv7"),
        "part17": ("cat17",)}
    assert [head.layer.anchors for head in heads_of(net)] == [((23.0, 27.0), (37.0, 58.0)),
                                                              ((10.0, 14.0), (23.0, 27.0))]
    assert [head.stride for head in heads_of(net)] == [8, 4]
    check_folded_is_same(net, 64)
    assert check_pruned_is_masked(net, 64, keeps=3, dtype=torch.float64) < 1e-10


def test_the_stock_cfg_gives_the_zoos_network_and_the_anchors_that_its_weights_learned(tmp_path):
    convs = [(16, 3), (32, 3), (64, 3), (128, 3), (256, 3), (512, 3), (1024, 3)]
    text = "[net]\nwidth=416\nheight=416\n"
    for at, (filters, size) in enumerate(convs):
        text += CONV.format(filters, size, 1)
        text += f"[maxpool]\nsize=2\nstride={1 if at == 5 else 2}\n" if at < 6 else ""
    head = HEAD.replace("37,58", "37,58, 81,82, 135,169, 344,319")
    head = head.replace("filters=14", "filters=21")
    text += CONV.format(256, 1, 1) + CONV.format(512, 3, 1)
    text += head.format("3,4,5")
    text += "[route]\nlayers = -4\n" + CONV.format(128, 1, 1)
    text += "[upsample]\nstride=2\n[route]\nlayers = -1, 8\n"
    text += CONV.format(256, 3, 1) + head.format("0,1,2")
    (tmp_path / "a.cfg").write_text(text)
    net, state = yolov3_tiny(2), randomised(yolov3_tiny(2)).state_dict()
    assert from_cfg(text)[0] != net and beside(tmp_path / "a.weights") == (net, 416)
    write_darknet(tmp_path / "a.weights", net, state)
    found = load(tmp_path / "a.weights")
    assert found.net == net and all(torch.equal(found.state[key], state[key]) for key in state)


def test_weights_beside_a_cfg_are_read_by_it(tmp_path):
    net, side = from_cfg(MIXED)
    state = randomised(net).state_dict()
    (tmp_path / "b.cfg").write_text(MIXED)
    write_darknet(tmp_path / "b.weights", net, state)
    found = load(tmp_path / "b.weights")
    assert (found.net, found.imgsz, found.names) == (net, side, ("class0", "class1"))
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        for mine, theirs in zip(from_state(found.net, found.state)(image), from_state(net, state)(image)):
            assert torch.equal(mine, theirs)


@pytest.mark.parametrize(("old", "new", "said"), [
    ("[dropout]", "[lstm]", r"section 5 of the cfg file, \[lstm\], is not known"),
    ("leaky", "mish", "has activation mish; known are linear, leaky"),
    ("from=-5", "from=-9", "reads section -9, which is not before it"),
    ("from=-5", "of=-5", "cannot be read: 'from'"),
    ("filters=14", "filters=15", r"before \[yolo\] needs size 1, 14 filters"),
    ("classes=2", "classes=2\nnew_coords=1", "new_coords"),
    ("size=5", "size=5\npadding=1", "padding 1; needs size - 1"),
    ("height=64", "height=32", "is 64x32 with 3 channels; needs a square"),
    ("[net]", "[convolutional]", "begins with"), ("pad=1", "pad", "neither .section. nor key=value: 'pad'"),
    ("filters=8", "filters=eight", "cannot be read: invalid literal")])
def test_what_records_cannot_say_is_refused_with_the_section(old, new, said):
    with pytest.raises(ModelError, match=said):
        from_cfg(MIXED.replace(old, new, 1))


@pytest.mark.parametrize(("name", "millions", "gflops"), [("yolo-fastest-1.1", .35, .252),
                                                          ("yolo-fastest-1.1-xl", .925, .725)])
def test_official_yolo_fastest_is_as_large_as_published(shared, name, millions, gflops):
    found = load(shared / "weights" / f"{name}.weights")
    assert found.imgsz == 320 and len(found.names) == 80
    assert abs(parameters(found.net, statistics=True) / 1e6 / millions - 1) < 0.03
    assert abs(2 * macs(found.net, 320) / 1e9 / gflops - 1) < 0.03
    image = np.full((1, 3, 320, 320), 114, np.uint8)
    with torch.no_grad():
        assert all(out.isfinite().all() for out in Network(found.net).eval()(torch.from_numpy(image)))
