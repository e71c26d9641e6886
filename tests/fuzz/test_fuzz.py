"""A few dozen mutations of every kind of input (thousands: `python -m tests.fuzz`); what a guard must see."""
import json
import random
import subprocess
import sys
import time

import pytest

from tests.fuzz import guard as guards
from tests.fuzz.guard import Guard
from tests.fuzz.kinds import KINDS
from tests.fuzz.runner import Fuzz
from utils.errors import DataError

COUNT = 30


@pytest.fixture(scope="module")
def guard(tmp_path_factory):
    return Guard(tmp_path_factory.mktemp("fuzz"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_mutated_inputs_end_in_errors_of_the_project_s(kind, guard, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    fuzz = Fuzz(kind, guard.place, guard)
    faults = {number: fault for number in range(COUNT) if (fault := fuzz.one(1, number))}
    assert not faults, f"{kind}: {faults}"
    assert fuzz.refused or kind in ("http", "voc"), "mutations that nothing refuses change nothing"


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "http"])      # whose port differs
def test_a_mutation_can_be_made_again(kind, tmp_path):
    paths = KINDS[kind].make(tmp_path)
    for number in range(10):
        data = random.Random(number).choice(paths).read_bytes()
        first, again = (KINDS[kind].change(data, random.Random(number)) for _ in range(2))
        assert first == again


def test_the_guard_sees_hangs_writes_and_other_errors(guard, tmp_path, monkeypatch):
    def data_error() -> None:
        raise DataError("a sentence")
    monkeypatch.setattr(guards, "SECONDS", 0.3)
    assert "a hang" in guard.fault(lambda: time.sleep(2))
    assert "KeyError" in guard.fault(lambda: {}["a"]) and "MemoryError" in guard.fault(lambda: b"a" * 2 ** 62)
    assert "outside.txt" in guard.fault(lambda: (tmp_path / "outside.txt").write_text("x"))
    assert "outside" in guard.fault(lambda: (tmp_path / "outside").mkdir())
    for call in (data_error, lambda: open(tmp_path / "no"), lambda: (guard.place / "in.txt").write_text("")):
        assert guard.fault(call) == ""


def test_the_command_keeps_what_fails_and_says_how_many(root, tmp_path):
    code = ("import sys; from tests.fuzz import __main__ as fuzz, kinds\n"
            "def use(folder, path): 1 / 0 if b'schema' not in path.read_bytes() else None\n"
            "kinds.KINDS['metadata'] = kinds.Kind(kinds._metadata, kinds._metadata_of, use)\n"
            f"sys.argv[1:] = ['--kind', 'metadata', '--count', '40', '--keep', {str(tmp_path)!r}]\n"
            "sys.exit(fuzz.main())")
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    kept, told = sorted(tmp_path.iterdir()), json.loads(done.stdout)
    assert done.returncode == 1 and told["failed"] == len(kept) > 0, done.stderr
    assert "ZeroDivisionError" in (kept[0] / "fault.txt").read_text() and len(list(kept[0].iterdir())) == 2
