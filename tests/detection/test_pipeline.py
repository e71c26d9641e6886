"""The threads around the network, and what they say while they run."""
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from detection.detector import Batch, Detector, batches, class_indices, follow
from detection.screen import FrameLog, bar_text, shorten, why_no_window
from detection.threads import behind, prefetch
from detection.video import Frame
from models.heads.nms import Found
from tests.helpers.detect_cases import ROOT
from utils.errors import DataError, UsageError
from utils.runs import Device


def test_prefetch_keeps_order_and_is_bounded():
    taken: list[int] = []
    with closing(prefetch((taken.append(k) or k for k in range(100)), depth=3)) as reader:
        assert next(reader) == 0
        time.sleep(0.3)
        assert len(taken) <= 6, "it ran ahead of its bound"
        assert list(reader) == list(range(1, 100))
        assert list(reader) == []


def test_an_error_while_fetching_comes_after_what_was_fetched_before_it():
    def failing():
        yield 1
        raise DataError("the second is bad")

    with closing(prefetch(failing())) as reader:
        assert next(reader) == 1
        with pytest.raises(DataError, match="second is bad"):
            next(reader)


def test_leaving_early_ends_the_thread_and_closes_the_generator():
    closed = threading.Event()

    def endless():
        try:
            while True:
                yield 0
        finally:
            closed.set()

    before = threading.active_count()
    with closing(prefetch(endless(), depth=2)) as reader:
        next(reader)
    assert closed.wait(1) and threading.active_count() == before


def test_what_is_put_behind_is_written_in_order_before_close_returns():
    done: list[int] = []
    with behind(lambda k: (time.sleep(0.002), done.append(k)), depth=2) as put:
        for k in range(30):
            put(k)
    assert done == list(range(30))


def test_an_error_while_writing_reaches_the_producer_and_never_blocks_it():
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"), behind(full, depth=1) as put:
        for k in range(100):
            put(k)
    with pytest.raises(OSError, match="No space"), behind(full) as put:
        put(1)
    with pytest.raises(KeyError), behind(full) as put:         # the block's own error goes first
        put(1)
        time.sleep(0.05)
        raise KeyError


class FakeRuntime:
    """A runtime whose "map" is the image itself, with the time of a network."""

    def __init__(self, precision: str = "fp32", seconds: float = 0.0) -> None:
        self.device, self.precision, self.note, self.seconds = Device("cpu"), precision, "", seconds

    def predict(self, images):
        """The images."""
        time.sleep(self.seconds)
        return [images]


def frames_of(number: int) -> list[Frame]:
    paths = [Path(f"{k}.png") for k in range(number)]
    return [Frame(path.name, path, np.full((8, 8, 3), k, np.uint8), 0, None) for k, path in enumerate(paths)]


def fit(image: np.ndarray) -> tuple[np.ndarray, object]:
    from utils.boxes import letterbox_geometry
    return image, letterbox_geometry(8, 8, 8)


def test_absurd_boxes_in_half_precision_repeat_the_batch_in_fp32():
    def find(runtime, maps):
        return Found([np.ones((1, 6))] * len(maps[0]), 0 if runtime.precision == "fp32" else 3, 2)
    detector = Detector(FakeRuntime("bf16"), find, FakeRuntime)
    boxes = detector(np.zeros((2, 3, 8, 8)))
    assert len(boxes) == 2 and detector.dropped == 0 and detector.runtime.precision == "fp32"
    assert "bf16 gave 3 non-finite or absurd boxes" in detector.notes[0]
    assert detector.cut == 2 and "2 boxes were too many for NMS" in detector.notes[-1]


@pytest.mark.parametrize("given", [True, False])
def test_the_trial_pass_is_taken_once_whoever_gives_its_images(given, monkeypatch):
    passes: list[int] = []
    monkeypatch.setattr(FakeRuntime, "predict", lambda _, images: passes.append(len(images)) or [images])
    detector = Detector(FakeRuntime(), lambda *_: Found([np.zeros((0, 6))], 0), FakeRuntime)
    if given:
        detector.warm_up(np.zeros((3, 3, 8, 8)))
        assert detector.since_start() == 0
    detector(np.zeros((1, 3, 8, 8)))
    detector(np.zeros((1, 3, 8, 8)))
    assert passes == ([3, 1, 1] if given else [1, 1, 1])


@pytest.mark.parametrize("lanes", [1, 3])
def test_lanes_work_side_by_side_and_give_every_batch_in_order(lanes):
    busy, at_once, seen = [], [], []

    class Slow(FakeRuntime):
        def predict(self, images):
            busy.append(1)
            at_once.append(len(busy))
            time.sleep(0.02 + 0.04 * (images[0, 0, 0, 0] % 2 == 0))        # later ones end sooner
            busy.pop()
            return [images]
    detector = Detector(Slow(), lambda *_: Found([np.ones((1, 6))], 1), Slow, lanes=lanes)
    follow(batches(frames_of(12), fit, 1), detector, lambda item: seen.append(item[0].name), lambda: True)
    assert seen == [f"{k}.png" for k in range(12)] and detector.dropped == 12
    assert max(at_once) == lanes and at_once[:2] == [1, 1], "the trial is alone"


def test_an_error_in_a_lane_or_an_early_end_leaves_no_thread_waiting():
    class Broken(FakeRuntime):
        def predict(self, images):
            if images[0, 0, 0, 0] == 5:
                raise DataError("the network broke")
            return [images]
    detector = Detector(Broken(), lambda *_: Found([np.zeros((0, 6))], 0), Broken, lanes=2)
    seen: list[str] = []
    with pytest.raises(DataError, match="broke"):
        follow(batches(frames_of(9), fit, 1), detector, lambda item: seen.append(item[0].name), lambda: True)
    assert seen == [f"{k}.png" for k in range(5)]
    seen.clear()
    follow(batches(frames_of(5), fit, 1), detector, lambda item: seen.append(item[0].name),
           lambda: len(seen) < 2)
    assert seen == ["0.png", "1.png"] and not [t for t in threading.enumerate() if t.name.startswith("lane")]


def test_the_network_of_the_lanes_is_let_go_before_the_one_on_all_threads_is_loaded():
    def whole():
        assert detector.runtime is None, "two networks at a time are the peak of a run's memory"
        return FakeRuntime("whole")
    detector = Detector(FakeRuntime(), lambda *_: Found([], 0), FakeRuntime, lanes=2, whole=whole)
    assert detector.alone(np.zeros((1, 3, 8, 8)), 0.01) > 0 and detector.runtime.precision == "whole"


def test_memory_that_is_freed_goes_back_at_once():
    if sys.platform != "linux":
        pytest.skip("is for glibc")
    code = ("import re, sys, threading\nfrom pathlib import Path\nfrom utils.runs import tune_memory\n"
            "if sys.argv[1] == 'tuned':\n    tune_memory()\n"
            "def use():\n    pins = []\n    for _ in range(3):\n"
            "        blocks = [bytearray(b'x') * 2_000_000 for _ in range(40)]\n        del blocks[:-1]\n"
            "        pins.append(blocks)\n        del blocks\n"
            "    print(re.search(r'VmRSS:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])\n"
            "thread = threading.Thread(target=use)\nthread.start()\nthread.join()\n")
    plain, tuned = (int(subprocess.run([sys.executable, "-c", code, how], cwd=ROOT, capture_output=True,
                                       text=True, check=True).stdout) for how in ("plain", "tuned"))
    assert tuned < plain - 30_000, f"{tuned} kB after all in place of {plain}"


def test_batches_keep_every_frame_in_order_and_lie_in_memory_as_the_network_wants_them():
    made = list(batches(iter(frames_of(5)), fit, 2))
    assert [len(batch.frames) for batch in made] == [2, 2, 1]
    assert [frame.name for batch in made for frame in batch.frames] == [f"{k}.png" for k in range(5)]
    assert isinstance(made[0], Batch) and tuple(made[0].images.shape) == (2, 3, 8, 8)
    assert made[1].images[1, 0, 0, 0] == 3 and made[0].images.transpose(0, 2, 3, 1).flags.c_contiguous


def test_reading_network_and_writing_overlap():
    """Three stages of 20 ms a frame take little more than one of them, not three."""
    def slow(frames):
        for frame in frames:
            time.sleep(0.02)
            yield frame
    nothing = [np.zeros((0, 6))]
    detector = Detector(FakeRuntime(seconds=0.02), lambda runtime, maps: Found(nothing, 0), FakeRuntime)
    written: list[str] = []
    start = time.perf_counter()
    with behind(lambda item: (time.sleep(0.02), written.append(item[0].name)), 4) as put, \
            closing(prefetch(batches(slow(frames_of(25)), fit, 1), 4)) as reader:
        follow(reader, detector, put, lambda: True)
    assert written == [f"{k}.png" for k in range(25)]
    assert time.perf_counter() - start < 25 * 0.02 * 2.2, "the stages wait for each other"


def test_class_words_are_names_first_then_numbers():
    assert class_indices(["car", "0"], ("person", "bus", "car")) == [0, 2]
    assert class_indices(None, ("a",)) is None
    assert class_indices(["1"], ("1", "0")) == [0], "a name that is a number goes first"
    with pytest.raises(UsageError, match="does not know it; give names or numbers of: 0 1, 1 0"):
        class_indices(["2"], ("1", "0"))


class Terminal:
    """A stream that is, or is not, a terminal."""

    def __init__(self, tty: bool) -> None:
        self.text, self._tty = "", tty

    def isatty(self) -> bool:
        """As told."""
        return self._tty

    def write(self, text: str) -> None:
        """Keeps the text."""
        self.text += text

    def flush(self) -> None:
        """Nothing."""


def test_the_bar_is_redrawn_on_a_terminal_and_is_plain_lines_elsewhere():
    for tty in (True, False):
        stream = Terminal(tty)
        log = FrameLog(3, True, stream)
        for _ in range(3):
            log.step("v.mp4", (10, 10), "1 car", 5.0)
        log.tell([("a.jpg", "a.jpg: is empty")])
        log.tell([("a.jpg", "a.jpg: is empty")])
        assert stream.text.count("left out: a.jpg: is empty\n") == 1 and "3/3  100 %" in stream.text
        assert ("\r" in stream.text) == tty and stream.text.endswith("\n")
    assert "0:50 left" in bar_text(50, 100, 50.0) and "50 %" in bar_text(50, 100, 50.0)
    assert bar_text(7, 0, 1.0).startswith("7 frames") and bar_text(0, 0, 0.0)
    assert shorten("a" * 50, 21) == "a" * 9 + "..." + "a" * 9 and shorten("ab", 2) == "ab"


def test_a_display_that_does_not_answer_is_found_out_without_dying(monkeypatch):
    monkeypatch.setenv("DISPLAY", ":987")
    assert why_no_window(), "OpenCV would abort this process"
    monkeypatch.delenv("DISPLAY")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    if sys.platform.startswith("linux"):
        assert "DISPLAY" in why_no_window()
