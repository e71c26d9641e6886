"""Flags of the recipe: class weights, pipelines of one's own, mixup, warm restarts, the batch that fits."""
import json
import sys
from types import SimpleNamespace

import albumentations as A
import numpy as np
import pytest
import torch

from data.augment import DEFAULT, PRESETS, Augment, Pipeline, mix, preset
from data.dataset import DetectionSet
from models.checkpoint import load
from models.heads.loss import DetectionLoss
from models.network import Network, initialise
from models.records import to_json
from models.zoo.build import with_head_kind
from tests.helpers.nets import small_net
from training.config import TrainConfig
from training.optim import learning_rate
from training.plan import FULL, MOST, largest_batch
from training.prepare import prepare
from training.start import class_weights
from utils.errors import DataError, UsageError


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    from data.scenes import make_scenes
    return make_scenes(tmp_path_factory.mktemp("digits"), train=12, val=4, size=160, seed=1)


@pytest.fixture
def ready(digits, tmp_path, monkeypatch):
    """A function: run name, flags -> the run, ready to train."""
    (tmp_path / "net.json").write_text(to_json(small_net(10)))
    open_runs = []

    def start(name, *words):
        import train as script
        flags = ["train.py", "--cfg", tmp_path / "net.json", "--data", digits, "--imgsz", "96", "--workers",
                 "0", "--epochs", "2", "--project", tmp_path, "--name", name, "--precision", "fp32",
                 "--no-report", *words]
        monkeypatch.setattr(sys, "argv", [str(w) for w in flags])
        open_runs.append(prepare(script.parse()))
        return open_runs[-1]
    yield start
    for run in open_runs:
        run.close()


@pytest.mark.parametrize("kind", ["anchor", "free"])
def test_class_weights_weigh_the_class_term_alone(kind):
    net = with_head_kind(small_net(3), kind)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    outputs = initialise(Network(net), 0)(images)
    targets = torch.tensor([[0, 1, .4, .5, .3, .3], [1, 1, .6, .6, .2, .4]])
    plain, parts = DetectionLoss(net)(outputs, targets), []
    for at in range(3):
        parts.append(DetectionLoss(net, torch.eye(3)[at])(outputs, targets))
    ones = DetectionLoss(net, torch.tensor([1., 1., 1.]))(outputs, targets)
    doubled = DetectionLoss(net, torch.tensor([1., 2., 1.]))(outputs, targets)
    for name in plain:
        assert torch.equal(plain[name], ones[name])
        if name != "cls":
            assert torch.equal(plain[name], doubled[name])
    torch.testing.assert_close(sum(part["cls"] for part in parts), plain["cls"])
    torch.testing.assert_close(doubled["cls"], plain["cls"] + parts[1]["cls"])
    assert parts[1]["cls"] != parts[0]["cls"]


def test_class_weights_by_rarity_by_name_and_from_a_file(tmp_path):
    rows = np.zeros((120, 5), np.float32)
    rows[100:, 0] = 1                                          # 100 cats, 20 dogs, no fox
    few = SimpleNamespace(coco=SimpleNamespace(names=("cat", "dog", "fox")), boxes=[rows])
    said = []
    auto = class_weights(("auto",), few, said.append)
    assert float(auto[1] / auto[0]) == pytest.approx(5 ** .5) and float(auto[2]) == 1
    assert float(100 * auto[0] + 20 * auto[1]) == pytest.approx(120) and "dog 1.85" in said[0]
    assert class_weights(("dog=2.5", "fox=0"), few, said.append).tolist() == [1, 2.5, 0]
    (tmp_path / "w.json").write_text(json.dumps({"cat": 3}))
    assert class_weights((str(tmp_path / "w.json"),), few, said.append).tolist() == [3, 1, 1]
    assert class_weights((), few, pytest.fail) is None
    for wrong in ("cow=1", "dog=much", "dog=-1", "dog=nan", "dog"):
        with pytest.raises(UsageError, match="needs a class of cat, dog, fox"):
            class_weights((wrong,), few, said.append)


def pipeline(path, *steps):
    A.save(A.Compose([*steps], bbox_params=A.BboxParams(format="coco", label_fields=["x"])), path,
           data_format=path.suffix[1:])
    return path


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_a_pipeline_of_ones_own_moves_boxes_and_follows_its_seed(tmp_path, suffix):
    either = A.OneOf([A.Blur(p=1), A.Downscale(p=1)], p=1)
    file = pipeline(tmp_path / f"my.{suffix}", A.HorizontalFlip(p=1), either)
    settings = preset(str(file))
    assert settings.mosaic == DEFAULT.mosaic and settings.flip == 0
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    boxes = np.array([[2, 4, 8, 20, 30], [1, 0, 0, 64, 64]], np.float32)
    first, moved = Pipeline(settings)(image, boxes, np.random.default_rng(5))
    again, _ = Pipeline(settings)(image, boxes, np.random.default_rng(5))
    assert np.array_equal(first, again) and not np.array_equal(first, image[:, ::-1])
    np.testing.assert_allclose(moved, [[2, 44, 8, 60, 30], [1, 0, 0, 64, 64]])


@pytest.mark.parametrize(("content", "said"), [
    ("nothing: here", "no albumentations pipeline"), ("[", "no albumentations pipeline"),
    ("transform: {__class_fullname__: os.system, p: 1}", "no albumentations pipeline"),
    (A.Compose([A.Resize(32, 32)]), "what changes size"), (A.Compose([A.ToFloat()]), "or type"),
    (A.Compose([A.RandomCrop(500, 500)]), "no albumentations pipeline")])
def test_a_pipeline_that_cannot_be_used_is_refused_at_the_start(tmp_path, content, said):
    file = tmp_path / "bad.yaml"
    if isinstance(content, str):
        file.write_text(content)
    else:
        A.save(content, file, data_format="yaml")
    with pytest.raises(DataError, match=said):
        preset(str(file))


def test_a_run_keeps_its_pipeline_and_resumes_by_it(ready, tmp_path):
    file = pipeline(tmp_path / "my.yaml", A.HorizontalFlip(p=.5), A.RandomBrightnessContrast(p=1))
    whole = ready("whole", "--augment", file)
    whole.train()
    cut = ready("cut", "--augment", file)
    cut.pause = lambda state: cut.close() or exec_stop(state)
    with pytest.raises(KeyboardInterrupt):
        cut.train()
    file.unlink()                                              # the run's own copy is what counts
    again = ready("cut", "--augment", file, "--resume")
    assert again.state.epoch == 1
    again.train()
    a, b = (load(run.last).state for run in (whole, again))
    assert all(torch.equal(a[key], b[key]) for key in a)
    with pytest.raises(UsageError, match="no such file"):
        ready("new", "--augment", file)


def exec_stop(state):
    raise KeyboardInterrupt


def test_mixup_joins_the_boxes_of_two_images_and_others_stay_as_they_were(digits):
    from data.coco.locate import locate
    from data.coco.read import read_coco
    coco = read_coco(*locate(str(digits)).train)
    plain = Augment(flip=0.5)
    one, mixed = (DetectionSet(coco, 96, kind, seed=3) for kind in (plain, Augment(flip=.5, mixup=1.0)))
    total = 0
    for index in range(len(coco.images)):
        image, boxes = mixed.sample(0, index)
        total += len(boxes) - len(one.sample(0, index)[1])
        assert image.dtype == np.uint8 and image.shape == (96, 96, 3)
    assert total > 0
    late = DetectionSet(coco, 96, Augment(flip=.5, mixup=1.0), seed=3, plain_from=0)
    assert len(late.sample(0, 0)[1]) == len(coco.images[0].boxes), "closed with mosaic"
    black, white = np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 200, np.uint8)
    assert (mix(white, black, 0.25) == 50).all()


def test_the_flag_reaches_the_images(ready):
    assert ready("mixed", "--mixup", "0.3").train_set.augment.mixup == 0.3
    assert PRESETS["default"].mixup == 0


def test_warm_restarts_begin_each_cosine_at_the_peak():
    rates = [learning_rate(s, 90, 0, 1.0, 0.1, 3) for s in range(91)]
    assert rates[0] == rates[30] == rates[60] == 1.0 and rates[29] < 0.12 and rates[90] == pytest.approx(0.1)
    assert rates[15] == rates[45] == rates[75]
    assert [learning_rate(s, 90, 5, 1.0, 0.1, 1) for s in range(91)] == [
        learning_rate(s, 90, 5, 1.0, 0.1) for s in range(91)]


def test_the_largest_batch_leaves_memory_free():
    peaks = {4: 3 * 10 ** 9, 8: 5 * 10 ** 9}                   # 1 GB and half a GB an image
    for free, images, wanted in ((8e9, 999, 8), (14e9, 999, 16), (2e11, 99, MOST), (2e11, 9, 8), (1e9, 9, 1)):
        assert largest_batch(peaks, int(free), images) == wanted
        assert wanted == 1 or 1e9 + wanted * .5e9 <= FULL * free


def test_an_automatic_batch_is_16_on_a_cpu_and_resumes(ready, capsys):
    run = ready("auto", "--batch-size", "auto")
    assert run.config.batch_size == 16 and "--batch-size auto: 16" in capsys.readouterr().out
    run.train()
    run.close()
    assert ready("auto", "--batch-size", "auto", "--resume").config.batch_size == 16
    for wrong in ("0", "-1", "many"):
        with pytest.raises(SystemExit):
            ready("wrong", "--batch-size", wrong)
    assert TrainConfig().batch_size == 16
