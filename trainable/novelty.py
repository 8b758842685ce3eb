"""When to say novel: how known an image looks, the decision rule, and exact thresholds."""

from collections.abc import Callable

import torch

GEN_GAMMA, GEN_TOP = 0.1, 100
"""Liu, Lochman and Zach, GEN (CVPR 2023): the values its authors use for ImageNet."""


def _msp(logits_NC: torch.Tensor) -> torch.Tensor:
    """Hendrycks and Gimpel (ICLR 2017): the largest softmax probability of a known class."""
    return logits_NC.softmax(1)[:, :-1].amax(1)


def _max_logit(logits_NC: torch.Tensor) -> torch.Tensor:
    """Hendrycks et al. (ICML 2022): the largest logit of a known class."""
    return logits_NC[:, :-1].amax(1)


def _energy(logits_NC: torch.Tensor) -> torch.Tensor:
    """Liu et al. (NeurIPS 2020): negative free energy of the known classes."""
    return logits_NC[:, :-1].logsumexp(1)


def _gen(logits_NC: torch.Tensor) -> torch.Tensor:
    """Liu, Lochman and Zach (CVPR 2023): negative generalised entropy of the known classes."""
    top = logits_NC[:, :-1].softmax(1).sort(dim=1, descending=True).values[:, :GEN_TOP]
    return -(top**GEN_GAMMA * (1 - top) ** GEN_GAMMA).sum(1)


_SCORES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "msp": _msp,
    "max_logit": _max_logit,
    "energy": _energy,
    "gen": _gen,
}


def novelty_score(logits_NC: torch.Tensor, name: str) -> torch.Tensor:
    """Return how known each image looks: float64 (N,), higher is more known.

    Args:
        logits_NC: Logits with novel as the last column. Only known classes can look known, so
            every score is over the other columns (msp keeps novel in the denominator).
        name: One of `trainable.config.NOVELTY_SCORES`.
    """
    return _SCORES[name](logits_NC.double())


def acceptance(logits_NC: torch.Tensor, name: str) -> torch.Tensor:
    """Return the score that decides: -inf where novel is itself the argmax, float64 (N,)."""
    is_novel_N = logits_NC.argmax(1) == logits_NC.shape[1] - 1
    return novelty_score(logits_NC, name).masked_fill(is_novel_N, -torch.inf)


def decide(
    super_logits: torch.Tensor,
    sub_logits: torch.Tensor,
    super_score: torch.Tensor,
    sub_score: torch.Tensor,
    *,
    tau_super: float,
    tau_sub: float,
    couple_novel: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return both predictions, int64 (N,): the argmax where its acceptance reaches tau, else novel.

    Args:
        super_logits: (N, K + 1), novel last.
        sub_logits: (N, C + 1), novel last.
        super_score: `acceptance` of the superclass logits.
        sub_score: `acceptance` of the subclass logits.
        tau_super: Superclass threshold.
        tau_sub: Subclass threshold.
        couple_novel: A novel superclass makes the subclass novel.
    """
    novel_super, novel_sub = super_logits.shape[1] - 1, sub_logits.shape[1] - 1
    superclass = super_logits.argmax(1).masked_fill(~(super_score >= tau_super), novel_super)
    subclass = sub_logits.argmax(1).masked_fill(~(sub_score >= tau_sub), novel_sub)
    if couple_novel:
        subclass = subclass.masked_fill(superclass == novel_super, novel_sub)
    return superclass, subclass


def harmonic_mean(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return 2ab / (a + b), and 0 where both are 0."""
    return torch.where(a + b > 0, 2 * a * b / (a + b).clamp_min(1e-300), 0.0)


def calibrate(score_N: torch.Tensor, correct_N: torch.Tensor, known_N: torch.Tensor) -> float:
    """Return the tau that maximises the harmonic mean of known accuracy and novel recall.

    Exact: both rates change only at observed scores, so one sort gives every value they can
    take. Of equally good ones the lowest is taken, which rejects the fewest known images, and
    tau lies halfway to the next lower score.

    Args:
        score_N: `acceptance`, -inf where the image is called novel at any threshold.
        correct_N: bool (N,), the argmax is the right known class.
        known_N: bool (N,), the right answer is a known class; needs both values.
    """
    score_N = score_N.double()
    # Candidate i accepts the scores from values[i] up. Accepting none is never better.
    values = score_N[score_N.isfinite()].unique(sorted=True)
    if len(values) == 0:
        return 0.0
    # How many of a sorted group lie below each candidate.
    accepted_right = score_N[correct_N & known_N].sort().values
    rejected_novel = score_N[~known_N].sort().values
    right = len(accepted_right) - torch.searchsorted(accepted_right, values)
    caught = torch.searchsorted(rejected_novel, values)
    # Half the harmonic mean as a ratio of whole numbers, so that equal ones are equal floats.
    parts = right * (~known_N).sum() + caught * known_N.sum()
    best = int(((right * caught).double() / parts.clamp_min(1)).argmax())
    if best == 0:
        # Below all scores but not on one: rounding differs between a trial and its saved model.
        return float(values[0] - (1e-3 * (values[-1] - values[0]) or 1e-3))
    middle = float((values[best - 1] + values[best]) / 2)
    return middle if middle > values[best - 1] else float(values[best])
