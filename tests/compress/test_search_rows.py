"""What a search varies, what its trials start from, and how its rows are ranked, compared and shown."""
import csv
import json
import random
import shutil
from dataclasses import replace
from functools import partial
from itertools import product
from types import SimpleNamespace

import pytest
import torch

from compress.kernels import with_kernels
from compress.search.config import SAME, SearchConfig
from compress.search.plots import figure4_png
from compress.search.queue import Queue
from compress.search.rows import (
    best_of,
    between_seeds,
    ceiling,
    front,
    rank_agreement,
    ranked,
    spread,
    table_lines,
    trials_csv,
)
from compress.search.search import Search, candidates, known_trials, trained
from data.scenes import make_scenes
from models.checkpoint import Checkpoint, previous, save
from models.count import parameters
from models.network import from_state
from models.zoo.tiny import substitute
from tests.helpers.nets import randomised, small_net
from training.config import Recipe
from training.finetune import Outcome, Tuner, claim
from training.run import Run
from utils.errors import DataError, NumericError, UsageError

SEARCHED = ("mb3", "ds5")


def made_search(weights: Checkpoint | None = None, **flags) -> Search:
    """A search of small_net without data."""
    config = SearchConfig(**{"layers": SEARCHED, **flags})
    data = SimpleNamespace(coco=SimpleNamespace(names=("a", "b", "c")))
    return Search(SimpleNamespace(train_set=data, say=lambda text: None), config, small_net(), weights)


def test_all_choices_start_as_the_same_function_where_the_given_kernels_are_the_smallest():
    model = randomised(substitute(small_net(), kernels={"mb3": 3}))
    made = made_search(Checkpoint(model.net, model.state_dict(), ("a", "b", "c")))
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(image)[0]
        for sides in product((3, 5), repeat=2):
            net = made.net(made.choice(dict(zip(("mb3.kernel", "ds5.kernel"), sides))))
            torch.testing.assert_close(from_state(net, made.start(net, 0))(image)[0], expected)


def test_larger_kernels_than_a_choice_has_give_their_centres():
    model = randomised(substitute(small_net(), kernels={"mb3": 5, "ds5": 5}))
    made = made_search(Checkpoint(model.net, model.state_dict(), ("a", "b", "c")))
    net = made.net(made.choice({"mb3.kernel": 3, "ds5.kernel": 5}))
    started, cut = made.start(net, 0), with_kernels(model.net, model.state_dict(), {"mb3": 3})[1]
    assert all(torch.equal(started[key], cut[key]) for key in cut if "num_batches" not in key)


def test_block_types_are_part_of_the_space_where_several_are_given():
    made = made_search(ops=["dsconv", "mbconv"])
    space = made.space()
    assert list(space) == ["mb3.kernel", "ds5.kernel", "mb3.op", "ds5.op"]
    choice = made.choice({"mb3.kernel": 3, "ds5.kernel": 5, "mb3.op": "dsconv", "ds5.op": "mbconv"})
    assert choice.label == "d3m5" and [layer.op for layer in made.net(choice)[2:5:2]] == ["dsconv", "mbconv"]
    assert made_search(ops=["mbconv"]).choice({"mb3.kernel": 3, "ds5.kernel": 5}).ops["ds5"] == "mbconv"
    assert made_search().choice({"mb3.kernel": 3, "ds5.kernel": 5}).ops["ds5"] == "dsconv"
    names = {made.choice(point).label for point in candidates(space, None, 0)}
    assert len(names) == 16, "every choice has a folder of its own"


def test_a_trial_whose_numbers_fail_is_reported_and_the_others_continue(tmp_path):
    def tune(net, state, name, epochs, seed):
        if name == "trials/k35-s0":
            raise NumericError("three steps were not finite")
        return Outcome(net, {}, {"map50": parameters(net) / 1e6, "map50_95": 0.1}, epochs, 1.0)
    made = made_search(epochs=2, imgsz=96)
    made.tuner.__dict__.update(tune=tune, done=lambda name: True, share=lambda value: value)
    queue = Queue(f"sqlite:///{tmp_path}/study.db", "s", made.space(), ["maximize"], {}, tmp_path)
    rows, failed = trained(made, queue, lambda point: (made.choice(point), 0))
    assert [row["label"] for row in rows] == ["33", "53", "55"]
    assert [(row["label"], row["error"]) for row in failed] == [("35", "three steps were not finite")]


def test_candidates_are_the_whole_grid_or_a_draw_from_it():
    space = {"a": [3, 5], "b": [1, 2, 3]}
    grid = [dict(zip(space, values)) for values in product(*space.values())]
    assert candidates(space, None, 0) == grid == candidates(space, 99, 0)
    drawn = candidates(space, 4, 0)
    assert len(drawn) == 4 and all(point in grid for point in drawn) and len({*map(str, drawn)}) == 4
    assert drawn == candidates(space, 4, 0) and any(candidates(space, 4, s) != drawn for s in range(1, 5))


def row(label: str, map50: float, size: int = 10, seed: int = 0, **more) -> dict:
    return {"label": label, "kernels": {"a": int(label[0]), "b": int(label[1])}, "ops": {"a": "conv"},
            "seed": seed, "map50": map50, "map50_95": map50 / 2, "parameters": size, "macs": size * 1000,
            "loose_macs": size, "epochs": 2, "seconds": 1.0, **more}


def test_the_ceiling_of_a_ranking_is_the_root_of_what_its_seeds_repeat():
    one = [row("33", .1), row("35", .2), row("53", .3)]
    assert ceiling(one, "map50") is None, "one seed tells nothing of chance"
    assert ceiling([*one, *({**r, "seed": 1} for r in one)], "map50") == pytest.approx(1)
    off = [*one, row("33", .16, seed=1), row("35", .26, seed=1), row("53", .24, seed=1)]
    share = between_seeds(off, "map50")["explained"]
    assert 0 < share < 1 and ceiling(off, "map50") == pytest.approx((2 * share / (1 + share)) ** .5)


def test_ranks_agree_as_counted_by_hand():
    mine = [row("33", .1), row("35", .2), row("53", .3), row("55", .4)]
    other = [row("33", .1), row("35", .3), row("53", .2), row("55", .4)]
    # Of six pairs five stand alike and one the other way: tau = (5 - 1) / 6. Ranks differ by 0, 1, 1, 0:
    # rho = 1 - 6 (1 + 1) / (4 (16 - 1)).
    found = rank_agreement(mine, other)
    assert found == {"kendall": pytest.approx(4 / 6), "spearman": pytest.approx(0.8), "n": 4}
    assert rank_agreement(mine, mine)["spearman"] == pytest.approx(1)
    twice = [*other, row("35", .0, seed=1), row("53", .9, seed=1)]     # means .15 and .55: 53 is now the best
    assert rank_agreement(mine, twice)["kendall"] == pytest.approx(4 / 6)
    assert rank_agreement(mine, [row(r["label"], .5) for r in mine])["kendall"] is None
    lost = [{**r, "val_loss": 1 - r["map50"]} for r in mine]           # less is better: the same ranks
    assert rank_agreement(lost, other, "val_loss", "map50") == found and ranked(lost, "val_loss")[0] == 3
    with pytest.raises(DataError, match="2 choices"):
        rank_agreement(mine, other[:2])


def test_the_noise_ceiling_is_that_of_the_repeated_choices():
    once = [row("33", .1), row("35", .2), row("53", .3), row("55", .6)]
    assert between_seeds(once, "map50") is None
    found = between_seeds([*once, row("55", .4, seed=1), row("33", .2, seed=1)], "map50")
    # Variances over seeds: .02 and .005, one degree of freedom each; of the first seeds .14 / 3.
    assert (found["n"], found["spearman"]) == (2, None)
    assert found["seed_std"] == pytest.approx(.0125 ** .5)
    assert found["choice_std"] == pytest.approx((.14 / 3) ** .5)
    assert found["explained"] == pytest.approx(1 - .0125 / (.14 / 3))
    again = [row(r["label"], v, seed=1) for r, v in zip(once, (.2, .1, .4, .3))]
    both = between_seeds([*once, *again], "map50")
    assert both["spearman"] == pytest.approx(.6)
    # With all repeated, both seeds tell how far choices lie apart: variances .14 / 3 and .05 / 3.
    assert both["choice_std"] == pytest.approx((.19 / 6) ** .5)
    chance = [*once, *(row(r["label"], 1 - r["map50"], seed=1) for r in once)]
    assert between_seeds(chance, "map50")["explained"] == 0


def test_known_trials_may_stand_in_several_records(tmp_path):
    told = dict.fromkeys(SAME) | {"kind": "search", "kernels": [3, 5], "imgsz": 64}
    one, two = ({**told, "trials": [row("33", .1 + seed, seed=seed)]} for seed in (0, 1))
    paths = [tmp_path / "one.json", tmp_path / "two.json"]
    for path, record in zip(paths, (one, two)):
        path.write_text(json.dumps(record))
    config = SearchConfig(**{key: value for key, value in told.items() if key != "kind"} | {
        "known": tuple(paths), "kernels": (5, 3)})
    assert known_trials(config) == {("33", 0): one["trials"][0], ("33", 1): two["trials"][0]}
    paths[1].write_text(json.dumps({**two, "imgsz": 96}))
    with pytest.raises(UsageError, match="two.json: a search with imgsz 96 where now it is 64"):
        known_trials(config)
    others = ({"method": "one-shot"}, "cut out of one"), ({"training": {"clip": .1}}, "clip 0.1"), (
        {"training": {"ema_decay": .9998}}, "ema_decay 0.9998")
    for other, message in others:
        paths[1].write_text(json.dumps(two | other))
        with pytest.raises(UsageError, match=f"two.json: .*{message}"):
            known_trials(config)


def test_a_run_folder_is_continued_only_while_its_files_hold_the_same(tmp_path):
    """Else the finished trainings of an overwritten parent would be taken for the new one's."""
    make_scenes(tmp_path / "set", train=2, val=1, size=160, seed=0)
    weights = tmp_path / "parent.pt"
    weights.write_bytes(b"one")
    config = Recipe(data=str(tmp_path / "set"), weights=str(weights), threads=1,
                    project=str(tmp_path / "runs"))
    free = ("threads", "project", "name")
    first = claim(config, free)
    config = replace(config, threads=2)
    assert claim(config, free) == first
    weights.write_bytes(b"two")
    second = claim(config, free)
    assert second.name == "exp2"
    annotations = tmp_path / "set" / "annotations" / "instances_val.json"
    annotations.write_text(annotations.read_text() + " ")
    third = claim(config, free)
    assert third.name == "exp3"
    for folder in (first, second):
        shutil.rmtree(folder)
    assert claim(config, free) == third                    # whatever is missing before it


@pytest.mark.parametrize(("threads", "loaded"), [(1, True), (2, False)])
def test_an_unfinished_training_of_another_kind_of_machine_begins_again(tmp_path, threads, loaded):
    """Refusing it would stop every worker that is given the trial of a dead one."""
    net, said, kept, training = small_net(), [], [], {"guard": {"threads": 1}}
    last = Checkpoint(net, randomised(net).state_dict(), ("a", "b", "c"), training=training)
    save(tmp_path / "last.pt", last)
    state = SimpleNamespace(load=lambda found: kept.append(found), epoch=3, batch=0)
    save(tmp_path / "best.pt", last)
    (tmp_path / "last.pt").rename(previous(tmp_path / "last.pt"))      # killed between two renames of a save
    run = SimpleNamespace(last=tmp_path / "last.pt", best=tmp_path / "best.pt", folder=tmp_path,
                          guard={"threads": threads}, state=state,
                          session=SimpleNamespace(world=SimpleNamespace(main=True)),
                          log=SimpleNamespace(rows=[{"seconds": 5.0}], keep_before=lambda e: kept.append(e)))
    run.changed, run.take_up = partial(Run.changed, run), partial(Run.take_up, run)
    spent = Tuner._resume(SimpleNamespace(say=said.append, world=run.session.world), run)
    assert (spent, kept) == ((5.0, [training, 3]) if loaded else (0.0, [0]))
    assert ("begun with other threads" in said[-1]) is not loaded
    # A restore after bad numbers must not bring back what was begun elsewhere.
    assert any(tmp_path.glob("*.pt")) is loaded


def test_the_front_is_what_nothing_beats():
    rng = random.Random(0)
    rows = [row("33", rng.randrange(5) / 5, rng.randrange(1, 6)) for _ in range(40)]
    expected = [i for i, r in enumerate(rows) if not any(
        o["map50"] >= r["map50"] and o["parameters"] <= r["parameters"]
        and (o["map50"], o["parameters"]) != (r["map50"], r["parameters"]) for o in rows)]
    assert front(rows, ("map50", "params")) == expected
    assert {rows[i]["map50"] for i in front(rows, ("map50",))} == {max(r["map50"] for r in rows)}


def test_the_best_is_that_of_the_best_mean_where_seeds_differ():
    rows = [row("33", .50), row("35", .48), row("53", .40), row("33", .40, seed=1), row("35", .47, seed=1)]
    assert best_of(rows[:3], "map50") == 0 and best_of(rows, "map50") == 1
    first = spread(rows, "map50")[0]
    assert (first["label"], first["seeds"], first["mean"]) == ("35", [0, 1], pytest.approx(.475))
    assert first["std"] == pytest.approx(.01 / 2 ** .5)
    assert ranked([row("33", .5, 20), row("35", .5, 10)], "map50") == [1, 0], "of equals the smaller one"


def test_tables_are_aligned_and_csv_holds_every_layer():
    rows = [row("33", .5, 1234567, latency_ms=1.5), row("35", .25, 98, latency_ms=12.25)]
    lines = table_lines(rows, "map50", 0, [0, 1])
    assert lines[1].endswith("best front") and lines[2].endswith("front") and "1,234,567" in lines[1]
    assert len({line.index(word) + len(word) for line, word in
                zip(lines, ("parameters", "1,234,567", "       98"))}) == 1
    read = list(csv.DictReader(trials_csv(rows).splitlines()))
    assert [(r["a.kernel"], r["b.kernel"], r["a.op"], r["latency_ms"]) for r in read] == [
        ("3", "3", "conv", "1.5"), ("3", "5", "conv", "12.25")]


def test_figure_4_labels_do_not_cover_points_or_each_other(tmp_path, monkeypatch):
    from matplotlib.figure import Figure
    drawn, rng = [], random.Random(2)
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (drawn.append(self), save(self, *a, **k)))
    rows = [row("35", .4 + rng.gauss(0, .01), 2_000_000 + 1000 * i) | {"label": f"{i:05b}".replace("0", "3")
            .replace("1", "5")} for i in range(32)]
    figure4_png(rows, best_of(rows, "map50"), front(rows, ("map50", "params")), tmp_path / "a.png")
    ax, renderer = drawn[0].axes[0], drawn[0].canvas.get_renderer()
    boxes = [text.get_window_extent(renderer) for text in ax.texts]
    points = ax.transData.transform([(r["parameters"] / 1e6, 100 * r["map50"]) for r in rows])
    assert sorted(text.get_text() for text in ax.texts) == sorted(r["label"] for r in rows)
    assert not [1 for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)]
    assert not [1 for box in boxes for x, y in points if box.contains(x, y)]
