"""Fixtures shared by all tests: the real data beside the project (or a skip), and the embedded set."""
import os
import warnings
from pathlib import Path

import pytest

from utils.optional import report_nothing

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
report_nothing()                                           # before tests import the libraries themselves
ROOT = Path(__file__).resolve().parent.parent
SLOW = {line for line in (ROOT / "tests" / "slow.txt").read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")}


def pytest_collection_modifyitems(items):
    """Mark the files and tests that tests/slow.txt names."""
    for item in items:
        test = item.nodeid.split("[")[0]
        if {test, test.split("::")[0]} & SLOW:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's top folder."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data sets beside the project; the test is skipped where it is absent."""
    path = ROOT.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip("needs the real data sets in ../shared/data, absent here")
    return path


@pytest.fixture(scope="session")
def nets(tmp_path_factory):
    """Checkpoints of networks set by hand, whose boxes are known."""
    from tests.helpers.detect_cases import made_nets
    return made_nets(tmp_path_factory.mktemp("nets"))


@pytest.fixture
def bench(capsys, monkeypatch, tmp_path):
    """A function that calls benchmark.py in this process, with planted workers."""
    from tests.bench.bench_fake import running
    return running(capsys, monkeypatch, tmp_path)


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """A function that calls detect.py in this process."""
    from tests.helpers.detect_cases import running
    yield from running(capsys, monkeypatch, tmp_path)


@pytest.fixture
def no_warning():
    """Raise whatever is warned of; but not of what an earlier test left behind and Python collects now."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", ResourceWarning)
        yield
