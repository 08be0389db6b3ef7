"""The snippets of docs/clients.md, each a program of its own, against a live server."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from clients.conftest import CLIENTS_PYTHON, MODEL, ROOT, program_environment

PAGE = (ROOT / "docs" / "clients.md").read_text("utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
[JAVASCRIPT] = re.findall(r"```js\n(.*?)```", PAGE, re.DOTALL)
pytestmark = pytest.mark.slow


def run(command: list[str], folder: Path | None = None, **environment: str) -> str:
    done = subprocess.run(
        command, env=program_environment(**environment), cwd=folder, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.mark.parametrize("snippet", PYTHON, ids=lambda snippet: snippet.split()[1])
def test_a_snippet_runs(program: Callable[..., Any], url: str, snippet: str):
    there = snippet.replace("127.0.0.1:8000", url.removeprefix("http://")).replace("sensorium-tiny", MODEL)
    assert run([str(CLIENTS_PYTHON), "-c", there]).strip()


def test_the_snippet_for_node_runs(node: str, tls_url: str, certificate: Path):
    there = JAVASCRIPT.replace("https://localhost:8000", tls_url).replace("sensorium-tiny", MODEL)
    command = [node, "--input-type=module", "--eval", there]
    assert run(command, ROOT / "tests" / "clients" / "js", NODE_EXTRA_CA_CERTS=str(certificate / "cert.pem")).strip()
