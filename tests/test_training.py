"""Training as a user runs it: resumed after any death with the same bits, on several processes, through bad numbers."""
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
from torch import distributed as dist

import engine
from models.checkpoint import load
from models.decode import head_specs
from models.loss import DetectionLoss
from models.network import Network, initialise
from models.spec import to_json
from models.sync_bn import synchronise
from tests.nets import small_net
from utils.errors import NumericError
from utils.optim import first_bad_layer, learning_rate, make_ema, make_optimizer


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
    return [*launcher, "train.py", "--cfg", str(folder / "net.json"), "--data", str(folder / "set"), "--imgsz", "96",
            "--batch-size", "4", "--nominal-batch", "8", "--epochs", "3", "--project", str(project), "--workers", "0",
            "--threads", "1", "--warmup-epochs", "0.5", "--val-interval", "3", "--no-report", *more]


def environment():
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def train(root, *words, **options):
    return subprocess.run(words, cwd=root, capture_output=True, text=True, env=environment(), timeout=300, **options)


@pytest.fixture(scope="module")
def reference(root, tiny_set):
    """The run nobody disturbed."""
    done = train(root, *command(tiny_set, tiny_set / "runs", "--name", "whole"))
    assert done.returncode == 0, done.stderr
    return load(tiny_set / "runs" / "whole" / "weights" / "last.pt")


def same_bits(a, b, path="") -> list[str]:
    """Where two nested values differ."""
    if isinstance(a, dict):
        keys = a.keys() | b.keys()
        return [d for k in keys for d in (same_bits(a[k], b[k], f"{path}/{k}") if k in a and k in b else [f"{path}/{k}"])]
    if isinstance(a, (list, tuple)):
        return [d for i, (x, y) in enumerate(zip(a, b)) for d in same_bits(x, y, f"{path}/{i}")] + [path] * (len(a) != len(b))
    equal = torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
    return [] if equal else [path]


def assert_same_run(a, b):
    for part in ("state", "training"):
        assert not (found := same_bits(getattr(a, part), getattr(b, part))), f"{part} differs at {found[:5]}"


def interrupt(root, words, number, rng):
    """Runs the command and sends the signal at a random moment after its first checkpoint; its exit code."""
    process = subprocess.Popen(words, cwd=root, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    project, name = words[words.index("--project") + 1], words[words.index("--name") + 1]
    first = os.path.join(project, name, "weights", "last.pt")
    while not os.path.exists(first) and process.poll() is None:
        time.sleep(0.02)
    time.sleep(rng.uniform(0.0, 1.5))
    process.send_signal(number)
    output = process.communicate(timeout=120)
    return process.returncode, "".join(output)


def test_a_run_killed_at_random_steps_and_resumed_ends_with_the_same_bits(root, tiny_set, reference):
    rng = random.Random()                                  # a new moment at every run of the test
    words = command(tiny_set, tiny_set / "runs", "--name", "killed", "--save-minutes", "0.005")
    code, output = interrupt(root, words, signal.SIGKILL, rng)
    assert code in (-signal.SIGKILL, 0), output
    for _ in range(2):
        code, output = interrupt(root, [*words, "--resume"], signal.SIGKILL, rng)
    done = train(root, *words, "--resume")
    assert done.returncode == 0, done.stderr
    run = tiny_set / "runs" / "killed"
    assert_same_run(reference, load(run / "weights" / "last.pt"))
    assert [json.loads(line)["epoch"] for line in (run / "log.jsonl").read_text().splitlines()] == [0, 1, 2]


def test_sigterm_saves_exits_143_and_the_run_goes_on_exactly(root, tiny_set, reference):
    words = command(tiny_set, tiny_set / "runs", "--name", "stopped")
    code, output = interrupt(root, words, signal.SIGTERM, random.Random())
    assert code == 143 and "--resume" in output, (code, output)
    saved = load(tiny_set / "runs" / "stopped" / "weights" / "last.pt").training
    assert saved["step"] == saved["epoch"] * 3 + (saved["batch"] + 1) // 2
    done = train(root, *words, "--resume")
    assert done.returncode == 0, done.stderr
    assert_same_run(reference, load(tiny_set / "runs" / "stopped" / "weights" / "last.pt"))


def test_resuming_with_other_flags_or_another_machine_needs_consent(root, tiny_set, reference):
    words = command(tiny_set, tiny_set / "runs", "--name", "whole", "--resume", str(tiny_set / "runs" / "whole"))
    changed = [*words, "--epochs", "9"]
    done = train(root, *changed)
    assert done.returncode == 2 and "--epochs 3" in done.stderr and "--accept" in done.stderr
    moved = train(root, *[w if w != "1" else "2" for w in words])
    assert moved.returncode == 5 and "threads was 1, is 2" in moved.stderr and "--accept" in moved.stderr


def test_two_processes_train_like_one(root, tiny_set):
    """torchrun with gloo against one process: the same global batches, 1e-5 after the first steps."""
    common = ("--precision", "fp32", "--epochs", "1", "--augment", "light")
    one = train(root, *command(tiny_set, tiny_set / "runs", "--name", "one", *common))
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    two = train(root, *command(tiny_set, tiny_set / "runs", "--name", "two", *common, launcher=launcher))
    assert one.returncode == 0 and two.returncode == 0, one.stderr + two.stderr
    a, b = (load(tiny_set / "runs" / n / "weights" / "last.pt").training["model"] for n in ("one", "two"))
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=1e-5, atol=1e-5, msg=lambda m, key=key: f"{key}: {m}")


BATCHES = [torch.tensor([[0, 1, .4, .5, .3, .3], [1, 0, .6, .6, .2, .4]]),          # rank 1 has no truth
           torch.zeros(0, 6),                                                        # nobody has
           torch.tensor([[0, 1, .4, .5, .3, .3], [3, 2, .5, .5, .5, .5], [3, 1, .2, .2, .3, .1]])]


def few_steps(rank: int, world: int) -> dict[str, torch.Tensor]:
    """Parameters after a step on each of BATCHES, this rank's half of four pictures."""
    torch.set_num_threads(1)
    net = small_net(3)
    model = initialise(Network(net), 0)
    loss = DetectionLoss(head_specs(net))
    if world > 1:
        model = torch.nn.parallel.DistributedDataParallel(synchronise(model), broadcast_buffers=False)
    optimizer = make_optimizer(model, "sgd", 0.01, 0.9, 5e-4)
    share = 4 // world
    for at, targets in enumerate(BATCHES):
        images = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(at))[rank * share:(rank + 1) * share]
        mine = targets[(targets[:, 0] >= rank * share) & (targets[:, 0] < (rank + 1) * share)].clone()
        mine[:, 0] -= rank * share
        sum(loss(model(images), mine).values()).backward()
        assert all(p.grad is not None for p in model.parameters())
        optimizer.step()
        optimizer.zero_grad()
    return {k: v.clone() for k, v in getattr(model, "module", model).state_dict().items()}


def _worker(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.save(few_steps(rank, 2), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_batches_without_truths_do_not_part_the_processes(tmp_path):
    torch.multiprocessing.spawn(_worker, (str(tmp_path),), nprocs=2)
    one = few_steps(0, 1)
    for rank in (0, 1):
        other = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for key in one:
            torch.testing.assert_close(one[key], other[key], rtol=1e-5, atol=1e-5, msg=lambda m, key=key: f"{key}: {m}")


class Batches:
    """A loader of fixed batches; picture values beyond reach where `poison` says so."""

    def __init__(self, count: int, poison: set[int]):
        self.count, self.poison, self.epoch, self.start = count, poison, 0, 0

    def set_epoch(self, epoch, start=0):
        self.epoch, self.start = epoch, start

    def __len__(self):
        return self.count

    def __iter__(self):
        from data.dataset import Batch
        for at in range(self.start, self.count):
            images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(at)) * 255
            if self.epoch * self.count + at in self.poison:
                images[0] = float("nan")
            yield Batch(images, torch.tensor([[0, 1, .4, .5, .3, .3]]), [0, 1])


def fit_with(poison: set[int], epochs: int = 2, count: int = 6):
    """State, replays written, and the state dict each save got, of a run with poisoned batches."""
    net = small_net(3)
    model = initialise(Network(net), 0)
    state = engine.State(model, make_ema(model, 0.99, 10), make_optimizer(model, "sgd", 0.01, 0.9, 5e-4),
                         torch.amp.GradScaler("cpu", enabled=False), torch.device("cpu"))
    settings = engine.Settings(epochs, 0.01, weights={"box": 1., "obj": 1., "cls": 1.}, warmup_epochs=0.1)
    saved, replays = [], []

    def save(state, best):
        import copy
        saved.append(copy.deepcopy(state.as_dict()))
    save(state, False)
    hooks = engine.Hooks(lambda m: {"map50": 0.1}, save, lambda: saved[-1], lambda row: None, lambda: False, lambda: 0,
                         lambda b: replays.append(b) or "replay.pt", main=False)
    engine.fit(state, settings, Batches(count, poison), DetectionLoss(head_specs(net)), hooks)
    return state, replays, saved


def finite(state: engine.State) -> bool:
    return all(v.isfinite().all() for m in (state.model, state.ema) for v in m.state_dict().values() if v.is_floating_point())


def test_a_non_finite_loss_skips_the_step_and_never_reaches_weights_statistics_or_average():
    state, replays, _ = fit_with({2, 8})
    assert finite(state) and state.skipped == 2 and not replays and state.lr_scale == 1.0
    assert int(state.ema.n_averaged) == 10                 # twelve steps, two of them skipped


def test_three_bad_steps_in_a_row_bring_the_last_good_state_back_at_half_the_rate():
    state, replays, saved = fit_with({7, 8, 9})
    assert finite(state) and state.retries == 1 and state.lr_scale == 0.5 and len(replays) == 1
    assert torch.isnan(replays[0]["images"]).any()


def test_numbers_that_stay_bad_end_the_run_with_a_replay():
    with pytest.raises(NumericError, match="replay.pt") as caught:
        fit_with(set(range(1, 99)), epochs=4)
    assert caught.value.exit_code == 6


def test_the_first_layer_that_overflows_is_named():
    net = small_net(3)
    model = initialise(Network(net), 0).eval()
    with torch.no_grad():
        model.mb3.depthwise.conv.weight[0] = float("inf")
    assert first_bad_layer(model, torch.rand(1, 3, 64, 64)) == "mb3.depthwise.conv"


def test_the_learning_rate_warms_up_and_falls_along_a_cosine():
    rates = [learning_rate(s, 50, 10, 1.0, 0.1) for s in range(51)]
    assert rates[0] < rates[5] < rates[9] < 1.0 and rates[10] == 1.0 and rates[50] == pytest.approx(0.1)
    assert all(a >= b for a, b in zip(rates[10:], rates[11:]))
    assert rates[30] == pytest.approx(0.55)


def test_weight_decay_spares_batch_norm_and_biases():
    model = Network(small_net(3))
    groups = make_optimizer(model, "adamw", 0.001, 0.9, 0.1).param_groups
    spared = {id(p) for g in groups if g["weight_decay"] == 0 for p in g["params"]}
    for name, p in model.named_parameters():
        assert (id(p) in spared) == (".bn." in name or name.endswith("bias")), name


def test_a_full_disk_is_retried_and_ends_with_code_7(root, tiny_set, monkeypatch, capsys):
    import prepare
    import trainer
    from utils.errors import DiskError
    monkeypatch.chdir(root)
    monkeypatch.setattr(sys, "argv", command(tiny_set, tiny_set / "runs", "--name", "full")[1:])
    import train as script
    run = prepare.prepare(script.parse())

    def refuse(*_, **__):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(trainer.checkpoints, "save", refuse)
    run.save(run.state, False)
    run.save(run.state, False)
    assert "free some space" in capsys.readouterr().out
    with pytest.raises(DiskError, match="3 times") as caught:
        run.save(run.state, False)
    assert caught.value.exit_code == 7


def test_a_run_folder_takes_one_run_at_a_time(tmp_path):
    from utils.errors import EnvironmentFault
    from utils.runs import lock
    held = lock(tmp_path)
    code = f"from pathlib import Path; from utils.runs import lock; lock(Path({str(tmp_path)!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "EnvironmentFault" in done.stderr and "another process" in done.stderr
    held.close()
    assert EnvironmentFault.exit_code == 5
