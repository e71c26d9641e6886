"""Classifiers by name, and the rows of some: ShuffleNet V1 and V2, SqueezeNet, RegNet X, RepVGG, Xception."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from models.graph import outputs, strides
from models.layer import Layer, Net, heads
from models.zoo import mobile
from models.zoo.mobile import Rows
from utils.errors import ModelError


def shufflenet_v1(classes: int = 1000, groups: int = 3, width: float = 1.0) -> Net:
    """Return ShuffleNet V1 (arXiv 1707.01083): with 3 groups 1,864,728 parameters, 137.5 MMACs at 224 px."""
    rows, first = Rows(act="relu", groups=groups), int({3: 240, 8: 384}[groups] * width)
    stem = {.5: {3: 12, 8: 16}[groups], 1: 24, 2: 48}[width]
    rows.add("stem", "conv", out=stem, stride=2, groups=1)
    rows.add("pool", "maxpool", stride=2)
    for stage, blocks in enumerate((4, 8, 4)):
        out = first << stage
        for at in range(blocks):
            # What a strided unit makes itself stands beside its input.
            rows.add(f"stage{stage + 2}_{at}", "shufflev1", out=out if at else out - rows.width,
                     hidden=out // 4, stride=1 if at else 2, full=stage == at == 0)
            rows.widths[rows.x] = out
    return rows.end(classes, bias=False)                   # as in its authors' code


def shufflenet_v2(classes: int = 1000, width: float = 1.0) -> Net:
    """Return ShuffleNet V2 (arXiv 1807.11164): 2,278,604 parameters, 144.9 MMACs at 224 px."""
    *widths, last = {.5: (48, 96, 192, 1024), 1: (116, 232, 464, 1024), 1.5: (176, 352, 704, 1024),
                     2: (244, 488, 976, 2048)}[width]
    rows = Rows(act="relu")
    rows.add("stem", "conv", out=24, stride=2)
    rows.add("pool", "maxpool", stride=2)
    for stage, (out, blocks) in enumerate(zip(widths, (4, 8, 4)), 2):
        for at in range(blocks):
            rows.add(f"stage{stage}_{at}", "shufflev2", out=out, hidden=out // 2, stride=1 if at else 2)
    rows.add("last", "conv", out=last, kernel=1)
    return rows.end(classes)


def squeezenet(classes: int = 1000, version: str = "1.1") -> Net:
    """Return SqueezeNet (arXiv 1602.07360) without batch-norm: 1,235,496 parameters, 349.2 MMACs at 224."""
    stem, kernel, pools = {"1.0": (96, 7, (1, 4, 8)), "1.1": (64, 3, (1, 3, 5))}[version]
    rows = Rows(act="relu", bn=False)
    rows.add("conv1", "conv", out=stem, kernel=kernel, stride=2, pad=0)
    for at, (squeeze, out) in enumerate(zip((0, 16, 16, 32, 32, 48, 48, 64, 64),
                                            (stem, 128, 128, 256, 256, 384, 384, 512, 512)), 1):
        if squeeze:
            rows.add(f"fire{at}", "fire", out=out, squeeze=squeeze)
        if at in pools:
            rows.add(f"pool{at}", "maxpool", stride=2, pad=0, ceil=True)
    return rows.end(classes, full=True)


def regnet_x(classes: int = 1000, widths: tuple[int, ...] = (24, 56, 152, 368),
             depths: tuple[int, ...] = (1, 1, 4, 7), group: int = 8) -> Net:
    """Return a RegNet X (arXiv 2003.13678): 200MF has 2,684,792 parameters and 199.0 MMACs at 224 px."""
    rows = Rows(act="relu")
    rows.add("stem", "conv", out=32, stride=2)
    for out, depth in zip(widths, depths):
        for at in range(depth):
            rows.block("bottleneck", out, 1 if at else 2, "conv", hidden=out, groups=out // group)
    return rows.end(classes)


def repvgg_a0(classes: int = 1000) -> Net:
    """Return RepVGG-A0 (arXiv 2101.03697) as it trains: 9,108,968 parameters, 1,512.6 MMACs at 224 px."""
    rows = Rows(act="relu")
    rows.add("stem", "repconv", out=48, stride=2)
    for stage, (out, blocks) in enumerate(((48, 2), (96, 4), (192, 14), (1280, 1)), 1):
        for at in range(blocks):
            rows.add(f"stage{stage}_{at}", "repconv", out=out, stride=1 if at else 2)
    return rows.end(classes)


def xception(classes: int = 1000) -> Net:
    """Return Xception (arXiv 1610.02357): 22,855,952 parameters, 8,357.4 MMACs at its 299 px."""
    rows = Rows(act="relu")
    rows.add("stem1", "conv", out=32, stride=2, pad=0)
    rows.add("stem2", "conv", out=64, pad=0)
    for at, widths in enumerate(((128, 128), (256, 256), (728, 728), *((728,) * 3,) * 8, (728, 1024)), 1):
        x = side = rows.x
        if strided := len(widths) == 2:
            side = rows.add(f"skip{at}", "conv", x, out=widths[-1], kernel=1, stride=2, act="linear")
        rows.x = rows.add(f"act{at}", "act", x) if at > 1 else x
        for part, out in enumerate(widths, 1):
            rows.add(f"sep{at}_{part}", "sepconv", out=out, act="linear" if part == len(widths) else "relu")
        if strided:
            rows.add(f"pool{at}", "maxpool", stride=2)
        rows.add(f"block{at}", "add", rows.x, side)
    rows.add("sep13", "sepconv", out=1536)
    rows.add("sep14", "sepconv", out=2048)
    return rows.end(classes)


def csp(classes: int = 1000, widths: tuple[int, ...] = (16, 32, 64, 128, 256),
        depths: tuple[int, ...] = (1, 2, 3, 1)) -> Net:
    """Return CSP stages (arXiv 1911.11929) of YOLOv5n's widths: 1,138,760 parameters, 161.6 MMACs at 224."""
    rows = Rows(act="swish")
    rows.add("stem", "conv", out=widths[0], kernel=6, stride=2)
    for stage, (out, depth) in enumerate(zip(widths[1:], depths), 1):
        source = rows.add(f"down{stage}", "conv", out=out, stride=2)
        past = rows.add(f"past{stage}", "conv", source, out=out // 2, kernel=1)
        rows.add(f"in{stage}", "conv", source, out=out // 2, kernel=1)
        for at in range(depth):
            x = rows.x
            rows.add(f"reduce{stage}_{at}", "conv", x, out=out // 2, kernel=1)
            rows.add(f"unit{stage}_{at}", "add", x, rows.add(f"spatial{stage}_{at}", "conv", out=out // 2))
        rows.add(f"cat{stage}", "concat", rows.x, past)
        rows.add(f"stage{stage}", "conv", out=out, kernel=1)
    return rows.end(classes)


CLASSIFIERS: dict[str, Callable[..., Net]] = {
    "mobilenet-v1": mobile.mobilenet_v1, "mobilenet-v2": mobile.mobilenet_v2,
    "mobilenet-v3-small": mobile.mobilenet_v3_small, "mobilenet-v3-large": mobile.mobilenet_v3_large,
    "mnasnet-b1": mobile.mnasnet_b1, "efficientnet-lite0": mobile.efficientnet_lite0,
    "mobilenext": mobile.mobilenext, "ghostnet": mobile.ghostnet,
    "shufflenet-v1-g3": shufflenet_v1, "shufflenet-v1-g8": partial(shufflenet_v1, groups=8),
    "shufflenet-v2": shufflenet_v2,
    "squeezenet-1.0": partial(squeezenet, version="1.0"), "squeezenet-1.1": squeezenet,
    "regnet-x-200mf": regnet_x,
    "regnet-x-400mf": partial(regnet_x, widths=(32, 64, 160, 400), depths=(1, 2, 7, 12), group=16),
    "repvgg-a0": repvgg_a0, "xception": xception, "csp": csp}


def features(net: Net, reductions: Sequence[int] = (8, 16, 32)) -> tuple[Net, tuple[str, ...]]:
    """Return a classifier cut off as a backbone, and the record that each level ends in.

    reductions: px of the image that a cell of each level spans; every grid is the image's / reduction, by
    padding and, at the end, max-poolings. A level ends in the last record there through which all that
    follows goes. Raises ModelError for a detector, or a reduction that it skips.
    """
    if heads(net):
        raise ModelError("the network is a detector; features are those of a classifier")
    rows = [replace(row, pad=-1, ceil=False) for row in net if row.name not in ("last", *outputs(net))]
    while (end := strides(tuple(rows))[rows[-1].name]) < max(reductions):
        rows.append(Layer(f"down{2 * end}", "maxpool", (rows[-1].name,), stride=2))
    stride, at = strides(tuple(rows)), {row.name: number for number, row in enumerate(rows)}
    levels, earliest = {}, len(rows)
    for number, row in reversed(list(enumerate(rows))):
        if number <= earliest:                             # no later record reads past this one
            levels.setdefault(stride[row.name], row.name)
        earliest = min(earliest, *(at.get(name, -1) for name in row.inputs))
    if missing := [wanted for wanted in reductions if wanted not in levels]:
        raise ModelError(f"no level at reduction {missing[0]}; the network has {sorted(levels)}")
    names = tuple(levels[wanted] for wanted in reductions)
    needed = set(names)
    for row in reversed(rows):
        needed |= set(row.inputs) if row.name in needed else set()
    return tuple(row for row in rows if row.name in needed), names
