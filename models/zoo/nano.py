"""Nano detectors: a backbone of the zoo, a neck and heads, each by name: "nano:ghostnet+pan+aspp".

The default is of the size of YOLOv5n, from the papers: CSP (arXiv 1911.11929), PAN (arXiv 1803.01534), FPN
(arXiv 1612.03144), BiFPN (arXiv 1911.09070), slim necks of GSConv (arXiv 2206.02424), Ghost modules (arXiv
1911.11907). A backbone is exchanged and nothing else: neck and heads read whatever widths its levels have.
"""
from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence

from models.channels import channels
from models.heads import HEADS
from models.layer import Net
from models.records import validate
from models.zoo.classifiers import CLASSIFIERS, features
from models.zoo.light import COARSE_V3, FINE_V3, MIDDLE_V3
from models.zoo.mobile import Rows
from models.zoo.tiny import Anchors, head_row
from utils.errors import ModelError

PREFIX = "nano:"
# Three a level, at 416 px; levels beyond 32 have twice as large ones each.
ANCHORS: tuple[Anchors, ...] = (FINE_V3, MIDDLE_V3, COARSE_V3)
# A pyramid's rates at stride 32: the reach that DeepLab's 6, 12, 18 have at its stride of 16.
RATES = (3, 6, 9)
PYRAMIDS = {"sppf": {"kernel": 5}, "aspp": {"rates": RATES}, "aspp-dw": {"rates": RATES}, "flat": {}}
UNITS: dict[str, Callable[..., str]] = {}                  # what a CSP block repeats
NECKS: dict[str, Callable[..., list[str]]] = {}


def _named(table: dict[str, Callable]) -> Callable:
    """Return a decorator that enters a function under its name."""
    def enter(function: Callable) -> Callable:
        table[function.__name__.strip("_")] = function
        return function
    return enter


class Neck(Rows):
    """Rows behind a backbone's. unit: what CSP blocks repeat and levels are made coarser by, of UNITS."""

    def __init__(self, back: Net, unit: str, act: str) -> None:
        super().__init__(act=act)
        self.rows, self.unit = list(back), unit
        self.widths = {name: len(ids) for name, ids in channels(back).outputs.items()}

    def conv(self, name: str, source: str, out: int, kernel: int = 1, stride: int = 1, **more: object) -> str:
        """Append a convolution and return its name."""
        return self.add(name, "conv", source, out=out, kernel=kernel, stride=stride, **more)

    def csp(self, name: str, source: str, out: int, depth: int = 1, added: bool = False) -> str:
        """Append a CSP block: half its channels through `depth` units, half past them, then 1x1."""
        x, past = (self.conv(f"{name}_{part}", source, out // 2) for part in ("in", "past"))
        for at in range(depth):
            x = UNITS[self.unit](self, f"{name}_{at}", x, out // 2, added=added)
        return self.conv(name, self.add(f"{name}_cat", "concat", x, past), out)

    def down(self, name: str, source: str, out: int) -> str:
        """Append what halves the grid, of the unit's own kind."""
        return UNITS[self.unit](self, name, source, out, stride=2)

    def join(self, name: str, source: str, other: str) -> str:
        """Append `source` twice as large beside `other`."""
        return self.add(f"{name}_join", "concat", self.add(f"{name}_up", "upsample", source, stride=2), other)


@_named(UNITS)
def csp(rows: Neck, name: str, x: str, out: int, stride: int = 1, added: bool = False) -> str:
    """1x1 and 3x3; strided, a 3x3 alone."""
    if stride > 1:
        return rows.conv(name, x, out, 3, stride)
    y = rows.conv(f"{name}_spatial", rows.conv(f"{name}_reduce", x, out), out, 3)
    return rows.add(f"{name}_add", "add", x, y) if added else y


@_named(UNITS)
def ghost(rows: Neck, name: str, x: str, out: int, stride: int = 1, **_: object) -> str:
    """A Ghost bottleneck around its input; strided, a depthwise 5x5 and a 1x1."""
    if stride > 1:
        return rows.add(name, "dsconv", x, out=out, kernel=5, stride=stride)
    return rows.add(name, "ghost", x, x, out=out, hidden=out)


@_named(UNITS)
def gsconv(rows: Neck, name: str, x: str, out: int, stride: int = 1, **_: object) -> str:
    """GSConv, half its channels depthwise copies, shuffled; 1x1 and 3x3, strided the 3x3 alone."""
    for kernel in (1, 3) if stride == 1 else (3,):
        x = rows.add(f"{name}_gs{kernel}", "ghostconv", x, out=out, kernel=kernel, stride=stride)
        x = rows.add(f"{name}_mix{kernel}", "shuffle", x, groups=2)
    return x


@_named(NECKS)
def none(rows: Neck, levels: Sequence[str], widths: Sequence[int]) -> list[str]:
    """Each level for itself, by a 1x1."""
    return [rows.conv(f"level{at}", level, width) for at, (level, width) in enumerate(zip(levels, widths))]


def _led_down(rows: Neck, levels: Sequence[str], widths: Sequence[int]) -> tuple[list[str], list[str]]:
    """Return, fine to coarse, the levels with all coarser ones led into them, and what was led on."""
    merged, led = [levels[-1]], []
    for at in reversed(range(len(levels) - 1)):
        led.insert(0, rows.conv(f"lead{at}", merged[0], widths[at]))
        joined = rows.join(f"top{at}", led[0], levels[at])
        merged.insert(0, rows.csp(f"top{at}", joined, widths[at]))
    return merged, led


@_named(NECKS)
def fpn(rows: Neck, levels: Sequence[str], widths: Sequence[int]) -> list[str]:
    """Coarse levels led into fine ones."""
    return _led_down(rows, levels, widths)[0]


@_named(NECKS)
def pan(rows: Neck, levels: Sequence[str], widths: Sequence[int]) -> list[str]:
    """Coarse levels led into fine ones, and those back into coarse ones."""
    merged, led = _led_down(rows, levels, widths)
    out = merged[:1]
    for at, other in enumerate(led, 1):
        smaller = rows.down(f"coarser{at}", out[-1], widths[at - 1])
        out.append(rows.csp(f"out{at}", rows.add(f"coarser{at}_cat", "concat", smaller, other), widths[at]))
    return out


@_named(NECKS)
def bifpn(rows: Neck, levels: Sequence[str], widths: Sequence[int], repeats: int = 3) -> list[str]:
    """Sums of levels of one width, down and up again, `repeats` times; all inputs of a sum weigh the same."""
    def merge(name: str, *xs: str) -> str:
        return rows.add(name, "sepconv", rows.add(f"{name}_sum", "add", *xs), out=widths[0])

    maps = [rows.conv(f"even{at}", level, widths[0], act="linear") for at, level in enumerate(levels)]
    for turn in range(repeats):
        top = maps[-1:]
        for at in reversed(range(len(maps) - 1)):
            up = rows.add(f"bi{turn}_up{at}", "upsample", top[0], stride=2)
            top.insert(0, merge(f"bi{turn}_top{at}", maps[at], up))
        out = top[:1]
        for at in range(1, len(maps)):
            pooled = rows.add(f"bi{turn}_pool{at}", "maxpool", out[-1], stride=2)
            inputs = (maps[at], top[at], pooled) if at < len(maps) - 1 else (maps[at], pooled)
            out.append(merge(f"bi{turn}_out{at}", *inputs))
        maps = out
    return maps


def anchors_of(levels: int, first: int = 0) -> tuple[Anchors, ...]:
    """Return the anchors (px at 416) of that many levels from stride 8 << `first` on."""
    wanted = list(ANCHORS)
    while len(wanted) < first + levels:
        wanted.append(tuple((2 * w, 2 * h) for w, h in wanted[-1]))
    return tuple(wanted[first:first + levels])


def with_ends(rows: Rows, sources: Sequence[str], strides: Sequence[int], classes: int,
              kind: str = "anchor", spread: int = 1) -> Net:
    """Return the network of the rows with a head of that kind on each source, named after its stride.

    spread: the last head also has the anchors of so many levels less one that would follow.
    """
    sets = list(anchors_of(len(sources) + spread - 1, strides[0].bit_length() - 4))
    sets[len(sources) - 1:] = [sum(sets[len(sources) - 1:], ())]
    ends = [head_row(f"head{stride}", source, own, classes, 2.0)
            for source, stride, own in zip(sources, strides, sets)]
    ends = [row if row.kind == kind else HEADS[kind].in_place_of(row, classes) for row in ends]
    return validate((*rows.rows, *ends))


def nano(classes: int = 80, backbone: str = "csp", *, neck: str = "pan", unit: str = "csp",
         pyramid: str = "sppf", kind: str = "anchor", width: int = 64, rates: Sequence[int] = (),
         act: str = "swish", reductions: Sequence[int] = (8, 16, 32),
         tower: Callable[[Neck, str, int], str] | None = None) -> Net:
    """Return a nano detector; "csp" with all defaults is of YOLOv5n's size. Raises ModelError as `parts`.

    width: channels of the finest level, twice as many at each coarser one (a BiFPN: the same). pyramid: what
    stands behind the backbone, none where "flat". rates: an ASPP's dilations. act: neck's, not backbone's.
    tower: (rows, name of a level, its number) -> name of what its head reads.
    """
    if width % 8 or width < 8:
        raise ModelError(f"a neck of width {width}: it is halved in blocks; needs a multiple of 8")
    back, levels = features(CLASSIFIERS[backbone](), reductions)
    rows, fields = Neck(back, unit, act), dict(PYRAMIDS[pyramid])
    if rates:
        if "rates" not in fields:
            raise ModelError(f"rates={','.join(map(str, rates))} are those of an atrous pyramid; add aspp or "
                             "aspp-dw")
        fields["rates"] = tuple(rates)
    widths, top = [width << at for at in range(len(levels))], levels[-1]
    if fields:
        waist = widths[-1] // (2 if pyramid == "sppf" else 4)
        op = {"aspp-dw": "dwaspp"}.get(pyramid, pyramid)
        top = rows.add("pyramid", op, top, out=widths[-1], hidden=waist, **fields)
    sources = NECKS[neck](rows, (*levels[:-1], top), widths)
    sources = [tower(rows, name, at) for at, name in enumerate(sources)] if tower else sources
    return with_ends(rows, sources, reductions, classes, kind)


def parts() -> dict[str, Iterable[str]]:
    """Return argument of `nano` -> the words that name it, each of one argument alone."""
    return {"neck": NECKS, "unit": [f"{name}-neck" for name in UNITS], "pyramid": PYRAMIDS,
            "kind": HEADS}


def parse(name: str) -> dict[str, object]:
    """Return the arguments of `nano` that "nano:BACKBONE+PART+..." names, or raise ModelError for a word.

    Parts in any order: those of `parts`, width=N, rates=A,B,C and act=NAME.
    """
    backbone, *words = name.removeprefix(PREFIX).split("+")
    found: dict[str, object] = {"backbone": _known("backbone", backbone, CLASSIFIERS)}
    meaning = {word: field for field, table in parts().items() for word in table}
    for word in words:
        key, given, value = word.partition("=")
        field = _known("part", key, {"width": 0, "rates": 0, "act": 0} if given else meaning)
        field, value = (key, value) if given else (meaning[key], key.removesuffix("-neck"))
        if field in found:
            raise ModelError(f"{name}: two of {field}: {found[field]} and {value}; give one")
        found[field] = value
    try:
        if "width" in found:
            found["width"] = int(found["width"])
        if "rates" in found:
            found["rates"] = tuple(int(rate) for rate in found["rates"].split(","))
    except ValueError:
        raise ModelError(f"{name}: width is a whole number, rates are whole numbers with commas: "
                         "nano:csp+aspp+rates=2,4,6+width=48") from None
    return found


def _known(what: str, word: str, table: Iterable[str]) -> str:
    """Return the word, or raise ModelError that says what there is and what may have been meant."""
    if word in table:
        return word
    near = difflib.get_close_matches(word, list(table), 1, 0.5)
    raise ModelError(f"nano: unknown {what} {word!r}" + (f"; did you mean {near[0]!r}?" if near else "")
                     + f" Known: {', '.join(table)}")
