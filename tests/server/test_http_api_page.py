"""The snippets of docs/http-api.md, doors.md and realtime.md run, one after the other, against a live server."""

from __future__ import annotations

import re

import pytest
from server.conftest import ROOT
from server.live import Live


@pytest.mark.parametrize(("page", "count"), [("http-api.md", 4), ("doors.md", 5), ("realtime.md", 1)])
def test_the_snippets_run(live: Live, page: str, count: int):
    snippets = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)
    names: dict[str, object] = {}
    for snippet in snippets:
        exec(snippet.replace("http://127.0.0.1:8000", live.url), names)
    assert len(snippets) >= count
    for name in ("client", "claude"):
        if name in names:
            names[name].close()  # type: ignore[attr-defined]
