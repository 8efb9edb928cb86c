"""The command line: `CliRunner` for the answers, subprocesses for what a shell sees."""

import json
import os
import signal
import subprocess
import sys
from importlib import metadata

import pytest
from fakes import DRIVING, PRIVACY, SAFE, UNSAFE, BrokenEncoder, many_rules
from typer.testing import CliRunner

from guardrail import Guardrail
from guardrail.cli import app
from guardrail.cli.batch import CHUNK
from guardrail.rules import load_bank, read_rules

NEW_RULE = "You shouldn't feed chocolate to your dog."
SECRET = "zanzibar"
COMMANDS = (
    (),
    ("check",),
    ("rules",),
    ("rules", "list"),
    ("rules", "search"),
    ("rules", "add"),
    ("rules", "validate"),
    ("train",),
    ("train", "encoder"),
    ("train", "export"),
    ("train", "calibrate"),
    ("train", "rewriter"),
    ("train", "relevance"),
    ("eval",),
    ("version",),
)


def run(*args, stdin=None):
    return CliRunner().invoke(app, [str(arg) for arg in args], input=stdin)


def shell(*args, code="from guardrail.cli import main; main()", **options):
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **options)


def start(*args, **options):
    command = [sys.executable, "-c", "from guardrail.cli import main; main()", *map(str, args)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def only_error(result):
    """Return the one line on stderr of a run that printed nothing else."""
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    return line


@pytest.fixture
def check(tiny_folder):
    return lambda *args, stdin=None: run("check", "--model", tiny_folder, *args, stdin=stdin)


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


# Help, versions, imports


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command):
    result = run(*command, "--help")
    assert result.exit_code == 0
    assert "Usage:" in result.stdout
    assert "--help" in result.stdout


@pytest.mark.parametrize("command", [(), ("check",), ("rules",), ("rules", "validate"), ("train",)])
def test_help_tells_the_exit_codes(command):
    text = " ".join(run(*command, "--help").stdout.split())
    assert "Exit codes: 0 done, nothing flagged; 1 flagged" in text


def loaded(code):
    """Return which heavy packages a fresh process has loaded after some code."""
    report = (
        "import atexit, sys\n"
        "heavy = ('numpy', 'torch', 'onnxruntime', 'faiss', 'pydantic', 'transformers', 'rich')\n"
        "found = lambda: [name for name in heavy if name in sys.modules]\n"
        "atexit.register(lambda: sys.stderr.write(','.join(found())))\n"
    )
    result = shell("check", "--help", code=report + code)
    assert result.returncode == 0
    return set(result.stderr.split(","))


def test_nothing_heavy_is_imported_before_a_command_runs():
    assert loaded("import guardrail.cli") == {""}
    # Typer itself draws help with rich, and its newer versions read options with pydantic.
    assert loaded("from guardrail.cli import main; main()") <= {"rich", "pydantic"}


def test_version():
    versions = json.loads(run("version", "--json").stdout)
    assert set(versions) == {"guardrail", "python", "onnxruntime", "model"}
    assert versions["guardrail"] == metadata.version("prosocial-guardrail")
    assert versions["onnxruntime"] == metadata.version("onnxruntime")
    assert f"guardrail {versions['guardrail']}\n" in run("version").stdout


def test_the_shipped_model_answers_without_options():
    verdict = json.loads(run("check", "--json", "We baked bread today.").stdout)
    assert verdict["status"] == "ok"
    assert json.loads(run("version", "--json").stdout)["model"]


def test_the_console_script_is_this_main():
    (script,) = metadata.entry_points(group="console_scripts", name="guardrail")
    assert script.value == "guardrail.cli:main"


# check: one conversation


def test_json_is_the_verdict_of_the_library(check, tiny_folder):
    result = check("--json", UNSAFE)
    assert json.loads(result.stdout) == Guardrail.load(tiny_folder).check(UNSAFE).to_dict()
    assert result.stdout.count("\n") == 1


def test_flagged_and_not_flagged_differ_in_the_exit_code(check):
    assert (check(UNSAFE).exit_code, check(SAFE).exit_code) == (1, 0)


def test_the_panel_shows_what_a_person_needs(check):
    text = check(UNSAFE).stdout
    for expected in ("CAUTION", "P(unsafe) 0.800", "█", "threshold 0.500", DRIVING.text, "driving-001"):
        assert expected in text
    assert "Rules broken" in text
    assert UNSAFE not in text
    assert "Read " not in text  # coverage is complete
    assert "\x1b" not in text  # no terminal, no colours
    calm = check(SAFE).stdout
    assert "ALLOW" in calm
    assert "Rules touched" in calm
    assert "Rules broken" not in calm


def test_the_panel_tells_what_was_not_read(check, write):
    parts = [{"type": "text", "text": "look"}, {"type": "image_url", "image_url": {"url": "x"}}]
    path = write("image.json", json.dumps([{"role": "user", "content": parts}]))
    text = check("--file", path).stdout
    assert "Read 1 of 1 turns" in text
    assert "1 parts that are not text were skipped" in text
    assert "Status: degraded" in text


@pytest.mark.parametrize("text", [UNSAFE, SAFE])
@pytest.mark.parametrize("threshold", [0.000001, 0.15, 0.5, 0.85, 0.999999])
def test_flagged_is_what_reaches_the_threshold(check, text, threshold):
    result = check("--json", "--threshold", threshold, text)
    verdict = json.loads(result.stdout)
    assert verdict["flagged"] == (verdict["probability"] >= threshold) == (result.exit_code == 1)


def test_a_high_threshold_binds_single_rules_too(check, folder):
    path = folder / "calibration.json"
    calibration = json.loads(path.read_text())
    calibration["thresholds"] |= {"rule": 0.3, "caution": 0.79}
    calibration["rule"]["intercept"] = 1.0
    path.write_text(json.dumps(calibration))
    sign(folder)
    assert json.loads(run("check", "--model", folder, "--json", SAFE).stdout)["flagged"]
    assert not json.loads(run("check", "--model", folder, "--json", "--threshold", 0.999999, SAFE).stdout)[
        "flagged"
    ]


def sign(folder):
    from guardrail.artifact import read_manifest, write_manifest

    old = read_manifest(folder)
    write_manifest(
        folder,
        read_rules(folder / "rules.jsonl"),
        name=old.name,
        dimension=old.dimension,
        max_tokens=old.max_tokens,
        canary=old.canary,
    )


TURNS = ["had beer", "Have fun!", UNSAFE]
MESSAGES = [
    {"role": role, "content": text} for role, text in zip(("user", "assistant", "user"), TURNS, strict=True)
]


@pytest.mark.parametrize(
    "form",
    [TURNS, MESSAGES, {"messages": MESSAGES}, {"turns": TURNS}],
    ids=["strings", "dicts", "messages", "turns"],
)
def test_every_form_gives_the_same_verdict_from_file_and_stdin(check, write, form, tiny_folder):
    expected = Guardrail.load(tiny_folder).check(TURNS).to_dict()
    path = write("talk.json", json.dumps(form))
    assert json.loads(check("--json", "--file", path).stdout) == expected
    assert json.loads(check("--json", "--stdin", stdin=json.dumps(form)).stdout) == expected


def test_text_files_and_stdin_are_one_user_turn(check, write):
    expected = json.loads(check("--json", UNSAFE).stdout)
    with_mark = write("turn.txt", b"\xef\xbb\xbf" + UNSAFE.encode())
    assert json.loads(check("--json", "--file", with_mark).stdout) == expected
    assert json.loads(check("--json", "--stdin", stdin=UNSAFE).stdout) == expected
    assert json.loads(check("--json", "--file", write("string.json", json.dumps(UNSAFE))).stdout) == expected


def test_plain_keeps_what_looks_like_json_as_text(check, write):
    text = json.dumps(TURNS)
    as_text = json.loads(check("--json", text).stdout)
    assert as_text["turn"] == 0
    assert json.loads(check("--json", "--stdin", "--plain", stdin=text).stdout) == as_text
    assert json.loads(check("--json", "--plain", "--file", write("a.json", text)).stdout) == as_text
    assert json.loads(check("--json", "--stdin", stdin=text).stdout)["turn"] == 2


def test_half_json_on_stdin_is_text(check):
    assert json.loads(check("--json", "--stdin", stdin='["half').stdout)["status"] == "ok"
    assert json.loads(check("--json", "--stdin", stdin="[" * 100_000).stdout)["role"] == "user"


def test_extra_rules_take_part(check, write, tiny_folder):
    one = write("one.jsonl", '{"id": "mine-1", "rule": "You shouldn\'t drive home."}\n')
    two = write("two.jsonl", '{"id": "mine-2", "rule": "You shouldn\'t drive now."}\n')
    args = ("--model", tiny_folder, "--rules", one, "--rules", two)
    found = json.loads(run("rules", "search", "You shouldn't drive now.", *args, "-k", 9, "--json").stdout)
    assert {"mine-1", "mine-2", "driving-001"} <= {hit["rule_id"] for hit in found}
    # One text gives the rules the same figures, whether they came by file or by add_rules.
    guard = Guardrail.load(tiny_folder)
    guard.add_rules([*read_rules(one), *read_rules(two)])
    result = json.loads(check("--json", "--rules", one, "--rules", two, UNSAFE).stdout)
    assert result == guard.check(UNSAFE).to_dict()


# check: what is wrong is said in one line


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("broken.json", '["zanzibar', "broken JSON"),
        ("empty.json", "[]", "got an empty list"),
        ("number.json", "7", "got int"),
        ("other.json", '{"zanzibar": 1}', "an object without 'messages' or 'turns'"),
        ("null.json", '{"messages": null}', "got NoneType"),
        ("role.json", '[{"role": "zanzibar", "content": "zanzibar"}]', "message 0: expected a role among"),
        ("system.json", '[{"role": "system", "content": "zanzibar"}]', "message to judge"),
        ("deep.json", "[" * 200_000, "nested too deeply"),
        ("digits.json", "[" + "7" * 5000 + "]", "broken JSON"),
        ("latin.txt", b"zanzibar \xff", "expected UTF-8, got an invalid byte at position 9"),
        ("many.jsonl", '"zanzibar"\n', "pass it with --batch"),
        ("large.txt", b" " * (16 * 1024**2 + 1), "expected at most 16777216 bytes"),
    ],
)
def test_a_broken_file_is_named_and_its_text_is_not_shown(check, write, name, content, message):
    result = check("--file", write(name, content))
    assert result.exit_code == 2
    line = only_error(result)
    assert name in line
    assert message in line
    assert SECRET not in line


def test_a_missing_file(check, tmp_path):
    result = check("--file", tmp_path / "none.txt")
    assert result.exit_code == 2
    assert only_error(result) == f"error: No such file or directory: {tmp_path / 'none.txt'}"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "got none"),
        (["--stdin", "text"], "got TEXT and --stdin"),
        (["--out", "x", "text"], "--out is for --batch"),
        (["--plain", "text"], "--plain is for"),
        (["--threshold", "0", "text"], "between 0 and 1"),
        (["--threshold", "1", "text"], "between 0 and 1"),
        (["--threshold", "nan", "text"], "between 0 and 1"),
        (["--threshold", "much", "text"], "--threshold"),
        (["--unknown"], "--unknown"),
    ],
)
def test_bad_usage(check, args, message):
    result = check(*args)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert message in " ".join(result.stderr.replace("│", " ").split())


def test_a_missing_model_folder(tmp_path):
    result = run("check", "--model", tmp_path / "none", "text")
    assert result.exit_code == 3
    assert f"expected a model folder at {tmp_path / 'none'}" in only_error(result)


def test_an_altered_model_folder(folder):
    path = folder / "calibration.json"
    path.write_text(path.read_text() + " ")
    result = run("check", "--model", folder, "text")
    assert result.exit_code == 3
    assert "calibration.json" in only_error(result)


def test_a_guard_that_fails_is_neither_pass_nor_finding(monkeypatch, write):
    encoder = BrokenEncoder("raises")
    guard = Guardrail(encoder, [DRIVING, PRIVACY])
    encoder.broken = True
    monkeypatch.setattr(Guardrail, "load", lambda *args, **settings: guard)
    result = run("check", SECRET)
    assert result.exit_code == 3
    assert "the guard failed" in result.stdout
    assert "encoder failed (ModelError)" in result.stdout
    assert SECRET not in result.output
    assert json.loads(run("check", "--json", SECRET).stdout)["status"] == "error"
    batch = run("check", "--batch", write("a.jsonl", '"a"\nbroken\n'))
    assert batch.exit_code == 3
    assert batch.stderr == "lines: 2, flagged: 0, broken: 1, failed: 1\n"


def test_a_broken_rules_file(check, write):
    result = check("--rules", write("bad.jsonl", "zanzibar\n"), "text")
    assert result.exit_code == 2
    assert "bad.jsonl, line 1" in only_error(result)


def test_a_rule_id_that_is_taken(check, write):
    result = check("--rules", write("my.jsonl", '{"id": "driving-001", "rule": "Drive slowly."}'), "text")
    assert result.exit_code == 2
    assert "'driving-001', which is taken" in only_error(result)


# check: batches

BATCH = b"\n".join(
    [
        b"\xef\xbb\xbf" + json.dumps(UNSAFE).encode(),
        b"",
        b"zanzibar",
        json.dumps({"messages": MESSAGES}).encode(),
        b'"\xff"',
        b'{"id": 1}',
        b'"' + b"a" * 1024**2 + b'"',
        json.dumps([SAFE]).encode(),
    ]
)


def test_a_batch_goes_on_after_broken_lines(check, write, tiny_folder):
    result = check("--batch", write("talks.jsonl", BATCH))
    results = [json.loads(line) for line in result.stdout.splitlines()]
    assert [item["line"] for item in results] == [1, 3, 4, 5, 6, 7, 8]
    errors = {item["line"]: item["error"] for item in results if "error" in item}
    assert set(errors) == {3, 5, 6, 7}
    assert "broken JSON" in errors[3]
    assert "UTF-8" in errors[5]
    assert "expected at most 1048576 bytes, got 1048579" in errors[7]
    assert SECRET not in result.output
    guard = Guardrail.load(tiny_folder)
    verdicts = {item.pop("line"): item for item in results if "error" not in item}
    expected = {1: UNSAFE, 4: TURNS, 8: SAFE}
    assert verdicts == {line: guard.check(talk).to_dict() for line, talk in expected.items()}
    assert result.exit_code == 2
    flagged = sum(verdict["flagged"] for verdict in verdicts.values())
    assert result.stderr == f"lines: 7, flagged: {flagged}, broken: 4, failed: 0\n"


@pytest.mark.parametrize(
    ("lines", "code"), [([SAFE], 0), ([SAFE, UNSAFE], 1), ([SAFE, UNSAFE, 7], 2), ([], 0)]
)
def test_a_batch_ends_with_the_highest_code_of_its_lines(check, write, lines, code):
    path = write("talks.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    assert check("--batch", path).exit_code == code


def test_a_long_batch_stays_in_order(check, write, tmp_path):
    path = write("talks.jsonl", "".join(json.dumps([SAFE, UNSAFE][n % 2]) + "\n" for n in range(70)))
    out = tmp_path / "results.jsonl"
    result = check("--batch", path, "--out", out)
    assert result.stdout == ""
    results = [json.loads(line) for line in out.read_text().splitlines()]
    assert [item["line"] for item in results] == list(range(1, 71))
    assert [item["flagged"] for item in results] == [False, True] * 35


def test_a_batch_from_stdin(check):
    result = check("--batch", "-", stdin=json.dumps(SAFE) + "\n")
    assert json.loads(result.stdout)["line"] == 1


def test_a_batch_does_not_overwrite_its_input(check, write):
    path = write("talks.jsonl", BATCH)
    result = check("--batch", path, "--out", path)
    assert result.exit_code == 2
    assert "expected --out to be another file" in only_error(result)
    assert path.read_bytes() == BATCH


def test_results_stay_when_the_model_cannot_be_loaded(write, tmp_path):
    out = write("results.jsonl", "old")
    result = run("check", "--batch", write("a.jsonl", BATCH), "--out", out, "--model", tmp_path / "none")
    assert result.exit_code == 3
    assert out.read_text() == "old"


def test_a_batch_that_cannot_be_read_or_written(check, write, tmp_path):
    missing = check("--batch", tmp_path / "none.jsonl")
    assert missing.exit_code == 2
    assert "No such file" in only_error(missing)
    unwritable = check("--batch", write("a.jsonl", BATCH), "--out", tmp_path / "none" / "results.jsonl")
    assert unwritable.exit_code == 2
    assert "No such file" in only_error(unwritable)


# rules


def test_list_is_the_bank():
    listed = json.loads(run("rules", "list", "--json").stdout)
    assert [rule["rule_id"] for rule in listed] == [rule.id for rule in load_bank()]
    lines = run("rules", "list").stdout.splitlines()
    assert [line.split("\t")[0] for line in lines] == [rule.id for rule in load_bank()]


def test_list_chooses_by_domain_and_severity():
    args = ("rules", "list", "--domain", "driving", "--severity", "needs_intervention", "--json")
    listed = json.loads(run(*args).stdout)
    expected = [r for r in load_bank() if (r.domain, r.severity) == ("driving", "needs_intervention")]
    assert [rule["rule_id"] for rule in listed] == [rule.id for rule in expected]
    assert listed[0] == {
        "rule_id": expected[0].id,
        "rule": expected[0].text,
        "domain": "driving",
        "severity": "needs_intervention",
    }


def test_list_names_the_domains_there_are():
    result = run("rules", "list", "--domain", "drivng")
    assert result.exit_code == 2
    assert "driving" in only_error(result)
    assert run("rules", "list", "--severity", "high").exit_code == 2


def test_search_gives_the_nearest_rules(tiny_folder):
    found = json.loads(run("rules", "search", DRIVING.text, "-k", 2, "--model", tiny_folder, "--json").stdout)
    expected = Guardrail.load(tiny_folder).search_rules(DRIVING.text, 2)
    assert [(hit["rule_id"], hit["similarity"]) for hit in found] == [
        (rule.id, round(cosine, 4)) for rule, cosine in expected
    ]
    lines = run("rules", "search", DRIVING.text, "--model", tiny_folder).stdout.splitlines()
    assert lines[0].split("\t")[1] == expected[0][0].id


def test_search_refuses_nothing_and_no_rules(tiny_folder):
    blank = run("rules", "search", " ", "--model", tiny_folder)
    assert blank.exit_code == 2
    assert "expected a query" in only_error(blank)
    assert run("rules", "search", "x", "-k", 0, "--model", tiny_folder).exit_code == 2


def test_add_makes_a_file_that_check_and_the_library_can_use(check, tmp_path):
    path = tmp_path / "my.jsonl"
    args = ("--file", path, "--id", "pets-1", "--domain", "pets", "--severity", "needs_intervention")
    result = run("rules", "add", NEW_RULE, *args)
    assert result.exit_code == 0
    assert f"guardrail check --rules {path}" in result.stdout
    assert f"guard.add_rules(read_rules('{path}'))" in result.stdout
    (rule,) = read_rules(path)
    assert (rule.id, rule.text, rule.domain, rule.severity) == (
        "pets-1",
        NEW_RULE,
        "pets",
        "needs_intervention",
    )
    assert check("--rules", path, "--json", "hello").exit_code in (0, 1)
    assert run("rules", "validate", path).exit_code == 0


def test_add_appends_after_a_line_without_an_end(write):
    path = write("my.jsonl", '{"id": "a", "rule": "Keep the stairs free."}')
    added = json.loads(run("rules", "add", NEW_RULE, "--file", path, "--json").stdout)
    assert added["rules_in_file"] == 2
    assert [rule.id for rule in read_rules(path)] == ["a", added["rule_id"]]
    assert path.read_text().endswith("}\n")


def refused(text, path, *args):
    before = path.read_bytes() if path.exists() else None
    result = run("rules", "add", text, "--file", path, *args)
    assert result.exit_code == 2
    assert (path.read_bytes() if path.exists() else None) == before
    return only_error(result)


def test_add_refuses_what_is_there(write):
    path = write("my.jsonl", json.dumps({"id": "dog-1", "rule": NEW_RULE}) + "\n")
    assert "'dog-1', which" in refused("Something quite new.", path, "--id", "dog-1")
    assert "as 'dog-1'" in refused("you shouldn’t feed chocolate to your dog", path)
    bank = load_bank()[0]
    assert f"{bank.id!r}, which the bank that ships has" in refused("Something new.", path, "--id", bank.id)
    assert f"as {bank.id!r}" in refused(bank.text.upper(), path)


@pytest.mark.parametrize(
    ("known", "new"),
    [
        (
            "You shouldn't let a child of 16 drive the car of a friend at night.",
            "You shouldn't let a child of 18 drive the car of a friend at night.",
        ),
        (
            "You should not keep a present that was meant for the neighbour next door.",
            "You should keep a present that was meant for the neighbour next door.",
        ),
        (NEW_RULE, "You shouldn't feed onions to your cat."),
    ],
    ids=["number", "negation", "other"],
)
def test_add_takes_rules_that_only_look_alike(write, known, new):
    path = write("my.jsonl", json.dumps({"id": "a", "rule": known}) + "\n")
    assert run("rules", "add", new, "--file", path).exit_code == 0
    assert read_rules(path)[1].text == new


def test_add_checks_the_rule_and_the_file(write, tmp_path):
    path = tmp_path / "my.jsonl"
    assert "rule: " in refused("  ", path)
    assert "one line" in refused("two\nlines", path)
    assert "id: " in refused(NEW_RULE, path, "--id", "with space")
    assert "No such file" in refused(NEW_RULE, tmp_path / "none" / "my.jsonl")
    assert "line 1" in refused(NEW_RULE, write("broken.jsonl", "nope\n"))


def test_validate_tells_every_problem(write):
    lines = ['{"id": "a", "rule": "x"}', "nope", "", '{"id": "a", "rule": "y"}', '{"id": "b", "rule": " "}']
    path = write("rules.jsonl", "\n".join(lines))
    result = run("rules", "validate", path, "--json")
    report = json.loads(result.stdout)
    assert result.exit_code == 1
    assert (report["file"], report["rules"]) == (str(path), 1)
    assert [problem["line"] for problem in report["problems"]] == [2, 4, 5]
    assert "is taken by line 1" in report["problems"][1]["reason"]
    text = run("rules", "validate", path)
    assert text.exit_code == 1
    assert f"{path}, line 5: rule: " in text.stdout
    assert text.stdout.endswith("valid rules: 1, problems: 3\n")


def test_validate_a_good_and_a_missing_file(write, tmp_path):
    good = run("rules", "validate", write("good.jsonl", '{"id": "a", "rule": "x"}\n'), "--json")
    assert good.exit_code == 0
    assert json.loads(good.stdout)["problems"] == []
    missing = run("rules", "validate", tmp_path / "none.jsonl")
    assert missing.exit_code == 2
    assert "none.jsonl" in only_error(missing)


def test_what_a_file_holds_cannot_steer_the_terminal(write):
    path = write("rules.jsonl", '{"id": "a", "rule": "x", "\\u001b[31m": 1}')
    result = run("rules", "validate", path)
    assert "\x1b" not in result.output
    assert "[31m: Extra inputs" in result.stdout
    listed = write("my.jsonl", '{"id": "a", "rule": "red \\u001b[31m rule"}')
    assert "\x1b" not in run("check", "--model", "none", "--rules", listed, "x").output


# train and eval


@pytest.mark.parametrize(
    ("recipe", "args", "message"),
    [
        ("base = ", [], "expected a readable TOML file"),
        ("epoch = 3", [], "'epoch'"),
        ("epochs = 3", ["--epochs", "-1"], "'epochs'"),
        ("", ["--sources", "a,b"], "expected --data or GUARDRAIL_DATA"),
        ("", ["--sources", ",", "--data", "x"], "expected --sources as names"),
        ("", ["--rules", "none.jsonl"], "none.jsonl"),
    ],
)
def test_train_checks_its_settings_first(write, tmp_path, monkeypatch, recipe, args, message):
    monkeypatch.delenv("GUARDRAIL_DATA", raising=False)
    result = run("train", "encoder", "--out", tmp_path / "run", "--config", write("r.toml", recipe), *args)
    assert result.exit_code == 2
    assert message in only_error(result)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("trace", ["model", "checkpoint-250"])
def test_train_does_not_write_over_a_training(tmp_path, trace):
    (tmp_path / trace).mkdir()
    result = run("train", "encoder", "--out", tmp_path)
    assert result.exit_code == 2
    assert "--resume" in only_error(result)


@pytest.mark.parametrize("command", [("train", "encoder", "--out", "run"), ("eval",)])
def test_a_missing_train_extra_gives_the_install_line(tmp_path, command):
    code = (
        "import sys\n"
        "for name in ('torch', 'sentence_transformers', 'sklearn'): sys.modules[name] = None\n"
        "from guardrail.cli import main; main()"
    )
    result = shell(*command, code=code, cwd=tmp_path)
    assert result.returncode == 2
    assert "pip install 'prosocial-guardrail[train]'" in only_error(result)


@pytest.fixture
def fake_training(train_extra, monkeypatch):
    """Training and export that keep what they were called with, and print as libraries do."""
    calls = {}

    def train_encoder(config, run, **options):
        sys.stdout.write("loss 0.5\n")
        calls["train"] = (config.epochs, run, options)

    def finalize(run, **options):
        calls["finalize"] = (run, options)
        return {"export/cosine_mean": 0.99, "export/broken": float("nan")}

    monkeypatch.setattr("guardrail.trainer.pipeline.train_encoder", train_encoder)
    monkeypatch.setattr("guardrail.trainer.finalize.finalize", finalize)
    return calls


@pytest.mark.train
def test_train_passes_everything_on(fake_training, write, tmp_path, monkeypatch):
    monkeypatch.setenv("GUARDRAIL_DATA", str(tmp_path))
    rules = write("my.jsonl", "\n".join(rule.model_dump_json(by_alias=True) for rule in many_rules()))
    out = tmp_path / "run"
    args = ("--epochs", 2, "--sources", "diasafety, bad", "--rules", rules, "--resume", "--json")
    result = run("train", "encoder", "--out", out, *args)
    assert result.exit_code == 0
    figures = {"export/cosine_mean": 0.99, "export/broken": None}
    assert json.loads(result.stdout) == {"run": str(out), "model": str(out / "artifact"), "figures": figures}
    assert "loss 0.5" in result.stderr
    shared = {"data_dir": tmp_path, "sources": ["diasafety", "bad"], "rules": read_rules(rules)}
    assert fake_training["train"] == (2, out, {**shared, "resume": True})
    assert fake_training["finalize"] == (out, {**shared, "folder": out / "artifact"})


@pytest.mark.train
def test_train_wants_dialogues_of_the_rules_first(fake_training, write, tmp_path):
    rules = write("my.jsonl", '{"id": "a", "rule": "x"}')
    result = run("train", "encoder", "--out", tmp_path, "--rules", rules)
    assert result.exit_code == 3
    assert "expected unsafe dialogues of the rules in validation" in only_error(result)
    assert not fake_training
    # Whoever wants no model folder needs none.
    assert run("train", "encoder", "--out", tmp_path, "--rules", rules, "--no-export").exit_code == 0


@pytest.mark.train
def test_of_several_processes_one_writes_the_model_folder(fake_training, tmp_path, monkeypatch):
    for name, value in {"WORLD_SIZE": "2", "LOCAL_RANK": "1", "RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    result = run("train", "encoder", "--out", tmp_path, "--json")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "train" in fake_training
    assert "finalize" not in fake_training


@pytest.mark.train
def test_train_tells_a_person_what_to_do_next(fake_training, tmp_path, monkeypatch):
    monkeypatch.delenv("GUARDRAIL_DATA", raising=False)
    text = run("train", "encoder", "--out", tmp_path).stdout
    assert "export/cosine_mean\t0.99\n" in text
    assert f"guardrail check --model {tmp_path / 'artifact'} TEXT" in text
    assert fake_training["train"][2] == {"data_dir": None, "sources": None, "rules": None, "resume": False}
    fake_training.clear()
    assert f"trained {tmp_path}\n" in run("train", "encoder", "--out", tmp_path, "--no-export").stdout
    assert "finalize" not in fake_training


@pytest.mark.slow
@pytest.mark.train
def test_a_real_training_from_a_recipe(tiny_base, write, tmp_path, monkeypatch):
    monkeypatch.delenv("GUARDRAIL_DATA", raising=False)
    recipe = write("recipe.toml", "bf16 = false\nmax_tokens = 64\nbatch_size = 16\nmax_steps = 1\n")
    run_folder = tmp_path / "run"
    args = ("--base", tiny_base, "--learning-rate", 0.003, "--max-steps", 2, "--no-export", "--json")
    result = run("train", "encoder", "--out", run_folder, "--config", recipe, *args)
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout) == {"run": str(run_folder), "model": None, "figures": {}}
    written = json.loads((run_folder / "config.json").read_text())
    assert (written["max_steps"], written["batch_size"]) == (2, 16)  # options go over the recipe
    assert (run_folder / "model").is_dir()


@pytest.mark.slow
@pytest.mark.train
def test_eval_of_a_model_folder(train_extra, tiny_folder, write, tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    pytest.importorskip("bm25s")
    monkeypatch.delenv("GUARDRAIL_DATA", raising=False)
    rules = write("my.jsonl", "\n".join(rule.model_dump_json(by_alias=True) for rule in many_rules()))
    args = ("eval", "--model", tiny_folder, "--limit", 3, "--rules", rules)
    page = tmp_path / "report.html"
    report = json.loads(run(*args, "--json", "-", "--html", page).stdout)
    assert report["classification"]["bank"]["n"] == 3
    assert report["retrieval"]["bank/ours"]["rules"] == len(many_rules())
    assert page.read_text("utf-8").startswith("<!doctype html>")
    args = (*args, "--only", "over_refusal, discrimination")
    result = run(*args, "--json", tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text())["over_refusal"]["own_casual"]["n"] == 3
    assert "over_refusal\town_casual\tn\t3" in result.stdout.splitlines()
    assert "### Contrasts" in run(*args, "--markdown").stdout


@pytest.mark.slow
@pytest.mark.train
def test_eval_with_a_judge_of_ones_own(train_extra, tiny_folder, write, tmp_path, monkeypatch):
    pytest.importorskip("bm25s")
    monkeypatch.delenv("GUARDRAIL_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    write("my_judge.py", "def answer(messages):\n    return 'nonsense'\n")
    args = ("--limit", 5, "--only", "escalation", "--judge", "my_judge:answer", "--json", "-")
    report = json.loads(run("eval", "--model", tiny_folder, *args).stdout)
    assert report["escalation"]["pairs/100%"]["failed"] == 1


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--judge", "json"), "expected a judge as MODULE:NAME"),
        (("--judge", "json:nobody"), "expected a judge at 'json:nobody'"),
        (("--judge", "no_such_module:judge"), "No module named"),
        (("--judge", "json:JSONDecoder"), "expected a judge, got the class JSONDecoder"),
        (("--rules", "no_such_rules.jsonl"), "no_such_rules.jsonl"),
        (("--html", "no_such_folder/report.html"), "expected a folder for"),
        (("--json", "no_such_folder/report.json"), "expected a folder for"),
        (("--only", "speed"), "expected parts from classification"),
        (("--only", ","), "expected parts from classification"),
        (("--only", "escalation"), "--judge"),
    ],
)
def test_eval_checks_its_settings_first(train_extra, args, message):
    pytest.importorskip("bm25s")
    result = run("eval", *args)
    assert result.exit_code == 2
    assert message in only_error(result)


def test_eval_of_a_missing_folder(train_extra, tmp_path):
    result = run("eval", "--model", tmp_path / "none")
    assert result.exit_code == 3
    assert "expected a model folder" in only_error(result)


# What a shell sees


@pytest.mark.parametrize("args", [("rules", "list", "--json"), ("rules", "list"), ("check", UNSAFE)])
def test_a_closed_pipe_ends_quietly(args, tiny_folder):
    model = ("--model", tiny_folder) if args[0] == "check" else ()
    process = start(*args, *model)
    process.stdout.close()  # long before the first byte
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(timeout=60) == 141


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no full disk at hand")
def test_a_full_disk_is_told():
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-c", "from guardrail.cli import main; main()", "version"]
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert result.returncode == 2
    assert "No space left" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_defect_does_not_read_as_a_finding(tiny_folder):
    code = (
        "import guardrail.cli.options as options\n"
        "from guardrail import Guardrail\n"
        "Guardrail.load = None\n"
        "from guardrail.cli import main; main()"
    )
    result = shell("check", SAFE, code=code)
    assert result.returncode == 3
    assert "TypeError" in result.stderr
    assert SAFE not in result.stderr


@pytest.mark.skipif(os.name == "nt", reason="signals differ")
def test_ctrl_c_ends_with_130(tiny_folder):
    # A shell starts background jobs with the interrupt ignored, and that is inherited: not so here.
    interruptible = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    process = start("check", "--batch", "-", "--model", tiny_folder, stdin=subprocess.PIPE, **interruptible)
    process.stdin.write(b'"bread"\n' * CHUNK)
    process.stdin.flush()
    for _ in range(CHUNK):  # then it surely runs, and waits for more
        assert process.stdout.readline()
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert (stdout, stderr) == (b"", b"error: interrupted\n")
    assert process.returncode == 130


def test_a_poor_terminal_encoding_does_not_crash(tiny_folder):
    result = shell("check", "--model", tiny_folder, SAFE, env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert result.returncode == 0
    assert "ALLOW" in result.stdout


def test_no_color_is_respected(tiny_folder):
    loud = os.environ | {"FORCE_COLOR": "1", "TERM": "xterm-256color"}
    args = ("check", "--model", tiny_folder, SAFE)
    coloured = shell(*args, env={name: value for name, value in loud.items() if name != "NO_COLOR"})
    assert "\x1b[32m" in coloured.stdout
    assert "\x1b[32m" not in shell(*args, env=loud | {"NO_COLOR": "1"}).stdout
