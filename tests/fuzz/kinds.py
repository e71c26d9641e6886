"""The kinds of input that are fuzzed: sound ones, made here, and the public functions that take them."""
import io
import json
import random
import socket
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from data.coco.locate import locate
from data.coco.read import read_coco
from data.dataset import DetectionSet
from data.doctor.diagnosis import examine
from data.doctor.report import as_dict, as_text
from data.images import decode, inspect
from deploy.artifact import FILE, make_metadata, parse_metadata, read_metadata, write_metadata
from deploy.runtimes.runtime import load_runtime
from detection.serve.app import listen
from detection.serve.networks import Networks
from detection.sources import open_source
from models.checkpoint import Checkpoint, checksum, load, save
from models.records import to_json
from tests.fuzz.mutate import bytes_of, image_of, json_of, text_of, value_of
from tests.helpers.coco_files import content, write
from tests.helpers.label_writers import make_voc, make_yolo
from tests.helpers.nets import randomised, small_net
from tests.helpers.serve_cases import config

Mutation = Callable[[bytes, random.Random], bytes]
PIXELS = 4_000_000


@dataclass(frozen=True)
class Kind:
    """Sound inputs in a folder; how their bytes are changed; what is then called with the changed file."""

    make: Callable[[Path], list[Path]]
    change: Mutation
    use: Callable[[Path, Path], object]                    # the folder, the changed file in it


def _coco(folder: Path) -> list[Path]:
    sound = content(3, 3)
    sound["annotations"][0] |= {"segmentation": [[5, 6, 25, 6, 25, 16]], "bbox": None}
    sound["annotations"][1] |= {"segmentation": {"counts": [400, 30, 7570], "size": [80, 100]}, "bbox": []}
    (folder / "set").mkdir()
    return [write(folder / "set", sound)[0]]


def _examine(folder: Path, changed: Path) -> None:
    """What the doctor does, and what a training does before its first step."""
    found = examine(str(folder / "set"), ("train", "val"), 64, epochs=1, reading={"max_pixels": PIXELS})
    as_text(found), json.dumps(as_dict(found), default=str)
    for coco in found.sets.values():
        if len(coco.images):
            DetectionSet(coco, 64)[0, 0]
    located = locate(folder / "set", None if "val" in found.located else 0.3)
    train = read_coco(*located["train"], names=located.names)
    read_coco(*located["val"], names=train.names, class_map=train.class_map)


def _yolo(folder: Path) -> list[Path]:
    make_yolo(folder / "set")
    return sorted((folder / "set").rglob("*.txt")) + sorted((folder / "set").glob("*.yaml")) * 2


def _voc(folder: Path) -> list[Path]:
    make_voc(folder / "set")
    return sorted((folder / "set").rglob("*.xml")) + sorted((folder / "set").rglob("*.txt"))


def _images(folder: Path) -> list[Path]:
    noise = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    picture, paths = Image.fromarray(noise).resize((80, 60), Image.BICUBIC), []
    several = {"save_all": True, "append_images": [picture] * 2, "duration": 40}
    ways = {"a.jpg": {"exif": _turned()}, "b.jpg": {"progressive": True}, "c.png": {}, "d.webp": {},
            "e.bmp": {}, "f.tif": {"tiffinfo": {0x0112: 6}}, "g.tif": {"compression": "tiff_lzw"},
            "h.ppm": {}, "j.avif": {}, "k.gif": several, "l.webp": several, "m.jp2": {}}
    for name, options in ways.items():
        try:
            picture.save(folder / name, **options)
        except (OSError, ValueError, KeyError):            # what this Pillow cannot write
            continue
        paths.append(folder / name)
    Image.fromarray(noise[..., 0].astype(np.uint16) * 256).save(folder / "n.png")
    return [*paths, folder / "n.png"]


def _turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif.tobytes()


def _look(folder: Path, changed: Path) -> None:
    inspect(changed, PIXELS)
    for frame in islice(open_source(str(changed), PIXELS), 50):
        frame.image.sum()
    decode(changed, PIXELS)


def _videos(folder: Path) -> list[Path]:
    import av
    paths = []
    for name, codec in (("a.mp4", "mpeg4"), ("b.avi", "mjpeg"), ("c.mkv", "libvpx-vp9"),
                        ("d.ts", "mpeg2video"), ("e.webm", "libvpx"), ("f.mov", "mpeg4")):
        with av.open(folder / name, "w") as out:
            stream = out.add_stream(codec, rate=10)
            stream.width, stream.height = 64, 48
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            for k in range(12):
                image = np.full((48, 64, 3), 20 * k, np.uint8)
                image[k:k + 9, 2 * k:2 * k + 9] = 255 - 20 * k
                out.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            out.mux(stream.encode(None))
        paths.append(folder / name)
    return paths


def _watch(folder: Path, changed: Path) -> None:
    for frame in islice(open_source(str(changed), PIXELS), 100):
        frame.image.sum()


def _checkpoints(folder: Path) -> list[Path]:
    net = small_net(3)
    save(folder / "a.pt", Checkpoint(net, randomised(net).state_dict(), ("a", "b", "c"), 64, {"1": 0, "7": 2},
                                     {"note": "x"}, {"epoch": 3}))
    (folder / "b.weights").write_bytes(bytes(20) + np.arange(5000, dtype="<f4").tobytes())
    return [folder / "a.pt", folder / "a.pt", folder / "a.pt", folder / "b.weights"]


def _checkpoint_of(data: bytes, rng: random.Random) -> bytes:
    """Changed bytes, or a changed field of the content with a checksum that fits."""
    if not data.startswith(b"PK") or rng.random() < 0.4:
        return bytes_of(data, rng)
    found = torch.load(io.BytesIO(data), weights_only=True)
    state, net = found.pop("state"), json.loads(found["net"])
    found.pop("checksum")
    if rng.random() < 0.5:
        found["net"] = json.dumps(value_of(net, rng))
    else:
        found = value_of(found, rng)
    if isinstance(found, dict) and rng.random() < 0.9:
        key = rng.choice(sorted(state))
        odd = (state[key], state[key].flatten(), state[key] * float("nan"), state[key].long(), None, 3, "x")
        found["state"] = state | {key: odd[rng.choice((0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6))]}
        found["checksum"] = checksum(found)
    torch.save(found, buffer := io.BytesIO())
    return buffer.getvalue()


def _run(folder: Path, changed: Path) -> None:
    load(changed)
    runtime = load_runtime(changed, threads=1)
    runtime.check_side(64, "it")
    runtime.predict(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))


def _metadata(folder: Path) -> list[Path]:
    net = small_net(3)
    told = make_metadata(Checkpoint(net, {}, ("a", "b", "c"), 64, {"1": 0}), 64, "fp32", 17)
    (folder / "plain.json").write_text(json.dumps(told), encoding="utf-8")
    (folder / "net.json").write_text(to_json(net), encoding="utf-8")
    (folder / "ncnn").mkdir()
    for name in ("model.param", "model.bin"):
        (folder / "ncnn" / name).write_bytes(b"x")
    write_metadata(folder / "ncnn", told)
    return [folder / "plain.json", folder / "net.json", folder / "ncnn" / FILE]


def _metadata_of(data: bytes, rng: random.Random) -> bytes:
    """A changed JSON, or metadata whose records within it were changed."""
    found = json.loads(data)
    if "net" in found and rng.random() < 0.4:
        return json.dumps(found | {"net": json.dumps(value_of(json.loads(found["net"]), rng))}).encode()
    return json_of(data, rng)


def _describe(folder: Path, changed: Path) -> None:
    from models.zoo.build import build
    if changed.name == FILE:
        read_metadata(folder / "ncnn")
    elif changed.name == "net.json":
        build(str(changed), 3)
    else:
        parse_metadata(changed.read_bytes(), changed)


class Service:
    """The page's server in this process, and what it did wrong."""

    def __init__(self, folder: Path) -> None:
        self.faults = list[str]()
        weights = folder / "a.pt"
        net = small_net(3)
        save(weights, Checkpoint(net, randomised(net).state_dict(), ("a", "b", "c"), 64))
        self.networks = Networks(config(weights), list)
        self.server = listen("127.0.0.1", 0)
        self.server.handle_error = lambda *_: self.faults.append(traceback.format_exc())
        self.networks.open(self.networks.first)
        self.server.begin(self.networks, {"conf": 0.25, "iou": 0.45})
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def ask(self, request: bytes) -> None:
        """Send bytes and read what comes back until the server closes; raise for what is no proper answer."""
        with socket.create_connection(self.server.server_address[:2], timeout=10) as client:
            try:
                client.sendall(request)
                client.shutdown(socket.SHUT_WR)
                answer = b"".join(iter(lambda: client.recv(65536), b""))
            except ConnectionError:                        # closed while still being sent to
                answer = b""
        gone = ("ConnectionResetError", "BrokenPipeError")     # of the client that has ended
        wrong = [fault for fault in self.faults if not any(word in fault for word in gone)]
        self.faults.clear()
        proper = not answer or answer.startswith((b"HTTP/1.", b"<!DOCTYPE"))
        if wrong or not proper or b" 500 " in answer[:20]:
            raise RuntimeError(f"{wrong}\n{answer[:200]!r}")


SERVICES: dict[Path, Service] = {}


def _requests(folder: Path) -> list[Path]:
    service = SERVICES[folder] = Service(folder)
    Image.new("RGB", (40, 30), (90, 20, 30)).save(buffer := io.BytesIO(), "PNG")
    head = f"Host: 127.0.0.1:{service.server.server_port}\r\n"
    body = f"Content-Type: image/png\r\nContent-Length: {len(buffer.getvalue())}\r\n\r\n".encode()
    post = f"POST /api/detect?model={service.networks.first}&conf=0.2&iou=0.5 HTTP/1.1\r\n{head}".encode()
    detect = post + body + buffer.getvalue()
    texts = {"get": f"GET /app.js HTTP/1.1\r\n{head}Connection: close\r\n\r\n".encode(),
             "list": f"GET /api/models HTTP/1.1\r\n{head}\r\n".encode(), "detect": detect,
             "twice": detect * 2, "open": post.replace(b"detect", b"open") + body}
    for name, text in texts.items():
        (folder / name).write_bytes(text)
    return [folder / name for name in texts]


KINDS = {"coco": Kind(_coco, json_of, _examine), "yolo": Kind(_yolo, text_of, _examine),
         "voc": Kind(_voc, text_of, _examine), "image": Kind(_images, image_of, _look),
         "video": Kind(_videos, bytes_of, _watch), "checkpoint": Kind(_checkpoints, _checkpoint_of, _run),
         "metadata": Kind(_metadata, _metadata_of, _describe),
         "http": Kind(_requests, text_of, lambda folder, changed: SERVICES[folder].ask(changed.read_bytes()))}
