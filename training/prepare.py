"""From a config to a run that is ready: data read, network built, weights taken over, state resumed."""
from __future__ import annotations

import copy
import dataclasses
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from compress.distill import DistilledLoss
from data.augment import FILES, preset
from data.coco.clean import report_faults
from data.coco.locate import locate
from data.coco.read import read_coco, read_unlabelled
from data.coco.write import refuse_inside
from data.dataset import DetectionSet
from data.doctor.leaks import start_faults
from deploy.runtimes.runtime import half_fault
from models import checkpoint as checkpoints
from models.count import macs, parameters
from models.graph import strides
from models.heads.loss import DetectionLoss
from models.layer import Net
from models.network import Network
from training import engine
from training.config import Recipe, TrainConfig
from training.plan import largest_batch
from training.precision import faster
from training.run import NOTES, Run, Session, Validator, check_disk, make_state
from training.start import choose_net, class_weights, plain_images, settle, start_from, take_backbone
from training.teach import make_loss, own_average, student
from utils import ddp, runs
from utils.errors import DataError, EnvironmentFault, ModelError, UsageError

# What a new run takes away of an earlier one in the same folder
WRITTEN = (*(f"weights/{name}{end}" for name in ("last", "best") for end in (".pt", ".prev.pt")), "log.jsonl",
           NOTES)
CHECKED = 4                                        # images that half precision is tried on
TIMED_IMAGES = 16                                  # images that a latency takes in turn


def prepare(config: TrainConfig) -> Run:
    """Return a run ready to train: data read, network built or loaded, state resumed.

    A new folder of a start that fails is taken away, so that the next run has its name.
    """
    session = enter(config)
    config = config if config.resume is not None else settle(config, session.say)
    folder, new = config.resume, False
    if session.world.main and folder is None:
        check_outside(config, *filter(None, [config.unlabelled]))
        new = not (config.exist_ok and (Path(config.project) / config.name).exists())
        folder = runs.make_run_folder(config.project, config.name, config.exist_ok, "val_interval", WRITTEN)
    folder = Path(ddp.from_main(str(folder)))
    try:
        return _ready(config, session, folder)
    except BaseException:
        if new:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _ready(config: TrainConfig, session: Session, folder: Path) -> Run:
    """Return the run of that folder."""
    world, say = session.world, session.say
    lock = runs.lock(folder) if world.main else None
    own = dataclasses.replace(config, augment=own_pipeline(config, folder, world.main))
    train_set, val_set = read_sets(own, session, folder, config.unlabelled)
    found = saved_run(folder, train_set.coco.names, say) if config.resume is not None else None
    net, weights = (found.net, None) if found else choose_net(config, train_set, say)
    weighted = class_weights(config.class_weights, train_set, say)
    model = student(config, net)
    if not config.batch_size:
        config = with_batch(config, model, train_set, session)
    check_side(net, config, min(len(train_set), config.epoch_images or len(train_set)))
    if config.backbone_weights and not found:
        take_backbone(model, config.backbone_weights, say)
    if weights is not None:
        start_from(model, weights, train_set, config.separate, say)
    if world.main and not found:
        check_disk(folder, parameters(net, statistics=True), config.optimizer)     # before anything is lost
        clear(folder)                              # now that the input is good, and before its log is read
    ddp.wait()
    fault = ""
    if not found and session.precision != "fp32":
        config, session, fault = tried(config, session, model, train_set)
    interrupt = runs.Interrupt()
    run = Run(config, folder, session, model,
              train_set.for_run(config.seed, max(0, config.epochs - config.close_mosaic)),
              Validator(config, val_set, session, interrupt),
              make_loss(config, net, train_set.coco.names, session, weighted), interrupt,
              lock=lock, may_halve=True)
    if config.self_distill:
        run.loss = DistilledLoss(run.loss, own_average(run))
    if fault:
        run.note(f"half precision is {fault} on this network's first batch; training in fp32")
    if found:
        resume(run, found.training)
    if world.main:
        run.write_config()
    say(in_words(run))
    return run


def in_words(run: Run) -> str:
    """Return what a run trains on and with, as its start says it."""
    config, session, train_set = run.config, run.session, run.train_set.coco
    more = f" labelled + {len(train_set.unlabelled)} unlabelled" if train_set.unlabelled else ""
    part = f" ({config.epoch_images} of them an epoch)" if config.epoch_images else ""
    return (f"{len(train_set.images)}{more} train{part} / {len(run.validator.dataset)} val images, "
            f"{len(train_set.names)} classes; {parameters(run.net):,} parameters, "
            f"{macs(run.net, config.imgsz) / 1e9:.3f} GMACs at {config.imgsz}; {session.device} x "
            f"{session.world.size}, {session.precision}, {torch.get_num_threads()} threads; {run.folder}")


def enter(config: Recipe) -> Session:
    """Return what this process trains with, torchrun's processes joined; UsageError for an odd batch."""
    device = runs.pick_device(config.device)
    if device.type == "cuda":
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:     # of several processes, each takes its own
            device = runs.pick_device(os.environ["LOCAL_RANK"])
        torch.cuda.set_device(device)                      # collectives without a tensor use the current one
        torch.backends.cudnn.deterministic = True
    world = ddp.join(device)
    runs.tune_cpu(config.threads)
    torch.manual_seed(config.seed)
    precision, note = runs.pick_precision(device, config.precision)
    say = print if world.main else (lambda *_, **__: None)
    if note:
        say(note)
    if config.batch_size % world.size:
        raise UsageError(f"--batch-size {config.batch_size} does not divide among {world.size} "
                         f"processes; give a multiple of {world.size}")
    return Session(device, world, precision, say)


def clear(folder: Path) -> None:
    """Remove an earlier run's state from the folder (--exist-ok): only --resume continues it."""
    (folder / "weights").mkdir(exist_ok=True)
    for stale in WRITTEN:                                  # and nothing that no run wrote
        (folder / stale).unlink(missing_ok=True)


def check_outside(config: Recipe, *more: str) -> None:
    """Raise UsageError where the run folder would lie among the images of the data set, or in one more."""
    where = locate(config.data, config.val_split, config.seed)
    _refuse_among(Path(config.project) / config.name, {*where.folders, *map(Path, more)})


def _refuse_among(target: Path, folders: Iterable[Path]) -> None:
    """Raise UsageError where `target` lies in one of the folders, but for one that the user works in."""
    # That one holds more than images: there, runs are where they always are.
    refuse_inside(target, [folder for folder in folders if not Path.cwd().is_relative_to(folder.resolve())])


def read_sets(config: Recipe, session: Session, folder: Path,
              unlabelled: str | None = None) -> tuple[DetectionSet, DetectionSet]:
    """Return training and validation set, with the classes of the first; DataError where none has a box.

    unlabelled: a folder whose images join the training set without ground truth.
    """
    if session.world.main:
        locate(config.data)                                # one process makes the embedded set
    ddp.wait()
    where = locate(config.data, config.val_split, config.seed)
    if where.note:
        session.say(where.note)
    if session.world.main:
        where.save(folder, config.max_pixels)
    common = {"max_pixels": config.max_pixels, "drop_unknown": config.drop_unknown, "trust": config.trust,
              "memo": folder / "pictures.json" if session.world.main else None}
    train = read_coco(*where.train, names=where.names, **common)
    if unlabelled:
        more, faults = read_unlabelled(unlabelled, config.max_pixels, common["memo"])
        train = dataclasses.replace(train, unlabelled=more, faults=(*train.faults, *faults))
    val = read_coco(*where.val, names=train.names, class_map=train.class_map, **common)
    _refuse_among(folder, {record.path.parent for coco in (train, val) for record in coco.records})
    further = start_faults(train, val)
    for split, coco in (("train", train), ("val", val)):
        for line in report_faults([*coco.faults, *further[split]]):
            session.say(f"{split}: {line}")
    if not any(len(record.boxes) for record in train.images):
        raise DataError(f"{where.train.json}: not one box to learn from; is it the right annotation file?")
    shared = (config.seed, config.cache, config.max_pixels)
    augment = dataclasses.replace(preset(config.augment), mixup=config.mixup)
    return (DetectionSet(train, config.imgsz, augment, *shared),
            DetectionSet(val, config.imgsz, None, *shared))


def own_pipeline(config: TrainConfig, folder: Path, main: bool) -> str:
    """Return --augment, of a file the copy in the run folder: made here, and what resuming reads."""
    if not config.augment.endswith(FILES):
        return config.augment
    copy_of, given = folder / f"augment{Path(config.augment).suffix}", Path(config.augment)
    if main and not (config.resume is not None and copy_of.is_file()):
        if not given.is_file():
            raise UsageError(f"--augment {given}: no such file; give a pipeline as albumentations saves it")
        shutil.copyfile(given, copy_of)
    ddp.wait()
    return str(copy_of)


def with_batch(config: TrainConfig, model: Network, train_set: DetectionSet, session: Session) -> TrainConfig:
    """Return the config with the batch of --batch-size auto: the largest that fits CUDA, or 16."""
    if session.device.type != "cuda":
        session.say("--batch-size auto: 16, for on a CPU memory says nothing of speed")
        return dataclasses.replace(config, batch_size=16)
    peaks, world = {}, session.world.size
    largest = max(config.sides(max(strides(model.net).values())), default=config.imgsz)
    for size in (4, 8):
        state = make_state(copy.deepcopy(model).to(session.device), config, session)
        images = torch.rand(size, 3, largest, largest, device=session.device)
        torch.cuda.reset_peak_memory_stats()
        with torch.autocast("cuda", engine.HALF.get(session.precision), enabled=session.precision != "fp32"):
            outputs = state.model(images)
        terms = DetectionLoss(model.net)(outputs, images.new_tensor([[0, 0, .5, .5, .2, .2]]))
        sum(terms.values()).backward()
        state.optimizer.step()
        peaks[size] = torch.cuda.max_memory_allocated()
    batch = ddp.from_main(largest_batch(peaks, torch.cuda.mem_get_info()[0], len(train_set) // world))
    session.say(f"--batch-size auto: {batch * world} ({peaks[8] / 8e6:.0f} MB an image)")
    return dataclasses.replace(config, batch_size=batch * world)


def check_side(net: Net, config: Recipe, images: int) -> None:
    """Raise UsageError where the network cannot divide its input, or batch-norm would see a single number."""
    if config.imgsz % (stride := max(strides(net).values())):
        raise UsageError(f"--imgsz {config.imgsz}: this network needs a multiple of {stride}")
    smallest = max(stride, config.imgsz // 2 // stride * stride) if config.multi_scale else config.imgsz
    if smallest == stride and (images % config.batch_size or config.batch_size) == 1:
        raise UsageError(f"--batch-size {config.batch_size}: of {images} images the last batch is one, which "
                         f"at {smallest} px is one cell, too little for batch-norm; change it, or --imgsz")


def tried(config: TrainConfig, session: Session, model: Network,
          train_set: DetectionSet) -> tuple[TrainConfig, Session, str]:
    """Return both with half precision only where it holds and pays, and what is wrong with it."""
    fault, name = unsound(model, train_set, session), session.precision
    if ddp.any_rank(bool(fault), session.device):
        name = "fp32"
    elif config.precision == "auto" and name == "bf16":
        name = faster(config, session, model, train_set)
    if name != "fp16":                             # in args.json too: a resumed run keeps what was found out
        config = dataclasses.replace(config, precision=name)
    return config, session._replace(precision=name), fault


def unsound(model: Network, train_set: DetectionSet, session: Session) -> str:
    """Return what is wrong with half precision on this network and device; empty when nothing is."""
    # Some GPUs compute wrong numbers in it, and a network without batch-norm can overflow.
    device, memory = session.device, torch.channels_last
    copied = copy.deepcopy(model).to(device, memory_format=memory).train()
    images = (plain_images(train_set, CHECKED).to(device).float() / 255).contiguous(memory_format=memory)
    with torch.no_grad():
        exact = copied(images)
        with torch.autocast(device.type, engine.HALF[session.precision]):
            half = copied(images)
    return half_fault(half, exact)


def saved_run(folder: Path, names: tuple[str, ...], say: Callable) -> checkpoints.Checkpoint:
    """Return the checkpoint to continue from; its network is the run's, whatever the flags say now."""
    last = folder / "weights" / "last.pt"
    found, note = checkpoints.load_or_previous(last)
    if note:
        say(f"warning: {note}")
    if found.training is None:
        raise ModelError(f"{last} holds weights only, nothing to resume; "
                         f"start a new run with --weights {last}")
    if found.names != names:
        raise DataError(f"the run learned the classes {', '.join(found.names)}; the data now has "
                        f"{', '.join(names)}; restore the data, or start a new run")
    return found


def resume(run: Run, saved: dict) -> None:
    """Load a checkpoint's training state; what would not be bit-exact needs --accept."""
    kinds = {name: type(getattr(run.state, name)) for name in run.state.COUNTERS} | {"guard": dict}
    wrong = [name for name, kind in kinds.items()
             if not isinstance(saved.get(name), (kind, int) if kind is float else kind)]
    unfit = f"{run.last}: its training state is not this version's ({{}}); continue with the version that " \
            f"wrote it, or start a new run with --weights {run.last}"
    if wrong:
        raise ModelError(unfit.format(f"{', '.join(wrong)} absent or of another type"))
    lost = "; ".join(f"{key} was {before}, is {run.guard[key]}" for key, before in run.changed(saved).items())
    if lost and not run.config.accept:
        raise EnvironmentFault(f"the continuation would not be bit-exact: {lost}. "
                               "Restore that, or add --accept to continue all the same")
    try:
        run.take_up(saved)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:   # torch's, of any part
        raise ModelError(unfit.format(str(error).split("\n")[0])) from None
    if "val" in run.changed(saved):
        run.state.best = -1.0                          # reached on another set
    run.session.say(f"continuing from epoch {run.state.epoch + 1}, batch {run.state.batch}"
                    + (f" (no longer bit-exact: {lost})" if lost else ""))
