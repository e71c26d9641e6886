"""Taking over weights from another network, by name and shape, with a report of every layer."""
from __future__ import annotations

from torch import Tensor

from models.channels import layout, shape, widths
from models.checkpoint import Checkpoint
from models.layer import Layer, Net


def transfer(net: Net, state: dict[str, Tensor], names: tuple[str, ...],
             source: Checkpoint) -> tuple[dict[str, Tensor], list[dict[str, object]]]:
    """A new state for `net` with the tensors of each layer from `source` where it means the same there.

    A layer is taken whole or not at all: same name, same op, same shapes; a head also needs the same anchors
    and centre reach. Of a head for other classes the rows of box, objectness and classes of the same name are
    taken; nothing when no name is shared. The report has a row a layer: layer, taken (bool), parameters, why.
    Arguments unchanged.
    """
    there = {layer.name: layer for layer in source.net}
    sizes, source_sizes = _sizes(net), _sizes(source.net)
    out, report = dict(state), []
    for layer in net:
        if layer.name not in sizes:                       # nothing to learn
            continue
        mine = sizes[layer.name]
        why = _obstacle(layer, there.get(layer.name), mine, source_sizes.get(layer.name, {}),
                        names, source.names)
        rows = _shared_rows(layer, names, source.names) if layer.op == "head" and not why else None
        for key in mine if not why else ():
            out[key] = source.state[key].clone() if rows is None else state[key].clone()
            if rows is not None:
                out[key][rows[0]] = source.state[key][rows[1]]
        count = sum(state[k].numel() for k in mine if not k.endswith(("running_mean", "running_var")))
        if rows is not None:
            count, why = count * len(rows[0]) // layer.out, ""
        report.append({"layer": layer.name, "taken": not why, "parameters": count,
                       "why": why or ("classes of the same name" if rows else "same name and shapes")})
    return out, report


def _shared_rows(head: Layer, names: tuple[str, ...],
                 other_names: tuple[str, ...]) -> tuple[list[int], list[int]] | None:
    """Output rows of a head here and there that mean the same; None when all do, in order."""
    there = {name.lower(): at for at, name in enumerate(other_names)}
    if [there.get(name.lower()) for name in names] == list(range(len(other_names))):
        return None
    pairs = [(i, i) for i in range(5)] + [(5 + i, 5 + there[name.lower()]) for i, name in enumerate(names)
                                          if name.lower() in there]
    anchors, here, width = range(len(head.anchors)), 5 + len(names), 5 + len(other_names)
    return ([a * here + p for a in anchors for p, _ in pairs],
            [a * width + q for a in anchors for _, q in pairs])


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
    if mine.op == "head" and not {n.lower() for n in names} & {n.lower() for n in other_names}:
        return f"other classes ({len(other_names)} there, {len(names)} here)"
    if mine.op == "head" and (other.anchors, other.xy_scale) != (mine.anchors, mine.xy_scale):
        return "other anchors or centre reach"
    if mine.op == "head":                                  # rows differ with the classes, inputs may not
        sizes, other_sizes = ({k: v[1:] for k, v in s.items()} for s in (sizes, other_sizes))
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
