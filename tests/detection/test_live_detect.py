"""detect.py on live streams, from flags to files: cut, restarted, resized, several at once, interrupted."""
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from detection.live import feed, reader
from detection.outputs import Outputs
from detection.video import probe
from tests.helpers.detect_cases import ROOT
from tests.helpers.live_cases import (
    FileCapture,
    MjpegCamera,
    RtspServer,
    coloured,
    count_frames,
    free_port,
    stream_health,
    wait_for,
    why_no_rtsp,
)


@pytest.fixture
def camera():
    made = MjpegCamera(lambda k: coloured()).begin()
    yield made
    made.kill()


@pytest.fixture
def watched(run, nets, tmp_path, monkeypatch):
    """watched(scenario, flag, ...): runs detect.py in this process while `scenario(health file)` runs in a
    thread, then ends it as Ctrl-C does."""
    monkeypatch.setattr(reader, "backoff", lambda *_: 0.2)

    def go(scenario: Callable[[Path], object], *flags: object) -> tuple[int, str, str, Path]:
        health, faults = tmp_path / "out" / "exp" / "health.json", []

        def play() -> None:
            try:
                wait_for(health.is_file)                   # from here on signals are listened to
                scenario(health)
            except BaseException as error:
                faults.append(error)
            os.kill(os.getpid(), signal.SIGINT)

        thread = threading.Thread(target=play)
        thread.start()
        found = run("--weights", nets["good"], "--health", "health.json", *flags)
        thread.join()
        if faults:
            raise faults[0]
        return found

    return go


def results(path: Path, number: int = 0) -> int:
    return stream_health(path, number).get("results", 0)


def texts(folder: Path) -> str:
    """Everything readable in a run folder, and its file names."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return " ".join(str(path) + path.read_text(errors="replace") for path in files)


def test_a_stream_that_is_killed_restarted_and_resized_is_followed_without_its_password(camera, watched):
    def scenario(health: Path) -> None:
        wait_for(lambda: results(health) > 30)
        camera.kill()
        wait_for(lambda: stream_health(health)["state"] == "waiting")
        before = results(health)
        camera.image = lambda k: coloured(480, 640)
        camera.begin()
        wait_for(lambda: results(health) > before + 30)

    source = camera.address("me:S3CRET@") + "?pwd=S3CRET2"
    code, out, err, folder = watched(scenario, "--source", source, "--save-json")
    assert code == 130 and "stopped by a signal" in err
    name = f"127-0-0-1-{camera.port}"
    assert f"{name}: live, 320x240 px" in out and f"{name}: live again, 640x480 px" in out
    assert "640x480 px now; they were 320x240" in out and f"the video continues in {name}-part2.mkv" in out
    found = json.loads((folder / "summary.json").read_text())
    stream, = found["streams"]
    assert stream["reconnects"] == 1 and stream["last_error"] and stream["address"].startswith("http://***@127.0.0.1")
    assert stream["results"] == found["frames"] > 60 and stream["latency_ms"]["p90"] > 0
    assert found["boxes"] == 2 * found["frames"], "both cells in every frame, and no frame made up"
    health = json.loads((folder / "health.json").read_text())
    assert health["running"] is False
    assert health["rss_mb"] > 10 if sys.platform == "linux" else health["rss_mb"] is None
    for file, size in ((f"{name}.mkv", (320, 240)), (f"{name}-part2.mkv", (640, 480))):
        info = probe(folder / file)
        assert (info.width, info.height) == size and count_frames(folder / file) > 15
    rows = json.loads((folder / "predictions.json").read_text())
    assert rows[0]["file_name"] == name and abs(rows[-1]["time"] - time.time()) < 120
    assert "S3CRET" not in out + err + texts(folder), "the password is in no message, file or file name"
    assert "***" in json.loads((folder / "args.json").read_text())["source"]


def test_of_several_streams_a_dead_one_stops_none(camera, watched, tmp_path):
    other = MjpegCamera(lambda k: coloured(160, 160)).begin()
    dead = f"rtsp://me:S3CRET@127.0.0.1:{free_port()}/x"
    (tmp_path / "cams.txt").write_text(f"{camera.address()}\n{dead}\n{other.address()}\n")

    def scenario(health: Path) -> None:
        wait_for(lambda: results(health, 0) > 20 and results(health, 2) > 20)
        other.kill()
        before = results(health, 0)
        wait_for(lambda: results(health, 0) > before + 20)

    code, out, _, folder = watched(scenario, "--source", tmp_path / "cams.txt", "--nosave")
    streams = json.loads((folder / "summary.json").read_text())["streams"]
    assert code == 130 and [one["state"] for one in streams] == ["live", "waiting", "waiting"]
    assert "refuses the connection" in streams[1]["last_error"] and streams[1]["results"] == 0
    assert out.count("refuses the connection") >= 2 and "S3CRET" not in out + texts(folder)
    assert not list(folder.glob("*.mkv"))


def test_a_webcam_is_read_by_its_number_and_duration_ends_it_with_0(run, nets, monkeypatch):
    """The camera's capture is fed from frames: a kernel module for virtual ones is not everywhere."""
    monkeypatch.setattr(feed, "open_capture", lambda *_: 1 / 0)
    whole = feed.Feed
    opened = []

    def fake(stream, limits):
        opened.append(stream.source)
        time.sleep(1)
        return FileCapture([coloured()] * 1000, 25.0)

    monkeypatch.setattr("detection.run.Feed", lambda *given: whole(*given, opener=fake))
    code, out, _, folder = run("--weights", nets["good"], "--source", "0", "--duration", "4", "--save-txt")
    found = json.loads((folder / "summary.json").read_text())
    assert 90 < found["streams"][0]["frames_read"] < 110, "--duration counts from the first frame"
    assert code == 0 and opened == ["0"] and found["frames"] > 5 and found["boxes"] == 2 * found["frames"]
    assert "camera0: live, 320x240 px" in out and (folder / "camera0.mkv").is_file()
    labels = sorted((folder / "labels").iterdir())
    assert len(labels) == found["frames"] and labels[0].name.startswith("camera0_")
    assert not (folder / "health.json").exists(), "written only where asked for"


def test_a_run_that_ends_with_the_trial_batch_finds_no_fault_with_the_stream(camera, run, nets, monkeypatch):
    """As one whose --duration is over by then."""
    tried = threading.Event()
    monkeypatch.setattr("detection.detector.Detector.warm_up", lambda *_: tried.set())
    monkeypatch.setattr("detection.run.Run.go_on", lambda *_: not tried.is_set())
    code, out, err, folder = run("--weights", nets["good"], "--source", camera.address())
    assert code == 0 and "live, 320x240 px" in out and "0 frames" in out, err
    assert json.loads((folder / "summary.json").read_text())["streams"][0]["frames_read"] > 0


@pytest.mark.parametrize(("flags", "code", "said"), [
    (("--source", "99"), 5, "there is no /dev/video99"),
    (("--source", "1000"), 5, "there is no /dev/video1000"),
    (("--source", "rtsp://me:S3CRET@127.0.0.1:{}/x", "--open-timeout", "0.5"), 3, "refuses the connection"),
    (("--source", "rtsp://me:S3CRET@127.0.0.1:{}/x", "--duration", "0.3", "--open-timeout", "0.5"), 3,
     "no image came within"),
    (("--source", "ftp://me:S3CRET@host/x"), 3, "ftp:// is not supported"),
    (("--source", "0", "--health", "../h.json"), 2, "nothing outside of it"),
    (("--source", "0", "--health", "args.json"), 2, "none of args.json"),
    (("--source", "0", "--duration", "-1"), 2, "more than 0 seconds"),
    (("--source", "nothing.jpg", "--duration", "5"), 2, "is for live sources")])
def test_what_cannot_begin_ends_with_a_sentence_its_code_and_no_folder(run, nets, flags, code, said):
    flags = [flag.format(free_port()) for flag in flags]
    found, out, err, folder = run("--weights", nets["good"], *flags)
    assert found == code and said in err and len(err.splitlines()) == 1 and "S3CRET" not in out + err
    assert not folder.exists()


def test_only_a_folder_that_this_run_made_goes_away_again(run, nets):
    """Health file, results' JSON and labels/ are begun before the first stream is open."""
    flags = ("--weights", nets["good"], "--source", "99", "--save-json", "--save-txt", "--health", "h.json")
    code, _, _, folder = run(*flags, "--exist-ok")
    assert code == 5 and not folder.exists()
    folder.mkdir()
    code, _, _, _ = run(*flags, "--exist-ok", "--name", "exp")
    assert code == 5 and (folder / "h.json").is_file(), "a folder that was there stays"


def test_a_full_disk_ends_the_recording_while_its_files_are_whole(camera, run, nets, monkeypatch):
    written, nearly_full = Outputs.write, shutil.disk_usage(".")._replace(free=10 ** 7)

    def fill(outputs: Outputs, *given: object) -> None:
        written(outputs, *given)
        if outputs.frames == 20:                           # by then a video has been begun
            monkeypatch.setattr("detection.run.shutil.disk_usage", lambda _: nearly_full)

    monkeypatch.setattr(Outputs, "write", fill)
    code, _, err, folder = run("--weights", nets["good"], "--source", camera.address())
    assert code == 7 and "10 MB are left on this disk" in err
    video, = folder.glob("*.mkv")
    assert count_frames(video) >= 15


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_playable_video_also_while_the_stream_hangs(camera, nets, tmp_path, number):
    """With SIGTERM the reader hangs in FFmpeg, where nothing can end it before its time limit."""
    child = subprocess.Popen(
        [sys.executable, "detect.py", "--weights", nets["good"], "--device", "cpu", "--threads", "1",
         "--source", camera.address(), "--project", tmp_path, "--health", "h.json", "--read-timeout", "60"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: results(tmp_path / "exp" / "h.json") > 30, 90)
    if number == signal.SIGTERM:
        camera.still.set()
        time.sleep(0.5)
    child.send_signal(number)
    start = time.monotonic()
    out, err = child.communicate(timeout=60)
    assert child.returncode == 128 + number and "Traceback" not in err and "FATAL" not in err, err
    assert time.monotonic() - start < 30 and len(err.splitlines()) == 1
    video, = (tmp_path / "exp").glob("*.mkv")
    summary = json.loads((tmp_path / "exp" / "summary.json").read_text())
    assert count_frames(video) == summary["frames"] > 30
    assert stream_health(tmp_path / "exp" / "h.json")["results"] == summary["frames"]


@pytest.mark.skipif(bool(why_no_rtsp()), reason=why_no_rtsp() or "it can be run")
def test_an_rtsp_server_that_is_killed_and_restarted_is_followed(watched):
    server = RtspServer(coloured, fps=15).begin()

    def scenario(health: Path) -> None:
        wait_for(lambda: results(health) > 20)
        server.kill()
        wait_for(lambda: stream_health(health)["state"] == "waiting")
        before = results(health)
        server.begin()
        wait_for(lambda: results(health) > before + 20)

    try:
        code, out, _, folder = watched(scenario, "--source", server.address(), "--read-timeout", "3")
    finally:
        server.kill()
    found = json.loads((folder / "summary.json").read_text())
    stream, = found["streams"]
    assert code == 130 and stream["reconnects"] == 1 and "live again" in out
    assert found["boxes"] == 2 * found["frames"], "every image is whole"
    assert count_frames(folder / f"127-0-0-1-{server.port}.mkv") > 30
