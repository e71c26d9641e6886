"""Taking over weights from another network, by name and shape, with a report of every record."""
from __future__ import annotations

from torch import Tensor

from models.channels import channels
from models.checkpoint import Checkpoint
from models.graph import heads_of
from models.layer import Layer, Net


def transfer(net: Net, state: dict[str, Tensor], names: tuple[str, ...],
             source: Checkpoint) -> tuple[dict[str, Tensor], list[dict[str, object]]]:
    """Return a new state for `net`, its tensors those of `source` where a record means the same there.

    A record is taken whole or not at all; of a head for other classes the channels that both have. The report
    has a row per record: layer, taken (bool), parameters, why.
    """
    there = {layer.name: layer for layer in source.net}
    heads, other_heads = ({head.layer.name: head for head in heads_of(n)} for n in (net, source.net))
    sizes, source_sizes = _sizes(net), _sizes(source.net)
    here_names, there_names = ([name.lower() for name in of] for of in (names, source.names))
    out, report = dict(state), []
    for layer in net:
        if layer.name not in sizes:                       # nothing to learn
            continue
        mine, head = sizes[layer.name], heads.get(layer.name)
        why = _obstacle(layer, there.get(layer.name), mine, source_sizes.get(layer.name, {}))
        if head and not why:
            why = head.differs(other_heads[layer.name])
            if not set(here_names) & set(there_names):
                why = f"other classes ({len(source.names)} there, {len(names)} here)"
        partly = head and not why and here_names != there_names
        rows = head.rows(names, source.names) if partly else None
        for key in mine if not why else ():
            out[key] = source.state[key].clone()
        if rows:
            out |= _rows_taken(list(mine), state, source.state, rows)
        count = sum(state[k].numel() for k in mine if not k.endswith(("running_mean", "running_var")))
        if rows:
            count = count * len(rows[0]) // layer.out
        report.append({"layer": layer.name, "taken": not why, "parameters": count,
                       "why": why or ("classes of the same name" if rows else "same name and shapes")})
    return out, report


def _rows_taken(keys: list[str], state: dict[str, Tensor], other: dict[str, Tensor],
                rows: tuple[list[int], list[int]]) -> dict[str, Tensor]:
    """Return a head's tensors, those of channels `rows` taken over; its convolutions stand side by side."""
    out = {}
    for leaf in ("weight", "bias"):
        here = there = 0
        for key in (key for key in keys if key.endswith(f".{leaf}")):
            out[key], theirs = state[key].clone(), other[key]
            for mine, its in zip(*rows):
                if here <= mine < here + len(out[key]) and there <= its < there + len(theirs):
                    out[key][mine - here] = theirs[its - there]
            here, there = here + len(out[key]), there + len(theirs)
    return out


def _sizes(net: Net) -> dict[str, dict[str, tuple[int, ...]]]:
    """Return record -> tensor key -> shape, of a head without its first axis, which the classes change."""
    out: dict[str, dict[str, tuple[int, ...]]] = {}
    heads = {layer.name for layer in net if layer.kind}
    for p in channels(net).params:
        out.setdefault(p.node.layer, {})[p.key] = p.shape[1:] if p.node.layer in heads else p.shape
    return out


def _obstacle(mine: Layer, other: Layer | None, sizes: dict, other_sizes: dict) -> str:
    """Return why a record cannot be taken over; empty when it can."""
    if other is None:
        return "not in the checkpoint"
    if (other.op, other.kind) != (mine.op, mine.kind):
        return f"{other.kind or other.op} there, {mine.kind or mine.op} here"
    if sizes != other_sizes:
        key = next(k for k in (*sizes, *other_sizes) if sizes.get(k) != other_sizes.get(k))
        return f"{key} is {other_sizes.get(key)} there, {sizes.get(key)} here"
    return ""


def report_lines(report: list[dict[str, object]]) -> list[str]:
    """Return aligned sentences of a transfer report, the total first."""
    taken = [r for r in report if r["taken"]]
    share = sum(r["parameters"] for r in taken) / max(1, sum(r["parameters"] for r in report))
    head = (f"transfer: {len(taken)} of {len(report)} layers taken, "
            f"{sum(r['parameters'] for r in taken):,} parameters ({share:.0%})")
    return [head, *(f"  {'taken' if r['taken'] else 'fresh':5}  {r['layer']:8} {r['parameters']:>10,}"
                    f"  {r['why']}" for r in report)]
