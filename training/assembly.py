"""The parts of a training run put together: loss, validation, optimizer, loader, settings, log."""
from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from compress.distill import DistilledLoss, check_teacher, teacher
from data.coco.read import CocoSet
from data.dataset import DetectionSet
from data.loader import make_loader
from deploy.runtimes.runtime import DTYPES
from models import checkpoint as checkpoints
from models.count import parameters
from models.graph import strides
from models.heads.loss import DetectionLoss
from models.layer import Net
from models.network import Network
from models.records import to_json
from models.sync_bn import synchronise
from training import engine
from training.log import RunLog
from training.multiscale import multiscale_sides
from training.optim import make_ema, make_optimizer
from training.run import Run, Validator
from utils import ddp, runs
from utils.errors import DiskError

TERMS = ("box", "obj", "cls", "distill")           # of the loss; each one's weight is a flag of its name


def make_validator(args: argparse.Namespace, val_set: DetectionSet, world: ddp.World, device: torch.device,
                   precision: str, interrupt: runs.Interrupt) -> Validator:
    """What measures networks on the validation set.

    Beside other processes a signal is left to the next step's end: a rank that stopped alone would leave the
    others waiting.
    """
    loader = make_loader(val_set, args.batch_size, shuffle=False, pin_memory=device.type == "cuda")
    return Validator(val_set, loader, device, precision, None if world.size > 1 else interrupt.stop)


def make_loss(args: argparse.Namespace, net: Net, names: tuple[str, ...], device: torch.device,
              precision: str) -> Callable:
    """The loss of a network's raw maps, with the part of --teacher where one is given."""
    loss = DetectionLoss(net)
    if not args.teacher:
        return loss
    found = checkpoints.load(args.teacher)
    check_teacher(net, names, found.net, found.names)
    return DistilledLoss(loss, teacher(found.net, found.state, device, DTYPES[precision]))


def assemble(args: argparse.Namespace, folder: Path, world: ddp.World, precision: str, model: Network,
             train_set: DetectionSet, validator: Validator, loss: Callable, interrupt: runs.Interrupt) -> Run:
    """The run of prepared parts: optimizer, EMA, loader, settings, log."""
    device = validator.device
    net = model.net
    if world.main:
        check_disk(folder, parameters(net, statistics=True), args.optimizer)
    model = model.to(device).to(memory_format=torch.channels_last)
    if world.size > 1:
        model = synchronise(model)
    ema = make_ema(model, args.ema_decay, args.ema_ramp)
    lr = args.lr or {"sgd": 0.01, "adamw": 0.002}[args.optimizer]
    optimizer = make_optimizer(model, args.optimizer, lr, args.momentum, args.weight_decay)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    if world.size > 1:
        model = torch.nn.parallel.DistributedDataParallel(
            model, device_ids=[device.index] if device.type == "cuda" else None, broadcast_buffers=False)
    share = args.batch_size // world.size
    loader = make_loader(train_set, share, seed=args.seed, workers=args.workers, rank=world.rank,
                         world=world.size, pin_memory=device.type == "cuda")
    sides = multiscale_sides(args.imgsz, max(strides(net).values())) if args.multi_scale else ()
    settings = engine.Settings(args.epochs, lr, args.final_lr, min(args.warmup_epochs, args.epochs / 4),
                               max(1, round(args.nominal_batch / args.batch_size)), args.clip,
                               {name: getattr(args, name) for name in TERMS}, sides, precision,
                               args.seed, args.val_interval, args.metric, args.save_minutes)
    guard = {"torch": str(torch.__version__), "threads": torch.get_num_threads(), "processes": world.size,
             "precision": precision, "batch size": args.batch_size, "data": data_hash(train_set.coco),
             "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"}
    if world.main:
        (folder / "net.json").write_text(to_json(net))
    state = engine.State(model, ema, optimizer, scaler, device)
    return Run(args, folder, world, net, train_set, loader, validator, state, settings, loss,
               RunLog(folder), interrupt, guard)


def check_disk(folder: Path, numbers: int, optimizer: str) -> None:
    """Raises DiskError where the checkpoints of a network of so many numbers would not fit.

    A checkpoint for resuming holds the averaged weights, the weights, and the optimizer's one or two numbers
    a weight, in fp32; the last one, the one before and the one being written are there at a time,
    and the best weights.
    """
    copies = 3 * (2 + {"sgd": 1, "adamw": 2}[optimizer]) + 1
    need, free = 4 * numbers * copies, shutil.disk_usage(folder).free
    if free < need:
        raise DiskError(f"{folder}: checkpoints of this network need about {need / 1e6:.0f} MB, "
                        f"{free / 1e6:.0f} MB are free there; free some space, or choose another --project")


def data_hash(coco: CocoSet) -> int:
    """A number that changes with the pictures' names, sizes or boxes."""
    return checkpoints.checksum([(r.path.name, r.width, r.height, torch.from_numpy(r.boxes))
                                 for r in coco.images])
