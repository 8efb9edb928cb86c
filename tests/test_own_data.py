"""MIC, own conversations, situations in versions, and `guardrail data inspect`."""

import csv
import gzip
import io
import json

import pytest
from typer.testing import CliRunner

from guardrail.cli import app
from guardrail.errors import ArtifactError, InputError
from guardrail.trainer.inspection import inspect
from guardrail.trainer.loaders import (
    LoadReport,
    load_examples,
    load_mic_norms,
    load_situations,
    load_twins,
    present,
)
from guardrail.trainer.loaders.common import SPLITS, BrokenRow
from guardrail.trainer.loaders.situations import expand
from guardrail.types import Level

MIC_COLUMNS = ("Q", "A", "rot", "A_agree", "rot-agree", "violation-severity", "moral", "split")


def mic_file(root, *rows):
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerows([MIC_COLUMNS, *rows])
    (root / "mic").mkdir()
    (root / "mic" / "MIC.csv").write_text(buffer.getvalue())
    return root


def json_lines(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def mic(tmp_path):
    return mic_file(
        tmp_path,
        ("May I read it?", "Sure, it is only hers.", "Ask first.", "0", "4", "3", "liberty|care", "train"),
        ("May I read it?", "Sure, it is only hers.", "Diaries are private.", "0", "5", "5", "care", "train"),
        ("May I read it?", "Ask her first.", "Ask first.", "2", "4", "3", "liberty", "train"),
        ("And late?", "Who cares about a minute.", "Be on time.", "0.0", "3", "2", "fairness", "train"),
        ("Test?", "Yes.", "Answer.", "1", "5", "1", "", "test"),
        ("Broken?", "Yes.", "Answer.", "7", "5", "1", "", "train"),
        ("Where?", "Here.", "Answer.", "1", "5", "1", "", "elsewhere"),
    )


def test_mic_takes_the_gravest_broken_rule_of_an_answer(mic):
    unsafe, safe = load_examples(mic, ["mic"], "train")
    assert [turn.role for turn in unsafe.turns] == ["user", "assistant"]
    assert (unsafe.unsafe, unsafe.level) == (True, Level.NEEDS_INTERVENTION)
    assert (unsafe.rule, unsafe.weight, unsafe.category) == ("Diaries are private.", 1.0, "care")
    assert (safe.unsafe, safe.weight) == (False, 0.8)
    assert unsafe.group == safe.group


def test_mic_leaves_mild_breaches_out_and_counts_broken_rows(mic):
    report = LoadReport()
    assert len(load_examples(mic, ["mic"], "train", report=report)) == 2
    assert set(report.reasons["mic"]) == {
        "MIC.csv, row 6: A_agrees, rot-agree or violation-severity is out of range",
        "MIC.csv, row 7: split is not train, dev or test",
    }
    assert not any("Broken" in reason for reason in report.reasons["mic"])


def test_mic_answers_to_one_question_are_twins(mic):
    (twin,) = load_twins(mic, ["mic"], "train")
    assert twin.unsafe[-1].text == "Sure, it is only hers."
    assert twin.safe[-1].text == "Ask her first."
    assert twin.rule == "Diaries are private."


def test_mic_norms_of_a_question_stand_in_one_split(tmp_path):
    rows = [("Twice?", "Yes.", "Answer.", "1", "5", "1", "", split) for split in ("train", "dev", "test")]
    rows += [("Late?", "Yes.", "Answer.", "1", "5", "1", "", split) for split in ("train", "dev")]
    folder = mic_file(tmp_path, *rows)
    found = {split: [norm.text for norm in load_mic_norms(folder, split)] for split in SPLITS}
    assert found == {"train": ["Late?"], "val": [], "test": ["Twice?"]}


def test_mic_norms_hold_question_answer_and_foundation(mic):
    norms = load_mic_norms(mic, "train")
    assert len(norms) == 4
    assert (norms[0].text, norms[0].answer) == ("May I read it?", "Sure, it is only hers.")
    assert (norms[0].rule, norms[0].foundation, norms[0].weight) == ("Ask first.", "liberty", 0.8)


def test_optional_sets_are_passed_over_unless_asked_for(tmp_path):
    assert not {"mic", "own"} & set(present(tmp_path, None))
    assert load_mic_norms(tmp_path, "train") == []
    with pytest.raises(ArtifactError, match=r"MIC\.csv"):
        load_examples(tmp_path, ["mic"], "train")
    assert "mic" in present(mic_file(tmp_path), None)


# Own conversations


def test_own_conversations_in_both_forms(tmp_path):
    json_lines(
        tmp_path / "own" / "train.jsonl",
        {
            "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ha"}],
            "unsafe": True,
        },
        {"turns": ["hi", "ho"], "level": "casual", "rule": "Be kind.", "weight": 0.5},
        {"turns": ["hi"], "level": "needs_caution", "group": "x"},
    )
    first, second, third = load_examples(tmp_path, ["own"], "train")
    assert [(turn.role, turn.text) for turn in first.turns] == [("user", "hi"), ("assistant", "ha")]
    assert (first.unsafe, first.level) == (True, None)
    assert (second.unsafe, second.level, second.rule, second.weight) == (False, Level.CASUAL, "Be kind.", 0.5)
    assert first.group == second.group != third.group
    (twin,) = load_twins(tmp_path, ["own"], "train")
    assert (twin.unsafe[-1].text, twin.safe[-1].text) == ("ha", "ho")


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"turns": ["hi"]}, "expected unsafe (true or false) or level"),
        ({"turns": ["hi"], "unsafe": "no"}, "expected unsafe (true or false) or level"),
        ({"turns": ["hi", " "], "unsafe": True}, "the judged turn is empty"),
        ({"turns": ["hi"], "unsafe": True, "weight": 2}, "weight is not in (0, 1]"),
        ({"messages": [{"role": "boss", "content": "hi"}], "unsafe": True}, "a role is not one of"),
        ({"turns": ["secret"], "level": "awful"}, "ValueError"),
        ({"turns": ["hi"], "level": "casual", "unsafe": True}, "level and unsafe disagree"),
        ({"turns": ["hi"], "level": "needs_caution", "unsafe": False}, "level and unsafe disagree"),
    ],
)
def test_a_broken_own_row_is_counted_with_its_reason(tmp_path, row, why):
    json_lines(tmp_path / "own" / "train.jsonl", row, {"turns": ["fine"], "unsafe": False})
    report = LoadReport()
    assert len(load_examples(tmp_path, ["own"], "train", report=report)) == 1
    (reason,) = report.reasons["own"]
    assert reason.startswith("train.jsonl, row 1: ")
    assert why in reason
    assert "secret" not in reason


def test_own_files_are_read_once_and_backups_not_at_all(tmp_path):
    row = {"turns": ["hi"], "unsafe": False}
    path = json_lines(tmp_path / "own" / "train.jsonl", row)
    (path.parent / "train.jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
    (path.parent / "train.jsonl.bak").write_text(json.dumps({"turns": ["old"], "unsafe": True}))
    (found,) = load_examples(tmp_path, ["own"], "train")
    assert found.turns[0].text == "hi"


def test_own_files_of_other_names_are_split_by_group(tmp_path):
    rows = [{"turns": [f"talk {i // 2}", f"reply {i}"], "unsafe": bool(i % 2)} for i in range(200)]
    json_lines(tmp_path / "own" / "mine.jsonl", *rows)
    groups = [
        {example.group for example in load_examples(tmp_path, ["own"], split)}
        for split in ("train", "val", "test")
    ]
    assert sum(map(len, groups)) == 100 == len(set.union(*groups))
    assert all(groups)


# Situations


def test_plain_slots():
    versions = expand("SUU", ["{a|b|c} x", "y", "{|so |}z"])
    assert [[turn.text for turn in v.turns] for v in versions] == [
        ["a x", "y", "z"],
        ["b x", "y", "so z"],
        ["c x", "y", "z"],
    ]
    assert [v.unsafe for v in versions] == [False, True, True]
    assert [turn.role for turn in versions[0].turns] == ["user", "assistant", "user"]


def test_two_facts_span_four_versions():
    versions = expand("USSU", ["{A:i|we} {B:ask|tell} {A:me|us}"])
    assert [(v.turns[0].text, v.unsafe) for v in versions] == [
        ("i ask me", True),
        ("i tell me", False),
        ("we ask us", False),
        ("we tell us", True),
    ]


@pytest.mark.parametrize(
    ("labels", "turns", "why"),
    [
        ("UU", ["{a|b}"], "both present"),
        ("UX", ["{a|b}"], "both present"),
        ("US", ["a"], "expected slots"),
        ("US", ["{a|b|c}"], "expected 2 wordings in every slot, got 3"),
        ("USSU", ["{A:a|b} {c|d}"], "expected slots"),
        ("USSU", ["{A:a|b}"], "expected both A and B"),
        ("US", ["{A:a|b} {B:c|d}"], "expected both A and B with four labels"),
        ("US", ["{a|b}", "{|} "], "a turn is empty"),
        ("US", ["{a|b} {"], "stray brace"),
        ("US", ["{a|a}"], "are the same"),
    ],
)
def test_a_situation_that_does_not_fit_is_broken(labels, turns, why):
    with pytest.raises(BrokenRow, match=r".*".join(map(__import__("re").escape, [why]))):
        expand(labels, turns)


def test_every_unsafe_version_meets_every_safe_one(tmp_path):
    row = {"id": "1", "kind": "request", "rule": "Ask.", "level": "needs_caution"}
    path = json_lines(
        tmp_path / "s.jsonl",
        {**row, "labels": "USSU", "turns": ["{A:a|b} {B:c|d}"]},
        {**row, "labels": "SU", "turns": ["{a|b}"]},
        {**row, "labels": "SU", "turns": ["{a|b|c}"]},
    )
    report = LoadReport()
    twins = load_situations(path, report)
    assert [(t.unsafe[0].text, t.safe[0].text) for t in twins] == [
        ("a c", "a d"),
        ("a c", "b c"),
        ("b d", "a d"),
        ("b d", "b c"),
        ("b", "a"),
    ]
    assert {(t.rule, t.group, t.kind, t.level) for t in twins} == {
        ("Ask.", "Ask.", "request", Level.NEEDS_CAUTION)
    }
    assert [t.source for t in twins] == ["crossed_situations"] * 4 + ["situations"]
    assert report.skipped["situations"] == 1


# Inspection


@pytest.fixture
def own_folder(tmp_path):
    rows = [{"turns": ["a b c", f"reply {i}"], "unsafe": i < 3} for i in range(4)]
    json_lines(tmp_path / "own" / "train.jsonl", *rows, {"turns": []})
    return tmp_path


def test_inspection_of_a_folder(own_folder):
    found = inspect(own_folder, sources=["own"], samples=2)
    (part,) = found.parts
    assert (part.source, part.split, part.examples, part.unsafe, part.twins) == ("own", "train", 4, 3, 3)
    assert part.levels == {"unsafe": 3, "casual": 1}
    assert (part.turns, part.words) == (2, (5, 5, 5))
    assert found.skipped == {"own": 1}  # though the file is read more than once
    assert len(found.samples) == 2
    assert "reply" not in repr(found)


def test_inspection_of_a_folder_without_the_public_sets(own_folder, mic):
    found = inspect(own_folder)  # beside own/ it holds MIC, and nothing else
    assert {part.source for part in found.parts} == {"own", "mic"}
    assert "diasafety" in found.absent
    assert not {"own", "mic"} & set(found.absent)
    assert {part.split: part.norms for part in found.parts if part.source == "mic"} == {"train": 4, "test": 1}
    done = CliRunner().invoke(app, ["data", "inspect", str(own_folder)])
    assert done.exit_code == 0
    assert "not there: diasafety" in done.stdout


def test_inspection_of_a_folder_of_files_alone(tmp_path):
    json_lines(tmp_path / "a.jsonl", {"turns": ["a"], "unsafe": True})
    json_lines(tmp_path / "b.jsonl", {"turns": ["b"], "unsafe": False}, {"turns": ["c"], "unsafe": False})
    assert [(part.source, part.examples) for part in inspect(tmp_path).parts] == [("a", 1), ("b", 2)]


def test_inspection_refuses_a_folder_without_data(tmp_path):
    with pytest.raises(InputError, match="expected a data folder or JSON-lines files in .*, got neither"):
        inspect(tmp_path)


@pytest.mark.parametrize(
    ("row", "examples", "twins"),
    [
        ({"turns": ["a", "b"], "unsafe": True}, 1, 0),
        ({"messages": [{"role": "user", "content": "a"}], "level": "casual"}, 1, 0),
        (
            {
                "id": "p",
                "kind": "request",
                "rule": "Ask.",
                "unsafe": {"turns": ["a"], "level": "needs_caution"},
                "safe": {"turns": ["b"]},
            },
            0,
            1,
        ),
        (
            {
                "kind": "request",
                "rule": "Ask.",
                "level": "needs_caution",
                "labels": "US",
                "turns": ["{a|b}"],
            },
            0,
            1,
        ),
    ],
)
def test_inspection_of_a_file_knows_its_kind(tmp_path, row, examples, twins):
    found = inspect(json_lines(tmp_path / "mine.jsonl", row))
    assert [(part.split, part.examples, part.twins) for part in found.parts] == [("all", examples, twins)]


def test_inspection_refuses_what_it_does_not_know(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        inspect(tmp_path / "nothing")
    with pytest.raises(InputError, match="with none of their keys"):
        inspect(json_lines(tmp_path / "x.jsonl", {"a": 1}))


def test_inspect_on_the_command_line(own_folder):
    done = CliRunner().invoke(app, ["data", "inspect", str(own_folder), "--sources", "own", "--samples", "1"])
    assert done.exit_code == 0
    assert "own" in done.stdout
    assert "75%" in done.stdout
    assert "1 broken rows skipped" in done.stdout
    assert "assistant: reply" in done.stdout
    as_json = CliRunner().invoke(
        app, ["data", "inspect", str(own_folder), "--sources", "own", "--samples", "0", "--json"]
    )
    assert json.loads(as_json.stdout)["parts"][0]["unsafe"] == 3
    assert CliRunner().invoke(app, ["data", "inspect", str(own_folder / "no")]).exit_code == 2
