"""ncnn's .param and .bin written straight from the records."""
from __future__ import annotations

import struct
from collections import Counter

from torch import Tensor

from compress.fold import fold
from models.graph import INPUT, Step, steps
from models.layer import Net
from utils.errors import ModelError

MAGIC = 7767517                                            # a .param file's first line
FP16 = 0x01306B47                                          # before numbers that are stored in fp16
HARD = f"0={1 / 6:.9g} 1=0.5"
ALONE = {"relu": ("ReLU", "0=0"), "leaky": ("ReLU", "0=0.1"), "relu6": ("Clip", "0=0 1=6"),
         "sigmoid": ("Sigmoid", ""), "swish": ("Swish", ""), "hardswish": ("HardSwish", HARD),
         "hardsigmoid": ("HardSigmoid", HARD)}
FUSED = {"relu": "9=1", "leaky": "9=2 -23310=1,0.1", "relu6": "9=3 -23310=2,0,6", "sigmoid": "9=4",
         "hardswish": f"9=6 -23310=2,{1 / 6:.9g},0.5"}     # what a convolution of ncnn does by itself


def to_ncnn(net: Net, state: dict[str, Tensor], half: bool = False) -> tuple[str, bytes]:
    """Return the text of the .param and the bytes of the .bin.

    `images` float [3, S, S] 0..1 in, [C, G, G] a head out, blobs under the heads' names. half: the weights in
    fp16, biases in fp32. The side of the image is free. Raises ModelError for names that the format cannot
    hold.
    """
    if blank := [layer.name for layer in net if len(layer.name.split()) != 1]:
        raise ModelError(f"layer {blank[0]!r}: ncnn's files hold no names with blanks; rename it in net.json")
    folded, small = fold(net, state)
    walk = steps(folded)
    writer, numbers = _Writer(Counter(i for step in walk for i in step.inputs)), bytearray()
    for step in walk:
        writer.add(step, small[f"{step.key}.weight"].numel() if step.key else 0)
        if step.key:                                       # a flag, the weights, the bias if any
            weight, bias = (small.get(f"{step.key}.{leaf}") for leaf in ("weight", "bias"))
            body = weight.numpy().astype("<f2" if half else "<f4").tobytes()
            numbers += struct.pack("<I", FP16 if half else 0) + body + bytes(-len(body) % 4)
            numbers += b"" if bias is None else bias.numpy().astype("<f4").tobytes()
    text = "\n".join([str(MAGIC), f"{len(writer.lines)} {writer.blobs}", *writer.lines]) + "\n"
    return text, bytes(numbers)


class _Writer:
    """Lines of a .param file. A value that several layers read is split first, as ncnn asks."""

    def __init__(self, readers: Counter) -> None:
        self.readers, self.taken = readers, Counter()
        self.lines, self.blobs, self.vectors = [], 0, set()
        self.line("Input", INPUT, (), "")

    def line(self, op: str, name: str, inputs: tuple[str, ...], settings: str) -> None:
        """Append a layer whose one output carries its name, and the split of that output where needed."""
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
        """Append a step: one layer, and another for an activation that a convolution cannot take along.

        weights: how many numbers a convolution's kernel holds.
        """
        name, inputs, node, kind = step.name, step.inputs, step.node, step.type
        flat = inputs[0] in self.vectors                   # a mean has no height and width here
        if kind == "mean" or (flat and kind not in ("mul", "spread")):
            self.vectors.add(name)
        if kind == "conv":
            alone = step.act != "linear" and step.act not in FUSED
            self.line(*_convolution(step, weights, flat, f"{name}.linear" if alone else name))
            if alone:
                self.line(ALONE[step.act][0], name, (f"{name}.linear",), ALONE[step.act][1])
            return
        # Of a pooling: 5=1 takes the padding as given, 5=0 also a last window that hangs over.
        window = f"1={node.kernel} 2={node.stride} 3={node.pad} 14={node.pad + node.after} 13={node.pad} " \
                 f"15={node.pad + node.after} 5={int(not node.ceil)}"
        op, settings = {
            "act": ALONE.get(step.act), "maxpool": ("Pooling", f"0=0 {window}"),
            "avgpool": ("Pooling", f"0=1 {window} 6=1"), "mean": ("Pooling", "0=1 4=1"),
            "average": ("Pooling", f"0=1 1={step.stride} 2={step.stride} 5=1"),
            "upsample": ("Interp", f"0=1 1={step.stride:.1f} 2={step.stride:.1f}"),
            "spread": ("Interp", "0=1 6=1"), "concat": ("Concat", "0=0"), "mul": ("BinaryOp", "0=2"),
            "slice": ("Crop", f"2={node.part * node.channels} 5={node.channels}"),
            "shuffle": ("ShuffleChannel", f"0={node.groups}"),
            "add": ("Eltwise", "0=1") if len(inputs) > 2 else ("BinaryOp", "0=0")}[kind]
        self.line(op, name, inputs, settings)


def _convolution(step: Step, weights: int, flat: bool, name: str) -> tuple[str, str, tuple[str, ...], str]:
    """Return a convolution's layer type, name, inputs and settings."""
    node, bias = step.node, int(step.node.bias)
    op, settings = "InnerProduct", f"0={step.out} 1={bias} 2={weights}"
    if not flat:
        op = "ConvolutionDepthWise" if node.groups > 1 else "Convolution"
        settings = f"0={step.out} 1={node.kernel} 2={node.dilation} 3={node.stride} 4={node.pad} 5={bias} " \
                   f"6={weights}" + f" 7={node.groups}" * (node.groups > 1)
    return op, name, step.inputs, " ".join(filter(None, (settings, FUSED.get(step.act))))
