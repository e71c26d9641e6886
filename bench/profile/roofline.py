"""What bounds a layer, multiplying or moving: bytes from records, and what this machine reaches at best."""
from __future__ import annotations

from math import prod

import torch
from torch.nn import functional as F

from bench.profile.timing import best_ms, torch_threads
from deploy.runtimes.runtime import DTYPES
from models.channels import groups, layout, shape, strides, widths
from models.layer import Net

COPY = 192 << 20                   # bytes: several times the last cache of a desktop machine
SECONDS = 0.12                     # for each measurement
MATMUL, CHANNELS, SIDE = 1024, 128, 56


def layer_bytes(net: Net, imgsz: int, size: int) -> dict[str, int]:
    """Layer name -> bytes it moves for one imgsz x imgsz picture, numbers of `size` bytes, batch-norm folded.

    The convention, a lower bound that no cache is counted in: every weight and bias is read once, every input
    read once, the output written once. Tensors between the convolutions of a block (MBConv: expanded map,
    depthwise output, squeezed vectors; DSConv: depthwise output) are written once and read once.
    Squeeze-excitation reads its map twice, for the mean must be known before the product, and inside an
    MBConv the product is written and read as well. Activations and biases are applied on the way and move
    nothing.
    """
    width, reached = widths(net), groups(net)
    cells = {name: (imgsz // stride) ** 2 for name, stride in strides(net).items()}
    maps = {name: sum(width[g] for g in reached[name]) * n for name, n in cells.items()}
    where, inner = {layer.name: layer for layer in net}, {layer.name: [] for layer in net}
    moved = {layer.name: maps[layer.name] + sum(maps[i] for i in layer.inputs) for layer in net}
    for param in layout(net):
        name, sizes = param.key.split(".")[0], shape(param, width)
        if len(sizes) == 4 or param.key.endswith("bias"):      # batch-norm leaves a bias when it is folded
            moved[name] += prod(sizes)
        if len(sizes) == 4:
            grid = {"input": cells[where[name].inputs[0]], "output": cells[name], "mean": 1}[param.grid]
            inner[name].append(sizes[0] * grid)
    for layer in net:
        outputs = inner[layer.name]
        moved[layer.name] += 2 * sum(outputs if layer.op == "se" else outputs[:-1])
        if layer.op == "se":
            moved[layer.name] += maps[layer.name]
        elif layer.op == "mbconv" and layer.squeeze:
            moved[layer.name] += 3 * layer.hidden * cells[layer.name]
    return {name: size * n for name, n in moved.items()}


def measure_peak(precision: str, threads: int = 1) -> dict[str, object]:
    """This machine's best MACs a second (a matrix product, a 3x3 convolution) and bytes a second (a copy).

    balance: the MACs a byte at which a layer needs as long to multiply as to move, by the better of the two
    products. The copy is larger than caches, so layers whose maps stay in one can be faster than it says.
    """
    dtype = DTYPES[precision]
    with torch_threads(threads), torch.inference_mode():
        square = torch.full((MATMUL, MATMUL), 0.5, dtype=dtype)
        matmul = MATMUL ** 3 / best_ms(lambda: square @ square, SECONDS)
        image = torch.full((1, CHANNELS, SIDE, SIDE), 0.5, dtype=dtype)
        kernel = torch.full((CHANNELS, CHANNELS, 3, 3), 0.5, dtype=dtype)
        image, kernel = (t.contiguous(memory_format=torch.channels_last) for t in (image, kernel))
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
    """What limits a layer at best: "memory" where it does fewer MACs a byte than the peak's balance."""
    return "memory" if macs < peak["balance"] * moved else "compute"
