"""Videos of live streams: they play at true speed and survive a kill."""
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np

from detection.outputs import Outputs
from detection.video import Frame, Recorder, VideoInfo, probe
from tests.helpers.live_cases import coloured, count_frames


def record(recorder: Recorder, times: list[float], size: tuple[int, int] = (48, 64)) -> None:
    for at in times:
        info = VideoInfo(10.0, 0, size[1], size[0])
        recorder.write(np.full((*size, 3), round(20 * at) % 200, np.uint8), 100 + at, info)


def test_a_recording_plays_at_the_speed_of_life(tmp_path):
    recorder = Recorder(tmp_path / "a", live=True)
    steady = [k / 10 for k in range(20)]                   # 10 a second, then 4, then 25, and a cut of 30 s
    slow, fast = [2 + k / 4 for k in range(8)], [4 + k / 25 for k in range(50)]
    record(recorder, [*steady, *slow, *fast, *(36 + k / 10 for k in range(20))])
    recorder.close()
    capture, shown = cv2.VideoCapture(str(tmp_path / "a.mkv")), []
    while (frame := capture.read()[1]) is not None:
        shown.append((capture.get(cv2.CAP_PROP_POS_MSEC) / 1000, float(frame.mean())))
    assert len(shown) == 98 and 7.9 < shown[-1][0] < 8.1, "every frame, in 8 s; the cut is left out"
    for at, brightness in shown[:78]:
        assert abs(brightness - 20 * at) <= 4, f"at {at} s it shows that second"


def test_another_size_begins_another_file_and_few_frames_make_one(tmp_path):
    said: list[str] = []
    recorder = Recorder(tmp_path / "a", live=True, say=said.append)
    record(recorder, [k / 20 for k in range(30)])
    record(recorder, [2 + k / 20 for k in range(30)], (96, 128))
    record(recorder, [4.0])
    recorder.close()
    recorder.close()
    found = [probe(tmp_path / name) for name in ("a.mkv", "a-part2.mkv", "a-part3.mkv")]
    assert [(info.width, info.height) for info in found] == [(64, 48), (128, 96), (64, 48)]
    assert [count_frames(tmp_path / name) for name in ("a.mkv", "a-part2.mkv", "a-part3.mkv")] == [30, 30, 1]
    assert len(said) == 2 and "a-part2.mkv, at 128x96" in said[0]
    Recorder(tmp_path / "empty", live=True).close()
    assert not (tmp_path / "empty.mkv").exists()


def test_a_killed_process_leaves_a_recording_that_plays(tmp_path):
    code = ("import os, sys, signal, numpy as np\nfrom pathlib import Path\n"
            "from detection.video import Recorder, VideoInfo\nrecorder = Recorder(Path(sys.argv[1]), True)\n"
            "rng = np.random.default_rng(0)\n"
            "for k in range(400):\n    image = rng.integers(0, 255, (96, 128, 3), np.uint8)\n"
            "    recorder.write(image, k / 20, VideoInfo(20, 0, 128, 96))\n"
            "os.kill(os.getpid(), signal.SIGKILL)")
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a")], cwd=Path(__file__).parents[2],
                          capture_output=True, check=False)
    assert done.returncode == -9
    assert count_frames(tmp_path / "a.mkv") >= 350, "all but the last two seconds"


def test_a_disk_that_is_full_is_noticed_at_once_and_what_was_written_plays(tmp_path):
    """A limit of the process stands for the disk: 2 MB a file."""
    code = ("import resource, signal, sys, numpy as np\nfrom pathlib import Path\n"
            "from detection.video import Recorder, VideoInfo\nfrom utils.errors import DiskError\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))\n"
            "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nrng = np.random.default_rng(0)\n"
            "recorder = Recorder(Path(sys.argv[1]), sys.argv[2] == 'live')\ntry:\n    for k in range(2000):\n"
            "        image = rng.integers(0, 255, (96, 128, 3), np.uint8)\n"
            "        recorder.write(image, k / 20, VideoInfo(20, 0, 128, 96))\n"
            "except DiskError as error:\n    print(k, error)\nrecorder.close()")
    for kind, suffix in (("live", "mkv"), ("file", "mp4")):
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a"), kind], capture_output=True,
                              cwd=Path(__file__).parents[2], text=True, check=False)
        count, _, said = done.stdout.partition(" ")
        assert 50 < int(count) < 1000, done.stderr
        assert f"a.{suffix}: File too large, after" in said and "--nosave" in said
        assert count_frames(tmp_path / f"a.{suffix}") > 0.5 * int(count)


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
