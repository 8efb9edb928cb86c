"""Losses of the rewrite model. Pure functions on tensors: no model, no tokens, no files."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from guardrail.rewrite_tokens import Kind

IGNORED = -100  # label of a token that is not learned


def token_loss(logits: Tensor, labels: Tensor, weights: Tensor, *, smoothing: float = 0.0) -> Tensor:
    """Return the negative log-likelihood of the learned tokens, weighted by example.

    sum_b w_b sum_t nll_bt / sum_b w_b n_b: every token of an example counts as much as the example does.

    Args:
        logits: (b, t, vocabulary), of the token that the label names.
        labels: (b, t) ids; -100 is not learned.
        weights: (b,), >= 0.
        smoothing: share of the target spread over the vocabulary, [0, 1).

    Returns:
        A scalar; 0 if no token is learned.
    """
    losses = functional.cross_entropy(
        logits.float().flatten(0, 1),
        labels.flatten(),
        ignore_index=IGNORED,
        label_smoothing=smoothing,
        reduction="none",
    ).view_as(labels)  # (b, t), 0 where ignored
    learned = (labels != IGNORED) * weights[:, None]  # (b, t)
    return (losses * learned).sum() / learned.sum().clamp_min(torch.finfo(torch.float32).tiny)


def aligned(logits: Tensor, labels: Tensor, kind: Kind) -> tuple[Tensor, Tensor]:
    """Return logits (b, t, vocabulary) beside the labels (b, t) of the very tokens that they predict."""
    return (logits[:, :-1], labels[:, 1:]) if kind == "causal" else (logits, labels)


def pooled(hidden: Tensor, mask: Tensor) -> Tensor:
    """Return one vector for each text: the mean over its tokens.

    Args:
        hidden: (n, t, d).
        mask: (n, t), 1 for a token that counts.

    Returns:
        (n, d); 0 for a text without tokens.
    """
    counted = mask[..., None].to(hidden.dtype)  # (n, t, 1)
    return (hidden * counted).sum(1) / counted.sum(1).clamp_min(1.0)


def similarities(sources: Tensor, candidates: Tensor, owners: Tensor) -> Tensor:
    """Return the cosine of each candidate and the source that it answers.

    Args:
        sources: (b, d).
        candidates: (n, d), replies to any of the sources.
        owners: (n,), which source each one answers.

    Returns:
        (n,), in [-1, 1]; 0 where a vector is 0.
    """
    return functional.cosine_similarity(sources[owners].float(), candidates.float(), dim=-1, eps=1e-6)


def ranking_loss(scores: Tensor, ranks: Tensor, owners: Tensor, weights: Tensor, *, margin: float) -> Tensor:
    """Return the pairwise margin loss of CoNT (An et al. 2022, arXiv 2205.14690, eq. 4).

    For two replies i, j to one source with rank_i < rank_j: max(0, s_j - s_i + margin (rank_j - rank_i)).
    The further apart two ranks, the further apart their scores must be. CoNT sums over the pairs; here it is
    their mean per source, and the mean over sources by weight, so that its size does not hang on how many
    candidates there are.

    Args:
        scores: (n,), of the candidates.
        ranks: (n,), 0 for the best; equal ranks are not compared.
        owners: (n,), number of the source that each one answers, in [0, b).
        weights: (b,), of the sources, >= 0.
        margin: per rank.

    Returns:
        A scalar; sources without two ranks count nothing, and it is 0 if there is no other.
    """
    better = (owners[:, None] == owners[None, :]) & (ranks[:, None] < ranks[None, :])  # (n, n): i before j
    gaps = margin * (ranks[None, :] - ranks[:, None])
    hinges = (scores[None, :] - scores[:, None] + gaps).clamp_min(0.0) * better
    return _mean_by_source(hinges.sum(1), better.sum(1), owners, weights)


def n_pair_loss(
    scores: Tensor, ranks: Tensor, owners: Tensor, weights: Tensor, *, temperature: float
) -> Tensor:
    """Return the softmax form of the ranking: the multi-class n-pair loss (Sohn 2016) on the best replies.

    For each source -log(e^{s_0/temperature} / sum_i e^{s_i/temperature}), over all its candidates, where 0
    is one of rank 0. It knows the best from the others, not the others' order.

    Args:
        scores: (n,), of the candidates.
        ranks: (n,), 0 for the best of a source.
        owners: (n,), number of the source that each one answers, in [0, b).
        weights: (b,), of the sources, >= 0.
        temperature: > 0.

    Returns:
        A scalar; sources with less than two candidates, or none of rank 0, count nothing.
    """
    same = owners[:, None] == owners[None, :]  # (n, n)
    logits = scores[None, :].expand_as(same) / temperature
    losses = logits.masked_fill(~same, -torch.inf).logsumexp(1) - scores / temperature  # (n,)
    best = (ranks == 0) & (same.sum(1) > 1)
    return _mean_by_source(losses * best, best.long(), owners, weights)


def _mean_by_source(sums: Tensor, counts: Tensor, owners: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted mean over sources of the mean over what was counted for them."""
    zeros = torch.zeros_like(weights, dtype=sums.dtype)
    total = zeros.index_add(0, owners, sums)  # (b,)
    count = zeros.index_add(0, owners, counts.to(sums.dtype))
    used = weights * (count > 0)
    # Without a used source it is 0 / tiny, still connected to the scores, so that gradients are 0.
    return (used * total / count.clamp_min(1.0)).sum() / used.sum().clamp_min(torch.finfo(sums.dtype).tiny)
