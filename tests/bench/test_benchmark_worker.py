"""A benchmark's worker on a tiny network, alone and under benchmark.py as a user runs it."""
import json
import subprocess
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from bench import plan, worker
from bench.cases import STAGES, Config
from bench.profile import latency, nodes
from deploy import export
from deploy.runtimes.runtime import load_runtime
from models.checkpoint import Checkpoint, save
from models.count import parameters
from tests.bench.bench_fake import noise
from tests.helpers.detect_cases import film
from tests.helpers.nets import randomised, small_net

PEAK = {"macs_per_s": 1e11, "bytes_per_s": 1e10, "balance": 10.0}
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Three images of noise in three sizes."""
    return noise(tmp_path / "pictures")


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A checkpoint of a tiny network."""
    model = randomised(small_net())
    save(tmp_path / "net.pt", Checkpoint(model.net, model.state_dict(), ("a", "b", "c"), 64))
    return tmp_path / "net.pt"


def run_for_real(pictures: Path, *flags: object) -> subprocess.CompletedProcess:
    """benchmark.py in a process of its own, short."""
    command = [sys.executable, "benchmark.py", "--imgsz", 64, "--iterations", 10, "--source", pictures,
               "--device", "cpu", *flags]
    return subprocess.run([str(word) for word in command], cwd=ROOT, capture_output=True, text=True,
                          check=False, timeout=300)


def test_a_tiny_network_from_end_to_end(tmp_path: Path, pictures: Path, weights: Path):
    done = run_for_real(pictures, "--weights", weights, "--runtimes", "torch", "torch-plain",
                        "--rounds", 1, "--batch-sizes", 2, "--project", tmp_path, "--name", "run")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "run" / "benchmark.json").read_text())
    fast, plain = report["cases"]
    for row in (fast, plain):
        assert row["status"] == "measured" and row["parameters"] == parameters(small_net())
        assert row["scopes"]["network"]["p50"] > 0 and row["peak_rss_bytes"] > 10 ** 8
        parts = [row["stages"][stage]["mean"] for stage in STAGES]
        assert min(parts) > 0 and sum(parts) == pytest.approx(row["scopes"]["end-to-end"]["mean"], rel=1e-6)
        assert row["scopes"]["end-to-end"]["fps"] == pytest.approx(2000 / row["scopes"]["end-to-end"]["p50"])
        assert row["scopes"]["end-to-end"]["sustained_fps"] == pytest.approx(
            2000 / row["scopes"]["end-to-end"]["mean"], rel=0.3)
    assert plain["kind"] == "torch-plain" and fast["artifact"]["sha256"] == plain["artifact"]["sha256"]
    assert report["settings"]["pictures"] == 3
    path = str(tmp_path / "run" / "benchmark.json")
    compare = ["benchmark.py", "--compare", path, path, "--select", "torch fp32", "torch-plain"]
    done = subprocess.run([sys.executable, *compare], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "times as fast, 95 % interval" in done.stdout


def test_what_is_plain_computes_the_same(weights: Path):
    images = torch.randint(0, 255, (2, 64, 64, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    slow, fast = worker.plain(str(weights), torch.device("cpu"), 1), load_runtime(weights)
    for a, b in zip(slow.predict(images), fast.predict(images)):
        assert torch.allclose(a, b, atol=1e-3)
    kept = [m for m in slow.runner.model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert kept, "nothing is folded"


def test_the_layers_come_with_their_bound_and_the_roofline(weights, pictures, monkeypatch):
    monkeypatch.setattr(latency, "COPY", 1 << 20)
    spec = {"runtime": "torch", "weights": str(weights), "files": [str(pictures / "0.jpg")], "video": False,
            "imgsz": 64, "precision": "fp32", "threads": 1}
    found = worker.layers(spec)
    assert [row["layer"] for row in found["rows"]] == [layer.name for layer in small_net()]
    assert {row["bound"] for row in found["rows"]} <= {"memory", "compute"}
    assert found["peak"]["macs_per_s"] > 0


def test_nodes_are_added_up_by_layer_and_what_is_none_stands_apart():
    planted = [("cast_kernel_time", "Cast", 1.0), ("conv1_nchwc_kernel_time", "Conv", 2.0),
               ("mb3.expand/WithoutBiases", "Convolution", 3.0), ("mb3.se.average", "AvgPool", 4.0),
               ("ReorderOutput_token_126_kernel_time", "ReorderOutput", 5.0), ("pool2", "MaxPool", 6.0),
               ("scale_abcd_acdb_conv1/WithoutBiases", "Reorder", 7.0), ("mb31", "Conv", 8.0)]
    found = nodes.by_layer(small_net(), planted)
    assert found == {"conv1": 2, "pool2": 6, "mb3": 7, "pool4": 0, "ds5": 0, "head6": 0, "reorders": 12,
                     "other": 9}
    rows = nodes.rows_of(small_net(), 64, "fp32", [found, found], PEAK)
    assert [row["layer"] for row in rows] == list(found)
    assert {row["layer"]: row["ms"] for row in rows} == found
    assert [row["bound"] for row in rows[-2:]] == ["none", "none"]
    assert rows[0]["macs_per_s"] == pytest.approx(rows[0]["macs"] / 2e-3)


@pytest.mark.parametrize("form", ["onnx", "openvino"])
def test_a_runtime_tells_what_its_layers_take(tmp_path: Path, weights: Path, form: str):
    pytest.importorskip("onnx", reason="needs onnx (requirements-export.txt)")
    pytest.importorskip({"onnx": "onnxruntime"}.get(form, form), reason=f"needs {form}'s library")
    checkpoint, _ = export.read(str(weights), 64)
    noise_ = [np.random.default_rng(0).integers(0, 255, (3, 64, 64), np.uint8)]
    job = export.Export(str(weights), checkpoint, 64, False, False, noise_)
    row = export.export(job, form, tmp_path, "net")
    assert not row["faults"]
    found = nodes.node_table(tmp_path / row["file"], "fp32", 1, torch.from_numpy(noise_[0]), PEAK)
    took = {row["layer"]: row["ms"] for row in found}
    assert all(took[name] > 0 for name in ("conv1", "mb3", "ds5", "head6")), took
    assert took["other"] < sum(took.values()) / 2
    with pytest.raises(ValueError, match="ONNX Runtime and OpenVINO alone"):
        nodes.node_table(weights, "fp32", 1, torch.from_numpy(noise_[0]), PEAK)


def test_frames_of_a_video_are_read_over_and_over(tmp_path: Path):
    film(tmp_path / "a.mp4", 3)
    frames = list(islice(worker.read_images({"files": [str(tmp_path / "a.mp4")], "video": True}), 7))
    assert len(frames) == 7 and np.array_equal(frames[0], frames[3]) and frames[0].shape == (240, 320, 3)


def test_images_are_spread_over_the_source(pictures: Path):
    few, all_ = (plan.plan_of(Config(source=str(pictures), pictures=count)) for count in (2, 9))
    assert [Path(file).name for file in few["files"]] == ["0.jpg", "2.jpg"]
    assert len(all_["files"]) == all_["pictures"] == 3
