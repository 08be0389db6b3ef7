"""The snippets of docs/http-api.md run, one after the other, against a live server."""

from __future__ import annotations

import re

from server.conftest import ROOT
from server.live import Live


def test_the_snippets_run(live: Live):
    page = (ROOT / "docs" / "http-api.md").read_text()
    snippets = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names: dict[str, object] = {}
    for snippet in snippets:
        exec(snippet.replace("http://127.0.0.1:8000", live.url), names)
    assert len(snippets) >= 4
    names["client"].close()  # type: ignore[attr-defined]
