"""The loop itself: bad numbers, learning rate, weight decay, full disks and locked folders."""
import copy
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from models.heads.loss import DetectionLoss
from models.network import Network, initialise
from models.records import to_json
from tests.helpers.nets import small_net
from training import engine
from training.config import TrainConfig
from training.optim import MovingAverage, first_bad_layer, learning_rate, make_optimizer
from utils.errors import NumericError


@pytest.fixture(scope="module")
def tiny_set(tmp_path_factory):
    """A small embedded set and a network for it."""
    from data.scenes import make_scenes
    folder = tmp_path_factory.mktemp("tiny")
    make_scenes(folder / "set", train=6, val=3, size=160, seed=1)
    (folder / "net.json").write_text(to_json(small_net(10)))
    return folder


class Batches:
    """A loader of fixed batches; image values beyond reach where `poison` says so."""

    def __init__(self, count: int, poison: set[int]):
        self.count, self.poison, self.epoch, self.start = count, poison, 0, 0

    def set_epoch(self, epoch, start=0):
        self.epoch, self.start = epoch, start

    def __len__(self):
        return self.count

    def __iter__(self):
        from data.loader import Batch
        for at in range(self.start, self.count):
            images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(at)) * 255
            if self.epoch * self.count + at in self.poison:
                images[0] = float("nan")
            yield Batch(images, torch.tensor([[0, 1, .4, .5, .3, .3]]), [0, 1])


def fit_with(poison: set[int], epochs: int = 2, count: int = 6, read_steps: int = 1, loss=None,
             scale: float = 0, **flags):
    """State, replays written, and the state dict each save got, of a run with poisoned batches."""
    flags = {"optimizer": "sgd", "lr": 0.01, "momentum": 0.9, "batch_size": 2, "nominal_batch": 2, "box": 1.0,
             "warmup_epochs": 0.1, **flags}
    config = TrainConfig(epochs=epochs, **flags)
    net = small_net(3)
    model = initialise(Network(net), 0)
    state = engine.State(model, MovingAverage(model, 0.02), make_optimizer(model, config),
                         torch.amp.GradScaler("cpu", scale, enabled=bool(scale)), torch.device("cpu"))
    saved, replays = [], []

    def save(state, best):
        saved.append(copy.deepcopy(state.as_dict()))
    save(state, False)
    engine.fit(state, engine.Task(
        config, Batches(count, poison), loss or DetectionLoss(net),
        validate=lambda m: {"map50": 0.1}, save=save, restore=lambda: saved[-1], log=lambda row: None,
        replay=lambda b: replays.append(b) or "replay.pt", main=False, read_steps=read_steps,
        signals=SimpleNamespace(poll=lambda: False, code=0)))
    return state, replays, saved


def finite(state: engine.State) -> bool:
    values = [v for m in (state.model, state.ema) for v in m.state_dict().values() if v.is_floating_point()]
    return all(v.isfinite().all() for v in values)


def test_a_non_finite_loss_skips_the_step_and_never_reaches_weights_statistics_or_average():
    state, replays, _ = fit_with({2, 8})
    assert finite(state) and state.skipped == 2 and not replays and state.lr_scale == 1.0
    assert int(state.ema.n_averaged) == 10                 # twelve steps, two of them skipped


def test_three_bad_steps_in_a_row_bring_the_last_good_state_back_at_half_the_rate():
    state, replays, saved = fit_with({7, 8, 9})
    assert finite(state) and state.retries == 1 and state.lr_scale == 0.5 and len(replays) == 1
    assert torch.isnan(replays[0]["images"]).any()


class Reads(TorchDispatchMode):
    """Counts the numbers that the host takes out of tensors; for each it would wait for an accelerator."""

    ASKING = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func in self.ASKING
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_between_two_looks_at_the_losses_no_number_is_read(optimizer):
    def loss(outputs, targets, images):
        return {"box": outputs[0].float().square().mean(), "obj": outputs[0].float().mean().square()}
    loss.terms = {"box": 5.0, "obj": 1.0}
    with Reads() as reads:
        torch.ones(()).item()
        assert reads.count == 1, "the counter sees none"
        state, _, _ = fit_with({2}, loss=loss, read_steps=6, optimizer=optimizer, nominal_batch=4)
    assert reads.count == 1 and state.skipped == 1 and finite(state)


@pytest.mark.parametrize("poison", [set(), {0}, {2, 8}, {0, 1, 7}])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_looking_seldom_gives_the_bits_of_looking_at_every_step(poison, optimizer):
    often, seldom = (fit_with(poison, read_steps=n, optimizer=optimizer)[0] for n in (1, 4))
    assert finite(often) and often.skipped == seldom.skipped == len(poison)
    for mine, other in zip((often.model, often.ema), (seldom.model, seldom.ema)):
        assert all(torch.equal(v, other.state_dict()[k]) for k, v in mine.state_dict().items())
    assert often.sums == seldom.sums and often.as_dict().keys() == seldom.as_dict().keys()


def test_an_overflow_of_scaled_gradients_lowers_the_scale_and_is_no_bad_step():
    def loss(outputs, targets, images):
        return {"box": 1e15 * outputs[0].float().square().mean()}
    loss.terms = {"box": 5.0}
    state, _, _ = fit_with({9}, loss=loss, scale=2.0 ** 80, read_steps=3, clip=1e-3, count=20, epochs=1)
    good = int(state.ema.n_averaged)
    assert 1 <= state.scaler.get_scale() < 2.0 ** 80 and 0 < good < 19 and finite(state)
    assert state.skipped == 1, "the poisoned batch alone"


def test_a_skipped_first_step_leaves_no_trace_in_the_moments():
    """Fused SGD would leave its buffers uninitialised there."""
    state, _, _ = fit_with({0}, epochs=1, count=1)
    moments = [s["momentum_buffer"] for s in state.optimizer.state.values()]
    assert moments and not any(m.any() for m in moments)


def test_what_follows_three_bad_steps_before_the_next_look_is_undone():
    state, replays, _ = fit_with({6, 7, 8}, read_steps=6)
    assert finite(state) and (state.retries, state.lr_scale, state.step) == (1, 0.5, 12)
    assert torch.isnan(replays[0]["images"]).any() and int(state.ema.n_averaged) == 6


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
    groups = make_optimizer(model, TrainConfig(weight_decay=0.1)).param_groups
    spared = {id(p) for g in groups if g["weight_decay"] == 0 for p in g["params"]}
    for name, p in model.named_parameters():
        assert (id(p) in spared) == (".bn." in name or name.endswith("bias")), name


def test_a_full_disk_is_retried_and_ends_with_code_7(root, tiny_set, monkeypatch, capsys):
    from training import prepare
    from training import run as trainer
    from utils.errors import DiskError
    monkeypatch.chdir(root)
    words = ["--cfg", tiny_set / "net.json", "--data", tiny_set / "set", "--imgsz", "96", "--workers", "0",
             "--project", tiny_set / "runs"]
    monkeypatch.setattr(sys, "argv", ["train.py", *map(str, words)])
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


def test_a_password_in_a_url_is_not_written_into_records(monkeypatch):
    from utils.runs import environment
    words = ["search.py", "--storage", "postgresql://me:s3cret@host/db", "--name", "a@b:c"]
    monkeypatch.setattr(sys, "argv", words)
    command = environment()["command"]
    assert "s3cret" not in command and "postgresql://***@host/db --name a@b:c" in command
