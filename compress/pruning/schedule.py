"""Which units can be cut, how far a step goes, and what is cut along: choices for `prune`."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from models.channels import channels, widths, with_widths
from models.layer import Net
from models.nodes import IMAGE

if TYPE_CHECKING:
    from bench.profile.costs import Table

PARTS = 16                                                 # a step takes a sixteenth of the original width


class Unit(NamedTuple):
    """A unit that is cut step by step: its width at the start, and the channels that a step takes."""

    name: str
    original: int
    step: int


def prunable(net: Net, cut: str = "outputs", sixteenths: float = 1.0) -> tuple[list[Unit], dict[str, str]]:
    """Return the units that can be cut, front to back, and for the others why not; as PruneConfig says."""
    table, units = channels(net), []
    reasons = {name: why for name, why in table.frozen.items() if name != IMAGE}
    for name, ids in table.units.items():
        inner = "." in name
        if name in table.frozen or name.endswith(".squeeze") or cut == ("outputs" if inner else "hidden"):
            continue
        if len(ids) < 2:
            reasons[name] = f"it has {len(ids)} channel"
            continue
        units.append(Unit(name, len(ids), max(1, round(len(ids) * sixteenths / PARTS))))
    return units, reasons


def next_widths(units: Sequence[Unit], now: Mapping[str, int], steps: int,
                round_to: int = 1) -> tuple[dict[str, int], int]:
    """Return the narrower widths that the next step makes, and how many steps there have been then.

    now: the widths after `steps` earlier ones. A step that changes no width, rounded to the nearest multiple
    of round_to, is passed over. ({}, steps) when nothing can be taken.
    """
    for count in range(steps + 1, max((u.original // u.step for u in units), default=0) + 1):
        left = {u.name: u.original - count * u.step for u in units}
        new = {g: max(round_to, (2 * w + round_to) // (2 * round_to) * round_to)
               for g, w in left.items() if w >= 1}
        if smaller := {g: w for g, w in new.items() if w < now[g]}:
            return smaller, count
    return {}, steps


def cheapest(table: Table, now: Mapping[str, int], scores: Mapping[str, Sequence[float]], save: float,
             multiple: int = 1) -> dict[str, int]:
    """Return the narrower widths that save so much of the table's cost and lose the least importance.

    now: unit -> width; scores: unit -> importance of its channels, of which the share that stays counts, as
    its logarithm: the last channels of a unit are dearer than the first. Move by move, the unit and measured
    width of the least loss per cost saved: what saves nothing is never taken, so widths come to lie below the
    cliffs of the table. {} where nothing saves anything.
    """
    width = dict(now)
    kept = {unit: np.log(np.cumsum(sorted(values, reverse=True)) + 1e-12) for unit, values in scores.items()}
    start = left = table.total(width)
    while left > start - save:
        moves = []
        for unit in scores:
            for new in table.widths(unit, width[unit], multiple):
                gain = left - table.total({**width, unit: new})
                if gain > 0:
                    lost = kept[unit][width[unit] - 1] - kept[unit][new - 1]
                    moves.append((lost / gain, unit, -new))        # of equals the smallest move
        if not moves:
            break
        _, unit, new = min(moves)
        width[unit] = -new
        left = table.total(width)
    return {unit: new for unit, new in width.items() if new < now[unit]}


def narrowed(net: Net, origin: Net, new: dict[str, int], round_to: int = 1) -> dict[str, int]:
    """Return the given new widths and those that follow: inner widths of blocks with a narrower input.

    They keep the ratio to their input that they have in `origin`, the network before any cut (hidden = alpha
    Cin in the paper). Nothing is ever widened.
    """
    width, first, out = widths(net), widths(origin), dict(new)
    now, before = channels(net).outputs, channels(origin).outputs
    after = channels(with_widths(net, new)).outputs
    for layer in net:
        source = layer.inputs[0]
        if len(after[source]) == len(now[source]):
            continue
        for field in ("hidden", "squeeze"):
            unit = f"{layer.name}.{field}"
            if unit not in width or unit in new:
                continue
            wanted = first[unit] * len(after[source]) / len(before[source])
            rounded = max(round_to, round(wanted) // round_to * round_to)
            wanted = int(wanted) if field == "squeeze" else rounded
            out[unit] = min(width[unit], max(1, wanted))
    return out
