"""What is said of two networks' times, and the clocks it rests on, against planted times."""
import copy

import pytest

from bench.profile import latency, timing


def row(name: str, ms: float, moved: int, kind: str, width: int = 16) -> dict:
    """A row of layer_table as far as sentences read it."""
    return {"layer": name, "op": "conv", "width": width, "ms": ms, "limit_ms": ms / 4, "macs": moved,
            "bytes": moved, "bound": kind}


def found(before: list[dict], after: list[dict]) -> dict:
    """A result of compare_speed with these layers."""
    timed = {"ms": 10.0, "p90_ms": 11.5, "spread": 0.04, "ratio": 1.0, "ratio_quartiles": [0.9, 1.1],
             "note": ""}
    size = {"parameters": 5, "macs": 1_000_000_000, "mac_ratio": 1.0}
    part = {"rounds": 30, "layers": {"parent": before, "child": after},
            "networks": {"parent": timed, "child": {**timed, "ms": 9.0, "ratio": 1.11}}}
    return {"imgsz": 320, "threads": 1, "pictures": 2, "skipped": {}, "precisions": {"fp32": part},
            "networks": {"parent": size, "child": {**size, "macs": 787_000_000, "mac_ratio": 1.27}}}


def test_the_sentences_name_the_layers_that_were_cut_and_did_not_get_faster():
    before = [row("pool", 1.0, 100, "memory"), row("quick", 1.0, 100, "memory"),
              row("same", 1.0, 100, "memory"), row("conv", 2.0, 100, "compute"),
              row("gone", 1.0, 100, "memory")]
    after = [row("pool", 1.5, 90, "memory", 14), row("quick", 0.5, 90, "memory"),
             row("same", 1.0, 100, "memory"), row("conv", 2.0, 90, "compute", 24),
             row("new", 3.0, 10, "memory")]
    lines = latency.speed_lines(found(before, after))
    assert lines[0].startswith("latency at 320 px, batch 1, threads 1: medians of 30")
    assert len({len(line) for line in lines[1:4]}) == 1, "columns are aligned"
    assert lines[3].split() == "child, fp32 9.00 11.50 4 % 1.11x 0.90-1.10 0.7870 1.27x".split()
    assert lines[4] == ("child, fp32: memory-bound and no faster, though smaller: pool 1.00 -> 1.50 ms "
                        "(limit 0.38); memory-bound layers take 75 % of its time")
    assert lines[5] == ("child, fp32: compute-bound and no faster, though smaller: conv 2.00 -> 2.00 ms "
                        "(limit 0.50)")
    assert lines[6].endswith("slow at: pool 14; try --round-to 8") and len(lines) == 7


def test_the_sentences_say_when_no_layer_held_it_back():
    before = [row("pool", 1.0, 100, "memory")]
    faster = latency.speed_lines(found(before, [row("pool", 0.9, 90, "memory")]))
    assert faster[4:] == ["child, fp32: every memory-bound layer that became smaller became faster; "
                          "memory-bound layers take 100 % of its time"]
    same = latency.speed_lines(found(before, copy.deepcopy(before)))
    assert same[4].startswith("child, fp32: no memory-bound layer became smaller;")


def test_times_that_scatter_are_said_to_mean_little():
    layers = [row("pool", 1.0, 100, "memory")]
    result = found(layers, layers)
    assert not any("scatter" in line for line in latency.speed_lines(result))
    result["precisions"]["fp32"]["networks"]["child"]["spread"] = 0.4
    assert latency.speed_lines(result)[4].startswith("the times scatter by up to 40 %: other work")


def test_a_sentence_names_no_more_than_the_six_longest():
    before = [row(f"l{i}", 1.0, 100, "memory") for i in range(9)]
    line = latency.speed_lines(found(before, [row(f"l{i}", 1.0 + i, 90, "memory") for i in range(9)]))[4]
    assert "l8 1.00 -> 9.00 ms" in line and "l3 " in line and "l2 " not in line and "and 3 more;" in line


def test_rounds_are_interleaved_and_each_turn_counts_its_second_call(monkeypatch):
    order: list[str] = []
    clock = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])

    def call(name: str, ms: float) -> timing.Call:
        def run(at: int) -> None:
            order.append(f"{name}{at}")
            clock[0] += ms / 1e3 if order.count(f"{name}{at}") == 2 else 10
        return run
    times = timing.interleaved({"a": call("a", 4), "b": call("b", 1)}, 3, 1000)
    assert order == ["a0", "a0", "b0", "b0", "b1", "b1", "a1", "a1", "a2", "a2", "b2", "b2"]
    assert times == {"a": pytest.approx([4] * 3), "b": pytest.approx([1] * 3)}
    assert len(timing.interleaved({"a": lambda at: clock.__setitem__(0, clock[0] + 1)}, 100, 20)["a"]) == 11
    assert len(timing.interleaved({"a": lambda at: clock.__setitem__(0, clock[0] + 1)}, 100, 0)["a"]) == 5


def test_warming_up_ends_when_times_stay_the_same(monkeypatch):
    monkeypatch.setattr(timing, "once", lambda call, at: call(at))
    assert timing.warm_up({"a": lambda at: 1.0}) == 6
    assert timing.warm_up({"a": lambda at: 1.0, "b": lambda at: max(5.0, 9.0 - at)}) == 9
    assert timing.warm_up({"a": lambda at: 1.0 + at}, 7) == 7
    assert timing.warm_up({"a": lambda at: 1.0 + at}, 9, -1.0) == 1, "the time was over"


def test_medians_percentiles_and_paired_ratios():
    assert timing.summary([1.0, 2.0, 3.0, 4.0, 5.0]) == {"ms": 3.0, "p90_ms": pytest.approx(4.6),
                                                         "spread": pytest.approx(2 / 3)}
    assert timing.ratio([2.0, 4.0, 6.0], [1.0, 2.0, 2.0]) == {"ratio": 2.0, "ratio_quartiles": [2.0, 2.5]}
