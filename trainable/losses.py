"""What training minimises: cross-entropy for each head, and their disagreement."""

import torch
import torch.nn.functional as F


def implied_super_log_probs(
    sub_logits_NC: torch.Tensor, super_of_sub_C: torch.Tensor, temperature: float = 1.0
) -> torch.Tensor:
    """Return log p̂_super (N, K): the subclass head's opinion on the superclass.

    p̂[k] is the sum of p_sub over the subclasses of k (paper, section 3.5), taken as a logsumexp
    of log-probabilities so that it neither under- nor overflows.

    Args:
        sub_logits_NC: Logits of the subclass head, novel last.
        super_of_sub_C: int64 (C,), superclass of each output; every superclass must occur.
        temperature: Divides the logits.
    """
    log_p_NC = F.log_softmax(sub_logits_NC / temperature, dim=1)
    num_super = int(super_of_sub_C.max()) + 1
    member_KC = F.one_hot(super_of_sub_C, num_super).T.bool()
    masked_NKC = log_p_NC[:, None, :].masked_fill(~member_KC, -torch.inf)
    return masked_NKC.logsumexp(dim=2)


def interaction_loss(
    super_logits_NK: torch.Tensor,
    sub_logits_NC: torch.Tensor,
    super_of_sub_C: torch.Tensor,
    temperature: float = 1.0,
) -> torch.Tensor:
    """Return KL(p̂_super || p_super), mean over the batch (paper, section 3.6): a scalar, >= 0."""
    implied_NK = implied_super_log_probs(sub_logits_NC, super_of_sub_C, temperature)
    log_p_NK = F.log_softmax(super_logits_NK / temperature, dim=1)
    return F.kl_div(log_p_NK, implied_NK, reduction="batchmean", log_target=True)
