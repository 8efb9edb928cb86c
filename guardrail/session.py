"""One guarded reply as a plain state machine, without I/O of its own.

Judge the conversation, guide the LLM where a rule is in play, judge what it says, have it made again,
and at last repair: take the best reply of the rewrite model, else one that is composed. Drivers only
call the LLM and hand its reply over. Nothing leaves a session that was not judged.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from .callables import is_async
from .compose import NEUTRAL, UNAVAILABLE
from .conversation import Messages, read_conversation, read_reply
from .errors import ConfigError, GuardrailError, InputError
from .guidance import AGAIN, GUIDANCE_HEAD, add_guidance, guidance
from .outcome import Attempt, GuardedReply, Strategy
from .quote import quote_of
from .repair import NEAREST, Scores, leaks, passes, unique_rules
from .reply_form import calls_tools, in_form
from .rules import Rule
from .sentences import next_cut
from .threads import PART_FAILURES
from .types import Action, Level, RuleMatch, Turn, Verdict

if TYPE_CHECKING:
    from .pipeline import Guardrail

T = TypeVar("T")

# "reply": the bank's caring replies; "guide": call the LLM, guided; or a function that gets the
# conversation and the verdict and returns the text to show instead of calling the LLM.
OnIntervention = Literal["reply", "guide"] | Callable[[Messages, Verdict], str]
# Of the rules that fit, how many a candidate is held against.
RULES_IN_PLAY = 2
# A sentence of a longer reply is judged with the sentences before it, up to so many characters in all: about
# 120 tokens, so that the work for each stays the same however long the reply. The end of the reply is judged
# with all of it.
SENTENCES_TOGETHER = 480


class DeadlineError(TimeoutError):
    """The deadline of a guarded reply has passed; an LLM's own TimeoutError is something else."""


@dataclass(frozen=True, slots=True)
class _Found:
    """What came of scoring a candidate: the scores, if there are any, and whether they will do."""

    scores: Scores | None = None
    passed: bool = True
    error: str = ""

    @property
    def total(self) -> float:
        return 0.0 if self.scores is None else self.scores.total


class Session:
    """One guarded reply, step by step. Call `start`, then `offer` or `fail` until `result` is set.

    A draft that arrives in pieces may be shown to `advance` on its way; once that sets `rejected`, stop the
    LLM and call `go_on`. A draft is judged sentence by sentence either way, each as the end of what was
    said so far, and as a whole at its end: so a draft in pieces meets the same fate as the same draft whole.

    Attributes:
        result: the outcome, once there is one.
        request: the messages to call the LLM with, while there is none.
        calls: how often the LLM was asked.
    """

    def __init__(
        self,
        guard: Guardrail,
        messages: Messages,
        on_intervention: OnIntervention | None = None,
        form: Callable[[str], Any] | None = None,
        max_attempts: int | None = None,
        hold: bool = False,
    ) -> None:
        """Prepare a session; nothing is judged yet.

        Args:
            guard: the guard.
            messages: the conversation.
            on_intervention: None takes the guard's setting.
            form: makes what is returned out of text that is not the LLM's own.
            max_attempts: None takes the guard's setting.
            hold: nothing may be shown before the whole reply is judged, whatever `stream_release` says.

        Raises:
            InputError: the messages cannot be read.
            ConfigError: `on_intervention` is none of its forms.
        """
        self._guard = guard
        # An iterator can be read once only, and is needed twice: for the guard and for the LLM.
        self._messages = list(messages) if isinstance(messages, Iterator) else messages
        self._on_intervention = checked_intervention(on_intervention or guard.config.on_intervention)
        self._form = form
        self._turns = read_conversation(self._messages).turns
        self._attempts: list[Attempt] = []
        self._max_attempts = max_attempts or guard.config.max_attempts
        self._hold = hold or guard.config.stream_release == "turn"
        self.calls = 0
        self._template: Any = ""
        self._started = self._last = time.monotonic()
        self.request: Any = None
        self.result: GuardedReply | None = None
        self._verdict_in: Verdict
        self._latest: Verdict  # about the conversation, then about the latest draft
        self._told: tuple[Rule, ...] = ()  # rules that the LLM was last told
        self._draft = ""  # the last reply that was judged unsafe
        self._broken: tuple[RuleMatch, ...] = ()  # rules that it breaks
        self._wanted = False  # somebody asked for a repair, so none must be called for by a verdict
        self._fitting: tuple[Rule, ...] | None = None  # rules that this is about, once looked for
        self._seen = ""  # the draft, as far as it has arrived
        self._cuts: list[int] = []  # ends of its sentences that were judged
        self._fit = 0  # so much of it was judged fit to show
        self._unsure = False  # the encoder was not sure of one of its sentences
        self._doubted: list[str] = []  # sentences that it found unfit, but not surely
        self._rejected: tuple[str, Verdict] | None = None  # an unfit beginning

    @property
    def verdict_in(self) -> Verdict:
        """What the guard thinks of the conversation, once that was judged."""
        return self._verdict_in

    @property
    def seconds_left(self) -> float | None:
        """Time until the deadline, at least 0; None if there is none."""
        limit = self._guard.config.deadline_ms
        return None if limit is None else max(0.0, limit / 1000 - (time.monotonic() - self._started))

    def start(self) -> None:
        """Judge the conversation; then `request` or `result` is set.

        Raises:
            InputError: the intervention hook returned something that is not text.
            ModelError: a stage failed and `on_error` is "raise".
        """
        verdict = self._check(self._messages)
        self._verdict_in = self._latest = verdict
        unread = verdict.status != "ok" and not verdict.coverage.judged_turn_read
        if unread and self._guard.config.on_error != "allow":
            self._finish_unavailable(verdict)
        elif verdict.action is Action.INTERVENE and self._on_intervention != "guide":
            self._intervene(verdict)
        else:
            self._ask(GUIDANCE_HEAD, self._to_guide_by(verdict))

    def offer(self, reply: object) -> None:
        """Judge a reply of the LLM; then `result` is set, or `request` for another call.

        Raises:
            InputError: the reply is of a type that cannot be read.
            ModelError: a stage failed and `on_error` is "raise".
        """
        turn, skipped = read_reply(reply)
        self._template = reply
        self.advance(turn.text)
        if self.rejected:
            self.go_on()
            return
        verdict = self._latest = self._without_doubt(self._judge(turn.text, skipped))
        unfit = self._unfit(verdict) or not turn.text.strip()
        unfit = unfit or (bool(self._told) and leaks(turn.text, self._turns))
        # A tool call is no answer to anybody: what it would do is judged, whom it speaks to is not asked.
        found = _Found() if unfit or calls_tools(reply) else self._score(turn.text, verdict, any_length=True)
        if unfit or not found.passed:
            self._reject(turn.text, verdict, found)
            return
        strategy = self._strategy
        self._note(strategy, False, verdict, turn.text, found)
        self.result = self._reply(turn.text, reply, verdict, strategy)

    def advance(self, text: str, template: object = None) -> int:
        """Judge the sentences that a draft has so far; `rejected` is set if one is unfit.

        Args:
            text: the draft from its beginning, as far as it has arrived.
            template: what the LLM returns, for the form of a reply in its place; None for a string, or
                what was given before.

        Returns:
            How many characters of the draft may be shown: those of the sentences that were judged fit,
            also if the one behind them is not, so that it does not matter in what pieces they came. 0
            while the whole must be known first: where something unsafe is to be replaced or forestalled,
            and with `stream_release="turn"`.

        Raises:
            ModelError: a stage failed and `on_error` is "raise".
        """
        if template is not None:
            self._template = template
        if not text.startswith(self._seen):  # another order of the same words
            self._forget_draft()
        self._seen = text
        while (cut := next_cut(text, self._cuts[-1] if self._cuts else 0)) is not None:
            said = text[self._tail(cut) : cut]
            verdict = self._judge(said, judge_seconds=0.0)
            # Where the encoder is unsure the judge decides, about the whole reply: until then it is held.
            sure = verdict.status != "degraded"
            unfit = self._unfit(verdict)
            if (sure and unfit) or (bool(self._told) and leaks(said, self._turns)):
                self._rejected = text[:cut], verdict
                break
            if unfit:
                self._doubted.append(said)
            self._cuts.append(cut)
            self._unsure = self._unsure or not sure
            if not self._unsure and text[:cut].strip():  # space alone may turn out to be no reply
                self._fit = cut
        return 0 if self._hold or self._scored else self._fit

    @property
    def rejected(self) -> bool:
        """True from the time when `advance` found the draft unfit until `go_on`."""
        return self._rejected is not None

    def go_on(self) -> None:
        """Have the LLM try again, or repair, after `advance` has found the draft unfit.

        Raises:
            ModelError: a stage failed and `on_error` is "raise".
        """
        assert self._rejected is not None
        (text, self._latest), self._rejected = self._rejected, None
        self._reject(text, self._latest)

    def has_more(self, text: str) -> bool:
        """Return True if `advance` would judge something; costs next to nothing."""
        start = self._cuts[-1] if self._cuts and text.startswith(self._seen) else 0
        return next_cut(text, start) is not None

    @property
    def _strategy(self) -> Strategy:
        """How the draft at hand came about."""
        return "regenerated" if self._attempts else "guided" if self._told else "pass"

    @property
    def _scored(self) -> bool:
        """True where a reply is to replace, or to forestall, something unsafe: it must be a good one."""
        return self._verdict_in.flagged or bool(self._draft) or self._wanted

    def _tail(self, cut: int) -> int:
        """Return where the text begins that is judged for the sentence that ends at `cut`."""
        starts = [0, *self._cuts]
        return next((start for start in starts if cut - start <= SENTENCES_TOGETHER), starts[-1])

    def _reject(self, text: str, verdict: Verdict, found: _Found | None = None) -> None:
        """Have the LLM try again, or repair."""
        self._note(self._strategy, True, verdict, text, found)
        if verdict.flagged:
            self._draft, self._broken, self._fitting = text, verdict.rules, None
        if self.calls < self._max_attempts and self._has_time:
            self._ask(AGAIN if verdict.flagged else GUIDANCE_HEAD, self._to_guide_by(verdict))
        else:
            self._repair(verdict)

    def _without_doubt(self, verdict: Verdict) -> Verdict:
        """Return the verdict on a reply, or the one on a sentence that the encoder doubted, if that is unfit.

        A judge who knows the whole reply decides. If none was asked, as the encoder is sure of the whole, one
        is asked about the sentence; if none answered, the encoder decides about the sentence too.
        """
        if verdict.judged_by == "judge" or self._unfit(verdict):
            return verdict
        seconds = 0.0 if verdict.status == "degraded" else None
        for text in self._doubted:
            doubted = self._judge(text, judge_seconds=seconds)
            if self._unfit(doubted):
                return doubted
        return verdict

    def _forget_draft(self) -> None:
        self._seen, self._cuts, self._fit = "", [], 0
        self._unsure, self._doubted, self._rejected = False, [], None

    def replace(self, draft: str) -> None:
        """Repair without calling the LLM, whatever the guard thinks of the draft; `result` is set.

        Args:
            draft: the reply that must not be shown, or "".

        Raises:
            ModelError: a stage failed and `on_error` is "raise".
        """
        verdict = self._check(self._messages)
        self._verdict_in = self._latest = verdict
        self._wanted = True
        if draft.strip():
            verdict = self._judge(draft)
            self._draft, self._broken = draft, verdict.rules
        self._repair(verdict)

    def fail(self, error: BaseException) -> None:
        """Take note that the LLM failed or ran out of time; the reply is repaired without it.

        Raises:
            BaseException: the error itself if it was the first call and not the deadline: then the
                app sees what it would see without the guard.
        """
        if not self._attempts and not isinstance(error, DeadlineError):
            raise error
        self._note_error("regenerated" if self._attempts else "pass", error)
        self._repair(self._latest)

    def _intervene(self, verdict: Verdict) -> None:
        if not callable(self._on_intervention):
            self._repair(verdict)
            return
        text = self._on_intervention(self._messages, verdict)
        if not isinstance(text, str):
            raise InputError(f"expected on_intervention to return text, got {type(text).__name__}")
        out = self._judge(text)
        unfit = self._unfit(out) or not text.strip()
        self._note("hook", unfit, out, text)
        if unfit:
            self._repair(verdict)
        else:
            self.result = self._reply(text, self._formed(text), out, "hook")

    def _to_guide_by(self, verdict: Verdict) -> tuple[Rule, ...]:
        """Return the rules to tell the LLM: those broken, else those touched; only ones that fit.

        Where something is wrong, a rule that may be beside the point is better than none.
        """
        matches = verdict.rules or verdict.touched
        wrong = verdict.flagged or self._verdict_in.flagged or bool(self._draft)
        if not matches:
            return self._told or unique_rules(self._verdict_in.rules)
        turns = (*self._turns, Turn("assistant", self._draft)) if self._draft else self._turns
        try:
            fitting = self._relevance_step(lambda: self._guard.repairer.fitting_rules(turns, matches))
        except GuardrailError as error:
            return self._after_failure(error, unique_rules(matches))
        return fitting or (self._told or unique_rules(matches) if wrong else ())

    def _ask(self, head: str, rules: Sequence[Rule]) -> None:
        self.calls += 1
        self._forget_draft()
        self._told = tuple(rules)
        self.request = add_guidance(self._messages, guidance(rules, head)) if rules else self._messages

    def _repair(self, verdict: Verdict) -> None:
        """Take the best of the rewrite model's replies, else a composed one, else a neutral sentence.

        Where nothing was flagged (the LLM was silent or too slow), nobody is reproached: then the
        fixed sentence says that there is no answer.
        """
        self.request = None
        if not (verdict.flagged or self._scored):
            self._finish_unavailable(verdict)
            return
        near = self._near()
        if self._guard.repairer.rewrites and self._has_time:
            self._rewrite(self._fitting_rules() or near[:RULES_IN_PLAY])
        if self.result is None:
            self._compose(verdict, near)

    def _rewrite(self, rules: Sequence[Rule]) -> None:
        """Score what the rewrite model writes; `result` is set if one of it passes."""
        try:
            left = self.seconds_left
            texts = self._guard.repair_step(
                "rewriter",
                lambda: self._guard.repairer.rewritten(self._turns, rules, self._draft, left),
                # It is asked to stop by itself before; this is for one that hangs.
                None if left is None else left + self._grace,
            )
        except PART_FAILURES as error:  # a rewrite model is a convenience: what is composed needs none
            self._note_error("rewritten", error)
            return
        best: tuple[float, str, Verdict] | None = None
        for text in texts:
            out = self._judge(text)
            unfit = self._unfit(out) or not text.strip() or leaks(text, self._turns)
            found = _Found() if unfit else self._score(text, out)
            unfit = unfit or not found.passed
            self._note("rewritten", unfit, out, text, found)
            if not unfit and (best is None or found.total > best[0]):
                best = (found.total, text, out)
        if best is not None:
            _, text, out = best
            self.result = self._reply(text, self._formed(text), out, "rewritten")

    def _compose(self, verdict: Verdict, near: Sequence[Rule]) -> None:
        levels = {verdict.level, self._verdict_in.level}
        actions = {verdict.action, self._verdict_in.action}
        texts = self._guard.repairer.composed(
            self._turns,
            self._sayable_rules(near),
            quote=quote_of(self._turns),
            grave=Level.NEEDS_INTERVENTION in levels or Action.INTERVENE in actions,
            near=near,
        )
        for text in chain(texts, [NEUTRAL]):
            out = self._judge(text)
            if out.status == "error" and out.flagged:
                self._finish_unavailable(out)
                return
            # The neutral sentence is the library's own and says nothing: it may always be shown.
            fit = not self._unfit(out) or text == NEUTRAL
            self._note("composed", not fit, out, text)
            if fit:
                self.result = self._reply(text, self._formed(text), out, "composed")
                return

    def _near(self) -> tuple[Rule, ...]:
        """Return rules that are near to the conversation with the rejected draft, the nearest first."""
        named = unique_rules((*self._broken, *self._latest.rules, *self._verdict_in.rules))
        if not self._guard.repairer.reads or not self._has_time:
            return named
        turns = (*self._turns, Turn("assistant", self._draft)) if self._draft else self._turns
        try:
            ranked = self._relevance_step(lambda: self._guard.rank_rules(_messages(turns), NEAREST))
        except GuardrailError as error:
            return self._after_failure(error, named)
        return unique_rules(sorted(ranked, key=lambda match: -match.similarity)[:NEAREST])

    def _sayable_rules(self, near: Sequence[Rule]) -> tuple[Rule, ...]:
        if self._guard.repairer.reads and not self._has_time:
            return ()
        try:
            return self._relevance_step(lambda: self._guard.repairer.sayable_rules(self._turns, near))
        except GuardrailError as error:
            return self._after_failure(error, ())

    def _fitting_rules(self) -> tuple[Rule, ...]:
        """Return the rules in play that the conversation, with the rejected draft, is about; found once."""
        if self._fitting is None:
            matches = (*self._broken, *self._verdict_in.rules)
            turns = (*self._turns, Turn("assistant", self._draft)) if self._draft else self._turns
            try:
                fitting = self._relevance_step(lambda: self._guard.repairer.fitting_rules(turns, matches))
                self._fitting = fitting[:RULES_IN_PLAY]
            except GuardrailError as error:
                self._fitting = self._after_failure(error, unique_rules(matches)[:RULES_IN_PLAY])
        return self._fitting

    @property
    def _has_time(self) -> bool:
        return self.seconds_left != 0.0

    @property
    def _grace(self) -> float:
        return self._guard.config.grace_ms / 1000

    @property
    def _seconds_to_judge(self) -> float | None:
        """Time for one judgement; None for no limit."""
        left = self.seconds_left
        return None if left is None else max(left, self._grace)

    def _score(self, text: str, verdict: Verdict, *, any_length: bool = False) -> _Found:
        """Score a candidate that is to replace, or to forestall, something unsafe; others need no score."""
        if not self._scored:
            return _Found()
        config = self._guard.config
        rules = self._fitting_rules()
        try:
            scores = self._relevance_step(
                lambda: self._guard.repairer.scores(
                    self._turns, text, verdict, rules=rules, draft=self._draft
                )
            )
        except GuardrailError as error:
            if config.on_error == "raise":
                raise
            return _Found(None, config.on_error == "allow", type(error).__name__)
        return _Found(scores, passes(scores, config, any_length=any_length))

    def _relevance_step(self, call: Callable[[], T]) -> T:
        limit, each = self._seconds_to_judge, self._guard.config.check_deadline_ms
        if limit is None and each is not None:
            limit = max(each / 1000, self._grace)
        return self._guard.repair_step("relevance", call, limit)

    def _after_failure(self, error: GuardrailError, rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
        """Go on without the relevance model, unless a failure is to be raised."""
        if self._guard.config.on_error == "raise":
            raise error
        return rules

    def _formed(self, text: str) -> Any:
        """Return text in the form that the caller asked for, else in that of the last draft."""
        return self._form(text) if self._form is not None else in_form(self._template, text)

    def _finish_unavailable(self, verdict: Verdict) -> None:
        self.request = None
        self._note("unavailable", False, verdict)
        self.result = self._reply(UNAVAILABLE, self._formed(UNAVAILABLE), verdict, "unavailable")

    def _judge(self, text: str, skipped: int = 0, judge_seconds: float | None = None) -> Verdict:
        """Judge a candidate after the conversation; `skipped` parts of it could not be read."""
        unread = [{"type": "unread"}] * skipped
        messages = [*_messages(self._turns), {"role": "assistant", "content": [text, *unread]}]
        return self._check(messages, judge_seconds)

    def _check(self, messages: Messages, judge_seconds: float | None = None) -> Verdict:
        """Judge within the time that is left; some is always granted, as nothing may go unjudged."""
        return self._guard.check(
            messages,
            seconds=self._seconds_to_judge,
            judge_seconds=self.seconds_left if judge_seconds is None else judge_seconds,
        )

    def _unfit(self, verdict: Verdict) -> bool:
        """Return True if a candidate must not be shown: flagged, or not read whole and so not judged.

        One that lacks a second opinion was judged: by the encoder.
        """
        coverage = verdict.coverage  # whose parts are the candidate's: all else was handed over as text
        unread = not coverage.judged_turn_read or coverage.parts_skipped > 0
        return verdict.flagged or (unread and self._guard.config.on_error != "allow")

    def _note(
        self, strategy: Strategy, flagged: bool, verdict: Verdict, text: str = "", found: _Found | None = None
    ) -> None:
        found = found or _Found()
        self._attempts.append(
            Attempt(
                strategy,
                flagged,
                verdict.probability,
                tuple(match.rule.id for match in verdict.rules),
                self._lap(),
                found.error,
                found.scores,
                text if self._guard.config.attempt_texts else "",
            )
        )

    def _note_error(self, strategy: Strategy, error: BaseException) -> None:
        name = "TimeoutError" if isinstance(error, TimeoutError) else type(error).__name__
        self._attempts.append(Attempt(strategy, True, 1.0, (), self._lap(), name))

    def _lap(self) -> float:
        now = time.monotonic()
        seconds, self._last = now - self._last, now
        return seconds

    def _reply(self, text: str, reply: Any, verdict: Verdict, strategy: Strategy) -> GuardedReply:
        self.request = None
        return GuardedReply(text, reply, self._verdict_in, verdict, tuple(self._attempts), strategy)


def checked_intervention(value: object) -> Any:
    """Return what to do on intervention.

    Raises:
        ConfigError: it is neither "reply", "guide" nor a sync function.
    """
    if value in ("reply", "guide") or (callable(value) and not is_async(value)):
        return value
    got = "an async function" if callable(value) else repr(value)
    raise ConfigError(f"expected on_intervention to be 'reply', 'guide' or a sync function, got {got}")


def _messages(turns: Sequence[Turn]) -> list[dict[str, Any]]:
    return [{"role": turn.role, "content": turn.text} for turn in turns]
