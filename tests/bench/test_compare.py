"""The conclusion of a comparison: a planted winner is named, a planted tie is one, the page shows both."""
import json
import stat
import sys
import textwrap
from types import SimpleNamespace

import numpy as np
import pytest

from bench.compare import peers, report
from bench.compare.config import CompareConfig
from bench.compare.judge import at_limits, packed, seed_deviation, standings, unpacked, verdict
from bench.compare.record import make_record, mean_curves
from bench.compare.trainings import Comparison, folder_of, read_rates
from data.coco.locate import locate
from data.coco.read import read_coco
from data.scenes import make_scenes
from evaluation.curves import Matches, map50_of
from tests.bench.compare_fake import run_of, runs_of
from utils.errors import EnvironmentFault, UsageError

SKILLS = {"winner": .75, "tied-a": .5, "tied-bb": .5, "loser": .3}
SPEED = {"winner": {"onnx": 9.0}, "tied-a": {"onnx": 4.0}, "tied-bb": {"onnx": 12.}, "loser": {"onnx": 6.0}}


@pytest.fixture(scope="module")
def found():
    return make_record(runs_of(SKILLS), SPEED, {})["epochs"]


def test_the_planted_winner_wins_alone_and_the_planted_tie_is_one(found):
    assert found["best"] == "winner" and not found["ties"]
    ties = {frozenset((one["first"], one["other"])) for one in found["verdicts"] if one["tie"]}
    assert ties == {frozenset(("tied-a", "tied-bb"))}
    assert found["front"] == ["tied-a", "winner"]
    words = report.WORDS["en"]
    assert "winner has the highest" in report.conclusion(found, words)
    assert "every other network is more than two" in report.conclusion(found, words)


def test_the_same_is_judged_by_ap(found):
    """AP is half of AP50 here, in every draw: so are differences, and their errors up to fewer draws."""
    by_ap = found["by_ap"]
    assert by_ap["best"] == "winner" and not by_ap["ties"]
    for half, whole in zip(by_ap["verdicts"], found["verdicts"]):
        assert half["difference"] == pytest.approx(whole["difference"] / 2) and half["tie"] is whole["tie"]
        assert half["by_images"] == pytest.approx(whole["by_images"] / 2, rel=.25)
    text = report.conclusion(found, report.WORDS["en"])
    assert text.count("winner has the highest mean mAP@0.5") == 2 and "mean mAP@0.5:0.95, 0." in text
    old = [{**run, "matches": packed(unpacked(run["matches"])[:1])} for run in runs_of(SKILLS, seeds=1)]
    only = make_record(old, SPEED, {})["epochs"]           # as comparisons of before kept them
    assert only["by_ap"] is None and "0.95" not in report.conclusion(only, report.WORDS["en"])


def test_at_a_budget_the_best_that_keeps_it_is_named_with_its_ties(found):
    by_ms = {row["limit"]: (row["best"], row["ties"], row["of"]) for row in found["limits"]["ms"]}
    assert by_ms == {6.0: ("tied-a", [], 2), 9.0: ("winner", [], 3), 12.0: ("winner", [], 4)}
    costs = {"winner": 3.0, "tied-a": 2.0, "tied-bb": 2.0, "loser": None}
    none, tie = at_limits(standings(runs_of(SKILLS)), costs, [1.0, 2.0])
    assert none["best"] is None and none["of"] == 0
    assert {tie["best"], *tie["ties"]} == {"tied-a", "tied-bb"} and tie["of"] == 2


def test_chance_between_seeds_alone_makes_a_tie():
    """The same difference that the images are sure of is none where trainings of one network differ more."""
    skills = {"a": .55, "b": .5}
    steady, shaky = (standings(runs_of(skills, deviation=d)) for d in (0.0, .12))
    for found, tie in ((steady, False), (shaky, True)):
        assert verdict(*found, seed_deviation(found)).tie is tie
    assert seed_deviation(standings(runs_of(skills, seeds=1))) is None
    assert verdict(*standings(runs_of(skills, seeds=1)), None).by_seeds is None


def test_a_networks_images_are_drawn_for_all_at_once():
    """Paired: what all find hard is no difference between them, so the error is below that of two sets."""
    a, b = standings(runs_of({"a": .5, "b": .48}, seeds=1))
    apart = np.hypot(a.draws.std(), b.draws.std())
    assert verdict(a, b, None).by_images < .8 * apart
    # Equal networks: the standard error holds the difference about as often as it says.
    inside = [verdict(*standings([run_of("a", s, .5), run_of("b", s, .5)]), None).tie for s in range(20)]
    assert sum(inside) >= 16


def test_packed_matches_have_the_same_average_precision_in_every_draw():
    rng = np.random.default_rng(3)
    n, m = 400, 60
    image, label = rng.integers(0, 20, n), rng.integers(0, 3, n)
    target = np.where(rng.random(n) < .12, rng.integers(0, m, n), -1)
    at_50 = Matches(np.arange(n), image, label, rng.random(n), target, rng.random(n) < .05,
                   rng.integers(0, 20, m), rng.integers(0, 3, m), np.arange(m), 20, 3)
    draws = rng.multinomial(20, np.full(20, .05), size=50)
    # Right at a higher IoU alone: a detection that ranks below the last one of AP50.
    above = at_50._replace(target=np.where(rng.random(n) < .1, rng.integers(0, m, n), -1))
    packs = unpacked(packed([at_50, above]))
    assert len(packs) == 2 and len(packs[0].image) < n
    for less, full in zip(packs, (at_50, above)):
        np.testing.assert_allclose(map50_of(less, draws), map50_of(full, draws), atol=1e-12)


def test_curves_are_means_over_seeds_with_their_range():
    runs = [{"net": "a", "curves": [{"epoch": 0, "f1": f}, {"epoch": 1, "f1": f + .1}]} for f in (.2, .4)]
    runs[0]["curves"].append({"epoch": 2, "f1": .9})        # one seed alone has it
    np.testing.assert_allclose(mean_curves(runs, "f1")["a"], [(1, .3, .2, .4), (2, .4, .3, .5)])
    assert mean_curves(runs, "dfl") == {}


def test_figures_are_chinese_where_a_font_is_and_the_page_says_where_none_is(monkeypatch):
    record = {"nets": [], "latency_threads": 1, "environment": {}}
    for fonts, words in (([], report.WORDS["en"]), (["Noto Sans CJK SC"], report.WORDS["zh"])):
        monkeypatch.setattr("bench.compare.plots.cjk_fonts", lambda fonts=fonts: fonts)
        assert report.figure_words("zh") is words
        assert ("英文：本机没有安装中文字体" in report.facts(record, "zh").values()) is (not fonts)
        assert "图中文字" not in report.facts(record, "en")


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_the_page_holds_table_figures_front_and_conclusion(lang, tmp_path):
    runs = runs_of(SKILLS, seeds=2, budget="minutes") + (runs_of(SKILLS, seeds=2) if lang == "en" else [])
    record = {"kind": "compare", "data": "set", "imgsz": 64, "nets": list(SKILLS), "seeds": 2, "epochs": 12,
              "minutes": 1.0, "minutes_of": "a board", "latency_threads": 1, "runs_done": len(runs),
              "failed": 0, "budgets": make_record(runs, SPEED, {"ms": [5.0]}),
              "environment": {"command": "compare.py"}}
    lines = report.write(record, runs, tmp_path, lang)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert f'<html lang="{lang}">' in page and page.count("data:image/png") == {"en": 2, "zh": 1}[lang] * 9
    assert "http" not in page.split("<body>")[1] and "$" not in page
    assert {"en": "highest mean mAP@0.5", "zh": "平均 mAP@0.5 最高"}[lang] in page
    assert any("winner" in line for line in lines)
    assert {"en": "1 of a board: epochs by", "zh": "1，以 a board 计"}[lang] in page
    table = (tmp_path / "table.csv").read_text().splitlines()
    assert len(table) == 1 + len(runs) // 2 and "map_small" in table[0]
    kept = json.loads((tmp_path / "comparison.json").read_text())
    assert len(kept["runs"]) == len(runs) and "matches" not in kept["runs"][0]
    assert kept["budgets"]["minutes"]["limits"]["ms"][0]["limit"] == 5.0


def test_every_word_is_in_both_languages():
    assert report.WORDS["en"].keys() == report.WORDS["zh"].keys()


@pytest.mark.parametrize(("given", "said"), [
    ({}, "--nets is missing"), ({"nets": ("a", "a"), "epochs": 1}, "given twice"),
    ({"nets": ("a",)}, "--epochs or --minutes"),
    ({"nets": ("a",), "epochs": 1, "rates": "r.json"}, "of which --minutes"),
    ({"nets": ("a",), "measure_rates": "r.json", "rates": "r.json"}, "of --nets alone"),
    ({"nets": ("a",), "epochs": 1, "weights": "a.pt"}, "starts at random"),
    ({"nets": ("a",), "epochs": 1, "limits": ("mss=3",)}, "ms=NUMBER"),
    ({"nets": ("a",), "epochs": 1, "peers": "nowhere"}, "no bin/yolo")])
def test_flags_that_leave_nothing_to_compare_are_told(given, said):
    with pytest.raises(UsageError, match=said):
        CompareConfig(**given).check()


YOLO = """\
    #!{python}
    import sys, pathlib, shutil
    words = dict(w.split("=", 1) for w in sys.argv[1:] if "=" in w)
    what = next(w for w in sys.argv[1:] if w in ("train", "val", "export"))
    if words.get("model") == "broken.yaml":
        sys.exit("no such model")
    if what == "train":
        folder = pathlib.Path(words["project"], "train")
        (folder / "weights").mkdir(parents=True)
        (folder / "weights" / "best.pt").touch()
        (folder / "results.csv").write_text("epoch, time, train/box_loss, metrics/precision(B), "
            "metrics/recall(B), metrics/mAP50(B), metrics/mAP50-95(B)\\n1, 2.5, 1.25, 0.5, 0.5, 0.4, 0.2\\n")
    if what == "val":                                      # a perfect detector: its own labels, score 0.9
        data = pathlib.Path(words["data"]).parent
        out = pathlib.Path(words["project"], "val", "labels")
        out.mkdir(parents=True)
        for file in (data / "labels" / "val").iterdir():
            if text := file.read_text().strip():
                (out / file.name).write_text("".join(line + " 0.9\\n" for line in text.splitlines()))
    """


@pytest.fixture(scope="module")
def tuner(tmp_path_factory):
    """What a peer's training asks of a tuner: two sets, a folder, a device."""
    folder = tmp_path_factory.mktemp("peer")
    make_scenes(folder / "set", train=2, val=5, size=160, seed=1)
    where = locate(str(folder / "set"))
    train, val = read_coco(*where.train), read_coco(*where.val)
    return SimpleNamespace(train_set=SimpleNamespace(coco=train), val_set=SimpleNamespace(coco=val),
                           folder=folder, device=SimpleNamespace(type="cpu"))


def config_of(folder, **more) -> CompareConfig:
    (folder / "venv" / "bin").mkdir(parents=True, exist_ok=True)
    yolo = folder / "venv" / "bin" / "yolo"
    yolo.write_text(textwrap.dedent(YOLO).format(python=sys.executable))
    yolo.chmod(yolo.stat().st_mode | stat.S_IXUSR)
    return CompareConfig(peers=str(folder / "venv"), imgsz=96, epochs=1, **more)


def test_a_peer_is_trained_by_its_own_command_and_judged_by_our_evaluation(tuner, tmp_path):
    """A perfect answer in its text files scores one: classes, images and sides are read as it wrote them."""
    config = config_of(tmp_path)
    config.check()
    point = {"net": peers.label(config.peer_nets[0]), "seed": 3, "budget": "epochs"}
    row = peers.run(tuner, config, point, tmp_path / "run")
    assert row["map50"] == pytest.approx(1) and row["map50_95"] > .98
    assert row["curves"] == [{"epoch": 0, "seconds": 2.5, "box": 1.25, "precision": .5, "recall": .5,
                              "map50": .4, "map50_95": .2, "f1": .5}]
    assert row["onnx"] is None and row["parameters"] is None
    assert len(list((tuner.folder / "yolo/images/val").iterdir())) == 5


def test_minutes_of_another_machine_are_epochs_at_its_rates(tuner, tmp_path):
    """A flat file and one as --measure-rates writes it say the same; 2 images at 1 a second: 30 a minute."""
    config = config_of(tmp_path, nets=("micro-yolo", "nano-net.json"), minutes=1.5,
                       rates=str(tmp_path / "board.json"))
    peer, other = map(peers.label, config.peer_nets)
    rates = {"micro-yolo": 1, "nano-net": .01, peer: 2.0, other: .5, "unasked": 0}
    for kept in (rates, {"machine": "a board", "rates": rates, "imgsz": 96, "batch_size": 16}):
        (tmp_path / "board.json").write_text(json.dumps(kept))
        found = read_rates(config)
        assert found.machine == kept.get("machine", "board") and "unasked" not in found.images
    many = SimpleNamespace(train_set=range(2))
    comparison = Comparison(many, config, {}, found)
    assert [comparison.epochs(name) for name in comparison.names] == [45, 1, 90, 22]
    assert comparison.minutes("micro-yolo", 45) == pytest.approx(1.5)
    assert folder_of(comparison, {"net": peer, "seed": 1, "budget": "minutes"}).endswith("-s1-e90")
    assert Comparison(many, config, {}).epochs("micro-yolo") is None
    for lost, said in (({**rates, peer: None, other: -1}, f"of {peer}, {other}"),
                       ({"imgsz": 64, "rates": rates}, "measured with imgsz 64, which is 96 here")):
        (tmp_path / "board.json").write_text(json.dumps(lost))
        with pytest.raises(UsageError, match=said):
            read_rates(config)
    (tmp_path / "board.json").unlink()
    with pytest.raises(UsageError, match="no such file"):
        read_rates(config)


def test_a_peer_that_fails_says_what_it_was_and_what_it_said(tuner, tmp_path):
    config = config_of(tmp_path, peer_nets=("broken.yaml",))
    with pytest.raises(EnvironmentFault, match="model=broken.yaml.*no such model"):
        peers.run(tuner, config, {"net": "ultralytics:broken", "seed": 0, "budget": "epochs"}, tmp_path / "r")
