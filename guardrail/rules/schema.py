"""The schema of a rule of thumb with its dialogues and replies."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=4000)]
Turns = Annotated[tuple[Text, ...], Field(min_length=1, max_length=64)]
Severity = Literal["needs_caution", "needs_intervention"]
Foundation = Literal["care", "fairness", "liberty", "loyalty", "authority", "sanctity"]
Sentences = Annotated[tuple[Text, ...], Field(max_length=64)]


def _one_line(text: str) -> str:
    if "\n" in text:
        raise ValueError("a rule is one line; remove the line break")
    return text


class Dialogue(BaseModel):
    """Turns that alternate user, assistant, user, ...; the last one is judged."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    turns: Turns


class Violation(Dialogue):
    """A dialogue whose last turn breaks the rule."""

    level: Severity = "needs_caution"


class AuthoredReply(BaseModel):
    """What a caring partner says to, or instead of, the last turn of a violation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    to: Annotated[int, Field(ge=0)]
    reply: Text


class Rule(BaseModel):
    """One rule of thumb.

    Attributes:
        id: unique name, e.g. `driving-003`.
        text: the rule, one plain sentence (`"rule"` in JSON).
        domain: the field of life that it belongs to.
        severity: what a violation usually asks for.
        foundation: moral foundation.
        violations: dialogues whose last turn breaks the rule.
        near_misses: dialogues that share topic and words and are fine.
        replies: for a violation (`to` is its position) what to say instead.
        concerns: sentences that say what is at stake, true in any conversation that breaks the rule,
            whoever the user is: a reply is composed of one of these and one offer.
        offers: workable other ways, or questions that open one, in any such conversation.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    id: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.:-]{0,99}$")]
    text: Annotated[Text, Field(alias="rule"), AfterValidator(_one_line)]
    domain: Text = "custom"
    severity: Severity = "needs_caution"
    foundation: Foundation = "care"
    violations: tuple[Violation, ...] = ()
    near_misses: tuple[Dialogue, ...] = ()
    replies: tuple[AuthoredReply, ...] = ()
    concerns: Sentences = ()
    offers: Sentences = ()

    @model_validator(mode="after")
    def _replies_point_to_violations(self) -> Rule:
        for reply in self.replies:
            if reply.to >= len(self.violations):
                raise ValueError(
                    f"a reply is 'to' {reply.to}, but the rule has {len(self.violations)} violations"
                )
        return self

    def __repr__(self) -> str:
        return f"Rule(id={self.id!r}, domain={self.domain!r}, severity={self.severity!r})"
