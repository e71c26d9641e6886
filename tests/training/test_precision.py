"""--precision auto on a CPU with bf16: the faster of two, measured without a trace, kept for resuming."""
import json
import math
import sys

import pytest
import torch

import train as script
from models.checkpoint import load
from models.records import to_json
from tests.helpers.nets import small_net
from training import precision
from training.prepare import prepare


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    from data.scenes import make_scenes
    return make_scenes(tmp_path_factory.mktemp("digits"), train=12, val=4, size=160, seed=1)


@pytest.fixture
def run(digits, tmp_path, monkeypatch):
    """A function: run name, flags -> the finished run, on a CPU that has bf16 and takes any run for long."""
    (tmp_path / "net.json").write_text(to_json(small_net(10)))
    monkeypatch.setattr("utils.runs.native_bf16", lambda: True)
    monkeypatch.setattr(precision, "SHARE", 3.0)

    def train(name, *words):
        flags = ["train.py", "--data", digits, "--project", tmp_path, "--name", name, "--no-report", *words]
        if "--resume" not in words:
            flags += ["--cfg", tmp_path / "net.json", "--imgsz", 96, "--epochs", 2, "--workers", 0,
                      "--batch-size", 4, "--threads", 1]
        monkeypatch.setattr(sys, "argv", [str(word) for word in flags])
        made = prepare(script.parse())
        try:
            made.train()
        finally:
            made.close()
        return made
    return train


@pytest.mark.parametrize(("margin", "chosen"), [(0.0, "bf16"), (math.inf, "fp32")])
def test_measuring_leaves_no_trace_in_what_is_learned(run, monkeypatch, capsys, margin, chosen):
    monkeypatch.setattr(precision, "MARGIN", margin)
    real, random = precision.speed_of_bf16, []

    def watched(config, session, model, *rest):
        before = torch.get_rng_state(), {key: value.clone() for key, value in model.state_dict().items()}
        ratio = real(config, session, model, *rest)
        random.append(torch.equal(before[0], torch.get_rng_state()))
        assert all(torch.equal(value, before[1][key]) for key, value in model.state_dict().items())
        return ratio
    monkeypatch.setattr(precision, "speed_of_bf16", watched)
    own = run("own")
    told = capsys.readouterr().out
    assert random == [True] and "times as fast as fp32 on this CPU" in told
    assert own.session.precision == chosen and f", {chosen}, 1 threads" in told
    given = run("given", "--precision", chosen)
    assert len(random) == 1, "a given precision is not measured"
    a, b = (load(one.last).training for one in (own, given))
    for part in ("model", "ema"):
        assert all(torch.equal(value, b[part][key]) for key, value in a[part].items())
    assert [row["loss"] for row in own.log.rows] == [row["loss"] for row in given.log.rows]


def test_the_choice_is_kept_for_a_continuation_which_measures_nothing(run, monkeypatch, tmp_path):
    monkeypatch.setattr(precision, "MARGIN", math.inf)
    assert json.loads((run("kept").folder / "args.json").read_text())["precision"] == "fp32"
    monkeypatch.setattr(precision, "speed_of_bf16", None)  # a call would fail
    for words in ((), ("--precision", "auto")):
        assert run("kept", "--resume", tmp_path / "kept", *words).session.precision == "fp32"


def test_processes_follow_the_first_ones_measurement(run, monkeypatch):
    monkeypatch.setattr(precision, "speed_of_bf16", lambda *_: 9.0)
    monkeypatch.setattr("utils.ddp.from_main", lambda value: 0.5 if value == 9.0 else value)
    assert run("second").session.precision == "fp32"


def test_nothing_is_measured_without_bf16_nor_of_a_run_that_is_too_short(run, monkeypatch):
    monkeypatch.setattr(precision, "speed_of_bf16", None)
    monkeypatch.setattr(precision, "SHARE", 0.03)
    assert run("short").session.precision == "bf16"
    monkeypatch.setattr(precision, "SHARE", 3.0)
    monkeypatch.setattr("utils.runs.native_bf16", lambda: False)
    made = run("without")
    assert made.session.precision == "fp32"
    assert json.loads((made.folder / "args.json").read_text())["precision"] == "auto"
