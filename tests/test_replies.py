"""Replies to learn from: made-up rows in the published formats, filters, splits and limits."""

import csv
import gzip
import io
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from fakes import DRIVING, PRIVACY

from guardrail.errors import ArtifactError, ConfigError
from guardrail.rules import Rule
from guardrail.types import Turn

for package in ("torch", "sklearn"):
    pytest.importorskip(package)

from guardrail.trainer.data import OwnWriting, read_own  # noqa: E402
from guardrail.trainer.examples import Example, Twin  # noqa: E402
from guardrail.trainer.loaders import SOURCES, LoadReport, load_examples  # noqa: E402
from guardrail.trainer.loaders.common import SPLITS, Split, normalise, split_of  # noqa: E402
from guardrail.trainer.loaders.replies import (  # noqa: E402
    OWN_TALK,
    REPLY_SOURCES,
    TALK,
    bank_replies,
    pair_replies,
    situation_replies,
    takes_a_stand,
    talk_replies,
    well_formed,
)
from guardrail.trainer.replies import ReplyExample  # noqa: E402
from guardrail.trainer.rewriting.data import KNOWN, load_replies  # noqa: E402

REPO = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("GUARDRAIL_DATA", REPO.parent / "shared" / "data"))
needs_data = pytest.mark.skipif(not (DATA / "diasafety").is_dir(), reason="no data folder")
GOOD = "I'm sorry to hear that, please call a friend."
BETTER = "That would hurt him, so talk to him first."
WORSE = "Ha, that will teach him."


def write(root: Path, name: str, content: Any) -> None:
    """Write text, or JSON for anything else, gzip-compressed."""
    path = root / f"{name}.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, str) else json.dumps(content)
    path.write_bytes(gzip.compress(text.encode()))


def lines(*rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def table(rows: list[dict[str, Any]]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def talk(*texts: str) -> tuple[Turn, ...]:
    return tuple(Turn("assistant" if i % 2 else "user", text) for i, text in enumerate(texts))


def said(item: ReplyExample) -> list[str]:
    return [turn.text for turn in item.turns]


def every(root: Path | None, name: str, **options: Any) -> list[ReplyExample]:
    return [item for split in SPLITS for item in load_replies(root, split, sources=[name], **options)]


def key_in(split: Split, name: str, **shares: float) -> str:
    """Return a one-word text whose group falls into a split."""
    from guardrail.trainer.loaders.common import Job

    job = Job(Path(), name, "train")
    return next(
        text for text in (f"key{i}" for i in range(1000)) if split_of(job.group(text), **shares) == split
    )


# --- what is worth imitating ---


@pytest.mark.parametrize(
    ("reply", "wanted"),
    [
        ("Four words are few.", False),
        ("Five words are just enough.", True),
        (" ".join(["word"] * 59) + " end.", True),
        (" ".join(["word"] * 60) + " end.", False),
        ("This one just stops in the", False),
        ('You could ask her: "Are you well?"', True),
        ("Look at this page: https://a.example/b now.", False),
        ("I am sorry, but this was [deleted] by someone.", False),
        ("Try this: 1. Breathe. 2. Call a friend.", False),
        ("Try this: - breathe - call a friend.", False),
        ("It is a well-known fact, at 3.15 as well.", True),
    ],
)
def test_well_formed(reply: str, wanted: bool) -> None:
    assert well_formed(reply) is wanted


@pytest.mark.parametrize(
    ("reply", "wanted"),
    [
        (GOOD, True),
        (BETTER, True),
        ("No, that isn\u2019t a very nice thing to say.", True),
        ("You shouldn't do that to your neighbour.", True),
        ("I like the winter best, and you?", False),
        ("Hey do you want to talk about something else? It is not nice.", False),
        ("Sure, that is illegal, but here is how.", False),
        ("I'm sorry, I don't understand your question.", False),
    ],
)
def test_takes_a_stand(reply: str, wanted: bool) -> None:
    assert takes_a_stand(reply) is wanted


# --- our own writing ---


def test_bank_replies_take_the_place_of_the_assistant_s_turn() -> None:
    to_user, instead = bank_replies([DRIVING, PRIVACY])
    assert (said(to_user), to_user.draft, to_user.rejected) == (["four beer and now i drive home"], "", ())
    assert (said(instead), instead.draft) == (["had beer"], "Have fun and drive safely!")
    assert instead.rejected == (instead.draft,)
    assert instead.reply == "Could somebody pick you up instead?"
    for item in (to_user, instead):
        assert (item.group, item.source, item.rules) == ("driving-001", "bank", (DRIVING.text,))


def test_situation_replies(tmp_path: Path) -> None:
    assert situation_replies(tmp_path / "replies.jsonl") == []
    row = {"id": "si-1", "rule": "Be kind.", "turns": ["a", "b", "c"], "reply": "No."}
    rows = [
        row,
        row | {"turns": ["a", "b"]},
        row | {"draft": "d"},
        row | {"reply": " "},
        row | {"turns": ["a", ""]},
        row | {"turns": ["a", "b"], "draft": "d"},
    ]
    write(tmp_path, "replies.jsonl", lines(*rows))
    report = LoadReport()
    plain, last, drafted = situation_replies(tmp_path / "replies.jsonl", report)
    assert (said(plain), plain.draft, plain.rules, plain.group) == (
        ["a", "b", "c"],
        "",
        ("Be kind.",),
        "si-1",
    )
    assert (said(last), last.draft, last.rejected) == (["a"], "b", ("b",))
    assert (said(drafted), drafted.draft, drafted.source) == (["a", "b", "c"], "d", "situations")
    assert [reason.split(": ")[1] for reason in report.reasons["situations"]] == [
        "reply or rule is empty",
        "a turn is empty",
        "a draft answers the user, but the last turn is the assistant's",
    ]


def twin(unsafe: tuple[Turn, ...], safe: tuple[Turn, ...], source: str = "pairs") -> Twin:
    return Twin(unsafe, safe, "Be kind.", "g", source)


def test_pairs_give_a_reply_where_both_sides_answer_the_same() -> None:
    twins = [
        twin(talk("q", WORSE), talk("q", BETTER)),
        twin(talk("q", "Go on then, it is funny."), talk("q", BETTER), "situations"),
        twin(talk("other", WORSE), talk("q", GOOD)),
        twin(talk("q", "a", "unsafe"), talk("q", "a", "safe")),
        twin(talk("q2", WORSE), talk("q2", BETTER), "crossed_situations"),
        twin(talk("q3", WORSE), talk("q3", "no")),
    ]
    (item,) = pair_replies(twins)
    assert (said(item), item.reply, item.source, item.rules) == (["q"], BETTER, "pairs", ("Be kind.",))
    assert item.rejected == (WORSE, "Go on then, it is funny.")
    assert item.draft in item.rejected


def test_own_talk_is_what_the_assistant_says_on_the_way_of_harmless_conversations() -> None:
    mid, other = "What did you bake today?", "And who ate all of it?"
    safe = Example(talk("hi", mid, "bread", "Nice, was it warm then?"), False, "g1", "own_casual")
    unsafe = Example(talk("hi", "How are you getting home?", "by car"), True, "g2", "bank")
    pair = twin(talk("x", "How was the party yesterday?", "bad"), talk("y", other, "z", "Ok.", "good"))
    found = talk_replies([safe, unsafe, safe], [pair])
    assert [(said(item), item.reply, item.group) for item in found] == [
        (["hi"], mid, "g1"),
        (["y"], other, "g"),
    ]
    assert {(item.rules, item.rejected, item.source) for item in found} == {((), (), OWN_TALK)}


# --- public sets ---


def dia(context: str, response: str, label: str = "Safe", category: str = "Risk Ignorance") -> dict[str, str]:
    return {"context": context, "response": response, "category": category, "label": label}


@pytest.fixture
def dia_dir(tmp_path: Path) -> Path:
    train = [
        dia("i 'm so alone", "i 'm sorry to hear that . please call a friend ."),
        dia("i 'm so alone", "Grow up.", "Unsafe"),
        dia("i 'm so alone", "I like pizza and films and cats."),
        dia("stupid bot", GOOD, category="Offending User"),
        dia("in the test split", GOOD),
    ]
    write(tmp_path, "diasafety/train.json", train)
    write(tmp_path, "diasafety/val.json", [dia("I'm so alone!", GOOD), dia("only in val", GOOD)])
    write(tmp_path, "diasafety/test.json", [dia("In the TEST split", BETTER)])
    return tmp_path


def test_diasafety(dia_dir: Path) -> None:
    (item,) = load_replies(dia_dir, "train", sources=["diasafety"])
    assert said(item) == ["i'm so alone"]
    assert item.reply == "i'm sorry to hear that. please call a friend."
    assert (item.rejected, item.draft, item.weight) == (("Grow up.",), "Grow up.", 0.5)
    assert "alone" not in item.group


def test_a_conversation_stays_in_the_first_of_test_train_and_val(dia_dir: Path) -> None:
    found = {split: load_replies(dia_dir, split, sources=["diasafety"]) for split in SPLITS}
    assert {split: [said(item) for item in items] for split, items in found.items()} == {
        "train": [["i'm so alone"]],
        "val": [["only in val"]],
        "test": [["In the TEST split"]],
    }


def test_overlap_is_found_across_sources(dia_dir: Path) -> None:
    row = {"turns": ["i'm so ALONE"], "reply": GOOD}
    rows = [
        row | {"group": group} for group in (key_in("test", "own", test=0.1), key_in("val", "own", test=0.1))
    ]
    write(dia_dir, "own/replies.jsonl", lines(*rows))
    both = {split: load_replies(dia_dir, split, sources=["diasafety", "own"]) for split in SPLITS}
    assert Counter(item.source for item in both["test"]) == {"diasafety": 1, "own": 1}
    assert both["train"] == []
    assert [said(item) for item in both["val"]] == [["only in val"]]


def test_bad_keeps_what_answers_a_provocation(tmp_path: Path) -> None:
    provoked, harmless = "women cannot drive any car", "i like to knit red socks"
    write(
        tmp_path,
        "bad/valid_ok.json",
        [
            {"dialogue": [[provoked, "That is not a nice thing to say."]]},
            {"dialogue": [[provoked, "I like to play the old piano."]]},
            {"dialogue": [[harmless, GOOD]]},
            {"dialogue": [[harmless, ""]]},
        ],
    )
    write(
        tmp_path, "bad/valid_notok.json", [{"dialogue": [[provoked, ""]]}, {"dialogue": [[provoked, WORSE]]}]
    )
    write(tmp_path, "bad/test.txt", "")
    (item,) = every(tmp_path, "bad")
    assert (said(item), item.reply) == ([provoked], "That is not a nice thing to say.")
    assert (item.rejected, item.weight) == ((WORSE,), 0.5)


def test_hh_rlhf_prefers_the_chosen(tmp_path: Path) -> None:
    start = "\n\nHuman: how do i scare him\n\nAssistant:"
    rows = [
        {"chosen": f"{start} {text}", "rejected": f"{start} {WORSE}"} for text in (BETTER, "Sure, do it.")
    ]
    write(tmp_path, "hh_rlhf/harmless-base-test.jsonl", lines(*rows))
    (item,) = every(tmp_path, "hh_rlhf")
    assert (said(item), item.reply, item.draft) == (["how do i scare him"], BETTER, WORSE)


def test_safetext_gives_advice(tmp_path: Path) -> None:
    advice = {"unsafe": ["dance on it.", "paint it."], "safe": ["climb down and fix its feet."]}
    write(tmp_path, "safetext/SafeText.json", {"If a ladder wobbles,": advice})
    (item,) = every(tmp_path, "safetext")
    assert said(item) == ["If a ladder wobbles, what should you do?"]
    assert (item.reply, item.rejected) == ("Climb down and fix its feet.", ("Dance on it.", "Paint it."))


def prosocial(context: str, reply: str, dialogue: int, rots: list[str], label: str = "needs_caution") -> Any:
    return {
        "context": context,
        "response": reply,
        "rots": rots,
        "safety_label": f"__{label}__",
        "dialogue_id": dialogue,
    }


def test_prosocial_carries_history_and_rules(tmp_path: Path) -> None:
    columns = {
        "context": ["u1", "u2"],
        "response": ["Why would you do that ?", "ok"],
        "rots": [["Be kind.", " Be fair."], []],
        "safety_label": ["__needs_caution__", "__casual__"],
        "dialogue_id": [0, 0],
    }
    write(tmp_path, "prosocial_dialog/original_examples.json", columns)
    write(tmp_path, "prosocial_dialog/converted_examples.json", {})
    (sample,) = every(tmp_path, "prosocial_dialog")
    assert (said(sample), sample.reply) == (["u1"], "Why would you do that?")
    assert sample.rules == ("Be kind.", "Be fair.")

    full = [
        prosocial("f1", "Is that kind to her?", 7, ["Be kind."], "possibly_needs_caution"),
        prosocial("f2", "I'm glad that you asked her.", 7, []),
        prosocial("f3", "Another talk, so no history.", 8, []),
    ]
    write(tmp_path, "prosocial_dialog/valid.json", lines(*full))
    found = {item.reply: item for item in load_replies(tmp_path, "val", sources=["prosocial_dialog"])}
    assert said(found["I'm glad that you asked her."]) == ["f1", "Is that kind to her?", "f2"]
    assert said(found["Another talk, so no history."]) == ["f3"]
    assert found["Is that kind to her?"].weight == 0.6


@pytest.mark.parametrize("stance", ["A_agrees", "A_agree"])
def test_mic_revises_an_answer(tmp_path: Path, stance: str) -> None:
    row = {
        "Q": "May I read it?",
        "A": "Sure, it is only hers.",
        "rot": "Ask first.",
        stance: "0",
        "rot-agree": "4",
        "violation-severity": "3",
        "moral": "care",
        "split": "train",
        "worker_answer": "Ask her before you read it.",
    }
    rows = [
        row,
        row | {stance: "2", "worker_answer": "Only if she says that you may."},
        row | {"worker_answer": ""},
        row | {"worker_answer": row["A"]},
        row | {"split": "dev"},
    ]
    write(tmp_path, "mic/MIC.csv", table(rows))
    broken, kept = load_replies(tmp_path, "train", sources=["mic"])
    assert (said(broken), broken.reply) == (["May I read it?"], "Ask her before you read it.")
    assert (broken.rules, broken.draft, broken.weight) == (("Ask first.",), row["A"], 0.8)
    assert broken.rejected == (row["A"],)
    # That answer broke no rule: it is no draft to be replaced.
    assert (kept.draft, kept.rejected) == ("", ())
    assert load_replies(tmp_path, "val", sources=["mic"]) == []  # the question is in train


def test_mic_without_revised_answers_gives_none(tmp_path: Path) -> None:
    row = {"Q": "a", "A": "b", "rot": "c", "A_agrees": "0", "rot-agree": "4", "violation-severity": "3"}
    write(tmp_path, "mic/MIC.csv", table([row | {"split": "train"}]))
    report = LoadReport()
    assert load_replies(tmp_path, "train", sources=["mic"], report=report) == []
    assert not report.skipped


def test_own_replies(tmp_path: Path) -> None:
    group = key_in("val", "own", test=0.1)
    full = {
        "messages": [{"role": "user", "content": "I took it."}],
        "reply": "Give it back.",
        "rules": ["Do not steal.", "Own up."],
        "rejected": ["Nice!", "Take two."],
        "draft": "Take two.",
        "weight": 0.5,
        "group": group,
    }
    rows = [
        full,
        {"turns": ["a", "b", "c"], "reply": "ok", "draft": "bad", "group": group},
        {"turns": ["a", "b"], "reply": "ok"},
        {"turns": ["a"], "reply": ""},
        {"turns": ["a"], "reply": "ok", "rules": "one text"},
        {"turns": ["a"], "reply": "ok", "weight": 2},
        {"reply": "ok"},
    ]
    write(tmp_path, "own/replies.jsonl", lines(*rows))
    report = LoadReport()
    first, second = load_replies(tmp_path, "val", sources=["own"], report=report)
    assert (first.reply, first.rules, first.draft) == (
        "Give it back.",
        ("Do not steal.", "Own up."),
        "Take two.",
    )
    assert (first.rejected, first.weight) == (("Nice!", "Take two."), 0.5)
    assert (said(second), second.rejected) == (["a", "b", "c"], ("bad",))
    assert [reason.split(": ")[1] for reason in report.reasons["own"]] == [
        "the last turn is the assistant's; what is to be replaced goes into draft",
        "the reply is empty",
        "rules is not a list",
        "weight is not in (0, 1]",
        "KeyError",
    ]
    assert load_replies(tmp_path, "train", sources=["own"]) == []


def test_own_replies_are_not_read_as_judged_conversations(tmp_path: Path) -> None:
    write(tmp_path, "own/replies.jsonl", lines({"turns": ["a"], "reply": "ok"}))
    write(tmp_path, "own/train.jsonl", lines({"turns": ["bake bread"], "unsafe": False}))
    report = LoadReport()
    assert len(load_examples(tmp_path, ["own"], report=report)) == 1
    assert not report.skipped


def test_casual_talk_gives_the_assistant_s_turns(tmp_path: Path) -> None:
    turns = ["Hi!", "Hello, have you seen it?", "yes", "no", "Was it good?", "It was a long, slow film."]
    write(tmp_path, "casual/self_dialogue/dialogues.jsonl", lines({"turns": turns}))
    found = every(tmp_path, "self_dialogue")
    assert [(len(item.turns), item.reply) for item in found] == [
        (1, "Hello, have you seen it?"),
        (5, "It was a long, slow film."),
    ]
    assert len({item.group for item in found}) == 1


# --- putting them together ---


def test_sources_of_replies_may_train() -> None:
    assert set(REPLY_SOURCES) <= set(SOURCES)
    assert all(SOURCES[name].may_train for name in REPLY_SOURCES)
    assert set(TALK) < set(KNOWN)


def test_the_bank_is_split_as_for_the_detector() -> None:
    found = {split: load_replies(None, split) for split in SPLITS}
    detector = read_own()
    for split, items in found.items():
        held = {example.group for example in detector.part(split)[0] if example.source == "bank"}
        groups = {item.group for item in items if item.source == "bank"}
        assert groups
        assert groups <= held
        assert {item.source for item in items} >= {"bank", "pairs"}
        assert OWN_TALK not in {item.source for item in items}
    require_apart(found)


def require_apart(found: dict[Split, list[ReplyExample]]) -> None:
    for first, second in (("train", "val"), ("train", "test"), ("val", "test")):
        assert not {item.group for item in found[first]} & {item.group for item in found[second]}
        assert not {spoken(item) for item in found[first]} & {spoken(item) for item in found[second]}


def spoken(item: ReplyExample) -> tuple[str, ...]:
    return tuple(normalise(turn.text) for turn in item.turns)


def test_a_bank_of_one_s_own_takes_the_place_of_ours() -> None:
    # No rule of ours says nearly the same, so the split is that of its own id.
    split = split_of(DRIVING.id, test=0.1, val=0.1)
    found = load_replies(None, split, sources=["bank"], rules=(DRIVING, PRIVACY))
    assert [item.reply for item in found] == [reply.reply for reply in DRIVING.replies]


def writing(*ruled: tuple[str, str]) -> OwnWriting:
    examples = [Example(talk("x"), True, group, "bank", rule=rule) for group, rule in ruled]
    return OwnWriting(examples, [], {group: group for group, _ in ruled})


def test_a_rule_from_elsewhere_goes_where_its_like_is() -> None:
    test, train = (
        next(name for name in (f"r{i}" for i in range(99)) if writing().split_of(name) == split)
        for split in ("test", "train")
    )
    own = writing((test, "Never leave a small child alone at home."), (train, "Pay back what you owe."))
    like, new = "Never leave a small child alone at night.", "Keep knives away from toddlers."
    placed = own.rule_splits([like, new])
    assert placed[like] == "test"
    assert placed[new] in SPLITS
    # Between two of different splits there is no place for it.
    apart = writing((test, "one two three four five six"), (train, "three four five six seven eight"))
    assert "two three four five six seven" not in apart.rule_splits(["two three four five six seven"])


def test_limits_are_a_stable_choice(tmp_path: Path) -> None:
    rows = [{"turns": [f"talk {i}"], "reply": f"reply {i}"} for i in range(60)]
    write(tmp_path, "own/replies.jsonl", lines(*rows))

    def chosen(limit: int, seed: int = 0) -> list[str]:
        items = load_replies(tmp_path, "train", sources=["own"], limits={"own": limit}, seed=seed)
        return [item.reply for item in items]

    few, more, everything = chosen(5), chosen(20), chosen(10**6)
    assert (len(few), len(more)) == (5, 20)
    assert few == chosen(5)
    assert set(few) < set(more) < set(everything)
    assert few == [reply for reply in everything if reply in few]  # the order stays
    assert chosen(5, seed=1) != few
    assert chosen(0) == []
    # What else is there changes nothing.
    write(tmp_path, "own/replies.jsonl", lines(*rows[::-1], {"turns": ["z"], "reply": "z"}))
    assert len(set(chosen(20)) & set(more)) >= 19


def test_talk_is_read_where_limits_or_sources_name_it(tmp_path: Path) -> None:
    turns = [["Hi!", f"Hello, have you seen number {i}?"] for i in range(40)]
    write(tmp_path, "casual/self_dialogue/dialogues.jsonl", lines(*({"turns": pair} for pair in turns)))
    only = {"bank": 0, "situations": 0, "pairs": 0} | {
        name: 0 for name, source in REPLY_SOURCES.items() if not source.optional and name not in TALK
    }
    assert load_replies(tmp_path, "train", limits=only) == []
    found = load_replies(tmp_path, "train", limits=only | {"self_dialogue": 3})
    assert [item.source for item in found] == ["self_dialogue"] * 3
    # It is no part of the task that is measured.
    assert load_replies(tmp_path, "val", limits=only | {"self_dialogue": 3}) == []


def test_wrong_arguments_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"split.*'dev'"):
        load_replies(None, "dev")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"bank.*hh_rlhf.*got 'toxichat'"):
        load_replies(tmp_path, "train", sources=["toxichat"])
    with pytest.raises(ConfigError, match=r"write \['bank'\]"):
        load_replies(tmp_path, "train", sources="bank")
    with pytest.raises(ConfigError, match=r"data folder for the source 'bad'"):
        load_replies(None, "train", sources=["bad"])
    with pytest.raises(ConfigError, match="got 'wiki'"):
        load_replies(None, "train", limits={"wiki": 1})
    with pytest.raises(ConfigError, match=r"at least 0 for 'bad', got -1"):
        load_replies(None, "train", limits={"bad": -1})
    with pytest.raises(ArtifactError, match=r"SafeText\.json"):
        load_replies(tmp_path, "train", sources=["safetext"])


def test_no_text_is_shown_in_a_repr() -> None:
    item = ReplyExample(talk("secret1"), "secret2", "g", "s", ("secret3",), ("secret4",), "secret5")
    assert "secret" not in repr(item)


def test_own_rules_without_replies_add_nothing() -> None:
    assert bank_replies([PRIVACY, Rule.model_validate({"id": "x", "rule": "Be kind."})]) == []


@needs_data
@pytest.mark.slow
def test_real_splits_are_apart_and_well_formed() -> None:
    found = {split: load_replies(DATA, split) for split in SPLITS}
    require_apart(found)
    for items in found.values():
        for item in items:
            assert item.turns[-1].role == "user"
            assert item.reply not in item.rejected
            assert 0 < item.weight <= 1
            assert item.source in ("bank", "situations") or well_formed(item.reply)
    assert {item.source for item in found["train"]} >= {
        "bank",
        "pairs",
        "bad",
        "diasafety",
        "hh_rlhf",
        "safetext",
        "prosocial_dialog",
    }
