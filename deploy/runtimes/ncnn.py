"""ncnn: the writer of .param and .bin, straight from the records, and the runtime behind `runtime.py`."""
from __future__ import annotations

import struct
from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deploy.artifact import metadata_beside, unreadable
from models.graph import INPUT, Step, heads_of, steps
from models.layer import Net
from models.records import from_json
from utils.boxes import on_host
from utils.errors import ModelError
from utils.optional import needs
from utils.runs import Device, pick_precision

if TYPE_CHECKING:
    from torch import Tensor

    from utils.boxes import Values

MAGIC = 7767517                                            # a .param file's first line
FP16 = 0x01306B47                                          # before numbers that are stored in fp16
HARD = f"0={1 / 6:.9g} 1=0.5"
ALONE = {"relu": ("ReLU", "0=0"), "leaky": ("ReLU", "0=0.1"), "relu6": ("Clip", "0=0 1=6"),
         "sigmoid": ("Sigmoid", ""), "swish": ("Swish", ""), "hardswish": ("HardSwish", HARD),
         "hardsigmoid": ("HardSigmoid", HARD)}
FUSED = {"relu": "9=1", "leaky": "9=2 -23310=1,0.1", "relu6": "9=3 -23310=2,0,6", "sigmoid": "9=4",
         "hardswish": f"9=6 -23310=2,{1 / 6:.9g},0.5"}     # what a convolution of ncnn does by itself


def to_ncnn(net: Net, state: dict[str, Tensor], half: bool = False) -> tuple[str, bytes]:
    """Return the text of the .param and the bytes of the .bin. Raises ModelError for names it cannot hold.

    `images` float [3, S, S] 0..1 in, S free, [C, G, G] per head out. half: weights in fp16, biases in fp32.
    """
    from compress.fold import fold
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

    def line(self, op: str, name: str, inputs: tuple[str, ...], settings: str, parts: int = 1,
             part: int = 0) -> None:
        """Append a layer whose output, the `part`-th of `parts`, carries its name, and its split."""
        sources = []
        for value in inputs:
            many = self.readers[value] > 1
            sources.append(f"{value}.{self.taken[value]}" if many else value)
            self.taken[value] += 1
        outputs = [name if at == part else f"{name}.other{at}" for at in range(parts)]
        self._write(op, name, sources, outputs, settings)
        if (count := self.readers[name]) > 1:
            self._write("Split", f"{name}.split", [name], [f"{name}.{at}" for at in range(count)], "")

    def _write(self, op: str, name: str, inputs: list[str], outputs: list[str], settings: str) -> None:
        self.blobs += len(outputs)
        self.lines.append(" ".join([f"{op:<22} {name:<22} {len(inputs)} {len(outputs)}", *inputs, *outputs,
                                    *filter(None, [settings])]))

    def add(self, step: Step, weights: int) -> None:
        """Append a step, with `weights` numbers: one layer, or two where an activation cannot be fused."""
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
            "upsample": ("Interp", f"0={1 + node.smooth} 1={step.stride:.1f} 2={step.stride:.1f}"),
            "spread": ("Interp", "0=1 5=1"), "concat": ("Concat", "0=0"), "mul": ("BinaryOp", "0=2"),
            "slice": ("Slice", f"-23300={node.parts}," + ",".join([str(node.channels)] * node.parts)),
            "shuffle": ("ShuffleChannel", f"0={node.groups}"),
            "add": ("Eltwise", "0=1") if len(inputs) > 2 else ("BinaryOp", "0=0")}[kind]
        self.line(op, name, inputs, settings, node.parts if kind == "slice" else 1, node.part)


def _convolution(step: Step, weights: int, flat: bool, name: str) -> tuple[str, str, tuple[str, ...], str]:
    """Return a convolution's layer type, name, inputs and settings."""
    node, bias = step.node, int(step.node.bias)
    op, settings = "InnerProduct", f"0={step.out} 1={bias} 2={weights}"
    if not flat:
        op = "ConvolutionDepthWise" if node.groups > 1 else "Convolution"
        settings = f"0={step.out} 1={node.kernel} 2={node.dilation} 3={node.stride} 4={node.pad} 5={bias} " \
                   f"6={weights}" + f" 7={node.groups}" * (node.groups > 1)
    return op, name, step.inputs, " ".join(filter(None, (settings, FUSED.get(step.act))))


class NcnnRunner:
    """A net that takes images one by one: divided by 255 and shaped here, for its file does neither."""

    kind = "ncnn"

    def __init__(self, path: Path, precision: str, threads: int, device: Device) -> None:
        self.ncnn = needs("ncnn", "to run ncnn models")
        self.metadata = metadata_beside(path)              # with checksums: ncnn runs past a short file's end
        self.net, self.note, self.device = self.ncnn.Net(), "", Device("cpu")
        # Unasked only where torch would take half precision too: there it is known to be worth it.
        wanted = pick_precision(device)[0] if precision == "auto" else precision
        half = wanted != "fp32" and self.ncnn.cpu_support_arm_asimdhp()
        self.precision = "fp16" if half else "fp32"
        self.exact = partial(NcnnRunner, path, "fp32", threads, device) if half else None
        if not half and precision not in ("fp32", "auto"):
            # On x86 with AVX512-BF16 its bf16 was slower than its fp32, and in one network far off.
            self.note = "ncnn's half precision is fast on Arm CPUs with fp16 alone: continuing in fp32"
        options = self.net.opt
        options.num_threads, options.use_vulkan_compute = threads, False
        options.use_fp16_packed = options.use_fp16_storage = options.use_fp16_arithmetic = half
        options.use_bf16_packed = options.use_bf16_storage = False
        if self.net.load_param(str(path)) or self.net.load_model(str(path.with_suffix(".bin"))):
            raise unreadable(path, "an ncnn model", ValueError("the library refuses it"))
        self.shapes = {head.layer.name: head.shape for head in heads_of(from_json(self.metadata["net"]))}

    def __call__(self, images: Values) -> list[np.ndarray]:
        scaled = np.ascontiguousarray(on_host(images)) * np.float32(1 / 255)
        found = [self._one(image) for image in scaled]
        return [np.stack(values) for values in zip(*found)]

    def _one(self, image: np.ndarray) -> list[np.ndarray]:
        extractor = self.net.create_extractor()
        held = self.ncnn.Mat(image)                        # it points into the array
        extractor.input(INPUT, held)
        names = self.metadata["outputs"]
        found = [np.array(extractor.extract(name)[1]) for name in names]
        return [value.reshape(*self.shapes.get(name, (value.shape[0],)), *(value.shape[1:] or (1, 1)))
                for name, value in zip(names, found)]
