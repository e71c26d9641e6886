"""What a continuation must find as it was: both splits, every image, the teacher; and what fits no more."""
import dataclasses
import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import train as script
import val as measure
from models import checkpoint as checkpoints
from models.records import to_json
from tests.helpers.coco_files import content
from tests.helpers.label_writers import make_yolo
from tests.helpers.nets import small_net
from tests.helpers.scripts import call
from training import engine
from training.config import TrainConfig, misfits
from training.run import Run


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    """A run of one epoch, and what resuming it for another says: (folder, resume -> (exit code, text))."""
    for split in ("train", "val"):
        made = content(4, 5)
        for image in made["images"]:
            image["file_name"] = f"{split}{image['id']}.png"
            pixels = np.random.default_rng(image["id"] + len(split)).integers(0, 255, (80, 100, 3), np.uint8)
            (tmp_path / "set/images").mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / "set/images" / image["file_name"])
        (tmp_path / "set/annotations").mkdir(exist_ok=True)
        (tmp_path / f"set/annotations/instances_{split}.json").write_text(json.dumps(made))
    (tmp_path / "net.json").write_text(to_json(small_net(2)))
    words = ["train.py", "--data", tmp_path / "set", "--imgsz", 96, "--batch-size", 4, "--workers", 0,
             "--project", tmp_path / "runs", "--no-report", "--threads", 1, "--precision", "fp32"]
    teacher = tmp_path / "teacher.pt"
    assert call(monkeypatch, script.main, [*words, "--cfg", tmp_path / "net.json", "--epochs", 1,
                                           "--name", "teacher"]) == 0
    os.replace(tmp_path / "runs/teacher/weights/best.pt", teacher)
    assert call(monkeypatch, script.main, [*words, "--cfg", tmp_path / "net.json", "--epochs", 1,
                                           "--teacher", teacher]) == 0
    capsys.readouterr()

    def resume(*more: object) -> tuple[int, str]:
        code = call(monkeypatch, script.main, ["train.py", "--resume", tmp_path / "runs/exp", "--no-report",
                                               *more])
        return code, "".join(capsys.readouterr())
    return tmp_path, resume


def test_other_labels_pixels_or_another_teacher_are_told_and_best_begins_anew(started, monkeypatch):
    folder, resume = started
    run = folder / "runs/exp"
    [os.utime(path) for path in (folder / "set/images").iterdir()]     # a copy has other times
    assert resume()[0] == 0
    before = (run / "args.json").read_text()
    assert call(monkeypatch, measure.main, [
        "val.py", "--weights", run / "weights/last.pt", "--data", folder / "set", "--workers", 0,
        "--project", folder / "runs", "--name", "exp", "--exist-ok"]) == 2
    assert (run / "args.json").read_text() == before
    val, teacher = folder / "set/annotations/instances_val.json", folder / "teacher.pt"
    images = [next((folder / "set/images").glob(f"{split}*")) for split in ("train", "val")]
    for file, word in ((val, "val"), (images[0], "images"), (images[1], "val"), (teacher, "teacher")):
        before = file.read_bytes()
        if file is val:
            file.write_text(json.dumps({**json.loads(before), "annotations": []}))
        elif file is teacher:
            found = checkpoints.load(file)
            checkpoints.save(file, dataclasses.replace(found, extra={"other": 1}))
        else:                                              # of the same size in px, and in bytes
            pixels = np.asarray(Image.open(file)).copy()
            pixels[0, 0] ^= 1
            Image.fromarray(pixels).save(file)
        code, said = resume()
        assert code == 5 and f"not be bit-exact: {word} was" in said, said
        assert ";" not in said.split("exact:")[1], said    # and nothing else
        file.write_bytes(before)
    assert resume()[0] == 0
    val.write_text(json.dumps({**json.loads(val.read_text()), "annotations": []}))
    begun: list[float] = []
    real = Run.ended
    monkeypatch.setattr(Run, "ended", lambda run: begun.append(run.state.best) or real(run))
    code, said = resume("--accept")
    assert code == 0 and "no longer bit-exact: val was" in said and begun == [-1.0]


UNFIT = [(lambda t: t.pop("guard"), "guard"), (lambda t: t.update(guard=3), "guard"),
         (lambda t: t.pop("skipped"), "skipped"), (lambda t: t.update(epoch="one"), "epoch"),
         (lambda t: t["optimizer"].update(param_groups=t["optimizer"]["param_groups"][:1]), "param"),
         (lambda t: t.pop("ema"), "ema"), (lambda t: t.update(model=[]), "state_dict"),
         (lambda t: t.clear(), "epoch")]


def test_a_state_of_another_version_is_a_sentence_and_an_older_guard_no_change(started):
    folder, resume = started
    last = folder / "runs/exp/weights/last.pt"
    whole = last.read_bytes()
    for change, word in UNFIT:
        found = checkpoints.load(last)
        change(found.training)
        checkpoints.save(last, found)
        code, said = resume()
        assert code == 4 and "not this version's" in said and word in said, (word, said)
        last.write_bytes(whole)
    found = checkpoints.load(last)
    [found.training["guard"].pop(key) for key in ("images", "val", "teacher")]     # before they were kept
    checkpoints.save(last, found)
    assert resume()[0] == 0


@pytest.mark.parametrize(("figures", "best"), [([.2, .2, .1], 1), ([None] * 3, 2), ([0.0, 0.0, 0.0], 2)])
def test_of_equal_epochs_the_later_is_best_also_where_nothing_can_be_measured(figures: list, best: int):
    saved: list[tuple[int, bool]] = []
    state = SimpleNamespace(epoch=0, batch=0, best=-1.0, sums={}, skipped=0, device=None, ema=SimpleNamespace(
        module=None), optimizer=SimpleNamespace(param_groups=[{"lr": 0}]))
    task = SimpleNamespace(
        config=SimpleNamespace(epochs=3, val_interval=1, metric="map50"), main=True, log=lambda row: None,
        validate=lambda _: {"map50": figures[state.epoch]}, signals=SimpleNamespace(poll=lambda: False),
        pause=lambda state: False, save=lambda s, is_best: saved.append((s.epoch - 1, is_best)) or True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "train_one_epoch", lambda *_: None)
        patch.setattr(engine.ddp, "mean_over_ranks", lambda *_: {})
        patch.setattr(engine, "_means", lambda sums: {})
        patch.setattr(engine.ddp, "any_rank", lambda value, _: value)
        engine.fit(state, task)
    assert max(epoch for epoch, is_best in saved if is_best) == best


def test_a_start_that_fails_leaves_no_folder_and_none_lies_among_images(tmp_path, monkeypatch, capsys):
    make_yolo(tmp_path / "set")
    images = [f"{path}\n" for path in (tmp_path / "set/images").rglob("*.png")]
    (tmp_path / "yaml").mkdir()
    (tmp_path / "yaml/list.txt").write_text("".join(images))
    (tmp_path / "yaml/d.yaml").write_text("train: list.txt\nnames: [a, b, c]\n", encoding="utf-8")
    (tmp_path / "net.json").write_text(to_json(small_net(3)))

    def start(project: Path, *more: object) -> tuple[int, str]:
        code = call(monkeypatch, script.main, ["train.py", "--cfg", tmp_path / "net.json", "--data", tmp_path
                                               / "yaml/d.yaml", "--project", project, "--workers", 0, *more])
        return code, capsys.readouterr().err
    for place in ("set/images/train", "set/images/val/runs"):
        code, said = start(tmp_path / place)
        assert code == 2 and "inside the data set" in said
    (tmp_path / "runs/kept").mkdir(parents=True)
    (tmp_path / "runs/kept/mine.txt").write_text("")
    for more in (("--weights", tmp_path / "no.pt"), ("--max-pixels", 9)):
        code, said = start(tmp_path / "runs", *more)
        assert code in (3, 4) and [path.name for path in (tmp_path / "runs").iterdir()] == ["kept"], said
    assert start(tmp_path / "runs", "--max-pixels", 9, "--name", "kept", "--exist-ok")[0] == 3
    assert (tmp_path / "runs/kept/mine.txt").is_file()
    mine = tmp_path / "runs/kept/weights/best.pt"
    mine.parent.mkdir()
    mine.write_text("mine")
    code, said = start(tmp_path / "runs", "--name", "kept", "--exist-ok")
    assert code == 2 and "kept holds weights/best.pt, which no such run wrote" in said
    monkeypatch.chdir(mine.parent.parent)
    code, said = start(Path("."), "--name", "", "--exist-ok")
    assert code == 2 and "--name : needs a name" in said and mine.read_text() == "mine"


@pytest.mark.parametrize(("name", "value"), [
    ("epochs", "25"), ("epochs", 2.5), ("lr", [1]), ("data", 5), ("freeze", "conv1"), ("class_weights", [1]),
    ("optimizer", "adam"), ("multi_scale", 1), ("seed", None), ("trust", "me")])
def test_a_flag_of_another_kind_in_args_json_is_named(tmp_path: Path, monkeypatch, capsys, name: str, value):
    sound = json.loads(json.dumps({**dataclasses.asdict(TrainConfig(data="set", imgsz=96)), "time": 900}))
    assert misfits(sound) == [] and misfits({**sound, "lr": 1, "time": 900.5, "freeze": ["conv1"]}) == []
    (tmp_path / "args.json").write_text(json.dumps({**sound, name: value}))
    assert call(monkeypatch, script.main, ["train.py", "--resume", tmp_path]) == 3
    assert f"args.json: {name} is {str(value)!r}, as no run writes it" in capsys.readouterr().err
