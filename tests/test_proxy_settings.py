"""Settings of the proxy, and the command that takes them."""

import subprocess
import sys

import pytest

pytest.importorskip("starlette")
from typer.testing import CliRunner

from guardrail.cli import app
from guardrail.errors import ConfigError
from guardrail.integrations.proxy import ProxySettings, read_keys

UP = "http://llm.example/v1"


@pytest.mark.parametrize(
    "upstream",
    [
        "llm.example/v1",
        "ftp://llm.example/v1",
        "file:///etc/passwd",
        "http://",
        "http://user:pass@llm.example/v1",
        "http://llm.example/v1?x=1",
        "http://llm.example/v1#x",
        "http://llm.example:no/v1",
        "http://127.0.0.1:8642/v1",
        "http://localhost:8642/v1",
        "",
    ],
)
def test_a_wrong_upstream_is_refused(upstream):
    with pytest.raises(ConfigError, match="expected|setting"):
        ProxySettings.of(upstream=upstream)


@pytest.mark.parametrize(
    "wrong",
    [
        {"port": 65536},
        {"max_concurrency": 0},
        {"max_queue": -1},
        {"queue_seconds": 0},
        {"per_client": 0},
        {"max_body_kib": 0},
        {"max_turns": 0},
        {"deadline_seconds": float("nan")},
        {"shutdown_seconds": -1},
        {"log_format": "xml"},
        {"no_such_setting": 1},
    ],
)
def test_a_setting_out_of_range_is_named(wrong):
    (name,) = wrong
    with pytest.raises(ConfigError, match=name):
        ProxySettings.of(upstream=UP, **wrong)


@pytest.mark.parametrize("key", ["short", "with space in it", "nicht-äscii-key", "line\nbreak-key"])
def test_a_bad_key_is_refused_and_never_shown(key):
    for wrong in ({"api_keys": ["right-key", key]}, {"upstream_key": key + " "}):
        with pytest.raises(ConfigError) as caught:
            ProxySettings.of(upstream=UP, **wrong)
        assert key not in str(caught.value)


def test_keys_are_not_shown_by_repr():
    assert "right-key" not in repr(ProxySettings.of(upstream=UP, api_keys=["right-key"]))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "my-host"])
def test_others_are_served_only_with_a_key_or_if_told_so(host):
    with pytest.raises(ConfigError, match="API key"):
        ProxySettings.of(upstream=UP, host=host)
    assert ProxySettings.of(upstream=UP, host=host, insecure=True)
    assert ProxySettings.of(upstream=UP, host=host, api_keys=["right-key"])


@pytest.mark.parametrize("host", ["127.0.0.1", "127.3.2.1", "::1", "localhost"])
def test_this_machine_alone_needs_no_key(host):
    assert ProxySettings.of(upstream=UP + "/", host=host).upstream == UP


def test_a_file_of_keys(tmp_path):
    path = tmp_path / "keys"
    path.write_text("# of the app\nfirst-key\n\n  second-key  \n")
    assert read_keys(path) == ("first-key", "second-key")
    path.write_text("# none\n")
    with pytest.raises(ConfigError, match="at least one"):
        read_keys(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="text file"):
        read_keys(path)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--upstream", "nonsense"], "upstream"),
        (["--upstream", UP, "--host", "0.0.0.0"], "API key"),
        (["--upstream", UP, "--port", "99999"], "port"),
        (["--upstream", UP, "--workers", "0"], "workers"),
        (["--upstream", UP, "--api-key-file", "no-such-file"], "no-such-file"),
        (["--upstream", UP, "--upstream-key-env", "NO_SUCH_KEY"], "NO_SUCH_KEY"),
        (["--upstream", UP, "--rules", "no-such-file"], "no-such-file"),
        (["--upstream", UP, "--model", "no-such-folder"], "no-such-folder"),
    ],
)
def test_the_command_refuses_to_start_with_one_line(arguments, said):
    done = CliRunner().invoke(app, ["serve", *arguments], env={"GUARDRAIL_API_KEY": ""})
    assert done.exit_code in (2, 3)
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_help_loads_none_of_it():
    script = (
        "import sys\nfrom guardrail.cli import main\nsys.argv = ['guardrail', 'serve', '--help']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print(sorted({'starlette', 'uvicorn', 'httpx', 'prometheus_client', 'numpy'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")
    assert "--upstream" in done.stdout


def test_a_missing_package_is_named(tmp_path):
    (tmp_path / "prometheus_client.py").write_text("raise ModuleNotFoundError(name='prometheus_client')")
    script = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from guardrail.errors import MissingDependencyError\n"
        "try:\n    import guardrail.integrations.proxy\n"
        "except MissingDependencyError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "prometheus-client" in done.stdout
    assert "prosocial-guardrail[proxy]" in done.stdout
