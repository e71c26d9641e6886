"""Checkpoints with numbers far from identity, and their exports, for tests of runtimes."""
from pathlib import Path

import numpy as np
import torch

from deploy import export
from models.checkpoint import Checkpoint, save
from models.graph import classes_of
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
