"""What training computes in another way than torch does: the same numbers, the same gradients."""
import pytest
import torch
from torch.nn import functional as F

from models.convolutions import DepthwiseConv2d, SkippingConv2d
from models.layer import Layer
from models.network import Network, _mean, initialise


def _made(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    return x.contiguous(memory_format=torch.channels_last).requires_grad_()


@pytest.mark.parametrize("side", [(1, 1), (7, 5), (26, 26)])
@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_the_mean_and_its_gradient_are_torchs(side: tuple[int, int], dtype: torch.dtype, near: float):
    grads, values = [], []
    for mean in (_mean, lambda x: x.mean((2, 3), keepdim=True)):
        x = _made(3, 8, *side, dtype=dtype)
        value = mean(x)
        (x * value.sigmoid()).float().square().sum().backward()
        values, grads = [*values, value], [*grads, x.grad]
    assert torch.allclose(*values, rtol=near, atol=near)
    assert torch.allclose(*grads, rtol=near, atol=near)


@pytest.mark.parametrize("kernel", [5, 7])
@pytest.mark.parametrize("side", [(5, 9), (13, 8)])
def test_a_large_depthwise_kernel_has_the_librarys_gradients(kernel: int, side: tuple[int, int]):
    own, plain = (made(6, 6, kernel, padding=kernel // 2, groups=6, bias=False).train()
                  for made in (DepthwiseConv2d, torch.nn.Conv2d))
    plain.load_state_dict(own.state_dict())
    grads = []
    for conv in (own, plain):
        x = _made(2, 6, *side)
        (conv(x) * _made(2, 6, *side).detach()).sum().backward()
        grads.append((x.grad, conv.weight.grad))
    for mine, theirs in zip(*grads):
        assert torch.allclose(mine, theirs, atol=1e-5)


@pytest.mark.parametrize(("channels", "groups"), [(3, 1), (12, 1), (12, 4), (32, 1)])
@pytest.mark.parametrize("side", [64, 63])
def test_a_strided_1x1_has_the_gradients_of_a_3x3_with_zeros_around_it(channels: int, groups: int,
                                                                       side: int):
    net = (Layer("a", "conv", ("image",), out=8, act="linear", kernel=1, stride=2),)
    assert type(Network(net, ("a",)).a.conv) is SkippingConv2d
    own = SkippingConv2d(channels, 8, 1, 2, groups=groups).to(memory_format=torch.channels_last).train()
    x = _made(4, channels, side, side)
    large = F.pad(own.weight.detach(), (1, 1, 1, 1)).contiguous().requires_grad_()
    flat = x.detach().contiguous().requires_grad_()        # not channels_last: the library is right there
    made, plain = own(x), F.conv2d(flat, large, own.bias, 2, 1, groups=groups)
    assert torch.allclose(made, plain, atol=1e-5)
    weights = torch.randn(made.shape, generator=torch.Generator().manual_seed(1))
    for out in (made, plain):
        (out * weights).sum().backward()
    assert torch.allclose(x.grad, flat.grad, atol=1e-5)
    assert torch.allclose(own.weight.grad, large.grad[:, :, 1:2, 1:2], atol=1e-3)
    with torch.no_grad():
        assert torch.allclose(own.eval()(x), plain, atol=1e-5)


@pytest.mark.parametrize("act", ["leaky", "relu", "swish"])
def test_maxima_before_a_rising_activation_are_those_after_it(act: str):
    net = (Layer("a", "conv", ("image",), out=8, act=act, kernel=3),
           Layer("pool", "maxpool", ("a",), kernel=2, stride=2),
           Layer("b", "conv", ("pool",), out=4, act="leaky", kernel=1))
    model, found = initialise(Network(net, ("b",)), 0).train(), []
    assert (model.fast == model.plan) == (act == "swish")      # which falls before it rises
    for watch in (None, lambda node, value: None):             # a watched network keeps its order
        model.watch = watch
        model.zero_grad()
        x = _made(2, 3, 16, 16)
        out = model(x)[0]
        out.square().sum().backward()
        found.append([out, x.grad, *(p.grad for p in model.parameters())])
    for mine, theirs in zip(*found):
        assert torch.allclose(mine, theirs, atol=1e-6)


def test_what_is_read_before_a_pooling_too_stays_in_order():
    net = (Layer("a", "conv", ("image",), out=8, act="leaky", kernel=3),
           Layer("pool", "maxpool", ("a",), kernel=2, stride=2),
           Layer("b", "conv", ("a",), out=8, act="linear", kernel=2, stride=2),
           Layer("sum", "add", ("pool", "b")))
    model = initialise(Network(net, ("sum",)), 0)
    assert model.fast == model.plan
    model = initialise(Network(net[:2], ("pool", "a")), 0).eval()
    values = model(torch.rand(1, 3, 8, 8))
    assert torch.equal(F.max_pool2d(values[1], 2), values[0])
