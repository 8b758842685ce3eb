"""How well scores separate known from novel images, and confidence right from wrong answers."""

import torch

ECE_BINS = 15


def separation(known_N: torch.Tensor, novel_M: torch.Tensor) -> dict[str, float]:
    """Return how well scores tell known images from novel ones, without a threshold."""
    return {
        "auroc": auroc(known_N, novel_M),
        "aupr": average_precision(-novel_M, -known_N),
        "fpr95": fpr_at_tpr(known_N, novel_M, 0.95),
        "known_rejected95": fpr_at_tpr(-novel_M, -known_N, 0.95),
    }


def auroc(known_N: torch.Tensor, novel_M: torch.Tensor) -> float:
    """Return the probability that a known image scores above a novel one; ties count half."""
    novel = novel_M.sort().values
    below = torch.searchsorted(novel, known_N)
    up_to = torch.searchsorted(novel, known_N, right=True)
    return float((below + up_to).double().mean() / (2 * len(novel)))


def fpr_at_tpr(known_N: torch.Tensor, novel_M: torch.Tensor, tpr: float) -> float:
    """Return the fraction of novel images accepted where at least `tpr` of the known ones are."""
    count = int(torch.ceil(torch.tensor(tpr * len(known_N), dtype=torch.float64) - 1e-9))
    threshold = known_N.sort(descending=True).values[max(count, 1) - 1]
    return float((novel_M >= threshold).double().mean())


def oscr(known_N: torch.Tensor, correct_N: torch.Tensor, novel_M: torch.Tensor) -> float:
    """Return the area under known images accepted and right, against novel images accepted.

    Dhamija, Günther and Boult (NeurIPS 2018), integrated exactly over all thresholds with ties
    counting half, so that with a perfect classifier it equals the AUROC.
    """
    if not correct_N.any():
        return 0.0
    return auroc(known_N[correct_N], novel_M) * float(correct_N.double().mean())


def average_precision(positive_N: torch.Tensor, negative_M: torch.Tensor) -> float:
    """Return the area under the precision-recall curve as a sum over its steps.

    Images of one score come together, as in scikit-learn's `average_precision_score`.
    """
    positive, negative = positive_N.sort().values, negative_M.sort().values
    values, counts = positive.unique(return_counts=True)
    true = len(positive) - torch.searchsorted(positive, values)
    false = len(negative) - torch.searchsorted(negative, values)
    precision = true.double() / (true + false)
    return float((precision * counts).sum() / len(positive))


def expected_calibration_error(logits_NC: torch.Tensor, target_N: torch.Tensor) -> float:
    """Return the mean gap between confidence and accuracy (Naeini et al., AAAI 2015).

    Confidence is the largest softmax probability, novel included, in 15 bins of equal width.
    """
    confidence_N, answer_N = logits_NC.double().softmax(1).max(1)
    bin_N = (confidence_N * ECE_BINS).ceil().long().clamp(1, ECE_BINS) - 1
    gap_N = confidence_N - (answer_N == target_N).double()
    return float(gap_N.new_zeros(ECE_BINS).index_add(0, bin_N, gap_N).abs().sum() / len(gap_N))
