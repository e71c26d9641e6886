"""YOLOv3-tiny and Micro-YOLO as rows, named by 1-based positions in yolov3-tiny.cfg, as the paper does."""
from __future__ import annotations

from dataclasses import replace

from models.channels import channels, with_widths
from models.layer import Layer, Net
from models.records import validate
from utils.errors import ModelError

Anchors = tuple[tuple[float, float], ...]

# YOLOv3-tiny's six anchors at 416 px: the 13x13 head takes 3-5. The stock cfg gives the 26x26 head 0-2, but
# the official weights were trained with 1-3 (darknet issue of long standing), so 10,14 is never used.
COARSE: Anchors = ((81, 82), (135, 169), (344, 319))
FINE: Anchors = ((23, 27), (37, 58), (81, 82))
SWAPPED = ("conv", "dsconv", "mbconv")                     # ops that take each other's place
SEARCHED = ("conv3", "conv5", "conv7", "conv9", "conv11")  # layers of the paper's kernel search
MICRO_OPS = {**dict.fromkeys((*SEARCHED, "conv15", "conv22"), "mbconv"), "conv13": "dsconv"}
MICRO_KERNELS = dict(zip(SEARCHED, (3, 5, 3, 5, 3)))       # the paper's best of the 32
# One reading of the pruned network that prints the paper's 1.92 M / 0.87 G; Table 3 itself is not known.
PRUNED_WIDTHS = {"conv1": 14, "conv3": 28, "conv5": 56, "conv7": 112, "conv9": 224, "conv11": 384,
                 "conv13": 640, "conv22": 224}


def head_row(name: str, source: str, anchors: Anchors, classes: int, xy_scale: float) -> Layer:
    """Return the row of an anchor head, matched by YOLOv3's rule where centres stay in their cell."""
    anchors = tuple((float(w), float(h)) for w, h in anchors)
    return Layer(name, "head", (source,), len(anchors) * (5 + classes), 1, act="linear", kind="anchor",
                 anchors=anchors, xy_scale=xy_scale, assign="best" if xy_scale == 1 else "ratio")


def yolov3_tiny(classes: int = 80, coarse: Anchors = COARSE, fine: Anchors = FINE, act: str = "leaky",
                xy_scale: float = 1.0) -> Net:
    """YOLOv3-tiny (darknet): 8,852,366 parameters and 2,782,480,896 MACs at 416 with 80 classes."""
    def conv(name: str, source: str, out: int, kernel: int = 3) -> Layer:
        return Layer(name, "conv", (source,), out, kernel, act=act)

    def pool(name: str, source: str, stride: int = 2) -> Layer:
        return Layer(name, "maxpool", (source,), kernel=2, stride=stride)

    return validate((
        conv("conv1", "image", 16), pool("pool2", "conv1"),
        conv("conv3", "pool2", 32), pool("pool4", "conv3"),
        conv("conv5", "pool4", 64), pool("pool6", "conv5"),
        conv("conv7", "pool6", 128), pool("pool8", "conv7"),
        conv("conv9", "pool8", 256), pool("pool10", "conv9"),
        conv("conv11", "pool10", 512), pool("pool12", "conv11", stride=1),
        conv("conv13", "pool12", 1024),
        conv("conv14", "conv13", 256, kernel=1),
        conv("conv15", "conv14", 512),
        head_row("head16", "conv15", coarse, classes, xy_scale),
        conv("conv19", "conv14", 128, kernel=1),
        Layer("up20", "upsample", ("conv19",), stride=2),
        Layer("cat21", "concat", ("up20", "conv9")),
        conv("conv22", "cat21", 256),
        head_row("head23", "conv22", fine, classes, xy_scale)))


def micro_yolo(classes: int = 80, coarse: Anchors = COARSE, fine: Anchors = FINE, act: str = "leaky",
               xy_scale: float = 2.0, se: bool = True) -> Net:
    """Micro-YOLO (Hu & Li 2021), our family A: 2,548,565 parameters and 1.0547 GMACs at 416."""
    return substitute(yolov3_tiny(classes, coarse, fine, act, xy_scale), MICRO_OPS, MICRO_KERNELS, se=se)


def micro_yolo_pruned(classes: int = 80, coarse: Anchors = COARSE, fine: Anchors = FINE, act: str = "leaky",
                      xy_scale: float = 2.0, se: bool = True) -> Net:
    """The paper's pruned Micro-YOLO, in widths that print its 1.92 M / 0.87 G; see docs/results.md."""
    base = with_widths(yolov3_tiny(classes, coarse, fine, act, xy_scale), PRUNED_WIDTHS)
    return substitute(base, MICRO_OPS, MICRO_KERNELS, se=se)


def micro_yolo_fast(classes: int = 80, coarse: Anchors = COARSE, fine: Anchors = FINE, act: str = "relu",
                    xy_scale: float = 2.0) -> Net:
    """Micro-YOLO without what costs more time than MACs say, and conv22's MBConv, a third of the MACs."""
    return substitute(micro_yolo(classes, coarse, fine, act, xy_scale, se=False), {"conv22": "dsconv"})


def micro_yolo_plus(classes: int = 80, coarse: Anchors = COARSE, fine: Anchors = FINE, act: str = "leaky",
                    xy_scale: float = 2.0) -> Net:
    """Micro-YOLO+ (SN Computer Science 3:391): Ghost modules in three layers, 3.19 and 2.43 times less.

    Which layers have them is not known. Of the readings that change one run of layers this one comes nearest
    to the 3.18 times fewer parameters and 2.44 times fewer MACs than YOLOv3-tiny that are.
    """
    return substitute(yolov3_tiny(classes, coarse, fine, act, xy_scale),
                      MICRO_OPS | dict.fromkeys(("conv7", "conv9", "conv11"), "ghostconv"))


def micro_yolo_fast_s2(*given: object, **more: object) -> Net:
    """micro_yolo_fast with a stem that strides at once: nothing is computed and pooled away at full size."""
    return strided(micro_yolo_fast(*given, **more), ("conv1",))


def micro_yolo_fast_k6(*given: object, **more: object) -> Net:
    """The same with a 6x6 stem: as a 3x3 on the image's 2x2 cells put into channels (space to depth)."""
    return substitute(micro_yolo_fast_s2(*given, **more), kernels={"conv1": 6})


def micro_yolo_fast_s4(*given: object, **more: object) -> Net:
    """The same, its conv3 dense and strided too: one layer each on the grids of 416 and 208 cells."""
    return substitute(strided(micro_yolo_fast(*given, **more), ("conv1", "conv3")), {"conv3": "conv"})


STEMS = {"micro-yolo-fast-s2": micro_yolo_fast_s2, "micro-yolo-fast-k6": micro_yolo_fast_k6,
         "micro-yolo-fast-s4": micro_yolo_fast_s4}


def strided(net: Net, names: tuple[str, ...]) -> Net:
    """Return the network in which these layers stride by 2, without the max-pooling behind each."""
    gone = {row.name: row.inputs[0] for row in net if row.op == "maxpool" and row.stride == 2
            and row.inputs[0] in names}
    return validate(tuple(
        replace(row, inputs=tuple(gone.get(name, name) for name in row.inputs),
                stride=2 if row.name in gone.values() else row.stride)
        for row in net if row.name not in gone))


def substitute(net: Net, ops: dict[str, str] | None = None, kernels: dict[str, int] | None = None,
               expansion: int = 2, se: bool = True) -> Net:
    """Return the network with some layers' op or kernel replaced: layer -> op, layer -> kernel.

    A layer that becomes an mbconv gets hidden = expansion x input channels and, with `se`, squeeze = max(1,
    input/16). Raises ModelError for a layer that is not there or holds no kernel.
    """
    ops, kernels, out = ops or {}, kernels or {}, channels(net).outputs
    swappable = {layer.name for layer in net if layer.op in SWAPPED}
    if unknown := sorted((set(ops) | set(kernels)) - swappable):
        raise ModelError(f"cannot substitute {', '.join(unknown)}: "
                         f"replaceable layers are {', '.join(sorted(swappable))}")

    def new(layer: Layer) -> Layer:
        op, kernel = ops.get(layer.name, layer.op), kernels.get(layer.name, layer.kernel)
        if op == layer.op:
            return replace(layer, kernel=kernel)
        inner = {"hidden": 0, "squeeze": 0}
        if op == "mbconv":
            cin = len(out[layer.inputs[0]])
            inner = {"hidden": expansion * cin, "squeeze": max(1, cin // 16) if se else 0}
        return replace(layer, op=op, kernel=kernel, **inner)
    return validate(tuple(new(layer) for layer in net))
