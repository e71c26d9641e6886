"""A network set by hand that finds cells of pure colour and nothing else, and images with such cells."""
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np

import detect
from detection.video import Recorder, VideoInfo
from tests.helpers.scripts import call

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("red", "green", "蓝/色")
COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255))
SIZE = 160                         # five by five cells of 32 px


def made_nets(folder: Path) -> dict[str, Path]:
    """Two checkpoints in `folder`. "good": max-pools and one 1x1 head; a cell whose every pixel is pure
    red, green or blue is a box as large as the cell. "broken" differs in what it makes of red (a box wider
    than any) and of yellow (infinity)."""
    import torch

    from models.checkpoint import Checkpoint, save
    from models.layer import Layer
    from models.records import validate
    pools, source = [], "image"
    for k in range(1, 6):
        pools.append(Layer(f"pool{k}", "maxpool", (source,), kernel=2, stride=2))
        source = f"pool{k}"
    net = validate((*pools, Layer("head", "head", (source,), 8, 1, act="linear", kind="anchor",
                                   anchors=((32.0, 32.0),), assign="best")))
    weight, bias = torch.zeros(8, 3, 1, 1), torch.zeros(8)
    weight[4], bias[4] = -60, 69                           # grey, white and mixtures add up to more than 1.15
    weight[5:, :, 0, 0], bias[5:] = 20 * torch.eye(3), -10
    made = {}
    for name, row in (("good", 0.0), ("broken", 3e38)):
        weight[2, :2] = row
        state = {"head.conv.weight": weight.clone(), "head.conv.bias": bias.clone()}
        made[name] = folder / f"{name}.pt"
        save(made[name], Checkpoint(net, state, NAMES, SIZE, {"7": 0, "9": 1, "90": 2}))
    return made


def running(capsys, monkeypatch, tmp_path: Path) -> Iterator[Callable]:
    """Runs detect.py in this process: run(flag, ...) -> (exit code, stdout, stderr, run folder)."""
    def go(*flags: object) -> tuple[int, str, str, Path]:
        number = len(list((tmp_path / "out").glob("exp*"))) + 1
        code = call(monkeypatch, detect.main, ["detect.py", *flags, "--project", tmp_path / "out",
                                               "--device", "cpu", "--threads", 1])
        said = capsys.readouterr()
        return code, said.out, said.err, tmp_path / "out" / ("exp" if number == 1 else f"exp{number}")
    yield go


def scene(height: int, width: int, cells: list[tuple[int, int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """A grey image whose (row, column, class) cells of the network's input are of pure colour, and those
    boxes [N, 5] (xyxy px of the image, class)."""
    image, boxes = np.full((height, width, 3), 114, np.uint8), []
    scale = min(SIZE / height, SIZE / width)
    left, top = (SIZE - round(width * scale)) // 2, (SIZE - round(height * scale)) // 2
    for row, column, label in cells:
        corner = np.array([column * 32 - left, row * 32 - top])
        box = np.concatenate((corner, corner + 32)) / scale
        margin = 1 + 1 / scale                             # the cell stays pure when resizing blurs borders
        x1, y1 = np.floor(box[:2] - margin).astype(int).clip(0)
        x2, y2 = np.ceil(box[2:] + margin).astype(int)
        image[y1:y2, x1:x2] = COLOURS[label]
        boxes.append([*box, label])
    return image, np.array(boxes, dtype=float).reshape(-1, 5)


def save(path: Path, image: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    options = [cv2.IMWRITE_JPEG_QUALITY, 100] if path.suffix == ".jpg" else []
    path.write_bytes(cv2.imencode(path.suffix, image[:, :, ::-1], options)[1].tobytes())
    return path


def film(path: Path, frames: int, size: tuple[int, int] = (240, 320), fps: float = 12.5) -> np.ndarray:
    """A video of one red and one green cell; the boxes of every frame."""
    image, boxes = scene(*size, [(2, 1, 0), (3, 3, 1)])
    video = Recorder(path.with_suffix(""), live=path.suffix == ".mkv")
    for k in range(frames):
        video.write(image, k / fps, VideoInfo(fps, 0, size[1], size[0]))
    video.close()
    return boxes


def match(found: np.ndarray, wanted: np.ndarray, limit: float) -> None:
    """Fails unless the boxes [N, 5] (xyxy px, class) are the same within `limit` px, in any order."""
    assert len(found) == len(wanted)
    for row in wanted:
        off = np.abs(found[:, :4] - row[:4]).max(1) + 1e9 * (found[:, 4] != row[4])
        assert off.min() <= limit, f"no box within {limit} px of {row}: {found}"
