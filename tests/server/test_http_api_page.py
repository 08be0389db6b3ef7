"""The snippets of README.md, http-api.md, doors.md, realtime.md and speaking.md run against a live server, in order."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from server.bodies import PNG_URL
from server.live import Live
from server.samples import sound

ROOT = Path(__file__).resolve().parents[2]


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


def test_the_snippets_about_speaking_run(speaking: Live, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "anna.wav").write_bytes(sound(3.0))
    monkeypatch.chdir(tmp_path)
    snippets = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "speaking.md").read_text(), re.DOTALL)
    assert len(snippets) == 3
    names: dict[str, object] = {}
    for snippet in snippets:
        exec(snippet.replace("http://127.0.0.1:8000", speaking.url), names)
    names["client"].close()  # type: ignore[attr-defined]


def test_the_snippets_of_the_first_page_run(
    live: Live, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    shutil.copy(ROOT / "sensorium" / "packaged" / "demo" / "scene.png", tmp_path)
    monkeypatch.chdir(tmp_path)
    snippets = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(snippets) == 2
    names: dict[str, object] = {}
    for snippet in snippets:
        snippet = snippet.replace("http://127.0.0.1:8000", live.url).replace("sensorium-tiny", "tiny")
        exec(snippet.replace("data:image/png;base64,...", PNG_URL), names)
        assert capsys.readouterr().out.strip()
    names["client"].close()  # type: ignore[attr-defined]
