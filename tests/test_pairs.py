"""Hard negatives: near, another norm, seeded."""

import numpy as np
import pytest

from guardrail.trainer.pairs import negatives_of, neighbour_negatives


def unit(rows, d=8, seed=0):
    x = np.random.default_rng(seed).normal(size=(rows, d)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize("count", [1, 3])
def test_neighbours_are_near_and_never_the_own_rule_or_one_that_says_the_same(count):
    rules = unit(60)
    rules[7] = rules[3] + 0.01  # says the same as rule 3
    rules[7] /= np.linalg.norm(rules[7])
    queries, own = unit(20, seed=1), [3] * 20
    found = neighbour_negatives(queries, rules, own, count=count, pool=10)
    for query, places in zip(queries, found, strict=True):
        assert len(set(places)) == count
        assert not {3, 7} & set(places)
        allowed = [p for p in np.argsort(-(rules @ query)) if rules[p] @ rules[3] < 0.8][:10]
        assert set(places) <= set(allowed)


def test_the_seed_decides():
    rules, queries, own = unit(60), unit(20, seed=1), list(range(20))
    first = neighbour_negatives(queries, rules, own, count=2, seed=5)
    assert first == neighbour_negatives(queries, rules, own, count=2, seed=5)
    assert first != neighbour_negatives(queries, rules, own, count=2, seed=6)


def test_too_few_rules_give_fewer_neighbours():
    assert neighbour_negatives(unit(2, seed=1), unit(1), [0, 0], count=3) == [[], []]


def test_the_contrary_rule_comes_first_and_the_own_rule_fills():
    rules = ["share", "take", "wait"]
    found = negatives_of(rules, [0, 1, 2], [[2], [0, 2], []], {"share": "keep all"}, 2)
    assert found == [["keep all", "wait"], ["share", "wait"], ["wait", "wait"]]
