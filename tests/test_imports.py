"""What importing loads, who may import whom, and which names are public."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import guardrail

ROOT = Path(guardrail.__file__).parent
PROJECT = ROOT.parent
HEAVY = (
    "numpy",
    "torch",
    "faiss",
    "onnxruntime",
    "transformers",
    "sentence_transformers",
    "langchain_core",
    "pydantic",
)


def loaded_after(code):
    script = f"import sys, json\n{code}\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


# ---------------------------------------------------------------- what importing loads


def test_importing_the_package_loads_nothing_heavy():
    loaded = loaded_after("import guardrail")

    assert "guardrail" in loaded
    assert loaded.isdisjoint(HEAVY)


def test_listing_the_names_loads_nothing_heavy():
    loaded = loaded_after("import guardrail; dir(guardrail); guardrail.Verdict; guardrail.InputError")

    assert loaded.isdisjoint(HEAVY)


def test_the_guard_loads_no_training_library_and_no_langchain():
    loaded = loaded_after("import guardrail; guardrail.Guardrail; guardrail.GuardedReply; guardrail.Rule")

    assert {"numpy", "faiss"} <= loaded
    assert loaded.isdisjoint(
        {"torch", "transformers", "sentence_transformers", "langchain_core", "huggingface_hub"}
    )
    assert not any(name.startswith(("guardrail.trainer", "guardrail.integrations")) for name in loaded)


# ---------------------------------------------------------------- who imports whom


def imported(path, package):
    """Return the absolute names of all that a file imports, inside functions as well."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                kept = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*kept, *([node.module] if node.module else [])])
            names |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return names


def files(folder, package):
    """Return (path, imported names) of the Python files of an installed package."""
    found = []
    for path in sorted(folder.rglob("*.py")):
        inner = ".".join(path.relative_to(folder).parent.parts)
        found.append((path, imported(path, f"{package}.{inner}" if inner else package)))
    return found


# The cli is outermost and may import everything.
RUNTIME = [
    (path, names)
    for path, names in files(ROOT, "guardrail")
    if path.relative_to(ROOT).parts[0] not in ("cli", "cli.py")
]
TRAINER = files(PROJECT / "trainer", "guardrail.trainer")
INTEGRATIONS = files(PROJECT / "integrations", "guardrail.integrations")


def importers(sources, *modules):
    return sorted(
        path.name
        for path, names in sources
        if any(name == module or name.startswith(module + ".") for name in names for module in modules)
    )


def test_the_reader_of_imports_sees_relative_and_nested_ones(tmp_path):
    path = tmp_path / "x.py"
    path.write_text("from . import a\nfrom ..b import c\nimport d.e\ndef f():\n    from .g import h\n")

    assert imported(path, "p.q") == {"p.q", "p.q.a", "p.b", "p.b.c", "d.e", "p.q.g", "p.q.g.h"}


def test_there_are_files_to_look_at():
    assert {"pipeline.py", "middleware.py", "encoder.py", "rule_index.py"} <= {
        path.name for path, _ in RUNTIME
    }
    assert "losses.py" in {path.name for path, _ in TRAINER}
    assert INTEGRATIONS


def test_the_runtime_imports_neither_trainer_nor_integrations():
    assert importers(RUNTIME, "guardrail.trainer", "guardrail.integrations", "trainer", "integrations") == []


def test_the_runtime_imports_no_langchain():
    assert importers(RUNTIME, "langchain", "langchain_core", "langgraph", "openai") == []


def test_one_file_of_the_runtime_imports_torch_and_it_is_loaded_on_demand():
    libraries = ("torch", "transformers", "sentence_transformers", "datasets")
    assert importers(RUNTIME, *libraries) == ["torch_encoder.py", "torch_rewriter.py", "torch_tools.py"]
    assert importers(RUNTIME, "guardrail.torch_encoder") == ["artifact.py"]


@pytest.mark.parametrize(
    ("module", "only"),
    [
        ("onnxruntime", ["encoder.py"]),
        ("tokenizers", ["tokenizer.py"]),
        ("faiss", ["rule_index.py"]),
        ("huggingface_hub", ["hub.py"]),
    ],
)
def test_each_heavy_library_has_one_file(module, only):
    assert importers(RUNTIME, module) == only


def test_trainer_and_integrations_do_not_know_each_other():
    assert importers(TRAINER, "guardrail.integrations", "integrations", "langchain", "langchain_core") == []
    assert importers(INTEGRATIONS, "guardrail.trainer", "trainer") == []
    assert importers(INTEGRATIONS, "torch", "transformers") == ["guard_model.py"]


def test_the_parts_know_only_what_lies_below_them():
    below = {
        "errors.py": {"types"},
        "types.py": {"errors", "rules"},
        "decision.py": {"calibration", "detector", "judging", "types"},
        "callables.py": set(),
        "judging.py": {"errors", "normalize", "types"},
        "judges.py": {"callables", "errors", "judging"},
        "second_opinion.py": {"errors", "judges", "judging", "threads"},
        "threads.py": set(),
        "sentences.py": set(),
        "deltas.py": set(),
        "windows.py": set(),
        "normalize.py": set(),
        "conversation.py": {"errors", "types", "words"},
        "words.py": set(),
        "calibration.py": {"errors"},
        "rule_index.py": {"errors"},
        "rewrite_format.py": {"types"},
        "compose.py": {"rules"},
        "lazy.py": set(),
        "quote.py": {"normalize", "types"},
        "guidance.py": {"conversation", "rules"},
        "repair.py": {"compose", "config", "errors", "guidance", "lazy", "protocols", "relevance"}
        | {"rewrite_format", "rules", "threads", "types"},
        "outcome.py": {"repair", "types"},
        "session.py": {"callables", "compose", "conversation", "errors", "guidance", "outcome", "quote"}
        | {"repair", "reply_form", "rules", "sentences", "threads", "types", "pipeline"},
        "calling.py": {"callables", "errors", "session", "threads"},
        "streaming.py": {"outcome", "reply_form", "sentences", "session"},
        "stream_forms.py": {"conversation", "deltas", "outcome", "reply_form", "streaming"},
        "stream_drivers.py": {"calling", "outcome", "streaming", "pipeline"},
        "middleware.py": {"callables", "calling", "conversation", "errors", "outcome", "session"}
        | {"stream_drivers", "stream_forms", "streaming", "pipeline"},
    }
    for path, names in RUNTIME:
        if path.parent == ROOT and path.name in below:
            own = {name.split(".")[1] for name in names if name.startswith("guardrail.")}
            assert own <= below[path.name], path.name


def test_only_the_outer_parts_know_the_middleware_and_nobody_knows_the_cli():
    assert set(importers(RUNTIME, "guardrail.middleware")) <= {"pipeline.py", "__init__.py", "streaming.py"}
    assert importers(RUNTIME, "guardrail.cli") == []


# ---------------------------------------------------------------- public names


@pytest.mark.parametrize("name", guardrail.__all__)
def test_every_exported_name_resolves(name):
    assert getattr(guardrail, name) is getattr(guardrail, name)
    assert name in dir(guardrail)


def test_exported_names_are_listed_once_and_in_order():
    assert guardrail.__all__ == sorted(set(guardrail.__all__))


def test_no_internal_name_leaks():
    script = "import guardrail, json; print(json.dumps([n for n in dir(guardrail) if not n.startswith('_')]))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    modules = {path.stem for path in ROOT.glob("*.py")} | {
        path.name for path in ROOT.iterdir() if path.is_dir()
    }

    assert set(json.loads(done.stdout)) - set(guardrail.__all__) - modules == set()


@pytest.mark.parametrize("name", ["chek", "Guardrial", "_nothing"])
def test_a_misspelt_name_is_an_attribute_error(name):
    with pytest.raises(AttributeError, match=f"module 'guardrail' has no attribute '{name}'"):
        getattr(guardrail, name)


def test_importing_a_module_does_not_hide_the_function_check():
    script = "import guardrail, guardrail.pipeline, guardrail.middleware; print(callable(guardrail.check))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "True"
