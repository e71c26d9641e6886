"""compare.py on a small set: both budgets, continued without training again, extended by a network."""
import dataclasses
import json
from pathlib import Path

import pytest

from bench.compare.config import CompareConfig
from bench.compare.run import compare
from data.scenes import make_scenes
from models.records import to_json
from tests.helpers.nets import small_net


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    make_scenes(folder / "set", train=8, val=4, size=160, seed=1)
    net = small_net(10)
    (folder / "first.json").write_text(to_json(net))
    (folder / "other.json").write_text(to_json(tuple(
        dataclasses.replace(row, act="relu") if row.op == "dsconv" else row for row in net)))
    return CompareConfig(nets=(str(folder / "first.json"),), data=str(folder / "set"), imgsz=64, epochs=1,
                         minutes=.001, seeds=2, batch_size=4, workers=0, threads=1, rounds=2, device="cpu",
                         runtimes=("torch",), project=str(folder / "runs"))


def written(config) -> dict[str, float]:
    """Run folder's run.json files and when each was written."""
    [folder] = [path for path in Path(config.project).iterdir() if path.is_dir()]
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("run.json")}


def test_runs_are_done_once_and_a_further_network_adds_its_own(config, capsys):
    config.check()
    compare(config)
    first = written(config)
    assert sorted(first) == [f"{budget}/first-s{seed}/run.json" for budget in ("epochs", "minutes")
                             for seed in (0, 1)]
    out = capsys.readouterr().out
    assert "Equal epochs" in out and "Equal wall-clock" in out and "first has the highest" in out
    more = dataclasses.replace(config, nets=(*config.nets, config.nets[0].replace("first", "other")))
    compare(more)
    both = written(config)
    assert {name: both[name] for name in first} == first and len(both) == 8
    [folder] = Path(config.project).glob("*/comparison.json")
    record = json.loads(folder.read_text())
    assert record["nets"] == ["first", "other"] and record["runs_done"] == 8
    rows = record["budgets"]["epochs"]["rows"]
    assert {row["net"] for row in rows} == {"first", "other"} and all(row["ms_torch"] > 0 for row in rows)
    assert all(len(run["curves"]) == run["epochs"] == 1 for run in record["runs"])


def test_rates_measured_here_plan_the_epochs_of_their_minutes(config, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("bench.compare.rates.TURN", .01)
    file = tmp_path / "rates.json"
    config = dataclasses.replace(config, epochs=None, minutes=None, seeds=1, project=str(tmp_path / "runs"))
    measure = dataclasses.replace(config, measure_rates=str(file))
    measure.check()
    compare(measure)
    kept = json.loads(file.read_text())
    assert kept["rates"]["first"] > 0 and len(kept["turns"]["first"]) == 3 and kept["images"] == 8
    assert (kept["imgsz"], kept["batch_size"], kept["threads"]) == (64, 4, 1) and kept["machine"]
    assert not (tmp_path / "runs").exists() and "images/s  first" in capsys.readouterr().out
    kept["rates"] = {"first": 8 * 2.5 / 60}                # two epochs and a half in a minute
    file.write_text(json.dumps(kept))
    compare(dataclasses.replace(config, minutes=1.0, rates=str(file)))
    [path] = (tmp_path / "runs").glob("*/comparison.json")
    record = json.loads(path.read_text())
    [run] = record["runs"]
    assert run["epochs"] == 2 and run["seconds"] == pytest.approx(48) and run["trained_seconds"] < 40
    assert record["minutes_of"] == kept["machine"] and record["rates"] == kept["rates"]
