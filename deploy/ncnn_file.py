"""ncnn's .param and .bin written straight from the records."""
from __future__ import annotations

import struct
from collections import Counter

from torch import Tensor

from compress.fold import fold
from models.graph import IMAGE, Step, steps
from models.layer import Net
from utils.errors import ModelError

MAGIC = 7767517                                            # a .param file's first line
FP16 = 0x01306B47                                          # before numbers that are stored in fp16
FUSED = {"relu": (1, ()), "leaky": (2, (0.1,)), "relu6": (3, (0.0, 6.0)), "sigmoid": (4, ()),
         "hardswish": (6, (1 / 6, 0.5))}                   # what a convolution of ncnn does by itself


def to_ncnn(net: Net, state: dict[str, Tensor], half: bool = False) -> tuple[str, bytes]:
    """The text of the .param and the bytes of the .bin: `images` float [3, S, S] 0..1 in, [A (5 + K), G, G] a
    head out, blobs under the heads' names.

    half: the weights in fp16, biases in fp32. The side of the picture is free. Raises ModelError for names
    that the format cannot hold.
    """
    if blank := [layer.name for layer in net if len(layer.name.split()) != 1]:
        raise ModelError(f"layer {blank[0]!r}: ncnn's files hold no names with blanks; rename it in net.json")
    folded, small = fold(net, state)
    walk = steps(folded)
    writer = _Writer(Counter(i for step in walk for i in step.inputs))
    numbers = bytearray()
    writer.line("Input", IMAGE, (), "")
    for step in walk:
        writer.add(step, small[f"{step.key}.weight"].numel() if step.key else 0)
        if step.key:
            numbers += _numbers(small, step.key, half)
    return writer.text(), bytes(numbers)


def _numbers(state: dict[str, Tensor], key: str, half: bool) -> bytes:
    """A convolution's weight behind its flag, and its bias."""
    weight, bias = (state[f"{key}.{leaf}"].numpy() for leaf in ("weight", "bias"))
    body = weight.astype("<f2" if half else "<f4").tobytes()
    flag = struct.pack("<I", FP16 if half else 0)
    return flag + body + bytes(-len(body) % 4) + bias.astype("<f4").tobytes()


class _Writer:
    """Lines of a .param file. A value that several layers read is split first, as ncnn asks."""

    def __init__(self, readers: Counter) -> None:
        self.readers, self.taken = readers, Counter()
        self.lines, self.blobs, self.vectors = [], 0, set()

    def line(self, op: str, name: str, inputs: tuple[str, ...], settings: str) -> None:
        """Appends a layer whose one output carries its name, and the split of that output where needed."""
        sources = []
        for value in inputs:
            many = self.readers[value] > 1
            sources.append(f"{value}.{self.taken[value]}" if many else value)
            self.taken[value] += 1
        self._write(op, name, sources, [name], settings)
        if (count := self.readers[name]) > 1:
            self._write("Split", f"{name}.split", [name], [f"{name}.{at}" for at in range(count)], "")

    def _write(self, op: str, name: str, inputs: list[str], outputs: list[str], settings: str) -> None:
        self.blobs += len(outputs)
        self.lines.append(" ".join([f"{op:<22} {name:<22} {len(inputs)} {len(outputs)}", *inputs, *outputs,
                                    *filter(None, [settings])]))

    def add(self, step: Step, weights: int) -> None:
        """Appends a step: one layer, and another for an activation that a convolution cannot take along."""
        name, inputs = step.name, step.inputs
        if step.op in ("conv", "head"):
            fused = FUSED.get(step.act)
            alone = step.act != "linear" and not fused
            flat = inputs[0] in self.vectors               # a mean has no height and width here
            self.vectors |= {name} if flat else set()
            op, settings = _convolution(step, weights, fused, flat)
            self.line(op, f"{name}.linear" if alone else name, inputs, settings)
            if alone:
                self.line("Swish", name, (f"{name}.linear",), "")
        elif step.op == "maxpool":
            # pad_mode 1 is "as given"; what is padded never wins a maximum.
            settings = "0=0 1=2 2=1 3=0 14=1 13=0 15=1 5=1" if step.stride == 1 else "0=0 1=2 2=2 5=1"
            self.line("Pooling", name, inputs, settings)
        elif step.op == "upsample":
            self.line("Interp", name, inputs, f"0=1 1={step.stride:.1f} 2={step.stride:.1f}")
        elif step.op == "average":
            self.line("Pooling", name, inputs, f"0=1 1={step.stride} 2={step.stride} 5=1")
        elif step.op == "mean":
            self.vectors.add(name)
            self.line("Pooling", name, inputs, "0=1 4=1")
        elif step.op == "concat":
            self.line("Concat", name, inputs, "0=0")
        elif step.op == "add" and len(inputs) > 2:
            self.line("Eltwise", name, inputs, "0=1")
        else:
            self.line("BinaryOp", name, inputs, f"0={ {'add': 0, 'mul': 2}[step.op] }")

    def text(self) -> str:
        """The whole .param file."""
        return "\n".join([str(MAGIC), f"{len(self.lines)} {self.blobs}", *self.lines]) + "\n"


def _convolution(step: Step, weights: int, fused: tuple[int, tuple[float, ...]] | None,
                 flat: bool) -> tuple[str, str]:
    """A convolution's layer type and settings; weights: how many numbers its kernel holds."""
    settings = {0: step.out, 1: step.kernel, 3: step.stride, 4: step.kernel // 2, 5: 1, 6: weights}
    if flat:
        settings = {0: step.out, 1: 1, 2: weights}
    if step.depthwise:
        settings[7] = step.out
    if fused:
        settings[9] = fused[0]
    text = " ".join(f"{key}={value}" for key, value in settings.items())
    if fused and fused[1]:
        text += f" -23310={len(fused[1])}," + ",".join(f"{value:.9g}" for value in fused[1])
    return "InnerProduct" if flat else "ConvolutionDepthWise" if step.depthwise else "Convolution", text
