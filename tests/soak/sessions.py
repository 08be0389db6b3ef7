"""A live session of hours, in the time that it takes to compute, and sessions opened and closed many times.

    python tests/soak/sessions.py --hours 6 [--sound] --json long.json
    python tests/soak/sessions.py --opens 100000 --json opens.json

The clock moves a second with each second of sound. Passes when memory is less than 32 MiB over what it was before and
grows by less than 0.5 MiB in an hour of the session, and the time of its units drifts by less than 10 % from the second
tenth of them to the last (F-069), or when memory after all openings is within 3 % of what it was after the first tenth,
and files and tasks are as they were (F-075). On a busy machine the time of a core that units take says more of a drift.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import tempfile
import time
from array import array
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from common import ROOT, percentile, report

from live_sessions.doors import DOORS  # isort: skip - common makes it importable
from live_sessions.raw import Raw, descriptors, frame  # isort: skip
from live_sessions.tools import SPEAKS, LiveServer, duplex, serve_live  # isort: skip
from minicpm.speaking import speaking_checkpoint  # isort: skip
from sensorium.bench.codec import SMALL, random_voice
from sensorium.config import EngineConfig
from sensorium.engine.client import EngineClient

FOLDERS = (ROOT.parent / "shared" / "golden", ROOT / "tests" / "golden")
HOUR, WARM_UP_H = 3600, 0.1


def resident() -> float:
    """MiB of this process, which is the server and the engine; with openings, their clients too."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


def talk(port: int, pipe: Connection) -> None:
    """The client, in a process of its own: a second of its talk whenever it is told the number of one."""
    server: Any = SimpleNamespace(port=port)
    with duplex(server) as client:
        client.start(**SPEAKS)
        pipe.send(None)
        for n in iter(pipe.recv, None):
            begun = time.perf_counter()
            assert client.long_second(n)["n"] == n
            pipe.send(time.perf_counter() - begun)
            client.events.clear()
        client.say("stop")
        usage = client.until("bye")["usage"]
        pipe.send((usage["units"], usage["out_samples"]))


def long_session(server: LiveServer, hours: float) -> dict[str, Any]:
    seconds = int(hours * HOUR)
    memory: list[float] = []
    took, used = array("d"), array("d")
    spawn = multiprocessing.get_context("spawn")
    pipe, theirs = spawn.Pipe()
    client = spawn.Process(target=talk, args=(server.port, theirs))
    base = resident()
    client.start()
    theirs.close()
    pipe.recv()
    for n in range(seconds):
        server.clock.advance(1)
        pipe.send(n)
        took.append(pipe.recv())
        used.append(time.process_time())
        if n % 60 == 59:
            memory.append(resident())
    pipe.send(None)
    units, sounded = pipe.recv()
    assert units == seconds
    client.join()
    warm = memory[len(memory) // 10 :]
    slope = float(np.polyfit(np.arange(len(warm)) / 60, warm, 1)[0])
    tenth = max(len(took) // 10, 1)
    first, last = percentile(took[tenth : 2 * tenth], 0.95), percentile(took[-tenth:], 0.95)
    cost = [(used[to - 1] - used[to - tenth]) / tenth for to in (2 * tenth, seconds)]
    return {
        "hours": hours,
        "units": seconds,
        "seconds of sound": sounded // 24_000,
        "MiB over the base": round(max(memory) - base, 1),
        "MiB an hour": round(slope, 3),
        "p95 of a unit in ms, early and late": [round(first * 1e3, 1), round(last * 1e3, 1)],
        "ms of a core for a unit, early and late": [round(one * 1e3, 1) for one in cost],
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


def configured(place: Path, *, sound: bool) -> EngineConfig:
    """sound: what is said is spoken, by a small codec. Caches are small: what grows when they are full is no cache."""
    model = next(folder / "minicpmo45" / "tiny" for folder in FOLDERS if (folder / "minicpmo45" / "tiny").is_dir())
    config = EngineConfig(
        model=str(model),
        max_model_len=2048,
        max_num_seqs=8,
        kv_cache_bytes=64 << 20,
        max_sessions=8,
        encoder_cache_bytes=4 << 20,
        mm_processor_cache_gb=0.02,
    )
    if not sound:
        return config
    made = speaking_checkpoint(model, place / "model")
    voices = made / "assets" / "token2wav" / "voices"
    voices.mkdir()
    random_voice(SMALL, 0.6).save(voices / "default.safetensors")
    return replace(config, model=str(made), init_tts=True, codec_config={"n_timesteps": 1}, speech_slots=2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float)
    parser.add_argument("--opens", type=int)
    parser.add_argument("--sound", action="store_true", help="what is said is spoken")
    parser.add_argument("--json")
    args = parser.parse_args()
    found: dict[str, Any] = {}
    with (
        tempfile.TemporaryDirectory() as place,
        EngineClient(configured(Path(place), sound=args.sound)) as engine,
        serve_live(engine, served_model_name="tiny", live_max_s=1e9) as server,
    ):
        if args.hours:
            long_session(server, WARM_UP_H)
            found["a long session"] = long_session(server, args.hours)
        if args.opens:
            found["openings"] = openings(server, args.opens)
    report(found, args.json)
    raise SystemExit(0 if all(one["passed"] for one in found.values()) else 1)


if __name__ == "__main__":
    main()
