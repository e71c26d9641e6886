"""A signal after several OpenVINO runtimes have come and gone: handled, and no segmentation fault."""
import subprocess
import sys

import pytest

from tests.helpers.export_cases import checkpoint, exported
from tests.helpers.nets import small_net

pytest.importorskip("openvino", reason="needs openvino (requirements-export.txt)")
# In the order that left the process on a freed stack: the second is there when the first goes.
CODE = """
import gc, os, signal, sys
from deploy.runtimes.runtime import load_runtime
from utils.runs import Interrupt
interrupt = Interrupt()
first, second = load_runtime(sys.argv[1]), load_runtime(sys.argv[1])
del first
gc.collect()
del second
gc.collect()
os.kill(os.getpid(), signal.SIGINT)
print("signal", interrupt.signal)
"""


def test_ctrl_c_after_two_runtimes_is_handled(tmp_path, root):
    path = exported(tmp_path, checkpoint(small_net()), ("openvino",))["openvino"]
    command = [sys.executable, "-c", CODE, str(path)]
    ended = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout.split()[-2:]) == (0, ["signal", "2"]), ended.stderr[-500:]
