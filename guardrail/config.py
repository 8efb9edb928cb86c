"""Settings of a guard, checked when they are made."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .errors import ConfigError

OnError = Literal["closed", "raise", "allow"]
OnIntervention = Literal["reply", "guide"]


class GuardConfig(BaseModel):
    """How a guard reads, decides and repairs.

    Attributes:
        caution_threshold: lowest P(unsafe) that is flagged; None takes the calibrated one.
        intervention_threshold: lowest P(needs intervention) for that action; None: calibrated.
        rule_threshold: lowest P(rule broken) that flags by itself; None: calibrated.
        touch_threshold: lowest cosine at which a rule counts as touched; None: calibrated.
        max_windows: most windows read of one conversation; a window is up to 256 tokens. A longer
            judged turn counts as not read whole: `generate` answers that it could not check it.
        max_context_windows: most of them that hold older turns which did not fit beside the judged one.
        max_rules: most rules named in a verdict.
        top_k: rules retrieved per window.
        threads: threads of one model run; one is best beside other work.
        workers: judgements at a time under asyncio, with a deadline, and in `check_batch`.
        on_error: when the guard itself fails: "closed" (flag, status "error"), "raise", or
            "allow" (let pass, status "error").
        on_intervention: for a turn that asks for intervention: "reply" with the bank's caring
            replies, or "guide" the LLM as for caution. `wrap` and `generate` also take a function.
        max_attempts: calls of the LLM for one reply, the first included.
        deadline_ms: time for one guarded reply, milliseconds; None for no limit.
        grace_ms: time for each judgement once that is used up, milliseconds: what is said in the LLM's place
            must be judged too.
        check_deadline_ms: time for one judgement, waiting included, milliseconds; then the guard counts as
            failed and `on_error` decides. None for no limit; a judgement then runs in the caller's thread.
        max_waiting: under asyncio and with a deadline, judgements that may wait for a thread; one more is
            refused at once, and `on_error` decides.
        stream_release: "sentence" shows each sentence of a stream once it is judged; "turn" shows nothing
            before the whole reply is judged.
        uncertain_low: with a judge, lowest P(unsafe) that is sent to it; None: calibrated.
        uncertain_high: with a judge, highest P(unsafe) that is sent to it; None: calibrated.
        judge_deadline_ms: longest wait for a second opinion, milliseconds; then the encoder decides.
        judge_workers: calls of a sync judge at a time, and questions at a time in `check_batch`.
        min_relevance: lowest P(a candidate is about the conversation) that may replace an unsafe reply.
        min_rule_kept: lowest P(a candidate keeps the rule in play), likewise.
        max_repetition: largest share of a candidate that repeats itself or the rejected reply.
        max_words: longest reply of a rewrite model that may replace an unsafe one, words.
        rewrite_samples: candidates asked of a rewrite model at a time.
        attempt_texts: keep the text of every candidate in `GuardedReply.attempts`; off, none is kept.
        judge_cache: second opinions that are remembered; 0 for none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    caution_threshold: Annotated[float, Field(gt=0, lt=1)] | None = None
    intervention_threshold: Annotated[float, Field(gt=0, lt=1)] | None = None
    rule_threshold: Annotated[float, Field(gt=0, le=1)] | None = None
    touch_threshold: Annotated[float, Field(ge=-1, le=1)] | None = None
    max_windows: Annotated[int, Field(ge=1, le=1024)] = 64
    max_context_windows: Annotated[int, Field(ge=0, le=1024)] = 4
    max_rules: Annotated[int, Field(ge=1, le=50)] = 3
    top_k: Annotated[int, Field(ge=1, le=200)] = 16
    threads: Annotated[int, Field(ge=1, le=256)] = 1
    workers: Annotated[int, Field(ge=1, le=256)] = 2
    on_error: OnError = "closed"
    on_intervention: OnIntervention = "reply"
    max_attempts: Annotated[int, Field(ge=1, le=10)] = 3
    deadline_ms: Annotated[float, Field(gt=0)] | None = None
    grace_ms: Annotated[float, Field(gt=0)] = 1000.0
    check_deadline_ms: Annotated[float, Field(gt=0)] | None = None
    max_waiting: Annotated[int, Field(ge=1, le=1_000_000)] = 1024
    stream_release: Literal["sentence", "turn"] = "sentence"
    uncertain_low: Annotated[float, Field(ge=0, le=1)] | None = None
    uncertain_high: Annotated[float, Field(ge=0, le=1)] | None = None
    judge_deadline_ms: Annotated[float, Field(gt=0)] = 5000.0
    judge_workers: Annotated[int, Field(ge=1, le=256)] = 8
    min_relevance: Annotated[float, Field(ge=0, le=1)] = 0.2
    min_rule_kept: Annotated[float, Field(ge=0, le=1)] = 0.2
    max_repetition: Annotated[float, Field(ge=0, le=1)] = 0.3
    max_words: Annotated[int, Field(ge=1, le=10_000)] = 400
    rewrite_samples: Annotated[int, Field(ge=1, le=32)] = 4
    attempt_texts: bool = False
    judge_cache: Annotated[int, Field(ge=0, le=1_000_000)] = 4096

    @classmethod
    def of(cls, **settings: Any) -> GuardConfig:
        """Return a checked configuration.

        Raises:
            ConfigError: a name is unknown or a value out of range; names it, the range and the value.
        """
        try:
            return cls(**settings)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(map(str, first["loc"]))
            raise ConfigError(f"setting {name!r}: {first['msg']}, got {first['input']!r}") from error
