"""benchmark.py with planted workers: rounds, reports, and what becomes of a case that fails."""
import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

import benchmark
from bench import run
from bench.cases import STAGES
from bench.run import Worker, WorkerFailed
from models.checkpoint import Checkpoint, save
from tests.bench.bench_fake import FAKE, empty_set
from tests.helpers.nets import randomised, small_net


def test_every_case_is_measured_in_every_round_and_held_against_the_first(bench, tmp_path: Path):
    code, out, err, report = bench(["net-ms13.pt", "other-ms10.pt"], "--rounds", 3, "--iterations", 160,
                                   "--threads", 1, 2, "--imgsz", 64)
    assert code == 0, err
    rows = report["cases"]
    assert [(r["name"], r["threads"], r["status"]) for r in rows] == [
        ("net-ms13", 1, "measured"), ("other-ms10", 1, "measured"),
        ("net-ms13", 2, "measured"), ("other-ms10", 2, "measured")]
    for first, other in (rows[:2], rows[2:]):
        assert first["against"] == {} and other["against"]["label"] == first["label"]
        for scope, ratio in (("network", 1.3), ("end-to-end", 16.75 / 13.75)):
            found = other["against"][scope]
            assert found["ratio"] == pytest.approx(ratio, rel=0.02) and found["verdict"] == "faster"
            assert other["scopes"][scope]["n"] == 3 * 8 * 20 and len(other["loads"]) == 3
        assert other["variables"]["OMP_NUM_THREADS"] == str(other["threads"])
    assert rows[0]["stages"]["network"]["p50"] == pytest.approx(13, rel=0.02)
    assert list(rows[0]["stages"]) == list(STAGES) and rows[0]["stages"]["draw"]["p50"] == 0.25
    assert rows[0]["scopes"]["end-to-end"]["p50"] == pytest.approx(16.75, rel=0.02)
    assert rows[0]["flops"] == 2 * rows[0]["macs"] and rows[0]["artifact"]["bytes"] == 5
    assert report["tainted"] == [] and "TAINTED" not in out
    assert out.count("round 3/3") == 4 and "1.30x" in out
    folder = tmp_path / "out" / "exp"
    assert {p.name for p in folder.iterdir()} >= {"args.json", "network.png", "end-to-end.png"}
    page = (folder / "benchmark.md").read_text()
    table = [line for line in page.split("## ")[1].splitlines() if line.startswith("|")]
    assert len({len(line) for line in table}) == 1


def test_an_address_is_refused_before_a_folder_is_made_and_its_password_is_nowhere(bench, tmp_path: Path):
    code, out, err, _ = bench(["net.pt"], "--source", "rtsp://me:SECRET@cam/1")
    assert code == 3 and "rtsp://***@cam/1" in err and "SECRET" not in out + err
    assert not (tmp_path / "out").exists()


def test_no_speed_is_printed_without_what_it_depends_on(bench):
    _, out, _, _ = bench(["net.pt", "small.pt"], "--rounds", 1, "--iterations", 8, "--batch-sizes", 2, 4)
    tables = [block.splitlines() for block in out.split("\n\n") if "FPS" in block]
    assert len(tables) == 2
    for caption, _, *rows in tables:
        assert "cpu" in caption and "1 thread" in caption and "416 px" in caption
        assert caption.startswith(("network alone", "end to end"))
        assert all("batch" in row and "torch fp32" in row for row in rows)


def test_a_worker_that_dies_fails_its_case_and_the_others_are_reported(bench):
    code, out, err, report = bench(["net.pt", "net-killed.pt"], "--rounds", 2, "--iterations", 8)
    good, bad = report["cases"]
    assert code == 5 and "1 of 2 cases failed; the others are reported" in err
    assert good["status"] == "measured" and len(good["scopes"]["network"]["rounds"]) == 2
    assert bad["status"] == "failed" and bad["scopes"] == {}
    assert bad["reason"] == "the process was killed by SIGKILL: the last thing it said"
    assert bad["reason"] in out


def test_what_cannot_be_run_is_skipped_with_the_reason_or_ends_with_its_code(bench):
    code, out, err, report = bench(["net.pt", "net-refused.pt"], "--rounds", 1, "--iterations", 8)
    assert code == 0 and report["cases"][1]["status"] == "skipped"
    assert "skipped: onnxruntime is not installed: pip install onnxruntime" in out
    code, _, err, _ = bench(["net-refused.pt"], "--rounds", 1, "--iterations", 8)
    assert code == 5 and "pip install onnxruntime" in err


def test_a_broken_model_ends_it_at_once(bench):
    code, _, err, report = bench(["net.pt", "net-broken.pt"], "--rounds", 1, "--iterations", 8)
    assert code == 4 and "net-broken" in err and "the file is torn" in err and report == {}
    assert bench(["net.pt"], "--weights", "nowhere.pt")[0] == 4


def test_what_runs_in_another_precision_is_called_by_it_and_not_measured_twice(bench):
    for asked, left in (("fp32", "int8"), ("fp32", "bf16")):
        report = bench(["net-bf16.pt"], "--rounds", 1, "--iterations", 8, "--precisions", asked, left)[3]
        good, = (row for row in report["cases"] if row["status"] == "measured")
        bad, = (row for row in report["cases"] if row["status"] == "skipped")
        assert good["precision"] == "bf16" and good["label"].startswith("net-bf16 torch bf16")
        assert "runs in bf16 and would be measured twice" in bad["reason"]


def test_a_short_run_and_one_that_was_not_steady_are_tainted(bench):
    _, out, _, report = bench(["net-unsteady.pt"], "--rounds", 1, "--iterations", 8, "--scope", "network")
    assert ["not steady after 7 rounds" in report["tainted"][0], len(report["tainted"])] == [True, 2]
    assert "fewer than 3 processes" in report["tainted"][1] and "TAINTED: 2 reasons" in out


def test_accuracy_is_measured_once_for_each_artifact_and_precision(bench, monkeypatch, tmp_path: Path):
    asked, ask = [], Worker.ask
    monkeypatch.setattr(Worker, "ask", lambda self, message, *rest: asked.append(message["do"])
                        or ask(self, message, *rest))
    code, out, err, report = bench(["net.pt", "small-ms5.pt"], "--rounds", 1, "--iterations", 8,
                                   "--threads", 1, 2, "--data", empty_set(tmp_path / "set"))
    assert code == 0, err
    assert asked.count("accuracy") == 2
    assert [row["accuracy"]["map50"] for row in report["cases"]] == [0.5] * 4 and "0.5000" in out


def test_what_the_workers_compute_is_not_taken_for_other_programs(bench, monkeypatch):
    seen = []
    monkeypatch.setattr(run, "machine_taints", lambda *given: seen.append(given[-1]) or ["planted"])
    _, _, _, report = bench(["net.pt", "net-killed.pt"], "--rounds", 2, "--iterations", 8)
    assert seen[0] == pytest.approx(8 * 2 * 0.5 + 1 * 0.5, abs=1.5), "slices, without the seconds of loading"
    assert seen[1] == pytest.approx(8 * 2 * 0.5, abs=1.5)
    assert [reason for reason in report["tainted"] if "planted" in reason] == ["round 1: planted",
                                                                              "round 2: planted"]


def test_memory_that_runs_short_ends_it_with_5_and_what_was_measured_is_there(bench, monkeypatch):
    left = [4e9, 4e9, 1e8]
    monkeypatch.setattr(run, "available_ram", lambda: left.pop(0))
    code, _, err, report = bench(["net.pt", "other.pt"], "--rounds", 2, "--iterations", 8)
    assert code == 5 and "0.1 GB of memory are left" in err
    assert [len(row["scopes"]["network"]["rounds"]) for row in report["cases"]] == [1, 1]


def test_checkpoints_are_exported_for_runtimes_that_need_another_file(bench, tmp_path: Path):
    model = randomised(small_net())
    save(tmp_path / "tiny.pt", Checkpoint(model.net, model.state_dict(), ("a", "b", "c"), 64))
    short = ("--rounds", 1, "--iterations", 8, "--imgsz", 64, "--weights", tmp_path / "tiny.pt")
    code, _, err, report = bench(["net.pt"], *short, "--runtimes", "torch", "torchscript")
    assert code == 0, err
    files = [row["artifact"] for row in report["cases"]]
    assert [file["file"] for file in files] == ["tiny.pt", "tiny.torchscript"]
    assert files[0]["sha256"] != files[1]["sha256"]
    assert (tmp_path / "out" / "exp" / "artifacts" / "64" / "tiny.torchscript").is_file()
    code, _, err, report = bench(["net.pt"], *short, "--runtimes", "ncnn", "--precisions", "int8")
    assert code == 2 and "nothing is exported for ncnn in int8" in err
    assert bench(["torn.pt"], "--runtimes", "torchscript")[0] == 4, "five bytes are no checkpoint"


def test_a_signal_ends_it_with_130_and_what_was_measured_is_there(bench, monkeypatch):
    add = run.Taken.add

    def interrupted(self: run.Taken, scope: str, answer: dict, number: int) -> None:
        add(self, scope, answer, number)
        if len(self.rounds["network"][0]) == 4:
            os.kill(os.getpid(), signal.SIGINT)
    monkeypatch.setattr(run.Taken, "add", interrupted)
    code, out, err, report = bench(["net.pt", "other.pt"], "--rounds", 2, "--iterations", 8)
    assert code == 130 and "stopped by a signal; what was measured is saved" in err
    assert sorted(row["scopes"]["network"]["n"] for row in report["cases"]) == [60, 80]
    assert any("stopped by a signal" in reason for reason in report["tainted"])


def test_artifacts_are_also_held_against_each_other_in_one_runtime(bench):
    _, out, _, report = bench(["net-ms13.pt", "other-ms10.pt"], "--rounds", 1, "--iterations", 40,
                              "--runtimes", "torch", "torch-plain", "--scope", "network")
    labels = [row["label"] for row in report["cases"]]
    assert [row["against"].get("label") for row in report["cases"]] == [None, *labels[:1] * 3]
    assert [row["beside"].get("label") for row in report["cases"]] == [None, None, labels[0], labels[1]]
    assert report["cases"][3]["beside"]["network"]["ratio"] == pytest.approx(1.3, rel=0.03)
    assert "beside net-ms13 in the same" in out


def test_the_record_to_commit_holds_figures_by_name_and_no_calls(bench, monkeypatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    _, _, _, report = bench(["net.pt"], "--rounds", 1, "--iterations", 8, "--save-json", "mine")
    kept = json.loads((tmp_path / "results" / "mine.json").read_text())
    assert kept["cases"][0].pop("samples") == {} and report["cases"][0].pop("samples")
    found = kept.pop("figures")["net_torch_fp32_cpu_1_thread_batch_1_416_px"]["network"]
    assert found["p50"] == report["cases"][0]["scopes"]["network"]["p50"] and kept == report


@pytest.mark.parametrize(("flags", "said"), [
    ([], "give either --weights to measure or --compare"), (["--threads", -1], "--threads -1"),
    (["--imgsz", 417], "--imgsz 417"), (["--rounds", 0], "--rounds 0"), (["--seconds", 0], "--seconds 0"),
    (["--batch-sizes", 1, 1], "given twice"), (["--batch-sizes", 0], "--batch-sizes 0"),
    (["--runtimes", "tvm"], "invalid choice"), (["--select", "x"], "--select"),
    (["--full", "--iterations", 5], "--full"), (["--compare", "a", "b"], "give either"),
    (["--runtimes", "onnx", "--precisions", "int8"], "give --data")])
def test_bad_flags_end_with_2_before_anything_is_loaded(monkeypatch, capsys, flags: list, said: str):
    weights = ["--weights", "a.pt"] if flags else []
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *weights, *map(str, flags)])
    with pytest.raises(SystemExit) as end:
        benchmark.parse()
    assert end.value.code == 2 and said in capsys.readouterr().err


def test_full_asks_for_1024_calls_and_60_seconds_over_all_rounds(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "--weights", "a.pt", "--full", "--rounds", "4"])
    made = run.Bench(benchmark.parse()[0], {"scopes": ["network"]}, [], {}, Path(), None)
    assert made.turns * made.slice == pytest.approx(15) and 4 * made.turns * made.calls >= 1024


def test_an_answer_that_does_not_come_is_a_failure_and_the_process_ends(tmp_path: Path):
    worker = Worker([sys.executable, str(FAKE)], {"OMP_NUM_THREADS": "1"}, tmp_path / "log")
    spec = {"do": "load", "name": "net-silent", "runtime": "torch", "precision": "fp32", "device": "cpu"}
    slice_ = {"do": "slice", "scope": "network", "calls": 1}
    assert worker.ask(spec, 20, lambda: None)["first_ms"] == 30
    assert worker.ask(slice_, 20, lambda: None)["times"]
    began = time.monotonic()
    with pytest.raises(WorkerFailed, match="no answer within 0 s"):
        worker.ask(slice_, 0.3, lambda: None)
    assert time.monotonic() - began < 5 and worker._process.poll() is not None
