"""The page of a run: complete in itself, every text escaped, tables also as aligned text."""
import base64
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from detection.outputs import save_image
from evaluation.metrics import evaluate_detections
from evaluation.report import CLASS_COLUMNS, class_rows, write_report
from utils.text import aligned, shown


class Page(HTMLParser):
    """Collects the tags with their attributes, checks that they nest, and keeps the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def image(tmp_path):
    """A PNG file with a Chinese name."""
    path = tmp_path / "图.png"
    save_image(path, np.arange(300, dtype=np.uint8).reshape(10, 10, 3))
    return path


def test_the_page_embeds_its_images_and_asks_for_nothing_else(tmp_path, image):
    tables, images = [("Table", ("a", "b"), [[1, 2]])], [("Curve", image)]
    path = write_report(tmp_path, "run", {"mAP@0.5": 0.5}, tables, images)
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert path == tmp_path / "report.html" and page.open == []
    images = [attrs for tag, attrs in page.tags if tag == "img"]
    kind, data = images[0]["src"].split(",", 1)
    assert kind == "data:image/png;base64" and base64.b64decode(data) == image.read_bytes()
    assert images[0]["alt"] == "Curve"
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert not re.search(r"https?://|url\(|@import", text)
    assert not [p.name for p in tmp_path.iterdir() if p.suffix == ".part"]


def test_it_serves_light_and_dark_screens_and_telephones(tmp_path):
    text = write_report(tmp_path, "run", {}).read_text()
    assert "prefers-color-scheme: dark" in text and 'name="viewport"' in text and "overflow-x: auto" in text
    assert "default-src 'none'" in text


def test_every_text_is_escaped(tmp_path, image):
    evil = "<script>alert('&\"')</script>"
    images = [(evil, image), (evil, "gone.png")]
    path = write_report(tmp_path, evil, {evil: evil}, [(evil, (evil,), [[evil]])], images)
    page = Page(path.read_text(encoding="utf-8"))
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.text.count(evil) == 9                       # title twice, label, value, table 3, captions 2
    assert [attrs["alt"] for tag, attrs in page.tags if tag == "img"] == [evil]


def test_an_image_that_is_missing_is_named_and_another_kind_refused(tmp_path):
    text = write_report(tmp_path, "run", {}, (), [("Confusion", tmp_path / "confusion.png")]).read_text()
    assert "Confusion: confusion.png was not made" in text
    with pytest.raises(ValueError, match="a.svg"):
        write_report(tmp_path, "run", {}, (), [("Curve", tmp_path / "a.svg")])


def test_columns_of_numbers_stand_right_and_texts_left(tmp_path):
    rows = [["cat", 3, 0.5, None], ["dog", 1200, float("nan"), 0.25]]
    text = write_report(tmp_path, "run", {}, [("T", ("class", "n", "AP", "F1"), rows)]).read_text()
    cells = re.findall(r"<t[hd]( class=\"n\")?>([^<]*)</t", text)
    assert cells == [("", "class"), *((' class="n"', c) for c in ("n", "AP", "F1")),
                     ("", "cat"), *((' class="n"', c) for c in ("3", "0.500", "n/a")),
                     ("", "dog"), *((' class="n"', c) for c in ("1,200", "n/a", "0.250"))]


def test_a_long_value_takes_the_whole_width(tmp_path):
    text = write_report(tmp_path, "run", {"short": 1, "command": "python train.py " * 5}).read_text()
    assert text.count('<div class="long">') == 1


@pytest.mark.parametrize(("value", "said"), [
    (None, "n/a"), (float("nan"), "n/a"), (0.12345, "0.123"), (0, "0"), (8852366, "8,852,366"), (True, "yes"),
    ("red", "red"), (12345.6, "12,346"), (np.float64(0.5), "0.500")])
def test_values_are_shown_as_people_write_them(value, said):
    assert shown(value) == said


def test_the_class_table_as_text_is_aligned_even_with_chinese_names():
    ground_truth = {"images": [{"id": 1}], "categories": [{"id": 1}, {"id": 2}],
                    "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9]}]}
    metrics = evaluate_detections(ground_truth, np.array([[0, 0, 0, 9, 9, 0.5, 0]]), ("红细胞", "dog"))
    rows = class_rows(metrics)
    assert rows == [["all"] + [1] * 7, ["红细胞"] + [1] * 7, ["dog", 0, 0] + [None] * 5]
    assert aligned(CLASS_COLUMNS, rows).splitlines() == [
        "class   images  boxes      P      R     F1   AP50  AP50-95",
        "all          1      1  1.000  1.000  1.000  1.000    1.000",
        "红细胞       1      1  1.000  1.000  1.000  1.000    1.000",
        "dog          0      0    n/a    n/a    n/a    n/a      n/a"]
