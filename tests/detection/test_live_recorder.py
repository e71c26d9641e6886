"""Videos of live streams: they play at true speed and survive a kill; and the pulse beside the loop."""
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from detection.outputs import Outputs
from detection.threads import Pulse
from detection.video import Frame, Recorder, VideoInfo, probe
from tests.helpers.live_cases import coloured, count_frames, wait_for
from utils.errors import DiskError


def record(recorder: Recorder, times: list[float], size: tuple[int, int] = (48, 64)) -> None:
    for at in times:
        recorder.write(np.full((*size, 3), round(20 * at) % 200, np.uint8), 100 + at)


def test_a_recording_plays_at_the_speed_of_life(tmp_path):
    recorder = Recorder(tmp_path / "a")
    steady = [k / 10 for k in range(20)]                   # 10 a second, then 4, then 25, and a cut of 30 s
    slow, fast = [2 + k / 4 for k in range(8)], [4 + k / 25 for k in range(50)]
    record(recorder, [*steady, *slow, *fast, *(36 + k / 10 for k in range(20))])
    recorder.close()
    info = probe(tmp_path / "a.mkv")
    assert info.fps == 10 and abs(info.frames - 80) <= 2, "8 s of images; the cut is left out"
    capture, brightness = cv2.VideoCapture(str(tmp_path / "a.mkv")), []
    while (frame := capture.read()[1]) is not None:
        brightness.append(float(frame.mean()))
    for second in (1, 2.5, 3.5, 5, 5.8):
        assert abs(brightness[round(10 * second)] - 20 * second) <= 6, f"at {second} s it shows that second"


def test_another_size_begins_another_file_and_few_frames_make_one(tmp_path):
    said: list[str] = []
    recorder = Recorder(tmp_path / "a", said.append)
    record(recorder, [k / 20 for k in range(30)])
    record(recorder, [2 + k / 20 for k in range(30)], (96, 128))
    record(recorder, [4.0])
    recorder.close()
    recorder.close()
    found = [probe(tmp_path / name) for name in ("a.mkv", "a-part2.mkv", "a-part3.mkv")]
    assert [(info.width, info.height) for info in found] == [(64, 48), (128, 96), (64, 48)]
    assert [info.frames for info in found[:2]] == [30, 30] and found[2].frames == 1
    assert len(said) == 2 and "a-part2.mkv, at 128x96" in said[0]
    Recorder(tmp_path / "empty").close()
    assert not (tmp_path / "empty.mkv").exists()


def test_a_killed_process_leaves_a_recording_that_plays(tmp_path):
    code = ("import os, sys, signal, numpy as np\nfrom pathlib import Path\n"
            "from detection.video import Recorder\nrecorder = Recorder(Path(sys.argv[1]))\n"
            "rng = np.random.default_rng(0)\n"
            "for k in range(400):\n    recorder.write(rng.integers(0, 255, (96, 128, 3), np.uint8), k / 20)\n"
            "os.kill(os.getpid(), signal.SIGKILL)")
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a")], cwd=Path(__file__).parents[2],
                          capture_output=True, check=False)
    assert done.returncode == -9
    assert count_frames(tmp_path / "a.mkv") >= 250, "all but the last seconds"


def test_a_recording_that_does_not_reach_the_disk_is_an_error(tmp_path, monkeypatch):
    recorder = Recorder(tmp_path / "a")
    record(recorder, [k / 10 for k in range(30)])
    recorder._file._out.release()
    with (tmp_path / "a.mkv").open("r+b") as file:
        file.truncate(300)
    with pytest.raises(DiskError, match="frames reached the disk"):
        recorder.close()
    recorder.close()
    record(recorder, [4 + k / 10 for k in range(30)])
    recorder.close()
    assert count_frames(tmp_path / "a-part2.mkv") == 30, "what comes later has a file of its own"


def test_what_the_pulse_raises_reaches_the_main_thread():
    beats: list[int] = []

    def beat() -> None:
        beats.append(1)
        if len(beats) == 3:
            raise DiskError("full")

    with pytest.raises(DiskError, match="full"), Pulse(beat, 0.01) as pulse:
        wait_for(lambda: len(beats) == 3)
        time.sleep(0.05)
        assert len(beats) == 3, "it stopped"
        pulse.check()


def test_finite_videos_that_are_read_side_by_side_are_each_written_whole(tmp_path):
    with Outputs(tmp_path, ("red",)) as outputs:
        for k in range(12):
            for name in ("a", "b"):
                info = VideoInfo(25, 12, 64, 48)
                frame = Frame(name, Path(name), coloured(48, 64), k, info, 1.0 + k)
                outputs.write(frame, np.zeros((0, 6)))
    assert [probe(tmp_path / name).frames for name in ("a.mp4", "b.mp4")] == [12, 12]


def test_the_window_shows_the_newest_image_of_each_stream_side_by_side(tmp_path):
    outputs, none = Outputs(tmp_path, ("red",), images=False, view=True), np.zeros((0, 6))
    image = coloured(480, 640)
    outputs.write(Frame("a", Path("a"), image, 0, VideoInfo(25, 0, 640, 480), 1.0, True), none)
    assert outputs.shown.shape == image.shape
    for k, name in enumerate("bcba"):
        outputs.write(Frame(name, Path(name), image, k, VideoInfo(25, 0, 640, 480), 1.0, True), none)
    assert outputs.shown.shape[0] > 2 * 480 and outputs.shown.shape[1] > 2 * 640
