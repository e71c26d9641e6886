"""A training's end: by a budget of time, by patience; parts of a set; layers that do not learn."""
import json
import sys

import numpy as np
import pytest
import torch

from data.loader import EpochSampler
from models.checkpoint import load
from models.network import Network
from models.records import to_json
from tests.helpers.nets import small_net
from training import run as running
from training.config import TrainConfig, duration
from training.optim import freeze
from training.plan import FEWEST, Costs, first_plan, later_plan, remaining
from training.prepare import prepare
from utils.errors import UsageError


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    from data.scenes import make_scenes
    return make_scenes(tmp_path_factory.mktemp("digits"), train=12, val=4, size=160, seed=1)


@pytest.fixture
def started(digits, tmp_path, monkeypatch):
    """A function: run name, flags -> the run, ready to train."""
    (tmp_path / "net.json").write_text(to_json(small_net(10)))
    open_runs = []

    def start(name, *words):
        import train as script
        flags = ["train.py", "--cfg", tmp_path / "net.json", "--data", digits, "--imgsz", "96", "--workers",
                 "0", "--batch-size", "4", "--nominal-batch", "4", "--project", tmp_path, "--name", name,
                 "--precision", "fp32", "--no-report", *words]
        monkeypatch.setattr(sys, "argv", [str(w) for w in flags])
        open_runs.append(prepare(script.parse()))
        return open_runs[-1]
    yield start
    for run in open_runs:
        run.close()


@pytest.mark.parametrize("images", [60, 1500, 200_000])
def test_a_plan_fills_the_budget_and_no_more(images):
    config = TrainConfig(time=600, close_mosaic=10)
    costs = Costs(0.05, 6.0, 0.2)
    plan = first_plan(config, images, costs, spent=20)
    left = remaining(config, costs, 20)
    epoch = (plan.epoch_images or images) * costs.image + costs.save
    used = plan.epochs * (epoch + costs.validation / plan.val_interval)
    assert 0.9 * left < used <= left + costs.validation and plan.epochs >= FEWEST
    assert costs.validation / plan.val_interval <= 0.1 * epoch + 1e-9 or plan.val_interval == plan.epochs
    assert plan.close_mosaic <= plan.epochs / 4 and (images > 60) == (plan.epoch_images is not None)
    assert (plan.epoch_images or 16) % 16 == 0
    assert left < 600 - 20 - 2 * costs.validation, "the last validation and the report's are kept free"


def test_a_budget_that_start_and_validation_take_is_refused():
    with pytest.raises(UsageError, match="--time 30 s: start, validation and report need .* give more"):
        first_plan(TrainConfig(time=30), 1000, Costs(0.1, 10.0, 0.1), spent=5)


def test_epochs_are_planned_anew_where_the_rate_was_another():
    config, costs = TrainConfig(time=600, epochs=40, val_interval=2), Costs(0.05, 2.0, 0.0)
    left = remaining(config, costs, 0)
    epoch = 200 * costs.image + costs.validation / 2
    done = 20
    as_planned = 600 - left + (left - (config.epochs - done) * epoch)
    assert later_plan(config, done, costs, 200, as_planned - (600 - left)) is None
    slower = later_plan(config, done, Costs(0.1, 2.0, 0.0), 200, 300)
    assert slower.epochs == done + int(remaining(config, costs, 300) / (200 * 0.1 + 1)) < 40
    assert later_plan(config, 40, costs, 200, 10) is None


def test_times_are_read_with_their_unit():
    assert [duration(text) for text in ("90s", "15m", "1.5h")] == [90, 900, 5400]
    import argparse
    for text in ("15", "m", "ten m", ""):
        with pytest.raises(argparse.ArgumentTypeError, match="needs a number and s, m or h"):
            duration(text)


def test_a_planned_run_has_the_bits_of_one_that_was_told_its_epochs(started, monkeypatch, capsys):
    """Also when it is stopped and resumed: then nothing is planned again."""
    real = running.first_plan
    monkeypatch.setattr(running, "seconds_per_image", lambda *_: 0.5)
    monkeypatch.setattr(running, "later_plan", lambda *_: None)
    monkeypatch.setattr(running, "first_plan", lambda config, images, costs, spent: real(
        config, images, Costs(0.5, 1.0, 0.0), spent=4.0))
    timed = started("timed", "--time", "80s")
    timed.train()
    assert "--time 80 s: 11 epochs of 12 images (500 ms each)" in capsys.readouterr().out
    saved = json.loads((timed.folder / "args.json").read_text())
    assert (saved["epochs"], saved["val_interval"], saved["close_mosaic"], saved["time"]) == (11, 2, 2, 80)
    told = started("told", "--epochs", 11, "--val-interval", 2, "--close-mosaic", 2)
    told.train()
    a, b = (load(run.last).state for run in (timed, told))
    assert all(torch.equal(a[key], b[key]) for key in a)
    stopped = started("stopped", "--time", "80s")
    monkeypatch.setattr(running.engine, "READ_STEPS", 1)
    real_pause, epochs = stopped.pause, []

    def pause(state):
        epochs.append(state.epoch)
        if len(epochs) == 4:
            raise KeyboardInterrupt
        return real_pause(state)
    stopped.pause = pause
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    stopped.close()
    monkeypatch.setattr(running, "first_plan", pytest.fail)
    again = started("stopped", "--time", "80s", "--resume")
    assert again.state.epoch == 4 and again.config.epochs == 11
    again.train()
    c = load(again.last).state
    assert all(torch.equal(a[key], c[key]) for key in a)


def test_epochs_beside_a_budget_are_refused(started, capsys):
    with pytest.raises(SystemExit):
        started("both", "--time", "80s", "--epochs", 3)
    assert "--time plans the epochs" in capsys.readouterr().err


def test_patience_ends_a_run_that_gets_no_better_and_says_where_the_rate_was(started, monkeypatch, capsys):
    run = started("patient", "--epochs", 20, "--patience", 3)
    reached = iter((.1, .3, .2, .3, .1, .2, .1, .9))           # the equal one at the fourth is the best
    monkeypatch.setattr(run, "validate", lambda _: {"map50": next(reached)})
    run.train()
    assert run.state.epoch == 7 and load(run.best).extra["epoch"] == 4
    said = capsys.readouterr().out
    assert "ended after epoch 7 of 20: no map50 above 0.3000 since epoch 4 (--patience 3)" in said
    assert "% of its peak" in (run.folder / "notes.txt").read_text()
    run.close()
    again = started("patient", "--resume")
    again.train()
    assert again.state.epoch == 7, "its patience had run out"


def test_frozen_layers_keep_weights_and_statistics(started):
    run = started("frozen", "--epochs", 2, "--freeze", "conv1", "mb3")
    before = {key: value.clone() for key, value in run.state.model.state_dict().items()}
    run.train()
    for state in (run.state.model.state_dict(), load(run.last).state):
        kept = {key.split(".")[0] for key in before if torch.equal(before[key], state[key])}
        moved = {key.split(".")[0] for key in before if not torch.equal(before[key], state[key])}
        assert kept >= {"conv1", "mb3"} and moved == {"ds5", "head6"}


def test_a_number_freezes_the_first_layers_and_others_are_refused():
    model = Network(small_net(3))
    assert freeze(model, ("2",)) == (model.conv1, model.mb3)
    assert [name for name, p in model.named_parameters() if p.requires_grad][0].startswith("ds5")
    for words, said in ((("mb33",), "layers that learn are conv1, mb3"), (("4",), "nothing is left")):
        with pytest.raises(UsageError, match=said):
            freeze(Network(small_net(3)), words)


def test_a_part_of_a_set_is_another_each_epoch_and_the_same_on_all_ranks():
    whole = EpochSampler(90, 4, seed=1, part=20)
    seen = []
    for epoch in range(9):
        whole.set_epoch(epoch)
        found = [index for batch in whole for _, index in batch]
        assert len(found) == 20 and len(whole) == 5
        halves = [EpochSampler(90, 2, seed=1, part=20, rank=rank, world=2) for rank in (0, 1)]
        for half in halves:
            half.set_epoch(epoch)
        pairs = zip(*halves)
        assert [i for a, b in pairs for _, i in (*a, *b)] == found
        seen += found
    assert (np.bincount(seen) == 2).all(), "two passes over all images"
