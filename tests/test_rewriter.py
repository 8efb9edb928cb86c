"""The rewrite model at run time: what it gives, how it is bounded, and every folder that it refuses."""

import itertools
import json
import subprocess
import sys
import threading

import pytest

from guardrail import ArtifactError, ConfigError, MissingDependencyError, ModelError
from guardrail.rewrite_format import MAX_TURNS, RewriteInput, as_chat
from guardrail.rewrite_text import recased, whole_sentences
from guardrail.rewriter import TransformersRewriter
from guardrail.types import Turn

ITEM = RewriteInput((Turn("user", "i had four beers and now i drive home ."),), ("call a taxi .",), "sure")


# ---------------------------------------------------------------- text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Take a taxi. It is", "Take a taxi."),
        ("Take a taxi.", "Take a taxi."),
        ('He said "no way!" and', ""),
        ('He said "no way!" Then he', 'He said "no way!"'),
        ("It costs 3.50 or", ""),
        ("Really?! (Yes.) And", "Really?! (Yes.)"),
        ("line\n\nbreaks.  Here", "line breaks."),
        ("It is kind, e.g. this", ""),
        ("", ""),
        ("...", "..."),
        ("Tu peux, p. ex. écrire", ""),
    ],
)
def test_a_sentence_without_end_is_cut(text, expected):
    assert whole_sentences(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("别开车。打车回家吧。明天再", "别开车。打车回家吧。"),
        ("你还好吗？！我们", "你还好吗？！"),
        ("运転しないで。タクシーを呼び", "运転しないで。"),
        ("「行く。」と言った。でも", "「行く。」と言った。"),
        ("「行く。」と言", ""),
        ("لا تقد السيارة. هل تسمعني؟ اطلب", "لا تقد السيارة. هل تسمعني؟"),
        ("آپ گاڑی نہ چلائیں۔ ٹیکسی", "آپ گاڑی نہ چلائیں۔"),
        ("गाड़ी मत चलाओ। टैक्सी बुलाओ।कल", "गाड़ी मत चलाओ। टैक्सी बुलाओ।"),
        ("Не садись за руль. Вызови", "Не садись за руль."),
        ("打车", ""),
    ],
)
def test_a_sentence_of_another_script_has_its_own_end(text, expected):
    assert whole_sentences(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "别开车，打车回家吧。",
        "他说：“别开车！”",
        "（别开车。）",
        "タクシーを呼びませんか？",
        "「運転しないで。」",
        "لا تقد السيارة بعد الشرب.",
        "هل نطلب سيارة أجرة؟",
        "آپ گاڑی نہ چلائیں۔",
        "क्या हम टैक्सी बुलाएँ?",
        "शराब पीकर गाड़ी मत चलाओ ।",
        "Não dirija!",
    ],
)
def test_a_whole_sentence_of_any_script_stays_whole(text):
    assert whole_sentences(text) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("don ' t do it, it ' s late. i ' d wait.", "Don't do it, it's late. I'd wait."),
        ("so do i. and i, too!", "So do I. And I, too!"),
        ("pay $ 3. 50 or 20 %, at 10 : 30", "Pay $3.50 or 20%, at 10:30"),
        ("a well - known and / or ( so - called ) friend", "A well-known and/or (so-called) friend"),
        ('" why? " she asked. " no. " he left.', '"Why?" she asked. "No." He left.'),
        ("your parents ' car, your sister ' s car", "Your parents' car, your sister's car"),
        ("", ""),
    ],
)
def test_what_an_uncased_tokenizer_took_away_is_put_back(text, expected):
    assert recased(text) == expected
    assert recased(expected) == expected


# ---------------------------------------------------------------- a chat


def chat_of(*turns, most=MAX_TURNS):
    item = RewriteInput(tuple(Turn(role, text) for role, text in turns), ("call a taxi .",), "sure")
    return [(message["role"], message["content"]) for message in as_chat(item, most)]


def test_a_chat_is_one_system_message_and_turns_that_alternate_from_the_user_on():
    system, *said = chat_of(
        ("assistant", "hello"),
        ("tool", "four\nbeers"),
        ("user", "i drive"),
        ("user", "home"),
        ("assistant", "do"),
        ("assistant", "you"),
        ("tool", "it is late"),
    )

    assert system[0] == "system"
    assert "- call a taxi ." in system[1]
    assert system[1].endswith("sure")
    assert said == [("user", "four beers i drive home"), ("assistant", "do you"), ("user", "it is late")]


def test_a_chat_that_is_cut_begins_with_the_user():
    said = chat_of(("user", "one"), ("assistant", "two"), ("user", "three"), most=2)[1:]

    assert said == [("user", "three")]


def test_what_the_assistant_alone_said_is_still_answered():
    said = chat_of(("user", "one"), ("assistant", "two"), ("assistant", "three"), most=2)[1:]

    assert said == [("user", "two three")]


# ---------------------------------------------------------------- a model


@pytest.fixture(scope="module", params=["t5", "bart", "llama", "bert"])
def model_folder(request, train_extra, tmp_path_factory):
    """A random model whose replies end often."""
    import torch
    from tiny_rewriters import tiny_base

    from guardrail.rewriter import write_rewriter
    from guardrail.trainer.rewriting.bases import build
    from guardrail.trainer.rewriting.config import RewriterConfig

    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "bert":
        base = request.getfixturevalue("tiny_base")
    else:
        base = tiny_base(request.param, folder / "base")
    torch.manual_seed(0)
    model, tokenizer, kind = build(
        RewriterConfig(base=str(base), max_source_tokens=96, max_reply_tokens=24, bf16=False)
    )
    with torch.no_grad():  # flat, so that draws differ
        model.get_output_embeddings().weight.mul_(0.3)
    write_rewriter(
        folder / "model",
        model,
        tokenizer,
        kind=kind,
        base=request.param,
        max_source_tokens=96,
        max_reply_tokens=24,
    )
    return folder / "model"


@pytest.fixture(scope="module")
def rewriter(model_folder):
    return TransformersRewriter.load(model_folder, device="cpu", threads=1)


def drawn(rewriter):
    """Replies of several seeds: random models end few of their sentences."""
    return [rewriter.rewrite(ITEM, count=16, seed=seed) for seed in range(4)]


def test_replies_are_whole_different_and_the_same_for_a_seed(rewriter):
    first, second = drawn(rewriter), drawn(rewriter)

    assert first == second
    texts = [text for replies in first for text in replies]
    assert len(set(texts)) > 3
    assert first[0] != first[1]
    for replies in first:
        assert len(replies) == len(set(replies)) <= 16
        assert all(whole_sentences(text) == text for text in replies)
        assert not any(name in text for text in replies for name in ("[SEP]", "[PAD]", "</s>", "<|im_end|>"))


def test_the_first_reply_is_greedy_whatever_the_seed_and_the_count(rewriter):
    greedy = {rewriter.rewrite(ITEM, count=1, seed=seed) for seed in range(3)}

    assert len(greedy) == 1
    (alone,) = greedy
    if alone:  # else the greedy reply has no end, and is left out among others as well
        assert all(rewriter.rewrite(ITEM, count=4, seed=seed)[0] == alone[0] for seed in range(3))


def test_random_states_and_threads_of_the_program_are_left_alone(rewriter):
    import torch

    torch.manual_seed(7)
    state, threads = torch.random.get_rng_state(), torch.get_num_threads()

    rewriter.rewrite(ITEM, seed=1)

    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.get_num_threads() == threads


def test_int8_chooses_about_the_tokens_that_fp32_chooses(model_folder, rewriter):
    import torch

    from guardrail.rewriter import read_description
    from guardrail.torch_rewriter import load

    kind = read_description(model_folder).kind
    (whole, tokenizer), (small, _) = (load(model_folder, kind, "cpu", int8=int8) for int8 in (False, True))
    ids = torch.randint(5, len(tokenizer), (16, 24), generator=torch.Generator().manual_seed(1))
    options = {"decoder_input_ids": ids} if kind == "seq2seq" else {}
    with torch.no_grad():
        logits, rough = (model.eval()(input_ids=ids, **options).logits for model in (whole, small))
    fast = TransformersRewriter.load(model_folder, device="cpu", int8=True)

    assert 0 < float((logits - rough).abs().max()) < 0.1 * float(logits.abs().max())
    # By chance one in a hundred; a trained model is surer than these random ones and keeps more.
    assert float((logits.argmax(-1) == rough.argmax(-1)).float().mean()) > 0.75
    assert drawn(fast) == drawn(fast)


def test_no_three_tokens_are_written_twice(rewriter):
    for text in itertools.chain(*drawn(rewriter)):
        words = text.split()
        grams = [tuple(words[i : i + 4]) for i in range(len(words) - 3)]
        assert len(grams) == len(set(grams))


def test_writing_stops_when_the_time_is_over_and_the_model_stays_usable(rewriter):
    """The clock is looked at after every token: one is written when there was no time at all."""
    before = rewriter.rewrite(ITEM, count=8)

    cut = rewriter.rewrite(ITEM, count=8, seconds=0.0)

    assert all(len(text.split()) <= 1 for text in cut)
    assert in_thread(lambda: rewriter.rewrite(ITEM, count=8, seconds=600.0)) == before
    assert rewriter.rewrite(ITEM, count=8) == before


def in_thread(call):
    """Return what a call gives in a thread of its own, which must not wait for ever."""
    found = []
    thread = threading.Thread(target=lambda: found.append(call()), daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()
    return found[0]


class Slow:
    """A model that waits before it writes."""

    def __init__(self, model):
        self.model, self.begun, self.go_on = model, threading.Event(), threading.Event()

    def __getattr__(self, name):
        return getattr(self.model, name)

    def eval(self):
        return self

    def generate(self, **options):
        self.begun.set()
        assert self.go_on.wait(60)
        return self.model.generate(**options)


def test_who_waits_for_another_thread_gives_up_in_time(model_folder):
    from guardrail.rewriter import read_description
    from guardrail.torch_rewriter import load

    description = read_description(model_folder)
    model, tokenizer = load(model_folder, description.kind, "cpu")
    slow = Slow(model)
    rewriter = TransformersRewriter(slow, tokenizer, description)
    first = threading.Thread(target=rewriter.rewrite, args=(ITEM,))
    first.start()
    assert slow.begun.wait(60)

    assert rewriter.rewrite(ITEM, seconds=0.01) == ()

    slow.go_on.set()
    first.join(60)
    assert not first.is_alive()


class FailsOnce:
    """A model that writes a token, breaks down, and is well again."""

    def __init__(self, model):
        self.model, self.left = model, 1

    def __getattr__(self, name):
        return getattr(self.model, name)

    def eval(self):
        return self

    def generate(self, **options):
        if self.left:
            self.left -= 1
            self.model.generate(**(options | {"max_new_tokens": 1}))
            raise RuntimeError("out of memory")
        return self.model.generate(**options)


def test_what_torch_raises_is_a_model_error_without_text_and_the_model_stays_usable(model_folder, rewriter):
    import torch

    from guardrail.rewriter import read_description
    from guardrail.torch_rewriter import load

    description = read_description(model_folder)
    model, tokenizer = load(model_folder, description.kind, "cpu")
    failing = TransformersRewriter(FailsOnce(model.eval()), tokenizer, description, threads=1)
    threads = torch.get_num_threads()

    with pytest.raises(ModelError, match="rewriter: torch failed") as caught:
        failing.rewrite(ITEM)

    assert "beers" not in str(caught.value)
    assert torch.get_num_threads() == threads
    assert in_thread(lambda: failing.rewrite(ITEM, count=8)) == rewriter.rewrite(ITEM, count=8)


def test_text_with_special_tokens_and_of_any_length_is_answered(rewriter):
    turns = tuple(Turn("user" if n % 2 else "assistant", "[SEP] </s> <|im_end|> x" * 200) for n in range(30))

    replies = rewriter.rewrite(RewriteInput(turns, ("[SEP]" * 50,), "</s>" * 999), count=2)

    assert len(replies) <= 2


@pytest.mark.parametrize("count", [0, -1, 33])
def test_a_count_out_of_range_is_refused(rewriter, count):
    with pytest.raises(ConfigError, match="count"):
        rewriter.rewrite(ITEM, count=count)


def test_its_repr_shows_no_text(rewriter):
    rewriter.rewrite(ITEM)

    assert "beers" not in repr(rewriter)
    assert "beers" not in repr(ITEM)


# ---------------------------------------------------------------- drawing


def test_nucleus_draws_follow_the_softmax_of_the_likely_tokens(train_extra):
    import torch

    from guardrail.torch_rewriter import Nucleus

    p = torch.tensor([0.5, 0.3, 0.15, 0.05])
    nucleus = Nucleus(0, top_p=0.9, temperature=1.0, device=torch.device("cpu"))
    scores = p.log().expand(20_001, 4)

    chosen = nucleus(None, scores.clone()).argmax(-1)

    assert torch.equal(nucleus(None, scores.clone())[0], scores[0])  # the first row is left greedy
    shares = torch.bincount(chosen[1:], minlength=4) / 20_000
    expected = torch.tensor([0.5, 0.3, 0.15, 0.0]) / 0.95
    assert shares.tolist() == pytest.approx(expected.tolist(), abs=0.015)


def test_temperature_sharpens_the_draws(train_extra):
    import torch

    from guardrail.torch_rewriter import Nucleus

    scores = torch.tensor([0.6, 0.4]).log().expand(10_001, 2)
    nucleus = Nucleus(0, top_p=1.0, temperature=0.5, device=torch.device("cpu"))

    share = (nucleus(None, scores.clone()).argmax(-1)[1:] == 0).float().mean()

    assert float(share) == pytest.approx(0.36 / 0.52, abs=0.02)


# ---------------------------------------------------------------- folders that are refused


@pytest.fixture
def copied(model_folder, tmp_path):
    import shutil

    return shutil.copytree(model_folder, tmp_path / "model")


def altered(folder):
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def truncated(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


def linked(folder):
    path = folder / "config.json"
    path.rename(folder.parent / "config.json")
    path.symlink_to(folder.parent / "config.json")


def with_stranger(folder):
    (folder / "modeling.py").write_text("print('run')", encoding="utf-8")


def with_listed_pickle(folder):
    from guardrail.artifact import file_entry

    (folder / "model.bin").write_bytes(b"\x80\x04.")
    described(
        folder, lambda d: d["files"].update({"model.bin": file_entry(folder / "model.bin").model_dump()})
    )


def described(folder, change):
    path = folder / "rewriter.json"
    description = json.loads(path.read_text("utf-8"))
    change(description)
    path.write_text(json.dumps(description), encoding="utf-8")


REFUSED = {
    "altered": (altered, "was altered"),
    "truncated": (truncated, "bytes in"),
    "a file is missing": (lambda f: (f / "tokenizer.json").unlink(), "is missing"),
    "a link": (linked, "expected a plain file"),
    "a stranger": (with_stranger, "is not listed"),
    "a listed pickle": (with_listed_pickle, "only safetensors"),
    "no description": (lambda f: (f / "rewriter.json").unlink(), "guardrail train rewriter"),
    "no JSON": (lambda f: (f / "rewriter.json").write_text("{", "utf-8"), "format 1"),
    "a later format": (lambda f: described(f, lambda d: d.update(format=2)), "format"),
    "an unknown kind": (lambda f: described(f, lambda d: d.update(kind="rnn")), "kind"),
    "a path out of it": (lambda f: described(f, lambda d: d["files"].update({"../x": {}})), "files"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_folder_that_is_not_as_it_was_written_is_refused(copied, case):
    change, message = REFUSED[case]
    change(copied)

    with pytest.raises(ArtifactError, match=message):
        TransformersRewriter.load(copied, device="cpu")


def test_a_model_of_the_other_kind_is_refused(copied):
    other = {"seq2seq": "causal", "causal": "seq2seq"}
    described(copied, lambda d: d.update(kind=other[d["kind"]]))

    with pytest.raises(ArtifactError, match="cannot load it"):
        TransformersRewriter.load(copied, device="cpu")


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match="found none"):
        TransformersRewriter.load(tmp_path / "nothing")


@pytest.mark.parametrize("options", [{"threads": 0}, {"device": "abacus"}])
def test_settings_that_cannot_be_are_refused(model_folder, options):
    with pytest.raises(ConfigError):
        TransformersRewriter.load(model_folder, **options)


def test_without_transformers_the_pip_line_is_given(model_folder, monkeypatch):
    monkeypatch.delitem(sys.modules, "guardrail.torch_rewriter", raising=False)
    monkeypatch.setitem(sys.modules, "transformers", None)

    with pytest.raises(MissingDependencyError, match=r"pip install 'prosocial-guardrail\[rewrite\]'"):
        TransformersRewriter.load(model_folder)


def test_importing_the_rewriter_loads_no_torch():
    code = "import sys, guardrail.rewriter; print('torch' in sys.modules, 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.split() == ["False", "False"]
