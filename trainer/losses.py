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
    own: Tensor | None = None,
    weights: Tensor | None = None,
    negative_weights: Tensor | None = None,
    hard_negatives: Tensor | None = None,
    hard_weights: Tensor | None = None,
    temperature: float = 0.05,
) -> Tensor:
    """Return the socially aware n-pair loss over the rules of a batch and hard negatives.

    L = -(1/b) sum_i a_i log( e^{s(c_i, r_i)/t} / (e^{s(c_i, r_i)/t} + sum_{j != i} w_ij e^{s(c_i, r_j)/t}
    + sum_m v_im e^{s(c_i, h_im)/t}) ), s the cosine.

    With all weights 1 and no hard negatives this is InfoNCE, the multi-class n-pair loss (Sohn 2016)
    on unit vectors. Letters: n rules, at least b; m hard negatives.

    Args:
        conversations: (b, d), of any length; they are normalised here.
        rules: (n, d); more than b where other processes' rules serve as negatives too.
        own: (b,) position in `rules` of the rule that conversation i touches; row i if not given.
        weights: (b,) a_i, by severity and agreement; 1 if not given.
        negative_weights: (b, n) w_ij in [0, 1]; 0 removes a false negative; 1 if not given. The entry
            of the own rule is not read.
        hard_negatives: (b, m, d) h_im: they share topic and words with the rule, but not the norm.
        hard_weights: (b, m) v_im in [0, 1]; 0 for a place that holds no negative; 1 if not given.
        temperature: divides the cosine, > 0.

    Returns:
        Scalar.
    """
    unit = F.normalize(conversations, dim=1)  # (b, d)
    scores = unit @ F.normalize(rules, dim=1).T / temperature  # (b, n)
    own = torch.arange(len(unit), device=unit.device) if own is None else own  # (b,)
    if negative_weights is not None:
        scores = scores + _log_weights(negative_weights.scatter(1, own[:, None], 1.0))
    if hard_negatives is not None and hard_negatives.shape[1]:
        hard = (F.normalize(hard_negatives, dim=2) @ unit[:, :, None]).squeeze(2) / temperature  # (b, m)
        hard = hard if hard_weights is None else hard + _log_weights(hard_weights)
        scores = torch.cat([scores, hard], dim=1)  # (b, n + m)
    nll = -F.log_softmax(scores, dim=1).gather(1, own[:, None]).squeeze(1)  # (b,)
    return nll.mean() if weights is None else (weights * nll).mean()


def _log_weights(weights: Tensor) -> Tensor:
    """A weight is added in log space; log 0 = -inf takes its term out of the sum, gradient and all."""
    return torch.log(weights)


def false_negative_weights(
    anchors: Tensor,
    rules: Tensor,
    *,
    same: float = 0.8,
    graded: bool = False,
    anchor_foundations: Tensor | None = None,
    foundations: Tensor | None = None,
) -> Tensor:
    """Return w_ij, how far rule j may serve as a negative for a conversation that touches rule i.

    A rule that says the same is no negative: 0 from the cosine `same` on. Graded weights are the
    socially aware part: they fall in a line from 1 at the cosine `same` / 2 to 0 at `same`, and are
    halved where both rules rest on the same moral foundation.

    Args:
        anchors: (b, d) embeddings of the own rules, by the current encoder or a teacher; no gradient
            flows through the weights.
        rules: (n, d) embeddings of all rules.
        same: cosine from which two rules count as the same, (0, 1].
        graded: False for 0 and 1 alone.
        anchor_foundations: (b,) number of the moral foundation of the own rule; -1 where not known.
        foundations: (n,) the same of all rules.

    Returns:
        (b, n) in [0, 1].
    """
    cosine = F.normalize(anchors.detach(), dim=1) @ F.normalize(rules.detach(), dim=1).T  # (b, n)
    if not graded:
        return (cosine < same).to(rules.dtype)
    weights = ((same - cosine) / (same / 2)).clamp(0.0, 1.0)
    if anchor_foundations is not None and foundations is not None:
        known = (anchor_foundations >= 0)[:, None]
        alike = known & (anchor_foundations[:, None] == foundations[None, :])  # (b, n)
        weights = torch.where(alike, weights / 2, weights)
    return weights


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
