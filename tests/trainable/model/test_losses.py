"""The interaction loss is the KL divergence it claims to be, and stays finite."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy.special import rel_entr, softmax
from scipy.stats import entropy
from torch.nn import functional as F

from trainable.config import TrialConfig
from trainable.model.losses import (
    Step,
    class_balanced,
    cross_entropy,
    implied_super_log_probs,
    interaction_loss,
    soft_targets,
)

Array = NDArray[np.float64]
temperatures = st.floats(0.25, 8.0)


@st.composite
def cases(draw: st.DrawFn, logits: st.SearchStrategy[float] | None = None) -> tuple[Any, ...]:
    """Superclass logits (N, K), subclass logits (N, C) and the superclass of each subclass."""
    num_super = draw(st.integers(2, 4))
    extra = draw(st.lists(st.integers(0, num_super - 1), max_size=6))
    super_of_sub = draw(st.permutations([*range(num_super), *extra]))
    num = draw(st.integers(1, 4))
    elements = st.floats(-20, 20) if logits is None else logits
    super_logits = draw(arrays(np.float64, (num, num_super), elements=elements))
    sub_logits = draw(arrays(np.float64, (num, len(super_of_sub)), elements=elements))
    return torch.tensor(super_logits), torch.tensor(sub_logits), torch.tensor(super_of_sub)


def implied_by_summing(sub_logits: torch.Tensor, super_of_sub: torch.Tensor, t: float) -> Array:
    """p̂_super (N, K): each superclass is the sum of its subclasses' softmax probabilities."""
    p_sub = np.exp(sub_logits.numpy() / t)
    p_sub /= p_sub.sum(axis=1, keepdims=True)
    result = np.zeros((len(p_sub), max(super_of_sub.tolist()) + 1))
    for output, superclass in enumerate(super_of_sub.tolist()):
        result[:, superclass] += p_sub[:, output]
    return result


@given(cases(), temperatures)
@settings(deadline=None, max_examples=40)
def test_implied_probability_is_the_sum_over_the_subclasses(case: Any, t: float) -> None:
    _, sub_logits, super_of_sub = case
    implied = implied_super_log_probs(sub_logits, super_of_sub, t).exp().numpy()
    np.testing.assert_allclose(implied, implied_by_summing(sub_logits, super_of_sub, t), rtol=1e-9)


@given(cases(), temperatures)
@settings(deadline=None, max_examples=40)
def test_implied_probabilities_sum_to_one(case: Any, t: float) -> None:
    _, sub_logits, super_of_sub = case
    total = implied_super_log_probs(sub_logits, super_of_sub, t).exp().sum(1)
    np.testing.assert_allclose(total, 1.0, rtol=1e-12)


@given(cases(), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=40)
def test_order_of_the_subclasses_within_a_superclass_does_not_matter(case: Any, rng: Any) -> None:
    _, sub_logits, super_of_sub = case
    order = torch.arange(len(super_of_sub))
    for superclass in super_of_sub.unique():
        members = (super_of_sub == superclass).nonzero()[:, 0]
        order[members] = members[rng.sample(range(len(members)), len(members))]
    assert torch.equal(super_of_sub[order], super_of_sub)
    before = implied_super_log_probs(sub_logits, super_of_sub)
    after = implied_super_log_probs(sub_logits[:, order], super_of_sub)
    np.testing.assert_allclose(after, before, rtol=1e-12, atol=1e-12)


@given(cases(logits=st.sampled_from([-1e4, 0.0, 1e4])), st.sampled_from([0.01, 1.0, 1000.0]))
@settings(deadline=None, max_examples=40)
def test_extreme_logits_give_finite_losses_and_gradients(case: Any, t: float) -> None:
    super_logits, sub_logits, super_of_sub = case
    super_logits = super_logits.float().requires_grad_()
    sub_logits = sub_logits.float().requires_grad_()
    implied = implied_super_log_probs(sub_logits, super_of_sub, t)
    assert implied.isfinite().all()
    np.testing.assert_allclose(implied.detach().exp().sum(1), 1.0, rtol=1e-5)
    loss = interaction_loss(super_logits, sub_logits, super_of_sub, t)
    loss.backward()
    assert loss.isfinite()
    assert super_logits.grad is not None
    assert super_logits.grad.isfinite().all()
    assert sub_logits.grad is not None
    assert sub_logits.grad.isfinite().all()


@given(cases(), temperatures)
@settings(deadline=None, max_examples=40)
def test_interaction_loss_is_the_mean_kl_divergence_from_implied_to_superclass_head(
    case: Any, t: float
) -> None:
    super_logits, sub_logits, super_of_sub = case
    implied = implied_by_summing(sub_logits, super_of_sub, t)
    p_super = softmax(super_logits.numpy() / t, axis=1)
    loss = float(interaction_loss(super_logits, sub_logits, super_of_sub, t))
    assert loss == pytest.approx(entropy(implied, p_super, axis=1).mean(), rel=1e-7, abs=1e-12)
    assert loss == pytest.approx(rel_entr(implied, p_super).sum(1).mean(), rel=1e-7, abs=1e-12)


@given(cases())
@settings(deadline=None, max_examples=40)
def test_interaction_loss_is_never_negative(case: Any) -> None:
    assert interaction_loss(*case) >= -1e-12


@given(cases(), temperatures, st.floats(-5, 5))
@settings(deadline=None, max_examples=40)
def test_heads_that_agree_have_no_interaction_loss(case: Any, t: float, shift: float) -> None:
    _, sub_logits, super_of_sub = case
    agreeing = t * implied_super_log_probs(sub_logits, super_of_sub, t) + shift
    assert float(interaction_loss(agreeing, sub_logits, super_of_sub, t)) == pytest.approx(
        0.0, abs=1e-12
    )


def test_heads_that_disagree_have_an_interaction_loss() -> None:
    sub_logits, super_of_sub = torch.zeros(1, 3), torch.tensor([0, 0, 1])  # implied: 2/3, 1/3
    loss = interaction_loss(torch.zeros(1, 2), sub_logits, super_of_sub)
    expected = 2 / 3 * np.log((2 / 3) / (1 / 2)) + 1 / 3 * np.log((1 / 3) / (1 / 2))
    assert float(loss) == pytest.approx(expected, rel=1e-6)


@given(cases(), temperatures)
@settings(deadline=None, max_examples=40)
def test_temperature_divides_the_logits_of_both_heads(case: Any, t: float) -> None:
    super_logits, sub_logits, super_of_sub = case
    divided = interaction_loss(super_logits / t, sub_logits / t, super_of_sub)
    together = interaction_loss(super_logits, sub_logits, super_of_sub, t)
    assert float(together) == pytest.approx(float(divided), rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_cross_entropy_with_soft_targets_is_pytorchs_label_smoothing(smoothing: float) -> None:
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(12, 5, generator=rng)
    target = torch.randint(5, (12,), generator=rng)
    soft = soft_targets(target, 5, label_smoothing=smoothing)
    expected = F.cross_entropy(logits, target, label_smoothing=smoothing)
    torch.testing.assert_close(F.cross_entropy(logits, soft), expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_outlier_exposure_asks_for_every_known_class_alike_and_of_borrowed_images_alone(
    smoothing: float,
) -> None:
    rng = torch.Generator().manual_seed(1)
    logits, weight = torch.randn(6, 4, generator=rng), 0.7
    target = torch.tensor([0, 3, 1, 3, 2, 3])  # 3 is novel
    soft = soft_targets(target, 4, label_smoothing=smoothing, outlier_exposure=weight)
    each = F.cross_entropy(logits, soft, reduction="none")
    is_novel = target == 3
    # Hendrycks et al. (2019), equation 2: lambda times the cross-entropy to uniform.
    log_p = torch.from_numpy(np.log(softmax(logits.numpy(), axis=1)))
    torch.testing.assert_close(each[is_novel], -weight * log_p[is_novel, :3].mean(1))
    unexposed = soft_targets(target, 4, label_smoothing=smoothing)
    assert torch.equal(soft[~is_novel], unexposed[~is_novel])


@given(cases(), st.data())
@settings(deadline=None, max_examples=40)
def test_interaction_loss_is_the_mean_over_the_kept_images(case: Any, data: st.DataObject) -> None:
    super_logits, sub_logits, super_of_sub = case
    keep = torch.tensor(data.draw(st.lists(st.booleans(), min_size=4, max_size=4)))
    keep = keep[: len(sub_logits)]
    loss = interaction_loss(super_logits, sub_logits, super_of_sub, keep_N=keep)
    if not keep.any():
        assert loss == 0
        return
    expected = interaction_loss(super_logits[keep], sub_logits[keep], super_of_sub)
    np.testing.assert_allclose(loss, expected, rtol=1e-9, atol=1e-12)


# --- Uneven data -----------------------------------------------------------------------------


def step_of(num_images: list[int], wanted: torch.Tensor) -> Step:
    logits = torch.randn(len(wanted), len(num_images), generator=torch.Generator().manual_seed(0))
    return Step(
        config=TrialConfig(), logits={"sub": logits}, wanted={"sub": wanted},
        pooled_ND=logits, super_of_sub=torch.zeros(len(num_images), dtype=torch.int64),
        num_images={"sub": torch.tensor(num_images)}, keep_N=None,
    )  # fmt: skip


def test_class_balanced_is_cross_entropy_where_classes_are_of_one_size() -> None:
    step = step_of([50, 50, 50, 0], torch.tensor([0, 1, 2, 2]))
    torch.testing.assert_close(class_balanced(step), cross_entropy(step))


@pytest.mark.parametrize("soft", [False, True])
def test_class_balanced_weighs_a_class_by_its_effective_number(soft: bool) -> None:
    """Of 1 and 1,000 images: 1 and (1 - 0.999^1000) / 0.001 = 632.3, so weights of 632.3 to 1."""
    target = torch.tensor([0, 1])
    wanted = soft_targets(target, 2, label_smoothing=0.2) if soft else target
    step = step_of([1, 1000], wanted)
    rare, common = 2 * 632.30 / 633.30, 2 / 633.30
    log_p = step.logits["sub"].log_softmax(1)
    share = 0.1 if soft else 0.0
    wanted_NC = torch.tensor([[1 - share, share], [share, 1 - share]])
    expected = -(wanted_NC * torch.tensor([rare, common]) * log_p).sum(1).mean()
    torch.testing.assert_close(class_balanced(step), expected, rtol=1e-4, atol=0)
