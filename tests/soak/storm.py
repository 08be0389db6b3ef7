"""The storm of bad inputs: every case of tests/hostile in random order, beside users who must not notice.

    python tests/soak/storm.py --minutes 30 --json storm.json

Passes with no restart, no unexpected status, no difference in what the others are told, no visitor where nobody may go,
and no server or engine whose median memory grows by more than 5 % from the second third of the run to the last: single
samples say little, as bodies of up to 64 MB come and go.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common import MODEL, memory, percentile, report

from hostile.cases import Case  # isort: skip - common makes it importable
from hostile.test_hostile_requests import TABLE  # isort: skip
from hostile.world import Target, World, world  # isort: skip

KEEP_BYTES = 1 << 20
SAMPLE_S = 5.0
FLAT = 5.0
"""Percent that a process may grow by."""


@dataclass
class Tally:
    sent: int = 0
    busy: int = 0
    """Answers 429 and 503, which a storm may meet; a case that asks for one is not counted here."""
    unexpected: list[str] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)


class Storm:
    def __init__(self, place: World, rate: float, seed: int) -> None:
        self.tally = Tally()
        self.samples: list[tuple[float, dict[str, int]]] = []
        self._place, self._rate = place, rate
        self._random = random.Random(seed)
        self._bodies: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def run(self, seconds: float) -> None:
        begun = time.monotonic()
        names: list[str] = []
        free = threading.Semaphore(32)
        print(f"{len(TABLE)} cases, {self._rate:g} a second for {seconds:g} s", flush=True)
        with ThreadPoolExecutor(32) as pool:
            next_at = next_sample = begun
            while (now := time.monotonic()) < begun + seconds:
                if now >= next_sample:
                    self._sample(now - begun)
                    next_sample = now + SAMPLE_S
                if now < next_at:
                    time.sleep(next_at - now)
                if not names:
                    names = self._random.sample(list(TABLE), len(TABLE))
                free.acquire()
                pool.submit(self._send, names.pop()).add_done_callback(lambda _: free.release())
                next_at = max(next_at + 1 / self._rate, now)
        self._sample(time.monotonic() - begun)

    def _send(self, name: str) -> None:
        case = TABLE[name]
        server = self._place.servers[case.server]
        begun = time.monotonic()
        answer: Any = None
        try:
            status, answer = server.send(self._body(name, case), case.path, headers=case.headers)
        except Exception as error:  # a connection that is reset is what we look for
            status, name = 0, f"{name}: {error!r}"
        expected = case.status if isinstance(case.status, tuple) else (case.status,)
        with self._lock:
            self.tally.sent += 1
            self.tally.statuses[status] += 1
            self.tally.seconds.append(time.monotonic() - begun)
            if status in expected:
                return
            if status in (429, 503):
                self.tally.busy += 1
            else:
                self.tally.unexpected.append(f"{status} {name}")
                took = time.monotonic() - begun
                print(f"unexpected: {status} {name} ({case.server}, {took:.1f} s): {str(answer)[:300]}", flush=True)

    def _body(self, name: str, case: Case) -> bytes:
        if name not in self._bodies:
            made = case.make(self._place)
            data = made if isinstance(made, bytes) else json.dumps(made).encode()
            if len(data) > KEEP_BYTES:
                return data
            self._bodies[name] = data
        return self._bodies[name]

    def _sample(self, seconds: float) -> None:
        used = {
            f"{name} {kind}": size
            for name, server in self._place.servers.items()
            for kind, size in memory(server.process.pid, server.engine_pid).items()
        }
        self.samples.append((seconds, used))
        if len(self.samples) == 1:
            print(*["s", "sent", "busy", "unexpected", *(f"{kind}, MB" for kind in used)], sep=" | ", flush=True)
        if len(self.samples) % 6 == 1:
            tally = self.tally
            sizes = [size >> 20 for size in used.values()]
            print(round(seconds), tally.sent, tally.busy, len(tally.unexpected), *sizes, sep=" | ", flush=True)


def restarts(server: Target) -> int:
    return "".join(server.log).count("back (process")


def outcome(storm: Storm, place: World, seconds: float) -> dict[str, Any]:
    tally = storm.tally
    middle = [used for at, used in storm.samples if seconds / 3 <= at < seconds * 2 / 3]
    last = [used for at, used in storm.samples if at >= seconds * 2 / 3]

    def growth(kind: str) -> float:
        before, after = (statistics.median(used[kind] for used in part) for part in (middle, last))
        return round(100 * (after / before - 1), 2)

    return {
        "test": "T-5 storm",
        "seconds": seconds,
        "cases": len(TABLE),
        "sent": tally.sent,
        "restarts": sum(restarts(server) for server in place.servers.values()),
        "tracebacks": sum("".join(server.log).count("Traceback") for server in place.servers.values()),
        "unexpected": Counter(tally.unexpected).most_common(50),
        "busy": tally.busy,
        "statuses": dict(sorted(tally.statuses.items())),
        "answer_s_p50_p99": [percentile(tally.seconds, 0.5), percentile(tally.seconds, 0.99)],
        "bystander_answers": sum(len(one.answers) for server in place.servers.values() for one in server.bystanders),
        "bystander_differences": sum(len(server.disturbed()) for server in place.servers.values()),
        "trap_visitors": place.trap.connections,
        "memory_growth_percent": {kind: growth(kind) for kind in last[0]},
        "memory_mb": [(round(at), {kind: used[kind] >> 20 for kind in used}) for at, used in storm.samples],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--rate", type=float, default=20, help="cases a second")
    parser.add_argument("--bystanders", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", help="file for the result")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, world(MODEL, Path(folder), given.bystanders // 2) as place:
        storm = Storm(place, given.rate, given.seed)
        storm.run(given.minutes * 60)
        result = outcome(storm, place, given.minutes * 60)
    report({"seed": given.seed, "rate": given.rate, **result}, given.json)
    names = ("restarts", "tracebacks", "unexpected", "bystander_differences", "trap_visitors")
    kept = {kind: growth for kind, growth in result["memory_growth_percent"].items() if not kind.endswith("others")}
    return int(any(result[name] for name in names) or max(kept.values()) > FLAT)


if __name__ == "__main__":
    raise SystemExit(main())
