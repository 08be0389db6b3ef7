"""`sensorium chat`: a conversation in the terminal, with a model in this process or on an OpenAI-compatible server."""

from __future__ import annotations

import base64
import contextlib
import json
import mimetypes
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from sensorium.cli.loading import LoadingBar
from sensorium.cli.options import add_flags, build
from sensorium.cli.parser import Parser
from sensorium.cli.values import integer, number
from sensorium.config import EngineConfig
from sensorium.envs import read_environment
from sensorium.errors import EngineError, RequestError, SensoriumError
from sensorium.types import Failed, Prompt, TextDelta

with contextlib.suppress(ImportError):  # not on every system
    import readline  # noqa: F401 - gives input() a history and arrow keys

HELP = """\
/image FILE   add a picture to the next message     /reset   forget the conversation
/audio FILE   add a recording                       /quit    leave (or Ctrl-D)
/video FILE   add a video                           /help    this text
A line that ends in \\ goes on in the next one. Ctrl-C stops an answer."""
MEDIA = ("image", "audio", "video")
SAMPLING = ("temperature", "top_p", "max_tokens")

Messages = list[dict[str, Any]]


class Backend(Protocol):
    """Whoever answers."""

    name: str

    def answer(self, messages: Messages) -> Iterator[str]:
        """Pieces of the answer. Closing the iterator ends the generation."""
        ...

    def complete(self, prompt: str) -> Iterator[str]:
        """Pieces of the continuation of a prompt in the model's own notation."""
        ...


def add_arguments(parser: Parser) -> None:
    parser.add_model()
    parser.add_argument("--url", help="talk to a server instead, such as http://127.0.0.1:8000/v1")
    parser.add_argument("--api-key", default="", metavar="TEXT", help="key for --url; else SENSORIUM_API_KEY")
    parser.add_argument("--system", default="", metavar="TEXT", help="system message")
    parser.add_argument(
        "--temperature", type=number, metavar="X", help="0 takes the likeliest token; by default the model's"
    )
    parser.add_argument("--top-p", type=number, metavar="X", help="share of the likeliest tokens to draw from")
    parser.add_argument("--max-tokens", type=integer, default=512, metavar="N", help="longest answer")
    add_flags(parser, EngineConfig, title="engine, without --url")


def run(parser: Parser, given: dict[str, Any]) -> int:
    with choose_backend(given) as backend:
        Chat(backend, given["system"]).run()
    return 0


class Chat:
    """The conversation so far, and the media waiting for the next message."""

    def __init__(self, backend: Backend, system: str) -> None:
        self.backend = backend
        self.system = system
        self.messages: Messages = []
        self.media: list[dict[str, Any]] = []
        self.reset()

    def reset(self) -> None:
        self.messages = [{"role": "system", "content": self.system}] if self.system else []
        self.media = []

    def run(self) -> None:
        print(f"{self.backend.name}. /help lists the commands.")
        while (text := self._read()) is not None:
            if text.startswith("/"):
                if text.strip() in ("/quit", "/exit"):
                    return
                self._command(text)
            elif text.strip():
                self._ask(text)

    def _read(self) -> str | None:
        """A message of one or more lines; None at the end of the input."""
        lines: list[str] = []
        try:
            while True:
                line = input("> " if not lines else ". ")
                lines.append(line.removesuffix("\\"))
                if not line.endswith("\\"):
                    return "\n".join(lines)
        except EOFError:
            print()
            return "\n".join(lines) if lines else None
        except KeyboardInterrupt:
            print()
            return ""

    def _command(self, text: str) -> None:
        name, _, rest = text[1:].strip().partition(" ")
        if name in MEDIA:
            self._attach(name, rest.strip().strip("'\""))
        elif name == "reset":
            self.reset()
            print("The conversation is forgotten.")
        else:
            print(HELP if name == "help" else f"There is no /{name}.\n{HELP}")

    def _attach(self, kind: str, name: str) -> None:
        path = Path(name).expanduser()
        try:
            data = path.read_bytes()
        except OSError as error:
            print(f"Cannot read {name or 'a file with no name'}: {error.strerror}.")
            return
        mime = mimetypes.guess_type(path.name)[0] or f"{kind}/octet-stream"
        url = f"data:{mime};base64,{base64.b64encode(data).decode()}"
        self.media.append({"type": f"{kind}_url", f"{kind}_url": {"url": url}})
        print(f"{path.name} goes with your next message.")

    def _ask(self, text: str) -> None:
        """Send a message and print the answer as it comes. A message that fails is not part of the conversation."""
        content: Any = [*self.media, {"type": "text", "text": text}] if self.media else text
        self.messages.append({"role": "user", "content": content})
        pieces: list[str] = []
        started = time.perf_counter()
        answer = self.backend.answer(self.messages)
        try:
            for piece in answer:
                print(piece, end="", flush=True)
                pieces.append(piece)
        except KeyboardInterrupt:
            answer.close()  # type: ignore[attr-defined] - both backends are generators
            print(" (stopped)", end="")
        except SensoriumError as error:
            self.messages.pop()
            self.media = []
            print(f"That did not work: {error}")
            return
        print()
        print(f"({time.perf_counter() - started:.1f} s)", file=sys.stderr)
        self.media = []
        self.messages.append({"role": "assistant", "content": "".join(pieces)})


# ---- backends -----------------------------------------------------------------------------------------------------


def choose_backend(given: dict[str, Any]) -> AbstractContextManager[Backend]:
    options = {name: given[name] for name in SAMPLING if given[name] is not None}
    if given["url"]:
        key = given["api_key"] or read_environment().api_key or ""
        return nullcontext(Remote(given["url"], key, options, given["model"]))
    return Local(build(EngineConfig, given, model=given["model"]), options)


class Local:
    """An engine in this process."""

    def __init__(self, config: EngineConfig, options: dict[str, Any]) -> None:
        from sensorium.engine.client import EngineClient

        with LoadingBar(config.use_tqdm_on_load) as bar:
            self.client = EngineClient(config, bar.update)
        self.name = self.client.model_name
        self.sampling = replace(self.client.default_sampling, **options)

    def answer(self, messages: Messages) -> Iterator[str]:
        from sensorium.messages import read_messages

        return self._pieces(self.client.prepare_chat(read_messages(messages)))

    def complete(self, prompt: str) -> Iterator[str]:
        return self._pieces(self.client.prepare_raw(prompt))

    def _pieces(self, prompt: Prompt) -> Iterator[str]:
        stream = self.client.submit(prompt, self.sampling)
        try:
            for event in stream:
                if isinstance(event, TextDelta):
                    yield event.text
                elif isinstance(event, Failed):
                    raise EngineError(event.message)
        finally:
            stream.abort()

    def __enter__(self) -> Local:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()


class Remote:
    """A server that speaks the OpenAI API."""

    def __init__(self, url: str, api_key: str, options: dict[str, Any], model: str) -> None:
        self.url = url.rstrip("/")
        self.options = options
        self.headers = {"content-type": "application/json"}
        if api_key:
            self.headers["authorization"] = f"Bearer {api_key}"
        with self._open("/models") as reply:
            models = [card["id"] for card in json.load(reply)["data"]]
        self.model = model or models[0]
        self.name = f"{self.model} at {self.url}"

    def answer(self, messages: Messages) -> Iterator[str]:
        for choice in self._choices("/chat/completions", {"messages": messages}):
            yield choice["delta"].get("content") or ""

    def complete(self, prompt: str) -> Iterator[str]:
        for choice in self._choices("/completions", {"prompt": prompt}):
            yield choice.get("text") or ""

    def _choices(self, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        body = {"model": self.model, **body, "stream": True, **self.options}
        with self._open(path, json.dumps(body).encode()) as reply:
            for line in reply:
                data = line.decode().removeprefix("data:").strip()
                if not line.startswith(b"data:") or data == "[DONE]":
                    continue
                chunk = json.loads(data)
                if "error" in chunk:
                    raise EngineError(chunk["error"]["message"])
                yield from chunk["choices"]

    def _open(self, path: str, body: bytes | None = None) -> Any:
        request = urllib.request.Request(self.url + path, body, self.headers)
        try:
            return urllib.request.urlopen(request, timeout=600)
        except urllib.error.HTTPError as error:
            raise RequestError(_error_message(error)) from None
        except (OSError, ValueError) as error:
            raise RequestError(f"cannot reach {self.url} ({error}); is `sensorium serve` running there?") from None


def _error_message(error: urllib.error.HTTPError) -> str:
    try:
        return json.loads(error.read())["error"]["message"]
    except (ValueError, KeyError, TypeError):
        return f"the server answered {error.code}"
