"""The optimizer's side: the moving average's age, what it averages, and runs of older versions."""
import json
import subprocess
import sys

import pytest
import torch
from torch import nn

from models.network import Network, initialise
from tests.helpers.nets import small_net
from tests.helpers.scripts import call
from training.config import TrainConfig
from training.optim import MovingAverage, make_optimizer, newest_share


@pytest.mark.parametrize("steps", [200, 1000, 10_000, 100_000, 1_000_000])
def test_averaged_weights_are_two_percent_of_the_run_old(steps):
    at = torch.arange(1, steps + 1, dtype=torch.float64)
    newest = newest_share(at, TrainConfig().ema_age)
    kept = torch.log1p(-newest[1:]).flip(0).cumsum(0).flip(0).exp()        # of the t-th at the end
    weights = newest * torch.cat((kept, torch.ones(1)))
    assert weights.sum() == pytest.approx(1)
    age = float(((steps - at) * weights).sum()) / steps
    assert 0.015 < age <= 0.02


def test_the_average_weighs_parameters_and_statistics_by_that_schedule():
    model = initialise(Network(small_net(3)), 0)
    average, generator = MovingAverage(model, 0.1), torch.Generator().manual_seed(0)
    seen = []
    for step in range(12):
        for value in (*model.parameters(), *model.buffers()):
            value.data.copy_(torch.rand(value.shape, generator=generator) * 100)
        average.update(model, torch.tensor(step != 5))
        if step != 5:                                          # what is not finite is no step
            seen.append({key: value.clone() for key, value in model.state_dict().items()})
    count = len(seen)
    weights = [(t / count) ** 9 - ((t - 1) / count) ** 9 for t in range(1, count + 1)]
    for key, value in average.module.state_dict().items():
        if value.is_floating_point():
            wanted = sum(w * state[key] for w, state in zip(weights, seen))
            torch.testing.assert_close(value, wanted, msg=lambda m, key=key: f"{key}: {m}")
        else:
            assert torch.equal(value, model.state_dict()[key])


def test_age_zero_keeps_the_newest_weights_alone():
    assert newest_share(torch.tensor([1., 2., 1e6], dtype=torch.float64), 0.0).tolist() == [1, 1, 1]


def test_a_run_of_flags_that_are_no_more_is_not_continued_unasked(tmp_path, monkeypatch, capsys):
    import train
    run = tmp_path / "runs" / "exp"
    (run / "weights").mkdir(parents=True)
    (run / "args.json").write_text(json.dumps({"data": "x", "cfg": "micro-yolo", "ema_decay": 0.9998}))
    words = ["train.py", "--resume", run, "--data", "x"]
    assert call(monkeypatch, train.main, words) == 2
    assert "ema_decay are no more" in (said := capsys.readouterr().err) and "--accept" in said
    assert call(monkeypatch, train.main, [*words, "--accept"]) == 3    # no such data


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_steps_are_those_of_torchs_own_optimizer_to_the_bit(kind):
    """Its methods lack what torch.compile wraps around them, and nothing else."""
    config, theirs = TrainConfig(optimizer=kind), {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[kind]
    sgd = {"momentum": config.momentum, "nesterov": True}
    more = {"sgd": sgd, "adamw": {"betas": (config.momentum, 0.999)}}[kind]
    models = [nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)]
    models[1].load_state_dict(models[0].state_dict())
    groups = [{"params": [models[1].weight], "weight_decay": config.weight_decay},
              {"params": [models[1].bias], "weight_decay": 0.0}]
    both = [make_optimizer(models[0], config), theirs(groups, lr=config.peak_lr, fused=True, **more)]
    for step in range(4):
        images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(step))
        for model, optimizer in zip(models, both):
            optimizer.zero_grad(set_to_none=True)
            model(images).square().mean().backward()
            optimizer.step()
            optimizer.load_state_dict(optimizer.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), models[1].parameters()))


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_a_step_imports_no_compiler(root, kind):
    code = f"""if True:
        import sys, torch
        from training.config import TrainConfig
        from training.optim import make_optimizer
        model = torch.nn.Linear(2, 2)
        optimizer = make_optimizer(model, TrainConfig(optimizer="{kind}"))
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step(), optimizer.zero_grad(), optimizer.load_state_dict(optimizer.state_dict())
        sys.exit("torch._dynamo" in sys.modules)"""
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0
