"""The documentation is executed: every Python block of the README, and every example."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_the_readme_runs_as_it_stands():
    core = pytest.importorskip("langchain_core.language_models")
    from langchain_core.output_parsers import StrOutputParser
    from langchain_core.prompts import ChatPromptTemplate

    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    assert len(blocks) >= 2
    names = {
        "llm": lambda messages: "Bake them with tahini and lemon.",
        "my_llm": lambda messages: "no answer of a judge",
        "messages": [{"role": "user", "content": "too many aubergines, any ideas?"}],
        "prompt": ChatPromptTemplate.from_messages([("human", "{text}")]),
        "chat_model": core.GenericFakeChatModel(messages=iter(["Bake them."])),
        "parser": StrOutputParser(),
    }
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)  # noqa: S102  # our own text
    assert names["verdict"].flagged
    assert any(rule.id.startswith("custom-") for rule in names["guard"].rules)
    assert names["chain"].invoke({"text": "too many aubergines, any ideas?"}) == "Bake them."


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_an_example_runs(path, tmp_path):
    done = subprocess.run(
        [sys.executable, str(path)], capture_output=True, text=True, cwd=tmp_path, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_linked_documents_exist():
    for document in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", document.read_text("utf-8")):
            assert (document.parent / target).exists(), (
                f"{document.name} links to {target}, which is not there"
            )


def test_nothing_of_the_workplace_is_in_the_repository():
    listed = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT, check=False).stdout
    pattern = re.compile(r"/work/|/root/|/tmp/w")
    for name in listed.splitlines():
        path = ROOT / name
        if (
            path.suffix in {".py", ".md", ".toml", ".json", ".jsonl"}
            and path.name != "test_docs.py"
            and path.is_file()
        ):
            assert not pattern.search(path.read_text("utf-8")), f"{name} names a path of one machine"
