"""Exported files: what kind a path is, and the card each carries.

The card is a JSON-able dict that says what the file is and how to use it: in ONNX files a metadata entry, in
TorchScript an extra file, beside the others card.json. Without a card a file is not one of ours.
"""
from __future__ import annotations

import hashlib
import json
import warnings
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from models.graph import classes_of, heads_of, outputs, strides
from models.records import from_json, to_json
from utils.boxes import PAD_VALUE
from utils.errors import ModelError
from utils.optional import needs

if TYPE_CHECKING:
    import onnxruntime as ort

    from models.checkpoint import Checkpoint

SCHEMA = 1
ENTRY = "micro_yolo"                                       # the card's name in an ONNX file's metadata
FILE = "card.json"                                         # ... and elsewhere
MAIN = {"openvino": "model.xml", "ncnn": "model.param"}    # formats of several files are folders
SUFFIXES = {".onnx": "onnx", ".xml": "openvino", ".param": "ncnn", ".torchscript": "torchscript"}
LETTERBOX = {
    "fill": PAD_VALUE, "centre": True, "channels": "RGB", "resize": "area when shrinking, else bilinear",
    "rule": "scale = min(S / height, S / width); new sides = max(1, round(side x scale)), halves to even; "
            "left = (S - width) // 2, top = (S - height) // 2; the rest is grey"}


def format_of(path: str | Path) -> str:
    """torch, onnx, openvino, ncnn or torchscript: by the suffix, and for a folder by what is in it."""
    path = Path(path)
    if path.is_dir():
        found = [form for form, name in MAIN.items() if (path / name).is_file()]
        if not found:
            raise ModelError(f"{path} is a folder without {' or '.join(MAIN.values())}; give a file, or a "
                             "folder that export.py --format openvino or ncnn wrote")
        return found[0]
    return SUFFIXES.get(path.suffix, "torch")


def main_file(path: str | Path) -> Path:
    """The file that a runtime opens: the path itself, or the main file of a folder. Raises ModelError."""
    path = Path(path)
    if path.is_dir():
        return path / MAIN[format_of(path)]
    if not path.is_file():
        raise ModelError(f"there is no file {path}; export.py --weights CHECKPOINT --format "
                         f"{format_of(path)} writes one")
    return path


def suits(precision: str, asked: str) -> bool:
    """Whether a file that has one precision is what was asked for; fp32 and auto ask for nothing special."""
    return asked in ("fp32", "auto", precision) or asked == "half" and precision in ("bf16", "fp16")


def parts(path: str | Path) -> list[Path]:
    """Every file of an artifact: the path itself, or all in its folder but the card."""
    path = Path(path)
    if format_of(path) in MAIN and not path.is_dir():
        path = path.parent
    return sorted(p for p in path.rglob("*") if p.is_file() and p.name != FILE) if path.is_dir() else [path]


def size(path: str | Path) -> int:
    """Bytes of the artifact, all its files together."""
    return sum(part.stat().st_size for part in parts(path))


def digest(path: str | Path) -> str:
    """SHA-256 of the artifact; of one of several files that of their names and digests."""
    found = parts(path)
    if len(found) == 1:
        return _sha(found[0])
    return hashlib.sha256("".join(f"{_sha(part)}  {part.name}\n" for part in found).encode()).hexdigest()


def _sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def make_card(checkpoint: Checkpoint, imgsz: int, precision: str, opset: int | None = None,
              source: str | Path | None = None) -> dict:
    """The card of an export: records, names, sides, strides, anchors, letterbox and where it came from."""
    net, stride, told = checkpoint.net, strides(checkpoint.net), {}
    for head in heads_of(net):
        for key, value in {"kind": head.kind, **head.metadata()}.items():
            told.setdefault(key, {})[head.layer.name] = value
    return {"schema": SCHEMA, "net": to_json(net), "names": list(checkpoint.names), "imgsz": imgsz, **told,
            "strides": {name: stride[name] for name in outputs(net)}, "outputs": list(outputs(net)),
            "class_map": dict(checkpoint.class_map), "letterbox": LETTERBOX, "precision": precision,
            "opset": opset, "source_sha256": digest(source) if source else "", "parity": {}}


def parse_card(text: str | None, path: str | Path) -> dict:
    """The card of a JSON text. Raises ModelError naming the file where it is no card or a damaged one."""
    if not text:
        raise ModelError(f"{path} was not written by export.py: it lacks the card with the network's records "
                         "and class names; export the checkpoint again")
    try:
        card = json.loads(text)
        net = from_json(card["net"])
        good = card["schema"] == SCHEMA and len(card["names"]) == classes_of(net) and \
            card["outputs"] == list(outputs(net)) and card["imgsz"] > 0 and card["precision"]
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise ModelError(f"{path}: its card cannot be read ({str(error)[:120]}); export the checkpoint "
                         "again") from error
    if not good:
        raise ModelError(f"{path}: its card is of schema {card['schema']}, where {SCHEMA} is read, or "
                         "contradicts its own records; export the checkpoint again")
    return card


def read_card(path: str | Path) -> dict:
    """The card of an exported file or folder. Raises ModelError where it has none or cannot be read."""
    path, form = Path(path), format_of(path)
    main = main_file(path)
    if form == "onnx":
        return onnx_card(onnx_session(main), path)
    if form == "torchscript":
        try:
            with zipfile.ZipFile(main) as archive:
                inside = [name for name in archive.namelist() if name.endswith(f"/extra/{FILE}")]
                return parse_card(archive.read(inside[0]).decode() if inside else None, path)
        except (zipfile.BadZipFile, OSError, UnicodeDecodeError) as error:
            raise unreadable(path, "a TorchScript file", error) from error
    if form == "torch":
        raise ModelError(f"{path} is a checkpoint and has no card; export.py writes one")
    return card_beside(main)


def card_beside(main: Path) -> dict:
    """The card in the main file's folder, whose files are what it says they are."""
    beside = main.parent / FILE
    try:
        card = parse_card(beside.read_text(encoding="utf-8") if beside.is_file() else None, main)
    except (UnicodeDecodeError, OSError) as error:
        raise unreadable(beside, "a card", error) from error
    for name, stated in {main.name: "", **card.get("files", {})}.items():
        part = main.parent / Path(name).name
        if not part.is_file() or _sha(part) != stated:
            fault = "damaged: its checksum is not the one" if part.is_file() else "missing, and is named"
            raise ModelError(f"{part} is {fault} in {FILE}; copy the whole folder, or export again")
    return card


def onnx_session(path: Path, options: ort.SessionOptions | None = None,
                 providers: tuple[str, ...] = ("CPUExecutionProvider",)) -> ort.InferenceSession:
    """An ONNX Runtime session of the file, without options a plain one; else ModelError naming the file."""
    ort = needs("onnxruntime", "to read ONNX files")
    if options is None:
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4                         # what fails is raised; the rest is the library's
    try:
        return ort.InferenceSession(str(path), options, providers=list(providers))
    except Exception as error:                             # its own classes share no base but this
        raise unreadable(path, "an ONNX file", error) from error


def onnx_card(session: ort.InferenceSession, path: Path) -> dict:
    """The card in an ONNX file's metadata. Raises ModelError where it has none."""
    return parse_card(session.get_modelmeta().custom_metadata_map.get(ENTRY), path)


def write_card(path: str | Path, card: dict) -> None:
    """Puts the card into an exported file, or beside the files of a folder with their checksums."""
    path, form = Path(path), format_of(path)
    text = json.dumps(card, ensure_ascii=False)
    if form == "onnx":
        onnx = needs("onnx", "to write ONNX files")
        model = onnx.load(path)
        onnx.helper.set_model_props(model, {ENTRY: text})
        onnx.save(model, path)
    elif form == "torchscript":
        import torch
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")                # that TorchScript is the older of torch's two ways
            torch.jit.save(torch.jit.load(path), str(path), _extra_files={FILE: text})
    else:
        files = {part.name: _sha(part) for part in parts(path)}
        (main_file(path).parent / FILE).write_text(json.dumps({**card, "files": files}, ensure_ascii=False),
                                                   encoding="utf-8")


def unreadable(path: str | Path, what: str, error: Exception) -> ModelError:
    """The error of a file that its library refuses."""
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    reason = lines[-1][:200]                               # OpenVINO puts its own source lines first
    return ModelError(f"{path} cannot be read as {what} (torn download or copy?): {reason}")
