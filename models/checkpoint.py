"""Checkpoints `{net, state, names, ...}`: data and tensors only, written whole, checked, never pickled."""
from __future__ import annotations

import io
import os
import pickle
import re
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from models.channels import shapes
from models.files.darknet import COCO_NAMES, beside, read_darknet
from models.files.ncnn import read_ncnn
from models.graph import classes_of
from models.layer import Net
from models.records import check_told, from_json, to_json
from utils.errors import ModelError

SCHEMA = 1
PICKLES = (b"PK", b"\x80")                            # how zip files and binary pickles begin
FOLLOWS = ".bn.num_batches_tracked"                    # in every state dict, of no meaning to a trained net


@dataclass(frozen=True)
class Checkpoint:
    """A trained network."""

    net: Net
    state: dict[str, Tensor]                           # fp32
    names: tuple[str, ...]                             # of the classes, in the order of the head
    imgsz: int = 416                                   # px
    class_map: dict[str, int] = field(default_factory=dict)        # category id of the data set -> class
    extra: dict = field(default_factory=dict)          # plain values: metrics, command, darknet header
    training: dict | None = None                       # what resuming needs


def save(path: str | Path, checkpoint: Checkpoint, keep_previous: bool = False) -> None:
    """Write a checkpoint by `write_atomic`. Raises ModelError rather than write non-finite weights."""
    path = Path(path)
    state = {k: v.detach().to("cpu", torch.float32 if v.is_floating_point() else v.dtype).contiguous()
             for k, v in checkpoint.state.items()}
    if bad := [k for k, v in state.items() if v.is_floating_point() and not v.isfinite().all()]:
        raise ModelError(f"will not write {path.name}: {len(bad)} tensors are not finite, first {bad[0]}")
    content = {"schema": SCHEMA, "net": to_json(checkpoint.net), "state": state,
               "names": list(checkpoint.names), "imgsz": checkpoint.imgsz,
               "class_map": dict(checkpoint.class_map), "extra": checkpoint.extra}
    if checkpoint.training is not None:
        content["training"] = checkpoint.training
    content["checksum"] = checksum(content)
    buffer = io.BytesIO()                              # a full disk is then an OSError, not a torch internal
    torch.save(content, buffer)
    write_atomic(path, buffer.getbuffer(), keep_previous)


def write_atomic(path: Path, data: bytes | memoryview, keep_previous: bool = False) -> None:
    """Write the bytes whole or not at all; keep_previous: what they replace goes to `previous(path)`."""
    part = path.with_suffix(path.suffix + ".part")
    try:
        with open(part, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        part.unlink(missing_ok=True)
        raise
    if keep_previous and path.exists():
        os.replace(path, previous(path))
    os.replace(part, path)
    if hasattr(os, "O_DIRECTORY"):
        folder = os.open(path.parent, os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def previous(path: Path) -> Path:
    """Return where the checkpoint that `path` replaced is kept."""
    return path.with_name(f"{path.stem}.prev{path.suffix}")


def checksum(value: object, crc: int = 0) -> int:
    """Return the CRC-32 of every tensor and plain value in nested dicts and lists, in order."""
    if isinstance(value, dict):
        for key in value:
            crc = checksum(value[key], zlib.crc32(str(key).encode(), crc))
        return crc
    if isinstance(value, (list, tuple)):
        for item in value:
            crc = checksum(item, crc)
        return crc
    if isinstance(value, Tensor):
        return zlib.crc32(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy(), crc)
    return zlib.crc32(repr(value).encode(), crc)


def load(path: str | Path) -> Checkpoint:
    """Return the checkpoint of a `.pt`, darknet `.weights` or ncnn `.bin` file, or raise ModelError."""
    path = Path(path)
    return sound(path, _read(path))


def sound(path: Path, found: Checkpoint) -> Checkpoint:
    """Return a file's checkpoint where its weights are finite tensors, else raise ModelError."""
    if odd := [k for k, v in found.state.items() if not isinstance(v, Tensor)]:
        raise ModelError(f"{path}: {len(odd)} weights are no tensors, first {odd[0]}; the file is damaged")
    if bad := [k for k, v in found.state.items() if v.is_floating_point() and not v.isfinite().all()]:
        raise ModelError(f"{path}: {len(bad)} tensors are not finite, first {bad[0]}; such a network answers "
                         "nothing: take an earlier checkpoint")
    return found


def _read(path: Path) -> Checkpoint:
    """Return the checkpoint of a file, whatever numbers it holds."""
    head = head_of(path)
    if path.suffix == ".weights":
        wanted, imgsz = beside(path)
        net, state, header = read_darknet(path, wanted)
        return Checkpoint(net, state, _names(net), imgsz, extra={"darknet_header": list(header)})
    if path.suffix == ".bin":
        net, state, known = read_ncnn(path)
        extra = {"official": known.name, "folded": True}
        return Checkpoint(net, state, _names(net), known.imgsz, extra=extra)
    return _checked(path, unpickled(path, head))


def unpickled(path: Path, head: bytes) -> object:
    """Return what torch.save wrote, of tensors and plain values alone; head: the file's first bytes.

    Raises ModelError for what holds code, or is no such file.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:                         # bytes that are no checkpoint fail in any way at all
        said = (str(error) or type(error).__name__).splitlines()[0]
        if isinstance(error, pickle.UnpicklingError) and head.startswith(PICKLES):
            raise ModelError(f"{path} holds pickled code or a whole module, which is not loaded because it "
                             "could run anything; convert it in a sandbox: keep its state_dict() and "
                             f"records, save with models.checkpoint ({said})") from error
        begins = "" if head.startswith(PICKLES) else f"it begins with {head[:24]!r}, as no checkpoint does; "
        raise ModelError(f"{path} cannot be read as a checkpoint (torn download or copy?): {begins}"
                         f"{said}") from error


def _names(net: Net) -> tuple[str, ...]:
    """Return the class names of a file that has none: COCO's where their number is COCO's."""
    classes = classes_of(net)
    return COCO_NAMES if classes == len(COCO_NAMES) else tuple(f"class{i}" for i in range(classes))


def head_of(path: Path) -> bytes:
    """Return the first bytes of a file. Raises ModelError without it, or where something else is there."""
    if not path.is_file():
        near = sorted(p.name for p in path.parent.glob("*.pt"))[:3] if path.parent.is_dir() else []
        raise ModelError(f"no checkpoint at {path}" + (f"; in that folder: {', '.join(near)}" if near else "")
                         + "; train one (train.py) or see weights/README.md for the official weights")
    try:
        with open(path, "rb") as file:
            head = file.read(512)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error
    if head.startswith(b"version https://git-lfs"):
        raise ModelError(f"{path} is an LFS pointer, a text in the file's place; fetch the file itself: "
                         "git lfs pull")
    if re.match(rb"(?i)(\xef\xbb\xbf)?\s*<(!doctype|html|head|\?xml|!--)", head):
        raise ModelError(f"{path}: a web page was downloaded instead of the file; look at it in a browser, "
                         "and download the file behind its link")
    return head


def _checked(path: Path, content: object) -> Checkpoint:
    """Return the checkpoint of a loaded file's content. Raises ModelError saying what does not fit."""
    if not isinstance(content, dict) or not {"net", "state", "names"} <= set(content):
        raise ModelError(f"{path} is not a checkpoint of this project: it needs net, state and names; "
                         "a bare state dict lacks the network's records (a classifier's is for train.py "
                         "--backbone-weights)")
    if type(schema := content.get("schema")) is not int or schema != SCHEMA:
        raise ModelError(f"{path} has schema {str(schema)[:40]}, this version reads {SCHEMA}; "
                         "use the version of the project that wrote it")
    if not _as_written(content):
        raise ModelError(f"{path} is damaged: its checksum does not match its content; copy it again")
    state, names = content["state"], content["names"]
    told = content.get("imgsz", 416), content.get("class_map", {})
    extra, training = ({} if content.get(key) is None else content[key] for key in ("extra", "training"))
    for key, value in (("state", state), ("extra", extra), ("training", training)):
        if not isinstance(value, dict):
            raise ModelError(f"{path}: {key} is a {type(value).__name__} where a dict is needed; it was "
                             "changed after it was written")
    try:
        net = from_json(content["net"])
        check_told(net, names, *told)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None
    wanted = shapes(net)
    found = {k: tuple(v.shape) if isinstance(v, Tensor) else type(v).__name__ for k, v in state.items()
             if not str(k).endswith(FOLLOWS)}
    if wanted != found:
        wrong = sorted(map(str, (k for k in wanted.keys() | found.keys() if wanted.get(k) != found.get(k))))
        raise ModelError(f"{path}: {len(wrong)} tensors do not fit its own network, first {wrong[0]}: "
                         f"needed {wanted.get(wrong[0])}, found {found.get(wrong[0])}")
    if odd := [k for k in wanted if not state[k].is_floating_point()]:
        raise ModelError(f"{path}: {odd[0]} holds {state[odd[0]].dtype}; weights are floating-point numbers")
    return Checkpoint(net, state, tuple(names), *told, extra, content.get("training"))


def _as_written(content: dict) -> bool:
    """Return whether a file's content has the checksum that it states, which is taken out."""
    stated = content.pop("checksum", None)
    try:
        return type(stated) is int and stated == checksum(content)
    except RuntimeError:                               # a sparse or meta tensor, or a list that holds itself
        return False


def load_or_previous(path: str | Path) -> tuple[Checkpoint, str]:
    """Return the checkpoint at `path` and "", or the one it replaced and why, where that is no good."""
    path = Path(path)
    try:
        return load(path), ""
    except ModelError as error:
        if not previous(path).is_file():
            raise
        return load(previous(path)), f"{error}; continuing from {previous(path).name}"
