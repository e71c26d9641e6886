"""How live sources are read, without a network: newest frames, turns, breaks, and calls that hang."""
import threading
import time

import cv2
import pytest

from detection.live import reader
from detection.live.capture import Limits, Refused
from detection.live.feed import Feed
from detection.live.health import Board
from detection.live.streams import Stream, live_streams
from tests.helpers.live_cases import FileCapture, number_of, numbered, wait_for
from utils.cli import LEFT_BEHIND
from utils.errors import EnvironmentFault

LIMITS = Limits(5, 5)


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    wait_for(lambda: not [t for t in threading.enumerate() if t.name.startswith(LEFT_BEHIND)], 10)


def open_feed(openers: dict, go_on=lambda: True, most: int = 0, limits: Limits = LIMITS) -> tuple:
    """A feed of cameras whose captures come from the named functions."""
    streams = tuple(Stream(str(number), name) for number, name in enumerate(openers))
    board = Board((stream.name, stream.label) for stream in streams)

    def opener(stream: Stream, _: Limits) -> object:
        capture = openers[stream.name]()
        if capture is None:
            raise reader.why_no_camera(stream)
        return capture

    return Feed(streams, board, limits, most or len(streams), go_on, opener), board


def test_a_camera_gives_its_newest_frame_to_a_slow_consumer_and_holds_no_other():
    feed, board = open_feed({"a": lambda: FileCapture([numbered(k) for k in range(150)], fps=200.0)})
    seen = []
    with feed:
        for frames in feed:
            assert len(feed.readers[0]._box) <= 1
            seen.append((number_of(frames[0].image), frames[0].index, time.monotonic() - frames[0].taken))
            time.sleep(0.06)                               # a slow network
            if seen[-1][0] > 80:
                break
        health = board.streams["a"]
        assert health.read == health.dropped + len(seen) + len(feed.readers[0]._box)
    numbers = [number for number, _, _ in seen]
    assert numbers == sorted(set(numbers)) and numbers == [index for _, index, _ in seen]
    assert len(seen) < 0.5 * numbers[-1], "frames were dropped"
    assert seen[-1][2] < 0.3, "what it was given was new"


def test_a_camera_that_ends_is_opened_again_and_no_frame_is_made_up(monkeypatch):
    monkeypatch.setattr(reader, "backoff", lambda *_: 0.05)
    opened: list[FileCapture] = []

    def opener() -> FileCapture | None:
        opened.append(FileCapture([numbered(100 * len(opened) + k) for k in range(5)]))
        return opened[-1] if len(opened) % 2 else None     # every second try is refused

    feed, board = open_feed({"a": opener})
    seen = []
    monkeypatch.setattr(reader, "why_no_camera", lambda *_: Refused("is busy"))
    with feed:
        for frames in feed:
            seen.append(number_of(frames[0].image))
            if seen[-1] >= 400:
                break
    assert {number // 100 for number in seen} == {0, 2, 4} and all(number % 100 < 5 for number in seen)
    found = board.snapshot()["streams"][0]
    assert found["reconnects"] == 2 and found["last_error"] == "is busy"
    assert all(capture.released for capture in opened[:3:2])
    said = board.news()
    assert sum("is busy" in text for text in said) == 2 and sum("live again" in text for text in said) == 2


def test_tries_are_counted_from_0_again_once_a_stream_was_live_for_a_while(monkeypatch):
    asked: list[int] = []
    monkeypatch.setattr(reader, "backoff", lambda attempt, _: asked.append(attempt) or 0.01)
    monkeypatch.setattr(reader, "why_no_camera", lambda *_: Refused("is not there"))
    monkeypatch.setattr(reader, "STEADY", 0.2)
    frames = iter([0, 0, 0, 2, 0, 60, 0, 0])               # frames that each connection gives
    feed, _ = open_feed({"a": lambda: FileCapture([numbered(1)] * next(frames, 0), 100.0)})
    with feed:
        for _ in feed:
            if len(asked) == 5:
                break
        wait_for(lambda: len(asked) >= 8)
    assert asked[:8] == [0, 1, 2, 3, 4, 0, 1, 2]


def test_a_dead_stream_holds_up_no_other_and_each_gets_its_turn(monkeypatch):
    monkeypatch.setattr(reader, "why_no_camera", lambda *_: Refused("is not there", final=True))
    always = [numbered(7)] * 2000
    feed, board = open_feed({"a": lambda: FileCapture(always), "dead": lambda: None,
                             "broken": lambda: 1 / 0, "b": lambda: FileCapture(always)}, most=1)
    order = []
    with feed:
        for frames in feed:
            assert len(frames) == 1, "no more than asked for"
            order.append(frames[0].name)
            time.sleep(0.02)
            if len(order) == 40:
                break
    late = order[10:]
    assert all(first != second for first, second in zip(late, late[1:])), f"they take turns: {late}"
    states = {one["name"]: one for one in board.snapshot()["streams"]}
    assert states["dead"]["state"] == "waiting" and states["a"]["state"] == states["b"]["state"] == "live"
    assert "ZeroDivisionError" in states["broken"]["last_error"]


def test_streams_that_have_a_frame_at_the_same_time_make_one_batch():
    frames = {name: (lambda: FileCapture([numbered(1)] * 500)) for name in "abc"}
    feed, _ = open_feed(frames)
    with feed:
        sizes = []
        for batch in feed:
            sizes.append(len({frame.name for frame in batch}))
            assert sizes[-1] == len(batch)
            time.sleep(0.05)
            if len(sizes) == 8:
                break
    assert sizes[-5:] == [3] * 5


def test_a_call_that_ignores_its_time_limit_is_given_up_and_no_more_than_three_hang(monkeypatch):
    monkeypatch.setattr(reader, "GRACE", 0.05)
    hang, opened = threading.Event(), []

    class Stuck(FileCapture):
        def read(self):
            hang.wait(20)
            return False, None

    def opener() -> FileCapture:
        opened.append(Stuck([]) if len(opened) in (0, 1) else FileCapture([numbered(9)] * 50))
        return opened[-1]

    feed, board = open_feed({"a": opener}, limits=Limits(5, 0.05))
    with feed:
        frames = next(iter(feed))
        assert number_of(frames[0].image) == 9 and len(opened) == 3
        assert "does not answer" in board.snapshot()["streams"][0]["last_error"]
        hang.set()
    hang.clear()
    opened.clear()
    feed, _ = open_feed({"a": lambda: opened.append(Stuck([])) or opened[-1]}, limits=Limits(5, 0.05))
    end = time.monotonic() + 1.0
    feed._go_on = lambda: time.monotonic() < end
    with feed:
        assert list(feed) == [] and len(opened) == reader.STUCK + 1
        hang.set()


def test_an_image_of_another_size_is_said_and_passed_on():
    frames = [numbered(1)] * 20 + [numbered(2, 48, 64)] * 40
    feed, board = open_feed({"a": lambda: FileCapture(frames)})
    shapes = []
    with feed:
        for batch in feed:
            shapes.append(batch[0].image.shape[:2])
            assert batch[0].video.width == batch[0].image.shape[1]
            if shapes[-1] == (48, 64):
                break
    assert shapes[0] == (24, 32)
    assert any("64x48 px now; they were 32x24" in text for text in board.news())


def test_a_stream_that_comes_faster_than_it_can_be_read_is_joined_again_at_its_end(monkeypatch):
    monkeypatch.setattr(reader, "BEHIND", 0.3)
    monkeypatch.setattr(reader, "backoff", lambda *_: 0.01)

    class Slow(FileCapture):
        """Gives 25 frames a second of a stream that sends 100."""

        count = 0

        def get(self, prop: int) -> float:
            self.count += prop == cv2.CAP_PROP_POS_MSEC
            return 10.0 * self.count if prop == cv2.CAP_PROP_POS_MSEC else 100.0

    stream, = live_streams("rtsp://cam/1")
    board = Board([(stream.name, stream.label)])
    feed = Feed([stream], board, Limits(5, 5), 1, lambda: True, lambda *_: Slow([numbered(1)] * 500, 25.0))
    with feed:
        late = []
        for _ in feed:
            late.append(board.streams[stream.name].behind)
            if board.streams[stream.name].reconnects == 2:
                break
    assert 0.2 < max(late) <= 0.3 and any("was 0 s behind" in text for text in board.news())


def test_an_old_frame_that_a_decoder_gives_up_only_at_the_time_limit_is_not_shown(monkeypatch):
    monkeypatch.setattr(reader, "backoff", lambda *_: 0.01)

    class Delayed(FileCapture):
        def read(self):
            good, image = super().read()
            time.sleep(0.3 * (number_of(image[:, :, ::-1]) == 5))
            return good, image

    feed, board = open_feed({"a": lambda: Delayed([numbered(k) for k in range(9)])}, limits=Limits(5, 0.3))
    seen = []
    with feed:
        for frames in feed:
            seen.append(number_of(frames[0].image))
            if board.streams["a"].reconnects == 2:
                break
    assert max(seen) < 5 and any("sent nothing for 0 s" in text for text in board.news())


def test_a_camera_that_opens_and_gives_nothing_is_looked_at_too(monkeypatch):
    """That is how one in use by another program behaves."""
    monkeypatch.setattr(reader, "why_no_camera", lambda *_: Refused("is busy: in use by another"))
    feed, _ = open_feed({"a": lambda: FileCapture([])}, limits=Limits(0.3, 1))
    with feed, pytest.raises(EnvironmentFault, match="in use by another"):
        list(feed)


def test_without_any_camera_it_ends_with_5_at_once_and_with_a_busy_one_after_its_time(monkeypatch):
    for final in (True, False):
        feed, _ = open_feed({"a": lambda: None, "b": lambda: None}, limits=Limits(0.6, 1))
        monkeypatch.setattr(reader, "why_no_camera", lambda *_, final=final: Refused("is not well", final))
        start, waits = time.monotonic(), not final
        with feed, pytest.raises(EnvironmentFault) as error:
            list(feed)
        assert error.value.exit_code == 5 and "is not well (and 1 more" in str(error.value)
        assert (time.monotonic() - start >= 0.6) == waits and ("--open-timeout" in str(error.value)) == waits
