"""The errors that this library raises, all under one base class.

    GuardrailError
    ├── ConfigError(ValueError)             a setting is out of range
    ├── InputError(ValueError, TypeError)   messages or rules that cannot be read
    ├── ArtifactError                       a model folder is missing, incomplete, altered or foreign
    ├── ModelError                          a stage of the pipeline failed; `.stage` says which
    ├── MissingDependencyError(ImportError) an optional package is absent; gives the pip line
    └── MessageFlagged                      only from `Verdict.raise_if_flagged()`; carries the verdict

A message says what was expected, what was got and what to do. It never holds a user's text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .types import Verdict


class GuardrailError(Exception):
    """Base class of every error that this library raises on purpose."""


class ConfigError(GuardrailError, ValueError):
    """A setting is out of range; the message names it, its value and the range."""


class InputError(GuardrailError, ValueError, TypeError):
    """A conversation or a rule could not be read; the message says which part and why."""


class ArtifactError(GuardrailError):
    """A model folder is missing, incomplete, altered, or made for something else."""


class ModelError(GuardrailError):
    """A stage of the pipeline failed while it ran.

    Attributes:
        stage: `"normalize"`, `"encoder"`, `"index"`, `"detector"`, `"judge"`, `"llm"`,
            `"relevance"` or `"rewriter"`.
    """

    def __init__(self, stage: str, message: str) -> None:
        super().__init__(f"{stage}: {message}")
        self.stage = stage
        self._message = message

    def __reduce__(self) -> tuple[type[ModelError], tuple[str, str]]:
        return type(self), (self.stage, self._message)


class MissingDependencyError(GuardrailError, ImportError):
    """An optional package is not installed; the message gives the `pip install` line."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"this needs the package {package!r}, which is not installed; "
            f"run: pip install 'prosocial-guardrail[{extra}]'"
        )
        self.package = package
        self.extra = extra

    def __reduce__(self) -> tuple[type[MissingDependencyError], tuple[str, str]]:
        return type(self), (self.package, self.extra)


class MessageFlagged(GuardrailError):
    """A checked message was flagged and the caller asked for an exception.

    Attributes:
        verdict: the whole verdict, with rules and probabilities.
    """

    def __init__(self, verdict: Verdict) -> None:
        rules = ", ".join(match.rule.id for match in verdict.rules) or "no single rule"
        super().__init__(
            f"message flagged: action={verdict.action.value}, probability={verdict.probability:.2f}, "
            f"rules: {rules}, status={verdict.status}"
        )
        self.verdict = verdict

    def __reduce__(self) -> tuple[type[MessageFlagged], tuple[Verdict]]:
        return type(self), (self.verdict,)
