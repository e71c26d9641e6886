"""Every measured number of the pages stands in the JSON its row links to, and both READMEs say the same."""
import json
import re

import pytest

from models.count import loose_macs, macs, parameters
from models.zoo.build import DETECTORS

PAGES = ("README.md", "README.zh-CN.md", "docs/results.md")
LINK = re.compile(r"\]\((?:\.\./)?results/([\w.-]+\.json)\)")


def values(node: object) -> list[float]:
    """All numbers of nested JSON."""
    if isinstance(node, dict):
        return [v for item in node.values() for v in values(item)]
    if isinstance(node, list):
        return [v for item in node for v in values(item)]
    return [float(node)] if isinstance(node, (int, float)) and not isinstance(node, bool) else []


def rows(text: str) -> list[tuple[str, list[str]]]:
    """Table rows that link to results: (file name, the decimal numbers of the row)."""
    found = [(LINK.search(line), line) for line in text.splitlines() if line.startswith("|")]
    number = re.compile(r"(?<![\w.])-?\d+\.\d+(?![\w.]*\.json)")
    return [(m.group(1), number.findall(LINK.sub("", line))) for m, line in found if m]


@pytest.mark.parametrize("page", PAGES)
def test_measured_numbers_come_from_results(root, page):
    table = rows((root / page).read_text(encoding="utf-8"))
    assert table, f"{page} has no row that links to results/"
    for file, numbers in table:
        known = values(json.loads((root / "results" / file).read_text(encoding="utf-8")))
        for number in numbers:
            places = len(number.split(".")[1])
            there = any(f"{value:.{places}f}" == number for value in known)
            assert there, f"{page}: {number} is not in {file}"


def test_results_say_where_they_come_from(root):
    for path in (root / "results").glob("*.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        wanted = {"command", "commit", "date", "cpu"} | ({"threads"} if "cases" not in content else set())
        assert wanted <= set(content["environment"]), path.name   # a benchmark's cases have their own threads
        assert all(case["threads"] for case in content.get("cases", ())), path.name


def test_the_readme_counts_what_the_records_count(root):
    for page in PAGES[:2]:
        text = (root / page).read_text(encoding="utf-8")
        for name, net in DETECTORS.items():
            line = next(line for line in text.splitlines() if line.startswith(f"| `{name}`"))
            for number in (f"{parameters(net()):,}", f"{macs(net(), 416) / 1e9:.3f} G",
                           f"{loose_macs(net(), 416) / 1e9:.3f} G"):
                assert number in line, f"{page}: {name} should say {number}"


@pytest.mark.parametrize("page", PAGES)
def test_programs_are_compared_with_their_networks_named_and_start_up_told(root, page):
    text = (root / page).read_text(encoding="utf-8")
    row = next(line for line in text.splitlines() if line.startswith("|") and "`yolo predict`" in line)
    assert "`micro-yolo-fast`" in row and "yolo26n" in row and "TAINTED" in text
    for name in ("start-onnx", "detect-fast-onnx", "detect-same-onnx", "detect-same-openvino"):
        record = json.loads((root / "results" / f"{name}.json").read_text(encoding="utf-8"))
        assert record["commands"] and f"{record['whole_ratio']['median']:.2f}" in text, name


def test_both_readmes_link_to_the_same_results(root):
    english, chinese = (rows((root / page).read_text(encoding="utf-8")) for page in PAGES[:2])
    assert english == chinese
