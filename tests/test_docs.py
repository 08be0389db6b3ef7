"""The documents keep their promises: links lead somewhere, commands exist, snippets compile."""

from __future__ import annotations

import ast
import re
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from sensorium.cli import COMMANDS, serve
from sensorium.cli.parser import Parser
from sensorium.types import SamplingParams

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_exist(page):
    text = page.read_text()
    targets = re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE)) <= set(targets)
    assert set(re.findall(r"(?:^|[`/])sensorium ([a-z-]+)", text, re.MULTILINE)) <= set(COMMANDS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_snippets_compile(page):
    for snippet in snippets_of(page):
        ast.parse(snippet)


ALONE = ("minicpm.md", "offline.md", "sampling.md", "sessions.md", "vllm-migration.md")
SERVED = ("README.md", "doors.md", "http-api.md", "realtime.md", "speaking.md")
"""Run by tests/server/test_http_api_page.py."""
LARGE = ("codec.md", "duplex.md", "speech.md")
"""Of parts whose weights are too large for tests; their own tests run what these pages show."""


CLIENTS = ("clients.md",)
"""Of packages in an environment of their own; run by tests/clients/test_clients_page.py."""


def snippets_of(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)


def test_every_snippet_is_run_somewhere():
    assert {page.name for page in PAGES if snippets_of(page)} == {*ALONE, *SERVED, *LARGE, *CLIENTS}


@pytest.mark.parametrize("name", ALONE)
def test_python_snippets_run(name, packaged_model, capsys):
    """In one namespace, so that later ones may build on earlier ones."""
    scope: dict[str, object] = {}
    snippets = snippets_of(ROOT / "docs" / name)
    for number, snippet in enumerate(snippets):
        exec(compile(snippet, f"{name}, snippet {number}", "exec"), scope)
    scope.clear()  # its functions would keep its engines


def test_flags_exist():
    """Those of the server, and those that a command of the package or a script of ours defines."""
    parser = Parser(prog="serve", usage="")
    serve.add_arguments(parser)
    folders = ("sensorium", "tests", "training", "benchmarks")
    scripts = [file for folder in folders for file in (ROOT / folder).rglob("*.py")]
    known = {flag for file in scripts for flag in re.findall(r'"(--[a-z][a-z0-9-]+)"', file.read_text())}
    known |= {*parser._option_string_actions, "--x", "--no-x", "--enable-x", "--disable-x"}
    named = {
        (page.name, flag) for page in PAGES for flag in re.findall(r"`[^`\n]*?(--[a-z][a-z0-9-]+)", page.read_text())
    }
    assert sorted((page, flag) for page, flag in named if flag not in known) == []


def test_every_sampling_parameter_is_documented():
    rows = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs" / "sampling.md").read_text(), re.MULTILINE)
    assert rows
    assert set(rows) == {field.name for field in fields(SamplingParams)}


def test_every_decision_is_listed():
    folder = ROOT / "docs" / "adr"
    listed = re.findall(r"\]\((\d{4}-[^)]+\.md)\)", (folder / "README.md").read_text())
    assert sorted(listed) == sorted(path.name for path in folder.glob("0*.md"))


def test_every_import_is_a_declared_dependency():
    """What sensorium imports at the top of a module is installed with it, not by luck of another package."""
    project = (ROOT / "pyproject.toml").read_text()
    declared = re.findall(r'^  "([a-z0-9-]+)[>\[]', project[: project.index("[project.optional-dependencies]")], re.M)
    names = {name.replace("-", "_") for name in declared} | {"PIL", "sensorium", "yaml"}
    imported = set()
    for path in (ROOT / "sensorium").rglob("*.py"):
        if path.stem.startswith("triton"):  # comes with torch where there is a GPU
            continue
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add((node.module or "").split(".")[0])
    assert imported - names - set(sys.stdlib_module_names) == set()
