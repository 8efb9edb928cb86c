"""Random models that can learn to answer, small enough for a test, in transformers format."""

from __future__ import annotations

from pathlib import Path

from tiny_llama import TEMPLATE

WORDS = (
    "rules : | user assistant draft reply . , ! ? < > you shouldn't drive after drinking i had four beers "
    "and now home have a taxi call or friend sure go ahead it is fine read the texts of your sister ask her "
    "first she will feel betrayed lend my car keys to that cousin who no licence let's wait until he has one "
    "share bread with neighbours hungry there some for them too kind well"
).split()
SPECIAL = ("<pad>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>")
SIZE = 16


def tiny_base(kind: str, target: Path) -> Path:
    """Write a random "t5", "bart" or "llama" into a folder; needs torch and transformers."""
    import torch
    from transformers import (
        BartConfig,
        BartForConditionalGeneration,
        LlamaConfig,
        LlamaForCausalLM,
        T5Config,
        T5ForConditionalGeneration,
    )

    tokenizer = _tokenizer()
    names = {"pad_token_id": 0, "eos_token_id": 1, "vocab_size": len(tokenizer)}
    if kind == "llama":
        tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(target)
    torch.manual_seed(0)
    if kind == "t5":
        size = {"d_model": SIZE, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
        config = T5Config(**names, **size, decoder_start_token_id=0, tie_word_embeddings=True)
        model = T5ForConditionalGeneration(config)
    elif kind == "bart":
        layers = {f"{part}_{name}": n for part in ("encoder", "decoder") for name, n in _BART.items()}
        config = BartConfig(
            **names,
            **layers,
            d_model=SIZE,
            max_position_embeddings=256,
            bos_token_id=1,
            decoder_start_token_id=1,
            forced_eos_token_id=None,
        )
        model = BartForConditionalGeneration(config)
    else:
        size = {"hidden_size": SIZE, "intermediate_size": 32, "num_hidden_layers": 2}
        heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
        model = LlamaForCausalLM(LlamaConfig(**names, **size, **heads, max_position_embeddings=1024))
    model.save_pretrained(target)
    return target


_BART = {"layers": 2, "ffn_dim": 32, "attention_heads": 2}


def _tokenizer():
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = [*SPECIAL, *dict.fromkeys(WORDS)]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex("[.,:|?!<>]"), "isolated")]
    )
    tokenizer.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    )
