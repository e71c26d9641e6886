"""A network as data: a tuple of frozen `Layer` records."""
from __future__ import annotations

from dataclasses import dataclass, fields

MAX_WIDTH, MAX_LAYERS = 65536, 10000                       # a typo must not ask for terabytes


@dataclass(frozen=True)
class Layer:
    """One record: a block of `models.blocks` by its `op`, and the fields that this block reads."""

    name: str
    op: str
    inputs: tuple[str, ...]                            # earlier layers; "image" is the image itself
    out: int = 0                                       # channels of the output
    kernel: int = 3
    stride: int = 1                                    # of poolings and convolutions; an upsampling's factor
    hidden: int = 0                                    # inner width
    squeeze: int = 0                                   # width of squeeze-excitation, of a Fire module's waist
    groups: int = 1                                    # of a convolution; parts of a split or shuffle
    part: int = 0                                      # which part a split takes
    dilation: int = 1
    rates: tuple[int, ...] = ()                        # dilations of a pyramid
    pad: int = -1                                      # cells; -1: the grid is the input's / stride
    ceil: bool = False                                 # a pooling whose last window may hang over the edge
    full: bool = False                                 # a unit's fuller form: see the blocks that read it
    act: str = "leaky"
    gate: str = "sigmoid"                              # what squeeze-excitation ends in
    bn: bool = True                                    # False: a bias in place of batch-norm (folded nets)
    bias: bool = True                                  # of a classifier's scores
    eps: float = 1e-5                                  # batch-norm's epsilon
    kind: str = ""                                     # a head's: one of `models.heads.HEADS`
    anchors: tuple[tuple[float, float], ...] = ()      # width, height in px of the network input
    xy_scale: float = 1.0                              # centre = (sigmoid*s - (s-1)/2 + cell) * stride
    bins: int = 0                                      # distances that a side's distribution is over
    centre: float = 0.5                                # where in a cell its sides begin: 0.5 its middle
    assign: str = ""                                   # a head's rule of matching to ground truth


Net = tuple[Layer, ...]
DEFAULTS = {field.name: field.default for field in fields(Layer)}


def heads(net: Net) -> Net:
    """Return the records of the detection heads in order."""
    return tuple(layer for layer in net if layer.kind)
