"""Training the rewrite model: losses against slow references, tiny models of every kind, resume, CLI."""

import itertools
import json
import math
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("sentence_transformers")

import torch  # noqa: E402
from tiny_rewriters import tiny_base as random_base  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

from guardrail import ConfigError, MissingDependencyError  # noqa: E402
from guardrail.cli import app  # noqa: E402
from guardrail.rewrite_format import MAX_TURNS, RewriteInput  # noqa: E402
from guardrail.rewrite_tokens import source_ids, texts_of  # noqa: E402
from guardrail.rewriter import TransformersRewriter  # noqa: E402
from guardrail.torch_rewriter import WarmStartedBert, write  # noqa: E402
from guardrail.trainer.replies import ReplyExample  # noqa: E402
from guardrail.trainer.rewriting.bases import build  # noqa: E402
from guardrail.trainer.rewriting.config import RewriterConfig  # noqa: E402
from guardrail.trainer.rewriting.inputs import Collator, rows_of  # noqa: E402
from guardrail.trainer.rewriting.loop import LengthGrouped  # noqa: E402
from guardrail.trainer.rewriting.losses import (  # noqa: E402
    aligned,
    n_pair_loss,
    pooled,
    ranking_loss,
    similarities,
    token_loss,
)
from guardrail.trainer.rewriting.ranking import Beam, candidates  # noqa: E402
from guardrail.trainer.rewriting.representations import represented  # noqa: E402
from guardrail.trainer.rewriting.train import fit  # noqa: E402
from guardrail.types import Turn  # noqa: E402

pytestmark = pytest.mark.train
KINDS = ("t5", "bart", "llama")
RULE = "you shouldn't drive after drinking ."
TALKS = (
    ("i had four beers and now i drive home .", "have a taxi or call a friend .", "sure , go ahead ."),
    ("i read the texts of your sister .", "ask her first , or she will feel betrayed .", "it is fine ."),
    ("lend my car keys to that cousin with no licence .", "let's wait until he has one .", "go ahead ."),
    ("some neighbours are hungry .", "share bread with them .", "it is fine , it is now ."),
)
EXAMPLES = tuple(
    ReplyExample((Turn("user", said),), good, f"group {n}", "own", (RULE,), (bad,), bad)
    for n, (said, good, bad) in enumerate(TALKS)
)


@pytest.fixture(scope="module", params=KINDS)
def base(request, tmp_path_factory):
    return random_base(request.param, tmp_path_factory.mktemp(request.param) / "base")


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    return random_base("t5", tmp_path_factory.mktemp("t5") / "base")


def recipe(base, **options):
    small = {"batch_size": 4, "max_source_tokens": 96, "max_reply_tokens": 16, "bf16": False, "seed": 3}
    return RewriterConfig.read(None, base=str(base), **(small | options))


def history(run):
    return [json.loads(line) for line in (run / "history.jsonl").read_text("utf-8").splitlines()]


# ---------------------------------------------------------------- settings


def test_options_lie_over_the_file_and_the_file_over_the_defaults(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text("epochs = 2\nbatch_size = 7\n[source_repeats]\nbank = 3\n", encoding="utf-8")

    config = RewriterConfig.read(path, batch_size=9, seed=None)

    assert (config.epochs, config.batch_size, config.seed) == (2, 9, RewriterConfig().seed)
    assert config.source_repeats == {"bank": 3}


@pytest.mark.parametrize(
    "options",
    [
        {"beams": -1},
        {"draft_share": 1.5},
        {"kind": "encoder"},
        {"ranking": 1},
        {"lora_rank": -2},
        {"source_limits": {"bnak": 1}},
        {"source_repeats": {"bnak": 1}},
    ],
)
def test_a_setting_out_of_range_is_named(options):
    with pytest.raises(ConfigError, match=f"'{next(iter(options))}'"):
        RewriterConfig.read(None, **options)


def test_the_recipe_that_ships_can_be_read():
    import guardrail.trainer.rewriting.config as module

    path = Path(module.__file__).parents[1] / "resources" / "rewriter.toml"

    assert RewriterConfig.read(path).source_repeats["bank"] >= 1


# ---------------------------------------------------------------- losses, against slow references


def test_token_loss_is_the_weighted_mean_over_learned_tokens():
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 5)
    labels = torch.tensor([[1, 4, -100], [0, -100, -100]])
    weights = torch.tensor([1.0, 0.5])
    log_p = logits.log_softmax(-1)

    expected = -(log_p[0, 0, 1] + log_p[0, 1, 4] + 0.5 * log_p[1, 0, 0]) / 2.5

    assert token_loss(logits, labels, weights) == pytest.approx(float(expected), abs=1e-6)


def test_label_smoothing_spreads_a_share_of_the_target():
    torch.manual_seed(0)
    logits, labels = torch.randn(1, 2, 4), torch.tensor([[2, 0]])
    log_p = logits.log_softmax(-1)
    target = torch.full((2, 4), 0.2 / 4)
    target[0, 2] += 0.8
    target[1, 0] += 0.8

    expected = -(target * log_p[0]).sum() / 2

    assert token_loss(logits, labels, torch.ones(1), smoothing=0.2) == pytest.approx(
        float(expected), abs=1e-6
    )


def test_no_learned_token_is_no_loss_and_no_nan():
    logits = torch.randn(1, 2, 4, requires_grad=True)
    loss = token_loss(logits, torch.full((1, 2), -100), torch.ones(1))
    loss.backward()

    assert float(loss.detach()) == 0
    assert not logits.grad.any()


def test_a_causal_model_predicts_the_next_token():
    logits, labels = torch.arange(3.0).view(1, 3, 1), torch.tensor([[-100, 5, 6]])

    shifted, expected = aligned(logits, labels, "causal")

    assert shifted.flatten().tolist() == [0, 1]  # of the first token, the second's
    assert expected.tolist() == [[5, 6]]
    assert aligned(logits, labels, "seq2seq")[0] is logits


def test_pooling_is_the_mean_over_counted_tokens():
    hidden = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [100.0, 100.0]], [[9.0, 9.0]] * 3])

    vectors = pooled(hidden, torch.tensor([[1, 1, 0], [0, 0, 0]]))

    assert vectors.tolist() == [[2, 3], [0, 0]]


def slow_ranking(scores, ranks, owners, weights, margin):
    """Pair by pair, as the paper writes it."""
    total = used = 0.0
    for source, weight in enumerate(weights):
        own = [n for n, owner in enumerate(owners) if owner == source]
        pairs = [(i, j) for i in own for j in own if ranks[i] < ranks[j]]
        if pairs:
            hinges = [max(0, scores[j] - scores[i] + margin * (ranks[j] - ranks[i])) for i, j in pairs]
            total += weight * sum(hinges) / len(pairs)
            used += weight
    return total / used if used else 0.0


def slow_n_pair(scores, ranks, owners, weights, temperature):
    total = used = 0.0
    for source, weight in enumerate(weights):
        own = [n for n, owner in enumerate(owners) if owner == source]
        best = [n for n in own if ranks[n] == 0]
        if len(own) > 1 and best:
            bottom = math.log(sum(math.exp(scores[n] / temperature) for n in own))
            total += weight * sum(bottom - scores[n] / temperature for n in best) / len(best)
            used += weight
    return total / used if used else 0.0


def ranked(seed):
    """Random candidates of four sources; the third has one, the fourth none."""
    torch.manual_seed(seed)
    owners = torch.tensor([0, 0, 0, 0, 1, 1, 1, 2])
    ranks = torch.tensor([0, 1, 1, 3, 0, 2, 1, 0])
    return torch.rand(8, dtype=torch.double) * 2 - 1, ranks, owners, torch.rand(4, dtype=torch.double) + 0.1


@pytest.mark.parametrize("seed", range(5))
def test_the_pairwise_loss_is_its_slow_reference(seed):
    scores, ranks, owners, weights = ranked(seed)
    slow = slow_ranking(*(t.tolist() for t in (scores, ranks, owners, weights)), 0.3)

    assert slow > 0
    assert ranking_loss(scores, ranks, owners, weights, margin=0.3).item() == pytest.approx(slow)


@pytest.mark.parametrize("seed", range(5))
def test_the_softmax_loss_is_its_slow_reference(seed):
    scores, ranks, owners, weights = ranked(seed)
    slow = slow_n_pair(*(t.tolist() for t in (scores, ranks, owners, weights)), 0.1)

    assert n_pair_loss(scores, ranks, owners, weights, temperature=0.1).item() == pytest.approx(slow)


def test_gradients_of_both_losses_are_those_of_finite_differences():
    scores, ranks, owners, weights = ranked(1)
    scores.requires_grad_()

    assert torch.autograd.gradcheck(lambda s: ranking_loss(s, ranks, owners, weights, margin=0.3), scores)
    assert torch.autograd.gradcheck(lambda s: n_pair_loss(s, ranks, owners, weights, temperature=0.5), scores)


def test_a_right_order_with_room_costs_nothing_and_a_wrong_one_does():
    ranks, owners = torch.tensor([0, 1, 2]), torch.zeros(3, dtype=torch.long)
    right, wrong = torch.tensor([0.9, 0.5, 0.1]), torch.tensor([0.1, 0.5, 0.9])

    assert ranking_loss(right, ranks, owners, torch.ones(1), margin=0.3).item() == 0
    assert ranking_loss(wrong, ranks, owners, torch.ones(1), margin=0.3).item() > 0.5


@pytest.mark.parametrize("loss", ["pairs", "softmax"])
def test_without_anything_to_compare_the_ranking_is_0_with_0_gradients(loss):
    scores = torch.tensor([0.3, -0.2], requires_grad=True)
    arguments = (scores, torch.tensor([0, 0]), torch.tensor([0, 1]), torch.ones(2))

    value = (
        ranking_loss(*arguments, margin=0.1) if loss == "pairs" else n_pair_loss(*arguments, temperature=0.1)
    )
    value.backward()

    assert value.item() == 0
    assert scores.grad.tolist() == [0, 0]


def test_similarity_of_a_vector_of_zeros_is_0_and_not_nan():
    scores = similarities(
        torch.tensor([[0.0, 0.0], [2.0, 0.0]]), torch.tensor([[1.0, 0.0]] * 2), torch.tensor([0, 1])
    )

    assert scores.tolist() == [0, pytest.approx(1)]


# ---------------------------------------------------------------- what is ranked


def order_of(found, owner):
    ranked = sorted((c.rank, c.ids) for c in found if c.owner == owner)
    return [(rank, ids[0]) for rank, ids in ranked]


def test_gold_then_beams_by_quality_then_other_replies_then_unsafe_ones():
    beams = [[Beam([20], 0.2), Beam([21], 0.9), Beam([22], 0.95, unsafe=True)], []]

    found = candidates([[1], [2]], [[[30], [31]], []], beams, in_batch=4)

    assert order_of(found, 0) == [(0, 1), (1, 21), (2, 20), (3, 2), (4, 22), (5, 30), (6, 31)]
    assert order_of(found, 1) == [(0, 2), (1, 1)]


def test_a_beam_or_a_neighbour_like_the_gold_reply_is_no_candidate():
    beams = [[Beam([1], 1.0), Beam([5], 0.5), Beam([5], 0.5)], [], []]

    found = candidates([[1], [1], [2]], [[], [], []], beams, in_batch=1)

    assert order_of(found, 0) == [(0, 1), (1, 5), (2, 2)]
    assert order_of(found, 2) == [(0, 2), (1, 1)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_reply_has_the_same_vector_alone_and_beside_others(kind, tmp_path):
    """Padding, the order of the rows and other candidates must not matter."""
    config = recipe(random_base(kind, tmp_path))
    model, tokenizer, how = build(config)
    model.eval()
    rows = rows_of(EXAMPLES, tokenizer, how, config)
    collate = Collator(tokenizer, how, model)
    found = candidates(
        [row.reply for row in rows], [row.rejected for row in rows], [[]] * len(rows), in_batch=2
    )

    with torch.no_grad():
        sources, replies = represented(model, collate, rows, found)
        for candidate, vector in zip(found, replies, strict=True):
            alone = candidates([candidate.ids], [[]], [[]], in_batch=0)
            source, reply = represented(model, collate, [rows[candidate.owner]], alone)
            torch.testing.assert_close(reply[0], vector, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(source[0], sources[candidate.owner], atol=1e-5, rtol=1e-4)
    assert len(found) == len(rows) * 4


# ---------------------------------------------------------------- bases


def test_a_bert_becomes_an_encoder_decoder_of_shared_weights(tiny_base, tmp_path):
    model, tokenizer, kind = build(recipe(tiny_base))
    model.eval()
    source = torch.tensor([tokenizer("i drive home")["input_ids"]])
    start = torch.tensor([[tokenizer.cls_token_id, 40, 41]])
    other_end = torch.tensor([[tokenizer.cls_token_id, 40, 50]])

    with torch.no_grad():
        logits = model(input_ids=source, decoder_input_ids=start).logits
        causal = model(input_ids=source, decoder_input_ids=other_end).logits
        model.save_pretrained(tmp_path)
        again = WarmStartedBert.from_pretrained(tmp_path).eval()
        loaded = again(input_ids=source, decoder_input_ids=start).logits

    assert kind == "seq2seq"
    torch.testing.assert_close(loaded, logits, atol=0, rtol=0)
    torch.testing.assert_close(causal[:, :2], logits[:, :2])
    assert not torch.allclose(causal[:, 2], logits[:, 2])
    for one in (model, again):
        layer, twin = one.encoder.encoder.layer[1], one.decoder.bert.encoder.layer[1]
        assert layer.attention.self.query.weight is twin.attention.self.query.weight
        assert layer.output.LayerNorm.bias is twin.output.LayerNorm.bias
        words = one.encoder.embeddings.word_embeddings.weight
        assert words is one.decoder.bert.embeddings.word_embeddings.weight
        assert words is one.decoder.cls.predictions.decoder.weight


def test_weights_that_are_not_shared_start_equal_and_are_saved_apart(tiny_base, tmp_path):
    model, _, _ = build(recipe(tiny_base, share_weights=False))
    layer, twin = model.encoder.encoder.layer[0], model.decoder.bert.encoder.layer[0]
    weights = layer.intermediate.dense.weight, twin.intermediate.dense.weight

    assert weights[0] is not weights[1]
    assert torch.equal(*weights)
    with torch.no_grad():
        weights[1].add_(1.0)
    model.save_pretrained(tmp_path)
    again = WarmStartedBert.from_pretrained(tmp_path)
    assert torch.equal(again.decoder.bert.encoder.layer[0].intermediate.dense.weight, weights[1])
    assert torch.equal(again.encoder.encoder.layer[0].intermediate.dense.weight, weights[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "causal"}, "expected a causal base"),
        ({"max_source_tokens": 400}, "128 positions"),
        ({"lora_rank": 4}, "lora_rank 0"),
    ],
)
def test_what_a_bert_cannot_be_is_refused(tiny_base, options, message):
    with pytest.raises(ConfigError, match=message):
        build(recipe(tiny_base, **options))


def test_a_base_that_cannot_be_loaded_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="check the path"):
        build(recipe(tmp_path))


def test_lora_without_peft_says_how_to_get_it(t5, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)

    with pytest.raises(MissingDependencyError, match=r"prosocial-guardrail\[rewrite\]"):
        build(recipe(t5, lora_rank=2))


# ---------------------------------------------------------------- what a model reads


def test_a_chat_model_reads_its_template(tmp_path):
    _, tokenizer, kind = build(recipe(random_base("llama", tmp_path)))
    item = RewriteInput((Turn("user", "i drive home"),), (RULE,), "sure")

    text = tokenizer.decode(source_ids(tokenizer, kind, item, 500))

    assert kind == "causal"
    assert text.count("<|im_start|>") == 3  # system, user, and the assistant's turn to come
    assert text.endswith("<|im_start|> assistant")
    assert "after drinking" in text


_SAID = (
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}"
    "{% endif %}<|im_start|> {{ m.role }} {{ m.content | trim }} <|im_end|> "
)
_END = "{% endfor %}<|im_start|> assistant"
# As Mistral's, as Gemma's, and as those that leave the system message out without a word.
STRICT = (
    "{% if messages[0].role == 'system' %}{{ messages[0].content }} {% set messages = messages[1:] %}"
    "{% endif %}{% for m in messages %}" + _SAID + _END
)
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% for m in messages %}" + _SAID + _END
)
SYSTEM_LEFT_OUT = "{% for m in messages if m.role != 'system' %}" + _SAID + _END
TALK = (
    Turn("assistant", "well"),
    Turn("tool", "four beers"),
    Turn("user", "i drive home"),
    Turn("assistant", "sure"),
    Turn("user", "have a taxi"),
)


def read_through(template, item, folder, max_tokens=500):
    tokenizer = build(recipe(random_base("llama", folder)))[1]
    tokenizer.chat_template = template
    return tokenizer.decode(source_ids(tokenizer, "causal", item, max_tokens))


@pytest.mark.parametrize("turns", range(1, len(TALK) + 1))
@pytest.mark.parametrize("template", [STRICT, NO_SYSTEM, SYSTEM_LEFT_OUT])
def test_a_template_that_demands_alternation_gets_it(template, turns, tmp_path):
    text = read_through(template, RewriteInput(TALK[:turns], (RULE,), "go ahead"), tmp_path)

    roles = [said.split()[0] for said in text.split("<|im_start|>")[1:]]
    assert roles[:-1] == ["user", "assistant", "user"][: len(roles) - 1]
    assert text.endswith("<|im_start|> assistant")
    assert text.count(RULE) == text.count("go ahead") == 1


@pytest.mark.parametrize("template", [NO_SYSTEM, SYSTEM_LEFT_OUT])
def test_a_template_without_system_role_reads_the_rules_in_the_first_turn(template, tmp_path):
    text = read_through(template, RewriteInput(TALK, (RULE,)), tmp_path)

    first, second = text.split("<|im_start|> ")[1:3]
    assert first.startswith("user ")
    assert first.endswith("four beers i drive home <|im_end|> ")
    assert RULE in first
    assert second == "assistant sure <|im_end|> "


@pytest.mark.parametrize("template", [STRICT, NO_SYSTEM, SYSTEM_LEFT_OUT])
def test_too_long_a_chat_still_alternates(template, tmp_path):
    turns = tuple(Turn("assistant" if n % 2 else "user", f"{n} " + "bread " * 30) for n in range(9))

    text = read_through(template, RewriteInput(turns, (RULE,)), tmp_path, max_tokens=150)

    assert len(text.split()) <= 150
    assert text.count("<|im_start|>") == 2  # the newest turn, and the assistant's to come
    assert RULE in text


def test_of_a_long_chat_the_newest_turns_alone_are_read_and_once(tmp_path):
    class Old(str):
        def split(self, *_):
            raise AssertionError("an old turn was read")

        replace = split

    class Counting:
        looked = 0

        def __init__(self, tokenizer):
            self.tokenizer = tokenizer

        def __getattr__(self, name):
            return getattr(self.tokenizer, name)

        def __call__(self, *args, **options):
            return self.tokenizer(*args, **options)

        def get_added_vocab(self):
            self.looked += 1
            return self.tokenizer.get_added_vocab()

    tokenizer = Counting(build(recipe(random_base("llama", tmp_path)))[1])
    new = [Turn("assistant" if n % 2 else "user", "bread <|im_end|> " * 9) for n in range(MAX_TURNS)]
    item = RewriteInput((Turn("user", Old("four beers")), *new), (RULE,))

    ids = source_ids(tokenizer, "causal", item, 200)

    ends = [tokenizer.decode([n]) for n in ids].count("<|im_end|>")
    assert len(ids) <= 200
    assert tokenizer.looked == 1
    assert ends == [tokenizer.decode([n]) for n in ids].count("<|im_start|>") - 1


@pytest.mark.parametrize("kind", KINDS)
def test_text_that_reads_like_a_special_token_stays_text(kind, tmp_path):
    _, tokenizer, how = build(recipe(random_base(kind, tmp_path)))
    specials = " ".join(tokenizer.all_special_tokens)
    plain, spoken = (
        RewriteInput((Turn("user", text),), (text,), text) for text in ("sure", f"sure {specials}</s>")
    )

    counts = [
        Counter(n for n in source_ids(tokenizer, how, item, 500) if n in tokenizer.all_special_ids)
        for item in (plain, spoken)
    ]

    for count in counts:  # what the tokenizer does not know is no special token of the text
        count.pop(tokenizer.unk_token_id, None)
    assert counts[0] == counts[1]


def test_the_newest_turns_are_kept_and_the_format_is_whole(t5):
    _, tokenizer, kind = build(recipe(t5))
    turns = tuple(Turn("user", f"{word} " * 20) for word in ("beers", "taxi", "bread"))

    ids = source_ids(tokenizer, kind, RewriteInput(turns, (RULE,), "sure"), 64)
    text = tokenizer.decode(ids, skip_special_tokens=True)

    assert len(ids) <= 64
    assert "bread" in text
    assert "beers" not in text
    assert text.startswith("rules :")
    assert text.endswith("draft : sure reply :")


def test_a_turn_that_is_too_long_alone_loses_its_end(t5):
    _, tokenizer, kind = build(recipe(t5))
    item = RewriteInput((Turn("user", "taxi " + "bread " * 200),), (RULE,), "sure " * 100)

    ids = source_ids(tokenizer, kind, item, 64)
    text = tokenizer.decode(ids, skip_special_tokens=True)

    assert len(ids) <= 64
    assert "user : taxi bread" in text
    assert text.endswith("reply :")


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_draft_is_shown_to_a_share_and_always_to_the_same(t5, share):
    config = recipe(t5, draft_share=share)
    _, tokenizer, kind = build(config)
    many = [
        ReplyExample((Turn("user", f"{said} {n}"),), good, str(n), "own", draft=bad)
        for n in range(60)
        for said, good, bad in TALKS[:1]
    ]

    rows, again = (rows_of(many, tokenizer, kind, config) for _ in range(2))

    shown = ["draft" in tokenizer.decode(row.source) for row in rows]
    assert rows == again
    assert sum(shown) == pytest.approx(60 * share, abs=15)
    assert (sum(shown) in (0, 60)) == (share in (0.0, 1.0))


def test_a_source_is_repeated_and_a_long_reply_has_no_end(t5):
    config = recipe(t5, source_repeats={"own": 3}, max_reply_tokens=8)
    _, tokenizer, kind = build(config)
    long = ReplyExample((Turn("user", "i"),), "bread " * 30, "long", "other")

    rows = rows_of([EXAMPLES[0], long], tokenizer, kind, config)

    assert Counter(row.example.group for row in rows) == {"group 0": 3, "long": 1}
    assert tokenizer.eos_token_id not in rows[-1].reply
    assert len(rows[-1].reply) == 8


def test_batches_hold_every_row_once_in_an_order_of_the_epoch():
    lengths = [n % 17 for n in range(101)]
    order = LengthGrouped(lengths, 8, seed=5)

    first = list(order)
    order.set_epoch(1)
    second = list(order)

    assert sorted(first) == sorted(second) == list(range(101))
    assert first != second
    spreads = [max(b) - min(b) for b in ([lengths[r] for r in first[i : i + 8]] for i in range(0, 96, 8))]
    assert max(spreads) <= 3
    assert len(order) == 101


# ---------------------------------------------------------------- training


def test_four_examples_are_learned_by_heart(base, tmp_path):
    """Of every kind: loss falls, and what is written down writes the replies that were learned."""
    config = recipe(base, max_steps=150, learning_rate=2e-2, label_smoothing=0.0, draft_share=0.0)

    fit(config, tmp_path, EXAMPLES, [])

    losses = [row["loss"] for row in history(tmp_path) if "loss" in row]
    assert losses[-1] < losses[0] / 5
    rewriter = TransformersRewriter.load(tmp_path / "model", device="cpu")
    written = [rewriter.rewrite(RewriteInput(e.turns, e.rules), count=1) for e in EXAMPLES]
    learned = [
        reply and reply[0].replace(" ", "") == example.reply.replace(" ", "")
        for reply, example in zip(written, EXAMPLES, strict=True)
    ]
    assert sum(map(bool, learned)) >= 3


def test_what_is_saved_writes_what_the_trained_model_writes(tiny_base, tmp_path):
    config = recipe(tiny_base, max_steps=4, save_steps=100, learning_rate=1e-2)
    fit(config, tmp_path, EXAMPLES, EXAMPLES[:1])
    model, tokenizer, kind = build(config)
    checkpoint = WarmStartedBert.from_pretrained(tmp_path / "checkpoint-4").eval()
    item = RewriteInput(EXAMPLES[0].turns, EXAMPLES[0].rules)

    ids = write(checkpoint, tokenizer, kind, [source_ids(tokenizer, kind, item, 96)], max_new_tokens=16)
    again = build(recipe(tmp_path / "model"))[0].eval()
    loaded = write(again, tokenizer, kind, [source_ids(tokenizer, kind, item, 96)], max_new_tokens=16)

    assert ids == loaded
    assert texts_of(tokenizer, ids)[0]
    figures = json.loads((tmp_path / "metrics.json").read_text())
    assert figures["val/perplexity"] == pytest.approx(math.exp(figures["val/nll"]))
    assert {"val/bleu_4", "val/unigram_f1", "val/distinct_2"} <= figures.keys()
    assert (tmp_path / "curves.png").stat().st_size > 1000


@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_a_resumed_run_ends_where_an_unbroken_one_does(kind, tmp_path):
    base = random_base(kind, tmp_path / "base")
    options = {"epochs": 3, "batch_size": 2, "save_steps": 2, "ranking_weight": 0.5, "beams": 2}
    config = recipe(base, **options)
    fit(config, tmp_path / "whole", EXAMPLES, EXAMPLES[:1])
    broken = tmp_path / "broken"

    class Cut(Exception):
        pass

    calls = itertools.count()

    def judge(items):
        if next(calls) == 1:  # as a power cut, in step 5; the last checkpoint is of step 4
            raise Cut
        return [0.0] * len(items)

    with pytest.raises(Cut):
        fit(config, broken, EXAMPLES, EXAMPLES[:1], judge=judge)
    assert sorted(path.name for path in broken.glob("checkpoint-*")) == ["checkpoint-4"]
    fit(config, broken, EXAMPLES, EXAMPLES[:1], resume=True)

    weights = [build(recipe(run / "model"))[0].state_dict() for run in (tmp_path / "whole", broken)]
    assert weights[0].keys() == weights[1].keys()
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, atol=1e-6, rtol=0)
    assert [row["step"] for row in history(broken)] == [row["step"] for row in history(tmp_path / "whole")]


@pytest.mark.parametrize("change", ["rows", "recipe", "nothing there"])
def test_only_the_same_run_is_resumed(t5, tmp_path, change):
    config = recipe(t5, max_steps=1)
    if change != "nothing there":
        fit(config, tmp_path, EXAMPLES, [])
    other = recipe(t5, max_steps=1, seed=4) if change == "recipe" else config
    rows = EXAMPLES[:3] if change == "rows" else EXAMPLES

    with pytest.raises(ConfigError, match={"rows": "rows", "recipe": "recipe"}.get(change, "checkpoint")):
        fit(other, tmp_path, rows, [], resume=True)


def test_nothing_to_train_on_is_an_error(t5, tmp_path):
    with pytest.raises(ConfigError, match="at least one reply"):
        fit(recipe(t5), tmp_path, [], [])


def test_the_ranking_begins_when_it_is_to_and_unsafe_beams_go_last(t5, tmp_path):
    """A judge that calls everything unsafe changes what is learned; before the first ranking nothing is."""
    options = {"max_steps": 4, "ranking_weight": 1.0, "beams": 2, "beams_every": 2, "margin": 0.5}
    config = recipe(t5, ranking_from_step=2, **options)
    asked = []

    def judge(items):
        asked.append(items)
        return [1.0] * len(items)

    for name, decide in (("judged", judge), ("unjudged", None)):
        fit(config, tmp_path / name, EXAMPLES, [], judge=decide)
    fit(recipe(t5, max_steps=4), tmp_path / "plain", EXAMPLES, [])

    assert [len(items) for items in asked] == [8]  # at step 2 alone: 4 conversations, 2 beams
    assert {turns for turns, _ in asked[0]} == {example.turns for example in EXAMPLES}
    states = {
        name: torch.cat([p.flatten() for p in build(recipe(tmp_path / name / "model"))[0].parameters()])
        for name in ("judged", "unjudged", "plain")
    }
    assert not torch.equal(states["judged"], states["plain"])
    assert not torch.equal(states["judged"], states["unjudged"])


@pytest.mark.parametrize("temperature", [0.0, 0.1])
def test_ranking_sets_gold_replies_above_unsafe_ones(t5, tmp_path, temperature):
    options = {"max_steps": 60, "learning_rate": 1e-2, "margin": 0.1, "in_batch": 2}
    fit(recipe(t5, ranking_weight=5.0, temperature=temperature, **options), tmp_path / "ranked", EXAMPLES, [])

    def order(base):
        config = recipe(base)
        model, tokenizer, kind = build(config)
        rows = rows_of(EXAMPLES, tokenizer, kind, config)
        found = candidates([r.reply for r in rows], [r.rejected for r in rows], [[]] * 4, in_batch=0)
        with torch.no_grad():
            sources, replies = represented(model.eval(), Collator(tokenizer, kind, model), rows, found)
        scores = similarities(sources, replies, torch.tensor([c.owner for c in found])).tolist()
        return [gold - unsafe for gold, unsafe in zip(scores[::2], scores[1::2], strict=True)]

    assert min(order(tmp_path / "ranked" / "model")) > max(0.0, min(order(t5)))
    rows = [row for row in history(tmp_path / "ranked") if "ranking_loss" in row]
    assert rows
    assert rows[0]["loss"] == pytest.approx(rows[0]["token_loss"] + 5 * rows[0]["ranking_loss"], rel=1e-2)


@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_lora_trains_updates_alone_and_is_saved_merged(kind, tmp_path):
    pytest.importorskip("peft")
    base = random_base(kind, tmp_path / "base")
    config = recipe(base, lora_rank=4, lora_alpha=8.0, max_steps=10, learning_rate=1e-2)
    model, _, _ = build(config)
    trained = {name for name, value in model.named_parameters() if value.requires_grad}

    fit(config, tmp_path / "run", EXAMPLES, EXAMPLES[:2])

    assert trained
    assert all("lora_" in name for name in trained)
    before, after = (build(recipe(folder))[0].state_dict() for folder in (base, tmp_path / "run" / "model"))
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert not any("embed" in name or "norm" in name for name in changed)
    assert not list((tmp_path / "run" / "model").glob("*adapter*"))


# ---------------------------------------------------------------- several processes, and the command


def test_two_processes_end_with_one_model(t5, tmp_path):
    program = (
        "import sys, torch\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "import test_rewriting as t\n"
        "config = t.recipe(sys.argv[2], max_steps=2, batch_size=2, ranking_weight=0.5, beams=2)\n"
        "t.fit(config, t.Path(sys.argv[3]), t.EXAMPLES, t.EXAMPLES[:1])\n"
        "from guardrail.trainer.processes import last_to_work\n"
        "last_to_work()\n"
    )
    script = tmp_path / "worker.py"
    script.write_text(program, encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]

    done = subprocess.run(
        [*command, str(script), str(Path(__file__).parent), str(t5), str(tmp_path / "run")],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )

    assert done.returncode == 0, done.stderr[-3000:]
    assert len([row for row in history(tmp_path / "run") if "train_loss" in row]) == 1
    assert TransformersRewriter.load(tmp_path / "run" / "model", device="cpu")


def test_the_command_trains_and_says_where_the_model_is(t5, tmp_path):
    data = tmp_path / "data" / "own"
    data.mkdir(parents=True)
    with (data / "replies.jsonl").open("w", encoding="utf-8") as file:
        for n in range(12):
            said, good, bad = TALKS[n % 4]
            row = {
                "messages": [{"role": "user", "content": f"{said} {n}"}],
                "reply": good,
                "rules": [RULE],
                "rejected": [bad],
                "draft": bad,
                "group": f"talk {n}",
            }
            file.write(json.dumps(row) + "\n")
    run = tmp_path / "run"
    options = ["--data", str(data.parent), "--sources", "own", "--base", str(t5), "--max-steps", "2"]
    command = ["train", "rewriter", "--out", str(run), *options, "--batch-size", "2", "--json"]

    result = CliRunner().invoke(app, command)

    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout.splitlines()[-1])
    assert report["model"] == str(run / "model")
    assert TransformersRewriter.load(run / "model", device="cpu")
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 2
    assert "--resume" in again.stderr
