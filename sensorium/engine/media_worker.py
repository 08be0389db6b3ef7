"""The process that decodes media. It holds no secrets, opens no files of callers, and may be killed at any moment.

Started as a program of its own, never by forking the caller's process. The first process loads the processor and stays
single-threaded; for every worker it forks itself, so a worker is there within milliseconds and shares its memory.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import select
import signal
import socket
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sensorium.config import EngineConfig, MediaLimits
from sensorium.engine.checkpoint import open_processor
from sensorium.errors import SensoriumError, TooLargeError
from sensorium.media import embeds, frame_list, wire
from sensorium.media.decode import decode
from sensorium.models.base import Processor
from sensorium.types import Embeds, Media, MediaRef

MAX_ITEMS, MAX_GROWTH = 1000, 512 << 20
"""After so many items, or so much growth of its memory, a worker is replaced."""
ORDER_BYTES = 9
NICE = 5
"""A decoder gives way to the engine and the server: running streams keep their pace on a machine without free cores."""
_PR_SET_PDEATHSIG, _CLONE_NEWUSER, _CLONE_NEWNET = 1, 0x10000000, 0x40000000
_PAGE = resource.getpagesize()


def main() -> None:
    """Serve the control socket at descriptor 0 until its other end closes.

    Orders have nine bytes: f with a descriptor to serve (answered with the worker's process id), k with such an id.
    """
    control = socket.socket(fileno=os.dup(0))
    os.close(0)
    os.open(os.devnull, os.O_RDONLY)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _give_way()
    _leave_network()
    setup, _ = wire.receive(control, (MediaLimits,))
    try:
        processor = open_processor(Path(setup["folder"]), setup["hf_config"], EngineConfig())
        processor.scales_on_device = setup["scales_on_device"]
    except Exception as error:
        wire.send(control, f"{type(error).__name__}: {error}")
        return
    wire.send(control, None)
    children: set[int] = set()
    try:
        while True:
            select.select([control], [], [], 5.0)
            _reap(children)
            if not select.select([control], [], [], 0)[0]:
                continue
            order, descriptors, _, _ = socket.recv_fds(control, ORDER_BYTES, 1)
            if not order:
                return
            if order[:1] == b"k":
                pid = int.from_bytes(order[1:9], "little")
                if pid in children:
                    os.kill(pid, signal.SIGKILL)
                continue
            connection = socket.socket(fileno=descriptors[0])
            pid = os.fork()
            if pid == 0:
                control.close()
                _serve(connection, processor, setup["limits"])
            children.add(pid)
            connection.close()
            control.sendall(pid.to_bytes(8, "little"))
    finally:
        for pid in children:
            os.kill(pid, signal.SIGKILL)


def _reap(children: set[int]) -> None:
    for pid in list(children):
        if os.waitpid(pid, os.WNOHANG)[0]:
            children.discard(pid)


def _serve(connection: socket.socket, processor: Processor, limits: MediaLimits) -> None:
    """A worker's life: one item after the other. Never returns."""
    try:
        _die_with_parent()
        with contextlib.suppress(OSError):
            tempfile.gettempdir()  # writes to find a place; what torch imports where it is installed (dill) asks for it
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        start = _resident()
        for count in range(1, MAX_ITEMS + 1):
            try:
                job, size = wire.receive(connection, (MediaRef, Media, Embeds))
            except EOFError:
                break
            embeds.load_reader(job["ref"])
            _limit(job["cpu_s"], limits.decode_memory_bytes + 2 * size)
            answer, spent = _answer(job, processor, limits)
            retire = spent or count == MAX_ITEMS or _resident() - start > MAX_GROWTH
            wire.send(connection, {"retire": retire} | answer)
            if retire:
                break
    finally:
        os._exit(0)


def decode_item(processor: Processor, ref: MediaRef, limits: MediaLimits) -> Media | Embeds:
    """ref.source holds the item's bytes."""
    is_file = isinstance(ref.source, bytes) and not ref.source.startswith(frame_list.MAGIC)
    if ref.modality == "video" and ref.form == "media" and is_file:
        # A family that chooses frames in its own way says how, for what the request leaves open.
        ref = replace(ref, options=getattr(processor, "video_options", dict)(ref.options))
    return decode(ref, limits)


def _answer(job: dict[str, Any], processor: Processor, limits: MediaLimits) -> tuple[dict[str, Any], bool]:
    """What the item became, or what is wrong with it; and whether this process should serve no more."""
    ref = job["ref"]
    try:
        if job["options"] is None:
            start = time.monotonic()
            return {"content": decode(ref, limits), "took": [time.monotonic() - start]}, False
        start = time.monotonic()
        media = decode_item(processor, ref, limits)
        decoded = time.monotonic()
        prepared = processor.prepare(media, job["options"])
        took = [decoded - start, time.monotonic() - decoded]
        return {"content": prepared.content, "took": took}, False
    except SensoriumError as error:
        return {"error": type(error).__name__, "message": error.message, "param": error.param}, False
    except MemoryError:
        message = f"this {ref.modality} needs more than {limits.decode_memory_bytes} bytes of memory to decode"
        return {"error": TooLargeError.__name__, "message": message, "param": ref.part or None}, True


def _limit(cpu_s: float, memory: int) -> None:
    """Bounds for the next item: so much processor time and address space more than now."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    _soft(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime + cpu_s) + 1)
    if sys.platform == "linux":
        _soft(resource.RLIMIT_AS, _statm()[0] + memory)


def _soft(kind: int, value: int) -> None:
    hard = resource.getrlimit(kind)[1]
    resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def _give_way() -> None:
    os.nice(NICE)
    # A session of its own may be a scheduling group of its own, within which alone the line above counts.
    with contextlib.suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(NICE))


def _leave_network() -> None:
    """Into a network of its own, without a way out, where the system lets an ordinary process do that."""
    if sys.platform == "linux":
        ctypes.CDLL(None).unshare(_CLONE_NEWUSER | _CLONE_NEWNET)


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _statm() -> list[int]:
    """Bytes: address space, resident."""
    return [int(pages) * _PAGE for pages in Path("/proc/self/statm").read_text().split()[:2]]


def _resident() -> int:
    if sys.platform == "linux":
        return _statm()[1]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    np.seterr(all="ignore")
    main()
