"""The guard: messages in, verdict out.

`Guardrail` joins the parts: read, encode, retrieve rules, judge, decide. The parts know nothing
of each other.
"""

from __future__ import annotations

import asyncio
import copy
import shutil
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from .artifact import (
    Backend,
    Canary,
    copy_files,
    find_folder,
    load_artifact,
    read_manifest,
    write_manifest,
    write_parts,
)
from .calibration import Calibration
from .compose import Composer
from .config import GuardConfig
from .conversation import Conversation, Messages, read_conversation
from .decision import Decision, decide, revise
from .detector import Judgement, checked, judge, retrieve
from .errors import ArtifactError, ConfigError, GuardrailError, InputError, ModelError
from .judging import MAX_RULES, Question, frame
from .parts import (
    band_of,
    lazy_relevance,
    lazy_rewriter,
    second_opinion_of,
    thresholds_of,
    workers_of,
)
from .protocols import Encoder, EncoderOutput
from .reading import Reading, read, rule_windows
from .repair import Repairer
from .rule_index import RuleIndex
from .rules import Rule, as_rule
from .second_opinion import Answer, SecondOpinion
from .threads import PART_FAILURES, OverloadedError
from .types import Coverage, RuleMatch, Verdict
from .verdicts import blank_verdict, decided_verdict, degraded, failed_verdict, matches

if TYPE_CHECKING:
    from .outcome import GuardedReply
    from .protocols import Relevance, Rewriter
    from .session import OnIntervention
    from .stream_drivers import AsyncGuardedStream, GuardedStream

T = TypeVar("T")

RELEVANCE_FOLDER = Path(__file__).parent / "models" / "relevance"
TOO_LONG_TO_ASK = "the judged turn is too long for a second opinion; the encoder decided"


@dataclass(frozen=True, slots=True)
class _Known:
    """Rules and their index, replaced as a whole so that a running check sees one state."""

    rules: tuple[Rule, ...]
    index: RuleIndex


@dataclass(frozen=True, slots=True)
class _Unsure:
    """A turn on which the encoder is unsure: its verdict, and what is needed to ask and to decide again."""

    verdict: Verdict
    second: SecondOpinion
    question: Question
    conversation: Conversation
    known: _Known
    reading: Reading = field(repr=False)
    judgement: Judgement
    decision: Decision


class Guardrail:
    """A guard with one encoder, one set of rules and one calibration. Safe to use from many threads."""

    def __init__(
        self,
        encoder: Encoder,
        rules: Sequence[Rule],
        *,
        index: RuleIndex | None = None,
        calibration: Calibration | None = None,
        config: GuardConfig | None = None,
        judge: Any = None,
        relevance: Relevance | str | Path | None = None,
        rewriter: Rewriter | str | Path | None = None,
    ) -> None:
        """Make a guard from its parts; `Guardrail.load` does it from a model folder.

        Args:
            encoder: reads token windows.
            rules: at least one.
            index: vectors of these rules, in this order; built here if not given.
            calibration: fitted for this encoder.
            config: settings.
            judge: gives a second opinion where the encoder is unsure; any form that
                `guardrail.judges.as_judge` takes. None for none.
            relevance: reads rules and replies together with a conversation, for repairs; or the folder of
                such a model, which is loaded when it is first needed. None for none.
            rewriter: writes replies in place of unsafe ones; or the folder of a trained rewrite model,
                which is loaded when it is first needed. None for none.

        Raises:
            ConfigError: no rules, an index of another length, or no judge.
            ArtifactError: the folder of a model for repairs holds none.
            ModelError: the encoder fails on the rules, or the index is of another dimension.
        """
        if not rules:
            raise ConfigError(
                "expected at least one rule of thumb, got none; a guard without rules guards nothing"
            )
        self.config = config or GuardConfig()
        self.calibration = calibration or Calibration()
        self.thresholds = thresholds_of(self.calibration.thresholds, self.config)
        self.band = band_of(self.calibration.band, self.thresholds, self.config)
        self._second = second_opinion_of(judge, self.config)
        self._encoder = encoder
        self._checks, self._repairs, self._steps = workers_of(self.config, judge)
        self._lock = threading.Lock()
        self._repairer: Repairer | None = None
        self._relevance = lazy_relevance(relevance, self.config.threads)
        self._rewriter = lazy_rewriter(rewriter)
        if index is None:
            index = RuleIndex(encoder.dimension)
            index.add(self._embed_rules(rules))
        if len(index) != len(rules):
            raise ConfigError(
                f"expected one vector per rule, got {len(index)} for {len(rules)}; build the index again"
            )
        self._known = _Known(tuple(rules), index)
        self._folder: Path | None = None
        self._fingerprint = ""
        self._canary: Canary | None = None

    @classmethod
    def load(
        cls,
        name: str | Path | None = None,
        *,
        backend: Backend = "auto",
        device: str | None = None,
        config: GuardConfig | None = None,
        judge: Any = None,
        rewriter: Rewriter | str | Path | None = None,
        **settings: Any,
    ) -> Guardrail:
        """Load a guard from a model folder and check that it works.

        Args:
            name: folder, or "hf:" and a hub id; None for the model that ships, which needs no network.
            backend: "onnx" or "torch" (a trained model that was not exported; needs the train extra)
                refuses a folder of the other kind; "auto" takes what the folder holds.
            device: for torch, e.g. "cpu" or "cuda:1"; None takes a GPU if there is one.
            config: settings, as a whole.
            judge: gives a second opinion where the encoder is unsure: a function from messages to
                text, a LangChain chat model, or whatever `guardrail.judges.as_judge` returns.
            rewriter: writes replies in place of unsafe ones; the folder of a trained rewrite model, or
                anything with its `rewrite`. None for none: such replies are then composed.
            settings: or single fields of `GuardConfig`, e.g. `caution_threshold=0.8`.

        Raises:
            ArtifactError: the folder is missing, altered or foreign, or the model does not flag its canary.
            ConfigError: a setting is out of range.
            MissingDependencyError: a torch model without the train extra.
        """
        if config is not None and settings:
            raise ConfigError(f"expected config or single settings, got both: {', '.join(sorted(settings))}")
        config = config or GuardConfig.of(**settings)
        folder = find_folder(name)
        artifact = load_artifact(folder, threads=config.threads, backend=backend, device=device)
        guard = cls(
            artifact.encoder,
            artifact.rules,
            index=artifact.index,
            calibration=artifact.calibration,
            config=config,
            judge=judge,
            relevance=RELEVANCE_FOLDER,
            rewriter=rewriter,
        )
        guard._folder = folder
        guard._fingerprint = artifact.manifest.encoder
        guard._canary = artifact.manifest.canary
        guard._check_canary(artifact.manifest.canary, str(folder))
        return guard

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The rules in force, in the order of adding."""
        return self._known.rules

    def __repr__(self) -> str:
        return f"Guardrail(rules={len(self.rules)}, dimension={self._encoder.dimension})"

    def check(
        self, messages: Messages, *, seconds: float | None = None, judge_seconds: float | None = None
    ) -> Verdict:
        """Judge the last turn of a conversation, read in its context.

        Args:
            messages: a string, a list of strings, role/content dicts or LangChain messages.
            seconds: longest time for the encoder, where `check_deadline_ms` is longer or not set; then the
                guard counts as failed.
            judge_seconds: longest wait for a second opinion, where `judge_deadline_ms` is longer.

        Returns:
            The verdict. A blank turn is allowed, with a reason. If the guard itself fails, what
            `on_error` says; the status is then "error", never "ok".

        Raises:
            InputError: the messages cannot be read.
            ModelError: a stage failed and `on_error` is "raise".
        """
        return self._settle(self._open(read_conversation(messages), seconds), judge_seconds)

    async def acheck(
        self, messages: Messages, *, seconds: float | None = None, judge_seconds: float | None = None
    ) -> Verdict:
        """Judge as `check` does, in one of `workers` threads, so that the event loop stays free.

        An async judge is awaited on the caller's loop; cancelling this cancels it.
        """
        conversation = read_conversation(messages)
        try:
            async with asyncio.timeout(self._limit(seconds)):
                opened = await self._checks.arun(lambda: self._judge(conversation, self._second))
        except Exception as error:
            return failed_verdict(conversation, error, self.config.on_error)
        if isinstance(opened, Verdict):
            return opened
        try:
            return self._revise(opened, await opened.second.aask(opened.question, judge_seconds))
        except Exception as error:
            return failed_verdict(opened.conversation, error, self.config.on_error)

    def check_batch(
        self, conversations: Iterable[Messages], *, progress: Callable[[int], object] | None = None
    ) -> list[Verdict]:
        """Judge many conversations, several at a time; each verdict equals that of `check`.

        Args:
            conversations: each in any form that `check` takes.
            progress: called with 1 for each that is done, perhaps from worker threads.

        Raises:
            InputError: one cannot be read; the message says which, counted from 0.
            ModelError: a stage failed and `on_error` is "raise".
        """
        if isinstance(conversations, str | Mapping):
            raise InputError(
                f"expected a list of conversations, got one {type(conversations).__name__}; put it in []"
            )
        items = list(conversations)
        read_items = []
        for number, messages in enumerate(items):
            try:
                read_items.append(read_conversation(messages))
            except InputError as error:
                raise InputError(f"conversation {number}: {error}") from error

        def finish(opened: Verdict | _Unsure) -> Verdict:
            try:
                return self._settle(opened)
            finally:
                if progress is not None:
                    progress(1)

        # One conversation a run, runs side by side: a batch of many would give the int8 model other
        # activation scales, and so other verdicts than check().
        with (
            ThreadPoolExecutor(max_workers=self.config.workers) as pool,
            ThreadPoolExecutor(max_workers=self.config.judge_workers) as asking,
        ):
            opened = pool.map(self._open, read_items)
            # A judge is waited for, not computed: questions go out while other turns are still read.
            return list(map(finish, opened) if self._second is None else asking.map(finish, opened))

    def with_judge(self, judge: Any, **settings: Any) -> Guardrail:
        """Return a guard on the same model and rules with another judge and, if given, other settings.

        Args:
            judge: as in `load`; None for none.
            settings: single fields of `GuardConfig`.

        Raises:
            ConfigError: no judge, a setting is out of range, or `threads`, which a loaded model cannot
                change.
        """
        guard = copy.copy(self)
        guard._repairer = None
        guard.config = GuardConfig.of(**(self.config.model_dump() | settings))
        if guard.config.threads != self.config.threads:
            raise ConfigError(
                f"expected threads={self.config.threads}, with which this model was loaded, got "
                f"{guard.config.threads}; load a guard with that setting"
            )
        guard.thresholds = thresholds_of(self.thresholds, GuardConfig.of(**settings))
        guard.band = band_of(self.calibration.band, guard.thresholds, guard.config)
        guard._second = second_opinion_of(judge, guard.config)
        guard._checks, guard._repairs, guard._steps = workers_of(guard.config, judge)
        return guard

    def add_rules(self, rules: Iterable[str | Mapping[str, Any] | Rule]) -> tuple[Rule, ...]:
        """Add rules of thumb; they work at once, without training.

        Args:
            rules: each one line of text, a mapping in the bank's schema, or a `Rule`.

        Returns:
            The rules as added, with their ids.

        Raises:
            InputError: a rule does not fit the schema, or its id is taken.
            ModelError: the encoder failed. Nothing is added then.
        """
        if isinstance(rules, str | Mapping):
            raise InputError(f"expected a list of rules, got one {type(rules).__name__}; put it in []")
        added = tuple(as_rule(rule) for rule in rules)
        if not added:
            return ()
        with self._lock:
            known = self._known
            taken = {rule.id for rule in known.rules}
            for rule in added:
                if rule.id in taken:
                    raise InputError(
                        f"expected new rule ids, got {rule.id!r}, which is taken; choose another id"
                    )
                taken.add(rule.id)
            index = known.index.copy()
            index.add(self._embed_rules(added))
            self._known = _Known(known.rules + added, index)
        return added

    def save(self, folder: str | Path) -> Path:
        """Write the guard, with all rules that were added, as a model folder.

        Raises:
            ArtifactError: the guard was not loaded from a folder, that folder's model was replaced
                since, or the target is not empty.
        """
        target = Path(folder)
        if self._folder is None or self._canary is None:
            raise ArtifactError(
                "expected a guard that was loaded from a model folder, this one was made from parts"
            )
        if target.exists() and any(target.iterdir()):
            raise ArtifactError(f"expected an empty or new folder, {target} holds files; choose another")
        names = read_manifest(self._folder).encoder_files
        target.mkdir(parents=True, exist_ok=True)
        copy_files(self._folder, target, names)
        known = self._known
        write_parts(target, known.index, known.rules, self.calibration)
        manifest = write_manifest(
            target,
            known.rules,
            name=target.name,
            dimension=self._encoder.dimension,
            max_tokens=self._encoder.max_tokens,
            canary=self._canary,
        )
        if manifest.encoder != self._fingerprint:
            shutil.rmtree(target)
            raise ArtifactError(f"expected the model in {self._folder} as it was loaded, it was altered")
        return target

    def search_rules(self, query: str, k: int = 5) -> list[tuple[Rule, float]]:
        """Return the k nearest rules to a text with their cosine, the nearest first.

        Raises:
            InputError: the query is blank.
            ConfigError: k is below 1.
            ModelError: a stage failed.
        """
        readings, _ = _stage("normalize", read, read_conversation(query), self._encoder, 1)
        if not readings[0].normalized.text.strip():
            raise InputError("expected a query, got blank text")
        known = self._known
        output = self._encode([readings[0].packing.windows[0].ids])
        (hits,) = _stage("index", retrieve, known.index, output.embeddings, k)
        return [(known.rules[position], cosine) for position, cosine in hits]

    @property
    def repairer(self) -> Repairer:
        """Proposes and scores replies in place of unsafe ones; its models are loaded on their first use."""
        with self._lock:
            if self._repairer is None:
                self._repairer = Repairer(
                    Composer(self.rules),
                    relevance=self._relevance,
                    rewriter=self._rewriter,
                    samples=self.config.rewrite_samples,
                )
            return self._repairer

    def wrap(
        self,
        llm: Callable[..., Any],
        *,
        on_intervention: OnIntervention | None = None,
        form: Callable[[str], Any] | None = None,
    ) -> Callable[..., Any]:
        """Return the callable with the guard around it; see `guardrail.middleware.wrap`."""
        from .middleware import wrap

        return wrap(self, llm, on_intervention=on_intervention, form=form)

    def generate(
        self,
        llm: Callable[..., Any],
        messages: Messages,
        *args: Any,
        on_intervention: OnIntervention | None = None,
        **kwargs: Any,
    ) -> GuardedReply:
        """Call an LLM with the guard around it; see `guardrail.middleware.generate`."""
        from .middleware import generate

        return generate(self, llm, messages, *args, on_intervention=on_intervention, **kwargs)

    async def agenerate(
        self,
        llm: Callable[..., Any],
        messages: Messages,
        *args: Any,
        on_intervention: OnIntervention | None = None,
        **kwargs: Any,
    ) -> GuardedReply:
        """Do as `generate`, with an async or a sync callable, without blocking the event loop."""
        from .middleware import agenerate

        return await agenerate(self, llm, messages, *args, on_intervention=on_intervention, **kwargs)

    def stream(
        self,
        llm: Callable[..., Any],
        messages: Messages,
        *args: Any,
        on_intervention: OnIntervention | None = None,
        **kwargs: Any,
    ) -> GuardedStream:
        """Call an LLM that streams, with the guard around it; see `guardrail.middleware.stream`."""
        from .middleware import stream

        return stream(self, llm, messages, *args, on_intervention=on_intervention, **kwargs)

    def astream(
        self,
        llm: Callable[..., Any],
        messages: Messages,
        *args: Any,
        on_intervention: OnIntervention | None = None,
        **kwargs: Any,
    ) -> AsyncGuardedStream:
        """Do as `stream`, in async code, without blocking the event loop."""
        from .middleware import astream

        return astream(self, llm, messages, *args, on_intervention=on_intervention, **kwargs)

    def repair(self, messages: Messages, draft: str = "") -> GuardedReply:
        """Return a reply to show in place of a draft, whatever this guard thinks of the draft.

        No LLM is called: the reply comes from the rewrite model, if there is one, else it is composed.

        Args:
            messages: the conversation, without the draft.
            draft: the reply that must not be shown; "" if there is none.

        Raises:
            InputError: the messages cannot be read.
            ModelError: a stage failed and `on_error` is "raise".
        """
        from .session import Session

        session = Session(self, messages)
        session.replace(draft)
        assert session.result is not None
        return session.result

    def rank_rules(self, messages: Messages, k: int = 5) -> tuple[RuleMatch, ...]:
        """Return the k rules that the last turn most likely breaks, flagged or not, likeliest first.

        Raises:
            InputError: the messages cannot be read.
            ConfigError: k is below 1.
            ModelError: a stage failed.
        """
        if k < 1:
            raise ConfigError(f"expected k >= 1, got {k}")
        known = self._known
        conversation = read_conversation(messages)
        readings, _ = self._read(conversation)
        output = self._encode([window.ids for window in readings[0].packing.windows])
        judgement = _stage(
            "detector", judge, output, known.index, self.calibration, max(k, self.config.top_k)
        )
        return matches(judgement.rules[:k], known.rules, conversation, readings[0])

    def check_canary(self) -> None:
        """Check that the model still flags its canary and not its twin, as `load` does.

        A guard that was made from parts has no canary; its encoder must then read a sentence.

        Raises:
            ArtifactError: it does not.
            ModelError: a stage failed.
        """
        if self._canary is None:
            self._judge(read_conversation("hello"), None)
        else:
            self._check_canary(self._canary, str(self._folder))

    def _open(self, conversation: Conversation, seconds: float | None = None) -> Verdict | _Unsure:
        """Return the verdict, or what a judge is to be asked; what `on_error` says if the guard fails."""
        try:
            limit = self._limit(seconds)
            if limit is None:
                return self._judge(conversation, self._second)
            return self._checks.run(lambda: self._judge(conversation, self._second), limit)
        except Exception as error:
            return failed_verdict(conversation, error, self.config.on_error)

    def _limit(self, seconds: float | None) -> float | None:
        """Return the longest time for one judgement, seconds."""
        deadline = self.config.check_deadline_ms
        limits = [limit for limit in (seconds, deadline and deadline / 1000) if limit is not None]
        return min(limits, default=None)

    def repair_step(self, stage: str, call: Callable[[], T], seconds: float | None) -> T:
        """Run a part of a repair within a time limit; for `Session`.

        In threads of its own: one that hangs must not keep replies from being judged.

        Args:
            stage: its name, for the error.
            call: what to run.
            seconds: the limit; None for none.

        Raises:
            ModelError: it took longer.
            Exception: whatever the call raises.
        """
        try:
            return call() if seconds is None else self._repairs.run(call, seconds)
        except (TimeoutError, OverloadedError) as error:
            raise ModelError(stage, f"failed with {type(error).__name__}") from error

    async def in_thread(self, call: Callable[[], T]) -> T:
        """Run a step of a guarded reply in one of `workers` threads; for the async drivers.

        Steps wait in line as long as it takes: who calls decides how many replies are made at a time.
        """
        return await self._steps.arun(call)

    def _judge(self, conversation: Conversation, second: SecondOpinion | None) -> Verdict | _Unsure:
        known = self._known
        readings, coverage = self._read(conversation)
        if not readings[0].normalized.text.strip():
            return blank_verdict(conversation, coverage)
        decided = [self._decide(reading, known) for reading in readings]
        # An undone disguise counts if it is worse than the text as written.
        reading, judgement, decision = max(
            decided, key=lambda item: (item[2].action.rank, item[2].probability)
        )
        verdict = decided_verdict(conversation, coverage, decision, known.rules, reading)
        if second is None or decision.probability not in self.band:
            return verdict
        asked = [known.rules[score.position].text for score in judgement.rules[:MAX_RULES]]
        undone = "" if reading is readings[0] else reading.normalized.text
        question = frame(conversation.turns, asked, undone)
        if question is None:
            return degraded(verdict, TOO_LONG_TO_ASK)
        return _Unsure(verdict, second, question, conversation, known, reading, judgement, decision)

    def _settle(self, opened: Verdict | _Unsure, judge_seconds: float | None = None) -> Verdict:
        if isinstance(opened, Verdict):
            return opened
        try:
            return self._revise(opened, opened.second.ask(opened.question, judge_seconds))
        except Exception as error:
            return failed_verdict(opened.conversation, error, self.config.on_error)

    def _revise(self, unsure: _Unsure, answer: Answer) -> Verdict:
        if answer.opinion is None:
            return degraded(unsure.verdict, answer.reason)
        decision = revise(
            unsure.decision,
            unsure.judgement,
            answer.opinion,
            unsure.judgement.rules[:MAX_RULES],
            self.thresholds,
            self.config.max_rules,
        )
        return replace(
            unsure.verdict,
            action=decision.action,
            probability=decision.probability,
            level=decision.level,
            rules=matches(decision.broken, unsure.known.rules, unsure.conversation, unsure.reading),
            judged_by="judge",
        )

    def _read(self, conversation: Conversation) -> tuple[tuple[Reading, ...], Coverage]:
        limits = (self.config.max_windows, self.config.max_context_windows)
        found: tuple[tuple[Reading, ...], Coverage] = _stage(
            "normalize", read, conversation, self._encoder, *limits
        )
        return found

    def _decide(self, reading: Reading, known: _Known) -> tuple[Reading, Judgement, Decision]:
        output = self._encode([window.ids for window in reading.packing.windows])
        judgement = _stage("detector", judge, output, known.index, self.calibration, self.config.top_k)
        return reading, judgement, decide(judgement, self.thresholds, self.config.max_rules)

    def _embed_rules(self, rules: Sequence[Rule]) -> Any:
        return self._encode(rule_windows(rules, self._encoder)).embeddings

    def _encode(self, windows: Sequence[Sequence[int]]) -> EncoderOutput:
        found: EncoderOutput = _stage(
            "encoder", lambda: checked(self._encoder.encode(windows), len(windows), self._encoder.dimension)
        )
        return found

    def _check_canary(self, canary: Canary, where: str) -> None:
        unsafe, safe = (
            self._settle(self._judge(read_conversation(turns), None)).probability
            for turns in (canary.unsafe, canary.safe)
        )
        # Against the calibrated threshold: a caller's own may be anything.
        if not unsafe >= self.calibration.thresholds.caution > safe:
            raise ArtifactError(
                f"expected the model in {where} to flag its canary and not its twin, got P(unsafe) "
                f"{unsafe:.2f} and {safe:.2f}; the model does not work, fetch it again"
            )


def _stage(name: str, function: Callable[..., Any], *args: Any) -> Any:
    """Run one stage; what it raises becomes a `ModelError` that names the stage."""
    try:
        return function(*args)
    except GuardrailError:
        raise
    except PART_FAILURES as error:
        raise ModelError(name, f"failed with {type(error).__name__}") from error
