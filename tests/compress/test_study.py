"""The queue of a search: every point once, whatever number of workers and however they die."""
import json
import random
import signal
import subprocess
import sys
import time
import zlib
from collections import Counter
from itertools import product
from pathlib import Path

import optuna
import pytest

from compress.search import storage
from compress.search.queue import Queue
from utils.errors import EnvironmentFault, UsageError

SPACE = {"a": [3, 5], "b": ["conv", "mbconv"], "c": [1, 2]}
POINTS = list(product(*SPACE.values()))
PAIR = {"a": [3, 5]}
# A worker that notes each point before and after it works on it, in a file no other process writes.
WORKER = """
import json, os, sys, time, zlib
from pathlib import Path
from compress.search.queue import Queue
folder, space, trials, pause = Path(sys.argv[1]), *(json.loads(word) for word in sys.argv[2:])
queue = Queue(f"sqlite:///{folder}/study.db", "s", space, ["maximize"], {}, folder / "workers", trials, 3)
with open(folder / f"notes-{os.getpid()}.txt", "a") as notes:
    while (point := queue.take()) is not None:
        print(json.dumps(["take", *point.values()]), file=notes, flush=True)
        time.sleep(pause)
        queue.finish([zlib.crc32(json.dumps(point).encode()) % 100], {"point": point})
        print(json.dumps(["done", *point.values()]), file=notes, flush=True)
print(json.dumps(queue.records()))
queue.close()
"""


@pytest.fixture
def work(root, tmp_path):
    """A function that starts a worker on the study in tmp_path."""
    started = []

    def start(space=SPACE, trials=0, pause=0.01):
        words = [sys.executable, "-c", WORKER, str(tmp_path), json.dumps(space), str(trials), str(pause)]
        started.append(subprocess.Popen(words, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                        text=True))
        return started[-1]
    yield start
    for process in started:
        process.kill()
        process.communicate()


def answer(process) -> list[dict]:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return json.loads(out.splitlines()[-1])


def notes(folder: Path, word: str) -> Counter:
    lines = (line for file in folder.glob("notes-*.txt") for line in file.read_text().splitlines())
    return Counter(tuple(found[1:]) for found in map(json.loads, lines) if found[0] == word)


@pytest.fixture
def opened(tmp_path):
    """A function that opens the study in tmp_path in this process."""
    queues = []

    def open_queue(space=SPACE, trials: int = 0, settings: tuple = (), folder: Path = tmp_path) -> Queue:
        queues.append(Queue(f"sqlite:///{folder}/study.db", "s", space, ["maximize"], dict(settings),
                            folder / "workers", trials, seed=3))
        return queues[-1]
    yield open_queue
    for queue in queues:
        queue.close()


def values(records: list[dict]) -> list[tuple]:
    return [tuple(record["point"].values()) for record in records]


def test_workers_started_together_take_every_point_once(work, opened, tmp_path):
    workers = [work(), work()]
    for found in [answer(worker) for worker in workers]:
        assert values(found) == POINTS, "the records come in the order of the space"
    assert notes(tmp_path, "take") == Counter(POINTS)
    assert len(opened().study.trials) == len(POINTS), "queued once, by one of them"


def test_workers_killed_at_random_moments_lose_no_point_and_finish_none_twice(work, opened, tmp_path):
    rng = random.Random()                          # new moments at every run of the test
    for _ in range(2):
        pair, before = [work(pause=0.05), work(pause=0.05)], len(list(tmp_path.glob("notes-*")))
        while len(list(tmp_path.glob("notes-*"))) == before and pair[0].poll() is None:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.4))
        for worker in pair:
            worker.send_signal(signal.SIGKILL)
            worker.wait()
    assert values(answer(work(pause=0))) == POINTS
    assert not [p for p, n in notes(tmp_path, "done").items() if n > 1]
    states = Counter(t.state.name for t in opened().study.trials)
    assert states["COMPLETE"] == len(POINTS) and states.keys() <= {"COMPLETE", "FAIL"}


def test_a_dead_workers_point_is_taken_by_one_that_waits(work, tmp_path):
    first = work(space=PAIR, pause=60)
    while not notes(tmp_path, "take"):
        time.sleep(0.02)
    second = work(space=PAIR)
    while not notes(tmp_path, "done"):
        time.sleep(0.02)
    time.sleep(0.3)
    assert second.poll() is None, "it must wait for the other's point, not end without it"
    first.send_signal(signal.SIGKILL)
    assert values(answer(second)) == [(3,), (5,)]


def test_a_worker_whose_machine_cannot_be_seen_is_dead_when_its_heart_is_still(opened, monkeypatch):
    first = opened(PAIR)
    point = first.take()
    monkeypatch.setattr("platform.node", lambda: "elsewhere")      # another machine, which sees no lock
    other = opened(PAIR)
    assert other.take() != point and other.finish([0.0], {})
    assert "RUNNING" in [t.state.name for t in other.study.trials], "its heart still beats"
    monkeypatch.setattr(other.storage, "grace_period", -1)         # as if it had beaten long ago
    assert other.take() == point
    monkeypatch.undo()
    assert other.finish([1.0], {})
    assert not first.finish([2.0], {}), "the first worker came back: its value must not count as well"
    assert [t.value for t in other.study.trials if t.params == point and t.value is not None] == [1.0]


def test_a_point_given_back_or_dropped(opened):
    queue = opened(PAIR)
    first = queue.take()
    queue.give_back()
    assert queue.current is None
    left = [queue.take(), None]
    queue.finish(None, {"point": left[0], "error": "numbers"})
    left[1] = queue.take()
    queue.finish([1.0], {"point": left[1]})
    assert queue.take() is None, "what failed for good does not come back"
    assert {tuple(p.values()) for p in left} == {(3,), (5,)} and first in left
    assert [r.get("error") for r in queue.records() if r["point"] == left[0]] == ["numbers"]


def test_tpe_proposes_different_points_and_the_same_ones_after_a_kill(work, opened, tmp_path):
    def tried(queue: Queue) -> list[tuple]:
        return [tuple(t.params[k] for k in SPACE) for t in queue.study.trials if t.state.name == "COMPLETE"]
    (tmp_path / "whole").mkdir()
    whole = opened(trials=5, folder=tmp_path / "whole")
    while (point := whole.take()) is not None:
        whole.finish([zlib.crc32(json.dumps(point).encode()) % 100], {"point": point})
    order = tried(whole)
    assert len(set(order)) == len(order) == 5 and sorted(values(whole.records())) == sorted(order)
    rng = random.Random()
    for _ in range(2):
        worker = work(trials=5, pause=0.1)
        while not (tmp_path / f"notes-{worker.pid}.txt").exists() and worker.poll() is None:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.5))
        worker.send_signal(signal.SIGKILL)
        worker.wait()
    answer(work(trials=5, pause=0))
    assert tried(opened(trials=5)) == order


def test_tpe_with_more_trials_than_points_ends_with_all_points(work):
    space = {"a": [3, 5], "b": [1, 2]}
    assert values(answer(work(space=space, trials=50, pause=0))) == [(3, 1), (3, 2), (5, 1), (5, 2)]


def test_a_study_with_other_settings_is_refused(opened):
    opened(settings=(("epochs", 20),))
    opened(settings=(("epochs", 20),))
    with pytest.raises(UsageError, match="epochs was 20, is 10.*--study"):
        opened(settings=(("epochs", 10),))


@pytest.mark.parametrize(("url", "said"), [("nonsense", "no database URL"), ("sqlite://", "kept in memory"),
                                           ("sqlite:///no/such/folder/a.db", "no folder")])
def test_a_storage_that_cannot_be_shared_is_refused(url, said, tmp_path):
    with pytest.raises(UsageError, match=said):
        Queue(url, "s", SPACE, ["maximize"], {}, tmp_path)


@pytest.mark.parametrize("url", ["postgresql:/me:SECRET@host/db", "postgresql://me:SECRET@host:x/db",
                                 "nonsense://me:SECRET@host/db", "sqlite:///no/me:SECRET@host/a.db"])
def test_a_storage_is_refused_without_its_password(url, tmp_path):
    with pytest.raises((UsageError, EnvironmentFault)) as error:
        Queue(url, "s", SPACE, ["maximize"], {}, tmp_path)
    assert "SECRET" not in str(error.value) and "--storage" in str(error.value)


def test_what_a_database_says_is_shown_without_the_password(monkeypatch):
    def refused(url: str, *_: object, **__: object) -> None:
        raise RuntimeError(f"no host RET@db of {url} with SEC, SEC@RET, S EC%")
    import optuna
    monkeypatch.setattr(storage, "TRIES", 1)
    monkeypatch.setattr(optuna.storages, "RDBStorage", refused)
    with pytest.raises(EnvironmentFault, match="cannot be used: no host") as error:
        storage.open_storage("postgresql://me:SEC@RET@db/name?sslpassword=S%20EC%25")
    assert not any(word in str(error.value) for word in ("SEC", "RET", "S EC"))


@pytest.mark.parametrize("name", ["a b", "My%20Drive", "{run}", "what?1", "50%", "a#b", "{{x}}"])
def test_a_folder_of_any_name_holds_its_own_study(tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    url = storage.file_url(folder / "study.db")
    assert storage.lock_file(url) == folder / "study.db.lock"
    optuna.create_study(storage=storage.open_storage(url))
    assert (folder / "study.db").is_file() and [path.name for path in tmp_path.iterdir()] == [name]
