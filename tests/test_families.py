"""Rules that say nearly the same hang together, so that they can stay in one split."""

import random

import pytest

pytest.importorskip("sklearn")

from guardrail.trainer.families import families  # noqa: E402

NEAR = {
    "tell": "You should tell a friend that you broke the vase.",
    "tell-2": "You should tell a friend that you broke the lamp.",
    "tell-3": "You should tell a friend if you broke the lamp.",
}
APART = {
    "drive": "Nobody ought to drive after beer.",
    "read": "Messages of partners are private.",
}


def families_of(rules, **options):
    return families(list(rules), list(rules.values()), **options)


def test_near_identical_rules_are_one_family_named_by_the_first():
    assert families_of(NEAR | APART) == dict.fromkeys(NEAR, "tell") | {"drive": "drive", "read": "read"}


def test_hanging_together_goes_from_rule_to_rule():
    rules = {"a": "one two three four", "b": "two three four five", "c": "three four five six"}
    # a and b share 3 of 5 words, so do b and c; a and c share 2 of 6.
    assert set(families_of(rules, alike=0.6).values()) == {"a"}
    del rules["b"]
    assert families_of(rules, alike=0.6) == {"a": "a", "c": "c"}


@pytest.mark.parametrize(("alike", "together"), [(0.59, True), (0.6, True), (0.61, False), (1.0, False)])
def test_the_share_of_common_words_decides(alike, together):
    found = families_of({"a": "one two three four", "b": "two three four five"}, alike=alike)
    assert (found["b"] == "a") == together


def test_case_marks_order_and_repeats_of_words_do_not_matter():
    found = families_of({"a": "Never lie, never steal!", "b": "never STEAL never lie"}, alike=1.0)
    assert found == {"a": "a", "b": "a"}


def test_one_common_rule_joins_two_groups():
    names = ["x", "x", "y", "y", "z"]
    rules = ["Share your bread.", "Keep left.", "Water the plants.", "Share your bread.", "Close doors."]
    assert families(names, rules) == {"x": "x", "y": "x", "z": "z"}


def test_order_and_repeats_of_the_input_do_not_matter():
    rows = list((NEAR | APART).items())
    expected = families_of(dict(rows))
    for seed in range(5):
        shuffled = rows * 2
        random.Random(seed).shuffle(shuffled)
        assert families([name for name, _ in shuffled], [rule for _, rule in shuffled]) == expected


def test_nothing_has_no_families():
    assert families([], []) == {}


def test_a_rule_without_words_stands_alone():
    assert families(["a", "b", "c"], ["?!", "...", "Be kind."]) == {"a": "a", "b": "b", "c": "c"}


def test_names_and_rules_come_in_pairs():
    with pytest.raises(ValueError, match="zip"):
        families(["a", "b"], ["only one"])
