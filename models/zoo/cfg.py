"""darknet's `.cfg` -> records: a row a section, named by its 1-based position as the zoo's are."""
from __future__ import annotations

from models.layer import Layer, Net
from models.nodes import IMAGE
from models.records import validate
from models.zoo.tiny import head_row
from utils.errors import ModelError

ACTIVATIONS = {name: name for name in ("linear", "leaky", "relu", "relu6", "swish")} | {"logistic": "sigmoid"}
Section = tuple[str, dict[str, str]]


def from_cfg(text: str) -> tuple[Net, int]:
    """Return the network of a cfg file's text and the side of its input in px.

    Known are convolutional, maxpool, upsample, route, shortcut, dropout (nothing, once trained) and yolo.
    Raises ModelError naming the section that cannot be said in records.
    """
    (first, given), *sections = _sections(text)
    if first not in ("net", "network"):
        raise ModelError(f"a cfg file begins with [net], this one with [{first}]")
    width, height, channels = (int(given.get(key, default)) for key, default in
                               (("width", 416), ("height", 416), ("channels", 3)))
    if width != height or channels != 3:
        raise ModelError(f"[net] is {width}x{height} with {channels} channels; needs a square and 3")
    return validate(tuple(_Reader(sections).rows)), width


def _sections(text: str) -> list[Section]:
    found: list[Section] = []
    for number, line in enumerate(text.splitlines(), 1):
        line = line.partition("#")[0].partition(";")[0].strip()
        if line.startswith("["):
            found.append((line.strip("[] ").lower(), {}))
        elif line:
            key, equals, value = line.partition("=")
            if not equals or not found:
                raise ModelError(f"line {number} is neither [section] nor key=value: {line[:50]!r}")
            found[-1][1][key.strip()] = value.strip()
    if not found:
        raise ModelError("the cfg file holds no [section]")
    return found


class _Reader:
    """Rows of the sections in turn; `values` is what each section ends in: a record's name."""

    def __init__(self, sections: list[Section]) -> None:
        self.rows: list[Layer] = []
        self.values: list[str] = []
        self.width = {IMAGE: 3}
        for at, (kind, given) in enumerate(sections):
            self.at, self.kind, self.given = at, kind, given
            after = sections[at + 1] if at + 1 < len(sections) else ("", {})
            make = getattr(self, f"_{kind}", None)
            if make is None:
                raise self.fail("is not known in records")
            try:
                self.values.append(make(after))
            except (ValueError, IndexError, KeyError) as error:
                raise self.fail(f"cannot be read: {error}") from error

    def fail(self, problem: str) -> ModelError:
        """Return the error of the current section."""
        return ModelError(f"section {self.at + 1} of the cfg file, [{self.kind}], {problem}")

    @property
    def last(self) -> str:
        """What the section before ends in."""
        return self.values[-1] if self.values else IMAGE

    def number(self, key: str, default: int) -> int:
        """Return a whole number of the section."""
        return int(self.given.get(key, default))

    def act(self) -> str:
        """Return the section's activation."""
        name = self.given.get("activation", "linear")
        if name not in ACTIVATIONS:
            raise self.fail(f"has activation {name}; known are {', '.join(ACTIVATIONS)}")
        return ACTIVATIONS[name]

    def add(self, row: Layer, width: int) -> str:
        """Append a row; return its name."""
        self.rows.append(row)
        self.width[row.name] = width
        return row.name

    def where(self, index: str) -> str:
        """Return what a section ends in: by a negative number one before this, else that section."""
        at = int(index) + (self.at if int(index) < 0 else 0)
        if not 0 <= at < self.at:
            raise self.fail(f"reads section {int(index)}, which is not before it")
        return self.values[at]

    def _convolutional(self, after: Section) -> str:
        size, groups, out = self.number("size", 1), self.number("groups", 1), self.number("filters", 1)
        same = size // 2 if self.number("pad", 0) else self.number("padding", 0)
        if after[0] == "yolo":
            return self._head(after[1], out, size)
        alone = groups == out == self.width[self.last] and groups > 1
        return self.add(Layer(
            f"conv{self.at + 1}", "depthwise" if alone else "conv", (self.last,), 0 if alone else out, size,
            self.number("stride", 1), groups=1 if alone else groups, dilation=self.number("dilation", 1),
            pad=-1 if same == size // 2 or size == 1 else same, act=self.act(),
            bn=bool(self.number("batch_normalize", 0))), out)

    def _head(self, yolo: dict[str, str], out: int, size: int) -> str:
        numbers = [float(number) for number in yolo["anchors"].split(",")]
        anchors = list(zip(numbers[::2], numbers[1::2]))
        mask = [int(at) for at in yolo.get("mask", ",".join(map(str, range(len(anchors))))).split(",")]
        classes = int(yolo.get("classes", 20))
        wanted = len(mask) * (5 + classes)
        if (size, out, self.act(), self.number("batch_normalize", 0)) != (1, wanted, "linear", 0):
            raise self.fail(f"before [yolo] needs size 1, {wanted} filters, linear, no batch-norm")
        if int(yolo.get("new_coords", 0)):
            raise self.fail("leads to [yolo] with new_coords, which heads do not decode")
        return self.add(head_row(f"head{self.at + 1}", self.last, tuple(anchors[at] for at in mask), classes,
                                 float(yolo.get("scale_x_y", 1))), out)

    def _yolo(self, after: Section) -> str:
        if not self.rows or not self.rows[-1].kind:
            raise self.fail("does not follow a convolution")
        return self.last

    def _maxpool(self, after: Section) -> str:
        stride = self.number("stride", 1)
        size = self.number("size", stride)
        if self.number("padding", size - 1) != size - 1:
            raise self.fail(f"has padding {self.given['padding']}; needs size - 1, as without it")
        return self.add(Layer(f"pool{self.at + 1}", "maxpool", (self.last,), kernel=size, stride=stride),
                        self.width[self.last])

    def _upsample(self, after: Section) -> str:
        return self.add(Layer(f"up{self.at + 1}", "upsample", (self.last,), stride=self.number("stride", 2)),
                        self.width[self.last])

    def _route(self, after: Section) -> str:
        sources = tuple(self.where(index) for index in self.given["layers"].split(","))
        value, parts = sources[0], self.number("groups", 1)
        if len(sources) > 1:
            value = self.add(Layer(f"cat{self.at + 1}", "concat", sources),
                             sum(self.width[i] for i in sources))
        if parts > 1:
            value = self.add(Layer(f"part{self.at + 1}", "split", (value,), groups=parts,
                                   part=self.number("group_id", 0)), self.width[value] // parts)
        return value

    def _shortcut(self, after: Section) -> str:
        other, act = self.where(self.given["from"]), self.act()
        value = self.add(Layer(f"add{self.at + 1}", "add", (self.last, other)), self.width[self.last])
        return value if act == "linear" else self.add(Layer(f"act{self.at + 1}", "act", (value,), act=act),
                                                      self.width[value])

    def _dropout(self, after: Section) -> str:
        return self.last
