"""Who teaches a run beside its ground truth: a trained network, or the run's own average."""
from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch

from compress.distill import Teach, taught
from compress.features import ends_and_features
from deploy.runtimes.torchscript import DTYPES
from models import checkpoint as checkpoints
from models.heads.loss import DetectionLoss
from models.layer import Net
from models.network import Network, initialise
from training import engine
from training.config import TrainConfig
from training.run import Run, Session


def student(config: TrainConfig, net: Net) -> Network:
    """Return a fresh network of --seed; to learn a teacher's features it returns its own, too."""
    return initialise(Network(net, ends_and_features(net) if config.distill_features else ()), config.seed)


def make_loss(config: TrainConfig, net: Net, names: tuple[str, ...], session: Session,
              weighted: torch.Tensor | None = None) -> Callable:
    """Return a network's loss, with the part of --teacher where there is one."""
    loss = DetectionLoss(net, None if weighted is None else weighted.to(session.device))
    if not config.teacher:
        return loss
    found = checkpoints.load(config.teacher)
    loss, told = taught(loss, names, found, session.device, DTYPES[session.precision],
                        net if config.distill_features else ())
    if told:
        session.say(told)
    return loss


def own_average(run: Run) -> Teach:
    """Return what a run's moving average says of images, nothing before the end of warm-up.

    Mean Teacher (Tarvainen and Valpola 2017, arXiv 1703.01780); the average is a checkpoint's, so a resumed
    run has the same teacher. It normalises by the batch, as its student does: by running statistics, which
    lag behind early steps, it said things so large that bccd ended at AP50 0.
    """
    device, half = run.session.device.type, engine.HALF.get(run.session.precision)
    twin = copy.deepcopy(run.state.ema.module).train()     # whose own statistics may move

    @torch.no_grad()
    def teach(images: torch.Tensor) -> list[torch.Tensor] | None:
        steps = math.ceil(len(run.loader) / run.config.accumulate)
        if run.state.step < run.config.warmup * steps:
            return None
        twin.load_state_dict(run.state.ema.module.state_dict())
        with torch.autocast(device, half, enabled=half is not None):
            return twin(images)
    return teach
