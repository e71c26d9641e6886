"""On a CUDA device: what training, resuming, evaluating and detecting do there, beside the CPU's numbers."""
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from data.scenes import make_scenes
from deploy.runtimes.runtime import torch_runtime
from models import checkpoint as checkpoints
from models.network import Network, initialise
from models.zoo.build import build
from tests.helpers.nets import small_net
from utils import ddp

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, absent here")
ROOT = Path(__file__).resolve().parents[2]


def lone(module: str) -> list[str]:
    """The command that runs a script as torchrun's only process."""
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1", module]


def done(words: list) -> str:
    """What a command wrote, which must end well."""
    out = subprocess.run(list(map(str, words)), cwd=ROOT, capture_output=True, text=True, timeout=400,
                         env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert out.returncode == 0, f"{out.stdout[-2000:]}{out.stderr[-3000:]}"
    return out.stdout + out.stderr


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small set of the embedded kind."""
    return make_scenes(tmp_path_factory.mktemp("scenes") / "set", 64, 16, 160, 0)


def words(scenes: Path, folder: Path, name: str, *more: object, epochs: int = 3) -> list:
    """The flags of a short training."""
    return ["--data", scenes, "--cfg", "micro-yolo", "--weights", "none", "--imgsz", 128, "--epochs", epochs,
            "--batch-size", 8, "--workers", 1, "--project", folder, "--name", name, "--no-report", *more]


def rows(folder: Path) -> list[dict]:
    """A run's epochs."""
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_one_process_of_torchrun_trains_as_one_without_it(scenes, tmp_path):
    """Also on a CPU, where gloo joins it: the same losses as without torchrun."""
    more = ("--device", "cpu", "--precision", "fp32", "--threads", 1, "--workers", 0)
    text = done([*lone("train.py"), *words(scenes, tmp_path, "joined", *more, epochs=1)])
    done([sys.executable, "train.py", *words(scenes, tmp_path, "alone", *more, epochs=1)])
    assert "cpu x 1" in text
    one, other = (rows(tmp_path / name)[0]["loss"] for name in ("joined", "alone"))
    assert one == pytest.approx(other, rel=1e-5)


def test_a_process_that_torchrun_did_not_start_joins_nothing(monkeypatch):
    monkeypatch.setenv("MASTER_PORT", "1")
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert ddp.join(torch.device("cpu")) == ddp.World(0, 1) and not ddp.joined()


@cuda
def test_one_process_by_nccl_trains_in_fp16(scenes, tmp_path):
    text = done([*lone("train.py"), *words(scenes, tmp_path, "nccl", "--cfg", "micro-yolo+free")])
    assert "cuda:0 x 1, fp16" in text
    found = rows(tmp_path / "nccl")
    assert found[-1]["loss"] < found[0]["loss"]


@cuda
@pytest.mark.parametrize("name", ["micro-yolo", "micro-yolo+free", "yolox-nano"])
def test_fp16_with_a_scaler_learns_what_fp32_does(name, scenes, tmp_path):
    losses = {}
    for precision in ("fp16", "fp32"):
        done([sys.executable, "train.py", *words(scenes, tmp_path, precision, "--precision", precision,
                                                 "--cfg", name)])
        losses[precision] = [row["loss"] for row in rows(tmp_path / precision)]
    assert losses["fp16"][-1] < losses["fp16"][0]
    assert losses["fp16"][-1] == pytest.approx(losses["fp32"][-1], rel=0.1)
    saved = torch.load(tmp_path / "fp16/weights/last.pt", weights_only=True, map_location="cpu")
    assert saved["training"]["scaler"]["scale"] >= 1


@cuda
def test_killed_on_cuda_it_resumes_to_the_same_losses(scenes, tmp_path):
    done([sys.executable, "train.py", *words(scenes, tmp_path, "whole", epochs=4)])
    part = subprocess.Popen([sys.executable, "train.py", *map(str, words(scenes, tmp_path, "cut", epochs=4))],
                            cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    log, end = tmp_path / "cut/log.jsonl", time.monotonic() + 200
    while time.monotonic() < end and not (log.is_file() and len(rows(tmp_path / "cut")) >= 2):
        time.sleep(0.05)
    part.send_signal(signal.SIGTERM)
    assert part.wait(60) in (0, 143)
    done([sys.executable, "train.py", "--resume", tmp_path / "cut", "--no-report"])
    whole, cut = ([row["loss"] for row in rows(tmp_path / name)] for name in ("whole", "cut"))
    assert cut == pytest.approx(whole, rel=2e-2) and len(cut) == 4


@cuda
@pytest.mark.parametrize("name", ["yolov3-tiny", "micro-yolo", "micro-yolo+free", "yolox-nano"])
def test_outputs_are_the_cpus(name):
    net = build(name, 5)
    state = initialise(Network(net), 0).state_dict()
    images = torch.randint(0, 256, (2, 3, 160, 160), dtype=torch.uint8,
                           generator=torch.Generator().manual_seed(0))
    torch.backends.cudnn.allow_tf32 = False
    try:
        ours = torch_runtime(net, state, (), 160, "cuda", "fp32").predict(images)
        for a, b in zip(ours, torch_runtime(net, state, (), 160, "cpu", "fp32").predict(images)):
            np.testing.assert_allclose(torch.as_tensor(a).cpu(), torch.as_tensor(b), rtol=1e-3, atol=2e-4)
        for a, b in zip(torch_runtime(net, state, (), 160, "cuda", "fp16").predict(images), ours):
            a, b = torch.as_tensor(a).float().cpu(), torch.as_tensor(b).cpu()
            assert (a - b).abs().max() < 0.02 * max(1.0, float(b.abs().max()))
    finally:
        torch.backends.cudnn.allow_tf32 = True


@cuda
def test_val_and_detect_on_cuda_find_what_the_cpu_finds(scenes, tmp_path):
    done([sys.executable, "train.py", *words(scenes, tmp_path, "net", epochs=12)])
    best = tmp_path / "net/weights/best.pt"
    figures = {}
    for device in ("cuda", "cpu"):
        done([sys.executable, "val.py", "--weights", best, "--data", scenes, "--device", device,
              "--project", tmp_path, "--name", f"val-{device}"])
        figures[device] = json.loads((tmp_path / f"val-{device}/metrics.json").read_text())["map50"]
        done([sys.executable, "detect.py", "--weights", best, "--source", scenes / "images", "--nosave",
              "--device", device, "--project", tmp_path, "--name", f"boxes-{device}"])
    assert figures["cuda"] == pytest.approx(figures["cpu"], abs=5e-3)


@cuda
def test_the_batch_is_what_fits(scenes, tmp_path):
    text = done([sys.executable, "train.py", *words(scenes, tmp_path, "auto", "--batch-size", "auto",
                                                    epochs=1)])
    assert "--batch-size auto: " in text and "MB an image" in text


@cuda
def test_channels_last_and_plain_layout_agree():
    model = initialise(Network(small_net(3)), 0).cuda().eval()
    images = torch.rand(2, 3, 64, 64, device="cuda")
    with torch.inference_mode():
        plain = [out.clone() for out in model(images)]
        model = model.to(memory_format=torch.channels_last)
        for a, b in zip(model(images.contiguous(memory_format=torch.channels_last)), plain):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


@cuda
def test_a_checkpoint_of_cuda_loads_on_the_cpu(scenes, tmp_path):
    done([sys.executable, "train.py", *words(scenes, tmp_path, "net", epochs=1)])
    found = checkpoints.load(tmp_path / "net/weights/best.pt")
    assert all(value.device.type == "cpu" for value in found.state.values())
