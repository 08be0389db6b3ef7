"""Open-loop load on an OpenAI-compatible server: requests leave at their time, whether or not others are answered."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from sensorium.bench.datasets import Ask, content
from sensorium.errors import SensoriumError

Clock = Callable[[], float]
Sleep = Callable[[float], Awaitable[object]]
PATHS = {"openai": "/v1/completions", "openai-chat": "/v1/chat/completions"}


@dataclass(frozen=True, slots=True)
class Target:
    """Where requests go and what they all ask for."""

    base_url: str
    backend: str = "openai"
    """openai: completions; openai-chat: chat completions."""
    endpoint: str = ""
    model: str = ""
    api_key: str = ""
    ignore_eos: bool = True
    extra_body: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def url(self) -> str:
        return self.base_url.rstrip("/") + (self.endpoint or PATHS[self.backend])

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}

    def body(self, ask: Ask) -> dict[str, Any]:
        asked: dict[str, Any] = {"model": self.model, "stream": True, "stream_options": {"include_usage": True}}
        asked |= {"max_tokens": ask.max_tokens, "temperature": 0.0}
        if self.ignore_eos:
            asked["ignore_eos"] = True
        asked |= self.extra_body
        if self.backend == "openai":
            return asked | {"prompt": ask.text}
        return asked | {"messages": [{"role": "user", "content": content(ask)}]}


@dataclass(slots=True)
class Outcome:
    """What became of a request. Seconds; started_s from the beginning of the run."""

    started_s: float
    ttft_s: float | None = None
    gaps_s: list[float] = field(default_factory=list[float])
    """Between chunks that brought text."""
    total_s: float = 0.0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    error: str | None = None


async def run(
    target: Target,
    asks: Sequence[Ask],
    times: Sequence[float],
    max_concurrency: int | None = None,
    *,
    clock: Clock = time.perf_counter,
    sleep: Sleep = asyncio.sleep,
) -> list[Outcome]:
    """Send ask i at times[i], or once fewer than max_concurrency are under way; wait for all."""
    room = asyncio.Semaphore(max_concurrency) if max_concurrency else None
    bodies = [json.dumps(target.body(ask)).encode() for ask in asks]
    timeout, limit = aiohttp.ClientTimeout(total=None), aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=limit, read_bufsize=1 << 20) as session:
        begun = clock()

        async def one(body: bytes) -> Outcome:
            if room is None:
                return await _send(session, target, body, begun, clock)
            async with room:
                return await _send(session, target, body, begun, clock)

        tasks: list[asyncio.Task[Outcome]] = []
        for body, at in zip(bodies, times, strict=True):
            if (left := at - (clock() - begun)) > 0:
                await sleep(left)
            tasks.append(asyncio.create_task(one(body)))
        return list(await asyncio.gather(*tasks))


async def find_model(target: Target) -> str:
    """The first model that the server lists."""
    async with aiohttp.ClientSession() as session:
        try:
            async with session.get(f"{target.base_url.rstrip('/')}/v1/models", headers=target.headers) as reply:
                reply.raise_for_status()
                return str((await reply.json())["data"][0]["id"])
        except (aiohttp.ClientError, ValueError, LookupError, TypeError) as error:
            raise SensoriumError(
                f"{target.base_url}/v1/models does not say what is served ({error}); is a server there? "
                "`sensorium serve` starts one"
            ) from None


class TokenCounter:
    """How many tokens a text is to the server, by its /tokenize route; without one, a token for four characters.

    Close it.
    """

    def __init__(self, target: Target) -> None:
        self.exact = True
        self._target = target
        self._loop = asyncio.new_event_loop()
        self._session: aiohttp.ClientSession | None = None

    def __call__(self, text: str) -> int:
        found = self._loop.run_until_complete(self._ask(text)) if self.exact else None
        if found is None:
            self.exact = False
            return max(len(text) // 4, 1)
        return found

    def close(self) -> None:
        if self._session is not None:
            self._loop.run_until_complete(self._session.close())
        self._loop.close()

    async def _ask(self, text: str) -> int | None:
        if self._session is None:
            self._session = aiohttp.ClientSession(headers=self._target.headers)
        asked = {"model": self._target.model, "prompt": text}
        try:
            async with self._session.post(f"{self._target.base_url.rstrip('/')}/tokenize", json=asked) as reply:
                return int((await reply.json())["count"]) if reply.status == 200 else None
        except (aiohttp.ClientError, ValueError, LookupError, TypeError):
            return None


async def _send(session: aiohttp.ClientSession, target: Target, body: bytes, begun: float, clock: Clock) -> Outcome:
    start = last = clock()
    outcome = Outcome(start - begun)
    headers = {"Content-Type": "application/json", **target.headers}
    try:
        async with session.post(target.url, data=body, headers=headers) as reply:
            if reply.status != 200:
                outcome.error = f"{reply.status}: {(await reply.text())[:500]}"
                return outcome
            async for chunk in _events(reply):
                now = clock()
                _count(outcome, chunk)
                if not _text(chunk):
                    continue
                if outcome.ttft_s is None:
                    outcome.ttft_s = now - start
                else:
                    outcome.gaps_s.append(now - last)
                last = now
    except (aiohttp.ClientError, OSError, ValueError, asyncio.TimeoutError) as error:
        outcome.error = f"{type(error).__name__}: {error}"
    outcome.total_s = clock() - start
    if outcome.error is None and outcome.ttft_s is None:
        # Tokens that are no text came, and the end was the first to be seen of them.
        outcome.ttft_s = outcome.total_s
        outcome.error = None if outcome.completion_tokens else "the answer was empty"
    return outcome


async def _events(reply: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    """The JSON objects of a server-sent event stream."""
    async for line in reply.content:
        if line.startswith(b"data:") and (data := line[5:].strip()) != b"[DONE]":
            yield json.loads(data)


def _count(outcome: Outcome, chunk: Mapping[str, Any]) -> None:
    if isinstance(chunk.get("error"), dict):
        outcome.error = str(chunk["error"].get("message"))
    if usage := chunk.get("usage"):
        outcome.prompt_tokens = usage.get("prompt_tokens", 0)
        outcome.completion_tokens = usage.get("completion_tokens", 0)


def _text(chunk: Mapping[str, Any]) -> bool:
    """Whether a chunk brings text, of whatever kind."""
    for choice in chunk.get("choices") or ():
        delta = choice.get("delta") or {}
        if choice.get("text") or delta.get("content") or delta.get("reasoning") or delta.get("reasoning_content"):
            return True
    return False
