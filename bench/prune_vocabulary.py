"""Make a base with fewer word pieces, so that a small rewrite model spends its time on writing.

    python bench/prune_vocabulary.py --data ../shared/data --config trainer/resources/rewriter.toml \
        --out runs/minilm-pruned

Half of the work of a 22M decoder is the output layer over 30,522 pieces. Kept are the pieces that occur at
least twice in the training split of the recipe, and every single character; rarer words fall apart into
these. The weights of the kept pieces stay as they are. OUT is a base like any other.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

import torch
from transformers import AutoTokenizer, BertModel

from guardrail.rewrite_format import RewriteInput, as_source
from guardrail.trainer.encoder import base_folder
from guardrail.trainer.rewriting.config import RewriterConfig
from guardrail.trainer.rewriting.data import load_replies

LEAST = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--config", type=Path, default=Path("trainer/resources/rewriter.toml"))
    parser.add_argument("--base", default="minilm")
    parser.add_argument("--out", type=Path, default=Path("runs/minilm-pruned"))
    arguments = parser.parse_args()
    config = RewriterConfig.read(arguments.config)
    tokenizer = AutoTokenizer.from_pretrained(base_folder(arguments.base))
    counts = Counter[int]()
    for item in load_replies(arguments.data, "train", limits=config.source_limits, seed=config.seed):
        source = as_source(RewriteInput(item.turns, item.rules, item.draft))
        for text in (source, item.reply):
            counts.update(tokenizer(text, add_special_tokens=False)["input_ids"])
    kept = [
        number
        for piece, number in sorted(tokenizer.get_vocab().items(), key=lambda pair: pair[1])
        if counts[number] >= LEAST or number in tokenizer.all_special_ids or is_character(piece)
    ]
    write(arguments.base, kept, arguments.out)
    print(f"kept {len(kept)} of {len(tokenizer)} pieces in {arguments.out}")


def is_character(piece: str) -> bool:
    return len(piece.removeprefix("##")) == 1 and piece.isascii()


def write(base: str, kept: list[int], out: Path) -> None:
    """Write model and tokenizer with the pieces of these ids, numbered anew in their order."""
    tokenizer = AutoTokenizer.from_pretrained(base_folder(base))
    model = BertModel.from_pretrained(base_folder(base), add_pooling_layer=False, dtype=torch.float32)
    old = model.get_input_embeddings()
    new = torch.nn.Embedding(len(kept), old.embedding_dim, padding_idx=0)
    new.weight.data.copy_(old.weight.data[kept])
    model.set_input_embeddings(new)
    model.config.vocab_size = len(kept)
    model.save_pretrained(out)
    pieces = tokenizer.convert_ids_to_tokens(kept)
    place = {piece: number for number, piece in enumerate(pieces)}
    tokenizer.save_pretrained(out)
    path = out / "tokenizer.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["model"]["vocab"] = place
    settings["added_tokens"] = [row | {"id": place[row["content"]]} for row in settings["added_tokens"]]
    special = settings["post_processor"].get("special_tokens", {})
    for row in special.values():
        row["ids"] = [place[token] for token in row["tokens"]]
    path.write_text(json.dumps(settings, ensure_ascii=False), encoding="utf-8")
    (out / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
