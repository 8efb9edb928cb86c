"""The bank that ships, and rules that others write."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrail import InputError, Rule
from guardrail.rules import as_rule, check_rules, load_bank, read_rules, rules_digest

BANK = load_bank()
VALID = {"id": "x-1", "rule": "Be kind."}


def written(tmp_path, *lines):
    path = tmp_path / "rules.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), "utf-8")
    return path


# ---------------------------------------------------------------- the bank


def test_the_bank_is_large_and_in_a_fixed_order():
    assert len(BANK) >= 600
    assert [rule.id for rule in load_bank()] == [rule.id for rule in BANK]


def test_ids_and_texts_are_unique():
    assert len({rule.id for rule in BANK}) == len(BANK)
    assert len({rule.text.casefold() for rule in BANK}) == len(BANK)


def offenders(is_fine):
    return [rule.id for rule in BANK if not is_fine(rule)]


def test_every_rule_has_three_violations_and_two_near_misses():
    assert offenders(lambda rule: len(rule.violations) >= 3) == []
    assert offenders(lambda rule: len(rule.near_misses) >= 2) == []


def test_every_violation_has_a_reply():
    assert offenders(lambda rule: {r.to for r in rule.replies} == set(range(len(rule.violations)))) == []


def test_every_rule_has_a_violation_by_the_assistant_and_a_longer_one():
    assert offenders(lambda rule: any(len(v.turns) % 2 == 0 for v in rule.violations)) == []
    assert offenders(lambda rule: any(len(v.turns) >= 3 for v in rule.violations)) == []


def test_no_dialogue_occurs_twice():
    seen = {}
    twice = []
    for rule in BANK:
        for dialogue in (*rule.violations, *rule.near_misses):
            key = tuple(" ".join(turn.casefold().split()) for turn in dialogue.turns)
            if key in seen:
                twice.append((seen[key], rule.id))
            seen[key] = rule.id

    assert twice == []


def test_no_reply_occurs_twice():
    replies = [reply.reply for rule in BANK for reply in rule.replies]

    assert len(set(replies)) == len(replies)


def test_every_rule_names_its_domain():
    assert offenders(lambda rule: rule.domain != "custom" and rule.id.startswith(rule.domain)) == []


# ---------------------------------------------------------------- files


def test_a_file_is_read_with_blank_lines_and_a_byte_order_mark(tmp_path):
    path = tmp_path / "rules.jsonl"
    lines = ["", json.dumps(VALID), "   ", json.dumps({"id": "x-2", "rule": "Be fair.", "domain": "d"}), ""]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())

    assert [rule.id for rule in read_rules(path)] == ["x-1", "x-2"]
    assert check_rules(str(path)) == (read_rules(str(path)), ())


def test_line_separators_inside_a_text_end_no_line(tmp_path):
    path = written(tmp_path, json.dumps({"id": "x", "rule": "Be kind\u2028to all\x85."}, ensure_ascii=False))

    assert len(read_rules(path)) == 1


BROKEN = {
    "bad JSON": ("{", "the line: Invalid JSON"),
    "no object": ("[1]", "the line: Input should be"),
    "unknown field": ({**VALID, "colour": "red"}, "colour: Extra inputs are not permitted"),
    "unknown field inside": (
        {**VALID, "near_misses": [{"turns": ["a"], "x": 1}]},
        "near_misses.0.x: Extra inputs are not permitted",
    ),
    "no rule": ({"id": "x"}, "rule: Field required"),
    "no id": ({"rule": "Be kind."}, "id: Field required"),
    "broken id": ({**VALID, "id": "a b"}, "id: String should match pattern"),
    "blank rule": ({**VALID, "rule": "  "}, "rule: String should have at least 1 character"),
    "two lines": ({**VALID, "rule": "Be kind.\nBe fair."}, "rule: Value error, a rule is one line"),
    "wrong severity": ({**VALID, "severity": "high"}, "severity: Input should be 'needs_caution' or"),
    "wrong level": ({**VALID, "violations": [{"turns": ["a"], "level": "casual"}]}, "violations.0.level: "),
    "wrong foundation": ({**VALID, "foundation": "taste"}, "foundation: Input should be 'care'"),
    "no turns": (
        {**VALID, "violations": [{"turns": []}]},
        "violations.0.turns: Tuple should have at least 1",
    ),
    "empty turn": (
        {**VALID, "violations": [{"turns": ["a", " "]}]},
        "violations.0.turns.1: String should have at least 1 character",
    ),
    "reply to nothing": (
        {**VALID, "violations": [{"turns": ["a"]}], "replies": [{"to": 1, "reply": "b"}]},
        "the line: Value error, ",
    ),
    "reply to minus one": ({**VALID, "replies": [{"to": -1, "reply": "b"}]}, "replies.0.to: Input should be"),
    "duplicate id": (VALID, "id 'x-1' is taken by line 1"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_line_is_named_by_file_line_and_reason(tmp_path, name):
    line, reason = BROKEN[name]
    path = written(tmp_path, VALID, "", line)

    with pytest.raises(InputError, match="^" + re.escape(f"{path}, line 3: {reason}")):
        read_rules(path)
    rules, problems = check_rules(path)
    assert [rule.id for rule in rules] == ["x-1"]
    assert len(problems) == 1
    assert problems[0].startswith(f"{path}, line 3: {reason}")


def test_a_reply_to_a_missing_violation_is_named_by_its_number():
    broken = {**VALID, "violations": [{"turns": ["a"]}], "replies": [{"to": 1, "reply": "b"}]}
    with pytest.raises(InputError, match=r"'to' 1\b.+\b1\b"):
        as_rule(broken)


def test_all_broken_lines_are_reported_at_once(tmp_path):
    path = written(tmp_path, "{", VALID, {"id": "x"}, VALID)
    _, problems = check_rules(path)

    assert [re.search(r"line (\d)", problem)[1] for problem in problems] == ["1", "3", "4"]
    with pytest.raises(InputError, match=r"line 1: .+ \(and 2 more; run: guardrail rules validate "):
        read_rules(path)


def test_a_problem_shows_nothing_of_what_was_written(tmp_path):
    lines = [{**VALID, "severity": "zanzibar"}, {**VALID, "zan": "zanzibar"}, '{"rule": "zanzibar']
    _, problems = check_rules(written(tmp_path, *lines))

    assert len(problems) == 3
    assert "zanzibar" not in " ".join(problems)


@pytest.mark.parametrize("body", [b"\xff\xfe{}", b'{"id": "x", "rule": "caf\xe9"}'])
def test_a_file_that_is_not_utf8_is_refused(tmp_path, body):
    path = tmp_path / "rules.jsonl"
    path.write_bytes(body)
    with pytest.raises(InputError, match=r"expected a readable UTF-8 JSONL file of rules at .*rules\.jsonl"):
        read_rules(path)


@pytest.mark.parametrize("name", ["none.jsonl", "."])
def test_a_file_that_cannot_be_opened_is_refused(tmp_path, name):
    with pytest.raises(InputError, match="expected a readable UTF-8 JSONL file of rules at "):
        read_rules(tmp_path / name)


def test_an_empty_file_holds_no_rules(tmp_path):
    assert read_rules(written(tmp_path)) == ()


def test_rules_survive_writing_and_reading(tmp_path):
    path = written(tmp_path, *(rule.model_dump_json(by_alias=True) for rule in BANK))

    assert read_rules(path) == BANK


# ---------------------------------------------------------------- single rules


def test_a_rule_is_made_of_text_mapping_or_rule():
    text = as_rule("  Be kind. ")
    mapping = as_rule({"id": "a", "rule": "Be fair.", "severity": "needs_intervention"})

    assert (text.text, text.domain, text.severity) == ("Be kind.", "custom", "needs_caution")
    assert (mapping.id, mapping.text, mapping.severity) == ("a", "Be fair.", "needs_intervention")
    assert as_rule(mapping) is mapping
    assert as_rule({"id": "a", "text": "Be fair."}).text == "Be fair."


def test_the_id_of_a_rule_given_as_text_depends_on_its_text_alone():
    assert as_rule("Be kind.").id == as_rule(" Be kind.\t").id == as_rule({"rule": "Be kind."}).id
    assert as_rule("Be kind.").id != as_rule("Be fair.").id
    assert re.fullmatch(r"custom-[0-9a-f]{10}", as_rule("Be kind.").id)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("", "rule: String should have at least 1 character"),
        (" \t\n", "rule: String should have at least 1 character"),
        ("Be kind.\nBe fair.", "rule: Value error, a rule is one line; remove the line break"),
        ("x" * 4001, "rule: String should have at most 4000 characters"),
        ({"id": "a"}, "rule: Field required"),
        ({"rule": 5}, "id: Field required|rule: Input should be a valid string"),
        ({"rule": "Be kind.", "severity": "high"}, "severity: Input should be"),
        ({"rule": "Be kind.", "colour": 1}, "colour: Extra inputs are not permitted"),
        ({"rule": "Be kind.", "id": "a b"}, "id: String should match pattern"),
        (5, "expected a rule as text, mapping or Rule, got int"),
        (None, "expected a rule as text, mapping or Rule, got NoneType"),
        (["Be kind."], "expected a rule as text, mapping or Rule, got list"),
        ("Be \ud800kind.", "expected a rule of valid Unicode|rule: "),
    ],
)
def test_what_is_no_rule_is_refused_with_the_field_and_the_reason(value, reason):
    with pytest.raises(InputError, match=reason):
        as_rule(value)


@given(st.text() | st.dictionaries(st.sampled_from(["id", "rule", "text", "domain", "x"]), st.text()))
def test_any_text_or_mapping_is_a_rule_or_an_input_error(value):
    try:
        rule = as_rule(value)
    except InputError:
        return
    assert rule.text
    assert "\n" not in rule.text


def test_the_representation_of_a_rule_is_short():
    assert (
        repr(BANK[0]) == f"Rule(id={BANK[0].id!r}, domain={BANK[0].domain!r}, severity={BANK[0].severity!r})"
    )


def test_a_rule_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        as_rule("Be kind.").text = "Be fair."


def test_the_digest_depends_on_ids_texts_and_their_order():
    a, b = as_rule({"id": "a", "rule": "x"}), as_rule({"id": "b", "rule": "y"})

    assert rules_digest([a, b]) == rules_digest(
        [a, Rule.model_validate({"id": "b", "rule": "y", "domain": "d"})]
    )
    others = [[b, a], [a], [], [a, as_rule({"id": "b", "rule": "z"})], [a, as_rule({"id": "c", "rule": "y"})]]
    assert len({rules_digest(rules) for rules in [[a, b], *others]}) == 6
