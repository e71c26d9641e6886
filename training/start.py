"""What a training starts from: the network and its side, the weights it takes over."""
from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import TypeVar

import torch

from compress.drop_se import layers_to_open, mean_gates, without_se
from compress.factorize import calibrate, separate
from compress.unfold import unfold
from data.anchors import anchor_recall, fit_anchors
from data.dataset import DetectionSet
from models import checkpoint as checkpoints
from models.channels import channels
from models.files.backbones import load_backbone
from models.graph import expand, strides
from models.layer import Net, heads
from models.network import Network
from models.transfer import report_lines, transfer
from models.zoo.build import DEFAULT, SIDE, build, shipped, with_heads
from training.config import NetRecipe, Recipe, TrainConfig
from utils import runs
from utils.errors import ModelError, UsageError

Config = TypeVar("Config", bound=Recipe)
CALIBRATION = 64                                   # images that set batch-norms of factors, and mean gates


def settle(config: Config, say: Callable = print) -> Config:
    """Return the config with what no flag told: train.py's network and weights, and the weights' side.

    Raises ModelError as checkpoints.load does.
    """
    if isinstance(config, TrainConfig) and not config.weights:
        path = None if config.backbone_weights else shipped(config.cfg or DEFAULT)
        say(f"--weights is not given: {path or 'starting at random'}")
        config = dataclasses.replace(config, weights=path or "none")
    if isinstance(config, TrainConfig) and not (config.start or config.cfg):
        say(f"--cfg is not given: {DEFAULT}")
        config = dataclasses.replace(config, cfg=DEFAULT)
    if config.imgsz is None:
        side = checkpoints.load(config.start).imgsz if config.start else SIDE
        say(f"--imgsz is not given: {side} px" + (f", as {config.start} has it" if config.start else ""))
        config = dataclasses.replace(config, imgsz=side)
    return config


def choose_net(config: NetRecipe, train_set: DetectionSet,
               say: Callable) -> tuple[Net, checkpoints.Checkpoint | None]:
    """Return the records to train and the checkpoint whose layers they may take.

    Heads of the same name have the checkpoint's anchors. Anchors are px at any side: in proportion to
    it (128 of 416) they cost 1 to 7 points of AP50 (docs/results.md).
    """
    weights = checkpoints.load(config.start) if config.start else None
    if weights is not None and weights.extra.get("folded"):
        weights = trainable(weights, train_set, say)
    classes = len(train_set.coco.names)
    net = build(config.cfg, classes) if config.cfg else with_heads(weights.net, classes)
    if weights is not None:
        given = {node.layer for node in expand(weights.net).nodes if node.constant}
        lost = sorted(given - {row.name for row in net})
        there = {row.name: row for row in weights.net}
        if lost and {row.name for row in net} == set(there) - set(lost):       # the same, but for that rule
            net = tuple(row for row in weights.net if row.name in lost) + tuple(
                dataclasses.replace(row, inputs=there[row.name].inputs) for row in net)
        elif lost:
            raise UsageError(f"--cfg {config.cfg}: the record {lost[0]!r} of {config.start} brings images to "
                             "a mean and deviation, and this network lacks it; leave out --cfg")
        mine = {(head.name, head.kind, len(head.anchors)) for head in heads(net)}
        kept = {head.name: head.anchors for head in heads(weights.net)
                if (head.name, head.kind, len(head.anchors)) in mine}
        net = tuple(dataclasses.replace(row, anchors=kept.get(row.name, row.anchors)) for row in net)
    return (fitted(net, config, train_set, say) if config.fit_anchors else net), weights


def trainable(weights: checkpoints.Checkpoint, train_set: DetectionSet,
              say: Callable) -> checkpoints.Checkpoint:
    """Return a folded checkpoint with batch-norm put back, its statistics those of training images."""
    images = plain_images(train_set, CALIBRATION)
    net, state = unfold(weights.net, weights.state, images)
    say(f"batch-norm put back behind the folded convolutions, measured on {len(images)} training images")
    return dataclasses.replace(weights, net=net, state=state)


def fitted(net: Net, config: NetRecipe, train_set: DetectionSet, say: Callable) -> Net:
    """Return the network with anchors fitted to the training boxes."""
    if without := sorted({head.kind for head in heads(net) if not head.anchors}):
        raise UsageError(f"--fit-anchors: heads of kind {', '.join(without)} have none; leave it out")
    sizes = torch.cat([torch.from_numpy(b[:, 3:5] - b[:, 1:3]) for b in train_set.boxes]).numpy()
    found = fit_anchors(sizes, sum(len(head.anchors) for head in heads(net)), config.seed)
    px, parts, left = strides(net), {}, iter(found)
    for head in sorted(heads(net), key=lambda head: px[head.name]):    # the finest grid takes the smallest
        parts[head.name] = tuple((round(w, 1), round(h, 1)) for w, h in islice(left, len(head.anchors)))
    parts = tuple(parts[head.name] for head in heads(net))
    new, old = (anchor_recall(sizes, anchors)[0] for anchors in (
        found, [anchor for head in heads(net) for anchor in head.anchors]))
    say(f"anchors fitted: {' '.join(map(str, parts))}; mean best IoU {new:.3f} (before {old:.3f})")
    return with_heads(net, len(train_set.coco.names), parts)


def class_weights(words: Sequence[str], train_set: DetectionSet, say: Callable) -> torch.Tensor | None:
    """Return the weights [K] that --class-weights names, None where it names none. Raises UsageError."""
    if not words:
        return None
    names, out = train_set.coco.names, torch.ones(len(train_set.coco.names))
    if list(words) == ["auto"]:
        labels = torch.cat([torch.from_numpy(boxes[:, 0]) for boxes in train_set.boxes]).long()
        count = torch.bincount(labels, minlength=len(names)).float()
        out = torch.where(count > 0, count.clamp(min=1).rsqrt(), count.new_ones(()))
        out = torch.where(count > 0, out * count.sum() / (out * count).sum(), 1.0)     # 1 on average of boxes
    elif len(words) == 1 and words[0].endswith(".json"):
        given = runs.read_object(Path(words[0]))
    else:
        given = dict(word.rpartition("=")[::2] for word in words)
    for name, weight in given.items() if list(words) != ["auto"] else ():
        try:
            out[names.index(name)] = value = float(weight)
        except (TypeError, ValueError):
            value = -1.0
        if not 0 <= value < math.inf:
            raise UsageError(f"--class-weights {name}={weight}: needs a class of {', '.join(names)} and a "
                             "weight of 0 or more; or auto, or a JSON of name: weight")
    say("class weights: " + ", ".join(f"{name} {weight:.2f}" for name, weight in zip(names, out.tolist())))
    return out


def start_from(model: Network, weights: checkpoints.Checkpoint, train_set: DetectionSet, factorise: bool,
               say: Callable) -> None:
    """Give the model the layers it shares with a checkpoint; on request, factors of those it replaced."""
    if shut := layers_to_open(weights.net, model.net):
        images = plain_images(train_set, CALIBRATION)
        means = mean_gates(weights.net, weights.state, images, shut)
        net, state = without_se(weights.net, weights.state, means)
        weights = dataclasses.replace(weights, net=net, state=state)
        say(f"squeeze-excitation of {', '.join(shut)}: mean gates of {len(images)} images, as constants")
    state, report = transfer(model.net, model.state_dict(), train_set.coco.names, weights)
    say("\n".join(report_lines(report)))
    if factorise:
        state, kept = separate(weights.net, weights.state, model.net, state)
    model.load_state_dict(state)
    if factorise and not kept:
        say("warning: --separate: no layer is a convolution there and separable here; nothing was factorised")
    elif factorise:
        calibrate(model, plain_images(train_set, CALIBRATION).float() / 255, kept)
        shares = ", ".join(f"{name} {share:.0%}" for name, share in kept.items())
        say(f"factorised: {shares} of the kernels' energy kept")


def take_backbone(model: Network, word: str, say: Callable) -> None:
    """Give the model the layers of a classifier that have the same name and shapes, and say which.

    word: as `files.backbones.load_backbone`. Raises ModelError as that does, or where no layer is the same.
    """
    source = load_backbone(word)
    state, report = transfer(model.net, model.state_dict(), (), source)      # no class is shared, so no head
    taken = {row["layer"]: row["parameters"] for row in report if row["taken"]}
    there = list(dict.fromkeys(param.node.layer for param in channels(source.net).params))
    missing = [name for name in there if name not in taken]
    if not taken:
        raise ModelError(f"--backbone-weights {word}: none of its {len(there)} layers ({', '.join(there[:3])}"
                         ", ...) has the name and shapes of one here; name its network in --cfg, as "
                         f"nano:{source.extra.get('classifier', 'BACKBONE')}+pan")
    say(f"--backbone-weights {word}: {len(taken)} of its {len(there)} layers taken, "
        f"{sum(taken.values()):,} parameters" + (f"; not here: {', '.join(missing)}" if missing else "")
        + f"; at random: {len(report) - len(taken)} layers")
    model.load_state_dict(state)


def plain_images(dataset: DetectionSet, count: int) -> torch.Tensor:
    """Return images of the set, evenly chosen, not augmented: uint8 [N, 3, S, S], N at most `count`."""
    count = min(count, len(dataset))
    chosen = [dataset.plain(i * len(dataset) // count) for i in range(count)]
    return torch.stack([torch.from_numpy(image) for image in chosen]).permute(0, 3, 1, 2)
