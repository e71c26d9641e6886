"""Official darknet `.weights` files <-> state dict, by walking the records."""
from __future__ import annotations

import os
import struct
from dataclasses import replace
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.channels import Param, channels
from models.count import parameters
from models.graph import classes_of
from models.layer import Layer, Net
from models.zoo.cfg import from_cfg
from models.zoo.tiny import yolov3_tiny
from utils.errors import ModelError

HEADER_V1, HEADER_V2 = "<iiii", "<iiiq"            # major, minor, revision, images seen (64 bit since 0.2)
COCO_NAMES = tuple((
    "person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,stop sign,"
    "parking meter,bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,backpack,umbrella,handbag,"
    "tie,suitcase,frisbee,skis,snowboard,sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,"
    "tennis racket,bottle,wine glass,cup,fork,knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,"
    "hot dog,pizza,donut,cake,chair,couch,potted plant,bed,dining table,toilet,tv,laptop,mouse,remote,"
    "keyboard,cell phone,microwave,oven,toaster,sink,refrigerator,book,clock,vase,scissors,teddy bear,"
    "hair drier,toothbrush").split(","))


def beside(path: str | Path) -> tuple[Net | None, int]:
    """Return the network of the .cfg beside a .weights file, and its side in px; None, 416 without one.

    Raises ModelError for a cfg that is not of records. The stock yolov3-tiny.cfg gives a head anchors
    that its published weights were not trained with: what is that network is read as the zoo has it.
    """
    cfg = Path(path).with_suffix(".cfg")
    if not cfg.is_file():
        return None, 416
    try:
        net, imgsz = from_cfg(cfg.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{cfg} cannot be read: {error}") from error
    except ModelError as error:
        raise ModelError(f"{cfg}: {error}") from error
    known = yolov3_tiny(classes_of(net))
    return known if _bare(net) == _bare(known) else net, imgsz


def _bare(net: Net) -> list[Layer]:
    return [replace(layer, anchors=()) for layer in net]


def read_darknet(path: str | Path, net: Net | None = None) -> tuple[Net, dict[str, Tensor], tuple[int, ...]]:
    """Return the network, its fp32 state and the file's header (major, minor, revision, seen).

    net: the records the file was written for; None takes yolov3-tiny with as many classes as the length says.
    Raises FileNotFoundError, and ModelError with both counts when the length does not fit.
    """
    path = Path(path)
    raw = path.read_bytes()
    if len(raw) < struct.calcsize(HEADER_V1):
        raise ModelError(f"{path} holds {len(raw)} bytes, less than a darknet header; download it again")
    major, minor = struct.unpack_from("<ii", raw)
    form = HEADER_V2 if major * 10 + minor >= 2 else HEADER_V1
    header, start = struct.unpack_from(form, raw), struct.calcsize(form)
    found, rest = divmod(len(raw) - start, 4)
    net = net or _tiny_of(found)
    needed = parameters(net, statistics=True)
    if found != needed or rest:
        kind = "too short" if found < needed else "too long"
        raise ModelError(f"{path} is {kind}: it holds {found:,} numbers{' and a torn one' if rest else ''}, "
                         f"the network needs {needed:,} (difference {found - needed:+,}); "
                         "is it complete, and of this network?")
    numbers, state = np.frombuffer(raw, "<f4", offset=start), {}
    for param in _darknet_order(net):
        here, numbers = np.split(numbers, [prod(param.shape)])
        state[param.key] = torch.from_numpy(here.reshape(param.shape).copy())
    for key in [k for k in state if k.endswith("running_var")]:
        state[key.replace("running_var", "num_batches_tracked")] = torch.zeros((), dtype=torch.long)
    return net, state, header


def write_darknet(path: str | Path, net: Net, state: dict[str, Tensor],
                  header: tuple[int, ...] = (0, 2, 0, 0)) -> None:
    """Write a darknet `.weights` file (little-endian fp32) whole or not at all."""
    form = HEADER_V2 if header[0] * 10 + header[1] >= 2 else HEADER_V1
    tensors = [state[param.key].detach().cpu().numpy().astype("<f4") for param in _darknet_order(net)]
    part = Path(f"{path}.part")
    part.write_bytes(struct.pack(form, *header) + b"".join(tensor.tobytes() for tensor in tensors))
    os.replace(part, path)


def _tiny_of(numbers: int) -> Net:
    """Return yolov3-tiny with the class count whose size is nearest to `numbers`."""
    one, two = (parameters(yolov3_tiny(k), statistics=True) for k in (1, 2))
    classes = max(1, round(1 + (numbers - one) / (two - one)))
    return yolov3_tiny(classes) if classes <= 1000 else yolov3_tiny()


def _darknet_order(net: Net) -> list[Param]:
    """Return the tensors in the file's order: a convolution's shift, scale, mean, variance, then kernel."""
    order = {"bias": 0, "weight": 1, "running_mean": 2, "running_var": 3}
    stages: dict[str, list[Param]] = {}

    def rank(param: Param) -> tuple[bool, int]:
        return param.key.endswith("conv.weight"), order[param.key.rsplit(".", 1)[1]]
    for param in channels(net).params:
        part, kind, _ = param.key.rsplit(".", 2)
        if kind not in ("conv", "bn"):
            raise ModelError(f"darknet files cannot hold {param.key} (squeeze-excitation); "
                             "save the network as a checkpoint (.pt)")
        stages.setdefault(part, []).append(param)
    return [param for params in stages.values() for param in sorted(params, key=rank)]
