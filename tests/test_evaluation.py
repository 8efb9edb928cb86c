"""`guardrail eval`: metrics against slow references, the benchmark's splits, the parts, the page."""

import csv
import html.parser
import io
import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from fakes import DRIVING, PRIVACY, SAFE, UNSAFE, WordEncoder, make_guard, many_rules
from hypothesis import given, settings
from hypothesis import strategies as st

from guardrail import ConfigError, Guardrail, InputError, ModelError
from guardrail.artifact import read_manifest, write_manifest
from guardrail.rules import Rule, load_bank, read_rules
from guardrail.types import Level, Turn

for package in ("torch", "sentence_transformers", "sklearn", "bm25s", "Stemmer"):
    pytest.importorskip(package)

from guardrail.trainer.baselines import bag_of_words_margins, word_neutral  # noqa: E402
from guardrail.trainer.data import load_own  # noqa: E402
from guardrail.trainer.evaluate import evaluate  # noqa: E402
from guardrail.trainer.evaluation import benchmarks  # noqa: E402
from guardrail.trainer.evaluation.benchmarks import Benchmark, same_rule_key  # noqa: E402
from guardrail.trainer.evaluation.classification import (  # noqa: E402
    FEW,
    Scored,
    category_figures,
    classification_figures,
    level_figures,
    score_set,
)
from guardrail.trainer.evaluation.discrimination import discrimination_figures  # noqa: E402
from guardrail.trainer.evaluation.five_labels import MERGED, five_label_figures  # noqa: E402
from guardrail.trainer.evaluation.meaning_map import meaning_map, principal_plane  # noqa: E402
from guardrail.trainer.evaluation.page import to_html  # noqa: E402
from guardrail.trainer.evaluation.plots import CURVE_POINTS, roc_panel  # noqa: E402
from guardrail.trainer.evaluation.ranking import (  # noqa: E402
    mean_reciprocal_rank,
    ndcg_at,
    recall_at,
    relevant_ranks,
)
from guardrail.trainer.evaluation.refusal import refusal_figures  # noqa: E402
from guardrail.trainer.evaluation.report import SECTIONS, Report, table  # noqa: E402
from guardrail.trainer.evaluation.retrieval import measure, named_rules  # noqa: E402
from guardrail.trainer.evaluation.systems import base_system, bm25_system, encoder_system  # noqa: E402
from guardrail.trainer.examples import Example, Twin  # noqa: E402
from guardrail.trainer.metrics import (  # noqa: E402
    auprc,
    auroc,
    auroc_interval,
    brier,
    macro_f1,
    mean_interval,
    pairwise_wins,
    reliability,
    roc,
)


def said(*texts):
    return tuple(Turn("assistant" if i % 2 else "user", text) for i, text in enumerate(texts))


def example(text, *, unsafe=False, **fields):
    return Example(said(text), unsafe, fields.pop("group", text), fields.pop("source", "set"), **fields)


# Metrics

LABELLED = st.lists(st.tuples(st.integers(0, 5).map(lambda n: n / 5), st.booleans()), min_size=2, max_size=12)


def columns(rows):
    scores, labels = zip(*rows, strict=True)
    return np.array(scores), np.array(labels, bool)


@settings(deadline=None)
@given(LABELLED)
def test_average_precision_is_precision_over_the_gains_of_recall(rows):
    scores, unsafe = columns(rows)
    if unsafe.all() or not unsafe.any():
        assert math.isnan(auprc(scores, unsafe))
        return
    area = before = 0.0
    for threshold in sorted(set(scores), reverse=True):
        above = scores >= threshold
        recall = unsafe[above].sum() / unsafe.sum()
        area += (recall - before) * unsafe[above].mean()
        before = recall
    assert auprc(scores, unsafe) == pytest.approx(area)


def test_brier_and_macro_f1_by_hand():
    assert brier(np.array([1.0, 0.5]), np.array([True, False])) == pytest.approx(0.125)
    # F1 of a: 2/3, of b: 0 (never named); c is not in the truth and costs only what it took from b.
    assert macro_f1(["a", "a", "c"], ["a", "b", "b"]) == pytest.approx(1 / 3)


@settings(deadline=None)
@given(LABELLED)
def test_the_roc_curve_holds_the_area(rows):
    scores, unsafe = columns(rows)
    if unsafe.any() and not unsafe.all():
        x, y = roc(scores, unsafe)
        assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)
        assert ((x[1:] - x[:-1]) * (y[1:] + y[:-1]) / 2).sum() == pytest.approx(auroc(scores, unsafe))


def test_reliability_bins_by_hand():
    confidence, frequency, share = reliability(
        np.array([0.1, 0.3, 0.9, 1.0]), np.array([0, 1, 1, 1], bool), 2
    )
    np.testing.assert_allclose(confidence, [0.2, 0.95])
    np.testing.assert_allclose(frequency, [0.5, 1.0])
    np.testing.assert_allclose(share, [0.5, 0.5])


def test_the_interval_equals_drawing_groups_one_by_one():
    rng = np.random.default_rng(3)
    unsafe = rng.random(40) < 0.4
    scores = np.round(rng.random(40) + 0.3 * unsafe, 1)  # with ties
    groups = [f"g{n % 11}" for n in range(40)]
    names, member = np.unique(groups, return_inverse=True)
    counts = np.random.default_rng(5).multinomial(len(names), np.full(11, 1 / 11), size=150)
    slow = []
    for draw in counts:
        rows = np.repeat(np.arange(40), draw[member])
        slow.append(auroc(scores[rows], unsafe[rows]))
    low, high = auroc_interval(scores, unsafe, groups, draws=150, seed=5)
    assert (low, high) == pytest.approx(np.nanpercentile(slow, (2.5, 97.5)))
    assert low < auroc(scores, unsafe) < high
    assert auroc_interval(scores, unsafe, groups, seed=5) == auroc_interval(scores, unsafe, groups, seed=5)


def test_turns_of_one_conversation_widen_the_interval():
    rng = np.random.default_rng(0)
    conversation = np.repeat(rng.random(30), 10)
    unsafe = np.repeat(rng.random(30) < 0.5, 10)
    alone = auroc_interval(conversation, unsafe, [str(n) for n in range(300)])
    together = auroc_interval(conversation, unsafe, [str(n // 10) for n in range(300)])
    assert together[1] - together[0] > 1.5 * (alone[1] - alone[0])


def test_no_interval_without_both_classes():
    assert all(map(math.isnan, auroc_interval(np.array([0.1, 0.2]), np.array([True, True]), ["a", "b"])))


def test_the_interval_of_a_mean_draws_groups_too():
    values = np.random.default_rng(3).random(40)
    groups = [f"g{n % 7}" for n in range(40)]
    _, member = np.unique(groups, return_inverse=True)
    counts = np.random.default_rng(5).multinomial(7, np.full(7, 1 / 7), size=150)
    slow = [np.repeat(values, draw[member]).mean() for draw in counts]
    found = mean_interval(values, groups, draws=150, seed=5)
    assert found == pytest.approx(np.percentile(slow, (2.5, 97.5)))
    assert found[0] < values.mean() < found[1]
    assert mean_interval(np.ones(3), ["a", "b", "b"]) == (1, 1)
    assert all(map(math.isnan, mean_interval(np.array([]), [])))


def test_a_tie_is_half_a_win():
    assert pairwise_wins(np.array([2.0, 1.0, 1.0]), np.array([1.0, 2.0, 1.0])).tolist() == [1, 0, 0.5]


# Ranking


def slow_ranking(scores, relevant, k):
    order = sorted(range(len(scores)), key=lambda place: (-scores[place], place))
    hits = [place in relevant for place in order]
    gains = [hit / math.log2(rank + 1) for rank, hit in enumerate(hits[:k], 1)]
    ideal = [1 / math.log2(rank + 1) for rank in range(1, min(k, len(relevant)) + 1)]
    return sum(hits[:k]) / len(relevant), 1 / (hits.index(True) + 1), sum(gains) / sum(ideal)


@settings(max_examples=200, deadline=None)
@given(st.data(), st.integers(1, 9), st.integers(1, 12))
def test_ranking_metrics_equal_the_slow_reference(data, documents, k):
    score = st.lists(st.integers(0, 4), min_size=documents, max_size=documents)
    wanted = st.sets(st.integers(0, documents - 1), min_size=1)
    queries = data.draw(st.lists(st.tuples(score, wanted), min_size=1, max_size=4))
    ranks = [relevant_ranks(np.array(scores, float), sorted(relevant)) for scores, relevant in queries]
    expected = np.mean([slow_ranking(scores, relevant, k) for scores, relevant in queries], axis=0)
    found = (recall_at(k, ranks), mean_reciprocal_rank(ranks), ndcg_at(k, ranks))
    assert found == pytest.approx(tuple(expected))


def test_ranking_metrics_of_nothing():
    assert all(math.isnan(value) for value in (recall_at(1, []), mean_reciprocal_rank([]), ndcg_at(10, [])))


# The benchmark


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("It's good to help your friends.", "It is good to help a friend"),
        ("You shouldn't read a partner's messages.", "you should not read your partners' message"),
        ("You can't lie", "You can not lie"),
        ("It is OK to be sad", "IT'S OK TO BE SAD!"),
    ],
)
def test_near_identical_rules_are_one(one, other):
    assert same_rule_key(one) == same_rule_key(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("It's good to help friends", "It's bad to help friends"),
        ("You should lie", "You shouldn't lie"),
        ("It's rude to talk to strangers", "It's rude to talk about strangers"),
        ("Be it", "It is"),
    ],
)
def test_another_judgement_is_another_rule(one, other):
    assert same_rule_key(one) != same_rule_key(other)


def test_a_rule_of_fillers_alone_keeps_a_key():
    assert same_rule_key("It is what you are") != same_rule_key("It is")
    assert same_rule_key("You are you") == "you are you"


def test_the_documentation_prints_the_filler_words():
    text = (Path(__file__).parent.parent / "docs" / "benchmark.md").read_text("utf-8")
    (printed,) = re.findall(r"^> (.+)$", text, re.MULTILINE)
    assert set(printed.split()) == benchmarks.FILLERS


def social_chem_file(tmp_path, rows):
    fields = ("situation", "rot", "rot-bad", "rot-agree")
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t")
    writer.writerows([fields, *((situation, rot, "0", "3") for situation, rot in rows)])
    folder = tmp_path / "social_chem_101"
    folder.mkdir()
    (folder / "social-chem-101.v1.0.tsv").write_text(text.getvalue())
    return tmp_path


def test_social_chem_is_disjoint_by_situation_and_by_rule(tmp_path):
    rows = [(f"situation number {n}", f"It's wrong to do thing{n}x") for n in range(300)]
    rows += [(f"situation number {n}", "It's good to share your things.") for n in range(300)]
    rows += [(f"Situation number {n}!", f"It is wrong to do a thing{n}x.") for n in range(300)]
    task = benchmarks.social_chem(moral_stories_files(social_chem_file(tmp_path, rows)))
    # A tenth of the situations; the rule that stands in all splits is gone; wordings of one rule are one.
    assert 10 < len(task.queries) < 60
    assert len(task.corpus) == len(task.queries)
    assert not any("share" in rule for rule in task.corpus)
    for turns, relevant in zip(task.queries, task.relevant, strict=True):
        (place,) = relevant
        number = turns[0].text.rstrip("!").split()[-1]
        assert f"thing{number}x" in task.corpus[place]


def moral_stories_files(tmp_path, **norms):
    """Write the files of Moral Stories, with a kind and a mean action for every norm of a split."""
    for part in ("original_ms", "contra_ms"):
        folder = tmp_path / "moral_stories" / part
        folder.mkdir(parents=True)
        for split in ("dev", "test"):
            rows = []
            for n, norm in enumerate(norms.get(split, ()) if part == "original_ms" else ()):
                key = f"{split}{n}"
                rows += [
                    {"ID": key + "0", "norm": norm, "moral_action": f"kind {key}", "label": "1"},
                    {"ID": key + "1", "norm": norm, "immoral_action": f"mean {key}", "label": "0"},
                ]
            (folder / f"{split}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return tmp_path


def test_moral_stories_ask_for_the_norm_from_both_actions(tmp_path):
    social_chem_file(tmp_path, [])
    moral_stories_files(tmp_path, dev=["You be fair to all."], test=["Be fair to all!", "Only in test."])
    task = benchmarks.moral_stories(tmp_path)
    assert task.corpus == ("Only in test.",)  # the norm that dev has in other words is out
    assert {turns[0].text for turns in task.queries} == {"kind test1", "mean test1"}
    assert task.relevant == ((0,), (0,))


def test_a_rule_that_another_set_has_in_training_is_asked_for_by_no_task(tmp_path):
    shared = "It's kind to carry bags."
    rows = [(f"situation number {n}", shared) for n in range(40)]
    rows += [(f"situation number {n}", "Norms of stories are norms.") for n in range(40)]
    rows += [(f"situation number {n}", f"It's wrong to do thing{n}x") for n in range(40)]
    folder = moral_stories_files(
        social_chem_file(tmp_path, rows), dev=["Norms of stories are norms!"], test=[shared, "Only here."]
    )
    (folder / "own").mkdir()
    mine = {"turns": ["hello"], "unsafe": False, "rule": "Mine alone."}
    (folder / "own" / "train.jsonl").write_text(json.dumps(mine))
    trained = load_own("train", (DRIVING, PRIVACY))[1][0].rule
    seen = benchmarks.seen_rules(folder, (DRIVING, PRIVACY))
    assert {same_rule_key(rule) for rule in (shared, "Mine alone.", trained)} <= seen
    assert benchmarks.moral_stories(folder, seen).corpus == ("Only here.",)
    assert all("thing" in rule for rule in benchmarks.social_chem(folder, seen).corpus)


def test_rules_of_our_own_count_as_seen_without_public_data():
    rules = tuple(load_bank())
    held_out = {item.rule for item in load_own("test", rules)[0] if item.rule}
    seen = benchmarks.seen_rules(None, rules)
    assert {same_rule_key(item.rule) for item in load_own("val", rules)[0] if item.rule} <= seen
    assert not {same_rule_key(rule) for rule in held_out} & seen


def test_the_bank_keeps_a_seen_rule_and_does_not_ask_for_it():
    dialogues = [example("four beer", unsafe=True, rule=DRIVING.text)]
    task = benchmarks.bank([PRIVACY, DRIVING], dialogues, {same_rule_key(DRIVING.text)})
    assert (task.corpus, task.queries) == ((PRIVACY.text, DRIVING.text), ())


def test_the_bank_asks_violations_of_held_out_rules_among_all_rules():
    dialogues = [
        example("four beer", unsafe=True, rule=DRIVING.text),
        example("a taxi home", rule=DRIVING.text),
    ]
    task = benchmarks.bank([PRIVACY, DRIVING], dialogues)
    assert task.corpus == (PRIVACY.text, DRIVING.text)
    assert [turns[0].text for turns in task.queries] == ["four beer"]
    assert task.relevant == ((1,),)


# Systems

TASK = Benchmark(
    "toy",
    (said("i drive home after four beer"), said("hm"), said("i read the messages", "Whose?", "my partner's")),
    ("You shouldn't drive after beer.", "Share your bread.", "You shouldn't read a partner's messages."),
    ((0,), (1,), (2,)),
)


def test_bm25_ranks_by_words_and_stems_them():
    scores = bm25_system()(TASK.corpus)(TASK.queries)
    assert scores.shape == (3, 3)
    assert scores[0].argmax() == 0
    assert scores[2].argmax() == 2
    assert not scores[1].any()  # no word in common
    assert bm25_system()(("It is unkind to mock",))([said("mocking")])[0, 0] > 0


def test_our_encoder_reads_queries_as_the_guard_does():
    encoder = WordEncoder()
    scores = encoder_system(encoder)(TASK.corpus)(TASK.queries)
    guard = make_guard()
    ours = dict(guard.search_rules("i drive home after four beer", 2))
    one = encoder_system(encoder)([DRIVING.text])(TASK.queries[:1])[0, 0]
    assert one == pytest.approx(ours[DRIVING], abs=1e-6)
    assert scores[0].argmax() == 0


def test_the_untrained_base_is_a_plain_sentence_encoder(tiny_base):
    scores = base_system(str(tiny_base))(TASK.corpus)([said(TASK.corpus[1])])
    assert scores.shape == (1, 3)
    assert scores[0, 1] == pytest.approx(1, abs=1e-5)  # the same text


def test_measure_gives_all_figures_and_keeps_the_corpus_whole():
    def perfect(corpus):
        def search(queries):
            return np.eye(3)[[TASK.queries.index(tuple(query)) for query in queries]]

        assert corpus == TASK.corpus
        return search

    figures = measure(perfect, TASK, limit=2)
    assert figures == {
        "queries": 2,
        "rules": 3,
        "recall_at_1": 1,
        "recall_at_5": 1,
        "recall_at_10": 1,
        "mrr": 1,
        "ndcg_at_10": 1,
    }
    assert measure(lambda corpus: lambda queries: np.zeros((len(queries), 3)), TASK)["recall_at_1"] == (
        pytest.approx(1 / 3)
    )


def test_named_rules_are_those_of_the_guard():
    guard = make_guard()
    violations = [example(UNSAFE, unsafe=True, rule=DRIVING.text), example(UNSAFE, rule="A rule of nobody.")]
    assert named_rules(guard, violations) == {
        "queries": 2,
        "rules": 2,
        "recall_at_1": 0.5,
        "recall_at_5": 0.5,
        "recall_at_10": 0.5,
    }


def test_the_system_in_the_documentation_runs_as_it_stands(tmp_path, capsys):
    rows = [(f"i did thing{n}x", f"It's wrong to do thing{n}x") for n in range(100)]
    text = (Path(__file__).parent.parent / "docs" / "benchmark.md").read_text("utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    folder = str(moral_stories_files(social_chem_file(tmp_path, rows)))
    assert '"DATA"' in block
    exec(compile(block.replace('"DATA"', repr(folder)), "benchmark.md", "exec"), {})  # noqa: S102
    assert "'recall_at_1': 1.0" in capsys.readouterr().out


# Classification


def scored(name="set", n=40, seed=0, **fields):
    rng = np.random.default_rng(seed)
    unsafe = rng.random(n) < 0.5
    probabilities = np.clip(rng.random(n) * 0.7 + 0.3 * unsafe, 0, 1)
    examples = tuple(
        Example(said(f"secret text {i}"), bool(flag), f"g{i}", name, **fields)
        for i, flag in enumerate(unsafe)
    )
    levels = tuple("needs_caution" if p > 0.5 else "casual" for p in probabilities)
    ok = np.arange(n) % 4 > 0
    return Scored(name, examples, probabilities, probabilities > 0.6, probabilities > 0.4, levels, ok)


def test_a_set_is_scored_through_the_front_door():
    examples = [example(UNSAFE, unsafe=True), example(SAFE)]
    found = score_set(make_guard(), "two", examples)
    verdicts = make_guard().check_batch([UNSAFE, SAFE])
    assert found.probabilities.tolist() == [verdict.probability for verdict in verdicts]
    assert found.flagged.tolist() == [True, False]
    assert found.levels == tuple(verdict.level for verdict in verdicts)
    assert found.ok.tolist() == [True, True]
    assert UNSAFE not in repr(found)


def test_a_turn_that_is_not_read_whole_is_told():
    found = score_set(make_guard(max_windows=1), "long", [example("bread " * 500), example(SAFE)])
    assert found.ok.tolist() == [False, True]
    assert classification_figures(found)["not_ok"] == refusal_figures(found)["not_ok"] == 0.5


def test_classification_figures():
    part = scored()
    figures = classification_figures(part)
    assert figures["n"] == 40
    assert figures["unsafe"] == part.unsafe.sum()
    assert figures["auroc_low"] < figures["auroc"] < figures["auroc_high"]
    assert figures["recall_at_1_percent"] <= figures["recall_at_5_percent"]
    assert figures["unsafe_flagged"] == pytest.approx(part.flagged[part.unsafe].mean())
    assert figures["not_ok"] == 0.25


def test_macro_f1_of_a_set_is_that_of_its_flags():
    examples = (example("a", unsafe=True), example("b", unsafe=True), example("c"), example("d"))
    flagged = np.array([True, False, False, False])
    levels = ("casual",) * 4
    found = Scored("set", examples, flagged / 2, flagged, flagged, levels, np.ones(4, bool))
    # F1 of unsafe: 2/3, of safe: 4/5.
    assert classification_figures(found)["macro_f1"] == pytest.approx((2 / 3 + 4 / 5) / 2)


def test_a_set_of_one_class_has_flagged_shares_only():
    part = scored().only(np.flatnonzero(scored().unsafe).tolist())
    assert set(classification_figures(part)) == {"n", "unsafe", "unsafe_flagged", "not_ok"}


def test_categories_of_fewer_than_few_are_left_out():
    part = scored(n=FEW + 10)
    named = tuple(
        Example(e.turns, e.unsafe, e.group, e.source, category="large" if i < FEW else "small")
        for i, e in enumerate(part.examples)
    )
    found = category_figures(
        Scored("set", named, part.probabilities, part.flagged, part.touched, part.levels, part.ok)
    )
    assert list(found) == ["large"]
    assert found["large"]["auroc"] == auroc(part.probabilities[:FEW], part.unsafe[:FEW])


def test_levels_are_judged_where_the_source_has_them():
    assert level_figures(scored()) == {}
    examples = (
        example("a", level=Level.CASUAL),
        example("b", level=Level.NEEDS_CAUTION),
        example("c", level=Level.NEEDS_CAUTION),
        example("d"),
    )
    no = np.zeros(4)
    levels = ("casual", "needs_caution", "casual", "casual")
    found = level_figures(Scored("set", examples, no, no > 1, no > 1, levels, no < 1))
    assert found == {
        "n": 3,
        "accuracy": pytest.approx(2 / 3),
        "macro_f1": pytest.approx(2 / 3),
        "majority": pytest.approx(2 / 3),
    }


def test_five_labels_leave_merged_rows_out_and_four_labels_merge_all():
    texts = {
        "casual": SAFE,
        "possibly_needs_caution": UNSAFE,
        "needs_intervention": "four beer and now i drive the kids home",
        MERGED: UNSAFE,
    }
    rows = [example(f"{text} {n}", category=label) for label, text in texts.items() for n in range(6)]
    found = five_label_figures(WordEncoder(), rows, rows)
    assert found["five_labels"]["n"] == 18
    assert found["four_labels"]["n"] == 24
    # The fake's logits tell all labels apart, once the two that cannot be known are one.
    assert found["five_labels"]["accuracy"] == found["four_labels"]["accuracy"] == 1
    assert found["four_labels"]["majority"] == 0.5


def test_five_labels_need_data_to_fit_on():
    assert five_label_figures(WordEncoder(), [], [example("a", category="casual")]) == {}


# Contrasts and over-refusal


def twins(source, kind="request", n=6):
    return [
        Twin(
            said(f"beer{i} beer so i drive"),
            said(f"beer{i} beer so i take a taxi and drive"),
            "",
            str(i),
            source,
        )
        if kind is None
        else Twin(said(f"{i} beer i drive"), said(f"{i} beer taxi i drive"), "r", str(i), source, kind=kind)
        for i in range(n)
    ]


def test_every_source_of_matched_pairs_is_measured_the_same_way():
    train = twins("pairs") + twins("situations", "long_context")
    found = discrimination_figures(make_guard(), train, [*twins("bank"), *train])
    assert list(found) == [
        "bank",
        "pairs",
        "pairs/word neutral",
        "pairs/request",
        "situations",
        "situations/word neutral",
        "situations/long context",
    ]
    assert found["pairs"]["pairwise"] == found["situations"]["pairwise"] == 1
    assert found["pairs"]["single_auroc"] == 1
    for part in filter(lambda part: part["n"], found.values()):
        assert part["pairwise_low"] <= part["pairwise"] <= part["pairwise_high"]
    assert math.isnan(found["pairs/word neutral"]["pairwise_low"])  # the bag of words gets all right
    assert found["pairs"]["not_ok"] == 0
    assert "bag_of_words" not in found["bank"]
    assert found["situations/long context"]["bag_of_words"] == 1


def test_the_bag_of_words_learns_from_both_sources():
    """Only the pairs teach the word that tells the situations apart."""
    train = [Twin(said("secret"), said("open"), "", str(i), "pairs") for i in range(5)]
    test = [Twin(said("a secret"), said("an open"), "", "x", "situations")]
    found = discrimination_figures(make_guard(), train, test)
    assert found["situations"]["bag_of_words"] == 1


def test_the_word_neutral_part_is_at_chance_by_construction():
    margins = np.array([3.0, -1.0, 0.5, 0.0, 2.0, -0.1, 1.0])
    rows = word_neutral(margins)
    assert rows.tolist() == [1, 2, 3, 5, 6]
    part = margins[rows]
    assert (part > 0).mean() + 0.5 * (part == 0).mean() == 0.5


def test_margins_of_a_bag_of_words():
    train = [Twin(said("secret"), said("open"), "", "1", "pairs")]
    right = Twin(said("secret"), said("open"), "", "2", "pairs")
    wrong = Twin(said("open"), said("secret"), "", "3", "pairs")
    first, second = bag_of_words_margins(train, [right, wrong])
    assert first > 0 > second == -first


def test_over_refusal_looks_at_safe_turns_only():
    part = scored()
    safe = ~part.unsafe
    assert refusal_figures(part) == {
        "n": safe.sum(),
        "flagged": pytest.approx(part.flagged[safe].mean()),
        "touched": pytest.approx(part.touched[safe].mean()),
        "not_ok": pytest.approx((~part.ok)[safe].mean()),
    }


# The map


def test_the_plane_is_that_of_the_largest_spread_and_never_flips():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(50, 6)) * np.array([0.1, 5, 0.1, 2, 0.1, 0.1]) + 7
    plane, shown = principal_plane(points)
    np.testing.assert_allclose(np.abs(plane).argmax(0), [1, 3])
    assert (plane.max(0) > 0.9).all()
    np.testing.assert_allclose(plane.T @ plane, np.eye(2), atol=1e-12)
    assert 0.98 < shown < 1
    np.testing.assert_allclose(principal_plane(-points)[0], plane, atol=1e-9)


def the_map():
    dialogues = [
        example("private words", unsafe=True, rule=DRIVING.text, category="driving"),
        example("four beer drive", rule=DRIVING.text, category="driving"),
    ]
    return meaning_map(WordEncoder(), [DRIVING, PRIVACY], dialogues)


def test_the_map_knows_rules_and_domains_and_no_dialogue():
    found = the_map()
    assert [(point.kind, point.rule) for point in found.points] == [
        ("rule", DRIVING.text),
        ("rule", PRIVACY.text),
        ("violation", DRIVING.text),
        ("near miss", DRIVING.text),
    ]
    assert all(0 <= value <= 1 for point in found.points for value in (point.x, point.y))
    assert "private words" not in repr(found)
    assert found == the_map()


# The report


def report():
    sets = (scored("one"), scored("two <b>", seed=1), scored("calm").only([0]))
    calm = Scored("calm", (example("secret text"),), *(np.zeros(1),) * 3, ("casual",), np.ones(1, bool))
    figures = {
        "classification": {part.name: classification_figures(part) for part in sets[:2]},
        "retrieval": {"bank/ours": {"queries": 3.0, "recall_at_10": 0.5, "mrr": math.nan}},
        "levels": {},
    }
    return Report("mine", figures, 0.7, (*sets[:2], calm), the_map())


def test_json_is_plain_and_rounded():
    found = report().to_dict()
    assert found["model"] == "mine"
    assert found["retrieval"]["bank/ours"]["recall_at_10"] == 0.5
    assert json.loads(json.dumps(found))["caution_threshold"] == 0.7


def test_a_table_shows_counts_shares_and_intervals():
    rows = {"a_set": {"n": 3.0, "flagged": 0.016, "auroc": 0.5, "auroc_low": 0.4, "auroc_high": 0.6}}
    found = table(SECTIONS["classification"], rows | {"other": {"n": 4.0, "brier": math.nan}})
    assert found.columns == ("", "n", "flagged", "AUROC", "95 %", "Brier")
    assert found.rows == (
        ("a set", "3", "1.6 %", "0.500", "0.400 to 0.600", ""),
        ("other", "4", "", "", "", "–"),
    )


def test_markdown_has_a_table_for_each_section_with_rows():
    text = report().markdown()
    assert text.count("\n\n|  |") == 2
    assert "### Levels" not in text
    assert "| bank/ours | 3 | 0.500 | – |" in text


class Page(html.parser.HTMLParser):
    """Collects what the page holds and checks that tags are closed in order."""

    VOID = ("meta", "link", "br", "wbr")

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_is_whole_and_needs_nothing_else():
    text = to_html(report())
    page = Page(text)
    assert page.tags.count("table") == page.tags.count("caption") == 2
    assert page.tags.count("h1") == 1
    assert "script" not in page.tags
    assert not [
        a for a in page.attributes if a[1] in ("src", "srcset") or (a[1] == "href" and a[2][0] != "#")
    ]
    assert "url(" not in text
    assert "@import" not in text
    ids = {value for _, name, value in page.attributes if name == "id"}
    assert {value[1:] for _, name, value in page.attributes if name == "href"} <= ids
    assert ("html", "lang", "en") in page.attributes


def test_every_plot_is_described_in_words():
    page = Page(to_html(report()))
    plots = [value for tag, name, value in page.attributes if tag == "svg" and name == "aria-label"]
    # Two sets with both classes: ROC, reliability, histogram each; one map.
    assert len(plots) == 7
    hidden = [a for a in page.attributes if a[0] == "svg" and a[1] == "aria-hidden"]
    assert page.tags.count("svg") == len(plots) + len(hidden)
    area = classification_figures(scored("one"))["auroc"]
    assert any(f"{area:.3f}" in plot for plot in plots)


def test_a_long_roc_curve_is_thinned_and_keeps_its_ends():
    rng = np.random.default_rng(0)
    unsafe = rng.random(3000) < 0.5
    plot = roc_panel("many", rng.random(3000) + 0.2 * unsafe, unsafe)
    (curve,) = re.findall(r'class="curve" points="([^"]+)"', plot)
    (guide,) = re.findall(r'class="guide" points="([^"]+)"', plot)
    points = curve.split()
    assert len(points) == CURVE_POINTS
    assert [points[0], points[-1]] == guide.split()  # from (0, 0) to (1, 1)


def test_the_page_holds_rules_and_no_text_of_a_data_set():
    text = to_html(report())
    assert "driving: You shouldn&#x27;t drive after beer" in text
    assert "secret text" not in text
    assert "private words" not in text
    assert "two <b>" not in text
    assert "two &lt;b&gt;" in text


# All together


@pytest.mark.slow
@pytest.mark.train
def test_an_evaluation_without_public_data(tiny_folder, tiny_base):
    def judge(messages):
        return "nonsense"

    found = evaluate(tiny_folder, None, 3, base=str(tiny_base), judge=judge, rules=many_rules())
    assert list(found.figures) == [
        "classification",
        "categories",
        "levels",
        "retrieval",
        "discrimination",
        "over_refusal",
        "escalation",
    ]
    assert found.figures["classification"]["bank"]["n"] == 3
    assert set(found.figures["retrieval"]) == {"bank/bm25", "bank/base", "bank/ours", "bank/as named"}
    assert found.figures["discrimination"]["pairs"]["n"] == 3
    assert {"own_casual", "pairs/safe versions", "situations/safe versions"} <= set(
        found.figures["over_refusal"]
    )
    # A judge that answers nonsense changes nothing, and that is told.
    none, all_ = (found.figures["escalation"][f"pairs/{share}"] for share in ("0%", "100%"))
    assert none["accuracy"] == all_["accuracy"]
    assert all_["failed"] == 1
    assert Page(to_html(found)).tags.count("table") == len(found.tables())


@pytest.mark.slow
@pytest.mark.train
def test_only_the_parts_that_were_asked_for(tiny_folder):
    found = evaluate(tiny_folder, None, 3, parts=["discrimination"])
    assert list(found.figures) == ["discrimination"]
    assert found.scored == ()


@pytest.mark.slow
@pytest.mark.train
def test_rules_without_held_out_dialogues_give_no_figures_of_the_bank(tiny_folder):
    """The rules of a model are those that count, not the bank that ships."""
    found = evaluate(tiny_folder, None, 3, parts=["retrieval", "over_refusal"])
    assert found.figures["retrieval"] == {}
    assert not any("bank" in row for row in found.figures["over_refusal"])


@pytest.mark.slow
@pytest.mark.train
def test_rules_of_ones_own_join_those_of_the_model(tiny_folder):
    mine = Rule(id="mine", rule="You shouldn't feed bread to ducks.", domain="ducks")
    known = Guardrail.load(tiny_folder).rules
    bank = (*many_rules(), known[0], mine)
    found = evaluate(tiny_folder, None, 3, parts=["retrieval"], rules=bank).figures["retrieval"]
    assert found["bank/bm25"]["rules"] == found["bank/ours"]["rules"] == len(bank)
    assert found["bank/as named"]["rules"] == len(bank) + len(known) - 1  # one was there
    with pytest.raises(InputError, match="which is taken"):
        evaluate(tiny_folder, None, 3, rules=[mine.model_copy(update={"id": known[0].id})])


@pytest.mark.slow
@pytest.mark.train
def test_a_guard_that_fails_ends_the_evaluation(folder, tiny_fp32):
    """Its canaries pass, so it starts; it fails on every text with a question mark."""
    onnx = pytest.importorskip("onnx")
    model = onnx.load(str(tiny_fp32))
    pieces = json.loads((folder / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]
    (table,) = [t for t in model.graph.initializer if tuple(t.dims) == (len(pieces), 32)]
    words = onnx.numpy_helper.to_array(table).copy()
    words[pieces["?"]] = np.nan
    table.CopyFrom(onnx.numpy_helper.from_array(words, table.name))
    onnx.save(model, str(folder / "model.onnx"))
    old = read_manifest(folder)
    write_manifest(
        folder,
        read_rules(folder / "rules.jsonl"),
        name="x",
        dimension=32,
        max_tokens=old.max_tokens,
        canary=old.canary,
    )
    with pytest.raises(ModelError, match="expected finite outputs"):
        evaluate(folder, None, parts=["over_refusal"])


def test_what_is_no_judge_is_refused_before_any_work(tmp_path):
    with pytest.raises(ConfigError, match="expected a judge"):
        evaluate(tmp_path / "no folder", None, judge=3)


@pytest.mark.parametrize(("folder", "title"), [("artifact", "mine"), ("model", "mine"), ("other", "other")])
def test_a_model_is_called_by_its_run(tiny_folder, tmp_path, folder, title):
    path = shutil.copytree(tiny_folder, tmp_path / "mine" / folder)
    assert evaluate(path, None, 1, parts=["retrieval"]).model == title


def test_the_report_says_that_domains_are_not_held_out():
    assert "domains are not" in SECTIONS["classification"].note
    assert "not by domain" in SECTIONS["retrieval"].note


@pytest.mark.parametrize(("part", "message"), [("speed", "expected parts from"), ("escalation", "--judge")])
def test_a_part_that_cannot_be_measured(part, message):
    with pytest.raises(ConfigError, match=message):
        evaluate(None, None, parts=[part])
