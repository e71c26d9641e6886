"""The page's own logic, run by node with a made-up document: changes in mid-way leave nothing waiting."""
import json
import shutil
import subprocess
from pathlib import Path

import pytest

WEB = Path(__file__).resolve().parents[2] / "web"


@pytest.fixture(scope="module")
def seen(tmp_path_factory) -> dict:
    """What happened."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs node, absent here")
    folder = tmp_path_factory.mktemp("page")
    for path in (*WEB.glob("*.js"), WEB / "package.json"):
        shutil.copy(path, folder)
    (folder / "local.js").rename(folder / "backend.js")
    script = Path(__file__).with_name("web_page.mjs")
    done = subprocess.run([node, script, folder], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_measure_can_be_pressed_again_after_the_network_was_changed_in_mid_way(seen):
    assert seen["begun"] and seen["again"] and seen["ended"]
    assert (seen["where"], seen["status"]) == ("worker 2", "Ready."), "the change is no fault"


def test_a_camera_is_closed_before_the_next_is_opened(seen):
    assert seen["log"] == ["open first", "close first", "open second"]
