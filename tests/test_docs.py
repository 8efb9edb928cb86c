"""The documentation is executed: every Python block of the README and of the page on integrations."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run_blocks(name, names):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / name).read_text("utf-8"), re.DOTALL)
    for block in blocks:
        exec(compile(block, name, "exec"), names)  # noqa: S102  # our own text
    return len(blocks)


def names_that_a_reader_has():
    core = pytest.importorskip("langchain_core.language_models")
    from langchain_core.output_parsers import StrOutputParser
    from langchain_core.prompts import ChatPromptTemplate

    return {
        "llm": lambda messages: "Bake them with tahini and lemon.",
        "my_llm": lambda messages: "no answer of a judge",
        "messages": [{"role": "user", "content": "too many aubergines, any ideas?"}],
        "prompt": ChatPromptTemplate.from_messages([("human", "{text}")]),
        "chat_model": core.GenericFakeChatModel(messages=iter(["Bake them."])),
        "parser": StrOutputParser(),
    }


def test_the_readme_runs_as_it_stands(capsys):
    names = names_that_a_reader_has()

    assert run_blocks("README.md", names) >= 6
    assert names["verdict"].flagged
    assert any(rule.id.startswith("custom-") for rule in names["guard"].rules)
    assert capsys.readouterr().out.endswith("Warm them up. Oil helps.")
    assert names["chain"].invoke({"text": "too many aubergines, any ideas?"}) == "Bake them."
    assert type(names["client"]).__name__ == "OpenAI"


def test_the_page_on_integrations_runs_as_it_stands():
    import guardrail

    names = names_that_a_reader_has() | {"guard": guardrail.Guardrail.load()}

    assert run_blocks("docs/integrations.md", names) >= 3
    agent = names["agent"].invoke({"messages": [("user", "too many aubergines, any ideas?")]})
    assert agent["messages"][-1].content == "Bake them."


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
