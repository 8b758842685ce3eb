"""A folded network gives the features of the network that it was, with fewer operations."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.norm_act import BatchNormAct2d
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from trainable.config import TrialConfig
from trainable.model.branch import BranchModel
from trainable.model.folding import folded

CPU = torch.device("cpu")


def drawn(network: nn.Module) -> nn.Module:
    """Return the network in eval mode, with batch norms that do something."""
    rng = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.3, generator=rng)
            module.running_var.uniform_(0.5, 2, generator=rng)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 2, generator=rng)
                nn.init.normal_(module.bias, 0, 0.3, generator=rng)
    return network.eval().requires_grad_(False)


def num_norms(network: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


def images(size: int) -> torch.Tensor:
    x = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(1))
    return x.contiguous(memory_format=torch.channels_last)


# --- Backbones -------------------------------------------------------------------------------


def branch(backbone: str, image_size: int, fine_tune: str) -> BranchModel:
    config = TrialConfig(backbone=backbone, image_size=image_size, fine_tune=fine_tune)
    model = BranchModel.build(
        config.branches()[0], {"super": 3, "sub": 5}, 0,
        pretrained=backbone.startswith("efficientnet_lite"),
    )  # fmt: skip
    return model.to(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("backbone", "image_size", "fine_tune", "norms_left"),
    [
        ("efficientnet_lite0", 64, "frozen", 0),
        ("efficientnet_lite0", 45, "last_2", 0),  # an odd size is padded on both sides
        ("efficientnet_lite2", 32, "frozen", 0),
        ("resnet18", 32, "last_1", 0),
        ("test_vit", 32, "frozen", 0),
        ("regnety_002", 32, "last_1", 0),
        ("repvgg_a0", 32, "frozen", 17),  # of its branches without a convolution
    ],
)
def test_frozen_part_of_a_backbone_gives_the_same_features(
    backbone: str, image_size: int, fine_tune: str, norms_left: int
) -> None:
    model = branch(backbone, image_size, fine_tune)
    if not backbone.startswith("efficientnet_lite"):
        drawn(model.frozen)
    x = images(image_size)
    with torch.no_grad():
        expected = model.frozen.double()(x.double())
        model.frozen.float()
        features = model.encode(x)
    assert features.dtype == torch.float32
    assert num_norms(model._encoder) == norms_left
    scale = expected.abs().max()
    torch.testing.assert_close(features.double() / scale, expected / scale, atol=1e-4, rtol=0)


class Operations(TorchDispatchMode):
    """Counts what is computed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def test_the_embedded_backbone_writes_each_activation_once() -> None:
    """What a pass costs, by a count: 49 convolutions, 9 sums and a mean."""
    model = branch("efficientnet_lite0", 32, "frozen")
    x = images(32)
    model.encode(x)
    with Operations() as operations:
        model.encode(x)
    allowed = {"_convolution_pointwise": 49, "add": 9, "add_": 9, "mean": 1}
    views = {"view", "as_strided_", "detach", "alias"}
    computed = {name: num for name, num in operations.counts.items() if name not in views}
    assert all(num <= allowed.get(name, 0) for name, num in computed.items()), computed


def test_state_and_fingerprint_are_those_of_the_network() -> None:
    """A model saved before reads as one saved now."""
    model, untouched = (branch("efficientnet_lite0", 32, "last_1") for _ in range(2))
    model.encode(images(32))
    state, expected = model.state_dict(), untouched.state_dict()
    assert [*state] == [*expected]
    assert all(torch.equal(tensor, expected[name]) for name, tensor in state.items())
    assert model.frozen_fingerprint == untouched.frozen_fingerprint
    assert len([*model.parameters()]) == len([*untouched.parameters()])


def test_only_weights_that_change_take_memory() -> None:
    model = branch("test_vit", 32, "frozen")
    assert model._encoder is model.frozen
    network = drawn(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)))
    twin = folded(network, 8, CPU)
    shared = {tensor.data_ptr() for tensor in network.parameters()}
    new = [name for name, tensor in twin.named_parameters() if tensor.data_ptr() not in shared]
    assert new == ["0.weight", "0.bias"]


def test_features_are_those_of_the_network_also_where_inference_comes_first() -> None:
    first, second = (branch("efficientnet_lite0", 32, "frozen") for _ in range(2))
    with torch.inference_mode():
        expected = first.encode(images(32))
    assert torch.equal(second.encode(images(32)), expected)


# --- Networks by hand ------------------------------------------------------------------------


class Both(nn.Module):
    """What a convolution returns goes through a batch norm and around it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        z: torch.Tensor = self.norm(y) + y
        return z


class Changed(nn.Module):
    """What a convolution returns is changed in place before the batch norm sees it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.norm(self.conv(x).relu_())
        return y


class Repeated(nn.Module):
    """Of two convolutions with one batch norm, or one with two, none is folded."""

    def __init__(self, num_convs: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1) for _ in range(num_convs))
        self.norms = nn.ModuleList(nn.BatchNorm2d(3) for _ in range(3 - num_convs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for number in range(2):
            x = self.norms[number % len(self.norms)](self.convs[number % len(self.convs)](x))
        return x


def same(kernel: int, stride: int, groups: int = 1) -> nn.Module:
    return Conv2dSame(6, 6, kernel, stride=stride, groups=groups, bias=False)


FOLDED: dict[str, Callable[[], nn.Module]] = {
    "bias": lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)),
    "no scale": lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, affine=False)),
    "groups": lambda: nn.Sequential(nn.Conv2d(3, 6, (1, 3), (2, 1), groups=3), nn.BatchNorm2d(6)),
    "dilation": lambda: nn.Sequential(nn.Conv2d(3, 6, 3, 1, 2, 2), nn.BatchNorm2d(6), nn.ReLU()),
    "relu": lambda: nn.Sequential(nn.Conv2d(3, 6, 3), BatchNormAct2d(6)),
    "silu": lambda: nn.Sequential(nn.Conv2d(3, 6, 3), BatchNormAct2d(6, act_layer=nn.SiLU)),
    "gelu": lambda: nn.Sequential(nn.Conv2d(3, 6, 3), BatchNormAct2d(6, act_layer=nn.GELU)),
    "same": lambda: nn.Sequential(
        *(nn.Conv2d(3, 6, 1), same(3, 2), BatchNormAct2d(6), same(5, 2, 6), BatchNormAct2d(6)),
        *(same(2, 2), nn.BatchNorm2d(6), same(4, 1), nn.BatchNorm2d(6)),
    ),
}
LEFT: dict[str, Callable[[], nn.Module]] = {
    "before": lambda: nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 6, 3)),
    "between": lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(inplace=True), nn.BatchNorm2d(6)),
    "both": Both,
    "changed": Changed,
    "one norm": lambda: Repeated(2),
    "one convolution": lambda: Repeated(1),
    "of the batch": lambda: nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, track_running_stats=False)
    ),
    "transposed": lambda: nn.Sequential(nn.ConvTranspose2d(3, 6, 3), nn.BatchNorm2d(6)),
    "reused": lambda: nn.Sequential(*[nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)] * 2),
    "mirrored": lambda: nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(6)
    ),
}


@pytest.mark.parametrize("size", [15, 16])
@pytest.mark.parametrize("name", [*FOLDED, *LEFT])
def test_network_gives_the_same_features_whether_it_can_be_folded_or_not(
    name: str, size: int
) -> None:
    torch.manual_seed(0)
    network = drawn((FOLDED | LEFT)[name]())
    twin = folded(network, size, CPU)
    x = images(size)
    torch.testing.assert_close(twin(x), network(x), atol=1e-5, rtol=1e-5)
    assert num_norms(twin) == (num_norms(network) if name in LEFT else 0)
