"""Live sources as texts: which there are, how secrets are masked, when to try again, how they fare."""
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from detection.live import capture
from detection.live.capture import why_no_camera
from detection.live.health import Board
from detection.live.reader import LONGEST, Lag, backoff
from detection.live.streams import Stream, live_streams
from utils.errors import DataError
from utils.redact import masked


@pytest.mark.parametrize(("source", "name"), [
    ("0", "camera0"), ("12", "camera12"), ("1000", "camera1000"), ("/dev/video3", "video3"),
    ("rtsp://u:p@cam.local:8554/a?b=c", "cam-local-8554"),
    ("HTTP://10.0.0.7/video", "10-0-0-7"), ("https://[::1]:4/x", "1-4"), ("rtsps://host/", "host")])
def test_cameras_and_addresses_are_live_and_their_files_named_without_secrets(source, name):
    stream, = live_streams(source)
    assert stream.name == name and stream.source == source and stream.camera == ("://" not in source)
    assert "u:p" not in repr(stream) + stream.label


def test_files_folders_and_lists_of_files_are_not_live(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "0").mkdir()
    (tmp_path / "list.txt").write_text("a.jpg\nb.mp4\n")
    for source in ("0", "a.jpg", str(tmp_path / "list.txt"), "none.txt", "x" * 400):
        assert live_streams(source) == ()


def test_a_list_of_streams_gives_each_a_name_of_its_own(tmp_path):
    (tmp_path / "cams.txt").write_text("# door\nrtsp://a:b@cam/1\n\nrtsp://a:b@cam/2\n0\n")
    streams = live_streams(str(tmp_path / "cams.txt"))
    assert [stream.name for stream in streams] == ["cam", "cam_2", "camera0"]


@pytest.mark.parametrize(("text", "said"), [
    ("rtsp://a:secret@cam/1\nphoto.jpg\n", "photo.jpg"),
    ("rtsp://a:secret@c/1\nrtsp://a:secret@c/1\n", "listed twice"),
    ("ftp://a:secret@cam/1", "ftp:// is not supported"), ("rtsp://", "needs the form"),
    ("9999999999", "no camera has that number; give a camera's number"),
    ("http://cam:99999/x", "needs the form"), ("rtsp://a:secret/secret@cam/1", "%2F"),
    ("rtsp://cam/1\nrtsp:/a:secret@cam/2\n", "rtsp:/***@cam/2")])
def test_lists_and_addresses_that_cannot_work_are_refused_without_the_password(tmp_path, text, said):
    source = text
    if "\n" in text:
        (tmp_path / "list.txt").write_text(text)
        source = str(tmp_path / "list.txt")
    with pytest.raises(DataError) as error:
        live_streams(source)
    assert said in str(error.value) and "secret" not in str(error.value)


@pytest.mark.parametrize("text", [
    "rtsp://me:SECRET@cam/1", "rtsp://me:SEC@RET@cam/1", "rtsp://me:SEC/RET@cam/1", "rtsp://me:SEC RET@cam/1",
    "http://cam/video.cgi?loginuse=a&loginpas=SECRET", "rtsp://cam/user=a_password=SECRET_channel=1.sdp",
    "http://cam/v;token=SECRET", "http://cam/v#SECRET", "--source=http://cam/v?SECRET", "RTSP://SECRET@cam/1",
    "rtsp:/me:SECRET@cam", "rtsp:/SECRET@cam/1", "http:/cam/v?SECRET", "me:SEC@RET@cam",
    "rtsp:me:SEC/RET@cam", "list/rtsp:/me:SECRET@cam", "postgresql:/me:SECRET@cam"])
def test_every_form_of_a_password_is_masked(text):
    shown = masked(text)
    assert "SEC" not in shown and "RET" not in shown and "cam" in shown and "***" in shown


def test_texts_without_an_address_stay_as_they_are():
    plain = ("a@b.jpg", "a@b:c", "rtsp://cam:554/live/1", "x=1?y", "C:/a;b")
    assert all(masked(text) == text for text in plain)


def test_waiting_doubles_up_to_a_minute_and_chance_moves_its_second_half():
    assert [backoff(attempt, 1.0) for attempt in range(9)] == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert [backoff(attempt, 0.0) for attempt in range(8)] == [0.5, 1, 2, 4, 8, 16, 30, 30]
    chance = random.Random(7)
    waits = [backoff(9, chance.random()) for _ in range(500)]
    assert LONGEST / 2 <= min(waits) < 32 and 58 < max(waits) <= LONGEST == 60
    assert backoff(100_000, 1.0) == 60, "hours of trying do not overflow"


def test_a_reader_that_falls_behind_its_stream_is_noticed_and_clocks_set_again_are_not():
    lag = Lag()
    assert [lag.behind(10 + k / 10, k / 10) for k in range(5)] == [0] * 5
    assert lag.behind(10.4, 0.5) == 0, "the quickest so far"
    assert lag.behind(11.6, 0.6) == pytest.approx(1.1)
    assert lag.behind(12.6, 1.6) == pytest.approx(1.1) and lag.behind(13.6, 1.7) == pytest.approx(2.0)
    assert lag.behind(13.7, 500.0) == 0 and lag.behind(14.7, 501.0) == 0, "its clock was set"
    assert lag.behind(20.0, 501.0) == 0, "its clock stands"


def test_a_camera_says_whether_it_is_absent_forbidden_or_busy(tmp_path, monkeypatch):
    device = tmp_path / "video0"
    monkeypatch.setattr(capture.sys, "platform", "linux")
    absent = why_no_camera(Stream(str(device), "camera0"))
    assert absent.final and f"there is no {device}" in absent.reason
    device.write_bytes(b"")
    with device.open() as file, subprocess.Popen(["sleep", "60"], stdin=file) as other:
        try:
            busy = why_no_camera(Stream(str(device), "camera0"))
        finally:
            other.kill()
    assert not busy.final and f"busy: in use by sleep (process {other.pid})" in busy.reason
    assert "gives no images" in why_no_camera(Stream(str(device), "camera0")).reason
    monkeypatch.setattr(os, "access", lambda *_: False)
    forbidden = why_no_camera(Stream(str(device), "camera0"))
    assert forbidden.final and "usermod -aG video" in forbidden.reason


def test_a_process_whose_reader_hangs_ends_at_once_with_its_code_and_all_it_said():
    code = ("import atexit, threading, time\nfrom utils import cli\nfrom utils.errors import DataError\n"
            "atexit.register(print, 'the usual way out')\n"
            "threading.Thread(target=time.sleep, args=(60,), daemon=True, name='reader of x').start()\n"
            "def main():\n    print('said')\n    raise DataError('no')\ncli.run(main)")
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True,
                          text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (3, "said\n", "error: no\n")


def test_the_status_line_has_each_stream_or_the_sums_and_those_that_are_not_live():
    board = Board((f"cam{k}", f"rtsp://***@cam{k}") for k in range(6))
    now = time.monotonic()
    for k in range(5):
        for step in range(6):
            board.streams[f"cam{k}"].frame((320, 240), step > 3, now - 1 + step / 10)
            board.streams[f"cam{k}"].result(now - 1 + step / 10 - 0.030, now - 1 + step / 10)
    board.streams["cam5"].moved("waiting", "was cut", 12.4)
    found = board.snapshot()["streams"]
    assert found[0]["fps"] == found[0]["fps_read"] == 10.0
    assert found[0]["latency_ms"] == {"p50": 30.0, "p90": 30.0}
    assert (found[0]["frames_read"], found[0]["frames_dropped"], found[0]["results"]) == (6, 2, 6)
    assert board.line(2000).startswith("cam0 10.0 FPS 30/30 ms, 2 dropped | cam1")
    assert board.line() == "5 of 6 live, 50.0 FPS | cam5 waiting 12 s: was cut"
    assert board.snapshot()["rss_mb"] is None or board.snapshot()["rss_mb"] > 10
