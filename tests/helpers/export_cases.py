"""Checkpoints with numbers far from identity, and their exports, for tests of runtimes."""
from pathlib import Path

import numpy as np
import pytest
import torch

from deploy import export
from deploy.runtimes.ncnn import to_ncnn
from models.checkpoint import Checkpoint, save
from models.graph import classes_of, outputs
from models.layer import Net
from tests.helpers.nets import randomised

SIDE = 64
FORMS = ("onnx", "openvino", "ncnn", "torchscript")


def checkpoint(net, state=None, imgsz: int = SIDE) -> Checkpoint:
    """A checkpoint of the network with numbers far from identity."""
    names = tuple(f"classe {i} é" for i in range(classes_of(net)))
    return Checkpoint(net, state or randomised(net).state_dict(), names, imgsz, {"7": 0})


def exported(folder: Path, given: Checkpoint, forms=FORMS, **settings: object) -> dict[str, Path]:
    """Format -> the file that the export kept."""
    save(folder / "net.pt", given)
    images = [np.random.default_rng(i).integers(0, 256, (3, SIDE, SIDE), dtype=np.uint8) for i in range(2)]
    job = export.Export(str(folder / "net.pt"), given, SIDE, settings.get("half", False), False, images)
    rows = {form: export.export(job, form, folder, "net") for form in forms}
    assert not [row["faults"] for row in rows.values() if row["faults"]], rows
    return {form: folder / row["file"] for form, row in rows.items()}


def batch(count: int = 3, side: int = SIDE) -> torch.Tensor:
    """Noise, uint8 [count, 3, side, side], in channels_last as detect.py's."""
    image = torch.randint(0, 256, (count, side, side, 3), dtype=torch.uint8,
                            generator=torch.Generator().manual_seed(1))
    return image.permute(0, 3, 1, 2)


def by_ncnn(net: Net, state: dict[str, torch.Tensor], image: torch.Tensor, folder: Path) -> np.ndarray:
    """The first output [C, G, G] that plain ncnn in fp32 computes of a uint8 image [3, S, S]."""
    ncnn = pytest.importorskip("ncnn", reason="needs ncnn (requirements-export.txt)")
    text, numbers = to_ncnn(net, state)
    (folder / "a.param").write_text(text)
    (folder / "a.bin").write_bytes(numbers)
    runner = ncnn.Net()
    for option in ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_packed", "bf16_storage"):
        setattr(runner.opt, f"use_{option}", False)
    assert not runner.load_param(str(folder / "a.param")) and not runner.load_model(str(folder / "a.bin"))
    held = np.ascontiguousarray(image.numpy() / np.float32(255))
    extractor, given = runner.create_extractor(), ncnn.Mat(held)       # which points into the array
    extractor.input("images", given)
    return np.array(extractor.extract(outputs(net)[0])[1])
