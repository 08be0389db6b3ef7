"""More requests than can be answered: what is done meanwhile, and how the rest is refused.

    OMP_NUM_THREADS=1 python tests/soak/overload.py --seconds 60 --json overload.json

First the most that 2 x max-num-seqs users get done who wait for their answers, then requests at 2, 5 and 10 times that,
whoever waits; all that in rounds, as machines are not equally fast at all times, and the most once more at the end.
What counts is done while a load runs, without the seconds before the queue has filled. Answers differ in length:
requests in step with each other are cheaper. One thread leaves the engine a core, where there are two, and the server
and these clients the other. On a busy machine, ranks such as --ranks -15 -10 put them before its other work, as root.

Passes with 90 % of the peak done at every load, refusals (429 or 503, with Retry-After) within 250 ms at the 99th
percentile, and answers as quick as before within 15 s of its end.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvloop
from common import Server, percentile, processor_s, rank, report, serving, table

SEQS, WAITING, TOKENS = 16, 32, range(64, 129)
_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)\r\n")
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
    ran_s: float = 0.0
    used_s: Counter[str] = field(default_factory=Counter)

    @contextmanager
    def watching(self, pids: dict[str, int]) -> Iterator[None]:
        """Note what cores are used for meanwhile."""
        began, before = time.perf_counter(), {name: processor_s(pid) for name, pid in pids.items()}
        yield
        self.ran_s += time.perf_counter() - began
        self.used_s.update({name: processor_s(pid) - before[name] for name, pid in pids.items()})

    @property
    def per_s(self) -> float:
        return len(self.done_s) / self.seconds


class Connection(asyncio.Protocol):
    """A kept connection that carries one request at a time."""

    def __init__(self) -> None:
        self._got, self._then = b"", None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport

    def send(self, request: bytes, then: Callable[[Connection, int, bytes], None]) -> None:
        """then: told of the status and the head, or of 0 and what went wrong."""
        self._then = then
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._got = data = self._got + data if self._got else data
        end = data.find(b"\r\n\r\n")
        if end < 0 or len(data) < end + 4 + int(_LENGTH.search(data, 0, end + 2)[1]):  # pyright: ignore - we always say
            return
        then, self._got, self._then = self._then, b"", None
        if then is not None:
            then(self, int(data[9:12]), data[:end])

    def connection_lost(self, exc: Exception | None) -> None:
        then, self._then = self._then, None
        if then is not None:
            then(self, 0, repr(exc or "closed").encode())

    @property
    def is_open(self) -> bool:
        return not self._transport.is_closing()

    def close(self) -> None:
        self._transport.close()


class Client:
    """Asks, as cheaply as Python can: what it costs is taken from the server, which has the same cores."""

    def __init__(self, port: int) -> None:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\ncontent-type: application/json\r\n"
        self._requests = [f"{head}content-length: {len(body)}\r\n\r\n".encode() + body for body in BODIES]
        self._port = port
        self._random = random.Random(0)
        self._idle: list[Connection] = []
        self._busy = 0
        self._quiet = asyncio.Event()
        self._connecting: set[asyncio.Task[None]] = set()

    def ask(self, load: Load, since: float, until: float, then: Callable[[], None] = lambda: None) -> None:
        """Send a request, and note when it is done if that is between the two times."""
        begun = time.perf_counter()

        def done(connection: Connection, status: int, head: bytes) -> None:
            now = time.perf_counter()
            load.statuses[status] += 1
            if status == 200:
                load.done_s += [now - begun] * (since <= now <= until)
            elif status:
                load.refused_s.append(now - begun)
                load.without_retry_after += b"\r\nretry-after: " not in head
            else:
                load.errors.append(head.decode())
            if status and connection.is_open:
                self._idle.append(connection)
            self._busy -= 1
            then()
            if not self._busy:
                self._quiet.set()

        self._busy += 1
        request = self._random.choice(self._requests)
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                connection.send(request, done)
                return
        task = asyncio.create_task(self._connect(request, done))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect(self, request: bytes, done: Callable[[Connection, int, bytes], None]) -> None:
        try:
            _, connection = await asyncio.get_running_loop().create_connection(Connection, "127.0.0.1", self._port)
        except OSError as error:
            done(Connection(), 0, repr(error).encode())
        else:
            connection.send(request, done)

    async def closed(self, users: int, seconds: float, load: Load, fill_s: float = FILL_S) -> None:
        """So many users, each asking again when answered."""
        since = time.perf_counter() + fill_s
        until = since + seconds
        load.seconds += seconds

        def again() -> None:
            if time.perf_counter() < until:
                self.ask(load, since, until, again)

        for _ in range(users):
            again()
        await self._all_answered()

    async def open(self, rate: float, seconds: float, load: Load) -> None:
        """Requests at a fixed rate, however many are under way."""
        begun = time.perf_counter()
        load.seconds += seconds
        sent = 0
        since, until = begun + FILL_S, begun + FILL_S + seconds
        while (now := time.perf_counter()) < until:
            while sent < (now - begun) * rate:
                self.ask(load, since, until)
                sent += 1
            await asyncio.sleep(0.002)
        await self._all_answered()

    async def _all_answered(self) -> None:
        if self._busy:
            self._quiet.clear()
            await asyncio.wait_for(self._quiet.wait(), 120)

    def close(self) -> None:
        for connection in self._idle:
            connection.close()


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
        "cores_used": {name: round(used / load.ran_s, 3) for name, used in load.used_s.items()},
    }


async def measure(server: Server, seconds: float, peak_s: float, times: list[float], rounds: int) -> dict[str, Any]:
    client, quiet, best = Client(int(server.url.rpartition(":")[2])), Load(0.0), Load(1.0)
    loads = [Load(each) for each in times]
    pids = {"server": server.process.pid, "engine": server.engine_pid, "clients": os.getpid()}
    await client.closed(SEQS, 2, Load(0.0))
    await client.closed(1, 5, quiet)
    for number in range(rounds + 1):
        with best.watching(pids):
            await client.closed(2 * SEQS, peak_s / (rounds + 1), best)
        for load in loads if number < rounds else ():
            with load.watching(pids):
                await client.open(load.times * best.per_s, seconds / rounds, load)
    over = time.perf_counter()
    usual = percentile(quiet.done_s, 0.99)
    while time.perf_counter() - over < 30:
        one = Load(0.0)
        await client.closed(1, 0.5, one, 0.0)
        if one.done_s and percentile(one.done_s, 0.5) <= 2 * usual:
            break
    client.close()
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
    parser.add_argument("--peak-seconds", type=float, help="for the peak, by default as for each load")
    parser.add_argument(
        "--rounds", type=int, default=4, help="that they are divided into, with the peak before and after"
    )
    parser.add_argument("--loads", type=float, nargs="+", default=[2.0, 5.0, 10.0], help="times the peak")
    parser.add_argument(
        "--ranks",
        type=int,
        nargs=2,
        metavar="NICE",
        help="of server and engine, and of these clients, which stand for other machines; below 0 needs root",
    )
    parser.add_argument("--json", help="file for the result")
    given = parser.parse_args()
    flags = ["--max-model-len", "2048", "--kv-cache-bytes", "64M", "--max-num-seqs", str(SEQS)]
    uvloop.install()
    with serving(*flags, "--max-waiting", str(WAITING), apart=bool(given.ranks)) as server:
        for pid, nice in zip((server.process.pid, "self"), given.ranks or (), strict=False):
            rank(pid, nice)
        result = asyncio.run(
            measure(server, given.seconds, given.peak_seconds or given.seconds, given.loads, given.rounds)
        )
        result["ranks"] = given.ranks
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
