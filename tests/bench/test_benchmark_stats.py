"""Percentiles, bootstrap verdicts, taints and comparisons of reports, against planted samples."""
import ast
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bench import machine
from bench.cases import Case, label, matrix, pack, short_names, unpack
from bench.profile.timing import contrast, figures, verdict
from bench.report import compare
from utils.errors import DataError, UsageError
from utils.runs import cores

ROOT = Path(__file__).resolve().parents[2]


def calls(ms: float, seed: int, rounds: int = 3, slices: int = 8, each: int = 12) -> list:
    """Planted latencies: processes that differ by 1 %, slices by 1 %, calls by 5 %."""
    rng = np.random.default_rng(seed)
    return [[(ms * process * (1 + 0.01 * rng.standard_normal()) * rng.lognormal(0, 0.05, each)).tolist()
             for _ in range(slices)] for process in 1 + 0.01 * rng.standard_normal(rounds)]


def test_figures_are_numpys_over_all_calls():
    rounds = calls(10, 0)
    times = np.array([ms for slices in rounds for taken in slices for ms in taken])
    found = figures(rounds, batch=4, seconds=2.0)
    assert [found[f"p{p}"] for p in (50, 90, 95, 99)] == pytest.approx(np.percentile(times, (50, 90, 95, 99)))
    assert (found["n"], found["min"], found["max"]) == (len(times), times.min(), times.max())
    assert (found["mean"], found["sd"]) == pytest.approx((times.mean(), times.std(ddof=1)))
    assert found["fps"] == pytest.approx(4000 / np.median(times))
    assert found["sustained_fps"] == pytest.approx(4 * len(times) / 2.0)
    assert found["rounds"] == pytest.approx([np.median(np.ravel(r)) for r in rounds])
    assert figures([[[5.0]], []], 1)["rounds"] == [5.0], "a round that gave nothing is none"


@pytest.mark.parametrize("paired", [False, True])
def test_the_same_distribution_is_no_difference_and_a_third_faster_is(paired: bool):
    wrong = [contrast(calls(10, 2 * seed), calls(10, 2 * seed + 1), paired, 300)["verdict"]
             for seed in range(20)]
    assert sum(v != "no significant difference" for v in wrong) <= 1
    for seed in range(5):
        found = contrast(calls(13, seed), calls(10, seed + 50), paired, 300)
        assert found["verdict"] == "faster" and found["low"] < 1.3 < found["high"]
        assert contrast(calls(10, seed), calls(13, seed + 50), paired, 300)["verdict"] == "slower"


def test_the_ratio_is_that_of_the_medians_and_its_interval_widens_with_processes_that_disagree():
    first, other = calls(12, 1), calls(10, 2)
    medians = [np.median([ms for r in side for s in r for ms in s]) for side in (first, other)]
    assert contrast(first, other, True)["ratio"] == pytest.approx(medians[0] / medians[1])
    torn = [calls(10, 3, 1)[0], calls(14, 4, 1)[0], calls(10, 5, 1)[0]]
    wide, narrow = contrast(first, torn, False), contrast(first, other, False)
    assert wide["high"] - wide["low"] > 5 * (narrow["high"] - narrow["low"])


def test_paired_slices_take_out_what_slowed_both():
    drift = np.repeat(np.random.default_rng(0).uniform(1, 3, (3, 8, 1)), 12, 2)
    first, other = (drift * np.array(calls(ms, seed)) for ms, seed in ((10.6, 1), (10, 2)))
    assert contrast(first.tolist(), other.tolist(), True)["verdict"] == "faster"
    assert contrast(first.tolist(), other.tolist(), False)["verdict"] == "no significant difference"


def test_many_calls_are_looked_up_at_quantiles_without_moving_the_interval():
    few, many = (contrast(calls(13, 1, each=n), calls(10, 2, each=n), True, 200) for n in (40, 400))
    assert many["ratio"] == pytest.approx(few["ratio"], rel=0.01)
    assert (many["low"], many["high"]) == pytest.approx((few["low"], few["high"]), rel=0.02)


@pytest.mark.parametrize(("low", "high", "said"), [
    (1.02, 1.3, "faster"), (1.005, 1.3, "no significant difference"), (0.8, 0.98, "slower"),
    (0.9, 0.995, "no significant difference"), (0.9, 1.1, "no significant difference")])
def test_within_one_percent_nothing_differs(low: float, high: float, said: str):
    assert verdict(low, high) == said


def readings(**after: object) -> tuple[dict, dict]:
    """Two readings of the counters, 10 s apart, of a machine on which nothing else happened."""
    before = {"wall": 100.0, "monotonic": 5.0, "busy": 50.0, "stolen": 1.0, "throttles": 3, "swapped": 7,
              "battery": None, "gpus": []}
    return before, {**before, "wall": 110.0, "monotonic": 15.0, "busy": 59.5, **after}


FACTS = {"affinity": [0, 1], "governor": "performance", "mhz_limits": [800, 3000]}


@pytest.mark.parametrize(("facts", "after", "said"), [
    ({}, {}, ""), ({}, {"busy": 61.5}, "other programs kept 0.25 of the 2 cores"),
    ({}, {"busy": None, "stolen": None, "throttles": None, "swapped": None}, ""),
    ({"governor": None, "mhz_limits": None}, {}, ""), ({"governor": "powersave"}, {}, "governor powersave"),
    ({"governor": "powersave", "mhz_limits": [2000, 2000]}, {}, ""),
    ({}, {"stolen": 1.5}, "hypervisor took 0.5 s"), ({}, {"throttles": 5}, "slowed down 2 times against"),
    ({}, {"swapped": 9}, "2 pages of memory"), ({}, {"battery": True}, "battery"),
    ({}, {"wall": 140.0}, "clock jumped by +30.0 s"), ({}, {"wall": 80.0}, "clock jumped by -30.0 s"),
    ({}, {"gpus": [{"a.hw_thermal_slowdown": "Active"}]}, "hw_thermal_slowdown")])
def test_the_machine_taints_by_what_happened_and_never_by_what_is_unknown(facts, after, said):
    found = machine.machine_taints({**FACTS, **facts}, *readings(**after), own=9.0)
    assert len(found) == bool(said) and all(said in reason for reason in found)


def test_figures_taint_by_their_number_their_processes_and_their_spread():
    good = figures(calls(10, 0, each=20), 1)
    assert machine.figure_taints({"a": good}) == []
    rounds = [calls(10, 1, 1, each=2)[0], calls(13, 2, 1, each=2)[0]]
    found = machine.figure_taints({"a": good, "b": figures(rounds, 1)})
    assert [f.split(", in ")[0] for f in found] == [
        "fewer than 100 calls", "fewer than 3 processes",
        "the middle half of the calls spreads over more than 15% of the median",
        "processes' medians differ by more than 10%"]
    assert found[0].endswith("in 1 of 2 figures; the worst is b: 32")


def test_the_machine_is_read_from_its_files_and_is_unknown_without_them(tmp_path: Path):
    nothing = machine.facts(tmp_path)
    assert nothing["governor"] is nothing["microcode"] is nothing["hypervisor"] is None
    read = machine.counters(tmp_path)
    assert read["busy"] is read["throttles"] is read["swapped"] is read["battery"] is None
    assert machine.machine_taints(nothing, read, machine.counters(tmp_path), 0.0) == []
    stat = "".join(f"cpu{n} 100 0 50 9 9 1 2 25 0 0\n" for n in range(512))
    for name, text in {"proc/cpuinfo": "microcode\t: 0xa1\nflags\t: fpu sse\ncpu MHz\t: 2599.9\n",
                       "proc/meminfo": "MemTotal:  2048 kB\n", "proc/vmstat": "pswpin 3\npswpout 4\n",
                       "proc/stat": f"cpu 1 1\n{stat}",
                       "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave\n",
                       "sys/devices/system/cpu/cpu0/cpufreq/scaling_min_freq": "800000\n",
                       "sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq": "3000000\n",
                       "sys/devices/system/cpu/cpu1/thermal_throttle/core_throttle_count": "6\n",
                       "sys/class/power_supply/BAT0/status": "Discharging\n"}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found, read = machine.facts(tmp_path), machine.counters(tmp_path)
    assert (found["microcode"], found["hypervisor"], found["governor"]) == ("0xa1", False, "powersave")
    assert found["mhz_limits"] == [800, 3000] and found["ram_bytes"] == 2 ** 21
    count = len(cores())
    assert (read["busy"], read["stolen"]) == pytest.approx((1.53 * count, 0.25 * count))
    assert (read["throttles"], read["swapped"], read["battery"], read["mhz"]) == (6, 7, True, [2599])


def test_the_peak_of_memory_is_this_process_alone():
    held = b"x" * (300 << 20)                              # a child's getrusage would begin with it
    code = "from bench.machine import peak_memory as peak; a = b'x' * ({} << 20); print(peak())"
    said = [subprocess.run([sys.executable, "-c", code.format(mb)], cwd=ROOT, capture_output=True, text=True,
                           check=True).stdout for mb in (0, 100)]
    small, large = (ast.literal_eval(text)["peak_rss_bytes"] for text in said)
    if small is None:
        pytest.skip("this system does not say")
    assert small < len(held) / 2 and 90 << 20 < large - small < 130 << 20


def test_the_matrix_has_every_case_once_and_groups_stay_together():
    files = [(Path("runs/a/best.pt"), "torch"), (Path("runs/b/best.pt"), "torch"), (Path("x.onnx"), "onnx")]
    cases = matrix(files, ("torch", "torch-plain"), ("fp32", "bf16"), (1, 2), (1,), (64, 96), "cpu")
    assert len(cases) == len(set(cases)) == 4 * (2 * 3 + 2)
    assert {c.name for c in cases} == {"a/best", "b/best", "x"}
    assert {c.precision for c in cases if c.runtime == "torch-plain"} == {"fp32"}
    groups = [c.group for c in cases]
    assert sorted(set(groups), key=groups.index) == [(64, 1, 1), (64, 1, 2), (96, 1, 1), (96, 1, 2)]
    assert all(groups[i] == groups[i - i % 8] for i in range(len(groups))), "each group is one stretch"
    assert short_names([Path("a.onnx"), Path("a.pt")]) == ["a.onnx", "a.pt"]
    assert cases[0].label == "a/best torch fp32, cpu, 1 thread, batch 1, 64 px"
    assert label(vars(cases[0]), ("precision", "imgsz")) == "fp32, 64 px"


def test_samples_come_back_from_json_to_the_microsecond():
    rounds = calls(10, 0)
    back = unpack(json.loads(json.dumps(pack(rounds))))
    assert np.allclose(back, rounds, atol=5.1e-4) and pack([[]]) == [[]] == unpack(pack([[]]))


def written(path: Path, *cases: tuple[Case, list], **settings: object) -> Path:
    """A report with these cases' planted calls, as far as a comparison reads it."""
    rows = [{**vars(case), "status": "measured", "scopes": {"network": figures(rounds, case.batch)},
             "samples": {"network": pack(rounds)}} for case, rounds in cases]
    path.write_text(json.dumps({"schema": 1, "kind": "benchmark", "tainted": [], "cases": rows,
                                "environment": {"cpu": settings.pop("cpu", "x")},
                                "settings": {"pictures": 8, "conf_thres": .25, "iou_thres": .45,
                                             "max_det": 300, **settings}}))
    return path


BASE = Case("net", "net.pt", "torch", "fp32", 1, 1, 416, "cpu")


def other(**changed: object) -> Case:
    """The same case but for what is named."""
    return Case(**{**vars(BASE), **changed})


def test_two_reports_of_one_case_are_compared_and_a_third_faster_is_said_to_be(tmp_path: Path):
    a = written(tmp_path / "a.json", (BASE, calls(13, 0)))
    b = written(tmp_path / "b.json", (BASE, calls(10, 1)))
    line, = compare((a, b), (), ("network", "end-to-end"), False)
    assert "is faster than" in line and line.endswith(": faster")
    line, = compare((b, a), (), ("network",), False)
    assert line.endswith(": slower")
    c = written(tmp_path / "c.json", (BASE, calls(10, 2)))
    line, = compare((b, c), (), ("network",), False)
    assert "is not significantly different from" in line


@pytest.mark.parametrize(("change", "said"), [
    ({"imgsz": 320}, "imgsz (416 and 320)"), ({"batch": 2}, "batch (1 and 2)"),
    ({"threads": 2}, "threads (1 and 2)"), ({"device": "cuda"}, "device (cpu and cuda)"),
    ({"cpu": "y"}, "cpu (x and y)")])
def test_what_differs_is_refused_and_named_unless_forced(tmp_path: Path, change: dict, said: str):
    cpu = {"cpu": change.pop("cpu")} if "cpu" in change else {}
    a = written(tmp_path / "a.json", (BASE, calls(10, 0)))
    b = written(tmp_path / "b.json", (other(**change), calls(10, 1)), **cpu)
    with pytest.raises(UsageError) as refused:
        compare((a, b), (), ("network",), False)
    assert said in str(refused.value) and "--force" in str(refused.value)
    warning, line = compare((a, b), (), ("network",), True)
    assert said in warning and "times as fast" in line


def test_cases_are_chosen_by_a_part_of_their_label(tmp_path: Path):
    a = written(tmp_path / "a.json", (BASE, calls(10, 0)), (other(runtime="onnx"), calls(7, 1)))
    b = written(tmp_path / "b.json", (other(runtime="onnx"), calls(7, 2)), (other(name="big"), calls(20, 3)))
    line, = compare((a, b), (), ("network",), False)
    assert line.count("net onnx") == 2, "those both have"
    line, = compare((a, b), ("net torch", "big torch"), ("network",), False)
    assert "big torch fp32, cpu, 1 thread, batch 1, 416 px is slower than net torch" in line
    line, = compare((a, a), ("torch", "onnx"), ("network",), False)
    assert line.endswith(": faster")
    with pytest.raises(UsageError, match="say which case.*\n  net torch fp32"):
        compare((a, b), ("fp32", "fp32"), ("network",), False)


@pytest.mark.parametrize(("text", "said"), [
    ("{", "cannot be read"), ('{"kind": "search"}', "no record of a benchmark"), ("[]", "no record"),
    ('{"kind": "benchmark", "schema": 9}', "schema 9"),
    ('{"kind": "benchmark", "schema": 1, "cases": [{"status": "measured", "samples": {}}]}',
     "without the calls")])
def test_a_file_that_is_no_report_is_refused(tmp_path: Path, text: str, said: str):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError, match=said):
        compare((tmp_path / "a.json",) * 2, (), ("network",), False)
