"""From train.py's flags to a run that is ready to train.

Data read, network built, weights taken over, state resumed.
"""
from __future__ import annotations

import argparse
import copy
import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

import torch

from compress.drop_se import layers_to_open, mean_gates, without_se
from compress.factorize import calibrate, separate
from data.anchors import anchor_recall, fit_anchors
from data.augment import preset
from data.coco.clean import report_faults
from data.coco.locate import locate
from data.coco.read import read_coco
from data.dataset import DetectionSet
from deploy.runtimes.runtime import half_fault
from models import checkpoint as checkpoints
from models.count import macs, parameters
from models.graph import strides
from models.layer import Net, heads
from models.network import Network, initialise
from models.transfer import report_lines, transfer
from models.zoo.build import build, with_heads
from training import engine
from training.assembly import assemble, make_loss, make_validator
from training.run import NOTES, Run
from utils import ddp, runs
from utils.errors import DataError, EnvironmentFault, ModelError, UsageError

CHECKED = 4                                        # pictures that half precision is tried on
CALIBRATION = 64                                   # pictures that set batch-norms of factors, and mean gates
Say = Callable[[str], None]


def prepare(args: argparse.Namespace) -> Run:
    """A run ready to train: data read, network built or loaded, state resumed. Raises each step's errors."""
    device, world, precision, say = enter(args)
    folder, lock = claim_folder(args, world)
    train_set, val_set = read_sets(args, world, folder, say)
    found = saved_run(folder, train_set, say) if args.resume is not None else None
    net, weights = (found.net, None) if found else choose_net(args, train_set, say)
    if args.imgsz % (stride := max(strides(net).values())):
        raise UsageError(f"--imgsz {args.imgsz}: this network needs a multiple of {stride}")
    model = initialise(Network(net), args.seed)
    if weights is not None:
        start_from(model, weights, train_set, args.separate, say)
    if world.main and not found:
        clear(folder)                              # now that the input is good, and before its log is read
    ddp.wait()
    fault = "" if found or precision == "fp32" else unsound(model, train_set, device, precision)
    if ddp.any_rank(bool(fault), device):          # kept in args.json: a resumed run stays with it
        precision = args.precision = "fp32"
    interrupt = runs.Interrupt()
    validator = make_validator(args, val_set, world, device, precision, interrupt)
    loss = make_loss(args, model.net, train_set.coco.names, device, precision)
    data = train_set.for_run(args.seed, max(0, args.epochs - args.close_mosaic))
    run = assemble(args, folder, world, precision, model, data, validator, loss, interrupt)
    run.lock, run.may_halve = lock, True
    if fault:
        run.note(f"half precision is {fault} on this network's first batch; training in fp32")
    if found:
        take_up(run, found, say)
    if world.main:
        runs.write_json(folder / "args.json", {**vars(args), "resume": None})
    say(f"{len(train_set)} train / {len(val_set)} val pictures, {len(train_set.coco.names)} classes; "
        f"{parameters(net):,} parameters, {macs(net, args.imgsz) / 1e9:.3f} GMACs at {args.imgsz}; "
        f"{device} x {world.size}, {precision}, {torch.get_num_threads()} threads; {folder}")
    return run


def enter(args: argparse.Namespace) -> tuple[torch.device, ddp.World, str, Say]:
    """This process's device, its place among torchrun's, the precision, and a print for rank 0 alone.

    Raises UsageError for a batch that does not divide, and as pick_device does.
    """
    device = own_device(args.device)
    world = ddp.join(device)
    runs.tune_cpu(args.threads)
    torch.manual_seed(args.seed)
    precision, note = runs.pick_precision(device, args.precision)
    say = print if world.main else (lambda *_, **__: None)
    if note:
        say(note)
    if args.batch_size % world.size:
        raise UsageError(f"--batch-size {args.batch_size} does not divide among {world.size} "
                         f"processes; give a multiple of {world.size}")
    return device, world, precision, say


def unsound(model: Network, train_set: DetectionSet, device: torch.device, precision: str) -> str:
    """What is wrong with half precision on this network and device; empty when nothing is.

    Some GPUs compute wrong numbers in half precision, and a network without batch-norm can overflow in it. A
    copy of the network answers a few training pictures as in a training step, in both precisions.
    """
    copied = copy.deepcopy(model).to(device).to(memory_format=torch.channels_last).train()
    images = plain_pictures(train_set, CHECKED).to(device).float() / 255
    images = images.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        exact = copied(images)
        with torch.autocast(device.type, engine.HALF[precision]):
            half = copied(images)
    return half_fault(half, exact)


def plain_pictures(dataset: DetectionSet, count: int) -> torch.Tensor:
    """Pictures of the set, evenly chosen, without augmentation: uint8 [N, 3, S, S], N at most `count`."""
    count = min(count, len(dataset))
    chosen = [dataset.plain(i * len(dataset) // count) for i in range(count)]
    return torch.stack([torch.from_numpy(picture) for picture in chosen]).permute(0, 3, 1, 2)


def own_device(name: str) -> torch.device:
    """The device of this process: of several processes on CUDA, each takes the one of its local rank."""
    device = runs.pick_device(name)
    if device.type == "cuda" and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        device = runs.pick_device(os.environ["LOCAL_RANK"])
    if device.type == "cuda":
        torch.cuda.set_device(device)              # collectives without a tensor use the current one
        torch.backends.cudnn.deterministic = True
    return device


def start_from(model: Network, weights: checkpoints.Checkpoint, train_set: DetectionSet, factorise: bool,
               say: Say) -> None:
    """Gives the model the layers it shares with a checkpoint.

    Layers that have squeeze-excitation there and none here take their mean gates in. On request, also factors
    of those it replaced.
    """
    if shut := layers_to_open(weights.net, model.net):
        pictures = plain_pictures(train_set, CALIBRATION)
        gates = mean_gates(weights.net, weights.state, pictures, shut)
        net, state = without_se(weights.net, weights.state, gates)
        weights = dataclasses.replace(weights, net=net, state=state)
        say(f"squeeze-excitation of {', '.join(shut)}: mean gates of {len(pictures)} pictures, as constants")
    state, report = transfer(model.net, model.state_dict(), train_set.coco.names, weights)
    say("\n".join(report_lines(report)))
    if factorise:
        state, kept = separate(weights.net, weights.state, model.net, state)
    model.load_state_dict(state)
    if factorise:
        calibrate(model, plain_pictures(train_set, CALIBRATION).float() / 255, kept)
        shares = ", ".join(f"{name} {share:.0%}" for name, share in kept.items())
        say(f"factorised: {shares} of the kernels' energy kept")


def claim_folder(args: argparse.Namespace, world: ddp.World) -> tuple[Path, TextIO | None]:
    """The run folder, the same on every rank, and rank 0's lock on it."""
    chosen, lock = [None], None
    if world.main:
        folder = (Path(args.resume) if args.resume is not None
                  else runs.make_run_folder(args.project, args.name, args.exist_ok))
        lock = runs.lock(folder)
        chosen[0] = str(folder)
    if world.size > 1:
        torch.distributed.broadcast_object_list(chosen)
    return Path(chosen[0]), lock


def clear(folder: Path) -> None:
    """Takes an earlier run's state out of the folder (--exist-ok): only --resume goes on."""
    (folder / "weights").mkdir(exist_ok=True)
    for stale in (*folder.glob("weights/*.pt"), folder / "log.jsonl", folder / NOTES):
        stale.unlink(missing_ok=True)


def read_sets(args: argparse.Namespace, world: ddp.World, folder: Path,
              say: Say) -> tuple[DetectionSet, DetectionSet]:
    """The training and validation sets; faults are printed, the validation's classes are the training's."""
    if world.main:
        locate(args.data)                                  # one process makes the embedded set
    ddp.wait()
    where = locate(args.data)
    common = {"max_pixels": args.max_pixels, "drop_unknown": args.drop_unknown, "trust": args.trust,
              "memo": folder / "pictures.json" if world.main else None}
    train = read_coco(*where.train, names=where.names, **common)
    val = read_coco(*where.val, names=train.names, class_map=train.class_map, **common)
    for split, coco in (("train", train), ("val", val)):
        for line in report_faults(coco.faults):
            say(f"{split}: {line}")
    if not any(len(record.boxes) for record in train.images):
        raise DataError(f"{where.train.json}: not one box to learn from; is it the right annotation file?")
    shared = (args.seed, args.cache, args.max_pixels)
    return (DetectionSet(train, args.imgsz, preset(args.augment), *shared),
            DetectionSet(val, args.imgsz, None, *shared))


def choose_net(args: argparse.Namespace, train_set: DetectionSet,
               say: Say) -> tuple[Net, checkpoints.Checkpoint | None]:
    """The records to train and the checkpoint whose layers they may take."""
    weights = checkpoints.load(args.weights) if args.weights else None
    classes = len(train_set.coco.names)
    net = build(args.cfg, classes) if args.cfg else with_heads(weights.net, classes)
    if not args.fit_anchors:
        return net, weights
    sizes = torch.cat([torch.from_numpy(b[:, 3:5] - b[:, 1:3]) for b in train_set.boxes]).numpy()
    fitted = fit_anchors(sizes, sum(len(head.anchors) for head in heads(net)), args.seed)
    px, parts, at = strides(net), {}, 0
    for head in sorted(heads(net), key=lambda head: px[head.name]):    # the finest grid takes the smallest
        parts[head.name] = tuple((round(w, 1), round(h, 1)) for w, h in fitted[at:at + len(head.anchors)])
        at += len(head.anchors)
    parts = tuple(parts[head.name] for head in heads(net))
    before = [a for head in heads(net) for a in head.anchors]
    say(f"anchors fitted: {' '.join(str(p) for p in parts)}; "
        f"mean best IoU {anchor_recall(sizes, fitted)[0]:.3f} "
        f"(before {anchor_recall(sizes, before)[0]:.3f})")
    return with_heads(net, classes, parts), weights


def saved_run(folder: Path, train_set: DetectionSet, say: Say) -> checkpoints.Checkpoint:
    """The checkpoint to go on from; its network is the run's, whatever the flags that built it say now."""
    last = folder / "weights" / "last.pt"
    found, note = checkpoints.load_or_previous(last)
    if note:
        say(f"warning: {note}")
    if found.training is None:
        raise ModelError(f"{last} holds weights only, nothing to resume; "
                         f"start a new run with --weights {last}")
    if found.names != train_set.coco.names:
        raise DataError(f"the run learned the classes {', '.join(found.names)}; the data now has "
                        f"{', '.join(train_set.coco.names)}; restore the data, or start a new run")
    return found


def take_up(run: Run, found: checkpoints.Checkpoint, say: Say) -> None:
    """Loads a checkpoint's state; what would not be bit-exact needs --accept."""
    before = found.training["guard"]
    lost = [f"{key} was {before.get(key)}, is {value}" for key, value in run.guard.items()
            if before.get(key) != value]
    if lost and not run.args.accept:
        raise EnvironmentFault(f"the continuation would not be bit-exact: {'; '.join(lost)}. "
                               "Restore that, or add --accept to go on all the same")
    run.state.load(found.training)
    if run.world.main:
        run.log.keep_before(run.state.epoch)
    say(f"going on from epoch {run.state.epoch + 1}, batch {run.state.batch}"
        + (f" (no longer bit-exact: {'; '.join(lost)})" if lost else ""))
