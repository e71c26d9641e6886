"""ncnn's `.param` and `.bin` -> records and state: the network is told by its convolutions, their wiring."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from models.channels import shapes
from models.graph import expand
from models.layer import Net
from models.zoo.official import OFFICIAL, Official
from utils.errors import ModelError

MAGIC = 7767517                                            # a .param file's first line
FP16 = 0x01306B47                                          # before weights that are stored in fp16
CONVS = ("Convolution", "ConvolutionDepthWise")
FOCUS = "YoloV5Focus"                                      # the four pixels of a 2x2 window as 12 channels
PASSING = ("Input", "Split", FOCUS, "BinaryOp", "Eltwise", "Concat", "Slice", "ShuffleChannel", "Pooling",
           "Interp", "Reshape", "Permute", "Dropout", "Softmax")             # layers without numbers
FUSED = ("linear", "relu", "leaky", "relu6", "sigmoid", "mish", "hardswish")
ALONE = {"ReLU": "relu", "Clip": "relu6", "Swish": "swish", "Sigmoid": "sigmoid", "HardSwish": "hardswish",
         "HardSigmoid": "hardsigmoid"}
SLOPE = 0.1                                                # of the leaky ReLU that records know
FIELDS = ("out", "in (of a group)", "kernel", "stride", "dilation", "groups")


class Op(NamedTuple):
    """A layer of a .param file."""

    type: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    settings: dict[int, tuple[float, ...]]

    def get(self, key: int, default: int = 0) -> int:
        """Return a setting that is one whole number."""
        return int(self.settings.get(key, (default,))[0])


class Part(NamedTuple):
    """An operation of a file or of records, as the two are compared."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    shape: tuple[int, ...] = ()                            # of a convolution: FIELDS
    act: str = ""


class Kernel(NamedTuple):
    """A convolution, and the numbers of the convolutions before it whose values reach it."""

    name: str
    shape: tuple[int, ...]
    act: str
    sources: tuple[int, ...]


def parse_param(path: Path) -> list[Op]:
    """Return the layers of a .param file. Raises ModelError saying why it is none."""
    try:
        first, counts, *lines = path.read_text(encoding="utf-8").split("\n")
        if first.strip() != str(MAGIC):
            raise ValueError(f"it begins with {first[:20]!r} instead of {MAGIC}")
        ops = [_op(line.split()) for line in lines if line.strip()]
        if len(ops) != int(counts.split()[0]):
            raise ValueError(f"it holds {len(ops)} layers and says {counts.split()[0]}")
        return ops
    except (OSError, ValueError, IndexError) as error:
        raise ModelError(f"{path} cannot be read as an ncnn .param file: {error}") from error


def _op(words: list[str]) -> Op:
    """Return a layer: type, name, counts, inputs, outputs, `key=value` or `-233xx=count,values`."""
    ins, outs = int(words[2]), int(words[3])
    names = words[4:4 + ins + outs]
    if len(names) != ins + outs:
        raise ValueError(f"layer {words[1]} names {len(names)} values and says {ins + outs}")
    settings = {}
    for word in words[4 + ins + outs:]:
        key, _, values = word.partition("=")
        key, values = int(key), tuple(map(float, values.split(",")))
        settings[key if key >= 0 else -key - 23300] = values if key >= 0 else values[1:]
    return Op(words[0], words[1], tuple(names[:ins]), tuple(names[ins:]), settings)


def read_ncnn(path: str | Path,
              known_nets: Sequence[Official] = OFFICIAL) -> tuple[Net, dict[str, Tensor], Official]:
    """Return the network of a .bin file with its .param beside it, its fp32 state, and which one it is.

    Batch-norm is folded in such files, so the records are without; the input's rule is their first record.
    Raises ModelError for what is torn, holds integers or unknown layers, or is none of
    these networks, naming where the nearest differs.
    """
    path = Path(path)
    param = path.with_suffix(".param")
    if not param.is_file():
        raise ModelError(f"{path} needs the .param file that belongs to it: there is no {param.name}")
    ops = parse_param(param)
    known = (*CONVS, *ALONE, *PASSING)
    if unknown := [op for op in ops if op.type not in known]:
        raise ModelError(f"{param}: layer {unknown[0].name} is of type {unknown[0].type}; known are "
                         f"{', '.join(known)}")
    found, faults = kernels([_part_of(op, ops) for op in ops]), []
    for official in known_nets:
        net, same, fault = _compared(official, found)
        if not fault:
            return net, _state(official, net, found, _numbers(path, ops)), official
        faults.append((same, f"{official.name}: {fault}"))
    raise ModelError(f"{param} is no network that is known; the nearest is {max(faults)[1]}")


def kernels(parts: list[Part]) -> list[Kernel]:
    """Return the convolutions in running order, then those that no other reads as their outputs stand."""
    reach: dict[str, tuple[str, ...]] = {}                 # value -> convolutions whose values are in it
    made: dict[str, str] = {}                              # value -> the convolution that it is
    shape, act, sources = {}, {}, {}
    for part in parts:
        before = tuple(dict.fromkeys(name for i in part.inputs for name in reach.get(i, ())))
        if part.shape:
            shape[part.name], act[part.name], sources[part.name] = part.shape, part.act, before
            made[part.outputs[0]], before = part.name, (part.name,)
        elif part.act and part.inputs[0] in made:
            act[made[part.inputs[0]]] = part.act
        reach |= dict.fromkeys(part.outputs, before)
    read = set().union(*sources.values())
    used = set().union(*(part.inputs for part in parts))
    ends = (name for value in reach if value not in used for name in reach[value] if name not in read)
    number = {name: at for at, name in enumerate(dict.fromkeys([*filter(read.__contains__, shape), *ends]))}
    # What follows a last convolution belongs to decoding.
    return [Kernel(name, shape[name], (act[name] or "linear") if name in read else "",
                   tuple(sorted(number[i] for i in sources[name]))) for name in number]


def _part_of(op: Op, ops: list[Op]) -> Part:
    """Return a layer of a file. Raises ModelError for an activation that records do not know."""
    if op.type in ALONE:
        act = ALONE[op.type]
        slope = op.settings.get(0, (0.0,))[0]
        if op.type == "ReLU" and slope:
            act = "leaky" if abs(slope - SLOPE) < 1e-6 else f"leaky ReLU of slope {slope}"
        return Part(op.name, op.inputs, op.outputs, act=act)
    if op.type not in CONVS:
        return Part(op.name, op.inputs, op.outputs)
    out, size, act = op.get(0), op.get(1), op.get(9)
    if act == 2 and abs(op.settings[10][0] - SLOPE) > 1e-6:
        raise ModelError(f"layer {op.name}: a leaky ReLU of slope {op.settings[10][0]}; records know {SLOPE}")
    shape = (out, op.get(6) // max(1, out * size * size), size, op.get(3, 1), op.get(2, 1), op.get(7, 1))
    if _focused(op, ops):                                  # kxk over 2x2 windows: 2k x 2k at twice the stride
        shape = (out, shape[1] // 4, 2 * size, 2 * shape[3], *shape[4:])
    return Part(op.name, op.inputs, op.outputs, shape, FUSED[act] if act < len(FUSED) else f"number {act}")


def _focused(op: Op, ops: list[Op]) -> bool:
    return any(other.type == FOCUS and op.inputs[0] in other.outputs for other in ops)


def _parts_of(net: Net) -> list[Part]:
    """Return the nodes of records."""
    nodes = expand(net).nodes
    width = {node.name: node.channels for node in nodes}
    return [Part(node.name, node.inputs, (node.name,), act=node.act) if node.type != "conv" else
            Part(node.name, node.inputs, (node.name,),
                 (node.channels, width.get(node.inputs[0], 3) // node.groups, node.kernel, node.stride,
                  node.dilation, node.groups)) for node in nodes if not node.constant]


def _compared(official: Official, found: list[Kernel]) -> tuple[Net, int, str]:
    """Return the records for the file's classes, how many convolutions agree, and the first that does not."""
    parts = [_parts_of(official.folded(classes)) for classes in (1, 2)]
    one, two = (kernels(part) for part in parts)
    moving = next(at for at, (a, b) in enumerate(zip(one, two)) if a != b)
    classes = found[moving].shape[0] - one[moving].shape[0] + 1 if len(found) == len(one) else 1
    net = official.folded(max(1, classes))
    mine = kernels(_parts_of(net))
    for at, (here, there) in enumerate(zip(mine, found)):
        if here[1:] != there[1:]:
            return net, at, f"its convolution {here.name} is {_words(here)}, {there.name} is {_words(there)}"
    fault = f"it has {len(mine)} convolutions, the file {len(found)}" if len(mine) != len(found) else ""
    return net, min(len(mine), len(found)), fault


def _words(kernel: Kernel) -> str:
    sizes = ", ".join(f"{name} {value}" for name, value in zip(FIELDS, kernel.shape))
    return f"({sizes}, {kernel.act or 'an output'}, reads {list(kernel.sources)})"


def _numbers(path: Path, ops: list[Op]) -> dict[str, tuple[np.ndarray, np.ndarray | None]]:
    """Return layer -> its weights and bias in fp32. Raises ModelError where the file's length is wrong."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error
    at, found = 0, {}

    def take(kind: str, count: int) -> np.ndarray:
        nonlocal at
        size = np.dtype(kind).itemsize * count
        if at + size > len(raw):
            raise ModelError(f"{path} is too short: it ends within {op.name}, of {len(raw):,} bytes")
        at += size + -size % 4                             # numbers begin at multiples of four bytes
        return np.frombuffer(raw, kind, count, at - size - -size % 4)
    for op in ops:
        if op.type in CONVS:
            flag = int(take("<u4", 1)[0])
            if flag not in (0, FP16):
                raise ModelError(f"{path}: the weights of {op.name} are integers (flag {flag:#x}); "
                                 "needs the file in fp32 or fp16")
            weight = take("<f2" if flag else "<f4", op.get(6)).astype(np.float32)
            bias = take("<f4", op.get(0)) if op.get(5) else np.zeros(op.get(0), np.float32)
            found[op.name] = _kernel(weight, op, _focused(op, ops)), bias
    if at < len(raw):
        raise ModelError(f"{path} is too long: {len(raw) - at:,} bytes are left behind the last layer")
    return found


def _kernel(weight: np.ndarray, op: Op, focused: bool) -> np.ndarray:
    """Return a kernel [out, in, k, k]; one behind a focus layer as the kernel over pixels that it is."""
    out, size = op.get(0), op.get(1)
    weight = weight.reshape(out, -1, size, size)
    if focused:                                            # channels there: column, row, colour of the window
        apart = weight.reshape(out, 2, 2, -1, size, size)
        weight = apart.transpose(0, 3, 4, 2, 5, 1).reshape(out, -1, 2 * size, 2 * size)
    return weight


def _state(official: Official, net: Net, found: list[Kernel], numbers: dict) -> dict[str, Tensor]:
    """Return the tensors of the records."""
    given = official.rule()
    for here, there in zip(kernels(_parts_of(net)), found):
        weight, bias = numbers[there.name]
        if official.bgr and not here.sources:              # records see RGB
            weight = weight[:, ::-1]
        given |= {f"{here.name}.weight": weight, f"{here.name}.bias": bias}
    return {key: torch.from_numpy(np.array(given[key])).reshape(shape)
            for key, shape in shapes(net).items()}
