"""Batch-norm put back: outputs unchanged, statistics those of the images, folding undoes it."""
from types import SimpleNamespace

import pytest
import torch

from compress.fold import fold
from compress.unfold import unfold
from deploy.runtimes.ncnn import to_ncnn
from models.graph import expand
from models.layer import Layer
from models.network import Network, from_state
from models.records import validate
from models.zoo.build import build
from models.zoo.official import OFFICIAL
from tests.helpers.nets import randomised, residual_net
from training.start import choose_net
from utils.errors import UsageError

IMAGES = torch.randint(0, 256, (20, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
NETS = {"residual": residual_net(), "shufflenet": build("shufflenet-v2", 4), "official": OFFICIAL[0].build(3)}


def folded(name):
    model = randomised(NETS[name])
    return fold(NETS[name], model.state_dict())


@pytest.mark.parametrize("images", [None, IMAGES], ids=["identity", "measured"])
@pytest.mark.parametrize("name", NETS)
def test_outputs_stay_and_folding_gives_the_same_numbers(name, images):
    net, state = folded(name)
    whole, new = unfold(net, state, images)
    assert all(layer.bn for layer in whole)
    with torch.no_grad():
        for mine, theirs in zip(from_state(whole, new)(IMAGES[:2]), from_state(net, state)(IMAGES[:2])):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))
    again, back = fold(whole, new)
    assert again == net and all(torch.allclose(back[key], state[key], rtol=1e-4, atol=1e-4) for key in state)


def test_measured_statistics_are_those_that_a_batch_has():
    """In training mode the outputs then are the same as well; from mean 0, variance 1 they jump."""
    net, state = folded("shufflenet")
    with torch.no_grad():
        wanted = from_state(net, state)(IMAGES[:16])[0]
        gaps = []
        for images in (None, IMAGES[:16]):
            whole, new = unfold(net, state, images)
            model = Network(whole)
            model.load_state_dict(new, strict=False)
            gaps.append(float((model.train()(IMAGES[:16])[0] - wanted).abs().max() / wanted.abs().max()))
    assert gaps[1] < 1e-2 < 0.2 < gaps[0], gaps


def test_a_fused_record_and_what_has_batch_norm_already_stay():
    net = validate((Layer("rep", "repconv", ("image",), 8, bn=False), Layer("new", "conv", ("rep",), 8),
                    Layer("end", "classify", ("new",), 3)))
    state = randomised(net).state_dict()
    whole, new = unfold(net, state)
    assert whole == net and all(torch.equal(new[key], state[key]) for key in new)
    assert [node.name for node in expand(whole).nodes if node.type == "norm"] == ["new.bn"]


def test_the_input_rule_gets_none():
    net = OFFICIAL[0].folded(3)
    state = randomised(net).state_dict()
    whole, new = unfold(net, state, IMAGES[:4])
    assert whole[2:] == OFFICIAL[0].build(3)[1:] and "input.bn.weight" not in new
    assert all(torch.equal(new[key], state[key]) for key in OFFICIAL[0].rule())


class Plain:
    """A training set of one class that is images alone."""

    coco = SimpleNamespace(names=("a",))

    def __len__(self):
        return len(IMAGES)

    def plain(self, index):
        return IMAGES[index].permute(1, 2, 0).numpy()


def test_training_starts_from_an_official_file_with_batch_norm(tmp_path):
    said, config = [], SimpleNamespace(start=str(tmp_path / "a.bin"), cfg=None, imgsz=64, fit_anchors=False)
    text, numbers = to_ncnn(*folded("official"))
    (tmp_path / "a.param").write_text(text)
    (tmp_path / "a.bin").write_bytes(numbers)
    net, weights = choose_net(config, Plain(), said.append)
    assert "stem.bn.running_var" in weights.state and "measured on 20 training images" in said[0]
    assert [row.name for row in net] == ["input", *(row.name for row in OFFICIAL[0].build(1))]
    config.cfg = "yolox-nano"                              # the same network: it has the file's rule, too
    assert choose_net(config, Plain(), said.append)[0] == net
    config.cfg = "micro-yolo"                              # whose records bring no image to the rule
    with pytest.raises(UsageError, match="record 'input' of .*a.bin brings images"):
        choose_net(config, Plain(), said.append)
