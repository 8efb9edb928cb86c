"""Thin modules that run the encoder and hand its outputs to the losses.

`SentenceTransformerTrainer` takes one such module per dataset; they share one model.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from . import losses

Features = dict[str, Tensor]


class LevelObjective(nn.Module):
    """Cross-entropy on the level of single conversations."""

    def __init__(self, model: SentenceTransformer, *, weight: float = 1.0) -> None:
        super().__init__()
        self.model = model
        self.weight = weight

    def forward(self, sentence_features: Iterable[Features], labels: Tensor) -> Tensor:
        """Return the loss; labels are (b, 2): class and weight."""
        (features,) = sentence_features
        logits = self.model(features)["level_logits"]  # (b, 3)
        return self.weight * losses.level_loss(logits, labels[:, 0].long(), labels[:, 1].to(logits.dtype))


class TwinObjective(nn.Module):
    """Level, twin and, where the rule is known, n-pair and stance losses on matched pairs."""

    def __init__(
        self,
        model: SentenceTransformer,
        *,
        twin_weight: float,
        level_weight: float,
        rule_weight: float,
        stance_weight: float,
        temperature: float,
    ) -> None:
        super().__init__()
        self.model = model
        self.twin_weight = twin_weight
        self.level_weight = level_weight
        self.rule_weight = rule_weight
        self.stance_weight = stance_weight
        self.temperature = temperature

    def forward(self, sentence_features: Iterable[Features], labels: Tensor) -> Tensor:
        """Return the loss over (unsafe, safe[, rule]); labels are (b, 2): class of the unsafe, weight."""
        outputs: list[dict[str, Any]] = [self.model(features) for features in sentence_features]
        unsafe, safe = outputs[0], outputs[1]
        weights = labels[:, 1].to(unsafe["level_logits"].dtype)
        classes = labels[:, 0].long()
        level = losses.level_loss(unsafe["level_logits"], classes, weights)
        level = level + losses.level_loss(safe["level_logits"], classes * 0, weights)
        loss = self.level_weight * level / 2
        loss = loss + self.twin_weight * losses.twin_loss(unsafe["level_logits"], safe["level_logits"])
        if len(outputs) == 3:
            loss = loss + self._rule_losses(unsafe, safe, outputs[2]["sentence_embedding"])
        return loss

    def _rule_losses(self, unsafe: dict[str, Tensor], safe: dict[str, Tensor], rules: Tensor) -> Tensor:
        mask = losses.same_rule_mask(rules)
        n_pair = [
            losses.socially_aware_n_pair_loss(
                side["sentence_embedding"], rules, negative_weights=mask, temperature=self.temperature
            )
            for side in (unsafe, safe)  # both versions touch the rule, only one breaks it
        ]
        stance = losses.stance_loss(
            losses.violation_logits(unsafe["violation_embedding"], rules, unsafe["level_logits"]),
            losses.violation_logits(safe["violation_embedding"], rules, safe["level_logits"]),
            mask,
        )
        return self.rule_weight * (n_pair[0] + n_pair[1]) / 2 + self.stance_weight * stance


class NormObjective(nn.Module):
    """The n-pair loss on (situation, rule of thumb), for retrieval alone."""

    def __init__(self, model: SentenceTransformer, *, weight: float, temperature: float) -> None:
        super().__init__()
        self.model = model
        self.weight = weight
        self.temperature = temperature

    def forward(self, sentence_features: Iterable[Features], labels: Tensor) -> Tensor:
        """Return the loss; labels are (b, 2): unused, and the weight a_i of the pair."""
        texts, rules = (self.model(features)["sentence_embedding"] for features in sentence_features)
        loss = losses.socially_aware_n_pair_loss(
            texts,
            rules,
            weights=labels[:, 1].to(texts.dtype),
            negative_weights=losses.same_rule_mask(rules),
            temperature=self.temperature,
        )
        return self.weight * loss
