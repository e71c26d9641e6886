"""Which channel groups can be cut, how far a step goes, and what is cut along: choices for `prune`."""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from models.channels import frozen_groups, groups, widths
from models.layer import Net

PARTS = 16                                                 # a step takes a sixteenth of the original width
CUTS = ("outputs", "hidden", "both")


class Unit(NamedTuple):
    """A channel group that is cut step by step: its width at the start, and the channels a step takes."""

    group: str
    original: int
    step: int


def prunable(net: Net, cut: str = "outputs", sixteenths: float = 1.0) -> tuple[list[Unit], dict[str, str]]:
    """The groups that can be cut, front to back, and for the others why not.

    cut: block outputs (the hidden widths of the MBConvs they feed follow, as in the paper), hidden widths
    alone, or both. sixteenths: of the original width that a step takes; 1 in the paper.
    """
    frozen, units = frozen_groups(net), []
    reasons = {group: why for group, why in frozen.items() if group != "image"}
    for group, width in widths(net).items():
        inner = "." in group
        if group in frozen or group.endswith(".squeeze"):
            continue
        if inner and cut == "outputs":
            continue
        if not inner and cut == "hidden":
            continue
        if width < 2:
            reasons[group] = f"it has {width} channel"
            continue
        units.append(Unit(group, width, max(1, round(width * sixteenths / PARTS))))
    return units, reasons


def next_widths(units: Sequence[Unit], now: Mapping[str, int], steps: int,
                round_to: int = 1) -> tuple[dict[str, int], int]:
    """The narrower widths that the next step makes, and how many steps there have been then.

    now: the widths after `steps` earlier ones. A width is the multiple of round_to nearest to what the steps
    leave of the original; a step that changes none is passed over. ({}, steps) when nothing can be taken.
    """
    for count in range(steps + 1, max((u.original // u.step for u in units), default=0) + 1):
        left = {u.group: u.original - count * u.step for u in units}
        new = {g: max(round_to, (2 * w + round_to) // (2 * round_to) * round_to)
               for g, w in left.items() if w >= 1}
        if smaller := {g: w for g, w in new.items() if w < now[g]}:
            return smaller, count
    return {}, steps


def narrowed(net: Net, origin: Net, new: dict[str, int], round_to: int = 1) -> dict[str, int]:
    """The given new widths and those that follow: hidden and squeeze widths of MBConvs with a narrower input.

    They keep the ratio to their input that they have in `origin`, the network before any cut: hidden = alpha
    Cin in the paper (section A3 of our notes). Nothing is ever widened.
    """
    reached, width, first = groups(net), {**widths(net), **new}, widths(origin)
    out = dict(new)
    for layer in net:
        if layer.op != "mbconv" or not any(g in new for g in reached[layer.inputs[0]]):
            continue
        cin, before = (sum(w[g] for g in reached[layer.inputs[0]]) for w in (width, first))
        hidden, squeeze = f"{layer.name}.hidden", f"{layer.name}.squeeze"
        wanted = round(first[hidden] * cin / before)
        out[hidden] = min(width[hidden], max(round_to, wanted // round_to * round_to))
        if squeeze in first:
            out[squeeze] = min(width[squeeze], max(1, first[squeeze] * cin // before))
    return out


def strongest(new: dict[str, int], scores: Callable[[str], Tensor]) -> dict[str, list[int]]:
    """The keep-set of the new widths: of each group its channels of the highest score, in order."""
    return {group: sorted(scores(group).argsort(descending=True, stable=True)[:count].tolist())
            for group, count in new.items()}
