"""Fields that a block does not read: a shape is refused, what stands in all rows of a network is not."""
from dataclasses import replace

import pytest

from models.records import ignored, to_json, validate
from models.zoo.build import ZOO, build
from tests.helpers.nets import residual_net, small_net
from utils.errors import ModelError


def test_nothing_that_the_zoo_says_is_lost():
    assert {name: found for name, make in ZOO.items() if (found := ignored(make()))} == {}
    assert ignored(residual_net()) == []


@pytest.mark.parametrize("where, more, said", [
    ("mb3", {"dilation": 2}, "(mbconv): dilation is 2"), ("ds5", {"groups": 4}, "(dsconv): groups is 4"),
    ("conv1", {"squeeze": 2}, "(conv): squeeze is 2"), ("conv1", {"hidden": 2}, "(conv): hidden is 2"),
    ("ds5", {"ceil": True}, "ceil is True"), ("conv1", {"rates": (1, 2)}, "rates is (1, 2)"),
    ("pool2", {"part": 1}, "part is 1"), ("mb3", {"full": True}, "full is True")])
def test_a_shape_that_a_block_does_not_read_is_refused_where_a_network_is_given(tmp_path, where, more, said):
    net = validate(tuple(replace(row, **more) if row.name == where else row for row in small_net()))
    (tmp_path / "net.json").write_text(to_json(net))
    with pytest.raises(ModelError, match="which this block does not read") as error:
        build(str(tmp_path / "net.json"))
    assert said in str(error.value) and repr(where) in str(error.value)


def test_what_only_the_look_of_all_rows_says_stays(tmp_path):
    net = tuple(replace(row, act="relu", eps=1e-3, gate="hardsigmoid") for row in small_net())
    assert ignored(net) == []
    grouped = tuple(replace(row, groups=2) if row.op in ("conv", "maxpool") and row.name != "conv1" else row
                    for row in small_net())
    assert ignored(grouped) == [], "a pooling has no groups that could be meant"
