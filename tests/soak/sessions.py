"""A live session of hours, in the time that it takes to compute, and sessions opened and closed many times.

    python tests/soak/sessions.py --hours 6 --json long.json
    python tests/soak/sessions.py --opens 100000 --json opens.json

The clock moves a second with each second of sound. Passes when the session's memory grows by less than 0.5 MiB in an
hour of it and the time of its units drifts by less than 10 % from the first hour to the last (F-069), or when memory
after all openings is within 3 % of what it was after the first tenth, and files and tasks are as they were (F-075).
"""

from __future__ import annotations

import argparse
import asyncio
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import ROOT, percentile, report

from live_sessions.doors import DOORS  # isort: skip - common makes it importable
from live_sessions.raw import Raw, descriptors, frame  # isort: skip
from live_sessions.tools import SPEAKS, LiveServer, duplex, jpeg, noise, serve_live  # isort: skip
from sensorium.config import EngineConfig
from sensorium.engine.client import EngineClient

FOLDERS = (ROOT.parent / "shared" / "golden", ROOT / "tests" / "golden")
HOUR, WARM_UP_H = 3600, 0.1


def resident() -> float:
    """MiB of this process, which is the server, the engine and the client."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


def long_session(server: LiveServer, hours: float) -> dict[str, Any]:
    """Speech half of the time, an interruption every 20 s, a picture every 5 s."""
    seconds = int(hours * HOUR)
    base = resident()
    memory: list[float] = []
    took: list[float] = []
    with duplex(server) as client:
        client.start(**SPEAKS)
        for n in range(seconds):
            server.clock.advance(1)
            if n % 5 == 0:
                client.picture(jpeg(n % 50))
            if n % 20 == 19:
                client.say("interrupt")
            begun = time.perf_counter()
            client.sound(noise(n % 100) if n % 20 < 10 else noise(0, scale=1))
            unit = client.until("unit")
            took.append(time.perf_counter() - begun)
            assert unit["n"] == n
            if n % 60 == 59:
                client.events.clear()
                memory.append(resident())
        client.say("stop")
        assert client.until("bye")["usage"]["units"] == seconds
    warm = memory[len(memory) // 10 :]
    slope = float(np.polyfit(np.arange(len(warm)) / 60, warm, 1)[0])
    tenth = max(len(took) // 10, 1)
    first, last = percentile(took[tenth : 2 * tenth], 0.95), percentile(took[-tenth:], 0.95)
    return {
        "hours": hours,
        "units": seconds,
        "MiB over the base": round(max(memory) - base, 1),
        "MiB an hour": round(slope, 3),
        "p95 of a unit in ms, early and late": [round(first * 1e3, 1), round(last * 1e3, 1)],
        "passed": slope < 0.5 and max(memory) - base < 32 and last < first * 1.1,
    }


def openings(server: LiveServer, count: int) -> dict[str, Any]:
    """Every door in turn; a third of the clients vanish."""
    memory: list[float] = []
    held: list[tuple[int, int]] = []
    loop: asyncio.AbstractEventLoop | None = None
    for n in range(count):
        door = DOORS[n % len(DOORS)]
        peer = Raw(server.port, door.path)
        door.open(peer)
        if server.service._ticking is not None:
            loop = server.service._ticking.get_loop()
        if n % 3 == 0:
            peer.vanish()
        else:
            peer.send(frame(8))
            peer.closed()
            peer.socket.close()
        if n % 8 == 7:
            assert server.empty()
        if n % max(count // 50, 1) == max(count // 50, 1) - 1 and loop is not None:
            assert server.empty()
            memory.append(resident())
            held.append((descriptors(), len(asyncio.all_tasks(loop))))
    early = memory[max(len(memory) // 10 - 1, 0)]
    return {
        "opened": count,
        "MiB after a tenth and at the end": [round(early, 1), round(memory[-1], 1)],
        "files and tasks": [held[len(held) // 10], held[-1]],
        "passed": memory[-1] < early * 1.03 and held[-1][0] <= held[len(held) // 10][0] + 2,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float)
    parser.add_argument("--opens", type=int)
    parser.add_argument("--json")
    args = parser.parse_args()
    model = next(folder / "minicpmo45" / "tiny" for folder in FOLDERS if (folder / "minicpmo45" / "tiny").is_dir())
    # Caches are small: they fill up, so that what still grows is something else.
    config = EngineConfig(
        model=str(model),
        max_model_len=2048,
        max_num_seqs=8,
        kv_cache_bytes=64 << 20,
        max_sessions=8,
        encoder_cache_bytes=4 << 20,
        mm_processor_cache_gb=0.02,
    )
    found: dict[str, Any] = {}
    with EngineClient(config) as engine, serve_live(engine, served_model_name="tiny", live_max_s=1e9) as server:
        if args.hours:
            long_session(server, WARM_UP_H)
            found["a long session"] = long_session(server, args.hours)
        if args.opens:
            found["openings"] = openings(server, args.opens)
    report(found, args.json)
    raise SystemExit(0 if all(one["passed"] for one in found.values()) else 1)


if __name__ == "__main__":
    main()
