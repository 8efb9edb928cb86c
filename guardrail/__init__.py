"""Notice subtle trouble in a conversation, name the rule of thumb that is broken, repair the reply.

    import guardrail

    verdict = guardrail.check("I'm going to read my daughter's diary while she's at school")
    verdict.flagged, verdict.probability, verdict.rules

    guard = guardrail.Guardrail.load()
    safe_llm = guard.wrap(llm)

Importing this package loads nothing heavy; the model is loaded by the first check.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .errors import (
    ArtifactError,
    ConfigError,
    GuardrailError,
    InputError,
    MessageFlagged,
    MissingDependencyError,
    ModelError,
)
from .types import Action, Coverage, Level, RuleMatch, Turn, Verdict

if TYPE_CHECKING:
    from .config import GuardConfig
    from .conversation import Messages
    from .outcome import Attempt, GuardedReply
    from .pipeline import Guardrail
    from .rules import Rule
    from .stream_drivers import AsyncGuardedStream, GuardedStream

__all__ = [
    "Action",
    "ArtifactError",
    "AsyncGuardedStream",
    "Attempt",
    "ConfigError",
    "Coverage",
    "GuardConfig",
    "GuardedReply",
    "GuardedStream",
    "Guardrail",
    "GuardrailError",
    "InputError",
    "Level",
    "MessageFlagged",
    "MissingDependencyError",
    "ModelError",
    "Rule",
    "RuleMatch",
    "Turn",
    "Verdict",
    "check",
]

_LAZY = {
    "AsyncGuardedStream": "stream_drivers",
    "Attempt": "outcome",
    "GuardConfig": "config",
    "GuardedReply": "outcome",
    "GuardedStream": "stream_drivers",
    "Guardrail": "pipeline",
    "Rule": "rules",
}


def check(messages: Messages) -> Verdict:
    """Judge the last turn of a conversation with the model that ships; loaded once, when first needed.

    Args:
        messages: a string, a list of strings, role/content dicts or LangChain messages.

    Returns:
        The verdict, as `Guardrail.check` gives it.

    Raises:
        InputError: the messages cannot be read.
        ArtifactError: the model that ships is missing or altered.
    """
    from .default import default_guard

    return default_guard().check(messages)


if not TYPE_CHECKING:  # under mypy this would hide misspelt names

    def __getattr__(name: str) -> Any:
        module = _LAZY.get(name)
        if module is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f".{module}", __name__), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return list(__all__)
