"""Thin modules that run the encoder and hand its outputs to the losses.

`SentenceTransformerTrainer` takes one such module per dataset; they share one model. The columns of
a dataset are texts in the order given at each class, and a label of three numbers: class, weight,
moral foundation of the rule (-1 where not known).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import all_gather, all_gather_with_grad
from torch import Tensor, distributed, nn

from . import losses
from .gradcache import cached_loss

Features = dict[str, Tensor]
Outputs = dict[str, Any]


@dataclass(frozen=True, slots=True)
class RuleContrast:
    """Settings of the n-pair loss.

    Attributes:
        temperature: divides the cosine, > 0.
        social: weigh examples by severity and agreement, and negatives by likeness; without it every
            weight is 1 (InfoNCE), but for rules that say the same as the own one: they are no negatives
            in either, for a batch holds many texts of one rule.
    """

    temperature: float = 0.05
    social: bool = True

    def loss(self, texts: Tensor, rules: Tensor, hard: Tensor | None, labels: Tensor) -> Tensor:
        """Return the n-pair loss; with several processes the rules of all serve as negatives.

        Args:
            texts: (b, d).
            rules: (b, d), row i the own rule of text i.
            hard: (b, m, d) or None.
            labels: (b, 3): class, weight a_i, foundation.

        Returns:
            Scalar.
        """
        everyone, rank = rules, 0
        foundations = labels[:, 2]
        if _processes() > 1:
            everyone, rank = all_gather_with_grad(rules), distributed.get_rank()
            foundations = all_gather(foundations.contiguous())
        own = torch.arange(len(rules), device=rules.device) + rank * len(rules)  # (b,)
        hard_weights = None
        if hard is not None:
            b, m, d = hard.shape
            repeated = rules[:, None].expand(b, m, d).reshape(b * m, d)
            pairs = losses.false_negative_weights(repeated, hard.reshape(b * m, d))  # (bm, bm)
            hard_weights = pairs.diagonal().reshape(b, m)
        return losses.socially_aware_n_pair_loss(
            texts,
            everyone,
            own=own,
            weights=labels[:, 1].to(texts.dtype) if self.social else None,
            negative_weights=losses.false_negative_weights(
                rules,
                everyone,
                graded=self.social,
                anchor_foundations=labels[:, 2] if self.social else None,
                foundations=foundations if self.social else None,
            ),
            hard_negatives=hard,
            hard_weights=hard_weights,
            temperature=self.temperature,
        )


class LevelObjective(nn.Module):
    """Cross-entropy on the level of single conversations: columns text."""

    def __init__(self, model: SentenceTransformer, *, weight: float = 1.0) -> None:
        super().__init__()
        self.model = model
        self.weight = weight

    def forward(self, sentence_features: Iterable[Features], labels: Tensor) -> Tensor:
        """Return the loss."""
        (features,) = sentence_features
        outputs = self.model(features)
        logits = outputs["level_logits"]  # (b, 3)
        loss = self.weight * losses.level_loss(logits, labels[:, 0].long(), labels[:, 1].to(logits.dtype))
        return _touching(loss, [outputs])


class TwinObjective(nn.Module):
    """Level, twin and, where the rule is known, n-pair and stance losses on matched pairs.

    Columns unsafe, safe, and perhaps the rule and then hard negatives of it.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        *,
        twin_weight: float,
        level_weight: float,
        rule_weight: float,
        stance_weight: float,
        contrast: RuleContrast,
    ) -> None:
        super().__init__()
        self.model = model
        self.twin_weight = twin_weight
        self.level_weight = level_weight
        self.rule_weight = rule_weight
        self.stance_weight = stance_weight
        self.contrast = contrast

    def forward(self, sentence_features: Iterable[Features], labels: Tensor) -> Tensor:
        """Return the loss; a weight of 0 in the labels leaves the level out, not the contrast."""
        outputs: list[Outputs] = [self.model(features) for features in sentence_features]
        unsafe, safe = outputs[0], outputs[1]
        weights = labels[:, 1].to(unsafe["level_logits"].dtype)
        classes = labels[:, 0].long()
        level = losses.level_loss(unsafe["level_logits"], classes, weights)
        level = level + losses.level_loss(safe["level_logits"], classes * 0, weights)
        loss = self.level_weight * level / 2
        loss = loss + self.twin_weight * losses.twin_loss(unsafe["level_logits"], safe["level_logits"])
        if len(outputs) > 2 and (self.rule_weight or self.stance_weight):
            loss = loss + self._rule_losses(unsafe, safe, outputs[2:], labels)
        return _touching(loss, outputs)

    def _rule_losses(self, unsafe: Outputs, safe: Outputs, others: list[Outputs], labels: Tensor) -> Tensor:
        rules, *hard = (other["sentence_embedding"] for other in others)
        stacked = torch.stack(hard, dim=1) if hard else None
        n_pair = [
            self.contrast.loss(side["sentence_embedding"], rules, stacked, labels)
            for side in (unsafe, safe)  # both versions touch the rule, only one breaks it
        ]
        loss = self.rule_weight * (n_pair[0] + n_pair[1]) / 2
        if self.stance_weight:
            loss = loss + self.stance_weight * losses.stance_loss(
                losses.violation_logits(unsafe["violation_embedding"], rules, unsafe["level_logits"]),
                losses.violation_logits(safe["violation_embedding"], rules, safe["level_logits"]),
                losses.false_negative_weights(rules, rules),
            )
        return loss


class NormObjective(nn.Module):
    """The n-pair loss on situation and rule of thumb, for retrieval alone.

    Columns text, rule, and perhaps hard negatives.
    """

    def __init__(
        self, model: SentenceTransformer, *, weight: float, contrast: RuleContrast, chunk: int = 0
    ) -> None:
        """Make the objective.

        Args:
            model: the encoder.
            weight: of the loss.
            contrast: settings of the n-pair loss.
            chunk: rows embedded at a time, by gradient caching; 0 embeds the batch at once.
        """
        super().__init__()
        self.model = model
        self.weight = weight
        self.contrast = contrast
        self.chunk = chunk

    def forward(self, sentence_features: Iterable[Features], labels: Tensor) -> Tensor:
        """Return the loss."""
        columns = list(sentence_features)
        rows = len(labels)

        def loss_of(embeddings: Tensor) -> Tensor:
            texts, rules, *hard = torch.split(embeddings, rows)
            stacked = torch.stack(hard, dim=1) if hard else None
            return self.weight * self.contrast.loss(texts, rules, stacked, labels)

        if not self.chunk:
            outputs = [self.model(features) for features in columns]
            loss = loss_of(torch.cat([output["sentence_embedding"] for output in outputs]))
            return _touching(loss, outputs)
        return cached_loss(
            [part for features in columns for part in _cut(features, self.chunk)],
            lambda features: self.model(dict(features))["sentence_embedding"],
            loss_of,
        )


def _cut(features: Features, size: int) -> list[Features]:
    rows = len(features["input_ids"])
    return [
        {
            name: value[start : start + size] if isinstance(value, Tensor) else value
            for name, value in features.items()
        }
        for start in range(0, rows, size)
    ]


def _processes() -> int:
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def _touching(loss: Tensor, outputs: Iterable[Outputs]) -> Tensor:
    """Let every output take part in the loss, at weight 0.

    Distributed training waits for a gradient of every parameter that an output depends on.
    """
    if _processes() == 1:
        return loss
    names = ("sentence_embedding", "violation_embedding", "level_logits")
    for output in outputs:
        for name in names:
            loss = loss + 0.0 * output[name].sum()
    return loss
