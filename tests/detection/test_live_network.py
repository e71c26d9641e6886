"""Live sources over connections on loopback: MJPEG and finite videos by HTTP, silent and refusing servers."""
import http.server
import socket
import threading
import time
from pathlib import Path

import av
import numpy as np
import pytest

from detection.live import reader
from detection.live.capture import Limits, Refused, open_capture
from detection.live.feed import Feed
from detection.live.health import Board
from detection.live.streams import Stream, live_streams
from detection.video import Recorder, VideoInfo
from tests.helpers.browser_cases import served
from tests.helpers.live_cases import MjpegCamera, coloured, free_port, number_of, numbered, wait_for
from utils.errors import DataError

LIMITS = Limits(20, 5)


def open_feed(source: str, limits: Limits = LIMITS) -> tuple[Feed, Board]:
    streams = live_streams(source)
    board = Board((stream.name, stream.label) for stream in streams)
    return Feed(streams, board, limits, len(streams), lambda: True), board


def drain(feed: Feed) -> None:
    """Waits for the threads, which FFmpeg's own time limit frees."""
    wait_for(lambda: not [thread for reader in feed.readers for thread in reader.stop()], 20)


@pytest.fixture
def quick(monkeypatch):
    """Tries follow each other quickly."""
    monkeypatch.setattr(reader, "backoff", lambda *_: 0.1)


@pytest.fixture
def camera():
    made = MjpegCamera(lambda k: numbered(k, 48, 64), fps=50.0).begin()
    yield made
    made.kill()


def test_a_camera_over_http_is_read_cut_restarted_and_stalled(camera, quick):
    feed, board = open_feed(camera.address("me:SECRET@"), Limits(20, 1.0))
    stages, numbers = iter(("kill", "still", "end")), []
    health = next(iter(board.streams.values()))
    with feed:
        step, since = None, 0
        for frames in feed:
            numbers.append(frames[0].index)
            if health.read - since < 20:
                continue
            step, since = next(stages), health.read
            if step == "kill":
                camera.kill()
                camera.begin()
            elif step == "still":
                camera.still.set()
                threading.Timer(2.0, camera.still.clear).start()
            else:
                break
    drain(feed)
    assert numbers == sorted(set(numbers)), "no frame came twice"
    found, said = board.snapshot()["streams"][0], " ".join(board.news())
    assert found["reconnects"] == 2 and "sent nothing for 1 s" in said and said.count("live again") == 2
    assert "SECRET" not in said + str(found)


def test_a_frame_that_was_cut_in_the_middle_is_not_shown(quick):
    """Half of a JPEG would be filled up with grey."""
    noise = np.random.default_rng(0).integers(0, 60, (480, 640, 3), np.uint8)
    camera = MjpegCamera(lambda k: noise + np.array((0, 0, 180), np.uint8), fps=30.0)
    serve = camera._serve

    def cut_short(to: http.server.BaseHTTPRequestHandler) -> None:
        write, count = to.wfile.write, [0]

        def half(data: bytes) -> None:
            count[0] += len(data) > 1000
            if len(data) > 1000 and count[0] == 12:
                write(data[:len(data) // 2])
                raise OSError
            write(data)
        to.wfile.write = half
        serve(to)

    camera._serve = cut_short
    feed, board = open_feed(camera.begin().address())
    lowest = []
    with feed:
        for frames in feed:
            lowest.append(frames[0].image[-40:, :, 0].mean())
            if board.snapshot()["streams"][0]["reconnects"] == 3:
                break
    camera.kill()
    assert len(lowest) > 15 and min(lowest) > 190, "the last rows are as red as the first"


class Files(http.server.BaseHTTPRequestHandler):
    """One file with byte ranges, as web servers give it; the class's `cut` is the byte at which the first
    connection breaks."""

    path_served: Path
    cut = 0

    def do_GET(self) -> None:
        data = self.path_served.read_bytes()
        begin = int(self.headers.get("Range", "bytes=0-").split("=")[1].split("-")[0])
        self.send_response(206 if "Range" in self.headers else 200)
        self.send_header("Content-Type", "video/mp4")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Range", f"bytes {begin}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - begin))
        self.end_headers()
        end, type(self).cut = type(self).cut or len(data), 0
        try:
            self.wfile.write(data[begin:max(end, begin)])
        except OSError:
            return

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def film(tmp_path):
    """The address of a video of 120 frames, each of another brightness."""
    video = Recorder(tmp_path / "film", live=True)
    rng = np.random.default_rng(0)
    for k in range(120):
        video.write(rng.integers(0, 30, (240, 320, 3), np.uint8) + np.uint8(k + 60), k / 25,
                    VideoInfo(25.0, 0, 320, 240))
    video.close()
    served = type("Served", (Files,), {"path_served": tmp_path / "film.mkv"})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), served)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/film.mkv", served
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("cut", [0, 0.6])
def test_a_finite_video_gives_every_frame_once_and_ends_also_when_it_was_cut(film, quick, cut):
    address, served = film
    served.cut = int(cut * served.path_served.stat().st_size)
    feed, board = open_feed(address)
    seen = []
    with feed:
        for frames in feed:
            assert not frames[0].live
            seen.append((frames[0].index, round(float(frames[0].image.mean())) - 74))
            time.sleep(0.002)
    found = board.snapshot()["streams"][0]
    assert [index for index, _ in seen] == list(range(120)) and found["frames_dropped"] == 0
    assert max(abs(index - bright) for index, bright in seen) <= 3, "each frame is the one of its number"
    assert found["state"] == "ended" and any("ended after 120 frames" in text for text in board.news())
    assert (found["reconnects"], found["last_error"]) == ((1, "was cut") if cut else (0, ""))


def silent() -> socket.socket:
    """A server that accepts and says nothing."""
    line = socket.create_server(("127.0.0.1", 0))
    line.listen()
    return line


@pytest.mark.parametrize("scheme", ["http", "rtsp"])
def test_a_server_that_never_answers_ends_with_3_after_the_time_for_opening(scheme, quick):
    with silent() as server:
        feed, _ = open_feed(f"{scheme}://u:SECRET@127.0.0.1:{server.getsockname()[1]}/x", Limits(0.8, 1))
        start = time.monotonic()
        with pytest.raises(DataError) as error, feed:
            list(feed)
        assert 0.8 <= time.monotonic() - start < 8 and error.value.exit_code == 3
        assert "--open-timeout" in str(error.value) and "SECRET" not in str(error.value)
        drain(feed)


def reply(text: bytes) -> int:
    """The port of a server that answers one question with `text`."""
    server = silent()

    def answer() -> None:
        with server, server.accept()[0] as line:
            line.recv(1000)
            line.sendall(text)

    threading.Thread(target=answer, daemon=True).start()
    return server.getsockname()[1]


def why_not(stream: Stream, limits: Limits) -> Refused:
    with pytest.raises(Refused) as refused:
        open_capture(stream, limits)
    return refused.value


@pytest.mark.parametrize(("source", "answer", "said", "final"), [
    ("http://{}/x", b"HTTP/1.0 404 Not Found\r\n\r\n", "knows no such stream (404)", False),
    ("http://{}/x", b"HTTP/1.0 401 No\r\n\r\n", "asks for a user name and password", True),
    ("rtsp://u:SECRET@{}/x", b"RTSP/1.0 401 No\r\n\r\n", "refuses the user name and password", False),
    ("rtsp://{}/x", b"RTSP/1.0 503 Busy\r\n\r\n", "refuses: Server returned 5XX", False),
    ("rtsp://{}/x", b"RTSP/1.0 200 OK\r\n\r\n", "sends no video that could be read", False),
    ("http://{}/x", b"HTTP/1.0 200 OK\r\n\r\n<html>", "sends no video that could be read", False),
    ("rtsp://{}/x", b"SSH-2.0-OpenSSH\r\n", "sends no video that", False),
    ("rtsp://{}/x", b"", "sends no video that", False),
    ("https://{}/x", b"", "sends no video that", False)])
def test_what_a_server_answers_is_said_in_words(source, answer, said, final):
    refusal = why_not(Stream(source.format(f"127.0.0.1:{reply(answer)}"), "x"), Limits())
    assert said in refusal.reason and refusal.final == final and "SECRET" not in refusal.reason


def test_silence_a_closed_port_and_an_unknown_host_are_told_apart():
    with silent() as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}/"
        assert "sends nothing" in why_not(Stream(address, "x"), Limits(0.3, 1)).reason
    closed = why_not(Stream(f"rtsp://127.0.0.1:{free_port()}/", "x"), Limits())
    assert "refuses the connection" in closed.reason
    unknown = why_not(Stream("rtsp://no-such-host.invalid/", "x"), Limits())
    assert "host name no-such-host.invalid is not known" in unknown.reason and not unknown.final


def test_a_login_in_the_address_opens_a_camera_and_a_wrong_one_is_said(camera, quick):
    camera.login = "me:pass word"
    feed, _ = open_feed(camera.address("me:pass%20word@"))
    with feed:
        assert number_of(next(iter(feed))[0].image) >= 0
    drain(feed)
    feed, _ = open_feed(camera.address("me:WRONG@"), Limits(1, 1))
    with pytest.raises(DataError, match="refuses the user name and password") as error, feed:
        list(feed)
    assert "WRONG" not in str(error.value)


def test_a_camera_that_sends_damaged_images_and_another_size_is_read_on_undistorted(quick):
    """OpenCV's reader ended at the first damage, and squeezed all images into the first one's size."""
    camera = MjpegCamera(lambda k: coloured(240, 320 if k < 40 else 160), fps=50.0)
    whole = camera.encode
    camera.encode = lambda k: whole(k) if k % 5 else np.random.default_rng(k).bytes(3000)
    feed, board = open_feed(camera.begin().address())
    sizes = []
    with feed:
        for frames in feed:
            sizes.append(frames[0].image.shape[:2])
            if sizes.count((240, 160)) > 5:
                break
    camera.kill()
    found = board.snapshot()["streams"][0]
    assert found["reconnects"] == 0 and found["last_error"] == "" and set(sizes) == {(240, 320), (240, 160)}
    assert any("its images are 160x240 px now; they were 320x240" in text for text in board.news())


def test_hls_is_given_at_its_own_pace_though_it_comes_in_segments(tmp_path, quick):
    """25 frames come at once each second; most must be seen, not only the last of each segment."""
    over = threading.Event()

    def publish() -> None:
        with av.open(str(tmp_path / "live.m3u8"), "w", format="hls", options={
                "hls_time": "1", "hls_list_size": "4", "hls_flags": "delete_segments"}) as out:
            stream = out.add_stream("mpeg2video", rate=25, options={"g": "25"})
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for k in range(600):
                out.mux(stream.encode(av.VideoFrame.from_ndarray(numbered(k % 200, 48, 64), format="bgr24")))
                if over.wait(0.04):
                    return

    thread = threading.Thread(target=publish)
    thread.start()
    wait_for((tmp_path / "live2.ts").exists)
    with served(tmp_path) as address:
        feed, board = open_feed(f"{address}live.m3u8")
        start = time.monotonic()
        with feed:
            for _ in feed:
                if time.monotonic() - start > 8:
                    break
    over.set()
    thread.join()
    found = board.snapshot()["streams"][0]
    assert found["frames_read"] > 100 and found["frames_dropped"] < 0.2 * found["frames_read"], found
