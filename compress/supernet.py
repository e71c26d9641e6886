"""One network trained so that every choice of kernels inside it works: the sandwich rule.

Yu and Huang 2019 (US-Net, arXiv 1903.05134), sections 3.3 and 3.4 and algorithm 1, for kernels in place of
widths: a step trains the largest, the smallest and random ones; what the largest predicts teaches the others.
They learn the ground truth as well: by imitation alone their gradient is a small part of the largest's.
"""
from __future__ import annotations

import random
from collections.abc import Sequence

from torch import Tensor

from compress.kernels import crop_kernels, forward
from models.heads.loss import DetectionLoss, distillation
from models.layer import Net
from models.network import Network
from utils.errors import ModelError

COUNTER = "num_batches_tracked"


class Supernet(Network):
    """A Network that in training also runs the smallest and `count` random choices of its layers' kernels.

    forward: images [B, 3, H, W] to head outputs; in training to a list of them, the largest network's first,
    which alone moves batch-norm's running statistics. A resumed training chooses the same.
    """

    def __init__(self, net: Net, layers: Sequence[str], kernels: Sequence[int], count: int = 2,
                 seed: int = 0) -> None:
        super().__init__(net)
        self.layers, self.kernels, self.count, self.seed = tuple(layers), tuple(sorted(kernels)), count, seed
        self.seen: int | None = None                       # batches, read from the device once a state
        self.register_load_state_dict_post_hook(lambda model, _: setattr(model, "seen", None))
        side = self.kernels[-1]
        other = [layer.name for layer in net if layer.name in self.layers and layer.kernel != side]
        if other or not any(name.endswith(COUNTER) for name, _ in self.named_buffers()):
            raise ModelError(f"a supernet needs kernels of {side}x{side} in "
                             f"{', '.join(other) or 'its layers'}, and batch-norm")

    def forward(self, image: Tensor) -> list[Tensor] | list[list[Tensor]]:
        if not self.training:
            return super().forward(image)
        if self.seen is None:
            self.seen = int(next(buffer for name, buffer in self.named_buffers() if name.endswith(COUNTER)))
        seen, self.seen = self.seen, self.seen + 1
        outputs = [super().forward(image)]
        for kernels in sandwich(self.layers, self.kernels, self.count, self.seed, seen):
            state = {**dict(self.named_parameters()), **{k: b.clone() for k, b in self.named_buffers()}}
            outputs.append(forward(*crop_kernels(self.net, state, kernels), image, training=True))
        return outputs


def sandwich(layers: Sequence[str], kernels: Sequence[int], count: int, seed: int,
             step: int) -> list[dict[str, int]]:
    """Return the choices trained beside the largest at a step: the smallest, then `count` drawn evenly."""
    draw = random.Random(f"{seed} {step}")
    return [dict.fromkeys(layers, min(kernels)),
            *({layer: draw.choice(sorted(kernels)) for layer in layers} for _ in range(count))]


class SandwichLoss:
    """Callable: (Supernet outputs, targets, images) -> the base loss and "distill", means over networks.

    Each network learns the ground truth; "distill" is how far all but the largest are from the largest.
    """

    def __init__(self, base: DetectionLoss) -> None:
        self.base, self.terms = base, {**base.terms, "distill": 1.0}

    def __call__(self, outputs: list[list[Tensor]], targets: Tensor, images: Tensor) -> dict[str, Tensor]:
        first, *others = outputs
        own = [self.base(found, targets, images) for found in outputs]
        return {**{name: sum(terms[name] for terms in own) / len(own) for name in own[0]},
                "distill": sum(distillation(other, first, self.base.heads) for other in others) / len(others)}
