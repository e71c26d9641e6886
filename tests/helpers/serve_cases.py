"""Flags and requests for tests of detect.py --serve."""
import http.client
import json
from pathlib import Path

from detection.detector import NetworkConfig


def config(weights: Path) -> NetworkConfig:
    """A network in torch and fp32 on one thread."""
    return NetworkConfig(str(weights), imgsz=None, device="cpu", half=False, fp32=True, threads=1,
                         nms="standard", conf_thres=0.25, iou_thres=0.45, max_det=300, classes=None,
                         max_pixels=10 ** 8)


class Client:
    """Requests to a server in this process, each over a connection of its own."""

    def __init__(self, port: int, first: str) -> None:
        self.port, self.first = port, first

    def ask(self, method: str, path: str, body: object = None, **headers: str) -> tuple[int, dict, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        given = {"Content-Type": "image/jpeg", **{k.replace("_", "-"): v for k, v in headers.items()}}
        connection.request(method, path, body, given)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer.status, dict(answer.getheaders()), content

    def detect(self, image: bytes, query: str = "", **headers: str) -> tuple[int, dict]:
        status, _, body = self.ask("POST", f"/api/detect?model={self.first}{query}", image, **headers)
        return status, json.loads(body)
