"""The page in a real browser: the boxes of the exported folder and of detect.py --serve are Python's."""
import hashlib
import json
import threading
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest

from detection.serve.app import listen
from detection.serve.networks import Networks
from tests.helpers.browser_cases import Page, chromium, launch, mjpeg, need_browser, served, web_folder
from tests.helpers.detect_cases import ROOT, film, match, save, scene
from tests.helpers.serve_cases import config

SURE = 0.3                         # boxes with this score must be among the other side's, whose least is 0.25
VOC5 = ROOT / "weights" / "micro-yolo-voc5.pt"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """One browser for all tests here; its camera shows a red cell that goes through the image."""
    need_browser()
    frames = [scene(480, 640, [(2, k // 3 % 5, 0)])[0] for k in range(15)]
    with chromium(mjpeg(tmp_path_factory.mktemp("camera") / "cells.mjpeg", frames)) as found:
        yield found


@pytest.fixture(scope="module")
def static(browser, nets, tmp_path_factory):
    """The address of the exported folder of a network set by hand."""
    with served(web_folder(tmp_path_factory.mktemp("web") / "good_web", nets["good"])) as address:
        yield address


def serving_page(weights: Path) -> tuple[str, object]:
    """The address of a server in this process, and the server."""
    server = listen("127.0.0.1", 0)
    networks = Networks(config(weights), list)
    server.begin(networks, {"conf": 0.25, "iou": 0.45})
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    return server.address, server


@pytest.fixture(scope="module")
def live(browser, nets):
    """The address of detect.py --serve."""
    address, server = serving_page(nets["good"])
    yield address
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def voc5(browser, tmp_path_factory):
    """The addresses of the exported folder and of a server, both with the shipped weights."""
    address, server = serving_page(VOC5)
    with served(web_folder(tmp_path_factory.mktemp("web") / "voc5_web", VOC5)) as folder:
        yield folder, address
    server.shutdown()
    server.server_close()


@cache
def python_networks(weights: Path) -> Networks:
    """Python's side of a comparison."""
    return Networks(config(weights), list)


def python_boxes(weights: Path, image: Path) -> np.ndarray:
    """Boxes [N, 6] of an image, by what detect.py uses."""
    networks = python_networks(weights)
    found = networks.detect(networks.first, np.fromfile(image, np.uint8), 0.25, 0.45)
    return np.array(found["boxes"]).reshape(-1, 6)


@pytest.mark.parametrize("kind", ["static", "live"])
def test_boxes_of_an_image_in_the_browser_are_python_s(kind, request, browser, nets, tmp_path):
    page = Page(browser, request.getfixturevalue(kind), locale="en-GB").ready()
    for name, shape in (("a.png", (240, 320)), ("b.jpg", (333, 250)), ("c.png", (90, 120))):
        image, wanted = scene(*shape, [(2, 1, 0), (1, 3, 1), (3, 3, 2)])
        path = save(tmp_path / name, image)
        found = page.boxes(path)
        match(found[:, [0, 1, 2, 3, 5]], wanted, 2.0)
        same = python_boxes(nets["good"], path)
        match(found[:, [0, 1, 2, 3, 5]], same[:, [0, 1, 2, 3, 5]], 0.5)
        np.testing.assert_allclose(np.sort(found[:, 4]), np.sort(same[:, 4]), atol=0.01)
    assert page.text("where") == {"static": "WASM, 1 thread", "live": "torch fp32, cpu"}[kind]
    assert page.text("count") == "3" and "red 1" in page.text("found")
    page.page.fill("#score", "0.95")
    before = len(page.seen(1))
    assert len(page.seen(before + 1)[-1]) == (found[:, 4] > 0.95).sum()
    (tmp_path / "torn.jpg").write_bytes(b"\xff\xd8 no image")
    page.page.set_input_files("#file", tmp_path / "torn.jpg")
    page.says("cannot open the file as an image or a video: torn.jpg")
    assert [page.text(name) for name in ("fps", "count", "found")] == ["–", "–", ""], "nothing of the last"
    page.close()


def test_a_stopped_video_leaves_no_figures(browser, live, tmp_path):
    film(tmp_path / "v.mp4", 25)
    page = Page(browser, live).ready()
    page.page.set_input_files("#file", tmp_path / "v.mp4")
    assert page.text("count") == "–" or page.seen(2)
    page.seen(3)
    page.page.click("#stop")
    assert [page.text(name) for name in ("fps", "network", "total", "count", "found")] == [*"––––", ""]
    page.close()


def test_the_server_s_refusals_are_told_in_the_page_s_language(browser, live, tmp_path):
    """Of an image that the browser reads and the server does not."""
    image = save(tmp_path / "a.png", scene(240, 320, [(2, 1, 0)])[0])
    chinese = "服务器无法把该文件作为图片读取"
    for locale, said in (("en-GB", "The server says: the image sent"), ("zh-CN", chinese)):
        page = Page(browser, live, locale=locale).ready()
        page.context.route("**/api/detect*", lambda route: route.fulfill(
            status=415, json={"error": "the image sent: is damaged"}))
        page.page.set_input_files("#file", image)
        page.says(said)
        assert page.text("count") == "–"
        page.close()


@pytest.mark.parametrize("kind", ["static", "live"])
def test_boxes_follow_what_the_camera_shows(kind, request, browser):
    page = Page(browser, request.getfixturevalue(kind)).ready()
    page.page.click("#camera")
    frames = [rows for rows in page.seen(12) if len(rows)]
    lefts = {round(rows[0, 0] / 128) for rows in frames}
    assert len(frames) >= 10 and len(lefts) >= 2, "the box moves with the cell"
    for rows in frames:
        x1, y1, x2, y2, score, label = rows[0]
        off = np.abs([x1 - 128 * round(x1 / 128), y1 - 176, x2 - x1 - 128, y2 - y1 - 128])
        assert off.max() <= 2 and score > 0.9 and label == 0
    page.page.click("#stop")
    page.says("Ready")
    page.close()


def test_a_video_file_is_detected_frame_by_frame(browser, static, tmp_path):
    path = tmp_path / "film.webm"
    video = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"VP80"), 10, (320, 320))
    if not video.isOpened():
        pytest.skip("this OpenCV writes no WebM")
    for k in range(20):
        video.write(scene(320, 320, [(k // 4, 2, 1)])[0][:, :, ::-1])
    video.release()
    page = Page(browser, static).ready()
    page.page.set_input_files("#file", path)
    tops = {round(rows[0, 1] / 64) for rows in page.seen(10) if len(rows)}
    assert len(tops) >= 2
    page.close()


def test_cameras_that_fail_are_a_sentence_in_the_reader_s_language(browser, live):
    page = Page(browser, live, locale="zh-CN").ready()
    for error, said in (("NotReadableError", "摄像头正被其他程序占用"), ("NotFoundError", "没有找到摄像头"),
                        ("NotAllowedError", "没有使用摄像头的权限")):
        page.page.evaluate("(name) => { navigator.mediaDevices.getUserMedia = "
                           "() => Promise.reject(new DOMException('x', name)); }", error)
        page.page.click("#camera")
        page.says(said)
    page.page.click("#language")
    page.says("The camera is not allowed")
    page.close()


def test_the_benchmark_measures_and_names_the_file_it_ran(browser, static, tmp_path):
    page = Page(browser, f"{static}?seconds=0.2").ready()
    page.page.click("#bench-start")
    page.page.locator("#bench-save").wait_for(timeout=60_000)
    with page.page.expect_download() as download:
        page.page.click("#bench-save")
    report = json.loads(Path(download.value.path()).read_text())
    model = page.page.request.get(f"{static}model.onnx").body()
    assert report["artifact"]["sha256"] == hashlib.sha256(model).hexdigest()
    assert report["artifact"]["sha256_counted_here"] and report["artifact"]["precision"] == "fp32"
    assert report["device"]["provider"] == "wasm" and report["device"]["threads"] == 1
    assert "Chrome" in report["device"]["user_agent"] and report["device"]["hardware_concurrency"] >= 1
    for scope in ("network_ms", "end_to_end_ms"):
        figures = report[scope]
        assert figures["n"] == len(figures["samples"]) >= 50
        assert np.isclose(figures["p90"], np.percentile(figures["samples"], 90), atol=0.01)
    assert report["network_ms"]["p50"] <= report["end_to_end_ms"]["p50"] and report["input"]["made_up"]
    assert report["warm_up"]["runs"] >= 10
    page.close()


def test_boxes_of_real_images_by_trained_weights_are_python_s(browser, voc5, shared):
    paths = [shared / "voc5" / "images" / name for name in ("000737.jpg", "001348.jpg", "000005.jpg")]
    folder, address = voc5
    for where in (folder, address):
        page = Page(browser, where).ready()
        for path in paths:
            wanted, found = python_boxes(VOC5, path), page.boxes(path)
            sure = wanted[wanted[:, 4] > SURE]
            assert len(sure) >= 1 and farthest(sure, found) <= 2
            assert farthest(found[found[:, 4] > SURE], wanted) <= 2, "no box is the browser's alone"
        page.close()


def test_boxes_on_a_camera_that_shows_a_real_road_are_python_s(browser, voc5, shared, tmp_path):
    """Python gets the very pixels that the camera gave: its colours are not quite those of the file."""
    video = cv2.VideoCapture(str(shared / "videos" / "cars.mp4"))
    frames = [cv2.resize(video.read()[1], (640, 360))[:, :, ::-1] for _ in range(106)][60::5]
    second = launch(browser.browser_type, mjpeg(tmp_path / "road.mjpeg", frames))
    page = Page(second, voc5[0]).ready()
    page.page.click("#camera")
    pairs = page.images(5)
    page.close()
    second.close()
    sure = []
    for data, boxes in pairs:
        (tmp_path / "frame.png").write_bytes(data)
        rows = python_boxes(VOC5, tmp_path / "frame.png")
        sure.append(rows[rows[:, 4] > SURE])
        assert farthest(sure[-1], boxes) <= 2 and farthest(boxes[boxes[:, 4] > SURE], rows) <= 2
    assert sum(map(len, sure)) >= 3 and len({rows[0, 1] for rows in sure if len(rows)}) >= 2, "the boxes move"


def farthest(wanted: np.ndarray, found: np.ndarray) -> float:
    """The px by which the worst of the wanted boxes [N, 6] misses its nearest found box of its class."""
    off = [np.abs(found[:, :4] - row[:4]).max(1) + 1e9 * (found[:, 5] != row[5]) for row in wanted]
    return max((distances.min(initial=1e9) for distances in off), default=0.0)
