"""The losses of stage one: pure functions on tensors, no model, no data.

Letters in shape comments: b batch, d embedding size. Temperatures divide a cosine; a temperature
of 0.05 is what sentence-transformers calls a scale of 20. The socially aware n-pair loss is our
reconstruction of Das & Srihari 2024 (arXiv 2402.00446) from its abstract.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Class of an example that is known to be unsafe while its level is not known.
UNSAFE_OF_UNKNOWN_LEVEL = 3


def unsafe_log_odds(level_logits: Tensor) -> Tensor:
    """Return log P(unsafe) / P(casual) from level logits.

    Args:
        level_logits: (b, 3), for casual, needs caution, needs intervention.

    Returns:
        (b,) log-odds; 0 means as likely unsafe as not.
    """
    return torch.logsumexp(level_logits[:, 1:], dim=1) - level_logits[:, 0]  # (b,)


def level_loss(level_logits: Tensor, classes: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted cross-entropy on levels, with partly known labels.

    Where only "unsafe" is known, the probability of both unsafe levels counts: -log(p_1 + p_2).

    Args:
        level_logits: (b, 3).
        classes: (b,) in {0, 1, 2, UNSAFE_OF_UNKNOWN_LEVEL}.
        weights: (b,) agreement of the annotators, non-negative.

    Returns:
        Scalar; 0 if all weights are 0.
    """
    log_p = F.log_softmax(level_logits, dim=1)  # (b, 3)
    any_unsafe = torch.logsumexp(log_p[:, 1:], dim=1, keepdim=True)  # (b, 1)
    nll = -torch.cat([log_p, any_unsafe], dim=1).gather(1, classes[:, None]).squeeze(1)  # (b,)
    return (weights * nll).sum() / weights.sum().clamp_min(1e-8)


def twin_loss(unsafe_logits: Tensor, safe_logits: Tensor) -> Tensor:
    """Return softplus(z(safe twin) - z(unsafe twin)), the mean over the batch.

    Args:
        unsafe_logits: (b, 3) level logits of the unsafe versions.
        safe_logits: (b, 3) level logits of the safe versions, row by row their twins.

    Returns:
        Scalar; log 2 where twins cannot be told apart.
    """
    return F.softplus(unsafe_log_odds(safe_logits) - unsafe_log_odds(unsafe_logits)).mean()


def socially_aware_n_pair_loss(
    conversations: Tensor,
    rules: Tensor,
    *,
    weights: Tensor | None = None,
    negative_weights: Tensor | None = None,
    temperature: float = 0.05,
) -> Tensor:
    """Return the socially aware n-pair loss over in-batch rules.

    L = -(1/N) sum_i a_i log( e^{s_ii/t} / (e^{s_ii/t} + sum_{j != i} w_ij e^{s_ij/t}) ), s the cosine.

    With all weights 1 this is InfoNCE, the multi-class n-pair loss (Sohn 2016) on unit vectors.

    Args:
        conversations: (b, d), of any length; they are normalised here.
        rules: (b, d), row i the rule that conversation i touches.
        weights: (b,) a_i, by severity and agreement; 1 if not given.
        negative_weights: (b, b) w_ij in [0, 1]; 0 removes a false negative; 1 if not given.
        temperature: divides the cosine, > 0.

    Returns:
        Scalar.
    """
    similarity = F.normalize(conversations, dim=1) @ F.normalize(rules, dim=1).T / temperature  # (b, b)
    if negative_weights is not None:
        eye = torch.eye(len(similarity), dtype=torch.bool, device=similarity.device)
        w = torch.where(eye, torch.ones_like(negative_weights), negative_weights)  # (b, b)
        # A weight is added in log space; log 0 = -inf takes the term out of the sum.
        similarity = similarity + torch.log(w)
    nll = -F.log_softmax(similarity, dim=1).diagonal()  # (b,)
    return nll.mean() if weights is None else (weights * nll).mean()


def same_rule_mask(rules: Tensor, threshold: float = 0.8) -> Tensor:
    """Return w_ij = 0 where two rules of the batch say the same, 1 elsewhere.

    Args:
        rules: (b, d) embeddings of the current encoder; no gradient flows through the mask.
        threshold: cosine from which two rules count as the same.

    Returns:
        (b, b) of 0 and 1.
    """
    unit = F.normalize(rules.detach(), dim=1)
    return (unit @ unit.T < threshold).to(rules.dtype)


def violation_logits(violation: Tensor, rules: Tensor, level_logits: Tensor) -> Tensor:
    """Return the log-odds that conversation i breaks rule j.

    Args:
        violation: (b, d) what the conversation does, in the space of rules.
        rules: (b, d) rule embeddings; they are normalised here.
        level_logits: (b, 3) of the conversations.

    Returns:
        (b, b): <violation_i, rule_j> + z_i.
    """
    return violation @ F.normalize(rules, dim=1).T + unsafe_log_odds(level_logits)[:, None]  # (b, b)


def stance_loss(unsafe_scores: Tensor, safe_scores: Tensor, negative_weights: Tensor) -> Tensor:
    """Return the loss of "does this turn break this rule".

    The unsafe version breaks its own rule and no other of the batch; its safe twin breaks none.

    Args:
        unsafe_scores: (b, b) `violation_logits` of the unsafe versions.
        safe_scores: (b, b) of the safe twins.
        negative_weights: (b, b), 0 where rule j says the same as rule i.

    Returns:
        Scalar: the mean of the binary cross-entropies of own rule broken, own rule kept, other
        rules not broken, each kind weighing the same.
    """
    own = F.softplus(-unsafe_scores.diagonal()).mean()
    kept = F.softplus(safe_scores.diagonal()).mean()
    eye = torch.eye(len(unsafe_scores), dtype=torch.bool, device=unsafe_scores.device)
    w = negative_weights.masked_fill(eye, 0.0)  # (b, b)
    other = (w * F.softplus(unsafe_scores)).sum() / w.sum().clamp_min(1.0)
    return (own + kept + other) / 3
