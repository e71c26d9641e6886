"""detect.py --serve over HTTP: its boxes are detect.py's, and what must not come in stays out."""
import dataclasses
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import cv2
import numpy as np
import pytest

from detection.serve import http
from detection.serve.app import listen
from detection.serve.networks import Networks
from tests.helpers.detect_cases import NAMES, match, save, scene
from tests.helpers.live_cases import wait_for
from tests.helpers.serve_cases import Client, config


@pytest.fixture(scope="module")
def client(nets):
    server = listen("127.0.0.1", 0)
    others = [nets["broken"], *(nets["good"].with_name(f"torn.{end}") for end in ("pt", "onnx"))]
    for path in others[1:]:
        path.write_bytes(nets["good"].read_bytes()[:600])
    networks = Networks(dataclasses.replace(config(nets["good"]), max_pixels=10 ** 6), lambda: others)
    server.begin(networks, {"conf": 0.25, "iou": 0.45})
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    yield Client(server.server_port, networks.first)
    server.shutdown()
    server.server_close()


def encoded(image: np.ndarray, suffix: str = ".png") -> bytes:
    return cv2.imencode(suffix, image[:, :, ::-1])[1].tobytes()


def test_boxes_of_an_image_are_where_they_were_painted(client):
    for shape in ((240, 320), (333, 250), (160, 160), (300, 450)):
        image, wanted = scene(*shape, [(2, 1, 0), (2, 3, 2)])
        status, found = client.detect(encoded(image))
        rows = np.array(found["boxes"])
        assert status == 200 and (found["width"], found["height"]) == shape[::-1]
        match(rows[:, [0, 1, 2, 3, 5]], wanted, 1.0)
        assert set(found["ms"]) == {"network", "total"} and 0 < found["ms"]["network"] <= found["ms"]["total"]


def test_boxes_are_those_that_detect_py_writes(client, nets, run, tmp_path):
    image = scene(333, 250, [(1, 1, 0), (2, 3, 1), (4, 2, 2)])[0]
    path = save(tmp_path / "a.jpg", image)
    code, _, _, folder = run("--weights", nets["good"], "--source", path, "--fp32", "--save-json", "--nosave")
    written = json.loads((folder / "predictions.json").read_text())
    wanted = np.array([[*row["bbox"], row["score"]] for row in written])
    wanted[:, 2:4] += wanted[:, :2]
    _, found = client.detect(path.read_bytes())
    assert code == 0 and len(wanted) == 3
    np.testing.assert_allclose(np.array(found["boxes"])[:, :5], wanted, atol=2e-3)


def test_thresholds_come_with_each_image(client):
    image = encoded(scene(160, 160, [(1, 1, 0)])[0])
    assert len(client.detect(image)[1]["boxes"]) == 1
    assert client.detect(image, "&conf=1")[1]["boxes"] == []
    for wrong in ("2", "-1", "nan", "x"):
        status, said = client.detect(image, f"&conf={wrong}")
        assert status == 400 and f"conf={wrong}: needs a number" in said["error"]


def test_networks_are_chosen_from_the_list_and_never_by_path(client, nets):
    _, _, body = client.ask("GET", "/api/models")
    listed = json.loads(body)
    assert [row["label"].split("/")[-1] for row in listed["models"]][:2] == ["good.pt", "broken.pt"]
    assert listed["chosen"] == client.first and "/" not in listed["models"][1]["id"]
    status, _, body = client.ask("POST", f"/api/open?model={listed['models'][1]['id']}", b"")
    assert status == 200 and json.loads(body)["names"] == list(NAMES)
    assert json.loads(body)["where"] == "torch fp32, cpu"
    for name in (str(nets["broken"]), "../../etc/passwd", "", "0"):
        status, _, body = client.ask("POST", f"/api/open?model={name}", b"")
        assert status == 400 and "not in the list" in json.loads(body)["error"]


def test_a_network_that_cannot_be_loaded_is_a_sentence_and_the_others_stay(client, nets):
    listed = json.loads(client.ask("GET", "/api/models")[2])["models"]
    for name in ("torn.pt", "torn.onnx"):
        key = next(row["id"] for row in listed if row["label"].endswith(name))
        status, _, body = client.ask("POST", f"/api/open?model={key}", b"")
        assert status == 422 and name in json.loads(body)["error"]
    assert client.ask("POST", f"/api/open?model={client.first}", b"")[0] == 200


def test_what_is_no_image_is_refused_with_a_sentence(client):
    image = encoded(scene(160, 160, [])[0])
    large = encoded(np.zeros((1001, 1000, 3), np.uint8))
    for body, said in ((b"<html>", "that can be read"), (b"", "is empty"), (large, "above the limit"),
                       (image[:200], "truncated or damaged")):
        status, answer = client.detect(body)
        assert status == 415 and said in answer["error"] and answer["error"].startswith("the image sent")


def test_a_body_that_is_too_large_or_of_unknown_length_is_refused(client, monkeypatch):
    monkeypatch.setattr(http, "MAX_BODY", 1000)
    status, answer = client.detect(b"x" * 5000)
    assert status == 413 and "above the limit" in answer["error"]
    status, _, body = client.ask("POST", "/api/detect", iter([b"x"]), Transfer_Encoding="chunked")
    assert status == 400 and b"Content-Length" in body


def test_pages_of_other_sites_and_foreign_names_are_turned_away(client):
    image = encoded(scene(160, 160, [(1, 1, 0)])[0])
    own = f"http://127.0.0.1:{client.port}"
    assert client.detect(image, Origin=own)[0] == 200
    assert client.detect(image, Host="localhost:1", Origin="http://localhost:1")[0] == 200
    for headers in ({"Origin": "http://evil.example"}, {"Origin": "null"}, {"Sec_Fetch_Site": "cross-site"},
                    {"Sec_Fetch_Site": "same-site"}, {"Host": "evil.example"}, {"Host": "evil.example:8000"},
                    {"Host": "["}, {"Origin": own, "Host": "evil.example"}):
        status, answer = client.detect(image, **headers)
        assert status == 403 and "boxes" not in answer, headers
    for kind in ("text/plain", "multipart/form-data; boundary=x", "application/x-www-form-urlencoded", ""):
        assert client.detect(image, Content_Type=kind)[0] == 415
    assert client.ask("GET", "/", Host="evil.example")[0] == 403


def test_only_the_pages_of_the_table_are_served(client):
    for path, kind in (("/", "text/html"), ("/app.js", "text/javascript"), ("/style.css", "text/css"),
                       ("/backend.js", "text/javascript"), ("/?x=1", "text/html")):
        status, headers, body = client.ask("GET", path)
        assert status == 200 and headers["Content-Type"].startswith(kind) and body
        assert headers["X-Content-Type-Options"] == "nosniff" and headers["X-Frame-Options"] == "DENY"
    for path in ("/../detect.py", "/%2e%2e/detect.py", "/package.json", "/etc/passwd", "//etc/passwd",
                 "/node_modules/onnxruntime-web/package.json", "/..\\detect.py", "/local.js", "/api/detect",
                 "/app.js/"):
        status, _, body = client.ask("GET", path)
        assert status == 404 and json.loads(body)["error"], path
    assert client.ask("PUT", "/", b"x")[0] == 501


def test_every_file_of_the_table_exists(client):
    for name in http.PAGES.values():
        assert (http.WEB / name).is_file()


def test_a_client_that_goes_away_leaves_no_traceback_and_the_server_alive(client, capfd):
    with socket.create_connection(("127.0.0.1", client.port)) as half:
        half.sendall(b"POST /api/detect HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
                     b"Content-Length: 1000\r\n\r\nabc")
    with socket.create_connection(("127.0.0.1", client.port)) as rude:
        rude.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        rude.sendall(b"GET /app.js HTTP/1.1\r\nHost: localhost\r\n\r\n")
    image, wanted = scene(160, 160, [(1, 1, 0)])
    assert len(client.detect(encoded(image))[1]["boxes"]) == len(wanted)
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("head", [
    "POST {} HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
    "POST {} HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "GET / HTTP/1.1\r\nContent-Length: 9\r\n\r\nGET /a.js",
    "GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "POST {} HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
    f"POST {{}} HTTP/1.1\r\nContent-Length: {'9' * 5000}\r\n\r\n", "GET //[ HTTP/1.1\r\n\r\n",
    "GET \\x HTTP/9\r\n\r\n", "GET  HTTP/1.1\r\n\r\n", "\r\n\r\n",
    f"GET / HTTP/1.1\r\n{'A: b' * 20_000}\r\n\r\n"])
def test_a_request_that_could_be_read_two_ways_is_refused_once_and_its_connection_closed(client, head, capfd):
    """A proxy before this server could take the rest for a second request, or the other way round."""
    head = head.format("/api/detect").replace(" HTTP/1.1\r\n", " HTTP/1.1\r\nHost: localhost\r\n"
                                              "Content-Type: image/png\r\n", 1)
    with socket.create_connection(("127.0.0.1", client.port), 10) as line:
        line.sendall(head.encode())
        with suppress(OSError):                            # the server may have closed it before
            line.shutdown(socket.SHUT_WR)
        answer = b""
        while part := line.recv(65536):
            answer += part
    assert answer.count(b"HTTP/1.1 ") <= 1 and answer[:1] != b"{" and b" 200 " not in answer[:20]
    assert b" 500 " not in answer[:20] and "Traceback" not in capfd.readouterr().err


def test_proxies_show_the_page_under_https_and_under_names_that_origin_gives(nets):
    server = listen("127.0.0.1", 0, ["https://cam.example.org:8443"])
    networks = Networks(config(nets["good"]), list)
    server.begin(networks, {"conf": 0.25, "iou": 0.45})
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    there, image = Client(server.server_port, networks.first), encoded(scene(160, 160, [(1, 1, 0)])[0])
    for headers, status in (({"Host": "127.0.0.1:8443", "Origin": "https://127.0.0.1:8443"}, 200),
                            ({"Host": "cam.example.org:8443", "Origin": "https://cam.example.org:8443"}, 200),
                            ({"Origin": "https://cam.example.org:8443"}, 200),
                            ({"Origin": "https://cam.example.org"}, 403), ({"Host": "example.org"}, 403),
                            ({"Host": "127.0.0.1:8443", "Origin": "https://127.0.0.1:9"}, 403)):
        assert there.detect(image, **headers)[0] == status, headers
    server.shutdown()
    server.server_close()


def test_no_more_bodies_are_in_memory_than_the_limit_says(client, monkeypatch):
    """Sixteen clients come at once; a network that is busy keeps them waiting before their body is read."""
    image, read, go = encoded(scene(160, 160, [(1, 1, 0)])[0]), [], threading.Event()
    monkeypatch.setattr(http, "FREE", 100)
    monkeypatch.setattr(Networks, "detect", lambda *_: (read.append(1), go.wait(20)) and {"boxes": []})
    threads = [threading.Thread(target=client.detect, args=(image,)) for _ in range(16)]
    for thread in threads:
        thread.start()
    wait_for(lambda: len(read) >= 8)
    time.sleep(0.3)
    assert len(read) == 8
    go.set()
    for thread in threads:
        thread.join(20)
    assert len(read) == 16


def test_clients_that_stop_in_the_middle_hold_up_no_other(client, monkeypatch, capfd):
    image = encoded(scene(160, 160, [(1, 1, 0)])[0])
    monkeypatch.setattr(http, "FREE", len(image))
    monkeypatch.setattr(http, "STALLED", 0.5)
    head = (f"POST /api/detect?model={client.first} HTTP/1.1\r\nHost: localhost\r\n"
            "Content-Type: image/png\r\n")
    stalled = []
    for sent in (b"x", b"x" * (len(image) + 10)):          # twelve hold nothing, twelve a place
        for _ in range(12):
            stalled.append(socket.create_connection(("127.0.0.1", client.port)))
            stalled[-1].sendall(f"{head}Content-Length: {2 * len(image)}\r\n\r\n".encode() + sent)
    time.sleep(0.2)
    start = time.monotonic()
    assert len(client.detect(image)[1]["boxes"]) == 1 and time.monotonic() - start < 0.5 * 3
    assert client.detect(image + b"x" * 50)[0] == 200 and time.monotonic() - start < 10
    for one in stalled:
        one.close()
    assert "Traceback" not in capfd.readouterr().err


def test_of_96_requests_by_32_clients_at_once_each_gets_its_own_boxes(client):
    images = [scene(240, 320, [(2, k % 5, k % 3)]) for k in range(96)]
    with ThreadPoolExecutor(32) as pool:
        results = list(pool.map(lambda image: client.detect(encoded(image[0]))[1], images))
    for (_, wanted), found in zip(images, results, strict=True):
        match(np.array(found["boxes"])[:, [0, 1, 2, 3, 5]], wanted, 1.0)
