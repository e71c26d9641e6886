"""search.py as a user runs it: shared by workers, killed, in one shot; its answer and its refusals."""
import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import search
import train
from compress.kernels import crop_kernels
from compress.search.config import SearchConfig
from compress.search.rows import rank_agreement
from models.checkpoint import load
from models.count import loose_macs, macs, parameters
from models.network import Network, initialise
from models.records import from_json, to_json
from models.zoo.tiny import substitute
from tests.helpers.kills import KILLS, killed_often
from tests.helpers.nets import small_net
from tests.helpers.scripts import call

SEARCHED = ("mb3", "ds5")
LABELS = ["33", "35", "53", "55"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A small embedded set and a network that has learned it, so that accuracies differ."""
    from data.scenes import make_scenes
    folder = tmp_path_factory.mktemp("tiny")
    make_scenes(folder / "set", train=20, val=6, size=160, seed=1)
    (folder / "net.json").write_text(to_json(small_net(10)))
    with pytest.MonkeyPatch.context() as patch:
        code = call(patch, train.main, [
            "train.py", "--cfg", folder / "net.json", *common(folder), "--epochs", 40, "--lr", 0.01,
            "--augment", "none", "--project", folder / "start", "--val-interval", 40, "--no-report"])
    assert code == 0
    return folder


def common(folder: Path) -> list:
    return ["--data", folder / "set", "--imgsz", 96, "--batch-size", 4, "--workers", 0, "--threads", 1]


def words(folder: Path, project: Path, *more) -> list[str]:
    return list(map(str, ["search.py", "--weights", folder / "start" / "exp" / "weights" / "best.pt",
                          *common(folder), "--epochs", 2, "--close-mosaic", 0, "--warmup-epochs", 0.2,
                          "--layers", *SEARCHED, "--project", project, "--save-minutes", 0.002, *more]))


def start(root: Path, command: list[str]) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, *command], cwd=root, stdout=subprocess.PIPE, text=True,
                            stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1"})


def stop_at_random(root: Path, command: list[str], seen: Path, number: int) -> int:
    """The exit code of the command, sent the signal some time after the file or folder `seen` is there."""
    process = start(root, command)
    while not seen.exists() and process.poll() is None:
        time.sleep(0.01)
    time.sleep(random.uniform(0, 0.4))             # two epochs take a tenth of a second on an idle machine
    process.send_signal(number)
    said = process.communicate()[0]
    assert process.returncode != 143 or "the same command" in said and "--resume" not in said, said
    return process.returncode


def record(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


def essence(found: dict) -> list:
    """What of a search's trials must not depend on how it was run."""
    return [{k: v for k, v in row.items() if k not in ("seconds", "latency_ms")} for row in found["trials"]]


@pytest.fixture(scope="module")
def shared_search(root, tiny):
    """A search that two workers, started together, have done: its folder and what the other one printed."""
    command = words(tiny, tiny / "runs", "--name", "both", "--seeds", 2, "--repeat-best", 1)
    other = start(root, command)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        code = call(patch, search.main, command)
    said, _ = other.communicate(timeout=200)
    assert (code, other.returncode) == (0, 0), said
    return tiny / "runs" / "both", said


def test_two_workers_share_a_search_and_train_each_point_once(shared_search, tiny):
    folder, said = shared_search
    found = record(folder)
    best = found["trials"][found["best"]]
    assert [row["label"] for row in found["trials"]] == [*LABELS, best["label"]], "the best again, seed 1"
    assert [row["seed"] for row in found["trials"]] == [0, 0, 0, 0, 1]
    assert len({row["map50"] for row in found["trials"]}) > 1 and best["map50"] > 0.01
    names = {f"k{label}-s0" for label in LABELS} | {f"k{best['label']}-s1"}
    assert {path.name for path in (folder / "trials").iterdir()} == names
    for path in (folder / "trials").iterdir():
        assert [json.loads(line)["epoch"] for line in (path / "log.jsonl").read_text().splitlines()] == [0, 1]
    assert sum(f"{label}  seed 0" in said for label in LABELS) < 4, "one worker did everything alone"
    assert not list((tiny / "runs").glob("both2")), "both found the same run folder"


def test_the_answer_is_written_as_network_weights_tables_and_plot(shared_search, tiny):
    folder, said = shared_search
    found = record(folder)
    best = found["trials"][found["best"]]
    net = from_json((folder / "best" / "net.json").read_text())
    checkpoint = load(folder / "best" / "best.pt")
    assert checkpoint.net == net == substitute(small_net(10), kernels=best["kernels"])
    assert (parameters(net), macs(net, 96), loose_macs(net, 96)) == (
        best["parameters"], best["macs"], best["loose_macs"])
    trained = load(folder / "trials" / f"k{best['label']}-s{best['seed']}" / "weights" / "best.pt")
    assert all(torch.equal(trained.state[key], value) for key, value in checkpoint.state.items())
    assert json.loads((folder / "trials.json").read_text()) == found["trials"]
    rows = list(csv.DictReader((folder / "trials.csv").read_text().splitlines()))
    assert [(r["label"], float(r["map50"]), int(r["mb3.kernel"]), r["ds5.op"]) for r in rows] == [
        (t["label"], t["map50"], t["kernels"]["mb3"], "dsconv") for t in found["trials"]]
    assert (folder / "figure4.png").read_bytes()[:4] == b"\x89PNG"
    assert (found["kind"], found["method"], found["cost_epochs"]) == ("search", "grid", 10)
    assert found["repeats"][0]["seeds"] == [0, 1] and f"best: {best['label']}" in said


def test_a_search_killed_at_any_moment_continues_to_the_same_answer(root, tiny, shared_search, monkeypatch):
    command = words(tiny, tiny / "runs", "--name", "killed", "--seeds", 2, "--repeat-best", 1)
    folder = tiny / "runs" / "killed"
    for seen, number, code in (("k33-s0", signal.SIGTERM, 143), ("k53-s0", signal.SIGKILL, -9)):
        assert stop_at_random(root, command, folder / "trials" / seen, number) in (code, 0)
    monkeypatch.chdir(root)
    assert call(monkeypatch, search.main, command) == 0
    compare(folder, shared_search[0])


@pytest.mark.skipif(not KILLS, reason="takes 5 s a kill; KILLS=20 in the environment asks for it")
def test_a_search_killed_often_comes_to_the_same_answer(root, tiny, shared_search):
    folder = tiny / "often"
    killed_often(lambda name: words(tiny, folder, "--name", name, "--seeds", 2, "--repeat-best", 1), folder,
                 lambda name: compare(folder / name, shared_search[0]), KILLS, root, (3.0, 7.0))


def test_a_search_takes_the_trials_of_its_record(root, tiny, shared_search, monkeypatch, capsys):
    earlier = record(shared_search[0])
    command = words(tiny, tiny / "runs", "--name", "known", "--seeds", 2, "--repeat-best", 2, "--known",
                    shared_search[0] / "result.json")
    monkeypatch.chdir(root)
    assert call(monkeypatch, search.main, command) == 0
    found, kept = record(tiny / "runs" / "known"), {(r["label"], r["seed"]): r for r in earlier["trials"]}
    trained = {(path.name[1:3], 1) for path in (tiny / "runs" / "known" / "trials").iterdir()}
    again = {(r["label"], r["seed"]): r for r in found["trials"]}
    assert len(trained) == 1 and again.keys() == kept.keys() | trained, "one choice had no second seed yet"
    assert all(again[key] == row for key, row in kept.items())
    assert call(monkeypatch, search.main, [*command, "--epochs", "3"]) == 2
    assert "epochs 2 where now it is 3" in capsys.readouterr().err


def compare(folder: Path, other: Path) -> None:
    assert essence(record(folder)) == essence(record(other))
    assert not list(folder.parent.glob(f"{folder.name}2")), "the same command began again"


def test_one_shot_ranks_all_choices_from_one_training(root, tiny, shared_search, monkeypatch):
    command = words(tiny, tiny / "runs", "--name", "shot", "--one-shot", "--objectives", "map50", "params",
                    "--against", shared_search[0] / "result.json")
    folder = tiny / "runs" / "shot"
    stop_at_random(root, command, folder / "supernet" / "weights" / "last.pt", signal.SIGKILL)
    monkeypatch.chdir(root)
    assert call(monkeypatch, search.main, command) == 0
    found = record(folder)
    assert [row["label"] for row in found["trials"]] == LABELS and found["method"] == "one-shot"
    assert (found["networks_a_step"], found["cost_epochs"], found["rank"]["n"]) == (4, 8, 4)
    assert found["rank"]["against_cost_epochs"] == 10
    expected = rank_agreement(found["trials"], record(shared_search[0])["trials"])
    assert {key: found["rank"][key] for key in expected} == expected
    best = found["trials"][found["best"]]
    supernet, answer = load(folder / "supernet" / "weights" / "best.pt"), load(folder / "best" / "best.pt")
    net, state = crop_kernels(supernet.net, supernet.state, best["kernels"])
    assert answer.net == net and parameters(net) == best["parameters"]
    for key, value in answer.state.items():
        same = torch.equal(value, state[key])
        assert same or "running_" in key, f"{key}: only the statistics are the choice's own"
    whole, moved = best["label"] == "55", "mb3.depthwise.bn.running_mean"
    assert whole or not torch.equal(answer.state[moved], state[moved])
    kept = (folder / "candidates" / "k33.json").read_text()
    (folder / "result.json").unlink()
    (folder / "candidates" / "k35.json").unlink()
    assert call(monkeypatch, search.main, command) == 0
    assert essence(record(folder)) == essence(found)
    assert (folder / "candidates" / "k33.json").read_text() == kept, "measured choices are not measured again"


BAD = [("--kernels 3", "one kernel"), ("--kernels 3 --ops conv", "nothing to search"),
       ("--kernels 3 4", "invalid choice: 4"), ("--kernels 3 3", "--kernels: 3 is given twice"),
       ("--layers mb3 mb3", "mb3 is given twice"), ("--sampler tpe", "--trials is missing"),
       ("--kernels 1 3 5 7", "there are 1,024 choices"), ("--trials 5", "--trials 5 needs --sampler tpe"),
       ("--sampler grid --trials 5", "the grid tries all 32 choices"),
       ("--trials 0 --sampler tpe", "--trials 0: needs 1 or more"),
       ("--objectives params", "needs map50 or map50_95"), ("--seeds 0", "--seeds 0: needs 1 or more"),
       ("--repeat-best 0", "--repeat-best 0"), ("--one-shot --ops conv mbconv", "several --ops and --one"),
       ("--one-shot --kernels 5", "a single kernel and --one-shot"), ("--epochs 0", "--epochs 0"),
       ("--one-shot --seeds 2", "--seeds and --one-shot"), ("--lr 0", "--lr 0"),
       ("--one-shot --sampler grid", "--sampler and --one-shot"), ("--one-shot --random -1", "--random -1"),
       ("--one-shot --study a", "--storage and --study"), ("--against no.json", "no.json: no such file"),
       ("--known no.json", "no.json: no such file"), ("--separate", "--separate needs --weights")]


@pytest.mark.parametrize(("flags", "said"), BAD, ids=[flags for flags, _ in BAD])
def test_flags_that_cannot_work_are_refused(monkeypatch, capsys, flags, said):
    words = ["search.py", "--cfg", "micro-yolo", "--data", "scenes", *flags.split()]
    assert call(monkeypatch, search.main, words) == 2
    assert said in capsys.readouterr().err


def test_a_search_needs_data_and_a_network(monkeypatch, capsys):
    assert call(monkeypatch, search.main, ["search.py", "--cfg", "micro-yolo"]) == 2
    assert call(monkeypatch, search.main, ["search.py", "--data", "scenes"]) == 2
    said = capsys.readouterr().err
    assert "--data is missing" in said and "--cfg or --weights is missing" in said


def test_a_record_that_is_none_and_a_layer_that_is_not_there_are_named(tiny, monkeypatch, capsys, tmp_path):
    (tmp_path / "a.json").write_text('{"kind": "prune"}')
    command = words(tiny, tmp_path / "runs", "--against", tmp_path / "a.json")
    assert call(monkeypatch, search.main, command) == 3
    assert "is no record of a search" in capsys.readouterr().err
    assert call(monkeypatch, search.main, [*words(tiny, tmp_path / "runs"), "--layers", "mb3", "pool4"]) == 4
    assert "cannot substitute pool4" in capsys.readouterr().err
    assert not list((tmp_path / "runs").glob("exp*")), "a start that fails leaves the next run its name"


def test_a_trials_latency_is_that_of_the_validation_images_on_the_threads_asked_for(monkeypatch):
    from compress.search import search as space
    images, seen = [np.full((64, 64, 3), value, np.uint8) for value in (7, 9)], []
    two = type("Two", (), {"plain": lambda self, at: images[at], "__len__": lambda self: 2})()
    tuner = SimpleNamespace(world=SimpleNamespace(main=True), device=torch.device("cpu"), share=lambda v: v,
                            val_set=two)
    monkeypatch.setattr(space, "TIMED", 1)
    monkeypatch.setattr("deploy.runtimes.runtime.Runtime.predict", lambda self, images: seen.append(
        (int(images.min()), torch.get_num_threads())))
    net, config = small_net(), SearchConfig(imgsz=64, objectives=("latency",), latency_threads=3)
    row = space.Search(tuner, config, net, None).row(
        space.Choice("33", {}, {}), net, initialise(Network(net), 0).state_dict(), {}, 0, 1, 1.0)
    assert row["latency_ms"] >= 0 and set(seen) == {(7, 3), (9, 3)}
