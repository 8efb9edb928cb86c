"""What is said instead of an unsafe reply: gather candidates, score each, take the best that passes.

Candidates come from the app's own LLM (guided by the rules; `Session` calls it), from a rewrite model if
there is one, and from what was written for the rules or for any conversation. One that a model wrote is
shown only if it is judged safe and passes every threshold; what people wrote is judged and shown if it is
safe. Holds no state of a conversation.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from .compose import CRISIS_DOMAINS, Composer
from .config import GuardConfig
from .errors import GuardrailError, ModelError
from .guidance import AGAIN, GUIDANCE_HEAD, GUIDANCE_TAIL
from .lazy import Lazy
from .rewrite_format import CHAT_DRAFT, CHAT_SYSTEM, RewriteInput
from .rules import Rule
from .threads import PART_FAILURES
from .types import RuleMatch, Turn, Verdict

if TYPE_CHECKING:
    from .protocols import Relevance, Rewriter
    from .relevance import Relation

# Rules whose sentences are read together with the conversation, the nearest by embedding.
NEAREST = 8
# P(about) from which a rule is told to the LLM.
RULE_FITS = 0.5
# Its sentences are said to the user only where both they and the rule itself are surely about the
# conversation: a wrong rule is worse than none. On 438 held-out conversations the sentences alone reach
# this in 24, of which 17 were right; both do in 6, all of them right.
SENTENCES_SAID, RULE_SAID = 0.96, 0.9
# Help is named where so many of the nearest rules are about despair. Of held-out conversations that is so
# in 1 of 50; half of these are about despair, and a sixth of all that are. With one rule of three it would be
# half of all that are, and 1 of 10 others: readers found that out of place too often (docs/repair.md).
DESPAIR, DESPAIR_AMONG = 2, 3
# Without a relevance model: rules that are tried in a composed reply, in the order given.
TRIED_RULES = 3
# Words in a row that count as copied from the rejected draft, and as leaked from the guidance.
COPIED = 5
LEAKED = 8
SECRET = (GUIDANCE_HEAD, GUIDANCE_TAIL, AGAIN, CHAT_SYSTEM, CHAT_DRAFT)
# A letter with the marks that belong to it; scripts without spaces count by the character.
_WORD = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W_][\u0300-\u036f\u0900-\u0dff\w]*(?:['’][^\W_]+)*"
)


@dataclass(frozen=True, slots=True)
class Scores:
    """How good a candidate is; no text.

    Attributes:
        safety: 1 - P(unsafe) of the candidate in its context, [0, 1].
        rule_kept: 1 - P(it breaks the rule in play), the lowest over the rules, [0, 1]; None where there
            is no rule or no relevance model.
        relevance: P(it is about this conversation), [0, 1]; None without a relevance model.
        repetition: the larger of two shares, [0, 1]: of its word triples, those that come again; of its
            runs of five words, those that stand in the rejected draft.
        words: its length.
    """

    safety: float
    rule_kept: float | None
    relevance: float | None
    repetition: float
    words: int

    @property
    def total(self) -> float:
        """The product of safety, rule kept and relevance, as if independent; what is unknown counts 1."""
        known = [score for score in (self.safety, self.rule_kept, self.relevance) if score is not None]
        product = 1.0
        for score in known:
            product *= score
        return product

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {
            name: round(value, 4) if isinstance(value, float) else value
            for name, value in asdict(self).items()
        }


def passes(scores: Scores, config: GuardConfig, *, any_length: bool = False) -> bool:
    """Return True if a candidate reaches every threshold of the settings; safety is the verdict's to say.

    Args:
        scores: of the candidate.
        config: the thresholds.
        any_length: for replies of the app's own LLM, whose length is the app's affair.
    """
    return (
        (scores.rule_kept is None or scores.rule_kept >= config.min_rule_kept)
        and (scores.relevance is None or scores.relevance >= config.min_relevance)
        and scores.repetition <= config.max_repetition
        and (any_length or 1 <= scores.words <= config.max_words)
    )


class Repairer:
    """Proposes and scores replies. Safe to use from many threads."""

    def __init__(
        self,
        composer: Composer,
        *,
        relevance: Lazy[Relevance] | None = None,
        rewriter: Lazy[Rewriter] | None = None,
        samples: int = 4,
    ) -> None:
        """Join the parts.

        Args:
            composer: composes replies.
            relevance: reads a rule or a reply together with the conversation; without it rules are taken
                in the order given, and candidates are not scored for relevance and rule kept.
            rewriter: writes candidates of its own, or None.
            samples: candidates that it is asked for, >= 1.
        """
        self._composer = composer
        self._relevance = relevance
        self._rewriter = rewriter
        self._samples = samples

    @property
    def reads(self) -> bool:
        """True if there is a relevance model."""
        return self._relevance is not None

    @property
    def rewrites(self) -> bool:
        """True if there is a rewrite model."""
        return self._rewriter is not None

    def fitting_rules(self, turns: Sequence[Turn], matches: Sequence[RuleMatch]) -> tuple[Rule, ...]:
        """Return the rules that the conversation is about, the surest first; perhaps none.

        Args:
            turns: the conversation; with the rejected draft, if there is one, as its last turn.
            matches: rules in question, the likeliest first.

        Raises:
            ModelError: the relevance model failed.
            ArtifactError: its folder is broken.
        """
        rules = unique_rules(matches)
        if self._relevance is None:
            return rules
        found = self._relations(turns, [rule.text for rule in rules])
        ranked = sorted(zip(found, rules, strict=True), key=lambda pair: -pair[0].about)
        return tuple(rule for relation, rule in ranked if relation.about >= RULE_FITS)

    def sayable_rules(self, turns: Sequence[Turn], near: Sequence[Rule]) -> tuple[Rule, ...]:
        """Return the rules whose sentences may be said in this conversation, the best first.

        Args:
            turns: the conversation, without the draft.
            near: rules near to it, the nearest first.

        Raises:
            ModelError: the relevance model failed.
            ArtifactError: its folder is broken.
        """
        if self._relevance is None:
            return tuple(near[:TRIED_RULES])
        rules = near[:NEAREST]
        found = self._relations(turns, [_said(rule) for rule in rules])
        relation, rule = max(
            zip(found, rules, strict=True), key=lambda pair: pair[0].about, default=(None, None)
        )
        if relation is None or rule is None or relation.about < SENTENCES_SAID:
            return ()
        (own,) = self._relations(turns, [rule.text])
        return (rule,) if own.about >= RULE_SAID else ()

    def rewritten(
        self, turns: Sequence[Turn], rules: Sequence[Rule], draft: str, seconds: float | None
    ) -> tuple[str, ...]:
        """Return candidates of the rewrite model, at most as many as asked for; none without one.

        Args:
            turns: the conversation, without the draft.
            rules: in play, the most important first.
            draft: the rejected reply, or "".
            seconds: time for it; None for no limit.

        Raises:
            ModelError: it returned something that is not text.
            BaseException: whatever the rewrite model raises.
        """
        if self._rewriter is None:
            return ()
        item = RewriteInput(tuple(turns), tuple(rule.text for rule in rules), draft)
        texts = self._rewriter.get().rewrite(item, count=self._samples, seconds=seconds)
        if texts is None:
            return ()
        if isinstance(texts, str) or not isinstance(texts, Sequence):
            raise ModelError("rewriter", f"expected a sequence of texts, got {type(texts).__name__}")
        if not all(isinstance(text, str) for text in texts):
            raise ModelError("rewriter", "expected a sequence of texts, got something else in it")
        return tuple(texts[: self._samples])

    def composed(
        self, turns: Sequence[Turn], rules: Sequence[Rule], *, quote: str, grave: bool, near: Sequence[Rule]
    ) -> Iterator[str]:
        """Yield composed replies, the most specific first.

        Args:
            turns: the conversation, without the draft.
            rules: whose sentences may be said, the best first.
            quote: words of the user that may be quoted, or "".
            grave: somebody may come to serious harm.
            near: rules near to the conversation, the nearest first.
        """
        texts = [turn.text for turn in turns]
        for rule in rules:
            yield self._composer.compose(rule, texts)
        crisis = sum(rule.domain in CRISIS_DOMAINS for rule in near[:DESPAIR_AMONG]) >= DESPAIR
        if quote:
            yield self._composer.general(texts, quote=quote, grave=grave, crisis=crisis)
        yield self._composer.general(texts, grave=grave, crisis=crisis)

    def scores(
        self,
        turns: Sequence[Turn],
        text: str,
        verdict: Verdict,
        *,
        rules: Sequence[Rule] = (),
        draft: str = "",
    ) -> Scores:
        """Score a candidate.

        Args:
            turns: the conversation, without the candidate.
            text: the candidate.
            verdict: of the guard, about the candidate in its context.
            rules: in play.
            draft: the rejected reply, or "".

        Raises:
            ModelError: the relevance model failed.
        """
        kept = about = None
        if self._relevance is not None:
            (relation,) = self._relations(turns, [text])
            about = relation.about
            if rules:
                after = [*turns, Turn("assistant", text)]
                kept = 1 - max(found.broken for found in self._relations(after, [r.text for r in rules]))
        words = _words(text)
        copied = _share_of(_runs(words, COPIED), set(_runs(_words(draft), COPIED)))
        repetition = max(repeated_share(words), copied)
        return Scores(1 - verdict.probability, kept, about, repetition, len(words))

    def _relations(self, turns: Sequence[Turn], statements: Sequence[str]) -> list[Relation]:
        assert self._relevance is not None
        try:
            found = list(self._relevance.get().relations(turns, statements))
            in_range = all(0 <= p <= 1 for relation in found for p in (relation.about, relation.broken))
        except GuardrailError:
            raise
        except PART_FAILURES as error:  # somebody's own may raise anything, with a user's text in it
            raise ModelError("relevance", f"failed with {type(error).__name__}") from error
        if not in_range:  # false for NaN too, which would slip through a maximum
            raise ModelError("relevance", "expected probabilities in [0, 1], got another number or NaN")
        if len(found) != len(statements):
            raise ModelError("relevance", f"expected {len(statements)} relations, got {len(found)}")
        return found


def unique_rules(matches: Sequence[RuleMatch]) -> tuple[Rule, ...]:
    """Return the rules of the matches, each once, in their order."""
    return tuple({match.rule.id: match.rule for match in matches}.values())


def _said(rule: Rule) -> str:
    """Return what a composed reply says of a rule, without the drawing of lots."""
    return " ".join((*rule.concerns[:1], *rule.offers[:1])) or rule.text


def leaks(text: str, turns: Sequence[Turn] = ()) -> bool:
    """Return True if a reply repeats a part of what models are told, which the conversation does not hold.

    The rules themselves are no secret: a reply may say them.

    Args:
        text: the reply.
        turns: the conversation; what stands in it a reply may repeat.
    """
    told = {run for secret in SECRET for run in _runs(_words(secret), LEAKED)}
    said = set(_runs(_words(text), LEAKED)) & told
    return bool(said) and not said <= {run for turn in turns for run in _runs(_words(turn.text), LEAKED)}


def repeated_share(words: Sequence[str], n: int = 3) -> float:
    """Return the share of a text's runs of n words that have come before in it, [0, 1]."""
    runs = _runs(words, n)
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def _share_of(runs: Sequence[tuple[str, ...]], known: set[tuple[str, ...]]) -> float:
    return sum(run in known for run in runs) / len(runs) if runs else 0.0


def _runs(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]


def _words(text: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(text)]
