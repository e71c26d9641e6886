"""Training as a user runs it: resumed after any death with the same bits, and on several processes."""
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from torch import distributed as dist

from compress.distill import DistilledLoss, teacher
from compress.features import Features, ends_and_features
from models.checkpoint import load
from models.heads.loss import DetectionLoss
from models.network import Network, initialise
from models.records import to_json
from models.sync_bn import synchronise
from models.zoo.build import with_head_kind
from tests.helpers.kills import assert_same_run, moments
from tests.helpers.nets import randomised, small_net
from training.config import TrainConfig
from training.optim import make_optimizer
from utils import ddp


@pytest.fixture(scope="module")
def tiny_set(tmp_path_factory):
    """A small embedded set and a network that trains on it in a second an epoch.

    Five batches of four, two a step: the last step of an epoch has one batch, as it happens to most users.
    """
    from data.scenes import make_scenes
    folder = tmp_path_factory.mktemp("tiny")
    make_scenes(folder / "set", train=20, val=6, size=160, seed=1)
    (folder / "net.json").write_text(to_json(small_net(10)))
    return folder


def command(folder, project, *more, launcher=(sys.executable,)):
    return [*launcher, "train.py", "--cfg", str(folder / "net.json"), "--data", str(folder / "set"),
            "--imgsz", "96", "--batch-size", "4", "--nominal-batch", "8", "--epochs", "3",
            "--project", str(project), "--workers", "0", "--threads", "1", "--warmup-epochs", "0.5",
            "--val-interval", "3", "--no-report", *more]


def environment():
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def train(root, *words, **options):
    return subprocess.run(words, cwd=root, capture_output=True, text=True, env=environment(), timeout=300,
                          **options)


@pytest.fixture(scope="module")
def reference(root, tiny_set):
    """The run nobody disturbed."""
    done = train(root, *command(tiny_set, tiny_set / "runs", "--name", "whole"))
    assert done.returncode == 0, done.stderr
    return load(tiny_set / "runs" / "whole" / "weights" / "last.pt")


def interrupt(root, words, number, rng):
    """Run the command and send the signal at a random moment after its first checkpoint; return its exit code
    and what it said.
    """
    process = subprocess.Popen(words, cwd=root, env=environment(), stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    project, name = words[words.index("--project") + 1], words[words.index("--name") + 1]
    first = os.path.join(project, name, "weights", "last.pt")
    while not os.path.exists(first) and process.poll() is None:
        time.sleep(0.02)
    after = rng.uniform(0.0, 0.3)                  # the whole run takes a second on a fast machine
    time.sleep(after)
    process.send_signal(number)
    output = process.communicate(timeout=120)
    print(f"{signal.Signals(number).name} {after:.3f} s after the first checkpoint was there: "
          f"exit code {process.returncode}")
    return process.returncode, "".join(output)


def test_a_run_killed_at_random_steps_and_resumed_ends_with_the_same_bits(root, tiny_set, reference):
    rng, codes = moments(), []
    words = command(tiny_set, tiny_set / "runs", "--name", "killed", "--save-minutes", "0.005")
    for more in ((), ("--resume",), ("--resume",)):
        code, output = interrupt(root, [*words, *more], signal.SIGKILL, rng)
        assert code in (-signal.SIGKILL, 0), output
        codes.append(code)
    assert -signal.SIGKILL in codes, "every process ended before it was killed: nothing was tested"
    done = train(root, *words, "--resume")
    assert done.returncode == 0, done.stderr
    run = tiny_set / "runs" / "killed"
    assert_same_run(reference, load(run / "weights" / "last.pt"))
    assert [json.loads(line)["epoch"] for line in (run / "log.jsonl").read_text().splitlines()] == [0, 1, 2]


def test_sigterm_saves_exits_143_and_the_run_continues_exactly(root, tiny_set, reference):
    words = command(tiny_set, tiny_set / "runs", "--name", "stopped")
    code, output = interrupt(root, words, signal.SIGTERM, moments())
    assert code == 143 and "--resume" in output, (code, output)
    saved = load(tiny_set / "runs" / "stopped" / "weights" / "last.pt").training
    assert saved["step"] == saved["epoch"] * 3 + (saved["batch"] + 1) // 2
    done = train(root, *words, "--resume")
    assert done.returncode == 0, done.stderr
    assert_same_run(reference, load(tiny_set / "runs" / "stopped" / "weights" / "last.pt"))


def test_resuming_with_other_flags_or_another_machine_needs_consent(root, tiny_set, reference):
    run = tiny_set / "runs" / "whole"
    words = command(tiny_set, tiny_set / "runs", "--name", "whole", "--resume", str(run))
    changed = [*words, "--epochs", "9"]
    done = train(root, *changed)
    assert done.returncode == 2 and "--epochs 3" in done.stderr and "--accept" in done.stderr
    moved = train(root, *[w if w != "1" else "2" for w in words])
    assert moved.returncode == 5 and "threads was 1, is 2" in moved.stderr and "--accept" in moved.stderr


def test_two_processes_train_like_one(root, tiny_set):
    """torchrun with gloo against one process: the same global batches, 1e-5 after the first steps."""
    # Plain SGD: Adam divides gradients by their size and so blows rounding errors up to whole steps.
    common = ("--precision", "fp32", "--epochs", "1", "--augment", "light", "--optimizer", "sgd")
    one = train(root, *command(tiny_set, tiny_set / "runs", "--name", "one", *common))
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    two = train(root, *command(tiny_set, tiny_set / "runs", "--name", "two", *common, launcher=launcher))
    assert one.returncode == 0 and two.returncode == 0, one.stderr + two.stderr
    a, b = (load(tiny_set / "runs" / n / "weights" / "last.pt").training["model"] for n in ("one", "two"))
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=1e-5, atol=1e-5, msg=lambda m, key=key: f"{key}: {m}")


BATCHES = [torch.tensor([[0, 1, .4, .5, .3, .3], [1, 0, .6, .6, .2, .4]]),          # rank 1 has no target
           torch.zeros(0, 6),                                                        # nobody has
           torch.tensor([[0, 1, .4, .5, .3, .3], [3, 2, .5, .5, .5, .5], [3, 1, .2, .2, .3, .1]]),
           torch.tensor([[0, 1, .4, .5, .3, .3], [2, -1, 0, 0, 0, 0], [3, -1, 0, 0, 0, 0]])]      # unlabelled


def few_steps(rank: int, world: int, kind: str) -> dict[str, torch.Tensor]:
    """Parameters after a step on each of BATCHES, this rank's half of four pictures."""
    torch.set_num_threads(1)
    kind, _, taught = kind.partition("+")
    net = with_head_kind(small_net(3), kind)
    model = initialise(Network(net, ends_and_features(net) if taught else ()), 0)
    loss = DetectionLoss(net)
    if taught:
        master, ends = randomised(net, 1).state_dict(), ends_and_features(net)
        loss = DistilledLoss(loss, teacher(net, master, torch.device("cpu"), ends=ends),
                             features=Features(net, net))
    beside = loss if taught else torch.nn.Module()
    if world > 1:
        model = torch.nn.parallel.DistributedDataParallel(synchronise(model), broadcast_buffers=False)
    optimizer = make_optimizer(model, TrainConfig(optimizer="sgd", lr=0.01, momentum=0.9), beside)
    share = 4 // world
    for at, targets in enumerate(BATCHES):
        images = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(at))
        images = images[rank * share:(rank + 1) * share]
        mine = targets[(targets[:, 0] >= rank * share) & (targets[:, 0] < (rank + 1) * share)].clone()
        mine[:, 0] -= rank * share
        sum(loss(model(images), mine, images).values()).backward()
        ddp.mean_gradients(beside.parameters())
        assert all(p.grad is not None for p in model.parameters())
        optimizer.step()
        optimizer.zero_grad()
    learned = {**getattr(model, "module", model).state_dict(), **beside.state_dict()}
    return {k: v.clone() for k, v in learned.items()}


def _worker(rank: int, folder: str, kind: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.save(few_steps(rank, 2, kind), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("kind", ["anchor", "free", "anchor+features"])
def test_batches_without_targets_do_not_part_the_processes(kind, tmp_path):
    torch.multiprocessing.spawn(_worker, (str(tmp_path), kind), nprocs=2)
    one = few_steps(0, 1, kind)
    for rank in (0, 1):
        other = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for key in one:
            torch.testing.assert_close(one[key], other[key], rtol=1e-5, atol=1e-5,
                                       msg=lambda m, key=key: f"{key}: {m}")
