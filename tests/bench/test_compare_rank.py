"""Agreement of two comparisons: planted orders, scipy's figures, intervals that hold the truth."""
import json

import numpy as np
import pytest
from scipy.stats import kendalltau, spearmanr

from bench.compare import rank
from utils.errors import UsageError


def planted(skills, seeds=3, noise=.0, seed=0):
    rng = np.random.default_rng(seed)
    return {f"net{at}": (skill + noise * rng.standard_normal(seeds)).tolist()
            for at, skill in enumerate(skills)}


def test_identical_orders_are_one_and_reversed_ones_minus_one():
    order = planted(np.linspace(.1, .6, 8))
    for other, truth in ((order, 1), (planted(np.linspace(.9, .2, 8)), -1)):
        found = rank.agreement(order, other)
        assert found["tau_b"] == pytest.approx(truth) and found["rho"] == pytest.approx(truth)
        assert found["n"] == 8 and found["tau_b_interval"] == pytest.approx([truth, truth])


def test_tau_and_rho_are_scipys_ties_included():
    rng = np.random.default_rng(1)
    a, b = rng.integers(0, 6, (20, 9)).astype(float), rng.integers(0, 6, (20, 9)).astype(float)
    np.testing.assert_allclose(rank.tau_b(a, b), [kendalltau(*pair).statistic for pair in zip(a, b)])
    np.testing.assert_allclose(rank.rho(a, b), [spearmanr(*pair).statistic for pair in zip(a, b)])


def test_the_interval_holds_the_agreement_of_the_whole_population():
    """Pairs of a correlation of 0.7 have a tau of (2 / pi) asin 0.7; 19 of 20 intervals would hold it."""
    truth, held = 2 / np.pi * np.arcsin(.7), 0
    for seed in range(20):
        pairs = np.random.default_rng(seed).multivariate_normal([0, 0], [[1, .7], [.7, 1]], 30).T
        low, high = rank.agreement(*(planted(skills, 1) for skills in pairs))["tau_b_interval"]
        held += low <= truth <= high
    assert held >= 16


def test_seeds_that_differ_widen_the_interval():
    skills = np.linspace(.3, .5, 10)
    calm, wild = (rank.agreement(planted(skills, noise=n, seed=1), planted(skills, noise=n, seed=2))
                  for n in (.001, .05))
    assert np.ptp(wild["tau_b_interval"]) > 2 * np.ptp(calm["tau_b_interval"])


@pytest.mark.parametrize(("first", "other", "n"), [
    ({"a": [.1]}, {"a": [.2], "b": [.3]}, 1), ({"a": [.1]}, {"b": [.3]}, 0),
    ({"a": [.1], "b": [.1]}, {"a": [.2], "b": [.3]}, 2)])
def test_what_is_undefined_is_none(first, other, n):
    found = rank.agreement(first, other)
    assert found["n"] == n and found["tau_b"] is found["rho"] is found["tau_b_interval"] is None


def record_of(order, budget="epochs", runs=True):
    found = {"kind": "compare", "budgets": {budget: {"rows": [
        {"net": net, "map50": np.mean(v), "map50_95": 1 - np.mean(v)} for net, v in order.items()]}}}
    return found | ({"runs": [{"net": net, "budget": budget, "map50": v, "map50_95": None}
                              for net, values in order.items() for v in values]} if runs else {})


def test_records_are_compared_by_budget_and_figure(tmp_path, monkeypatch, capsys):
    order = planted(np.linspace(.1, .6, 4))
    ap, ap50 = rank.compared(record_of(order, runs=False), record_of(order, runs=False), None)
    assert ap["figure"] == "map50_95" and ap["tau_b"] == ap50["tau_b"] == pytest.approx(1)
    ap, ap50 = rank.compared(record_of(order), record_of(order, "minutes"), ("epochs", "minutes"))
    assert ap["tau_b"] is None and ap50["rho"] == pytest.approx(1)
    with pytest.raises(UsageError, match="epochs and minutes: name one of each"):
        rank.compared(record_of(order), record_of(order, "minutes"), None)
    (tmp_path / "a.json").write_text(json.dumps(record_of(order)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["rank", "a.json", "a.json", "--save-json", "both"])
    rank.main()
    out = capsys.readouterr().out
    assert "mean AP50 of 4 networks: Kendall tau-b +1.000 (+1.000 to +1.000)" in out and "undefined" in out
    assert json.loads((tmp_path / "results/both.json").read_text())["agreement"][1]["n"] == 4
