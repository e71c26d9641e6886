"""docs/zoo.md is what the records count, and names every network with its source."""
import pytest

from bench import zoo
from models.count import parameters
from models.layer import Layer
from models.zoo.build import ZOO, build
from utils import runs
from utils.errors import DataError


def test_the_page_is_what_the_records_count(root):
    file = root / "results" / f"{zoo.RECORD}.json"
    text = (root / zoo.PAGE).read_text(encoding="utf-8")
    assert text == zoo.page(runs.read_object(file) if file.is_file() else None), "python -m bench.zoo"
    for name in ZOO:
        assert f"| `{name}`" in text and f"<code>{name}</code>" in text, name
    assert f"{parameters(build('yolov5n-class')):,}" in text


def test_times_stand_beside_the_networks_that_were_timed():
    record = {"speed": {"micro-yolo": {"onnx": 12.34, "spread": .1}}, "threads": 1,
              "environment": {"cpu": "some CPU", "date": "a day"}}
    lines = zoo.page(record).splitlines()
    row = next(line for line in lines if line.startswith("| `micro-yolo` "))
    other = next(line for line in lines if line.startswith("| `yolo-lite` "))
    assert "| 12.3 " in row and "| - " in other and any("some CPU" in line for line in lines)


def test_a_picture_folds_equal_rows_and_starts_a_line_a_stride():
    net = (Layer("a", "conv", ("image",), 8, stride=2), Layer("b", "conv", ("a",), 8, 1),
           Layer("c", "conv", ("b",), 8, 1), Layer("d", "maxpool", ("c",), kernel=2, stride=2),
           Layer("end", "classify", ("d",), 5))
    assert zoo.drawn(net).splitlines() == [
        "  1/2  conv 8, conv k1 8 x2", "  1/4  maxpool k2", "  1x1  classify 5"]


def test_a_network_without_a_source_is_refused(monkeypatch):
    def nameless(classes: int = 3):
        """A network of nobody's."""
    monkeypatch.setitem(ZOO, "nameless", nameless)
    with pytest.raises(DataError, match="nameless names no source"):
        zoo.source("nameless")
