"""Compose a reply from a rule of thumb and its authored replies, without any model.

An authored reply was written for one dialogue. A sentence of it is used only if it fits this
conversation: every word in it that is specific, as the whole bank shows, must stand in the
conversation or in the rule.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence

from .rules import Rule

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

LEADS = (
    "Hold on a moment, one thing matters here.",
    "Can I be honest about this one?",
    "Something about this worries me.",
    "I'd like to slow down here for a second.",
    "Let me say what's on my mind.",
    "I want this to turn out well, so let me be plain.",
    "Before we go on, one thought.",
    "I'd rather not just nod along with this.",
    "One thing first, because I care how this goes.",
    "I'm not easy about this, and here's why.",
)
OFFERS = (
    "What would make another way possible for you?",
    "Shall we look for a way that works without that?",
    "Do you want to think through the next step together?",
    "What's the hardest part about doing it differently?",
    "Tell me a bit more, and I'll help you find a better way.",
    "Who could help you with this today?",
    "I'm glad to work out an alternative with you.",
    "What would you want if the roles were reversed?",
    "Is there somebody you could talk it over with first?",
    "If you like, I'll help you put the first step into words.",
)
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
        """Return a reply that names the rule, fits the conversation and offers a way on.

        The same conversation, rule and variant give the same words; another conversation gives
        others where the bank allows it.

        Args:
            rule: the rule that is broken or touched.
            conversation: the texts of the turns, oldest first.
            variant: another number gives another wording.
        """
        seed = _seed(rule.id, *conversation, str(variant))
        sentences = self._fitting(rule, conversation)
        parts = [LEADS[seed % len(LEADS)], _ended(rule.text), *sentences]
        if not any(sentence.endswith("?") for sentence in sentences):
            parts.append(OFFERS[seed // len(LEADS) % len(OFFERS)])
        if rule.domain in CRISIS_DOMAINS and rule.severity == "needs_intervention":
            parts.append(CRISIS)
        return " ".join(parts)

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
