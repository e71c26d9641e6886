"""Exported files: what kind a path is, and the metadata that each carries, a JSON-able dict."""
from __future__ import annotations

import json
import os
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from models.graph import heads_of, outputs, strides
from models.records import check_told, from_json, to_json
from utils.boxes import PAD_VALUE
from utils.errors import ModelError
from utils.optional import needs

if TYPE_CHECKING:
    import onnxruntime as ort

    from models.checkpoint import Checkpoint

SCHEMA = 1
PRECISIONS = ("fp32", "bf16", "fp16", "int8")
ENTRY = "micro_yolo"                                       # the name of an ONNX file's metadata entry
UNFOLDS = 16                                               # torch packs a program's text, never its numbers
PROGRAM = "program_sha256"                                 # in TorchScript's metadata: of all beside them
FILE = "card.json"                                         # ... of the file beside others, inside TorchScript
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
MAIN = {"openvino": "model.xml", "ncnn": "model.param"}    # formats of several files are folders
SUFFIXES = {".onnx": "onnx", ".xml": "openvino", ".param": "ncnn", ".torchscript": "torchscript"}
LETTERBOX = {
    "fill": PAD_VALUE, "centre": True, "channels": "RGB", "resize": "area when shrinking, else bilinear",
    "rule": "scale = min(S / height, S / width); new sides = max(1, round(side x scale)), halves to even; "
            "left = (S - width) // 2, top = (S - height) // 2; the rest is grey"}


def format_of(path: str | Path) -> str:
    """Return torch, onnx, openvino, ncnn or torchscript: by the suffix, and for a folder by what is in it."""
    path = Path(path)
    if not path.is_dir():
        return SUFFIXES.get(path.suffix, "torch")
    found = [form for form, name in MAIN.items() if (path / name).is_file()]
    if not found:
        raise ModelError(f"{path} is a folder without {' or '.join(MAIN.values())}; give a file, or a "
                         "folder that export.py --format openvino or ncnn wrote")
    return found[0]


def needs_torch(path: str | Path) -> bool:
    """Return whether torch must be there for it: a checkpoint, darknet weights or TorchScript."""
    return format_of(path) in ("torch", "torchscript")


def main_file(path: str | Path) -> Path:
    """Return the file that a runtime opens: the path itself, or a folder's main file. Raises ModelError."""
    path = Path(path)
    if path.is_dir():
        return path / MAIN[format_of(path)]
    if not path.is_file():
        raise ModelError(f"there is no file {path}; export.py --weights CHECKPOINT --format "
                         f"{format_of(path)} writes one")
    return path


def own_precision(precision: str, asked: str) -> str:
    """Return a sentence where a file of one precision was asked for another; fp32 and auto ask for none."""
    suits = asked in ("fp32", "auto", precision) or asked == "half" and precision in ("bf16", "fp16")
    return "" if suits else f"this file runs in the precision that it was exported in, {precision}"


def parts(path: str | Path) -> list[Path]:
    """Return every file of an artifact: the path itself, or all in its folder but the metadata."""
    path = Path(path)
    if format_of(path) in MAIN and not path.is_dir():
        path = path.parent
    return sorted(p for p in path.rglob("*") if p.is_file() and p.name != FILE) if path.is_dir() else [path]


def size(path: str | Path) -> int:
    """Return the bytes of an artifact, all its files together."""
    return sum(part.stat().st_size for part in parts(path))


def digest(path: str | Path) -> str:
    """Return the SHA-256 of an artifact; of one of several files that of their names and digests."""
    found = parts(path)
    if len(found) == 1:
        return _sha(found[0])
    import hashlib
    return hashlib.sha256("".join(f"{_sha(part)}  {part.name}\n" for part in found).encode()).hexdigest()


def _sha(path: Path) -> str:
    import hashlib
    return hashlib.sha256(path.read_bytes()).hexdigest()


def make_metadata(checkpoint: Checkpoint, imgsz: int, precision: str, opset: int | None = None,
                  source: str | Path | None = None) -> dict:
    """Return the metadata of an export: records, names, strides, what the heads tell, letterbox, source."""
    net, stride, told = checkpoint.net, strides(checkpoint.net), {}
    for head in heads_of(net):
        for key, value in {"kind": head.kind, **head.metadata()}.items():
            told.setdefault(key, {})[head.layer.name] = value
    return {"schema": SCHEMA, "net": to_json(net), "names": list(checkpoint.names), "imgsz": imgsz, **told,
            "strides": {name: stride[name] for name in outputs(net)}, "outputs": list(outputs(net)),
            "class_map": dict(checkpoint.class_map), "letterbox": LETTERBOX, "precision": precision,
            "opset": opset, "source_sha256": digest(source) if source else "", "parity": {}}


def parse_metadata(text: str | bytes | None, path: str | Path) -> dict:
    """Return the metadata of a JSON text. Raises ModelError naming the file where it is none or damaged."""
    if not text:
        raise ModelError(f"{path} was not written by export.py: it lacks the metadata with the network's "
                         "records and class names; export the checkpoint again")
    try:
        found = json.loads(text)
        net = from_json(found["net"])
        check_told(net, found["names"], found["imgsz"], found["class_map"])
        good = found["schema"] == SCHEMA and found["outputs"] == list(outputs(net)) and \
            found["precision"] in PRECISIONS and isinstance(found.get("files", {}), dict)
    except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise ModelError(f"{path}: its metadata cannot be read ({str(error)[:120]}); export the checkpoint "
                         "again") from error
    if not good:
        raise ModelError(f"{path}: its metadata is of schema {found['schema']}, where {SCHEMA} is read, or "
                         "contradicts its own records; export the checkpoint again")
    return found


def read_metadata(path: str | Path) -> dict:
    """Return the metadata of an exported file or folder. Raises ModelError where it is none of ours."""
    path, form = Path(path), format_of(path)
    main = main_file(path)
    if form == "onnx":
        return onnx_metadata(onnx_session(main), path)
    if form == "torch":
        raise ModelError(f"{path} is a checkpoint and has no metadata; export.py writes a file that has")
    if form != "torchscript":
        return metadata_beside(main)
    entries, card = _script_entries(path)
    found = parse_metadata(card, path)
    if PROGRAM in found and found[PROGRAM] != _script_sha(entries):
        raise ModelError(f"{path} was changed since it was written: its checksum is not that of its program; "
                         "copy it again, or export again")
    return found


def _script_entries(path: Path) -> tuple[list[tuple[str, bytes]], bytes | None]:
    """Return what a TorchScript file holds, (name, bytes) in order, and apart from it the metadata."""
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
            if sum(info.file_size for info in infos) > UNFOLDS * path.stat().st_size:
                raise zipfile.BadZipFile(f"it would unfold to more than {UNFOLDS} times its size")
            entries = [(info.filename, archive.read(info)) for info in infos]
    except (zipfile.BadZipFile, zlib.error, OSError, RuntimeError, ValueError, EOFError) as error:
        raise unreadable(path, "a TorchScript file", error) from error
    card = next((data for name, data in entries if name.endswith(f"/extra/{FILE}")), None)
    return [entry for entry in entries if not entry[0].endswith(f"/extra/{FILE}")], card


def _script_sha(entries: list[tuple[str, bytes]]) -> str:
    """Return the SHA-256 of the names, below the archive's own, and bytes of a TorchScript file."""
    import hashlib
    text = "".join(f"{hashlib.sha256(data).hexdigest()}  {name.partition('/')[2]}\n"
                   for name, data in entries)
    return hashlib.sha256(text.encode()).hexdigest()


def metadata_beside(main: Path) -> dict:
    """Return the metadata in the main file's folder, once the folder's files have the checksums it states."""
    beside = main.parent / FILE
    try:
        found = parse_metadata(beside.read_bytes() if beside.is_file() else None, main)
    except OSError as error:
        raise unreadable(beside, "metadata", error) from error
    for name, stated in {main.name: "", **found.get("files", {})}.items():
        part = main.parent / Path(name).name
        if not part.is_file() or _sha(part) != stated:
            fault = "damaged: its checksum is not the one" if part.is_file() else "missing, and is named"
            raise ModelError(f"{part} is {fault} in {FILE}; copy the whole folder, or export again")
    return found


def onnx_session(model: Path | bytes, threads: int = 0, cuda: bool = False,
                 profile: str = "") -> ort.InferenceSession:
    """Return an ONNX Runtime session of a file or bytes, or raise ModelError; threads 0: not optimised."""
    ort = needs("onnxruntime", "to run ONNX files")
    options = ort.SessionOptions()
    options.log_severity_level = 4                         # what fails is raised; the rest is the library's
    if threads:
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    else:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if os.environ.get("OMP_WAIT_POLICY", "").upper() == "PASSIVE":
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if profile:                                            # the prefix of a file with the times of its nodes
        options.enable_profiling, options.profile_file_prefix = True, profile
    providers = [CUDA, CPU] if cuda and CUDA in ort.get_available_providers() else [CPU]
    name, given = ("the model", model) if isinstance(model, bytes) else (model, str(model))
    try:
        return ort.InferenceSession(given, options, providers=providers)
    except Exception as error:                             # its own classes share no base but this
        raise unreadable(name, "an ONNX file", error) from error


def onnx_metadata(session: ort.InferenceSession, path: Path) -> dict:
    """Return the metadata of an ONNX file. Raises ModelError where it has none."""
    return parse_metadata(session.get_modelmeta().custom_metadata_map.get(ENTRY), path)


def write_metadata(path: str | Path, metadata: dict) -> None:
    """Write the metadata into an exported file, or beside the files of a folder with their checksums."""
    path, form = Path(path), format_of(path)
    if form in MAIN:
        metadata = metadata | {"files": {part.name: _sha(part) for part in parts(path)}}
    text = json.dumps(metadata, ensure_ascii=False)
    if form == "onnx":
        onnx = needs("onnx", "to write ONNX files")
        model = onnx.load(path)
        onnx.helper.set_model_props(model, {ENTRY: text})
        onnx.save(model, path)
    elif form == "torchscript":
        entries, _ = _script_entries(path)
        text = json.dumps(metadata | {PROGRAM: _script_sha(entries)}, ensure_ascii=False)
        root = entries[0][0].partition("/")[0]
        with zipfile.ZipFile(path, "w") as archive:        # stored, as torch reads it
            for name, data in (*entries, (f"{root}/extra/{FILE}", text.encode())):
                archive.writestr(zipfile.ZipInfo(name), data)
    else:
        (main_file(path).parent / FILE).write_text(text, encoding="utf-8")


def unreadable(path: str | Path, what: str, error: Exception) -> ModelError:
    """Return the error of a file that its library rejects."""
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    reason = lines[-1][:200]                               # OpenVINO puts its own source lines first
    return ModelError(f"{path} cannot be read as {what} (torn download or copy?): {reason}")
