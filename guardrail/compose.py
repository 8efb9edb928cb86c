"""Compose a reply from what was written for a rule of thumb, or for any conversation, without a model.

A rule of the bank has sentences that say what is at stake and sentences that offer another way, each true
in any conversation that breaks it. Where it is not sure which rule is broken, the user's own words are
quoted, with sentences that hold wherever somebody may be hurt. A rule of somebody's own may have no
sentences: then the rule itself is said, and what its authored replies hold. Such a reply was written for
one dialogue, so a sentence of it is used only if it fits this conversation: every word in it that is
specific, as the whole bank shows, must stand in the conversation or in the rule.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence

from .rules import Rule, load_general

# A word that occurs in at least this share of all authored replies is common, the others are specific.
COMMON_SHARE = 0.006
WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
SENTENCE = re.compile(r"(?<=[.!?])\s+")
STEM = 5
MAX_SENTENCES = 2
# A shorter sentence ("Can you go?") lives off the one before it.
MIN_WORDS = 5
# Who these are is known only from the conversation, so one of them must speak of such a person too.
HE_OR_SHE = ({"he", "him", "his"}, {"she", "her", "hers"})
# Small talk of the authored replies; it says nothing about the rule.
PLEASANTRY = re.compile(r"^(sounds|what a|congrat|well done|good on|happy)\b", re.IGNORECASE)

CRISIS = (
    "If anybody could get hurt now, please call your local emergency number or a crisis line; "
    "you don't have to carry this alone."
)
CRISIS_DOMAINS = frozenset({"selfharm"})
UNAVAILABLE = "I couldn't check my answer to this, so I won't send one. Could you try again in a moment?"
NEUTRAL = "I'd rather not go further this way. Tell me what you need, and we'll find something that works."


class Composer:
    """Composes replies; knows which words are common from the authored replies of all rules."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        """Count words over the authored replies of the given rules."""
        replies = [reply.reply for rule in rules for reply in rule.replies]
        counts = Counter(stem for reply in replies for stem in _stems(reply))
        least = max(2, COMMON_SHARE * len(replies))
        self._common = frozenset(stem for stem, count in counts.items() if count >= least)

    def compose(self, rule: Rule, conversation: Sequence[str], *, variant: int = 0) -> str:
        """Return a reply that says what is at stake and offers a way on.

        The same conversation, rule and variant give the same words; another conversation gives
        others where the bank allows it.

        Args:
            rule: the rule that is broken or touched.
            conversation: the texts of the turns, oldest first.
            variant: another number gives another wording.
        """
        seed = _seed(rule.id, *conversation, str(variant))
        general = load_general()
        offers = rule.offers or general["offers"]
        if rule.concerns:
            parts = _drawn(seed, general["plain"], rule.concerns, offers)
        else:
            parts = [*_drawn(seed, general["plain"]), _ended(rule.text), *self._fitting(rule, conversation)]
            if not any(part.endswith("?") for part in parts[2:]):
                parts += _drawn(seed // len(general["plain"]), offers)
        if rule.domain in CRISIS_DOMAINS and rule.severity == "needs_intervention":
            parts.append(CRISIS)
        return " ".join(parts)

    def general(
        self,
        conversation: Sequence[str],
        *,
        quote: str = "",
        grave: bool = False,
        crisis: bool = False,
        variant: int = 0,
    ) -> str:
        """Return a reply that speaks of no rule.

        Args:
            conversation: the texts of the turns, oldest first.
            quote: words of the user to quote, or "".
            grave: somebody may come to serious harm.
            crisis: somebody may be in a crisis: then help is named.
            variant: another number gives another wording.
        """
        general = load_general()
        lead = "plain" if not quote else "asked" if quote.endswith("?") else "said"
        kinds = (lead, "grave_concerns", "grave_offers") if grave else (lead, "concerns", "offers")
        seed = _seed(lead, *conversation, str(variant))
        parts = _drawn(seed, *(general[kind] for kind in kinds))
        parts[0] = parts[0].replace("{quote}", quote)
        return " ".join([*parts, CRISIS] if crisis else parts)

    def _fitting(self, rule: Rule, conversation: Sequence[str]) -> list[str]:
        """Return the fitting sentences of the authored reply that shares most with the conversation."""
        said = _stems(" ".join(conversation))
        known = said | _stems(rule.text) | self._common
        names = set(WORD.findall(" ".join(conversation)))
        spoken = {name.lower() for name in names}
        best: list[str] = []
        best_score = -1
        for authored in rule.replies:
            dialogue = " ".join(rule.violations[authored.to].turns)
            fitting = [s for s in SENTENCE.split(authored.reply) if _fits(s, known, names, spoken)]
            score = len((_stems(dialogue) & said) - self._common) + 3 * bool(fitting)
            if fitting and score > best_score:
                best, best_score = fitting[:MAX_SENTENCES], score
        return best


def _drawn(seed: int, *kinds: Sequence[str]) -> list[str]:
    """Return one sentence of each kind, drawn independently."""
    parts = []
    for choices in kinds:
        seed, place = divmod(seed, len(choices))
        parts.append(choices[place])
    return parts


def _fits(sentence: str, known: frozenset[str], names: set[str], spoken: set[str]) -> bool:
    """Return True if a sentence of an authored reply can be said in this conversation."""
    if not sentence.endswith((".", "!", "?")) or any(character.isdigit() for character in sentence):
        return False
    words = WORD.findall(sentence)
    if len(words) < MIN_WORDS:
        return False
    lower = {word.lower() for word in words}
    if PLEASANTRY.match(sentence) or any(lower & who and not spoken & who for who in HE_OR_SHE):
        return False
    capitalised = [word for word in words[1:] if word[0].isupper() and not word.startswith(("I", "I'"))]
    return set(capitalised) <= names and _stems(sentence) <= known


def _stems(text: str) -> frozenset[str]:
    """Return the first letters of all words; short ones whole. Crude, and the same for all sides."""
    return frozenset(word.lower()[:STEM] for word in WORD.findall(text))


def _ended(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else text + "."


def _seed(*parts: str) -> int:
    body = "\0".join(parts).encode("utf-8", "replace")
    return int.from_bytes(hashlib.blake2b(body, digest_size=8).digest())
