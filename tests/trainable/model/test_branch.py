"""A branch trains what it should, keeps the rest as it was, and its heads are the formulas."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from tests.trainable.tiny import fixed_augmentation, tiny_backbone, tiny_branch
from trainable.config import Branch, Task
from trainable.model.branch import BranchModel
from trainable.model.heads import INITIAL_COSINE_SCALE, CosineHead

NUM_CLASSES: dict[Task, int] = {"super": 3, "sub": 5}


def build(seed: int = 0, **changes: Any) -> BranchModel:
    return BranchModel(tiny_branch(**changes), tiny_backbone(), NUM_CLASSES, seed)


def pixels(size: int, num: int = 2) -> torch.Tensor:
    rng = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (num, size, size, 3), dtype=torch.uint8, generator=rng)


def modes(module: nn.Module) -> set[bool]:
    """Return whether its layers are in training mode: one value, or both."""
    return {each.training for each in module.modules()}


# --- Frozen and trained ------------------------------------------------------------------


@pytest.mark.parametrize(("fine_tune", "frozen"), [("full", 0), ("last_1", 2), ("frozen", 3)])
def test_stages_are_split_at_the_boundary(fine_tune: str, frozen: int) -> None:
    model = build(fine_tune=fine_tune)
    assert (len(model.frozen), len(model.tuned)) == (frozen, 3 - frozen)
    assert model.has_frozen_part == (frozen > 0)
    assert not any(p.requires_grad for p in model.frozen.parameters())
    assert all(p.requires_grad for p in model.tuned.parameters())
    assert all(p.requires_grad for p in model.heads.parameters())


def test_frozen_part_evaluates_from_the_start() -> None:
    assert modes(build().frozen) == {False}


def test_frozen_part_evaluates_in_training_mode() -> None:
    model = build()
    for mode in (True, False, True):
        model.train(mode)
        assert modes(model.frozen) == {False}
        assert modes(model.tuned) == modes(model.heads) == {mode}


@pytest.mark.parametrize("is_training", [None, True, False])
def test_encoding_leaves_batch_norm_statistics_alone(is_training: bool | None) -> None:
    model = build()
    if is_training is not None:
        model.train(is_training)
    before = {key: t.clone() for key, t in model.frozen.state_dict().items()}
    x = model.prepare(pixels(8))
    first = model.encode(x)
    assert torch.equal(first, model.encode(x))
    torch.testing.assert_close(first[:1], model.encode(x[:1]))  # no statistics of the batch
    assert not first.requires_grad
    assert all(torch.equal(t, before[key]) for key, t in model.frozen.state_dict().items())


def test_gradients_reach_all_that_is_trained() -> None:
    model = build(fine_tune="last_2").train()
    logits = model(model.encode(model.prepare(pixels(8))))
    sum(each.square().sum() for each in logits.values()).backward()
    assert all(p.grad is not None for p in (*model.tuned.parameters(), *model.heads.parameters()))
    assert all(p.grad is None for p in model.frozen.parameters())


def test_logits_have_a_column_for_every_class() -> None:
    model = build()
    logits = model(model.encode(model.prepare(pixels(8, num=4))))
    assert {task: each.shape for task, each in logits.items()} == {"super": (4, 3), "sub": (4, 5)}


# --- State -------------------------------------------------------------------------------


@pytest.mark.parametrize("fine_tune", ["full", "last_1", "last_2", "frozen"])
def test_trained_state_is_all_that_is_not_frozen(fine_tune: str) -> None:
    model = build(fine_tune=fine_tune)
    saved = {tensor.data_ptr() for tensor in model.trained_state().values()}
    trained = [*model.tuned.state_dict().values(), *model.heads.state_dict().values()]
    assert saved == {tensor.data_ptr() for tensor in trained}
    assert saved.isdisjoint(tensor.data_ptr() for tensor in model.frozen.state_dict().values())


def test_loaded_trained_state_gives_the_same_answers() -> None:
    model = build(seed=1, fine_tune="last_2").train()
    model(model.encode(model.prepare(pixels(8))))  # moves batch-norm statistics
    other = build(seed=2, fine_tune="last_2")
    other.load_trained_state(model.trained_state())
    for each in (model.eval(), other.eval()):
        each.frozen.eval()
    x = model.encode(model.prepare(pixels(8)))
    for task in ("super", "sub"):
        assert torch.equal(model(x)[task], other(x)[task])


def test_state_of_another_fine_tuning_is_refused() -> None:
    with pytest.raises(ValueError, match=r"this state is of another model: tuned\.1\.2\.weight"):
        build(fine_tune="last_1").load_trained_state(build(fine_tune="last_2").trained_state())


def test_state_that_lacks_a_head_is_refused() -> None:
    state = build().trained_state()
    del state["heads.sub.bias"]
    with pytest.raises(ValueError, match=r"of another model: heads\.sub\.bias"):
        build().load_trained_state(state)


# --- Heads -------------------------------------------------------------------------------


def test_cosine_head_is_the_formula() -> None:
    head = CosineHead(6, 4)
    rng = np.random.default_rng(0)
    weight, x = rng.normal(size=(4, 6)), rng.normal(size=(5, 6)) * 7
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(weight))
    expected = np.empty((5, 4))
    for n in range(5):
        for c in range(4):
            length = np.sqrt((x[n] ** 2).sum() * (weight[c] ** 2).sum())
            expected[n, c] = 30 * (x[n] * weight[c]).sum() / length
    logits = head(torch.from_numpy(x).float()).detach().numpy()
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)


def test_cosine_logits_do_not_depend_on_lengths_and_stay_within_the_scale() -> None:
    model = build(heads=("cosine", "cosine"))
    head = model.heads["sub"]
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    logits = head(x)
    torch.testing.assert_close(head(x * 1000), logits)
    with torch.no_grad():
        head.weight.mul_(0.01)
    torch.testing.assert_close(head(x), logits)
    assert logits.abs().max() <= INITIAL_COSINE_SCALE + 1e-4
    assert torch.equal(head(torch.zeros(1, 6)), torch.zeros(1, 5))


def test_cosine_scale_starts_at_30_and_is_learnt() -> None:
    model = build(heads=("linear", "cosine")).train()
    scale = model.heads["sub"].scale
    assert scale.item() == 30.0
    optimizer = torch.optim.Adam(model.heads.parameters(), lr=0.1)
    logits = model(model.encode(model.prepare(pixels(8))))
    F.cross_entropy(logits["sub"], torch.tensor([0, 1])).backward()
    optimizer.step()
    assert abs(scale.item() - 30) == pytest.approx(0.1, rel=1e-3)  # one step of Adam
    assert "heads.sub.scale" in model.trained_state()


def test_each_task_gets_its_type_of_head() -> None:
    model = build(heads=("linear", "cosine"))
    assert isinstance(model.heads["super"], nn.Linear)
    assert isinstance(model.heads["sub"], CosineHead)


def test_linear_head_has_weights_and_a_bias() -> None:
    head = build().heads["super"]
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(head(x), x @ head.weight.T + head.bias)


def head_weights(branch: Branch, seed: int) -> dict[str, torch.Tensor]:
    model = BranchModel(branch, tiny_backbone(), NUM_CLASSES, seed)
    return {task: head.weight.detach() for task, head in model.heads.items()}


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_initial_head_depends_on_seed_and_task_alone(kind: str) -> None:
    branch = tiny_branch(heads=(kind, kind))
    both = head_weights(branch, seed=3)
    torch.manual_seed(12345)  # the global stream has no part in it
    torch.rand(7)
    for task in ("super", "sub"):
        alone = replace(branch, tasks=(task,), heads=(kind,), fine_tune="full", lr=0.5)
        assert torch.equal(head_weights(alone, seed=3)[task], both[task])
        assert not torch.equal(head_weights(alone, seed=4)[task], both[task])
    assert not torch.equal(both["super"], both["sub"][:3])


def test_initial_head_is_drawn_as_a_linear_layer_is() -> None:
    model = BranchModel(tiny_branch(), tiny_backbone(), {"super": 3, "sub": 2000}, 0)
    weight, bound = model.heads["sub"].weight, 6**-0.5
    assert weight.abs().max() <= bound
    weight = weight.detach()
    assert float(weight.mean()) == pytest.approx(0, abs=0.02 * bound)
    assert float(weight.std()) == pytest.approx(bound / 3**0.5, rel=0.02)


# --- Preparing images --------------------------------------------------------------------


Channels = tuple[float, float, float]


def with_statistics(mean: Channels, std: Channels, size: int) -> BranchModel:
    backbone = replace(tiny_backbone(), mean=mean, std=std)
    return BranchModel(tiny_branch(image_size=size), backbone, NUM_CLASSES, 0)


def test_images_are_normalised_with_the_backbones_statistics() -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    images = pixels(8)
    x = with_statistics(mean, std, 8).prepare(images)
    expected = (images.numpy() / 255 - np.array(mean)) / np.array(std)
    np.testing.assert_allclose(x.permute(0, 2, 3, 1).numpy(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("is_augmented", [False, True])
@pytest.mark.parametrize("size", [4, 8, 12])
def test_prepared_images_are_float_and_channels_last(size: int, is_augmented: bool) -> None:
    images = pixels(8)
    before = images.clone()
    turned = fixed_augmentation(torch.full((2,), 5.0), torch.zeros(2, dtype=torch.bool))
    x = build(image_size=size).prepare(images, turned if is_augmented else None)
    assert x.dtype == torch.float32
    assert x.shape == (2, 3, size, size)
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(images, before)


@pytest.mark.parametrize("size", [7, 16, 31, 32, 33, 64, 100])
def test_images_are_resized_as_pillow_does_it(size: int) -> None:
    """Smaller: antialiased. Bigger: bilinear."""
    images = pixels(32)
    x = build(image_size=size).prepare(images).permute(0, 2, 3, 1).numpy()
    for image, resized in zip(images.numpy(), x, strict=True):
        picture = Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR)
        np.testing.assert_allclose(resized, np.asarray(picture), atol=1.01)  # Pillow rounds twice


def test_augmentation_is_applied_after_resizing_and_before_normalising() -> None:
    model = with_statistics((0.5, 0.5, 0.5), (0.25, 0.25, 0.25), 8)
    images = pixels(16)
    mirrored = fixed_augmentation(torch.zeros(2), torch.ones(2, dtype=torch.bool))
    torch.testing.assert_close(
        model.prepare(images, mirrored), model.prepare(images).flip(3), atol=1e-4, rtol=1e-4
    )
    # A rotation lets in black, which is (0 - 0.5) / 0.25 after normalisation.
    white = torch.full((1, 8, 8, 3), 255, dtype=torch.uint8)
    turned = fixed_augmentation(torch.full((1,), 45.0), torch.zeros(1, dtype=torch.bool))
    corner = model.prepare(white, turned)[0, :, 0, 0]
    torch.testing.assert_close(corner, torch.full((3,), -2.0))
