"""Many streams at once, each compared token by token with its answer alone.

    python tests/soak/streams.py --streams 200 --requests 10000 --json streams.json

Passes with no error and no difference, and memory within 5 % of what it was after the first tenth.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from typing import Any

import aiohttp
from common import memory, percentile, report, serving

from server import samples  # isort: skip - common makes it importable

KINDS = 10


def question(number: int) -> list[dict[str, Any]]:
    """Ten questions: seven of text, one of a picture, one of a sound, one with a long prompt."""
    if number == 7:
        url = samples.data_url("image/png", samples.picture(96, 96, seed=number))
        return [{"type": "text", "text": "What is that?"}, {"type": "image_url", "image_url": {"url": url}}]
    if number == 8:
        url = samples.data_url("audio/wav", samples.sound(0.5))
        return [{"type": "audio_url", "audio_url": {"url": url}}, {"type": "text", "text": "?"}]
    return [{"type": "text", "text": f"Question {number}. " * (60 if number == 9 else 1)}]


BODIES = [
    json.dumps(
        {
            "messages": [{"role": "user", "content": question(number)}],
            "max_tokens": 12 + number,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "return_token_ids": True,
        }
    ).encode()
    for number in range(KINDS)
]


class Run:
    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self._url, self._session = url + "/v1/chat/completions", session
        self.errors: list[str] = []
        self.differences: list[str] = []
        self.firsts: list[float] = []
        self.gaps: list[float] = []
        self.tokens = 0

    async def ask(self, number: int) -> list[int] | None:
        """The ids of an answer; None where there was an error, which is kept."""
        ids: list[int] = []
        at = time.perf_counter()
        headers = {"content-type": "application/json"}
        try:
            async with self._session.post(self._url, data=BODIES[number], headers=headers) as response:
                if response.status != 200:
                    self.errors.append(f"{response.status} {(await response.text())[:200]}")
                    return None
                async for line in response.content:
                    if not line.startswith(b"data: {"):
                        continue
                    event = json.loads(line[6:])
                    if "error" in event:
                        self.errors.append(str(event["error"]))
                        return None
                    new = [i for choice in event["choices"] for i in choice.get("token_ids") or ()]
                    if new:
                        now = time.perf_counter()
                        (self.gaps if ids else self.firsts).append(now - at)
                        ids, at = ids + new, now
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
            self.errors.append(repr(error))
            return None
        self.tokens += len(ids)
        return ids

    async def many(self, count: int, streams: int, alone: list[list[int] | None]) -> None:
        numbers = iter(range(count))

        async def client() -> None:
            for number in numbers:
                found = await self.ask(number % KINDS)
                if found is not None and found != alone[number % KINDS]:
                    self.differences.append(f"{number % KINDS}: {found} in place of {alone[number % KINDS]}")

        await asyncio.gather(*(client() for _ in range(streams)))


async def measure(url: str, pids: tuple[int, int], streams: int, requests: int) -> dict[str, Any]:
    connector, timeout = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=600)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        alone = [await Run(url, session).ask(number) for number in range(KINDS)]
        again = [await Run(url, session).ask(number) for number in range(KINDS)]
        assert alone == again
        assert all(alone)
        first = Run(url, session)
        await first.many(requests // 10, streams, alone)
        before = memory(*pids)
        rest = Run(url, session)
        begun = time.perf_counter()
        await rest.many(requests - requests // 10, streams, alone)
        seconds = time.perf_counter() - begun
        after = memory(*pids)
    errors, differences = first.errors + rest.errors, first.differences + rest.differences
    return {
        "test": "T-2 streams",
        "streams": streams,
        "requests": requests,
        "errors": len(errors),
        "differences": len(differences),
        "examples": [*errors[:5], *differences[:5]],
        "requests_per_s": (requests - requests // 10) / seconds,
        "tokens_per_s": rest.tokens / seconds,
        "first_token_s_p50_p99": [percentile(rest.firsts, 0.5), percentile(rest.firsts, 0.99)],
        "gap_s_p50_p99": [percentile(rest.gaps, 0.5), percentile(rest.gaps, 0.99)],
        "memory_growth_percent": {
            kind: round(100 * (after[kind] / before[kind] - 1), 2) for kind in before if before[kind]
        },
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--json", help="file for the result")
    given = parser.parse_args()
    flags = ["--max-model-len", "2048", "--kv-cache-bytes", "256M", "--max-num-seqs", str(given.streams)]
    with serving(*flags) as server:
        pids = server.process.pid, server.engine_pid
        result = asyncio.run(measure(server.url, pids, given.streams, given.requests))
        result["restarts"] = server.restarts
    report(result, given.json)
    return int(bool(result["errors"] or result["differences"]))


if __name__ == "__main__":
    raise SystemExit(main())
