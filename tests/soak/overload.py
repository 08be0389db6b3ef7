"""More requests than can be answered: what is done meanwhile, and how the rest is refused.

    OMP_NUM_THREADS=1 python tests/soak/overload.py --seconds 60 --json overload.json

First the most that 2 x max-num-seqs users get done who wait for their answers, then requests at 2, 5 and 10 times that,
whoever waits; all that in rounds, as machines are not equally fast at all times. What counts is done while a load runs,
without the seconds before the queue has filled. Answers differ in length: requests in step with each other are cheaper.
One thread leaves the engine a core, where there are two, and the server and these clients the other.

Passes with 90 % of the peak done at every load, refusals (429 or 503, with Retry-After) within 250 ms at the 99th
percentile, and answers as quick as before within 15 s of its end.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from common import percentile, report, serving, table

SEQS, WAITING, TOKENS = 16, 32, range(64, 129)
FILL_S = 3.0
"""A load runs for so long before it is measured."""
BODIES = [
    json.dumps(
        {
            "messages": [{"role": "user", "content": "Tell me a story."}],
            "max_tokens": tokens,
            "temperature": 0,
            "ignore_eos": True,
        }
    ).encode()
    for tokens in TOKENS
]


@dataclass
class Load:
    times: float
    seconds: float = 0.0
    statuses: Counter[int] = field(default_factory=Counter)
    done_s: list[float] = field(default_factory=list)
    refused_s: list[float] = field(default_factory=list)
    without_retry_after: int = 0
    errors: list[str] = field(default_factory=list)

    @property
    def per_s(self) -> float:
        return len(self.done_s) / self.seconds


class Client:
    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self._url, self._session = url + "/v1/chat/completions", session
        self._random = random.Random(0)

    async def ask(self, load: Load, since: float, until: float) -> None:
        begun = time.perf_counter()
        try:
            async with self._session.post(
                self._url, data=self._random.choice(BODIES), headers={"content-type": "application/json"}
            ) as response:
                await response.read()
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
            load.errors.append(repr(error))
            return
        now = time.perf_counter()
        load.statuses[response.status] += 1
        if response.status == 200:
            load.done_s += [now - begun] * (since <= now <= until)
        else:
            load.refused_s.append(now - begun)
            load.without_retry_after += "retry-after" not in response.headers

    async def closed(self, users: int, seconds: float, load: Load, fill_s: float = FILL_S) -> None:
        """So many users, each asking again when answered."""
        since = time.perf_counter() + fill_s
        until = since + seconds
        load.seconds += seconds

        async def user() -> None:
            while time.perf_counter() < until:
                await self.ask(load, since, until)

        await asyncio.gather(*(user() for _ in range(users)))

    async def open(self, rate: float, seconds: float, load: Load) -> None:
        """Requests at a fixed rate, however many are under way."""
        begun = time.perf_counter()
        load.seconds += seconds
        tasks: set[asyncio.Task[None]] = set()
        sent = 0
        since, until = begun + FILL_S, begun + FILL_S + seconds
        while (now := time.perf_counter()) < until:
            while sent < (now - begun) * rate:
                task = asyncio.create_task(self.ask(load, since, until))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                sent += 1
            await asyncio.sleep(0.002)
        await asyncio.gather(*tasks)


def row(load: Load, peak: float) -> dict[str, Any]:
    goodput = load.per_s
    return {
        "times": load.times,
        "goodput_per_s": goodput,
        "share_of_peak": goodput / peak if peak else 1.0,
        "done_s_p50_p99": [percentile(load.done_s, 0.5), percentile(load.done_s, 0.99)],
        "refused": len(load.refused_s),
        "refused_s_p50_p99": [percentile(load.refused_s, 0.5), percentile(load.refused_s, 0.99)],
        "without_retry_after": load.without_retry_after,
        "statuses": dict(sorted(load.statuses.items())),
        "errors": Counter(load.errors).most_common(5),
    }


async def measure(url: str, seconds: float, times: list[float], rounds: int) -> dict[str, Any]:
    connector, timeout = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=120)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        client, quiet, best = Client(url, session), Load(0.0), Load(1.0)
        loads = [Load(each) for each in times]
        await client.closed(SEQS, 2, Load(0.0))
        await client.closed(1, 5, quiet)
        for _ in range(rounds):
            await client.closed(2 * SEQS, seconds / rounds, best)
            for load in loads:
                await client.open(load.times * best.per_s, seconds / rounds, load)
        over = time.perf_counter()
        usual = percentile(quiet.done_s, 0.99)
        while time.perf_counter() - over < 30:
            one = Load(0.0)
            await client.closed(1, 0.5, one, 0.0)
            if one.done_s and percentile(one.done_s, 0.5) <= 2 * usual:
                break
    return {
        "test": "T-4 overload",
        "seconds": seconds,
        "rounds": rounds,
        "max_num_seqs": SEQS,
        "max_waiting": WAITING,
        "peak_per_s": best.per_s,
        "alone_s_p50_p99": [percentile(quiet.done_s, 0.5), usual],
        "loads": [row(load, best.per_s) for load in (best, *loads)],
        "recovery_s": time.perf_counter() - over,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60, help="for each load")
    parser.add_argument("--rounds", type=int, default=4, help="that they are divided into")
    parser.add_argument("--loads", type=float, nargs="+", default=[2.0, 5.0, 10.0], help="times the peak")
    parser.add_argument("--json", help="file for the result")
    given = parser.parse_args()
    flags = ["--max-model-len", "2048", "--kv-cache-bytes", "64M", "--max-num-seqs", str(SEQS)]
    with serving(*flags, "--max-waiting", str(WAITING)) as server:
        result = asyncio.run(measure(server.url, given.seconds, given.loads, given.rounds))
        result["restarts"] = server.restarts
    names = ["times", "goodput_per_s", "share_of_peak", "refused", "without_retry_after"]
    table([names, *([load[name] for name in names] for load in result["loads"])])
    report(result, given.json)
    bad = [
        load
        for load in result["loads"]
        if load["share_of_peak"] < 0.9
        or load["refused_s_p50_p99"][1] > 0.25
        or load["without_retry_after"]
        or load["errors"]
    ]
    return int(bool(bad or result["restarts"] or result["recovery_s"] > 15))


if __name__ == "__main__":
    raise SystemExit(main())
