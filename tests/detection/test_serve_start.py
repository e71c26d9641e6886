"""How detect.py --serve begins and ends: ports, hosts, the list of networks, signals."""
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import detect
from detection.serve.app import listen
from detection.serve.networks import found_weights
from tests.helpers.detect_cases import ROOT
from tests.helpers.scripts import call
from tests.helpers.serve_cases import Client
from utils.errors import EnvironmentFault


def test_a_port_in_use_is_one_sentence_with_a_free_one():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(EnvironmentFault, match=f"--port {port}: is in use by another") as caught:
            listen("127.0.0.1", port)
        free = int(str(caught.value).split("--port ")[-1].split()[0])
        listen("127.0.0.1", free).server_close()
    for host, said in (("192.0.2.1", "does not have that address"), ("no such host", "no such address")):
        with pytest.raises(EnvironmentFault, match=said):
            listen(host, 0)


def test_hosts_beside_loopback_are_warned_of(capsys):
    listen("127.0.0.1", 0).server_close()
    assert capsys.readouterr().err == ""
    server = listen("0.0.0.0", 0)
    server.server_close()
    assert "without a password" in capsys.readouterr().err and server.address.startswith("http://127.0.0.1:")


def test_weights_are_found_where_training_and_export_leave_them(tmp_path):
    wanted = ["weights/a.pt", "weights/b.onnx", "weights/c_openvino/model.xml",
              "runs/train/exp/weights/best.pt", "runs/tables/voc5/job-1/weights/best.pt",
              "runs/export/exp2/n.onnx", "runs/export/exp2/n_ncnn/model.param"]
    for name in (*wanted, "weights/a.prev.pt", "weights/README.md", "runs/train/exp/weights/last.pt",
                 "secret.pt", "runs/export/exp2/n_web/model.onnx", "runs/train/exp/weights/best.prev.pt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    os.utime(tmp_path / "runs/train/exp/weights/best.pt", (1, 1))
    found = [path.relative_to(tmp_path).as_posix() for path in found_weights(tmp_path, tmp_path)]
    folders = [name.removesuffix("/model.xml").removesuffix("/model.param") for name in wanted]
    assert sorted(found) == sorted(folders) and found[:2] == ["weights/a.pt", "weights/b.onnx"]
    assert found[-1] == "runs/train/exp/weights/best.pt", "the oldest run comes last"


@pytest.mark.parametrize(("flags", "said"), [
    (("--serve", "--source", "0"), "does not heed --source:"),
    (("--serve", "--save-txt", "--save-json", "--save-crop", "--nosave", "--view-img"),
     "--nosave, --save-txt, --save-json, --save-crop, --view-img: give"),
    (("--serve", "--health", "a.json", "--duration=5", "--open-timeout", "30"),
     "--health, --duration, --open-timeout: give"),
    (("--serve", "--batch", "1", "--exist-ok"), "--batch-size, --exist-ok: give"),
    (("--source", "a.jpg", "--host", "127.0.0.1", "--port=8000"), "--host, --port without --serve")])
def test_flags_that_would_do_nothing_are_refused_also_with_default_values(flags, said, monkeypatch, capsys):
    assert call(monkeypatch, detect.main, ["detect.py", *flags]) == 2
    assert said in capsys.readouterr().err


def test_the_script_serves_until_ctrl_c_and_ends_with_130_or_with_5(nets, tmp_path):
    command = [sys.executable, str(ROOT / "detect.py"), "--serve", "--weights", str(nets["good"]), "--fp32",
               "--device", "cpu", "--threads", "1", "--port", "0"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True)
    try:
        line = process.stdout.readline()
        port = int(line.split("127.0.0.1:")[1].split("/")[0])
        models = Client(port, "").ask("GET", "/api/models")
        assert models[0] == 200 and "good.pt" in models[2].decode()
        second = subprocess.run([*command[:-1], str(port)], cwd=tmp_path, capture_output=True, text=True,
                                check=False)
        assert second.returncode == 5 and f"--port {port}: is in use" in second.stderr
        assert len(second.stderr.splitlines()) == 1
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130 and err == "" and "stopped by a signal after 0 images" in out
    assert list(Path(tmp_path).iterdir()) == [], "serving writes nothing"
