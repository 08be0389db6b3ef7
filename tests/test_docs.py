"""The documents keep their promises: links lead somewhere, commands exist, snippets compile."""

from __future__ import annotations

import ast
import re
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from sensorium.cli import COMMANDS
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
    for snippet in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        ast.parse(snippet)


@pytest.mark.parametrize("name", ["minicpm.md", "offline.md", "vllm-migration.md"])
def test_python_snippets_run(name, packaged_model, capsys):
    """In one namespace, so that later ones may build on earlier ones."""
    scope: dict[str, object] = {}
    snippets = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / name).read_text(), re.DOTALL)
    assert snippets
    for number, snippet in enumerate(snippets):
        exec(compile(snippet, f"{name}, snippet {number}", "exec"), scope)


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
