"""Where hostile requests are sent: servers as users run them, a web host that misbehaves, and other users who must not
notice."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hostile.host import Host, web_host
from server import samples
from server.bodies import PNG_URL, chat, image
from server.live import Live, eventually, user

KEYS = ("key-of-a", "key-of-b")
PNG = samples.picture()
NAMES_FOLDER = Path(__file__).parent / "names"
NAMES: dict[str, list[Any]] = {
    # Listed with the host's port by the operator.
    "allowed.test": [["127.0.0.1"]],
    "rebind.test": [["127.0.0.1"], ["169.254.169.254"]],
    "metadata.test": [["127.0.0.1", "169.254.169.254"]],
    # Below a listed suffix, or any public name.
    "inner.suffix.test": [["127.0.0.5"]],
    "two.test": [["93.184.216.34", "127.0.0.1"]],
    "six.test": [["93.184.216.34", "::1"]],
    "mapped.test": [["::ffff:127.0.0.1"]],
    "tunnel.test": [["64:ff9b::7f00:1"]],
    "inner.test": [["127.0.0.1"]],
    "many.test": [[f"127.0.{n // 250}.{n % 250 + 1}" for n in range(1000)]],
    "hang.test": ["hang"],
}


REST_S = 1.0


@dataclass
class Bystander:
    """Another user, who asks again whenever something is sent to his server, and once a second beside it; his streams
    must always say the same."""

    live: Live
    text: str
    headers: dict[str, str]
    expected: str = ""
    answers: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stop, self._woken = threading.Event(), threading.Event()
        self._rest_s: float | None = REST_S
        self.expected = self.ask()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def ask(self) -> str:
        body = chat(messages=user(self.text), max_tokens=16, temperature=0, ignore_eos=True, stream=True)
        status, _, answer = self.live.request("POST", "/v1/chat/completions", json.dumps(body).encode(), self.headers)
        assert status == 200, answer
        assert answer.endswith(b"data: [DONE]\n\n")
        chunks = [json.loads(line[6:]) for line in answer.decode().split("\n\n")[:-2]]
        return "".join(choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"])

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.answers.append(self.ask())
            except Exception as error:
                self.answers.append(repr(error))
                return
            self._woken.wait(self._rest_s)
            self._woken.clear()

    def wake(self) -> None:
        self._woken.set()

    def come(self) -> None:
        self._rest_s = REST_S
        self.wake()

    def pause(self) -> None:
        """Ask no more until something is sent, or come() is called."""
        self._rest_s = None

    def leave(self) -> None:
        self._stop.set()
        self.wake()
        self._thread.join()


@dataclass(frozen=True)
class Target(Live):
    """A server under attack."""

    process: subprocess.Popen[str]
    log: list[str]
    key: str = ""
    bystanders: list[Bystander] = field(default_factory=list)

    @property
    def engine_pid(self) -> int:
        return int(re.findall(r"the engine is process (\d+)", "".join(self.log))[-1])

    @property
    def headers(self) -> dict[str, str]:
        return {"content-type": "application/json"} | ({"authorization": f"Bearer {self.key}"} if self.key else {})

    def send(
        self, body: object, path: str, key: str | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = self.headers | ({"authorization": f"Bearer {key}"} if key else {}) | (headers or {})
        for one in self.bystanders:
            one.wake()
        status, found, answer = self.request("POST", path, data, headers)
        is_json = "json" in found.get("content-type", "")
        return status, json.loads(answer) if is_json else answer

    def health(self) -> tuple[int, bytes]:
        status, _, answer = self.request("GET", "/health")
        return status, answer

    def disturbed(self) -> list[str]:
        return [answer for one in self.bystanders for answer in one.answers if answer != one.expected]

    def memory(self) -> dict[int, int]:
        """Bytes that the server and its engine have, by process."""
        return {pid: _status(pid, "VmRSS") for pid in (self.process.pid, self.engine_pid)}

    def watch_peak(self) -> None:
        for pid in (self.process.pid, self.engine_pid):
            Path(f"/proc/{pid}/clear_refs").write_text("5")

    def peak(self) -> dict[int, int]:
        return {pid: _status(pid, "VmHWM") for pid in (self.process.pid, self.engine_pid)}


def _status(pid: int, name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) << 10 if found else 0


@dataclass
class World:
    """Servers by name, and what cases refer to."""

    servers: dict[str, Target]
    host: Host
    trap: Host
    """Answers everything with a picture; nothing may ever connect to it."""
    folder: Path
    """The one that files may be read from; beside it is `secret.png`."""
    names: Path

    def url(self, path: str, name: str = "127.0.0.1") -> str:
        return f"http://{name}:{self.host.port}{path}"

    def asked(self) -> Counter[str]:
        file = Path(f"{self.names}.asked")
        return Counter(file.read_text().split() if file.exists() else [])


@contextmanager
def target(model: Path, flags: list[str], env: dict[str, str], key: str = "", bystanders: int = 2) -> Iterator[Target]:
    """A server that is ready. Nothing of it may be left afterwards."""
    flags = ["--port", "0", "--max-model-len", "2048", "--kv-cache-bytes", "64M", "--max-num-seqs", "8", *flags]
    command = [sys.executable, "-m", "sensorium", "serve", str(model), "--served-model-name", "tiny", *flags]
    environment = {**os.environ, **env}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        log: list[str] = []
        reader = threading.Thread(target=lambda: log.extend(process.stderr or ()))
        reader.start()
        try:
            ready = eventually(lambda: any("ready after" in line for line in log) or process.poll() is not None, 240)
            url = re.search(r"listening on http://127.0.0.1:(\d+)", "".join(log))
            assert ready, "".join(log)
            assert url, "".join(log)
            live = Target(int(url[1]), None, process, log, key)  # pyright: ignore
            assert live.send(image(PNG_URL), "/v1/chat/completions")[0] == 200  # starts what starts with the first item
            live.bystanders.extend(
                Bystander(live, f"Tell me story {number}.", live.headers) for number in range(bystanders)
            )
            yield live
            for one in live.bystanders:
                one.leave()
            process.terminate()
            assert process.wait(60) == 0
        finally:
            for one in live.bystanders if "live" in locals() else ():
                one.leave()
            process.kill()
            process.wait()
            reader.join()


@contextmanager
def world(model: Path, folder: Path, bystanders: int = 2) -> Iterator[World]:
    """bystanders: streams beside the cases, at each server."""
    served = folder / "served"
    _fill(served)
    names = folder / "names.json"
    names.write_text(json.dumps(NAMES))
    paths = [str(NAMES_FOLDER), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {"HOSTILE_NAMES": str(names), "PYTHONPATH": os.pathsep.join(paths), "SENSORIUM_MEDIA_FETCH_MAX_RETRIES": "1"}
    with web_host() as host, web_host() as trap:
        hosts = [f"{name}:{host.port}" for name in ("127.0.0.1", "allowed.test", "rebind.test", "metadata.test")]
        domains = [*hosts, f".suffix.test:{host.port}"]
        listed = ["--allowed-media-domains", *domains, "--allowed-local-media-path", str(served)]
        listed += ["--enable-mm-embeds", "--media-fetch-timeout-s", "3", "--enable-auto-tool-choice"]
        listed += ["--tool-call-parser", "hermes", "--api-key", *KEYS, "--max-image-bytes", "1M"]
        public = ["--allowed-media-domains", f"*:{trap.port}", "--max-audio-s", "60"]
        with (
            target(model, public, env, bystanders=bystanders) as one,
            target(model, listed, env, KEYS[0], bystanders) as other,
        ):
            yield World({"public": one, "listed": other}, host, trap, served, names)


def _fill(served: Path) -> None:
    """Pictures inside and outside, and ways that lead from one to the other."""
    (served / "inner").mkdir(parents=True)
    (served / "inner" / "ok.png").write_bytes(PNG)
    (served.parent / "secret.png").write_bytes(PNG)
    (served / "link.png").symlink_to(served.parent / "secret.png")
    (served / "out").symlink_to(served.parent)
    os.link(served.parent / "secret.png", served / "hard.png")
    os.mkfifo(served / "pipe.png")
    with open(served / "sparse.png", "wb") as file:
        file.truncate(1 << 40)
