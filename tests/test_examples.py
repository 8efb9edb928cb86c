"""Every example runs as a user would run it, offline, and shows no unsafe draft as the guard's word."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "examples"
# What each must say, so that an example that prints nothing of interest fails.
SAYS = {
    "custom_rules.py": "- You shouldn't promise a refund",
    "demo.py": "shown to the user, repaired",
    "langchain_agent.py": "strategy regenerated",
    "langchain_chain.py": "strategy regenerated",
    "openai_client.py": "regenerated",
    "plain_function.py": "as a stream:",
    "proxy_curl.py": "with the proxy:",
}


def run(name):
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    done = subprocess.run(
        [sys.executable, str(FOLDER / name)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PATH": path, "COLUMNS": "200"},
    )
    return done


def test_every_example_is_known_here():
    assert {path.name for path in FOLDER.glob("*.py")} == set(SAYS)


@pytest.mark.parametrize("name", sorted(SAYS))
def test_an_example_runs_offline(name):
    done = run(name)

    assert done.returncode == 0, done.stderr[-2000:]
    assert SAYS[name] in done.stdout
    assert "Traceback" not in done.stderr


def test_the_plain_example_shows_the_repair_in_both_forms():
    shown = run("plain_function.py").stdout.split("with the guard:")[1]

    whole, stream = shown.split("as a stream:")
    assert whole.strip() == stream.strip() != ""
    assert "commission" not in shown
