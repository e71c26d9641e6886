"""What a user does wrong at the command line, and the sentence and exit code it gets."""
import errno
import importlib
import json
import os
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from models.checkpoint import Checkpoint, save
from models.layer import Layer
from models.records import to_json
from tests.helpers.detect_cases import ROOT
from tests.helpers.nets import randomised, small_net
from utils import cli, runs
from utils.errors import DataError, EnvironmentFault


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A small embedded set, as a path."""
    from data.scenes import make_scenes
    return make_scenes(tmp_path_factory.mktemp("digits") / "set", train=6, val=3, size=160, seed=2)


def run(script, words, tmp_path, monkeypatch, capsys):
    """Exit code and stderr of a script called with these words; its run folder lies in tmp_path."""
    monkeypatch.setattr(sys, "argv", [f"{script}.py", *map(str, words), "--project", str(tmp_path / "runs")])
    with pytest.raises(SystemExit) as ended:
        cli.run(importlib.import_module(script).main)
    return ended.value.code, capsys.readouterr().err


@pytest.mark.parametrize(("words", "code", "sentence"), [
    ([], 2, "--data is missing"),
    (["--data", "x", "--separate"], 2, "--separate needs --weights"),
    (["--cfg", "micro-yolo"], 2, "--data is missing"),
    (["--cfg", "micro-yolo", "--data", "x", "--imgsz", "100"], 2, "--imgsz 100: needs a multiple of 32"),
    (["--cfg", "micro-yolo", "--data", "x", "--epochs", "0"], 2, "--epochs 0: needs 1 or more"),
    (["--cfg", "micro-yolo", "--data", "x", "--lr", "nan"], 2, "--lr nan: needs more than 0"),
    (["--cfg", "micro-yolo", "--data", "x", "--momentum", "2"], 2, "--momentum 2.0: needs 0 or more, below"),
    (["--cfg", "micro-yolo", "--data", "x", "--optimizer", "adam"], 2, "invalid choice"),
    (["--cfg", "micro-yolo", "--data", "x", "--resume", "nowhere"], 2, "no run with an args.json"),
    (["--cfg", "micro-yolo", "--data", "nowhere/at/all"], 3, "nowhere/at/all"),
    (["--cfg", "micro-yolo", "--data", "x", "--device", "gpu"], 2, "needs auto, cpu, cuda"),
    pytest.param(["--cfg", "micro-yolo", "--data", "x", "--device", "cuda"], 5, "use --device cpu",
                 marks=pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA"))])
def test_a_wrong_flag_of_train_gets_its_code(words, code, sentence, tmp_path, monkeypatch, capsys):
    found, text = run("train", words, tmp_path, monkeypatch, capsys)
    assert (found, sentence in text) == (code, True), text


@pytest.mark.parametrize("script", ["train.py", "prune.py", "search.py", "detect.py", "val.py",
                                    "benchmark.py"])
def test_help_tells_each_default_once_and_that_of_its_own_script(script):
    done = subprocess.run([sys.executable, ROOT / script, "--help"], capture_output=True, text=True,
                          check=True)
    text = " ".join(done.stdout.split())
    assert "default: None" not in text and "default: ()" not in text
    assert not re.search(r"\(default[^()]*\) \(default", text)
    rates = {"train.py": "0.002 for adamw, 0.01 for sgd", "prune.py": "0.001 for adamw, 0.005 for sgd"}
    assert rates.get(script, "") in text


def test_an_unknown_and_a_broken_network_are_refused_by_name(digits, tmp_path, monkeypatch, capsys):
    code, text = run("train", ["--cfg", "micro-yollo", "--data", digits], tmp_path, monkeypatch, capsys)
    assert code == 4 and "did you mean 'micro-yolo'" in text
    net = json.loads(to_json(small_net(10)))
    net["layers"][2]["op"] = "mbconvv"
    (tmp_path / "net.json").write_text(json.dumps(net))
    words = ["--cfg", tmp_path / "net.json", "--data", digits]
    code, text = run("train", words, tmp_path, monkeypatch, capsys)
    assert code == 4 and "mb3" in text and "did you mean 'mbconv'" in text


@pytest.mark.parametrize("script", ["train", "val", "detect"])
def test_bad_weights_end_with_code_4(script, digits, tmp_path, monkeypatch, capsys):
    """Missing, torn, too short."""
    rest = ["--source", digits / "images"] if script == "detect" else ["--data", digits]
    code, text = run(script, ["--weights", tmp_path / "none.pt", *rest], tmp_path, monkeypatch, capsys)
    assert code == 4 and "no checkpoint at" in text
    path = tmp_path / "a.pt"
    save(path, Checkpoint(small_net(3), randomised(small_net(3)).state_dict(), ("a", "b", "c"), 64))
    path.write_bytes(path.read_bytes()[:-500])
    code, text = run(script, ["--weights", path, *rest], tmp_path, monkeypatch, capsys)
    assert code == 4 and "torn" in text
    (tmp_path / "b.weights").write_bytes(b"\0" * 1000)
    code, text = run(script, ["--weights", tmp_path / "b.weights", *rest], tmp_path, monkeypatch, capsys)
    assert code == 4 and "too short" in text and "needs" in text


def test_a_set_without_one_box_is_refused(digits, tmp_path, monkeypatch, capsys):
    import shutil
    copy = tmp_path / "empty"
    shutil.copytree(digits, copy)
    file = copy / "annotations" / "instances_train.json"
    content = json.loads(file.read_text())
    content["annotations"] = []
    file.write_text(json.dumps(content))
    code, text = run("train", ["--cfg", "micro-yolo", "--data", copy], tmp_path, monkeypatch, capsys)
    assert code == 3 and "not one box to learn from" in text


def test_out_of_memory_names_the_flags_that_help(digits, tmp_path, monkeypatch):
    import train as script
    from training import engine, prepare
    (tmp_path / "net.json").write_text(to_json(small_net(10)))
    words = ["--cfg", tmp_path / "net.json", "--data", digits, "--imgsz", "96", "--batch-size", "4",
             "--workers", "0", "--project", tmp_path]
    monkeypatch.setattr(sys, "argv", ["train.py", *map(str, words)])

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    monkeypatch.setattr(engine, "fit", full)
    with pytest.raises(EnvironmentFault, match="at --batch-size 1 .*--batch-size 1 --nominal-batch 16"):
        prepare.prepare(script.parse()).train()                # 4, 2 and 1 were tried


def test_nothing_is_written_into_the_data_set(digits, tmp_path, monkeypatch, capsys):
    before = {p: p.stat().st_mtime_ns for p in sorted(digits.rglob("*"))}
    (tmp_path / "net.json").write_text(to_json(small_net(10)))
    words = ["--cfg", tmp_path / "net.json", "--data", digits, "--imgsz", "96", "--epochs", "1",
             "--workers", "0", "--project", tmp_path / "runs"]
    monkeypatch.setattr(sys, "argv", ["train.py", *map(str, words)])
    cli.run(importlib.import_module("train").main)
    assert {p: p.stat().st_mtime_ns for p in sorted(digits.rglob("*"))} == before
    folder = tmp_path / "runs" / "exp"
    for name in ("args.json", "net.json", "log.jsonl", "results.csv", "results.png", "pr_curve.png",
                 "f1_curve.png", "confusion.png", "predictions.jpg", "report.html", "metrics.json"):
        assert (folder / name).stat().st_size > 0, name
    assert list(folder.glob("events.out.tfevents*")) and (folder / "weights" / "last.pt").is_file()
    page = (folder / "report.html").read_text()
    assert page.count("data:image/") >= 5 and "http" not in page.split("<body>")[1].replace("http-equiv", "")


def train_words(net, data, project, *more):
    """A tiny run's command line."""
    return ["--cfg", net, "--data", data, "--imgsz", "96", "--epochs", "1", "--workers", "0",
            "--batch-size", "4", "--no-report", "--project", project, *more]


def call(words, monkeypatch):
    """Runs train.py in this process; its exit code."""
    monkeypatch.setattr(sys, "argv", ["train.py", *map(str, words)])
    try:
        cli.run(importlib.import_module("train").main)
    except SystemExit as ended:
        return ended.code
    return 0


def test_a_finished_run_survives_a_mistake_in_the_next_command(digits, tmp_path, monkeypatch, capsys):
    """--exist-ok starts over in the same folder, but only once data and network are known to be good."""
    (tmp_path / "net.json").write_text(to_json(small_net(10)))
    words = train_words(tmp_path / "net.json", digits, tmp_path / "runs", "--name", "a", "--exist-ok")
    assert call(words, monkeypatch) == 0
    last = tmp_path / "runs" / "a" / "weights" / "last.pt"
    before = last.read_bytes()
    assert call([*words, "--data", tmp_path / "nowhere"], monkeypatch) == 3
    assert call([*words, "--cfg", "micro-yolooo"], monkeypatch) == 4
    assert last.read_bytes() == before
    assert call([*words, "--weights", last], monkeypatch) == 0, "a run may start from the weights it replaces"
    rows = (tmp_path / "runs" / "a" / "log.jsonl").read_text().splitlines()
    assert len(rows) == 1, "rows of the run it replaced"


def test_resume_needs_only_the_run_folder_and_heeds_what_is_typed(digits, tmp_path, monkeypatch, capsys):
    (tmp_path / "net.json").write_text(to_json(small_net(10)))
    words = train_words(tmp_path / "net.json", digits, tmp_path / "runs", "--fit-anchors")
    assert call(words, monkeypatch) == 0
    (tmp_path / "net.json").unlink()                       # the checkpoint has the network
    again = ["--resume", tmp_path / "runs" / "exp"]
    assert call(again, monkeypatch) == 0
    assert call([*again, "--epochs", "100"], monkeypatch) == 2      # the parser's default, and yet a change
    assert "--epochs 1, now 100" in capsys.readouterr().err
    assert call([*again, "--epochs", "2", "--accept"], monkeypatch) == 0
    rows = (tmp_path / "runs" / "exp" / "log.jsonl").read_text().splitlines()
    assert len(rows) == 2


@pytest.mark.parametrize(("more", "code", "sentence"), [
    (["--multi-scale", "--seed", "2000000000", "--momentum", "0", "--optimizer", "sgd"], 0, ""),
    (["--separate"], 2, "--separate needs --weights"), (["--obj", "nan"], 2, "--obj nan: needs 0 or more")])
def test_flags_at_their_limits(more, code, sentence, digits, tmp_path, monkeypatch, capsys):
    (tmp_path / "net.json").write_text(to_json(small_net(10)))
    assert call(train_words(tmp_path / "net.json", digits, tmp_path / "runs", *more), monkeypatch) == code
    assert sentence in capsys.readouterr().err


def test_an_input_the_network_cannot_divide_is_refused(digits, tmp_path, monkeypatch, capsys):
    *body, head = small_net(10)                            # stride 8; three more poolings make it 64
    pools = [Layer(f"pool{i}", "maxpool", ("ds5" if i == 7 else f"pool{i - 1}",), stride=2)
             for i in (7, 8, 9)]
    (tmp_path / "net.json").write_text(to_json((*body, *pools, replace(head, inputs=("pool9",)))))
    assert call(train_words(tmp_path / "net.json", digits, tmp_path / "runs"), monkeypatch) == 2
    assert "needs a multiple of 64" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "code", "said"), [
    (errno.EROFS, 5, "name another place"), (errno.EACCES, 5, "name another place"),
    (errno.ENAMETOOLONG, 5, "name another place"), (errno.EISDIR, 5, "name another place"),
    (errno.ENOSPC, 7, "the disk is full"), (errno.ENOENT, 3, "No such file")])
def test_any_error_of_the_system_is_a_sentence_with_the_file_s_name(number, code, said, capsys):
    def main() -> None:
        raise OSError(number, os.strerror(number), "/some/file")
    with pytest.raises(SystemExit) as ended:
        cli.run(main)
    error = capsys.readouterr().err
    assert ended.value.code == code and said in error and "/some/file" in error and error.count("\n") == 1


def test_a_torn_file_of_settings_is_a_sentence(tmp_path):
    for text in ("", "{", "[1]", '{"a": 1'):
        (tmp_path / "args.json").write_text(text)
        with pytest.raises(DataError, match="args.json"):
            runs.read_object(tmp_path / "args.json")


def test_a_name_that_the_locale_lacks_is_spelled_out(root):
    code = "from utils import cli; cli.run(lambda: print('\\u6570\\u636e ok'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, check=False,
                          env={**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"})
    assert done.returncode == 0 and b"ok" in done.stdout and not done.stderr, done.stderr


def test_what_is_printed_cannot_steer_the_terminal(root):
    text = "\x1b]0;title\x07 a\x1b[31mb \x9b2J \u202egnp.exe\r\x1b[K\tend\n"
    code = (f"import sys; from utils import cli\ndef main():\n print({text!r}); sys.stderr.write({text!r})\n"
            f" raise cli.sys.modules['utils.errors'].DataError({text!r})\nimport utils.errors; cli.run(main)")
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, check=False, text=True,
                          env={**os.environ, "PYTHONUTF8": "1"})
    assert done.returncode == 3
    for out in (done.stdout, done.stderr):
        rest = out.replace("\x1b[K", "")
        assert not set("\x1b\x07\x9b\u202e") & set(rest) and "\\x1b]0;title" in out and "\t" in out, out


def test_a_device_is_found_without_torch_as_with_it(monkeypatch):
    from utils import runs
    from utils.errors import EnvironmentFault, UsageError
    monkeypatch.setattr(runs, "cuda_devices", lambda: 0)
    assert str(runs.pick_device("auto", False)) == str(runs.pick_device("cpu", False)) == "cpu"
    with pytest.raises(EnvironmentFault, match="0 CUDA devices"):
        runs.pick_device("1", False)
    monkeypatch.setattr(runs, "cuda_devices", lambda: 2)
    found = [runs.pick_device(name, False) for name in ("auto", "cuda", "1", "cuda:1")]
    assert [str(device) for device in found] == ["cuda:0", "cuda:0", "cuda:1", "cuda:1"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    # torch.cuda.set_device refuses a device without an index
    assert [runs.pick_device(name).index for name in ("auto", "cuda", "1")] == [0, 0, 1]
    for name, with_torch in (("tpu", False), ("cuda:x", False), ("no", True)):
        with pytest.raises(UsageError, match="needs auto, cpu, cuda"):
            runs.pick_device(name, with_torch)


def test_the_driver_is_asked_for_its_devices_and_its_absence_is_none():
    from utils.runs import cuda_devices
    assert cuda_devices() == torch_count()


def torch_count() -> int:
    """What torch says."""
    import torch
    return torch.cuda.device_count() if torch.cuda.is_available() else 0
