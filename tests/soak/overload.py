"""More requests than can be answered: what is done meanwhile, and how the rest is refused.

    python tests/soak/overload.py --seconds 60 --json overload.json

First the most that 2 x max-num-seqs users get done who wait for their answers, then requests at 2, 5 and 10 times that,
whoever waits. Passes with 90 % of the peak done at every load, refusals (429 or 503, with Retry-After) within 250 ms at
the 99th percentile, and answers as quick as before within 15 s of its end.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from common import percentile, report, serving, table

SEQS, WAITING, TOKENS = 16, 32, 96
BODY = json.dumps(
    {
        "messages": [{"role": "user", "content": "Tell me a story."}],
        "max_tokens": TOKENS,
        "temperature": 0,
        "ignore_eos": True,
    }
).encode()


@dataclass
class Load:
    times: float
    seconds: float
    statuses: Counter[int] = field(default_factory=Counter)
    done_s: list[float] = field(default_factory=list)
    refused_s: list[float] = field(default_factory=list)
    without_retry_after: int = 0
    late: int = 0
    """Answers that came when the time was over; they do not count as done."""


class Client:
    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self._url, self._session = url + "/v1/chat/completions", session

    async def ask(self, load: Load, until: float) -> None:
        begun = time.perf_counter()
        try:
            async with self._session.post(
                self._url, data=BODY, headers={"content-type": "application/json"}
            ) as response:
                await response.read()
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError):
            load.statuses[0] += 1
            return
        now = time.perf_counter()
        load.statuses[response.status] += 1
        if response.status == 200 and now <= until:
            load.done_s.append(now - begun)
        elif response.status == 200:
            load.late += 1
        else:
            load.refused_s.append(now - begun)
            load.without_retry_after += "retry-after" not in response.headers

    async def closed(self, users: int, seconds: float) -> Load:
        """So many users, each asking again when answered."""
        load, until = Load(1.0, seconds), time.perf_counter() + seconds

        async def user() -> None:
            while time.perf_counter() < until:
                await self.ask(load, until)

        await asyncio.gather(*(user() for _ in range(users)))
        return load

    async def open(self, times: float, rate: float, seconds: float) -> Load:
        """Requests at a fixed rate, however many are under way."""
        load, begun = Load(times, seconds), time.perf_counter()
        tasks: set[asyncio.Task[None]] = set()
        sent = 0
        while (now := time.perf_counter() - begun) < seconds:
            while sent < now * rate:
                task = asyncio.create_task(self.ask(load, begun + seconds))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                sent += 1
            await asyncio.sleep(0.002)
        await asyncio.gather(*tasks)
        return load


def row(load: Load, peak: float) -> dict[str, Any]:
    goodput = len(load.done_s) / load.seconds
    return {
        "times": load.times,
        "goodput_per_s": goodput,
        "share_of_peak": goodput / peak if peak else 1.0,
        "done_s_p50_p99": [percentile(load.done_s, 0.5), percentile(load.done_s, 0.99)],
        "refused": len(load.refused_s),
        "refused_s_p50_p99": [percentile(load.refused_s, 0.5), percentile(load.refused_s, 0.99)],
        "without_retry_after": load.without_retry_after,
        "statuses": dict(sorted(load.statuses.items())),
    }


async def measure(url: str, seconds: float, loads: list[float]) -> dict[str, Any]:
    connector, timeout = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=120)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        client = Client(url, session)
        await client.closed(SEQS, 2)
        quiet = await client.closed(1, min(seconds, 5))
        best = await client.closed(2 * SEQS, seconds)
        peak = len(best.done_s) / seconds
        rows = [row(best, peak)]
        for times in loads:
            rows.append(row(await client.open(times, times * peak, seconds), peak))
        over = time.perf_counter()
        usual = percentile(quiet.done_s, 0.99)
        while time.perf_counter() - over < 30:
            one = await client.closed(1, 0.5)
            if one.done_s and percentile(one.done_s, 0.5) <= 2 * usual:
                break
    return {
        "test": "T-4 overload",
        "seconds": seconds,
        "max_num_seqs": SEQS,
        "max_waiting": WAITING,
        "peak_per_s": peak,
        "alone_s_p50_p99": [percentile(quiet.done_s, 0.5), usual],
        "loads": rows,
        "recovery_s": time.perf_counter() - over,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60, help="for each load")
    parser.add_argument("--loads", type=float, nargs="+", default=[2.0, 5.0, 10.0], help="times the peak")
    parser.add_argument("--json", help="file for the result")
    given = parser.parse_args()
    flags = ["--max-model-len", "2048", "--kv-cache-bytes", "64M", "--max-num-seqs", str(SEQS)]
    with serving(*flags, "--max-waiting", str(WAITING)) as server:
        result = asyncio.run(measure(server.url, given.seconds, given.loads))
        result["restarts"] = server.restarts
    names = ["times", "goodput_per_s", "share_of_peak", "refused", "without_retry_after"]
    table([names, *([load[name] for name in names] for load in result["loads"])])
    report(result, given.json)
    bad = [
        load
        for load in result["loads"]
        if load["share_of_peak"] < 0.9 or load["refused_s_p50_p99"][1] > 0.25 or load["without_retry_after"]
    ]
    return int(bool(bad or result["restarts"]))


if __name__ == "__main__":
    raise SystemExit(main())
