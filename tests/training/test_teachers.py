"""What a run learns beside its ground truth: images without any, stopped and continued to the same bits."""
import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import train as script
from compress.distill import DistilledLoss
from data.augment import Augment, preset
from data.coco.locate import locate
from data.coco.read import read_coco, read_unlabelled
from data.dataset import DetectionSet
from data.loader import collate
from data.scenes import make_scenes
from models.checkpoint import load
from models.graph import heads_of
from models.heads.loss import DetectionLoss
from models.network import Network
from models.records import to_json
from models.zoo.build import with_head_kind
from tests.helpers.kills import assert_same_run
from tests.helpers.nets import randomised, residual_net, small_net
from tests.helpers.scripts import call
from training.optim import MovingAverage
from training.teach import own_average
from utils import runs
from utils.errors import DataError


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A set, a network, a teacher, and a folder of images without labels: seven that can be read."""
    folder = tmp_path_factory.mktemp("teachers")
    make_scenes(folder / "set", train=9, val=4, size=160, seed=1)
    make_scenes(folder / "other", train=7, val=1, size=160, seed=2)
    for at, record in enumerate(read_coco(*locate(folder / "other").train).images):
        place = folder / "unlabelled" / ("deep/er" if at % 2 else ".")
        place.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(record.path, place / record.path.name)
    (folder / "unlabelled/torn.jpg").write_bytes(b"no image")
    (folder / "net.json").write_text(to_json(small_net(10)))
    with pytest.MonkeyPatch.context() as patch:
        assert start(patch, folder, "teacher", "--epochs", 1) == 0
    return folder


def start(monkeypatch, folder: Path, name: str, *more: object) -> int:
    """The exit code of a training of four batches an epoch or five, two of them a step."""
    return call(monkeypatch, script.main, [
        "train.py", "--cfg", folder / "net.json", "--data", folder / "set", "--imgsz", 96, "--batch-size", 4,
        "--nominal-batch", 8, "--workers", 0, "--threads", 1, "--precision", "fp32", "--no-report",
        "--weights", "none", "--project", folder / "runs", "--name", name, *more])


def last(folder: Path, name: str):
    return load(folder / "runs" / name / "weights/last.pt")


@pytest.mark.parametrize("net", [
    residual_net(), *(with_head_kind(small_net(), kind) for kind in ("free", "yolox"))],
    ids=["anchor", "free", "yolox"])
def test_no_term_of_the_ground_truth_looks_at_an_image_that_has_none(net):
    loss, model = DetectionLoss(net), randomised(net).train()
    images = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    truth = torch.tensor([[0, 1, .4, .5, .3, .3], [2, 2, .5, .5, .5, .5], [2, 1, .2, .2, .3, .1]])
    marks = torch.tensor([[1, -1, 0, 0, 0, 0], [3, -1, 0, 0, 0, 0.]])
    outputs = [output.detach().requires_grad_() for output in model(images)]
    terms = loss(outputs, torch.cat((marks[:1], truth, marks[1:])), images)
    sum(terms.values()).backward()
    alone = [output.detach()[[0, 2]].clone().requires_grad_() for output in outputs]
    wanted = loss(alone, truth * torch.tensor([.5, 1, 1, 1, 1, 1]))
    sum(wanted.values()).backward()
    assert terms.keys() == wanted.keys() and all(torch.equal(terms[name], wanted[name]) for name in terms)
    for output, other in zip(outputs, alone):
        assert other.grad.any() and torch.equal(output.grad[[0, 2]], other.grad)
        assert not output.grad[[1, 3]].any()
        output.grad = None
    terms = loss(outputs, torch.tensor([[at, -1, 0, 0, 0, 0.] for at in range(4)]))
    sum(terms.values()).backward()
    assert not any(term.any() for term in terms.values())
    assert not any(output.grad.any() for output in outputs)


@pytest.mark.parametrize("pairs", [(), [(0, 0), (1, 1), (2, 2)]], ids=["numbers", "boxes"])
def test_of_an_image_without_ground_truth_the_teacher_speaks(pairs):
    net, images = small_net(), torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    outputs = [output.detach().requires_grad_() for output in randomised(net, 1).train()(images)]
    teacher = randomised(net, 2)
    teacher.head6.conv.bias.data.view(2, -1)[:, 4:] += 4   # it sees something everywhere
    loss = DistilledLoss(DetectionLoss(net), teacher, heads_of(net), pairs)
    terms = loss(outputs, torch.tensor([[0, 1, .4, .5, .3, .3], [1, -1, 0, 0, 0, 0.]]), images)
    terms["distill"].backward()
    assert all(output.grad[1].any() for output in outputs)


def test_images_are_joined_with_others_of_their_kind_and_those_without_truth_are_marked(made, monkeypatch):
    more, faults = read_unlabelled(made / "unlabelled")
    assert [record.id for record in more] == sorted(record.id for record in more) and len(more) == 7
    assert [fault.rule for fault in faults] == ["undecodable-image"] and "torn.jpg" in faults[0].examples[0]
    coco = read_coco(*locate(made / "set").train)
    alone = DetectionSet(coco, 96, preset("default"), seed=3)
    coco = replace(coco, unlabelled=more)
    both, asked = DetectionSet(coco, 96, Augment(mosaic=0.7, mixup=0.7), seed=3), []
    real = DetectionSet.plain
    monkeypatch.setattr(DetectionSet, "plain", lambda data, index: asked.append(index) or real(data, index))
    for epoch, index in itertools.product(range(3), range(16)):
        asked.clear()
        _, boxes, _ = both[(epoch, index)]
        assert {at < 9 for at in asked} == {index < 9}, (index, asked)
        assert np.array_equal(boxes.numpy(), [[-1, 0, 0, 0, 0]]) == (index >= 9)
    batch = collate([both[(0, at)] for at in (9, 2, 10)])
    assert batch.targets[batch.targets[:, 1] < 0, 0].tolist() == [0, 2] and batch.targets[1, 0] == 1
    same = DetectionSet(coco, 96, preset("default"), seed=3)
    assert all(torch.equal(a, b) for a, b in zip(alone[(1, 4)][:2], same[(1, 4)][:2]))


FLAGS = {"features": ("--teacher", "{}/runs/teacher/weights/best.pt", "--distill-features", "0.3"),
         "self": ("--self-distill", "--distill", "0.5", "--ema-age", "0.3"),
         "unlabelled": ("--teacher", "{}/runs/teacher/weights/best.pt", "--unlabelled", "{}/unlabelled")}


@pytest.mark.parametrize("what", FLAGS)
def test_a_run_stopped_amid_an_epoch_ends_with_the_same_bits(what, made, monkeypatch, capsys):
    words = ["--epochs", 3, "--warmup-epochs", 0.5, *(word.format(made) for word in FLAGS[what])]
    assert start(monkeypatch, made, f"{what}-whole", *words) == 0
    said = capsys.readouterr().out
    polls = itertools.count()
    with monkeypatch.context() as patch:
        patch.setattr(runs.Interrupt, "poll", lambda _: next(polls) == 4)
        assert start(patch, made, f"{what}-cut", *words) == 143
    cut = last(made, f"{what}-cut").training
    assert cut["batch"] and 0 < cut["epoch"] < 3, "it was to stop amid an epoch"
    assert start(monkeypatch, made, f"{what}-cut", "--resume") == 0
    rows = [json.loads(line) for line in (made / f"runs/{what}-cut/log.jsonl").read_text().splitlines()]
    assert all(row["distill"] > 0 for row in rows)
    assert_same_run(last(made, f"{what}-whole"), last(made, f"{what}-cut"))
    found = last(made, f"{what}-cut")
    assert found.state.keys() == Network(small_net(10)).state_dict().keys(), "the network alone"
    beside = found.training["beside"]
    assert (what == "features") == bool(beside) and all(value.any() for value in beside.values())
    if what == "unlabelled":
        assert "9 labelled + 7 unlabelled train / 4 val images" in said and "torn.jpg" in said


def test_the_own_average_teaches_from_the_end_of_warm_up_on(made, monkeypatch):
    terms, real = [], DistilledLoss.__call__
    monkeypatch.setattr(DistilledLoss, "__call__", lambda *words: terms.append(real(*words)) or terms[-1])
    # An average as young as the default's is the network itself after so few steps.
    assert start(monkeypatch, made, "own", "--self-distill", "--epochs", 4, "--warmup-epochs", 1,
                 "--ema-age", 0.3) == 0
    assert [float(term["distill"].detach()) > 0 for term in terms] == [False] * 3 + [True] * 9
    assert all(term["distill"].requires_grad for term in terms[3:])


def test_the_own_average_normalises_as_its_student_does_and_keeps_its_statistics():
    model, images = Network(small_net()).train(), torch.rand(2, 3, 64, 64)
    average = MovingAverage(model, 0.1)
    assert model.training and not any(part.training for part in average.module.modules())
    before = {name: value.fill_(1e3) for name, value in average.module.named_buffers() if "mean" in name}
    assert before, "statistics as far off as those of the first steps"
    run = SimpleNamespace(state=SimpleNamespace(ema=average, step=4), loader=[0] * 4,
                          config=SimpleNamespace(accumulate=1, warmup=1),
                          session=SimpleNamespace(device=torch.device("cpu"), precision="fp32"))
    teach = own_average(run)
    for mine, told in zip(model(images), teach(images), strict=True):
        torch.testing.assert_close(told, mine.detach())
    assert all((value == 1e3).all() for value in before.values()), "what is saved stays as it was"
    run.state.step = 3
    assert teach(images) is None


def test_images_without_labels_change_what_is_learned_and_others_end_the_continuation(made, monkeypatch,
                                                                                      capsys):
    words = ["--epochs", 1, "--teacher", made / "runs/teacher/weights/best.pt"]
    folder = made / "copy"
    shutil.copytree(made / "unlabelled", folder)
    assert start(monkeypatch, made, "with", *words, "--unlabelled", folder, "--epoch-images", 8) == 0
    assert "unlabelled train (8 of them an epoch)" in capsys.readouterr().out
    assert last(made, "with").training["sums"] == {} and sorted(folder.rglob("*")) == sorted(
        folder / path.relative_to(made / "unlabelled") for path in (made / "unlabelled").rglob("*"))
    next(folder.glob("*[!n].*")).unlink()
    assert start(monkeypatch, made, "with", "--resume") == 5
    assert "not be bit-exact: data was" in capsys.readouterr().err
    assert start(monkeypatch, folder, "among", *words, "--unlabelled", folder, "--cfg", made / "net.json",
                 "--data", made / "set") == 2
    assert "inside the data set" in capsys.readouterr().err


def test_a_folder_without_images_or_a_teacher_is_told(made, tmp_path, monkeypatch, capsys):
    assert start(monkeypatch, made, "none", "--unlabelled", made / "unlabelled") == 2
    assert "--unlabelled needs --teacher" in capsys.readouterr().err
    teacher = ("--teacher", made / "runs/teacher/weights/best.pt")
    assert start(monkeypatch, made, "none", *teacher, "--self-distill") == 2
    assert "its own teacher" in capsys.readouterr().err
    assert start(monkeypatch, made, "none", "--distill-features", 1) == 2
    assert "--distill-features needs --teacher" in capsys.readouterr().err
    for folder in (tmp_path, tmp_path / "absent"):
        assert start(monkeypatch, made, "none", *teacher, "--unlabelled", folder) == 3
        assert "not one image below this folder can be used" in capsys.readouterr().err
    (tmp_path / "bad.png").write_bytes(b"")
    with pytest.raises(DataError, match="bad.png is empty"):
        read_unlabelled(tmp_path)
    assert not (made / "runs/none").exists()
