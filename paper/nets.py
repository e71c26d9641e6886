"""The networks of the paper's tables and what they count, from records and from modules."""
from __future__ import annotations

from math import prod

import torch

from models.channels import channels
from models.count import loose_macs, macs, parameters
from models.layer import Net
from models.network import Network
from models.records import from_json
from models.zoo.build import DETECTORS, with_heads
from models.zoo.paper import block_nets, table2_nets
from paper.profiles import TABLE4
from utils.errors import ModelError

WIDTHS = (16, 32, 64, 128, 256, 512)                       # Table 1's input widths


def count(net: Net, imgsz: int) -> dict[str, int]:
    """Return parameters and MACs of a network, each in both counts."""
    return {"trained": parameters(net), "statistics": parameters(net, statistics=True),
            "macs": macs(net, imgsz), "loose_macs": loose_macs(net, imgsz)}


def count_rows(records: dict[str, dict]) -> dict[str, dict]:
    """Return the counts of each row of Tables 2 and 4; of the pruned network where a record carries it."""
    out = {row: count(net, 416) for row, net in table2_nets().items()}
    for row, (_, classes, imgsz, _) in TABLE4.items():
        name = row.removesuffix("-voc")
        if name in DETECTORS:
            out[row] = count(DETECTORS[name](classes), imgsz)
    if text := records.get("prune", {}).get("net"):
        out["pruned"] = count(with_heads(from_json(text), 80), 416)
    return out


def layer_weights() -> dict[int, dict[str, tuple[int, int]]]:
    """Return {input width: {layer type: kernel weights by records, and by hooks on a built network}}.

    Raises ModelError where the two differ.
    """
    out: dict[int, dict[str, tuple[int, int]]] = {}
    for cin in WIDTHS:
        for kind, net in block_nets(cin):
            sizes = [p.shape for p in channels(net).params if p.node.layer == "block"]
            total, hooked = sum(prod(size) for size in sizes if len(size) == 4), hooked_weights(net, "block")
            if total != hooked:
                raise ModelError(f"{kind} {cin} -> {2 * cin}: {total:,} weights by records, {hooked:,} by "
                                 "the built network; models/channels.py and models/blocks.py differ")
            out.setdefault(cin, {})[kind] = total, hooked
    return out


def hooked_weights(net: Net, name: str) -> int:
    """Return kernel weights of the convolutions of a layer that an image really passes, counted by hooks."""
    model, seen = Network(net).eval(), {}
    for key, module in getattr(model, name).named_modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda conv, _, __, key=key: seen.update({key: conv.weight.numel()}))
    with torch.inference_mode():
        model(torch.zeros(1, 3, 32, 32))
    return sum(seen.values())
