"""The guard from messages to verdict, on the fake encoder."""

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from fakes import DRIVING, GRAVE, PRIVACY, SAFE, UNSAFE, BrokenEncoder, WordEncoder, make_guard

from guardrail import Action, ConfigError, Guardrail, InputError, Level, MessageFlagged, ModelError, Rule
from guardrail.calibration import Calibration, RuleCalibration
from guardrail.config import GuardConfig
from guardrail.rule_index import RuleIndex

FAULTS = ["raises", "nan", "shape", "nan-logits", "two-logits", "no-rows"]
TOUCHING = "beer for a short way, however"
CONVERSATIONS = [
    UNSAFE,
    GRAVE,
    SAFE,
    TOUCHING,
    "   ",
    ["four beer please", "Here you are!", "thanks, now i drive"],
    ["had beer", "Have fun and drive safely!"],
    [{"role": "system", "content": "be kind"}, {"role": "user", "content": "i drive a red car"}],
    "beer " * 900 + "drive",
    "be\u200ber \ud800 drive",
]


def broken_guard(how, **settings):
    encoder = BrokenEncoder(how)
    guard = Guardrail(encoder, [DRIVING, PRIVACY], config=GuardConfig.of(**settings))
    encoder.broken = True
    return guard


# ---------------------------------------------------------------- verdicts


@pytest.mark.parametrize(
    ("messages", "action", "level"),
    [
        (SAFE, Action.ALLOW, Level.CASUAL),
        ("i drive a red car", Action.ALLOW, Level.CASUAL),
        ("four beer so i take a taxi and drive tomorrow", Action.ALLOW, Level.CASUAL),
        (UNSAFE, Action.CAUTION, Level.NEEDS_CAUTION),
        (GRAVE, Action.INTERVENE, Level.NEEDS_INTERVENTION),
        (["four beer please", "Here you are!", "thanks, now i drive"], Action.CAUTION, Level.NEEDS_CAUTION),
        (["had beer", "Have fun and drive safely!"], Action.CAUTION, Level.NEEDS_CAUTION),
    ],
)
def test_action_and_level_follow_the_turn_in_its_context(messages, action, level):
    verdict = make_guard().check(messages)

    assert (verdict.action, verdict.level, verdict.status) == (action, level, "ok")
    assert verdict.flagged is (action is not Action.ALLOW)
    assert (verdict.probability > 0.9) is verdict.flagged
    assert bool(verdict.rules) is verdict.flagged
    assert verdict.coverage.complete


def test_a_flagged_verdict_names_the_rule_the_turn_and_the_characters():
    messages = [{"role": "system", "content": "be kind"}, {"role": "user", "content": UNSAFE}]
    verdict = make_guard().check(messages)

    first = verdict.rules[0]
    assert first.rule == DRIVING
    assert (first.turn, first.span) == (1, (0, len(UNSAFE)))
    assert (verdict.turn, verdict.role) == (1, "user")
    assert 0.9 < first.probability <= 1
    assert -1 <= first.similarity <= 1


def test_rules_come_with_the_most_responsible_first():
    probabilities = [match.probability for match in make_guard().check(UNSAFE).rules]

    assert len(probabilities) == 2
    assert probabilities == sorted(probabilities, reverse=True)


def test_a_touched_rule_is_named_and_blocks_nobody():
    verdict = make_guard().check(TOUCHING)

    assert [match.rule.id for match in verdict.touched] == ["driving-001"]
    assert (verdict.action, verdict.rules) == (Action.ALLOW, ())


def test_an_assistant_turn_is_judged_as_the_assistants():
    verdict = make_guard().check(["had beer", "Have fun and drive safely!"])

    assert (verdict.role, verdict.turn) == ("assistant", 1)


@pytest.mark.parametrize("text", ["", "   \n", "\u200b\u2060", "\ufeff"])
def test_blank_text_is_allowed_with_a_reason(text):
    verdict = make_guard().check(["four beer, i drive", text])

    assert (verdict.action, verdict.status, verdict.reason) == ("allow", "ok", "the judged turn is blank")
    assert verdict.probability == 0.0


def test_a_blank_turn_with_an_image_says_that_it_was_not_read():
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]
    verdict = make_guard().check(image)

    assert (verdict.status, verdict.coverage.parts_skipped) == ("degraded", 1)
    assert "not read" in verdict.reason


@pytest.mark.parametrize(
    "text", ["\ud800", "four beer \udfff and now i drive home", "\udc80\ud800 drive beer"]
)
def test_lone_surrogates_are_read(text):
    verdict = make_guard().check(text)

    assert verdict.status == "ok"
    assert verdict.flagged is ("drive" in text)
    json.loads(verdict.to_json())


def test_a_disguised_turn_is_judged_in_both_readings():
    guard = make_guard()

    assert guard.check("four beer and now i d\u200brive home").flagged
    assert guard.check("four beer and now i dr1ve home").flagged
    assert guard.check("four beer and now d-r-i-v-e home").flagged


# ---------------------------------------------------------------- what a verdict can do


def test_raise_if_flagged_raises_with_the_verdict_or_returns_it():
    guard = make_guard()
    fine, flagged = guard.check(SAFE), guard.check(UNSAFE)

    assert fine.raise_if_flagged() is fine
    with pytest.raises(
        MessageFlagged, match=r"action=caution, probability=1\.00, rules: driving-001"
    ) as caught:
        flagged.raise_if_flagged()
    assert caught.value.verdict is flagged
    assert "home" not in str(caught.value)


@pytest.mark.parametrize("messages", [UNSAFE, SAFE, TOUCHING, "  "])
def test_to_dict_survives_json(messages):
    verdict = make_guard().check(messages)
    plain = verdict.to_dict()

    assert json.loads(verdict.to_json()) == plain
    assert plain["action"] == verdict.action.value
    assert plain["flagged"] is verdict.flagged
    assert [match["rule_id"] for match in plain["rules"]] == [match.rule.id for match in verdict.rules]
    assert plain["coverage"]["complete"] is True


def test_no_representation_holds_the_users_text():
    secret = "zanzibar four beer and now i drive home"
    guard = make_guard()
    verdict = guard.check(secret)

    for shown in (repr(verdict), str(verdict), verdict.to_json(), repr(guard)):
        assert "zanzibar" not in shown


def test_a_verdict_cannot_be_changed():
    verdict = make_guard().check(SAFE)

    with pytest.raises(AttributeError, match="cannot assign to field"):
        verdict.action = Action.INTERVENE


# ---------------------------------------------------------------- sync, async, batch, threads


def test_sync_async_and_batch_agree():
    guard = make_guard()
    one_by_one = [guard.check(messages) for messages in CONVERSATIONS]

    async def all_at_once():
        return await asyncio.gather(*(guard.acheck(messages) for messages in CONVERSATIONS))

    assert asyncio.run(all_at_once()) == one_by_one
    assert guard.check_batch(CONVERSATIONS) == one_by_one
    assert guard.check_batch(iter(CONVERSATIONS)) == one_by_one
    assert guard.check_batch([]) == []


def test_a_batch_reports_its_progress():
    ticks = []
    make_guard(workers=3).check_batch(CONVERSATIONS, progress=ticks.append)

    assert ticks == [1] * len(CONVERSATIONS)


@pytest.mark.parametrize("bad", [[], 5, [{"content": "no role"}], [{"role": "system", "content": "x"}]])
def test_a_batch_names_the_conversation_that_cannot_be_read(bad):
    with pytest.raises(InputError, match=r"^conversation 2: "):
        make_guard().check_batch([SAFE, UNSAFE, bad, SAFE])


@pytest.mark.parametrize("one", [UNSAFE, {"role": "user", "content": UNSAFE}])
def test_one_conversation_is_no_batch(one):
    with pytest.raises(InputError, match="expected a list of conversations, got one"):
        make_guard().check_batch(one)


def test_sixteen_threads_give_the_sequential_results():
    guard = make_guard()
    work = CONVERSATIONS * 16
    expected = [guard.check(messages) for messages in CONVERSATIONS] * 16

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(guard.check, work)) == expected


def test_checks_beside_add_rules_see_rules_and_index_of_one_moment():
    guard = make_guard()
    with ThreadPoolExecutor(16) as pool:
        adding = [pool.submit(guard.add_rules, [f"You shouldn't drive number {n} home."]) for n in range(40)]
        checks = [pool.submit(guard.check, UNSAFE) for _ in range(40)]
        assert all(check.result().status == "ok" for check in checks)
        ids = {future.result()[0].id for future in adding}

    assert len(guard.rules) == 42
    assert ids <= {rule.id for rule in guard.rules}


# ---------------------------------------------------------------- rules


def test_an_added_rule_is_in_force_at_once():
    guard = make_guard()
    question = "do you bake bread at night"
    before = guard.check(question)
    (added,) = guard.add_rules(["You shouldn't bake bread at night."])
    after = guard.check(question)

    assert before.touched == ()
    assert [match.rule for match in after.touched] == [added]
    assert guard.rules == (DRIVING, PRIVACY, added)
    assert guard.search_rules(question, 1)[0][0] == added


def test_an_added_rule_can_flag_what_nothing_else_flags():
    # A calibration in which the rule alone decides.
    alone = Calibration(rule=RuleCalibration(product=0, level=0, cosine=40, intercept=-20))
    guard = Guardrail(WordEncoder(), [DRIVING, PRIVACY], calibration=alone)
    question = "do you bake bread at night"
    before = guard.check(question)
    guard.add_rules([{"id": "bread-1", "rule": "You shouldn't bake bread at night."}])
    after = guard.check(question)

    assert not before.flagged
    assert after.flagged
    assert [match.rule.id for match in after.rules] == ["bread-1"]
    assert after.probability == after.rules[0].probability


def test_rules_can_be_added_as_text_mapping_and_rule():
    guard = make_guard()
    given = Rule.model_validate({"id": "c", "rule": "Be kind."})
    text, mapping, rule = guard.add_rules(["Be fair.", {"id": "b", "rule": "Be honest."}, given])

    assert text.id.startswith("custom-")
    assert (mapping.id, rule) == ("b", given)
    assert guard.add_rules([]) == ()
    assert len(guard.rules) == 5


def test_a_taken_id_is_refused_and_nothing_is_added():
    guard = make_guard()
    with pytest.raises(InputError, match="got 'driving-001', which is taken; choose another id"):
        guard.add_rules(["Be fair.", {"id": "driving-001", "rule": "Be honest."}])
    with pytest.raises(InputError, match="got 'new', which is taken"):
        guard.add_rules([{"id": "new", "rule": "Be fair."}, {"id": "new", "rule": "Be honest."}])

    assert guard.rules == (DRIVING, PRIVACY)
    assert len(guard.search_rules("be fair", 50)) == 2


def test_a_broken_rule_or_encoder_adds_nothing():
    guard = make_guard()
    with pytest.raises(InputError, match="rule"):
        guard.add_rules(["Be fair.", "  "])
    broken = broken_guard("nan")
    with pytest.raises(ModelError, match="expected finite embeddings"):
        broken.add_rules(["Be fair."])

    assert guard.rules == broken.rules == (DRIVING, PRIVACY)


@pytest.mark.parametrize("one", ["Be fair.", {"id": "a", "rule": "Be fair."}])
def test_one_rule_is_no_list_of_rules(one):
    with pytest.raises(InputError, match=r"expected a list of rules, got one \w+; put it in \[\]"):
        make_guard().add_rules(one)


def test_a_guard_without_rules_is_refused():
    with pytest.raises(ConfigError, match="expected at least one rule of thumb, got none"):
        Guardrail(WordEncoder(), [])


def test_an_index_of_another_length_is_refused():
    with pytest.raises(ConfigError, match="expected one vector per rule, got 0 for 2"):
        Guardrail(WordEncoder(), [DRIVING, PRIVACY], index=RuleIndex(64))


@pytest.mark.parametrize("how", ["nan", "shape"])
def test_an_encoder_that_fails_on_the_rules_is_refused(how):
    encoder = BrokenEncoder(how)
    encoder.broken = True
    with pytest.raises(ModelError, match="encoder: expected .*embeddings"):
        Guardrail(encoder, [DRIVING])


def test_search_gives_the_nearest_rules_first():
    found = make_guard().search_rules("should a partner read my messages", 5)

    assert [rule.id for rule, _ in found] == ["privacy-001", "driving-001"]
    assert found[0][1] > found[1][1]


def test_search_refuses_a_blank_query_and_no_hits():
    guard = make_guard()
    with pytest.raises(InputError, match="expected a query, got blank text"):
        guard.search_rules(" \u200b")
    with pytest.raises(ConfigError, match="expected k >= 1, got 0"):
        guard.search_rules("beer", 0)


# ---------------------------------------------------------------- settings


def test_thresholds_come_from_the_settings():
    assert make_guard(caution_threshold=0.9999, rule_threshold=1.0).check(UNSAFE).action is Action.ALLOW
    assert make_guard(caution_threshold=0.001).check(SAFE).action is Action.CAUTION
    assert make_guard(intervention_threshold=0.9999).check(GRAVE).action is Action.CAUTION
    assert make_guard(intervention_threshold=1e-7).check(UNSAFE).action is Action.INTERVENE
    assert make_guard(touch_threshold=1.0).check(TOUCHING).touched == ()
    assert len(make_guard(touch_threshold=-1.0).check(TOUCHING).touched) == 2


def test_max_rules_limits_what_a_verdict_names():
    verdict = make_guard(max_rules=1, touch_threshold=-1.0).check(UNSAFE)

    assert (len(verdict.rules), len(verdict.touched)) == (1, 1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("caution_threshold", 0),
        ("caution_threshold", 1),
        ("caution_threshold", float("nan")),
        ("intervention_threshold", 1.2),
        ("rule_threshold", 0),
        ("touch_threshold", -1.1),
        ("max_windows", 0),
        ("max_rules", 51),
        ("top_k", 0),
        ("threads", 0),
        ("workers", 0),
        ("on_error", "open"),
        ("on_intervention", "shout"),
        ("max_attempts", 0),
        ("deadline_ms", 0),
        ("deadline_ms", float("inf")),
    ],
)
def test_a_setting_out_of_range_is_named_with_its_value(name, value):
    with pytest.raises(ConfigError, match=rf"^setting '{name}': .+, got {value!r}$"):
        GuardConfig.of(**{name: value})


def test_an_unknown_setting_is_named():
    with pytest.raises(ConfigError, match="setting 'treshold'"):
        Guardrail.load(treshold=0.5)


def test_settings_cannot_be_changed_under_a_running_guard():
    with pytest.raises(ValueError, match="frozen"):
        make_guard().config.max_rules = 1


# ---------------------------------------------------------------- when the guard itself fails


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # in production numpy only warns of NaN
@pytest.mark.parametrize("how", FAULTS)
def test_a_failing_stage_never_looks_like_a_pass(how):
    verdict = broken_guard(how).check(SAFE)

    assert (verdict.status, verdict.action, verdict.flagged) == ("error", Action.INTERVENE, True)
    assert verdict.reason.endswith("on_error='closed' decided")
    assert not verdict.coverage.complete


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # in production numpy only warns of NaN
@pytest.mark.parametrize("how", FAULTS)
def test_on_error_allow_lets_pass_and_says_so(how):
    verdict = broken_guard(how, on_error="allow").check(UNSAFE)

    assert (verdict.status, verdict.action) == ("error", Action.ALLOW)
    assert verdict.reason.endswith("on_error='allow' decided")


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # in production numpy only warns of NaN
@pytest.mark.parametrize("how", FAULTS)
def test_on_error_raise_raises_and_names_the_stage(how):
    with pytest.raises(ModelError, match=r"^(encoder|index|detector): ") as caught:
        broken_guard(how, on_error="raise").check(UNSAFE)

    assert caught.value.stage in ("encoder", "index", "detector")


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # in production numpy only warns of NaN
@pytest.mark.parametrize("how", FAULTS)
def test_the_users_text_is_in_no_error_and_no_reason(how):
    verdict = broken_guard(how).check(UNSAFE)
    with pytest.raises(ModelError, match="encoder|index|detector") as caught:
        broken_guard(how, on_error="raise").check(UNSAFE)

    for shown in (verdict.reason, repr(verdict), verdict.to_json(), str(caught.value), repr(caught.value)):
        assert "secret" not in shown
        assert "drive home" not in shown


def test_the_cause_of_a_failure_is_kept():
    with pytest.raises(ModelError, match="encoder: failed with RuntimeError") as caught:
        broken_guard("raises", on_error="raise").check(SAFE)

    assert isinstance(caught.value.__cause__, RuntimeError)


def test_a_failing_guard_fails_the_same_way_in_batch_and_async():
    guard = broken_guard("raises")
    expected = guard.check(UNSAFE)

    assert guard.check_batch([UNSAFE, SAFE]) == [expected, expected]
    assert asyncio.run(guard.acheck(UNSAFE)) == expected
    with pytest.raises(ModelError, match="encoder"):
        broken_guard("raises", on_error="raise").check_batch([SAFE])


def test_a_failing_guard_reads_blank_text_as_before():
    assert broken_guard("raises").check(" ").action is Action.ALLOW


def test_messages_that_cannot_be_read_are_the_callers_error_whatever_on_error_says():
    for how in ("closed", "allow", "raise"):
        with pytest.raises(InputError, match="got an empty list"):
            make_guard(on_error=how).check([])


def test_a_guard_made_from_parts_cannot_be_saved(tmp_path):
    from guardrail import ArtifactError

    with pytest.raises(ArtifactError, match="this one was made from parts"):
        make_guard().save(tmp_path / "model")


def test_errors_survive_a_process_pool():
    import pickle

    from guardrail.errors import MissingDependencyError

    verdict = make_guard().check(UNSAFE)
    for error in (
        ModelError("encoder", "x"),
        MissingDependencyError("torch", "train"),
        MessageFlagged(verdict),
    ):
        copy = pickle.loads(pickle.dumps(error))
        assert (type(copy), str(copy)) == (type(error), str(error))


def test_settings_come_whole_or_one_by_one(tmp_path):
    with pytest.raises(ConfigError, match="expected config or single settings, got both: max_rules"):
        Guardrail.load(tmp_path, config=GuardConfig(), max_rules=1)


def test_a_rule_longer_than_a_window_is_refused():
    guard = make_guard()
    with pytest.raises(InputError, match=r"expected rules of at most 126 tokens, rule 'custom-.+' has 200"):
        guard.add_rules(["word " * 200])
    assert len(guard.rules) == 2


def test_content_nested_too_deeply_is_refused():
    part = "x"
    for _ in range(2000):
        part = [part]
    with pytest.raises(InputError, match="message 0: expected plain content parts"):
        make_guard().check([{"role": "user", "content": [{"type": "text", "text": part}]}])
