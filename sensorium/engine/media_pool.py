"""Worker processes that decode media: started clean, one item at a time each, killed when an item takes too long.

What a decoder can do to its process (crash, hang, fill the memory) ends with that process and that item.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from sensorium import errors
from sensorium.config import MediaLimits
from sensorium.engine.marks import MediaCounters
from sensorium.errors import DecodeTimeoutError, EngineError, MediaError, OverloadedError, SensoriumError
from sensorium.media import wire
from sensorium.models.base import Processor
from sensorium.types import Media, MediaRef, Prepared

log = logging.getLogger(__name__)
_START_S, _FORK_S = 60.0, 30.0
_GRACE_S = 0.5
_CPU_SHARE = 2.0  # video decoders have two threads
_KEPT_ENV = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT")

# A worker keeps up to 64 MB for the next item: getting them anew, page by page, took as long as a sound's features.
_KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(64 << 20)}


class _Lost(Exception):
    """The worker went away in the middle of an item."""


@dataclass(slots=True)
class PoolStats:
    items: int = 0
    replaced: int = 0
    """Workers that crashed or were killed for taking too long."""
    timeouts: int = 0
    refused: int = 0


@dataclass(slots=True, eq=False)
class _Worker:
    pid: int
    connection: socket.socket


class _Nursery:
    """The first process: has loaded everything, and forks a worker whenever one is asked for."""

    def __init__(self, processor: Processor, limits: MediaLimits) -> None:
        folder, hf_config = processor.origin
        root = limits.allowed_local_path
        limits = replace(limits, allowed_local_path=None if root is None else str(root))  # pyright: ignore - for the wire
        self._setup = {"folder": str(folder), "hf_config": hf_config, "limits": limits}
        self._setup["scales_on_device"] = processor.scales_on_device
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._closed = False

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def fork(self) -> _Worker:
        ours, theirs = socket.socketpair()
        try:
            with theirs, self._lock:
                return _Worker(self._forked(theirs), ours)
        except BaseException:
            ours.close()
            raise

    def _forked(self, connection: socket.socket) -> int:
        for attempt in (1, 2):
            control = self._started()
            try:
                socket.send_fds(control, [b"f" + bytes(8)], [connection.fileno()])
                pid = control.recv(8)
                if len(pid) == 8:
                    return int.from_bytes(pid, "little")
            except OSError:
                pass
            self._stop()
            log.warning("the first media process ended; starting another (attempt %d)", attempt)
        raise EngineError("the media workers cannot be started; see the server log")

    def kill(self, worker: _Worker) -> None:
        with contextlib.suppress(OSError):
            worker.connection.shutdown(socket.SHUT_RDWR)
        with self._lock, contextlib.suppress(OSError):
            if self._control:
                self._control.sendall(b"k" + worker.pid.to_bytes(8, "little"))

    def close(self) -> None:
        self._closed = True
        with self._lock:
            self._stop()

    def _started(self) -> socket.socket:
        if self._closed:
            raise EngineError("the media workers are closed")
        if self._control:
            return self._control
        ours, theirs = socket.socketpair()
        env = {name: os.environ[name] for name in _KEPT_ENV if name in os.environ}
        env |= {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "PYTHONSAFEPATH": "1"}
        env |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        env |= {"TOKENIZERS_PARALLELISM": "false", "MALLOC_ARENA_MAX": "2", **_KEEP_MEMORY}
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "sensorium.engine.media_worker"],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                env=env,
                start_new_session=True,
            )
        ours.settimeout(_START_S)
        try:
            wire.send(ours, self._setup)
            trouble, _ = wire.receive(ours)
        except (OSError, EOFError, ValueError):
            trouble = "it ended while loading"
        if trouble:
            ours.close()
            self._stop()
            raise EngineError(f"the media workers cannot be started: {trouble}")
        ours.settimeout(_FORK_S)
        self._control = ours
        return ours

    def _stop(self) -> None:
        if self._control:
            self._control.close()
            self._control = None
        if self._process:
            try:
                self._process.wait(2.0)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None


class _Watch:
    """One thread that kills the workers whose time is up; a timer for each item would be a new thread for each."""

    def __init__(self, kill: Callable[[_Worker], None]) -> None:
        self._kill = kill
        self._until: dict[_Worker, float] = {}
        self._wakes_s = math.inf
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False

    @contextlib.contextmanager
    def over(self, worker: _Worker, seconds: float) -> Iterator[None]:
        """The worker may take so long inside."""
        with self._changed:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="sensorium-media-watch", daemon=True)
                self._thread.start()
            until = self._until[worker] = time.monotonic() + seconds
            if until < self._wakes_s:
                self._changed.notify()
        try:
            yield
        finally:
            with self._changed:
                self._until.pop(worker, None)

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                if self._closed:
                    return
                now = time.monotonic()
                late = [worker for worker, until in self._until.items() if until <= now]
                for worker in late:
                    del self._until[worker]
                if not late:
                    self._wakes_s = min(self._until.values(), default=math.inf)
                    self._changed.wait(None if self._wakes_s == math.inf else self._wakes_s - now)
            for worker in late:
                self._kill(worker)


@dataclass(slots=True, eq=False)
class _Job:
    ref: MediaRef
    options: dict[str, Any] | None
    worker: _Worker | None = None
    cancelled: bool = False
    took: tuple[float, ...] = ()
    """Seconds of decoding, and of preprocessing where that was asked for."""


@dataclass(slots=True)
class _Lane:
    """Workers for one kind of media. Idle ones are taken last in, first out, so that few processes stay warm."""

    size: int
    threads: ThreadPoolExecutor
    slots: threading.Semaphore
    """So many workers are busy at most, whoever waits for them."""
    idle: list[_Worker] = field(default_factory=list[_Worker])
    pending: int = 0


class MediaPool:
    """Decodes and prepares media of any kind, videos in a lane of their own. Close it, or its processes stay."""

    def __init__(
        self,
        processor: Processor,
        limits: MediaLimits,
        *,
        workers: int = 0,
        video_workers: int = 0,
        audio_workers: int = 0,
        max_waiting: int = 256,
        counters: MediaCounters | None = None,
    ) -> None:
        """processor: the workers load the same. counters: what the workers' times go to.

        workers: for pictures and sounds; 0 is half the cores, at most eight. video_workers: 0 is half of that.
        audio_workers: for sounds, which then have a lane of their own; 0 is none.
        """
        workers = workers or max(min((os.cpu_count() or 2) // 2, 8), 1)
        self.limits = limits
        self.stats = PoolStats()
        self._counters = counters or MediaCounters()
        self._known = (Media, *processor.piece_types)
        self._max_waiting = max_waiting
        self._nursery = _Nursery(processor, limits)
        self._watch = _Watch(self._nursery.kill)
        self._alive: set[int] = set()
        self._lock = threading.Lock()
        sizes = {"media": workers, "video": video_workers or max(workers // 2, 1)}
        sizes |= {"audio": audio_workers} if audio_workers else {}
        self._lanes = {
            name: _Lane(
                size, ThreadPoolExecutor(size, thread_name_prefix=f"sensorium-{name}"), threading.Semaphore(size)
            )
            for name, size in sizes.items()
        }

    def pids(self) -> list[int]:
        """Processes alive: the first one, then the workers."""
        first = [self._nursery.pid] if self._nursery.pid else []
        return first + sorted(self._alive)

    async def prepare(self, ref: MediaRef, options: Mapping[str, Any]) -> Prepared:
        """ref.source holds bytes. Raises what the item is to blame for, or OverloadedError. Cancelling it stops the
        work at once."""
        return Prepared(ref.modality, await self._work(_Job(ref, dict(options))), ref.part)

    async def decode(self, ref: MediaRef) -> Media:
        """As prepare, without the processor's part."""
        return await self._work(_Job(ref, None))

    def prepare_here(self, ref: MediaRef, options: Mapping[str, Any]) -> Prepared:
        """As prepare, for a caller whose thread may wait."""
        job = _Job(ref, dict(options))
        lane = self._enter(job)
        try:
            content = self._run(lane, job)
            self._note(job)
            return Prepared(ref.modality, content, ref.part)
        finally:
            self._leave(lane)

    async def _work(self, job: _Job) -> Any:
        lane = self._enter(job)
        try:
            content = await asyncio.get_running_loop().run_in_executor(lane.threads, self._run, lane, job)
            self._note(job)
            return content
        except asyncio.CancelledError:
            self._cancel(job)
            raise
        finally:
            self._leave(lane)

    def _enter(self, job: _Job) -> _Lane:
        """The lane of a job, which is one of those waiting there now."""
        ref = job.ref
        lane = self._lanes.get(ref.modality if ref.form == "media" else "media", self._lanes["media"])
        with self._lock:
            if lane.pending >= self._max_waiting + lane.size:
                self.stats.refused += 1
                raise OverloadedError(
                    f"{lane.pending} media items are waiting to be decoded; try again later", reason="media"
                )
            lane.pending += 1
        return lane

    def _leave(self, lane: _Lane) -> None:
        with self._lock:
            lane.pending -= 1

    def _note(self, job: _Job) -> None:
        end = time.monotonic()
        for phase, seconds in (("preprocess", job.took[1:]), ("decode", job.took[:1])):
            for spent in seconds:
                self._counters.took(phase, job.ref.modality, end - spent, end)  # pyright: ignore[reportArgumentType]
                end -= spent

    @property
    def waiting(self) -> dict[str, int]:
        """Items that no worker has taken yet, by lane."""
        return {name: max(lane.pending - lane.size, 0) for name, lane in self._lanes.items()}

    def close(self) -> None:
        """Ends the processes; items being decoded fail."""
        self._nursery.close()
        for lane in self._lanes.values():
            lane.threads.shutdown(wait=True, cancel_futures=True)
            for worker in lane.idle:
                worker.connection.close()
            lane.idle.clear()
        self._watch.close()
        self._alive.clear()

    # ---- in the lane's threads, or a caller's ----------------------------------------------------------------------

    def _run(self, lane: _Lane, job: _Job) -> Any:
        with lane.slots:
            return self._run_now(lane, job)

    def _run_now(self, lane: _Lane, job: _Job) -> Any:
        with self._lock:
            if job.cancelled:
                raise MediaError("cancelled")
            worker = lane.idle.pop() if lane.idle else None
        if worker is not None and _has_ended(worker):  # killed while it had nothing to do: no fault of this item
            self._bury(worker)
            worker = None
        worker = worker or self._nursery.fork()
        with self._lock:
            self._alive.add(worker.pid)
            job.worker = worker
            if job.cancelled:
                lane.idle.append(worker)
                raise MediaError("cancelled")
        # Embeddings in torch's format make a worker import torch, which on a busy machine takes many seconds.
        slow = job.ref.modality == "video" or job.ref.form == "embeds"
        wall_s = self.limits.video_decode_timeout_s if slow else self.limits.decode_timeout_s
        try:
            answer = self._ask(worker, job, wall_s)
        except (_Lost, TimeoutError) as error:
            self._bury(worker)
            raise self._blame(job.ref, error, wall_s) from None
        except KeyboardInterrupt:  # in a caller's own thread: what the worker answers is no use to anybody
            self._bury(worker)
            raise
        with self._lock:
            self.stats.items += 1
            job.worker = None
            keep = not answer["retire"] and not job.cancelled
            if keep:
                lane.idle.append(worker)
        if not keep:
            self._bury(worker)
        if "error" in answer:
            raise _error(answer)
        return answer["content"]

    def _ask(self, worker: _Worker, job: _Job, wall_s: float) -> dict[str, Any]:
        start = time.monotonic()
        deadline = start + wall_s
        try:
            with self._watch.over(worker, wall_s + _GRACE_S):
                wire.send(worker.connection, {"ref": job.ref, "options": job.options, "cpu_s": _CPU_SHARE * wall_s})
                answer = wire.receive(worker.connection, self._known)[0]
            job.took = _bounded(answer.get("took"), time.monotonic() - start)
            return answer
        except TypeError as error:
            self._bury(worker)
            raise MediaError(f"an option of this {job.ref.modality}: {error}", param=job.ref.part or None) from None
        except (OSError, EOFError, ValueError):
            if time.monotonic() >= deadline:
                raise TimeoutError from None
            raise _Lost from None

    def _blame(self, ref: MediaRef, error: Exception, wall_s: float) -> MediaError:
        self.stats.replaced += 1
        if isinstance(error, TimeoutError):
            self.stats.timeouts += 1
            return DecodeTimeoutError(
                f"this {ref.modality} takes more than {wall_s:g} seconds to decode", param=ref.part or None
            )
        return MediaError(f"this {ref.modality} is damaged: its decoder stopped", param=ref.part or None)

    def _bury(self, worker: _Worker) -> None:
        with self._lock:
            self._alive.discard(worker.pid)
        self._nursery.kill(worker)
        worker.connection.close()

    def _cancel(self, job: _Job) -> None:
        with self._lock:
            job.cancelled = True
            if job.worker:
                with contextlib.suppress(OSError):
                    job.worker.connection.shutdown(socket.SHUT_RDWR)


def _has_ended(worker: _Worker) -> bool:
    """Of an idle worker: nothing is to be read from it but its end."""
    return bool(select.select([worker.connection], [], [], 0)[0])


def _bounded(took: Any, most_s: float) -> tuple[float, ...]:
    """What a worker says it took; it is not trusted with numbers that cannot be."""
    if not isinstance(took, list) or not all(isinstance(spent, float) and spent >= 0 for spent in took):
        return ()
    return tuple(took) if sum(took) <= most_s else ()


def _error(answer: Mapping[str, Any]) -> SensoriumError:
    """The error that a worker answered with, of a kind that media can cause."""
    kind = getattr(errors, str(answer["error"]), None)
    if not (isinstance(kind, type) and issubclass(kind, errors.RequestError)):
        kind = MediaError
    return kind(str(answer["message"]), param=answer["param"])
