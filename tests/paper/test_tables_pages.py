"""Marked tables of pages: filled from results/, and any digit that differs is found with its line."""
import json
import subprocess
import sys
from functools import partial

import pytest

import tables
from paper.pages import fill
from tests.paper.table_cases import write_records

PAGE = """# Page
<!-- table:paper -->
| 网络 | a | b | c | d | e | f |
|---|---|---|---|---|---|---|
<!-- /table -->
text 0.5
<!-- table:records {map50:.3f}; {map50_interval.low:.2f} -->
| net | AP50 | low | record |
|---|---|---|---|
| ours | | | [one](results/micro-yolo-voc5.json) |
| speed <!-- {images}; {settings.threads} --> | | | [two](../results/micro-yolo-voc5.json) |
| list <!-- {artifacts.1.format}; {artifacts.0.boxes} --> | | | [three](results/parity-rounded.json) |
<!-- /table -->
"""


@pytest.fixture
def filled(root, tmp_path):
    """A page beside the project whose marked tables are filled, and a function that checks it."""
    path = tmp_path / "page.md"
    path.write_text(PAGE, encoding="utf-8")

    def call(flag: str) -> int:
        with pytest.raises(SystemExit) as end, pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["tables.py", flag, "--pages", str(path)])
            tables.main()
        return end.value.code
    assert call("--check") == 1 and call("--write") == 0 and call("--check") == 0
    return path, call


def test_marked_tables_are_filled_from_results_and_a_changed_digit_is_found(filled, root, capsys):
    path, call = filled
    text = path.read_text(encoding="utf-8")
    record = json.loads((root / "results" / "micro-yolo-voc5.json").read_text())
    assert "| 网络" in text and "text 0.5" in text and "| `micro-yolo`" in text and "2.56 M" in text
    tiny = next(line for line in text.splitlines() if "`yolov3-tiny`" in line)
    assert "8,852,366" in tiny and "8.86" not in tiny, "the paper's figure for it is derived"
    assert f"| ours | {record['map50']:.3f} | {record['map50_interval']['low']:.2f} |" in text
    assert f"| {record['images']} | {record['settings']['threads']} |" in text
    assert any(line.startswith("| list") and "| openvino | 54 |" in line for line in text.splitlines())
    for old, new in (("2.782 G", "2.783 G"), (f"{record['map50']:.3f}", "0.999"), ("2.56 M", "2.57 M")):
        path.write_text(text.replace(old, new), encoding="utf-8")
        capsys.readouterr()
        assert call("--check") == 1
        out = capsys.readouterr().out
        line = 1 + next(i for i, row in enumerate(path.read_text().splitlines()) if new in row)
        assert f"page.md:{line}: says" in out and new in out and old in out, out
    assert call("--write") == 0 and path.read_text(encoding="utf-8") == text


def test_a_page_without_a_marked_table_does_not_pass(filled, capsys):
    path, call = filled
    path.write_text(PAGE.replace("<!-- table:", "<!-- tabel:"), encoding="utf-8")
    assert call("--check") == 1 and call("--write") == 1
    assert "page.md: no marked table" in capsys.readouterr().out


RECORDS = "<!-- table:records {} -->\n| a | b | c |\n|-|-|-|\n| x | 1 | {} |\n<!-- /table -->\n"


@pytest.mark.parametrize(("body", "said"), [
    ("<!-- table:paper -->\n| a |\n", "has no <!-- /table -->"),
    ("<!-- table:nonsense -->\n<!-- /table -->\n", "no such table"),
    ("<!-- table:smoke/nonsense -->\n<!-- /table -->\n", "no such table"),
    (RECORDS.format("{map50}", "none"), "links to no record"),
    (RECORDS.format("{mep}", "[r](results/r.json)"), "r.json has no mep"),
    (RECORDS.format("{m}; {m}", "[r](results/r.json)"), "2 figures for 1 cells"),
    (RECORDS.format("{m}", "[r](results/q.json)"), "q.json"),
])
def test_a_marked_table_that_results_cannot_give_is_an_error_with_its_line(tmp_path, body, said):
    (tmp_path / "r.json").write_text('{"m": 1}')
    got = fill("intro\n" + body, "page.md", tmp_path, partial(tables.page_table, tmp_path))
    assert len(got.errors) == 1 and got.errors[0].startswith("page.md:2:") and said in got.errors[0]


def test_a_profiles_tables_are_made_for_pages_from_its_records(tmp_path):
    write_records(tmp_path / "smoke")
    make = partial(tables.page_table, tmp_path)
    judged = [row[1:] for row in make("smoke/table4", "long")[1]]
    assert ("mAP@0.5 on scenes", "12.26 %", "35.0", "", "needs COCO") in judged
    assert make("smoke/figure4", "")[1][0][0] == "53"


def test_the_marked_tables_of_the_pages_agree_with_results(root):
    command = [sys.executable, "tables.py", "--check"]
    out = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert out.returncode == 0, out.stdout + out.stderr
