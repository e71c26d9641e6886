"""Progressive pruning as a user runs it: the loop's decisions, and the same answer after any death."""
import json
import os
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from compress.prune import prune
from compress.pruning.config import PruneConfig
from compress.pruning.progressive import Bench, Drop, Log, Measured, accepts, cost, progressive
from compress.pruning.schedule import Unit, prunable
from models.channels import widths
from models.checkpoint import Checkpoint, load, save
from models.count import parameters
from models.network import Network, initialise
from models.records import from_json, to_json
from tests.helpers.kills import KILLS, killed_often
from tests.helpers.nets import small_net

QUICK = ("--imgsz", "96", "--batch-size", "10", "--epochs-per-step", "1", "--workers", "0", "--threads", "1",
         "--precision", "fp32", "--tolerance", "100")


class Book:
    """A bench that trains nothing: the metric of a network is looked up from its widths."""

    def __init__(self, config, targets, net, value):
        self.config, self.targets, self.origin, self.value, self.seen = config, targets, net, value, []

    def choose(self, net, state, units):
        now = widths(net)
        return {u.name: list(range(now[u.name] - u.step)) for u in units if now[u.name] > u.step}

    def tune(self, net, state, keep, name):
        self.seen.append(name)
        net, state = prune(net, state, keep)
        return net, state, self.measure(net, state), 1.0

    def measure(self, net, state):
        return Measured(dict.fromkeys(("map50", "map50_95", "precision", "recall", "f1"),
                                      self.value(widths(net))), cost(net, 96), None, 0.0)

    def drop(self, reference, reached):
        return Drop(100 * (reference.metrics["map50"] - reached.metrics["map50"]), None)


def walk(value, targets=None, **choices):
    """The widths and the log of a pruning of conv1 (8 channels) and mb3 (16) under a made-up accuracy."""
    net = small_net()
    config = PruneConfig(**choices)
    log = Log(config, lambda _: None)
    units = [Unit("conv1", 8, 1), Unit("mb3", 16, 1)]
    weights = initialise(Network(net), 0).state_dict()
    book = Book(config, targets or {}, net, value)
    net, state, reached = progressive(net, weights, book.measure(net, weights), units, book, log)
    assert reached.metrics["map50"] == value(widths(net))
    assert {k: tuple(v.shape) for k, v in Network(net).state_dict().items()} == \
        {k: tuple(v.shape) for k, v in state.items()}
    return widths(net), log


def slope(points_conv1, points_mb3):
    """Accuracy that falls by so many points for each channel lost."""
    return lambda w: 0.9 - (points_conv1 * (8 - w["conv1"]) + points_mb3 * (16 - w["mb3"])) / 100


def test_a_layer_loses_channels_while_its_own_drop_is_within_the_tolerance():
    width, log = walk(slope(0.2, 0.3), reference="layer")
    assert (width["conv1"], width["mb3"]) == (6, 15)       # 0.4 is accepted, 0.6 is not; 0.3 is, 0.6 is not
    assert [r["accepted"] for r in log.rows] == [True, True, False, True, False]
    assert "over the tolerance of 0.5" in log.stopped["mb3"]


def test_against_the_original_network_the_losses_of_all_layers_add_up():
    width, _ = walk(slope(0.2, 0.3), reference="original")
    assert (width["conv1"], width["mb3"]) == (6, 16)


def test_against_the_previous_network_small_steps_continue_until_the_budget_is_spent():
    width, log = walk(slope(0.2, 0.3), reference="previous")
    assert (width["conv1"], width["mb3"]) == (1, 1) and log.stopped["conv1"] == "nothing is left to take"
    width, log = walk(slope(0.2, 0.3), reference="previous", budget=1.1)
    assert (width["conv1"], width["mb3"]) == (3, 16) and "over the budget of 1.1" in log.stopped["mb3"]


def test_the_whole_network_is_cut_in_one_step_and_stops_at_its_target():
    net = small_net()
    wanted = 0.75 * parameters(net)
    width, log = walk(slope(0, 0), {"params": wanted}, scope="network")
    assert log.rows[-1]["parameters"] <= wanted < log.rows[-2]["parameters"]
    assert 8 - width["conv1"] == 16 - width["mb3"] == len(log.rows) and "target is reached" in log.ended


def test_against_the_control_a_step_is_held_to_what_as_much_training_alone_gives():
    """Training alone gains 0.3 points a step: the same widths lose 0.3 more against it each time."""
    class Trained(Book):
        def control(self, steps, original):
            assert steps == 1 + sum(name.startswith("0") for name in self.kept)
            metrics = {key: value + 0.003 * steps for key, value in original.metrics.items()}
            return replace(original, metrics=metrics)

        def tune(self, net, state, keep, name):
            self.kept = [row["layer"] and f"{row['step']:03}" for row in log.rows if row["accepted"]]
            return super().tune(net, state, keep, name)
    net, config = small_net(), PruneConfig(reference="control")
    log, weights = Log(config, lambda _: None), initialise(Network(net), 0).state_dict()
    book = Trained(config, {}, net, slope(0.1, 0))
    child, _, _ = progressive(net, weights, book.measure(net, weights), [Unit("conv1", 8, 1)], book, log)
    assert widths(child)["conv1"] == 7 and [r["drop"] for r in log.rows] == [0.4, 0.8]
    assert "against the unpruned network trained as long" in log.stopped["conv1"]


def test_the_control_is_trained_as_often_as_the_child_and_only_once():
    bench, net = object.__new__(Bench), small_net()
    bench.config, bench.controls, bench.uncut, said = PruneConfig(), [], (net, {"w": 0}), []
    bench.tuner = SimpleNamespace(say=said.append)

    def tune(net, state, keep, name):
        assert not keep
        return net, {"w": state["w"] + 1}, SimpleNamespace(metrics={"map50": state["w"]}, name=name), 1.0
    bench.tune = tune
    assert bench.control(0, "unpruned") == "unpruned"
    assert bench.control(2, None).name == "control-002" and bench.uncut[1] == {"w": 2}
    assert bench.control(1, None).name == "control-001" and len(said) == 2


@pytest.mark.parametrize("decide, accepted", [("mean", False), ("lower", True), ("upper", False)])
def test_whether_a_drop_is_real_decides_where_that_was_asked_for(decide, accepted):
    good, why = accepts(PruneConfig(decide=decide), Drop(0.8, (-0.4, 2.0)), 0.8)
    assert good is accepted and "within the noise" in why
    assert "a real drop" in accepts(PruneConfig(decide=decide), Drop(0.8, (0.1, 1.5)), 0.8)[1]


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    """A small embedded set and a detector that finds some of it."""
    from data.scenes import make_scenes
    folder = tmp_path_factory.mktemp("prune")
    make_scenes(folder / "set", train=40, val=10, size=160, seed=1)
    (folder / "net.json").write_text(to_json(small_net(10)))
    done = run("train.py", "--cfg", str(folder / "net.json"), "--data", str(folder / "set"), "--imgsz", "96",
               "--batch-size", "8", "--epochs", "40", "--workers", "0", "--threads", "1", "--augment", "none",
               "--precision", "fp32", "--lr", "0.01", "--val-interval", "40",
               "--no-report", "--project", str(folder / "runs"), "--name", "parent")
    assert done.returncode == 0, done.stderr
    return folder


def environment():
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def run(*words, launcher=(sys.executable,)):
    return subprocess.run([*launcher, *words], capture_output=True, text=True, env=environment(), timeout=300)


def command(folder, name, *more):
    return ["prune.py", "--weights", str(folder / "runs" / "parent" / "weights" / "best.pt"), "--data",
            str(folder / "set"), *QUICK, "--project", str(folder / "runs"), "--name", name, *more]


def answer(folder, name):
    """The record and the child of a finished run, without what time alone changes."""
    record = json.loads((folder / "runs" / name / "result.json").read_text())
    for row in record["steps"]:
        row.pop("seconds")
    return ({k: record[k] for k in ("layers", "steps", "ended", "epochs", "choices", "against")},
            load(folder / "runs" / name / "weights" / "best.pt"))


CUTS = ("--layers", "conv1", "mb3", "--until", "params=80%", "--control")


@pytest.fixture(scope="module")
def reference(parent):
    """The pruning nobody disturbed."""
    done = run(*command(parent, "whole", *CUTS))
    assert done.returncode == 0, done.stderr
    return answer(parent, "whole"), done.stdout


def test_the_child_is_a_checkpoint_that_every_script_takes(parent, reference):
    (record, child), printed = reference
    assert parameters(child.net) <= 0.8 * parameters(small_net(10))
    assert [row["layer"] for row in record["layers"]] == ["conv1", "mb3"] and "lost" in printed
    assert record["steps"][-1]["parameters"] == parameters(child.net)
    assert all(row["interval"] and row["interval"][0] <= row["drop"] + 1e-6 for row in record["steps"])
    steps, control = sum(row["accepted"] for row in record["steps"]), record["against"]["the control"]
    assert control["epochs"] == steps and f"against the control ({steps} epochs" in printed
    low, high = control["interval"]
    assert low <= control["points"] + 1e-6 <= high + 2e-6
    assert control["points"] == pytest.approx(100 * (control["map50"] - record["steps"][-1]["map50"]))
    best, runs = str(parent / "runs" / "whole" / "weights" / "best.pt"), str(parent / "runs")
    common = ("--data", str(parent / "set"), "--imgsz", "96", "--project", runs)
    measured = run("val.py", "--weights", best, *common, "--out", str(parent / "val.json"), "--name", "v")
    assert measured.returncode == 0, measured.stderr
    assert json.loads((parent / "val.json").read_text())["parameters"] == parameters(child.net)
    tuned = run("train.py", "--weights", best, *common, "--epochs", "1", "--batch-size", "8", "--workers",
                "0", "--name", "again", "--no-report")
    assert tuned.returncode == 0 and "fresh" not in tuned.stdout, tuned.stderr
    twice = run("prune.py", "--weights", best, *common, *QUICK, "--layers", "ds5", "--until", "params=95%",
                "--name", "twice")
    assert twice.returncode == 0, twice.stderr
    image = sorted((parent / "set" / "images").iterdir())[0]
    seen = run("detect.py", "--weights", best, "--source", str(image), "--project", runs, "--name", "d")
    assert seen.returncode == 0, seen.stderr


def test_killed_at_random_moments_and_started_again_it_comes_to_the_same_answer(root, parent, reference):
    saved = (*CUTS, "--save-minutes", "0.002")
    calm = run(*command(parent, "calm", *saved))
    assert calm.returncode == 0, calm.stderr

    def check(name):
        (mine, child), (theirs, other) = answer(parent, name), answer(parent, "calm")
        assert mine == theirs and child.net == other.net
        assert all(torch.equal(child.state[k], other.state[k]) for k in child.state)
        assert not (parent / "runs" / f"{name}2").exists(), "the same command began again"

    killed_often(lambda name: command(parent, name, *saved), parent / "runs", check, KILLS or 4, root,
                 (4.0, 9.0))


def test_two_processes_cut_the_same_channels_as_one(parent):
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    # A low rate: how sums are rounded, which differs by process, grows with every step of training.
    once = ("--layers", "mb3", "--until", "params=99%", "--optimizer", "sgd", "--lr", "0.001",
            "--teacher", "none")
    for name, by in (("single", (sys.executable,)), ("pair", launcher)):
        done = run(*command(parent, name, *once), launcher=by)
        assert done.returncode == 0, done.stderr
    (one, a), (two, b) = answer(parent, "single"), answer(parent, "pair")
    assert a.net == b.net and len(one["steps"]) == len(two["steps"]) == 1
    for key in a.state:
        torch.testing.assert_close(a.state[key], b.state[key], rtol=1e-3, atol=1e-4)


def test_all_layers_in_rounded_steps_of_two_seeds_tell_what_the_mean_hides(parent):
    """Widths of 8 and 16 are multiples of 8 already: the row counts all layers, of which one was cut."""
    done = run(*command(parent, "wide", "--scope", "network", "--round-to", "8", "--sixteenths", "4",
                        "--seeds", "2", "--tolerance", "0", "--order", "back", "--until", "params=1%"))
    assert done.returncode == 0, done.stderr
    (record, child), row = answer(parent, "wide"), answer(parent, "wide")[0]["steps"][0]
    assert (row["layer"], row["width"]) == ("all layers", 48) and row["sixteenths"] == round(16 * 8 / 56, 2)
    assert row["map50"] == pytest.approx(sum(row["seeds"]) / 2) and len(row["seeds"]) == 2
    assert "the target was NOT reached: params" in done.stdout and "the mean of 2 seeds" in done.stdout
    whole = json.loads((parent / "runs" / "wide" / "result.json").read_text())
    assert from_json(whole["net"]) == child.net and record["choices"]["order"] == "back"


def test_steps_by_measured_milliseconds_name_their_runtime_and_read_their_table_again(parent, tmp_path):
    words = ("--scope", "network", "--per", "ms", "--runtime", "torch", "--sixteenths", "2", "--until",
             "params=90%", "--costs", str(tmp_path))
    done = run(*command(parent, "costs", *words))
    assert done.returncode == 0, done.stderr
    record, child = answer(parent, "costs")
    assert record["choices"]["per"] == "ms" and "what channels cost: torch" in done.stdout
    assert parameters(child.net) < parameters(small_net(10)) and len(list(tmp_path.glob("costs-*"))) == 1
    again = run(*command(parent, "costs-again", *words))
    assert again.returncode == 0 and "what channels cost" not in again.stdout
    assert answer(parent, "costs-again")[1].net == child.net


def test_a_scan_measures_every_layer_and_orders_them(parent):
    done = run(*command(parent, "scan", "--scan", "--importance", "taylor", "--layers", "conv1", "mb3"))
    assert done.returncode == 0, done.stderr
    found = json.loads((parent / "runs" / "scan" / "scan.json").read_text())
    assert {k.split()[0] for k in found} == {"conv1", "mb3"} and "mb3 8" in found
    assert (parent / "runs" / "scan" / "scan.png").stat().st_size > 5000


@pytest.mark.parametrize("words, code, says", [
    (("--layers", "conv9"), 2, "no such unit"), (("--layers", "head6"), 2, "anchors and classes"),
    (("--until", "latency=ms"), 2, "needs MEASURE=VALUE"), (("--until", "params=1G"), 2, "nothing to do"),
    (("--until", "size=3"), 2, "needs MEASURE=VALUE"), (("--until", "params=-1"), 2, "needs MEASURE=VALUE"),
    (("--tolerance", "-1"), 2, "needs 0 or more"),
    (("--decide", "lower", "--metric", "map50_95"), 2, "interval"),
    (("--per", "ms"), 2, "needs --scope network"),
    (("--order", "sensitivity", "--scope", "network"), 2, "cuts all at once")])
def test_bad_choices_are_refused_by_name(parent, words, code, says):
    done = run(*command(parent, "bad", *words))
    assert done.returncode == code and says in done.stderr, done.stderr
    assert not (parent / "runs" / "bad").exists(), "a start that fails leaves the next run its name"


def test_a_parent_that_finds_nothing_is_refused(parent):
    net = small_net(10)
    names = load(parent / "runs" / "parent" / "weights" / "best.pt").names
    blind = parent / "blind.pt"
    save(blind, Checkpoint(net, initialise(Network(net), 0).state_dict(), names, 96))
    words = command(parent, "blind")
    words[words.index("--weights") + 1] = str(blind)
    done = run(*words)
    assert done.returncode == 4 and "train it first" in done.stderr
    assert not (parent / "runs" / "blind").exists()


def test_every_unit_of_the_small_network_is_named():
    units, reasons = prunable(small_net(10))
    assert [u.name for u in units] == ["conv1", "mb3", "ds5"] and "head6" in reasons
