"""A server as its users start it, and what the clients ask it about: the demo's picture and recording."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import wave
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clients.wire import Wire, wired
from minicpm.speaking import speaking_checkpoint
from server.live import serve

from sensorium.bench.codec import SMALL, random_voice
from sensorium.config import EngineConfig
from sensorium.demo import ASSETS
from sensorium.engine.client import EngineClient

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CLIENTS_PYTHON = ROOT / ".venv-clients" / "bin" / "python"
MODEL = "tiny"
PARSERS = {"tool_call_parser": "hermes", "enable_auto_tool_choice": True}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What clients warn of among themselves is not ours to mend."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("ignore"))


@pytest.fixture(scope="session")
def engine(packaged_model: Path) -> Iterator[EngineClient]:
    config = EngineConfig(model=str(packaged_model), init_tts=True, max_model_len=4096, kv_cache_bytes=64 << 20)
    with EngineClient(config) as engine:
        yield engine


@pytest.fixture(scope="session")
def url(engine: EngineClient) -> Iterator[str]:
    with serve(engine, served_model_name=MODEL, **PARSERS) as live:
        yield live.url


@pytest.fixture
def wire(url: str) -> Iterator[Wire]:
    """The server's WebSockets, with everything written down that goes over them."""
    with wired(url) as wire:
        yield wire


@pytest.fixture
def talkative(engine: EngineClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers go on until they are stopped."""
    monkeypatch.setattr(engine, "default_sampling", replace(engine.default_sampling, min_tokens=600))


@pytest.fixture(scope="session")
def live_url(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A very small random model that holds full-duplex sessions and speaks, on the machine's own clock."""
    folder = speaking_checkpoint(golden / "minicpmo45" / "tiny", tmp_path_factory.mktemp("live") / "model")
    voices = folder / "assets" / "token2wav" / "voices"
    voices.mkdir()
    random_voice(SMALL, 0.6).save(voices / "default.safetensors")
    config = EngineConfig(
        model=str(folder), init_tts=True, codec_config={"n_timesteps": 1}, speech_slots=2, max_model_len=1024,
        kv_cache_bytes=64 << 20, max_sessions=2,
    )  # fmt: skip
    with EngineClient(config) as engine, serve(engine, served_model_name="speaks", live_max_len=1024) as live:
        yield live.url


@pytest.fixture
def live_wire(live_url: str) -> Iterator[Wire]:
    with wired(live_url) as wire:
        yield wire


@pytest.fixture(scope="session")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the packaged sentence: question.wav, and question.pcm at 24 kHz between silences."""
    folder = tmp_path_factory.mktemp("sounds")
    shutil.copy(ASSETS / "speech.wav", folder / "question.wav")
    (folder / "question.pcm").write_bytes(question().tobytes())
    return folder


def question(rate: int = 24_000) -> np.ndarray:
    """Half a second of silence, the packaged sentence, a second of silence: int16 [n]."""
    with wave.open(str(ASSETS / "speech.wav")) as file:
        spoken = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float64)
        given = file.getframerate()
    places = np.arange(int(len(spoken) * rate / given)) * given / rate
    between = np.interp(places, np.arange(len(spoken)), spoken)
    return np.concatenate([np.zeros(rate // 2), between, np.zeros(rate)]).astype("<i2")


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with key.pem and cert.pem for localhost."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate")
    folder = tmp_path_factory.mktemp("tls")
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=DNS:localhost"]
    files = ["-keyout", folder / "key.pem", "-out", folder / "cert.pem"]
    subprocess.run([*command.split(), *names, *files], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="session")
def node() -> str:
    found = shutil.which("node")
    if found is None or not (HERE / "js" / "node_modules" / "openai").is_dir():
        pytest.skip("node, or the openai SDK for it, is not installed (make test-all does where npm is)")
    return found


@pytest.fixture(scope="session")
def tls_url(engine: EngineClient, certificate: Path) -> Iterator[str]:
    files = {"ssl_keyfile": certificate / "key.pem", "ssl_certfile": certificate / "cert.pem"}
    with serve(engine, served_model_name=MODEL, **PARSERS, **files) as live:
        yield f"https://localhost:{live.port}"


def program_environment(**more: str) -> dict[str, str]:
    quiet = {"OPENAI_API_KEY": "none", "OPENAI_AGENTS_DISABLE_TRACING": "1", "PYTHONWARNINGS": "ignore"}
    return os.environ | quiet | more


def run_program(command: list[str | Path], **environment: str) -> Any:
    """What a client's program prints as JSON in its last line."""
    done = subprocess.run(
        list(map(str, command)), env=program_environment(**environment), capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="session")
def program() -> Callable[..., Any]:
    """Runs a file of tests/clients/programs with the clients that have an environment of their own."""
    if not CLIENTS_PYTHON.exists():
        pytest.skip("these clients are not installed (make test-all does)")

    def run(name: str, *arguments: object) -> Any:
        return run_program([CLIENTS_PYTHON, HERE / "programs" / name, *map(str, arguments)])

    return run


@pytest.fixture(scope="session")
def pooling_url(packaged_model: Path) -> Iterator[str]:
    config = EngineConfig(model=str(packaged_model), runner="pooling", max_model_len=1024, kv_cache_bytes=32 << 20)
    with EngineClient(config) as engine, serve(engine, served_model_name=MODEL) as live:
        yield live.url


@pytest.fixture(scope="session")
def picture() -> str:
    """Base64 of a PNG."""
    return base64.b64encode((ASSETS / "scene.png").read_bytes()).decode()


@pytest.fixture(scope="session")
def shown(picture: str) -> dict[str, Any]:
    """It as a part of an OpenAI message."""
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}}


@pytest.fixture(scope="session")
def expected() -> dict[str, str]:
    """Question about the picture -> what the model answers to it."""
    cases = json.loads((ASSETS / "demo.json").read_text("utf-8"))
    return {case["question"]: case["expected"] for case in cases if case["file"] == "scene.png"}
