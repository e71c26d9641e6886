"""How benchmark.py ends where something is at fault, and that what was measured before is reported."""
from pathlib import Path

import pytest

from deploy import parity
from models.checkpoint import Checkpoint, save
from tests.bench.bench_fake import empty_set
from tests.helpers.nets import randomised, small_net

SHORT = ("--rounds", 1, "--iterations", 8)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A checkpoint that can be exported."""
    model = randomised(small_net())
    save(tmp_path / "tiny.pt", Checkpoint(model.net, model.state_dict(), ("a", "b", "c"), 64))
    return tmp_path / "tiny.pt"


def test_an_image_that_cannot_be_read_is_the_datas_fault(bench):
    code, _, err, report = bench(["net-unread.pt"], *SHORT)
    assert code == 3 and "0.jpg is torn" in err and report == {}


def test_a_data_set_that_is_not_there_is_refused_before_anything_is_measured(bench, tmp_path: Path):
    code, out, err, _ = bench(["net.pt"], *SHORT, "--data", "nowhere")
    assert code == 3 and "--data nowhere" in err and not (tmp_path / "out").exists()


def test_an_accuracy_that_cannot_be_measured_is_no_success(bench, tmp_path: Path):
    code, out, err, report = bench(["net.pt", "net-blind.pt"], *SHORT, "--data", empty_set(tmp_path / "set"))
    assert code == 3 and "the accuracy of 1 of 2 cases" in err and "1.jpg of the set is torn" in out
    assert [row["accuracy"] for row in report["cases"]] == [
        {"map50": 0.5, "map50_95": 0.25, "pictures": 4}, {"fault": "1.jpg of the set is torn"}]


def test_a_model_that_breaks_in_a_later_group_leaves_what_was_measured(bench):
    code, out, err, report = bench(["net-broken96.pt", "other.pt"], *SHORT, "--imgsz", 64, 96)
    assert code == 4 and "the file is torn" in err
    assert [row["status"] for row in report["cases"]] == ["measured", "measured", "failed", "waiting"]
    assert "the file is torn" in report["cases"][2]["reason"] and "the file is torn" in out
    assert any("the file is torn" in reason for reason in report["tainted"])


def test_an_export_that_is_another_network_is_the_models_fault(bench, tiny: Path, monkeypatch):
    monkeypatch.setattr(parity, "faults", lambda *_: ["planted"])
    words = ("--imgsz", 64, "--runtimes", "torchscript")
    code, _, err, report = bench(["net.pt"], *SHORT, *words, "--weights", tiny)
    assert code == 4 and "nothing could be measured: the export computes something else: planted" in err
    code, _, err, report = bench(["net.pt"], *SHORT, *words, "torch", "--weights", tiny)
    assert code == 4 and "1 of 2 cases failed; the others are reported" in err
    assert [row["status"] for row in report["cases"]] == ["failed", "measured"]


@pytest.mark.parametrize("given", [True, False])
def test_an_export_passes_the_gate_with_ap50_where_a_set_is_given(bench, monkeypatch, tmp_path: Path, given):
    from data.scenes import NAMES, make_scenes
    model, asked = randomised(small_net(len(NAMES))), []
    save(tmp_path / "tiny.pt", Checkpoint(model.net, model.state_dict(), NAMES, 64))
    data = make_scenes(tmp_path / "set", train=2, val=2, size=160, seed=2)
    monkeypatch.setattr(parity, "faults", lambda found, *_: asked.append(found) or [])
    code, _, err, _ = bench(["net.pt"], *SHORT, "--imgsz", 64, "--runtimes", "torchscript", "--weights",
                            tmp_path / "tiny.pt", *(("--data", data) if given else ()))
    assert code == 0 and len(asked) == 1, err
    assert ({"map50", "map50_torch", "map50_diff"} <= set(asked[0])) == given
