"""What bounds a layer, multiplying or moving: bytes from records, and what this machine reaches at best."""
from __future__ import annotations

from dataclasses import replace

import torch
from torch.nn import functional as F

from bench.profile.timing import best_ms, torch_threads
from deploy.runtimes.runtime import DTYPES
from models.channels import sizes
from models.graph import expand, grids
from models.layer import Net
from models.nodes import IMAGE

COPY = 192 << 20                   # bytes: several times the last cache of a desktop machine
SECONDS = 0.12                     # for each measurement
MATMUL, CHANNELS, SIDE = 1024, 128, 56


def layer_bytes(net: Net, imgsz: int, size: int) -> dict[str, int]:
    """Return layer -> bytes it moves for one imgsz x imgsz image, numbers of `size` bytes, BN folded.

    A lower bound without caches: every weight and bias is read once, every operation reads its inputs and
    writes its output, also within a block. Activations are applied on the way and move nothing.
    """
    folded = tuple(replace(layer, bn=False) for layer in net)
    side, moved = grids(folded, imgsz), {layer.name: 0 for layer in net}
    numbers = {IMAGE: 3 * imgsz ** 2}
    for node in expand(folded).nodes:
        numbers[node.name] = node.channels * side[node.name] ** 2
        if node.type != "act":
            moved[node.layer] += numbers[node.name] + sum(numbers[name] for name in node.inputs)
    for layer, count in sizes(folded).items():
        moved[layer] += count
    return {name: size * n for name, n in moved.items()}


def measure_peak(precision: str, threads: int = 1) -> dict[str, object]:
    """Return this machine's best MACs per second (matrix product, 3x3 convolution) and bytes (a copy).

    balance: the MACs a byte at which multiplying takes as long as moving. The copy is larger than caches, so
    layers whose values stay in one can be faster than it says.
    """
    dtype = DTYPES[precision]
    with torch_threads(threads), torch.inference_mode():
        square = torch.full((MATMUL, MATMUL), 0.5, dtype=dtype)
        matmul = MATMUL ** 3 / best_ms(lambda: square @ square, SECONDS)
        image, kernel = (torch.full(shape, 0.5, dtype=dtype).contiguous(memory_format=torch.channels_last)
                         for shape in ((1, CHANNELS, SIDE, SIDE), (CHANNELS, CHANNELS, 3, 3)))
        work = (CHANNELS * SIDE * 3) ** 2
        conv = work / best_ms(lambda: F.conv2d(image, kernel, padding=1), SECONDS)
        source = torch.ones(COPY, dtype=torch.uint8)
        target = torch.empty_like(source)
        copied = 2 * COPY / best_ms(lambda: target.copy_(source), SECONDS)
    best = max(matmul, conv)
    return {"precision": precision, "threads": threads, "matmul_macs_per_s": 1e3 * matmul,
            "conv_macs_per_s": 1e3 * conv, "macs_per_s": 1e3 * best, "bytes_per_s": 1e3 * copied,
            "balance": best / copied}


def bound(macs: int, moved: int, peak: dict) -> str:
    """Return what limits a layer: "memory" where it does fewer MACs per byte than the peak's balance."""
    return "memory" if macs < peak["balance"] * moved else "compute"
