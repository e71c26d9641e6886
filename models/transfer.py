"""Taking over weights from another network, by name and shape, with a report of every layer."""
from __future__ import annotations

from torch import Tensor

from models.checkpoint import Checkpoint
from models.layout import layout, shape, widths
from models.spec import WEIGHTED, Layer, Net


def transfer(net: Net, state: dict[str, Tensor], names: tuple[str, ...],
             source: Checkpoint) -> tuple[dict[str, Tensor], list[dict[str, object]]]:
    """A new state for `net` with the tensors of each layer from `source` where it means the same there.

    A layer is taken whole or not at all: same name, same op, same shapes; a head also needs the same class
    names, anchors and centre reach. The report has a row a layer: layer, taken (bool), parameters, why.
    Arguments unchanged.
    """
    there = {layer.name: layer for layer in source.net}
    sizes, source_sizes = _sizes(net), _sizes(source.net)
    out, report = dict(state), []
    for layer in net:
        if layer.op not in WEIGHTED:
            continue
        mine = sizes[layer.name]
        why = _obstacle(layer, there.get(layer.name), mine, source_sizes.get(layer.name, {}),
                        names, source.names)
        if not why:
            for key in mine:
                out[key] = source.state[key].clone()
        count = sum(state[k].numel() for k in mine if not k.endswith(("running_mean", "running_var")))
        report.append({"layer": layer.name, "taken": not why, "parameters": count,
                       "why": why or "same name and shapes"})
    return out, report


def _sizes(net: Net) -> dict[str, dict[str, tuple[int, ...]]]:
    """Layer name -> tensor key -> shape."""
    width, out = widths(net), {}
    for p in layout(net):
        out.setdefault(p.key.split(".")[0], {})[p.key] = shape(p, width)
    return out


def _obstacle(mine: Layer, other: Layer | None, sizes: dict, other_sizes: dict, names: tuple[str, ...],
              other_names: tuple[str, ...]) -> str:
    """Why a layer cannot be taken over; empty when it can."""
    if other is None:
        return "not in the checkpoint"
    if other.op != mine.op:
        return f"{other.op} there, {mine.op} here"
    if mine.op == "head" and tuple(n.lower() for n in names) != tuple(n.lower() for n in other_names):
        return f"other classes ({len(other_names)} there, {len(names)} here)"
    if mine.op == "head" and (other.anchors, other.xy_scale) != (mine.anchors, mine.xy_scale):
        return "other anchors or centre reach"
    if sizes != other_sizes:
        key = next(k for k in (*sizes, *other_sizes) if sizes.get(k) != other_sizes.get(k))
        return f"{key} is {other_sizes.get(key)} there, {sizes.get(key)} here"
    return ""


def report_lines(report: list[dict[str, object]]) -> list[str]:
    """Aligned sentences of a transfer report, the total first."""
    taken = [r for r in report if r["taken"]]
    share = sum(r["parameters"] for r in taken) / max(1, sum(r["parameters"] for r in report))
    head = (f"transfer: {len(taken)} of {len(report)} layers taken, "
            f"{sum(r['parameters'] for r in taken):,} parameters ({share:.0%})")
    return [head, *(f"  {'taken' if r['taken'] else 'fresh':5}  {r['layer']:8} {r['parameters']:>10,}"
                    f"  {r['why']}" for r in report)]
