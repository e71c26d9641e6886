"""A headless Chromium with a fake camera, and a folder served over loopback, for tests of the page."""
import base64
import functools
import http.server
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
COLLECT = """document.getElementById('picture').addEventListener('detections',
             ({ detail }) => { (window.seen ??= []).push(detail.boxes); })"""
KEEP = """(count) => document.getElementById('picture').addEventListener('detections', ({ detail }) => {
            if ((window.kept ??= []).length >= count) return;
            const canvas = document.createElement('canvas');
            [canvas.width, canvas.height] = [detail.picture.width, detail.picture.height];
            canvas.getContext('2d', { willReadFrequently: true }).drawImage(detail.picture, 0, 0);
            window.kept.push({ picture: canvas.toDataURL('image/png'), boxes: detail.boxes }); })"""


def need_browser() -> None:
    """Skips the test, with the reason, where there is no Chromium or no playwright to drive it."""
    pytest.importorskip("playwright", reason="needs playwright (requirements-dev.txt)")
    if CHROMIUM is None:
        pytest.skip("needs Chromium, absent here")


@contextmanager
def chromium(camera: Path | None = None) -> Iterator:
    """A browser whose camera shows the MJPEG file again and again, or a test image."""
    from playwright.sync_api import sync_playwright
    with sync_playwright() as api:
        browser = launch(api.chromium, camera)
        yield browser
        browser.close()


def launch(kind: object, camera: Path | None = None) -> object:
    """A further browser of a kind (`browser.browser_type`), with a camera as above."""
    flags = ["--no-sandbox", "--disable-gpu", "--use-fake-ui-for-media-stream",
             "--use-fake-device-for-media-stream"]
    flags += [f"--use-file-for-fake-video-capture={camera}"] if camera else []
    return kind.launch(executable_path=CHROMIUM, args=flags)


class Page:
    """A page of ours in a context of its own. `requests`: addresses it asked for; `faults`: its errors."""

    def __init__(self, browser: object, address: str, **context: object) -> None:
        self.context = browser.new_context(**context)
        self.page = self.context.new_page()
        self.requests: list[str] = []
        self.faults: list[str] = []
        self.context.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.goto(address)

    def ready(self) -> "Page":
        """The page, once its network is loaded; every answer of the network is kept from here on."""
        self.page.locator("#where:not(:empty)").wait_for(timeout=60_000)
        self.page.evaluate(COLLECT)
        return self

    def boxes(self, file: Path) -> np.ndarray:
        """Boxes [N, 6] (xyxy px, score, class) of an image that is opened."""
        self.page.evaluate("window.seen = []")
        self.page.set_input_files("#file", file)
        return self.seen(1)[0]

    def seen(self, count: int) -> list[np.ndarray]:
        """The boxes of at least `count` frames, in their order."""
        for _ in range(600):
            if self.page.evaluate("window.seen?.length ?? 0") >= count:
                break
            self.page.wait_for_timeout(50)
        else:
            raise AssertionError(f"no boxes after 30 s: {self.text('status')}; {self.faults}")
        return [np.array(rows, float).reshape(-1, 6) for rows in self.page.evaluate("window.seen")]

    def images(self, count: int) -> list[tuple[bytes, np.ndarray]]:
        """The next `count` frames as PNG, and the boxes found on each."""
        self.page.evaluate(KEEP, count)
        self.page.evaluate("window.seen = []")
        self.seen(count)
        return [(base64.b64decode(row["picture"].split(",")[1]), np.array(row["boxes"], float).reshape(-1, 6))
                for row in self.page.evaluate("window.kept")]

    def text(self, name: str) -> str:
        """What stands in an element."""
        return self.page.inner_text(f"#{name}")

    def says(self, words: str) -> None:
        """Waits until the status line holds the words."""
        self.page.locator("#status", has_text=re.compile(words)).wait_for(timeout=30_000)

    def close(self) -> None:
        """Fails when something was asked of another machine, or a script broke."""
        ours = ("http://127.0.0.1:", "blob:", "data:")
        strange = [url for url in self.requests if not url.startswith(ours)]
        self.context.close()
        assert not strange and not self.faults, (strange, self.faults)


@contextmanager
def served(folder: Path, isolated: bool = False) -> Iterator[str]:
    """The address of a folder, served as `python -m http.server` does; isolated: with headers for threads."""
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def end_headers(self) -> None:
            if isolated:
                self.send_header("Cross-Origin-Opener-Policy", "same-origin")
                self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
            super().end_headers()

    handler = functools.partial(Quiet, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


def mjpeg(path: Path, frames: list[np.ndarray]) -> Path:
    """A file of JPEG after JPEG of the frames, uint8 [H, W, 3] RGB."""
    options = [cv2.IMWRITE_JPEG_QUALITY, 98]
    coded = (cv2.imencode(".jpg", frame[:, :, ::-1], options)[1] for frame in frames)
    path.write_bytes(b"".join(one.tobytes() for one in coded))
    return path


def web_folder(folder: Path, weights: Path) -> Path:
    """The static folder of a checkpoint, or a skip where onnxruntime-web was not brought by npm."""
    from deploy.artifact import make_metadata
    from deploy.onnx_file import OPSET, to_onnx
    from deploy.web import WEB, write_web
    from models.checkpoint import load
    if not (WEB / "node_modules").is_dir():
        pytest.skip("needs onnxruntime-web: cd web && npm ci --ignore-scripts")
    pytest.importorskip("onnx", reason="needs onnx (requirements-export.txt)")
    found = load(weights)
    metadata = make_metadata(found, found.imgsz, "fp32", OPSET, weights)
    model = folder.with_suffix(".onnx")
    model.write_bytes(to_onnx(found.net, found.state, found.imgsz))
    write_web(folder, model, metadata)
    return folder
