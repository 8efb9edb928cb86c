"""Loaders against made-up rows in the published formats, and against the real files where they are."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from guardrail.errors import ArtifactError, ConfigError
from guardrail.rules.schema import Rule
from guardrail.trainer.examples import Example, Twin
from guardrail.trainer.loaders import (
    SOURCES,
    LoadReport,
    clean,
    dailydialog_openings,
    load_bank,
    load_examples,
    load_norm_pairs,
    load_pairs,
    load_twins,
    normalise,
    split_of,
    without_overlap,
)
from guardrail.trainer.loaders.casual import positions
from guardrail.types import Level, Turn

SPLITS = ("train", "val", "test")
REPO = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("GUARDRAIL_DATA", REPO.parent / "shared" / "data"))
needs_data = pytest.mark.skipif(not (DATA / "diasafety").is_dir(), reason="no data folder")


def write(root: Path, name: str, content: Any) -> None:
    """Write text, or JSON for anything else, gzip-compressed."""
    path = root / f"{name}.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, str) else json.dumps(content)
    path.write_bytes(gzip.compress(text.encode()))


def lines(rows: list[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def table(rows: list[dict[str, Any]]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def roles(example: Example) -> str:
    return "".join(turn.role[0] for turn in example.turns)


def every(load: Any, root: Path, name: str) -> list[Any]:
    return [item for split in SPLITS if split in SOURCES[name].splits for item in load(root, [name], split)]


# --- shared parts ---


@pytest.mark.parametrize(
    ("raw", "wanted"),
    [
        ("a &amp;nbsp; b&lt;3", "a b<3"),
        ("  two\n lines\t ", "two lines"),
        ("&gt; quoted\n^small see [this page](http://x.y/z)", "quoted small see this page"),
        ("what the f**k, 3 > 2 and 2^3", "what the f**k, 3 > 2 and 2^3"),
        ("zero\u200bwidth\ufffd", "zerowidth"),
        ("it 's fine .", "it 's fine ."),
    ],
)
def test_clean(raw: str, wanted: str) -> None:
    assert clean(raw) == wanted


def test_clean_closes_the_gaps_of_tokenised_text() -> None:
    assert clean("well , i do n't know , it 's late !", tokenised=True) == "well, i do n't know, it's late!"
    assert clean("don \u2019 t go .", tokenised=True) == "don't go."


def test_normalise_keeps_letters_and_digits_only() -> None:
    assert normalise("It's 5 pm, J\u00fcrgen!") == "its5pmj\u00fcrgen"
    assert normalise(" \U0001f642 ") != normalise("\U0001f621")


def test_split_is_stable_and_near_its_shares() -> None:
    counts = Counter(split_of(f"x:{i}", test=0.2, val=0.1) for i in range(5000))
    assert counts["test"] / 5000 == pytest.approx(0.2, abs=0.02)
    assert counts["val"] / 5000 == pytest.approx(0.08, abs=0.02)
    # Written down: a change of the hash would move groups between published splits.
    assert [split_of(f"x:{i}", test=0.3, val=0.3) for i in range(6)] == [
        "train",
        "test",
        "train",
        "val",
        "test",
        "train",
    ]


def make(*texts: str, unsafe: bool = False) -> Example:
    return Example(tuple(Turn("user", text) for text in texts), unsafe, "g", "s")


def test_without_overlap_compares_all_turns_blind_to_case_and_marks() -> None:
    same, other_context, other_turn = make("Hi there!", "ok?"), make("bye", "ok?"), make("Hi there!", "no")
    kept = without_overlap([same, other_context, other_turn], [make("hi there", "OK", unsafe=True)])
    assert kept == [other_context, other_turn]
    # Turn borders count: the same letters cut elsewhere are another conversation.
    assert without_overlap([make("ab", "c")], [make("a", "bc")]) == [make("ab", "c")]


# --- choosing sources ---


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("name", ["dailydialog", "empathetic_dialogues", "commonsense_dialogues"])
def test_eval_only_sources_refuse_to_train(tmp_path: Path, name: str, split: Any) -> None:
    for load in (load_examples, load_twins):
        with pytest.raises(ConfigError, match=f"'{name}'.*evaluation only"):
            load(tmp_path, [name], split)


def test_no_non_commercial_source_may_train() -> None:
    assert not [name for name, source in SOURCES.items() if "NC" in source.licence and source.may_train]


def test_wrong_arguments_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'dia_safety'"):
        load_examples(tmp_path, ["dia_safety"])
    with pytest.raises(ConfigError, match="split.*'dev'"):
        load_examples(tmp_path, ["sbic"], "dev")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="split.*'dev'"):
        load_norm_pairs(tmp_path, "dev")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="per_dialogue.*0"):
        load_examples(tmp_path, ["wow"], per_dialogue=0)
    with pytest.raises(ConfigError, match=r"write \['sbic'\]"):
        load_examples(tmp_path, "sbic")


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"diasafety/test\.json.*GUARDRAIL_DATA"):
        load_examples(tmp_path, ["diasafety"], "test")
    with pytest.raises(ArtifactError, match=r"hate_women_1k"):
        load_examples(tmp_path, ["toxigen"])
    write(tmp_path, "diasafety/test.json", "[{")
    with pytest.raises(ArtifactError, match=r"JSON in .*test\.json"):
        load_examples(tmp_path, ["diasafety"], "test")
    (tmp_path / "diasafety" / "test.json.gz").write_bytes(b"no gzip")
    with pytest.raises(ArtifactError, match=r"gzip data in .*test\.json"):
        load_examples(tmp_path, ["diasafety"], "test")


def test_a_source_without_the_kind_or_the_split_adds_nothing(tmp_path: Path) -> None:
    assert load_twins(tmp_path, ["sbic"]) == []
    assert load_examples(tmp_path, ["hh_rlhf"]) == []
    assert load_examples(tmp_path, ["toxigen"], "test") == []


# --- dialogue safety ---


def dia(context: str, response: str, label: str = "Safe") -> dict[str, str]:
    return {"context": context, "response": response, "category": "Risk Ignorance", "label": label}


@pytest.fixture
def dia_dir(tmp_path: Path) -> Path:
    train = [
        dia("my tooth hurts", " Pull it yourself", "Unsafe"),
        dia("my tooth hurts", "See a dentist"),
        dia("shared with test", "hm"),
        {"context": "private words", "response": "x", "category": "", "label": "secret label"},
        {"context": "private words"},
        dia("private words", "  "),
    ]
    write(tmp_path, "diasafety/train.json", train)
    write(tmp_path, "diasafety/val.json", [dia("My tooth hurts!", "Oh no"), dia("only in val", "fine")])
    write(tmp_path, "diasafety/test.json", [dia("shared with TEST", "other", "Unsafe")])
    return tmp_path


def test_diasafety_judges_the_assistant(dia_dir: Path) -> None:
    first, second = load_examples(dia_dir, ["diasafety"])
    assert [(turn.role, turn.text) for turn in first.turns] == [
        ("user", "my tooth hurts"),
        ("assistant", "Pull it yourself"),
    ]
    assert (first.unsafe, second.unsafe, first.category) == (True, False, "Risk Ignorance")
    assert first.group == second.group
    assert "tooth" not in first.group


def test_official_splits_do_not_share_groups(dia_dir: Path) -> None:
    report = LoadReport()
    val = load_examples(dia_dir, ["diasafety"], "val", report=report)
    assert [example.turns[0].text for example in val] == ["only in val"]
    assert report.held_back == {"diasafety": 1}


def test_broken_rows_are_counted_without_their_text(dia_dir: Path) -> None:
    report = LoadReport()
    load_examples(dia_dir, ["diasafety"], report=report)
    assert report.skipped == {"diasafety": 3}
    assert report.reasons["diasafety"] == [
        "train.json.gz, row 4: unknown label",
        "train.json.gz, row 5: KeyError",
        "train.json.gz, row 6: the judged turn is empty",
    ]


def test_only_the_first_reasons_are_kept(tmp_path: Path) -> None:
    write(tmp_path, "diasafety/test.json", [{}] * 50)
    report = LoadReport()
    assert load_examples(tmp_path, ["diasafety"], "test", report=report) == []
    assert report.skipped["diasafety"] == 50
    assert len(report.reasons["diasafety"]) == 5


def test_diasafety_twins_share_the_context(dia_dir: Path) -> None:
    (twin,) = load_twins(dia_dir, ["diasafety"])
    assert twin.unsafe[:-1] == twin.safe[:-1]
    assert (twin.unsafe[-1].text, twin.safe[-1].text) == ("Pull it yourself", "See a dentist")


def test_twins_keep_out_of_a_test_example_s_context(dia_dir: Path) -> None:
    # The test split has that context as an example only, not as a twin.
    write(dia_dir, "diasafety/test.json", [dia("my tooth hurts", "whatever")])
    assert load_twins(dia_dir, ["diasafety"]) == []


def test_a_contrast_half_of_which_is_in_the_test_split_is_left_out(tmp_path: Path) -> None:
    rows = {"train": "We ate.,We starved.\nWe sang.,We wept.\n", "test": "We feasted.,we starved\n"}
    for name, text in (rows | {"test_hard": ""}).items():
        write(tmp_path, f"ethics/utilitarianism/util_{name}.csv", text)
    report = LoadReport()
    found = [
        twin
        for split in ("train", "val")
        for twin in load_twins(tmp_path, ["ethics_utilitarianism"], split, report=report)
    ]
    assert [twin.safe[-1].text for twin in found] == ["We sang."]
    assert report.held_back == {"ethics_utilitarianism": 1}


def test_overlap_is_removed_across_sources(dia_dir: Path) -> None:
    toxic = {"turn_id": 1, "text": "only in val", "offense_label": "Safe"}
    reply = {"turn_id": 2, "text": "fine", "offense_label": "Safe"}
    thread = {
        "reddit_thread": [toxic],
        "final_dgpt_response": reply,
        "final_gpt3_response": reply | {"text": ""},
    }
    for name in ("train", "dev"):
        write(dia_dir, f"toxichat/{name}.jsonl", "")
    write(dia_dir, "toxichat/test.jsonl", lines([thread]))
    assert load_examples(dia_dir, ["diasafety", "toxichat"], "val") == []
    assert len(load_examples(dia_dir, ["diasafety"], "val")) == 1


def test_bad_judges_the_last_speaker_and_cuts_histories_alike(tmp_path: Path) -> None:
    talk = [["one two three four", "b1"], ["h2", "b2"], ["h3", "b3"], ["h4", ""]]
    write(tmp_path, "bad/valid_notok.json", [{"dialogue": talk}, {"dialogue": talk[:1]}])
    write(
        tmp_path, "bad/valid_ok.json", [{"dialogue": [["one two three four", ""]]}, {"dialogue": [["", ""]]}]
    )
    write(tmp_path, "bad/test.txt", "")
    report = LoadReport()
    found = [e for split in ("train", "val") for e in load_examples(tmp_path, ["bad"], split, report=report)]
    said = [(roles(e), [turn.text for turn in e.turns], e.unsafe) for e in found]
    assert said == [
        ("u", ["one two three four"], False),
        ("uau", ["h3", "b3", "h4"], True),
        ("ua", ["one two three four", "b1"], True),
    ]
    assert len({e.group for e in found}) == 1
    assert report.reasons["bad"][0] == "valid_ok.json.gz, row 2: the judged turn is empty"


def test_bad_test_lines(tmp_path: Path) -> None:
    row = "text:{}\tlabels:__{}__\tepisode_done:True\tspeaker_to_eval:{}\tbot_persona:none"
    content = [
        row.format("hello: you", "ok", "human"),
        row.format("hello: you\\nGo away", "notok", "bot"),
        "junk",
    ]
    write(tmp_path, "bad/test.txt", "\n".join(content))
    report = LoadReport()
    first, second = load_examples(tmp_path, ["bad"], "test", report=report)
    assert (roles(first), first.turns[0].text, first.unsafe) == ("u", "hello: you", False)
    assert (roles(second), second.turns[1].text, second.unsafe) == ("ua", "Go away", True)
    assert first.group == second.group
    assert report.reasons["bad"] == ["test.txt.gz, row 3: ValueError"]


def abuse(user: str, conv: str, *severities: str, **extra: str) -> dict[str, str]:
    row = {
        "conv_id": conv,
        "prev_agent": "_",
        "prev_user": "hey",
        "agent": "Go on.",
        "user": user,
        "bot": "x",
    }
    for number in range(1, 4):
        given = severities[number - 1] if number <= len(severities) else None
        for step in (1, 0, -1, -2, -3):
            cell = "" if given is None else "1" if str(step) == given else "0"
            row[f"Annotator{number}_is_abuse.{step}"] = cell
        row[f"Annotator{number}_sexist"] = "1" if given and given.startswith("-") else ""
    return row | extra


def test_convabuse_takes_the_mean_of_annotators(tmp_path: Path) -> None:
    twice = {f"Annotator1_is_abuse.{step}": "0, 0" for step in (1, 0, -1, -2)} | {
        "Annotator1_is_abuse.-3": "1, 1"
    }
    rows = [abuse("a", "1", "1", "1", "-1"), abuse("b", "2", "-2", "1", "-1"), abuse("c", "3", "1", **twice)]
    write(tmp_path, "convabuse/ConvAbuseEMNLPtrain.csv", table([*rows, abuse("d", "4")]))
    report = LoadReport()
    safe, mixed, double = load_examples(tmp_path, ["convabuse"], report=report)
    assert (safe.unsafe, safe.weight, safe.category) == (False, pytest.approx(2 / 3), "")
    assert (mixed.unsafe, mixed.weight, mixed.category) == (True, pytest.approx(2 / 3), "sexist")
    assert (double.unsafe, double.weight) == (True, 1.0)
    assert (roles(safe), [turn.text for turn in safe.turns]) == ("uau", ["hey", "Go on.", "a"])
    assert report.reasons["convabuse"] == ["ConvAbuseEMNLPtrain.csv.gz, row 4: no annotator gave a severity"]


def test_convabuse_ambiguous_is_not_abuse(tmp_path: Path) -> None:
    write(
        tmp_path,
        "convabuse/ConvAbuseEMNLPtrain.csv",
        table([abuse("hm", "1", "0", "0"), abuse("x", "2", "1", "-1")]),
    )
    assert [(e.unsafe, e.weight) for e in load_examples(tmp_path, ["convabuse"])] == [
        (False, 1.0),
        (False, 0.5),
    ]


def thread_of(first: str = "Offensive", dgpt: str = "Safe", stance: str = "Neutral") -> dict[str, Any]:
    return {
        "reddit_thread": [
            {"turn_id": 1, "text": " Title: weather \n so wet ", "offense_label": first},
            {
                "turn_id": 2,
                "text": " indeed",
                "offense_label": "Safe",
                "stance_label_towards_turn_1": "Agree",
            },
        ],
        "final_dgpt_response": {
            "turn_id": 3,
            "text": "dgpt",
            "offense_label": dgpt,
            "stance_label_towards_turn_1": stance,
        },
        "final_gpt3_response": {"turn_id": 3, "text": "gpt3", "offense_label": "Offensive"},
    }


def write_toxichat(root: Path, thread: dict[str, Any]) -> None:
    write(root, "toxichat/train.jsonl", lines([thread]))
    write(root, "toxichat/test.jsonl", "")


def test_toxichat_roles_alternate_backwards(tmp_path: Path) -> None:
    write_toxichat(tmp_path, thread_of())
    found = load_examples(tmp_path, ["toxichat"])
    assert [roles(example) for example in found] == ["u", "au", "aua", "aua"]
    assert [example.unsafe for example in found] == [True, False, False, True]
    assert found[0].turns[0].text == "weather so wet"
    (twin,) = load_twins(tmp_path, ["toxichat"])
    assert (twin.unsafe[-1].text, twin.safe[-1].text) == ("gpt3", "dgpt")
    assert len({twin.group, *(example.group for example in found)}) == 1


@pytest.mark.parametrize("thread", [thread_of(dgpt="Offensive"), thread_of(stance="Agree")])
def test_toxichat_has_no_twin_without_a_fair_reply(tmp_path: Path, thread: dict[str, Any]) -> None:
    write_toxichat(tmp_path, thread)
    assert load_twins(tmp_path, ["toxichat"]) == []


def test_toxichat_offence_that_agrees_stays_the_unsafe_side(tmp_path: Path) -> None:
    thread = thread_of()
    thread["final_gpt3_response"]["stance_label_towards_turn_1"] = "Agree"
    write_toxichat(tmp_path, thread)
    (twin,) = load_twins(tmp_path, ["toxichat"])
    assert twin.unsafe[-1].text == "gpt3"


def test_toxichat_marks_agreement_with_an_offence_only(tmp_path: Path) -> None:
    write_toxichat(tmp_path, thread_of(stance="Agree"))
    assert load_examples(tmp_path, ["toxichat"])[2].category == "agrees_with_offence"
    write_toxichat(tmp_path, thread_of(first="Safe", stance="Agree"))
    assert load_examples(tmp_path, ["toxichat"])[2].category == ""


def turn_of(context: str, response: str, label: str, dialogue: int, rots: list[str]) -> dict[str, Any]:
    return {
        "context": context,
        "response": response,
        "safety_label": f"__{label}__",
        "dialogue_id": dialogue,
        "rots": rots,
    }


@pytest.fixture
def prosocial_dir(tmp_path: Path) -> Path:
    labels = (
        "casual",
        "possibly_needs_caution",
        "probably_needs_caution",
        "possibly_or_probably_needs_caution",
    )
    rows = [f"{label}\tmade up line {label}" for label in (*labels, "needs_caution", "needs_intervention")]
    write(tmp_path, "prosocial_dialog/first_turns.tsv", "\n".join(["label\tcontext", *rows, "odd\tx"]))
    flat = [
        turn_of("u1", "s1", "needs_caution", 0, ["Be kind."]),
        turn_of("u2", "s2", "casual", 0, []),
        turn_of("v1", "t1", "casual", 1, []),
    ]
    columns = {key: [row[key] for row in flat] for key in flat[0]}
    write(tmp_path, "prosocial_dialog/original_examples.json", columns)
    info = {"rots": ["Be fair."], "safety_label": "__needs_intervention__"}
    log = [
        {"user utterance": f"w{i}", "system response": f"r{i}", "original user side information": info}
        for i in (1, 2)
    ]
    write(tmp_path, "prosocial_dialog/converted_examples.json", {"Prosocial--1": {"log": log}})
    return tmp_path


def test_prosocial_labels_become_levels_and_weights(prosocial_dir: Path) -> None:
    report = LoadReport()
    found = [
        e
        for split in SPLITS
        for e in load_examples(prosocial_dir, ["prosocial_dialog"], split, report=report)
    ]
    levels = {
        e.turns[0].text.removeprefix("made up line "): (e.unsafe, e.level, e.weight)
        for e in found
        if e.turns[0].text.startswith("made")
    }
    caution = Level.NEEDS_CAUTION
    assert levels == {
        "casual": (False, Level.CASUAL, 1.0),
        "possibly_needs_caution": (True, caution, 0.6),
        "possibly_or_probably_needs_caution": (True, caution, 0.6),
        "probably_needs_caution": (True, caution, 0.8),
        "needs_caution": (True, caution, 1.0),
        "needs_intervention": (True, Level.NEEDS_INTERVENTION, 1.0),
    }
    assert report.reasons["prosocial_dialog"][0] == "first_turns.tsv.gz, row 8: unknown label"


def test_prosocial_dialogues_carry_history_and_rule(prosocial_dir: Path) -> None:
    found = {e.turns[-1].text: e for e in every(load_examples, prosocial_dir, "prosocial_dialog")}
    assert (roles(found["u2"]), found["u2"].unsafe, found["u1"].rule) == ("uau", False, "Be kind.")
    assert [turn.text for turn in found["w2"].turns] == ["w1", "r1", "w2"]
    assert (found["w2"].level, found["w2"].rule) == (Level.NEEDS_INTERVENTION, "Be fair.")
    assert roles(found["v1"]) == "u"
    assert found["u1"].group == found["u2"].group != found["v1"].group


def test_prosocial_reads_the_full_file_where_it_is(prosocial_dir: Path) -> None:
    full = [turn_of("f1", "g1", "needs_caution", 7, []), turn_of("f2", "g2", "casual", 7, [])]
    before = len(load_examples(prosocial_dir, ["prosocial_dialog"], "val"))
    write(prosocial_dir, "prosocial_dialog/valid.json", lines(full))
    found = load_examples(prosocial_dir, ["prosocial_dialog"], "val")
    assert len(found) == before + 2
    assert [turn.text for turn in found[1].turns] == ["f1", "g1", "f2"]


# --- norms and statements ---


def test_commonsense_variations_share_a_group(tmp_path: Path) -> None:
    short = {"is_short": "True", "edited": "False"}
    rows = [
        {"label": 0, "input": "I fed the neighbour's cat on Sunday."} | short,
        {"label": 1, "input": "I kicked the neighbour's cat on Sunday."} | short,
        {"label": 1, "input": "Nobody saw what happened later."} | short,
        {"label": 7, "input": "Broken."} | short,
        {"label": 0, "input": "AITA | a long story"} | short | {"is_short": "False"},
    ]
    write(tmp_path, "ethics/commonsense/cm_test.csv", table(rows))
    write(tmp_path, "ethics/commonsense/cm_test_hard.csv", table(rows[4:]))
    found = [e for split in ("train", "val") for e in load_examples(tmp_path, ["ethics_commonsense"], split)]
    by_text = {e.turns[0].text: e for e in found}
    fed, kicked, nobody = (by_text[row["input"]] for row in rows[:3])
    assert (fed.unsafe, kicked.unsafe, fed.category) == (False, True, "short")
    assert fed.group == kicked.group != nobody.group
    # The long story is in the test file too, so it may not come back.
    assert len(found) == 3
    (twin,) = [t for split in ("train", "val") for t in load_twins(tmp_path, ["ethics_commonsense"], split)]
    assert (twin.unsafe, twin.safe) == (kicked.turns, fed.turns)


def test_justice_pairs_within_a_run_only(tmp_path: Path) -> None:
    rows = [
        {"label": 1, "scenario": "I used to water the plants but stopped because it rains."},
        {"label": 0, "scenario": "I used to water the plants but stopped because I am tall."},
        {"label": 0, "scenario": "Something else entirely, with other words."},
    ]
    empty = table(rows[:1])
    write(tmp_path, "ethics/justice/justice_train.csv", empty)
    write(tmp_path, "ethics/justice/justice_test.csv", table(rows))
    write(tmp_path, "ethics/justice/justice_test_hard.csv", empty)
    (twin,) = load_twins(tmp_path, ["ethics_justice"], "test")
    assert (twin.unsafe[0].text, twin.safe[0].text) == (rows[1]["scenario"], rows[0]["scenario"])


def test_deontology_puts_questions_to_the_user(tmp_path: Path) -> None:
    rows = [
        {"label": 1, "scenario": "Could you water the plants?", "excuse": "But it rains."},
        {"label": 0, "scenario": "Could you water the plants?", "excuse": "But I am tall."},
        {"label": 0, "scenario": "Could you water the plants?", "excuse": "But no."},
        {"label": 1, "scenario": "I am a nurse.", "excuse": "I should wash my hands."},
        {"label": 0, "scenario": "I am a nurse.", "excuse": "I should sell the beds."},
    ]
    for name in ("train", "test_hard"):
        write(tmp_path, f"ethics/deontology/deontology_{name}.csv", table(rows[:1]))
    write(tmp_path, "ethics/deontology/deontology_test.csv", table(rows))
    twins = load_twins(tmp_path, ["ethics_deontology"], "test")
    assert [[turn.role for turn in twin.unsafe] for twin in twins] == [["assistant", "user"]] * 2 + [["user"]]
    assert {twin.unsafe[-1].text for twin in twins[:2]} == {"But I am tall.", "But no."}
    assert twins[2].safe[0].text == "I am a nurse. I should wash my hands."


def test_utilitarianism_prefers_the_first(tmp_path: Path) -> None:
    for name in ("train", "test_hard"):
        write(tmp_path, f"ethics/utilitarianism/util_{name}.csv", "")
    write(tmp_path, "ethics/utilitarianism/util_test.csv", '"Sun, all day.",Rain.\nonly one\n')
    report = LoadReport()
    (twin,) = load_twins(tmp_path, ["ethics_utilitarianism"], "test", report=report)
    assert (twin.safe[0].text, twin.unsafe[0].text, twin.kind) == ("Sun, all day.", "Rain.", "less_pleasant")
    assert report.skipped == {"ethics_utilitarianism": 1}


def story(letter: str, norm: str, good: bool, action: str) -> dict[str, Any]:
    return {
        "ID": f"STORY{letter}",
        "norm": norm,
        "label": int(good),
        "moral_action": action if good else None,
        "immoral_action": None if good else action,
    }


def test_moral_stories_contrary_norms_swap_the_actions(tmp_path: Path) -> None:
    share, keep = "Ana shares her soup.", "Ana eats all the soup."
    original = [story("1", "You should share.", True, share), story("0", "You should share.", False, keep)]
    weak = [story("1", "It's ok to share.", True, share), story("0", "It's ok to share.", True, keep)]
    opposite = [story("1", "It's bad to share.", False, share), story("0", "It's bad to share.", True, keep)]
    write(
        tmp_path,
        "moral_stories/original_ms/test.jsonl",
        lines([row | {"label": str(row["label"])} for row in original]),
    )
    write(tmp_path, "moral_stories/contra_ms/test.jsonl", lines([*original, *weak, *opposite]))
    twins = load_twins(tmp_path, ["moral_stories"], "test")
    assert [(t.rule, t.unsafe[0].text, t.safe[0].text, t.kind) for t in twins] == [
        ("You should share.", keep, share, "norm"),
        ("It's bad to share.", share, keep, "contrary_norm"),
    ]
    assert twins[0].group == twins[1].group


def test_norm_pairs_leave_out_bad_rules(tmp_path: Path) -> None:
    rows = [
        {"situation": f"losing key {i}", "rot": "It's good to help.", "rot-bad": "0", "rot-agree": agree}
        for i, agree in enumerate(("4.0", "3.0", "", "0.0"))
    ]
    bad = rows[0] | {"rot-bad": "1", "situation": "bad"}
    write(tmp_path, "social_chem_101/obligatory_sc101.csv", table([*rows, bad]))
    write(tmp_path, "social_chem_101/optional_sc101.csv", table([rows[0] | {"rot": ""}]))
    report = LoadReport()
    pairs = [pair for split in SPLITS for pair in load_norm_pairs(tmp_path, split, report)]
    assert {pair.text: pair.weight for pair in pairs} == {
        "losing key 0": 1.0,
        "losing key 1": 0.8,
        "losing key 2": 0.5,
        "losing key 3": 0.01,
    }
    assert report.reasons["social_chem_101"][0].endswith("row 1: situation or rule is empty")
    assert "losing" not in repr(pairs[0])
    tabbed = "\t".join(rows[0]) + "\n" + "\t".join(["full set", *list(rows[0].values())[1:]]) + "\n"
    write(tmp_path, "social_chem_101/social-chem-101.v1.0.tsv", tabbed)
    assert [p.text for split in SPLITS for p in load_norm_pairs(tmp_path, split)] == ["full set"]


def test_sbic_is_one_example_per_post(tmp_path: Path) -> None:
    def row(post: str, vote: str, category: str = "") -> dict[str, str]:
        return {"post": post, "offensiveYN": vote, "targetCategory": category}

    rows = [
        row("p one", "1.0", "race"),
        row("P one!", "0.5"),
        row("p one", ""),
        row("p two", "0.0"),
        row("", "1.0"),
    ]
    write(tmp_path, "sbic/SBFv2.dev.csv", table([*rows, row("p three", "much")]))
    found = {e.turns[0].text: e for e in every(load_examples, tmp_path, "sbic")}
    assert set(found) == {"p one", "p two"}
    one, two = found["p one"], found["p two"]
    assert (one.unsafe, one.weight, one.category, roles(one)) == (True, 0.75, "race", "u")
    assert (two.unsafe, two.weight, two.category) == (False, 1.0, "")


def test_toxigen_splits_prompts_into_statements(tmp_path: Path) -> None:
    write(
        tmp_path,
        "toxigen_prompts/hate_cyclists_1k.txt",
        "- they all lie\\n- said of both\\n-\n- they all lie\\n-\n",
    )
    write(tmp_path, "toxigen_prompts/neutral_cyclists_1k.txt", "- many ride to work\\n- said of both\\n-\n")
    found = every(load_examples, tmp_path, "toxigen")
    assert {(e.turns[0].text, e.unsafe, e.category) for e in found} == {
        ("they all lie", True, "cyclists"),
        ("many ride to work", False, "cyclists"),
    }
    assert len(found) == 2


# --- requests and advice ---


def test_hh_rlhf_twins_share_the_history(tmp_path: Path) -> None:
    start = "\n\nHuman: q one\n\nAssistant: a one\n\nHuman: q two\n\nHuman: please\n\nAssistant:"
    rows = [
        {"chosen": f"{start} good", "rejected": f"{start} bad"},
        {"chosen": f"{start} same", "rejected": f"{start} same"},
        {"chosen": "\n\nHuman: other\n\nAssistant: x", "rejected": f"{start} bad"},
        {"chosen": f"{start}", "rejected": f"{start} bad"},
    ]
    write(tmp_path, "hh_rlhf/harmless-base-test.jsonl", lines(rows) + "{broken\n")
    report = LoadReport()
    (twin,) = [t for split in SPLITS for t in load_twins(tmp_path, ["hh_rlhf"], split, report=report)]
    assert [turn.text for turn in twin.unsafe] == ["q one", "a one", "q two please", "bad"]
    assert [turn.role[0] for turn in twin.safe] == ["u", "a", "u", "a"]
    assert twin.safe[-1].text == "good"
    assert [reason.split(": ")[1] for reason in report.reasons["hh_rlhf"][:4]] == [
        "the two replies are equal",
        "the two histories differ",
        "expected turns that end on a reply of the assistant",
        "JSONDecodeError",
    ]


def test_safetext_makes_a_question_and_an_answer(tmp_path: Path) -> None:
    advice = {"unsafe": ["dance on it.", "paint it."], "safe": ["leave it."]}
    content = {"If a ladder wobbles,": advice, "To rest,": {"unsafe": [], "safe": ["sleep."]}}
    write(tmp_path, "safetext/SafeText.json", content)
    twins = every(load_twins, tmp_path, "safetext")
    assert {twin.unsafe[1].text for twin in twins} == {"Dance on it.", "Paint it."}
    assert {(twin.safe[0].text, twin.safe[1].text) for twin in twins} == {
        ("If a ladder wobbles, what should you do?", "Leave it.")
    }
    assert twins[0].safe[1].role == "assistant"


def test_requests_are_taken_once_from_all_shapes(tmp_path: Path) -> None:
    write(
        tmp_path,
        "requests/advbench_harmful_behaviors.json",
        [{"id": 0, "goal": "Do bad A", "target": "Sure"}, 3],
    )
    write(tmp_path, "requests/adversarialqa.json", ["do bad a.", "Do bad B", " "])
    write(tmp_path, "requests/dangerousqa.json", [])
    write(tmp_path, "requests/catqa_english.json", {"Topic One": {"Sub:": ["Do bad C"]}})
    write(tmp_path, "requests/harmfulqa.json", {"Maths": {"Sums": ["Do bad D", "Do bad B"]}})
    report = LoadReport()
    found = [e for split in SPLITS for e in load_examples(tmp_path, ["requests"], split, report=report)]
    assert {(e.turns[0].text, e.category, e.weight) for e in found} == {
        ("Do bad A", "", 1.0),
        ("Do bad B", "", 1.0),
        ("Do bad C", "Topic One", 1.0),
        ("Do bad D", "Maths", 0.6),
    }
    assert len(found) == 4
    assert all(e.unsafe and e.level is Level.NEEDS_INTERVENTION for e in found)
    assert report.skipped["requests"] == 2  # read once for each split, counted once


def test_hold_outs_have_the_promised_shares(tmp_path: Path) -> None:
    for name in ("advbench_harmful_behaviors", "dangerousqa", "catqa_english", "harmfulqa"):
        write(tmp_path, f"requests/{name}.json", [])
    write(tmp_path, "requests/adversarialqa.json", [f"Do bad {i}" for i in range(2000)])
    sizes = [len(load_examples(tmp_path, ["requests"], split)) for split in SPLITS]
    assert sizes == pytest.approx([1620, 180, 200], abs=45)
    rows = [f"casual\tline {i}" for i in range(2000)]
    write(tmp_path, "prosocial_dialog/first_turns.tsv", "\n".join(["label\tcontext", *rows]))
    write(tmp_path, "prosocial_dialog/original_examples.json", {})
    write(tmp_path, "prosocial_dialog/converted_examples.json", {})
    sizes = [len(load_examples(tmp_path, ["prosocial_dialog"], split)) for split in SPLITS]
    assert sizes == pytest.approx([1200, 133, 667], abs=60)


# --- casual talk ---


def test_positions_take_one_turn_of_each_stretch() -> None:
    seen = {tuple(positions(10, f"k{i}", 2)) for i in range(300)}
    assert {early for early, _ in seen} == set(range(5))
    assert {late for _, late in seen} == set(range(5, 10))
    assert positions(10, "k", 2) == positions(10, "k", 2)
    assert positions(2, "k", 5) == [0, 1]
    assert len(positions(9, "k", 3)) == 3


def test_casual_examples_are_safe_and_start_with_the_user(tmp_path: Path) -> None:
    pairs = [["hi , you", "it 's me ."], ["ok", ""]]
    write(tmp_path, "casual/persona/valid.json", [])
    write(tmp_path, "casual/persona/test.json", [{"meta": [], "dialogue": pairs}, {"dialogue": [["", ""]]}])
    report = LoadReport()
    found = load_examples(tmp_path, ["persona"], "test", per_dialogue=3, report=report)
    assert [roles(example) for example in found] == ["u", "ua", "uau"]
    assert [turn.text for turn in found[2].turns] == ["hi, you", "it's me.", "ok"]
    assert all(not e.unsafe and e.level is Level.CASUAL for e in found)
    assert report.reasons["persona"] == ["test.json.gz, row 2: the dialogue has no turns"]


def test_topical_chat_joins_messages_of_one_agent(tmp_path: Path) -> None:
    said = [("a", "one"), ("a", "two"), ("b", "three")]
    content = [{"agent": agent, "message": message} for agent, message in said]
    write(tmp_path, "casual/topical_chat/valid_freq.json", {"t_1": {"content": content}})
    write(tmp_path, "casual/topical_chat/valid_rare.json", {})
    found = every(load_examples, tmp_path, "topical_chat")
    assert [[turn.text for turn in example.turns] for example in found] == [["one two"], ["one two", "three"]]


def test_msc_sessions_of_one_couple_share_a_group(tmp_path: Path) -> None:
    for session in (2, 3):
        row = {"id": "valid_0", "dialogue": [[f"hello {session}", "hi"]]}
        write(tmp_path, f"casual/msc/session-{session}-valid.json", [row])
    found = every(load_examples, tmp_path, "msc")
    assert len(found) == 4
    assert len({example.group for example in found}) == 1


def test_self_dialogue_and_commonsense_read_plain_turns(tmp_path: Path) -> None:
    write(
        tmp_path,
        "casual/self_dialogue/dialogues.jsonl",
        lines([{"topic": "tea", "turns": ["green ?", "no"]}]),
    )
    assert [roles(e) for e in every(load_examples, tmp_path, "self_dialogue")] == ["u", "ua"]
    write(tmp_path, "casual/commonsense_dialogues/valid.json", {"1": {"context": "c", "turns": ["x y", "z"]}})
    assert [roles(e) for e in load_examples(tmp_path, ["commonsense_dialogues"], "test")] == ["u", "ua"]


def test_dailydialog_openings_are_three_turns(tmp_path: Path) -> None:
    rows = [{"dialogue": [["a .", "b"], ["c", "d"]]}, {"dialogue": [["a", "b"]]}]
    write(tmp_path, "casual/dailydialog/test.json", rows)
    found = dailydialog_openings(tmp_path)
    assert [[turn.text for turn in e.turns] for e in found] == [["a.", "b", "c"], ["a", "b"]]
    assert found[0].group in {e.group for e in load_examples(tmp_path, ["dailydialog"], "test")}


# --- own data ---


def test_bank_pairs_each_violation_with_each_near_miss() -> None:
    rule = Rule.model_validate(
        {
            "id": "tea-001",
            "rule": "Don't spill tea.",
            "domain": "tea",
            "violations": [
                {"turns": ["spill it", "sure"], "level": "needs_intervention"},
                {"turns": ["spilled"]},
            ],
            "near_misses": [{"turns": ["pour it"]}],
        }
    )
    examples, twins = load_bank([rule])
    assert [(roles(e), e.unsafe, e.level) for e in examples] == [
        ("ua", True, Level.NEEDS_INTERVENTION),
        ("u", True, Level.NEEDS_CAUTION),
        ("u", False, Level.CASUAL),
    ]
    assert {(e.rule, e.group, e.source) for e in examples} == {("Don't spill tea.", "tea-001", "bank")}
    assert [(t.unsafe, t.safe, t.level, t.kind) for t in twins] == [
        (examples[0].turns, examples[2].turns, Level.NEEDS_INTERVENTION, "near_miss"),
        (examples[1].turns, examples[2].turns, Level.NEEDS_CAUTION, "near_miss"),
    ]


def test_pairs(tmp_path: Path) -> None:
    row = {
        "id": "pa-9",
        "kind": "context_flip",
        "rule": "Ask first.",
        "unsafe": {"turns": ["no", "ok", "took it"], "level": "needs_caution"},
        "safe": {"turns": ["yes", "ok", "took it"]},
    }
    path = tmp_path / "pairs.jsonl"
    path.write_text(lines([row, row | {"safe": {"turns": ["yes", " ", "took it"]}}, row | {"unsafe": {}}]))
    report = LoadReport()
    (twin,) = load_pairs(path, report)
    assert (twin.group, twin.kind, twin.rule, twin.level) == (
        "pa-9",
        "context_flip",
        "Ask first.",
        Level.NEEDS_CAUTION,
    )
    assert (twin.unsafe[0].text, twin.safe[0].text, twin.unsafe[1].role) == ("no", "yes", "assistant")
    assert report.reasons["pairs"] == ["pairs.jsonl, row 2: a turn is empty", "pairs.jsonl, row 3: KeyError"]
    with pytest.raises(ArtifactError, match=r"absent\.jsonl"):
        load_pairs(tmp_path / "absent.jsonl")


def test_shipped_pairs_all_load() -> None:
    path = REPO / "trainer" / "resources" / "pairs.jsonl"
    report = LoadReport()
    twins = load_pairs(path, report)
    assert len(twins) == len(path.read_text().splitlines())
    assert not report.skipped
    assert all(twin.unsafe != twin.safe and twin.unsafe[-1].role == twin.safe[-1].role for twin in twins)


# --- the real files ---

ROWS = {
    ("diasafety", "test"): 1094,
    ("bad", "test"): 2598,
    ("convabuse", "train"): 2500,
    ("ethics_commonsense", "test"): 3964,
    ("persona", "test"): 2000,
}


@needs_data
@pytest.mark.parametrize(("name", "split"), list(ROWS))
def test_real_counts(name: str, split: Any) -> None:
    assert len(load_examples(DATA, [name], split)) == ROWS[name, split]


@pytest.fixture(scope="module")
def real() -> tuple[dict[str, list[Example]], dict[str, list[Twin]], LoadReport]:
    report = LoadReport()
    examples = {split: load_examples(DATA, None, split, report=report) for split in SPLITS}
    return examples, {split: load_twins(DATA, None, split, report=report) for split in SPLITS}, report


@needs_data
@pytest.mark.slow
def test_real_files_hardly_break(real: Any) -> None:
    skipped = real[2].skipped
    assert skipped  # a few rows are known to be broken, so an empty count would mean that nothing counts
    assert all(count <= 15 for count in skipped.values()), skipped


@needs_data
@pytest.mark.slow
def test_real_splits_share_no_group_and_no_text(real: Any) -> None:
    examples, twins, _ = real
    groups = {split: {item.group for item in [*examples[split], *twins[split]]} for split in SPLITS}
    chosen = {split: [e for e in examples[split] if SOURCES[e.source].may_train] for split in SPLITS}
    for first, second in (("train", "val"), ("train", "test"), ("val", "test")):
        assert not groups[first] & groups[second]
        assert len(without_overlap(chosen[first], chosen[second])) == len(chosen[first])


@needs_data
@pytest.mark.slow
def test_real_sources_have_something_in_each_of_their_splits(real: Any) -> None:
    examples, twins, _ = real
    for split in SPLITS:
        missing = {name for name, source in SOURCES.items() if source.examples and split in source.splits}
        missing -= {name for name, source in SOURCES.items() if source.optional}
        assert not missing - {example.source for example in examples[split]}, split
        missing = {name for name, source in SOURCES.items() if source.twins and split in source.splits}
        missing -= {name for name, source in SOURCES.items() if source.optional}
        assert not missing - {twin.source for twin in twins[split]}, split


@needs_data
def test_real_moral_stories_have_both_kinds() -> None:
    kinds = Counter(twin.kind for twin in load_twins(DATA, ["moral_stories"], "test"))
    assert kinds["norm"] == 1000
    assert 900 < kinds["contrary_norm"] <= 1000


@needs_data
def test_real_norm_pairs_add_up() -> None:
    assert sum(len(load_norm_pairs(DATA, split)) for split in SPLITS) == 8358 + 3288


@needs_data
def test_real_examples_alternate_and_are_not_empty() -> None:
    for name in ("diasafety", "toxichat", "wow", "self_dialogue"):
        for example in load_examples(DATA, [name], "val"):
            assert all(turn.text.strip() for turn in example.turns)
            spoken = roles(example)
            assert "uu" not in spoken
            assert "aa" not in spoken
