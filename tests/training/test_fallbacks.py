"""Training that meets too little memory or a half precision that does not hold goes on, and says so."""
import json
import shutil
import sys
from dataclasses import replace

import pytest
import torch

from deploy.runtimes.runtime import half_fault
from models.checkpoint import Checkpoint, load, save
from models.count import parameters
from models.network import Network
from models.records import to_json
from models.zoo.tiny import micro_yolo
from tests.helpers.nets import small_net
from training import engine
from training.config import TrainConfig
from training.optim import MovingAverage, make_optimizer
from training.prepare import prepare
from training.run import check_disk
from utils.errors import DiskError


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    from data.scenes import make_scenes
    return make_scenes(tmp_path_factory.mktemp("digits"), train=12, val=4, size=160, seed=1)


@pytest.fixture
def trained(digits, tmp_path, monkeypatch):
    """A function: run name, network, flags -> the finished run."""
    (tmp_path / "net.json").write_text(to_json(small_net(10)))

    def train(name, *words, net=None):
        import train as script
        (tmp_path / f"{name}.json").write_text(to_json(net or small_net(10)))
        flags = ["train.py", "--cfg", tmp_path / f"{name}.json", "--data", digits, "--imgsz", "96",
                 "--epochs", "2", "--workers", "0", "--project", tmp_path, "--name", name,
                 "--warmup-epochs", "0", *words]
        monkeypatch.setattr(sys, "argv", [str(w) for w in flags])
        run = prepare(script.parse())
        try:
            run.train()
        finally:
            run.close()
        return run
    return train


def test_out_of_memory_halves_the_batch_and_keeps_the_steps(trained, monkeypatch, capsys):
    words = ("--precision", "fp32", "--no-report")
    calm = trained("calm", "--batch-size", "4", "--nominal-batch", "8", *words)
    real = engine.gradients

    def small_memory(state, settings, batch, *rest):
        if len(batch.images) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(state, settings, batch, *rest)
    monkeypatch.setattr(engine, "gradients", small_memory)
    short = trained("short", "--batch-size", "8", "--nominal-batch", "8", *words)
    assert "continuing from the last checkpoint with 4, still 8 images" in capsys.readouterr().out
    assert json.loads((short.folder / "args.json").read_text())["batch_size"] == 4
    a, b = (load(run.last).state for run in (calm, short))
    assert all(torch.equal(a[key], b[key]) for key in a), "not the steps of a run that began with the half"
    assert load(short.last).training["step"] == 4


def test_memory_that_ends_in_mid_run_costs_the_steps_since_the_last_checkpoint(trained, monkeypatch):
    real, calls = engine.gradients, []

    def later(state, settings, batch, *rest):
        calls.append(len(batch.images))
        if len(calls) == 6:                                # in the second epoch
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(state, settings, batch, *rest)
    monkeypatch.setattr(engine, "gradients", later)
    run = trained("later", "--batch-size", "4", "--nominal-batch", "4", "--precision", "fp32")
    rows = [row["epoch"] for row in run.log.rows]
    assert rows == [0, 1] and calls[:5] == [4, 4, 4, 4, 4] and calls[6:] == [2] * 6
    assert load(run.last).training["step"] == 6
    assert "batch-norm now sees 2 images" in (run.folder / "report.html").read_text()


def test_half_precision_that_overflows_is_left_for_fp32_and_the_report_says_so(trained, monkeypatch):
    bare = tuple(replace(layer, bn=False) for layer in small_net(10))
    monkeypatch.setattr("utils.runs.pick_precision", lambda *_: ("fp16", ""))
    from models import network
    real = network.initialise

    def loud(model, seed, prior=0.01):
        model = real(model, seed, prior)
        with torch.no_grad():
            model.mb3.project.conv.weight.mul_(1e7)
        return model
    monkeypatch.setattr("training.teach.initialise", loud)
    run = trained("loud", "--batch-size", "4", net=bare)
    assert run.session.precision == "fp32"
    assert json.loads((run.folder / "args.json").read_text())["precision"] == "fp32"
    assert "half precision is non-finite" in (run.folder / "report.html").read_text()


def test_sound_half_precision_is_kept(trained, monkeypatch):
    monkeypatch.setattr("utils.runs.pick_precision", lambda *_: ("bf16", ""))
    assert trained("sound", "--batch-size", "4", "--no-report").session.precision == "bf16"


def test_what_is_wrong_with_half_precision_is_named():
    good = [torch.randn(2, 3, 8, 4, 4)]
    assert half_fault([good[0].bfloat16()], good) == ""
    assert half_fault([good[0] * 3], good) == "far off fp32"
    assert half_fault([good[0] / 0], good) == "non-finite"


def test_a_disk_too_full_for_the_checkpoints_is_refused_before_training(trained, monkeypatch, tmp_path):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100_000))
    with pytest.raises(DiskError, match=r"need about \d+ MB, 0 MB are free .* another --project") as refused:
        trained("full", "--batch-size", "4")
    assert refused.value.exit_code == 7


def test_a_disk_too_full_for_a_new_run_leaves_the_weights_of_the_old(trained, monkeypatch, tmp_path):
    folder = trained("twice", "--batch-size", "4").folder
    before = (folder / "weights" / "best.pt").read_bytes()
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=0))
    monkeypatch.setattr("training.run.parameters", lambda *_, **__: 10 ** 9)
    monkeypatch.setattr("training.prepare.parameters", lambda *_, **__: 10 ** 9)
    with pytest.raises(DiskError):
        trained("twice", "--batch-size", "4", "--exist-ok")
    assert (folder / "weights" / "best.pt").read_bytes() == before


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_the_space_that_is_asked_for_is_what_the_checkpoints_take(tmp_path, monkeypatch, optimizer):
    net = micro_yolo(3)
    model = Network(net)
    state = engine.State(model, MovingAverage(model, 0.1),
                         make_optimizer(model, TrainConfig(optimizer=optimizer, lr=0.1)),
                         torch.amp.GradScaler("cpu", enabled=False), torch.device("cpu"))
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    state.optimizer.step()
    weights = Checkpoint(net, state.ema.module.state_dict(), ("a", "b", "c"))
    save(tmp_path / "last.pt", replace(weights, training=state.as_dict()))
    save(tmp_path / "best.pt", weights)
    takes = 3 * (tmp_path / "last.pt").stat().st_size + (tmp_path / "best.pt").stat().st_size
    numbers = parameters(net, statistics=True)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1.05 * takes))
    check_disk(tmp_path, numbers, optimizer)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=0.9 * takes))
    with pytest.raises(DiskError):
        check_disk(tmp_path, numbers, optimizer)


def test_a_last_batch_that_batch_norm_cannot_learn_from_is_refused_before_the_first_step():
    from training.config import TrainConfig
    from training.prepare import check_side
    from utils.errors import UsageError
    net = micro_yolo(2)                                    # its coarsest cells span 32 px
    for config, images, refused in (
            (TrainConfig(imgsz=32, batch_size=4), 5, True), (TrainConfig(imgsz=32, batch_size=4), 6, False),
            (TrainConfig(imgsz=32, batch_size=1), 4, True), (TrainConfig(imgsz=64, batch_size=4), 5, False),
            (TrainConfig(imgsz=64, batch_size=4, multi_scale=True), 5, True)):
        if refused:
            with pytest.raises(UsageError, match="last batch is one"):
                check_side(net, config, images)
        else:
            check_side(net, config, images)


def test_what_a_run_owns_already_is_no_space_that_it_lacks(tmp_path, monkeypatch):
    (tmp_path / "weights").mkdir()
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=20_000))
    with pytest.raises(DiskError):
        check_disk(tmp_path, 1000, "sgd")                  # ten copies of 4 kB
    (tmp_path / "weights" / "last.pt").write_bytes(bytes(24_000))
    check_disk(tmp_path, 1000, "sgd")


def test_memory_that_ends_in_validation_halves_its_batches_alone(trained, monkeypatch, capsys):
    from training import run as running
    real, sizes = running.evaluate, []

    def small_memory(finder, dataset, loader, **rest):
        sizes.append(loader.batch_sampler.batch_size)
        if sizes[-1] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(finder, dataset, loader, **rest)
    monkeypatch.setattr(running, "evaluate", small_memory)
    run = trained("validated", "--batch-size", "8", "--nominal-batch", "8", "--no-report")
    assert sizes == [8, 4, 2, 2] and run.config.batch_size == 8 and run.state.step == 4
    assert "out of memory in validation: its batches are of 2 from here on" in capsys.readouterr().out
