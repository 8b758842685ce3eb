"""A frozen part made faster: what stands before and behind a convolution goes into it."""

import copy
from collections import Counter
from typing import NamedTuple

import torch
import torch.nn.functional as F
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.norm_act import BatchNormAct2d
from timm.layers.padding import get_same_padding
from torch import nn

FOLDED = 1
"""Counts the ways in which features were rounded: part of what names stored ones."""

TOLERANCE = {"cpu": 1e-4, "cuda": 1e-2}
"""Of the largest feature: above what rounding changes (on a GPU that of TF32), below what a
network that was misread would."""

_FUSED: dict[type[nn.Module], tuple[str, list[float]]] = {
    nn.Identity: ("none", []),
    nn.ReLU: ("relu", []),
    nn.ReLU6: ("hardtanh", [0.0, 6.0]),
    nn.SiLU: ("swish", []),
}
"""By the type of an activation, oneDNN's name for it, with its bounds."""


class _Convolution(nn.Module):
    """A convolution with zero padding, and the activation behind it."""

    def __init__(
        self,
        like: nn.Conv2d,
        weight: torch.Tensor,
        bias: torch.Tensor,
        padding: tuple[int, ...],
        activation: nn.Module,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = nn.Parameter(bias, requires_grad=False)
        self.padding, self.activation = padding, activation
        self.stride, self.dilation, self.groups = like.stride, like.dilation, like.groups

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the activations (N, C, H, W)."""
        fused = _FUSED.get(type(self.activation))
        y: torch.Tensor
        if fused is not None and x.device.type == "cpu" and torch.backends.mkldnn.is_available():
            y = torch.ops.mkldnn._convolution_pointwise(
                x, self.weight, self.bias, self.padding, self.stride, self.dilation, self.groups,
                *fused, None,
            )  # fmt: skip
        else:
            y = self.activation(
                F.conv2d(
                    x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups
                )
            )
        return y


class _Call(NamedTuple):
    """What a module was given and returned, and how often each had been written to by then."""

    module: nn.Module
    given: torch.Tensor
    given_version: int
    result: torch.Tensor
    result_version: int


@torch.inference_mode(False)
@torch.no_grad()
def folded(frozen: nn.Module, image_size: int, device: torch.device) -> nn.Module:
    """Return what gives the features of `frozen`, up to rounding, faster.

    A batch norm goes into the convolution before it, with the activation that timm's brings, and
    so does the one-sided padding of `Conv2dSame`: a kernel that starts with zeros may pad both
    sides. Which convolution comes before which batch norm is seen while two images pass. All else
    stays as it is, and so does everything where that gives other features.

    Args:
        frozen: In eval mode. It is not changed, and shares its other weights.
        image_size: Side in pixels of all images that pass.
        device: Of its weights.
    """
    x = torch.randn(2, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    x = x.to(device).contiguous(memory_format=torch.channels_last)
    calls, expected = _watched(frozen, x)
    pairs = _pairs(calls)
    if not pairs:
        return frozen
    tensors = {id(tensor): tensor for tensor in (*frozen.parameters(), *frozen.buffers())}
    twin = copy.deepcopy(frozen, tensors)
    names = {module: name for name, module in frozen.named_modules()}
    for conv, norm in pairs:
        twin.set_submodule(names[conv.module], _joined(conv, norm.module))
        twin.set_submodule(names[norm.module], nn.Identity())
    try:
        off = (twin(x) - expected).abs().max()
    except (RuntimeError, ValueError, TypeError, AttributeError):
        return frozen
    return twin if off <= TOLERANCE[device.type] * expected.abs().max() else frozen


def _watched(network: nn.Module, x: torch.Tensor) -> tuple[list[_Call], torch.Tensor]:
    """Return the calls of the network's modules while `x` passes, and what it returns."""
    calls: list[_Call] = []

    def note(module: nn.Module, given: tuple[object, ...], result: object) -> None:
        if len(given) == 1 and isinstance(given[0], torch.Tensor) and torch.is_tensor(result):
            calls.append(_Call(module, given[0], given[0]._version, result, result._version))

    handles = [module.register_forward_hook(note) for module in network.modules()]
    try:
        features: torch.Tensor = network(x)
    finally:
        for handle in handles:
            handle.remove()
    return calls, features


def _pairs(calls: list[_Call]) -> list[tuple[_Call, _Call]]:
    """Return the calls of a convolution and of the batch norm that gets what it returned."""
    times = Counter(call.module for call in calls)
    once = [call for call in calls if times[call.module] == 1]
    convs = {id(call.result): call for call in once if _is_plain(call.module)}
    return [
        (conv, call)
        for call in once
        if _is_fixed(call.module)
        and (conv := convs.get(id(call.given)))
        and conv.result_version == call.given_version
    ]


def _is_plain(module: nn.Module) -> bool:
    """Return whether it is a convolution whose padding is of zeros, and as many on both sides."""
    if type(module) is Conv2dSame:
        return module.dilation == (1, 1)
    return (
        type(module) is nn.Conv2d
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
    )


def _is_fixed(module: nn.Module) -> bool:
    """Return whether it is a batch norm by fixed statistics, with an activation behind at most."""
    if type(module) is BatchNormAct2d and type(module.drop) is not nn.Identity:
        return False
    if type(module) not in (nn.BatchNorm2d, BatchNormAct2d):
        return False
    return not module.training and isinstance(module.running_mean, torch.Tensor)


def _joined(call: _Call, norm: nn.Module) -> _Convolution:
    """Return the convolution that was called, with the batch norm behind it."""
    conv = call.module
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None
    assert variance is not None
    scale = (variance.double() + norm.eps).rsqrt()
    if norm.affine:
        scale = scale * norm.weight.double()
    before = -mean.double() if conv.bias is None else conv.bias.double() - mean.double()
    bias = before * scale + (norm.bias.double() if norm.affine else 0)
    weight = conv.weight.double() * scale[:, None, None, None]
    padding = conv.padding
    assert not isinstance(padding, str)
    if isinstance(conv, Conv2dSame):
        sides = zip(call.given.shape[2:], conv.kernel_size, conv.stride, strict=True)
        total = [get_same_padding(*each, 1) for each in sides]
        padding = tuple((each + 1) // 2 for each in total)
        weight = F.pad(weight, (total[1] % 2, 0, total[0] % 2, 0))
    dtype = conv.weight.dtype
    weight = weight.to(dtype).contiguous(memory_format=torch.channels_last)
    activation = norm.act if isinstance(norm, BatchNormAct2d) else nn.Identity()
    return _Convolution(conv, weight, bias.to(dtype), padding, activation)
