"""Many prompts through one engine: prepared ahead in threads, submitted as there is room, collected in order."""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace

from sensorium.engine.client import EngineClient, Stream
from sensorium.errors import EngineError, OverloadedError, SensoriumError
from sensorium.offline.progress import Bars
from sensorium.offline.results import Output, Params, collect, tokens_of
from sensorium.types import PoolingParams, Prompt, SamplingParams

_TOGETHER_S = 0.005


@dataclass(frozen=True, slots=True)
class Job:
    """One prompt. prepare runs in a thread and returns the prompt with the namespace of its caches."""

    id: str
    prepare: Callable[[], tuple[Prompt, str]]
    params: Params
    priority: int = 0

    @property
    def count(self) -> int:
        """Answers, which the engine counts as so many requests."""
        return self.params.n if isinstance(self.params, SamplingParams) else 1


def _comes(prompt: Future[tuple[Prompt, str]], until: float) -> bool:
    """Wait for a prompt up to a moment of the monotonic clock; whether it was there by then."""
    left_s = until - time.monotonic()
    return left_s > 0 and prompt in wait([prompt], left_s).done


def answers(params: Params) -> list[SamplingParams]:
    """Parameters of each answer that is asked for; with a seed, answer i has seed + i."""
    if isinstance(params, PoolingParams):
        return [SamplingParams(max_tokens=1)]
    seeds = [None if params.seed is None else params.seed + index for index in range(params.n)]
    return [replace(params, n=1, best_of=None, seed=seed) for seed in seeds]


@dataclass(frozen=True, slots=True)
class _Flying:
    index: int
    job: Job
    prompt: Prompt
    streams: list[Stream]


def run(client: EngineClient, jobs: Sequence[Job], bars: Bars) -> list[Output]:
    """Results in the order of the jobs.

    The first prompt that cannot be used ends the batch: what is in flight is aborted, and the error is raised with the
    prompt's number in front.
    """
    return _Batch(client, jobs, bars).run()


class _Batch:
    def __init__(self, client: EngineClient, jobs: Sequence[Job], bars: Bars) -> None:
        self._client = client
        self._jobs = jobs
        self._bars = bars
        self._flying: deque[_Flying] = deque()
        self._results: list[Output] = []
        # More in flight than run and wait would only be refused.
        self._window = max(client.config.max_num_seqs + client.config.max_waiting - 1, 1)

    def run(self) -> list[Output]:
        threads = self._client.config.media_threads or max((os.cpu_count() or 2) // 2, 1)
        ahead = 2 * threads
        pool = ThreadPoolExecutor(threads, thread_name_prefix="sensorium-render")
        try:
            prepared: deque[Future[tuple[Prompt, str]]] = deque(pool.submit(job.prepare) for job in self._jobs[:ahead])
            waiting, index = deque(self._jobs[ahead:]), 0
            while prepared:
                # Prompts that are ready at about the same time go together, so that one step computes them all.
                ready: list[tuple[Prompt, str]] = []
                until = math.inf
                while prepared and (not ready or _comes(prepared[0], until)):
                    with self._numbering(index + len(ready)):
                        ready.append(prepared.popleft().result())
                    until = min(until, time.monotonic() + _TOGETHER_S)
                    self._bars.rendered()
                    if waiting:
                        prepared.append(pool.submit(waiting.popleft().prepare))
                for prompt, namespace in ready:
                    with self._numbering(index):
                        self._submit(index, self._jobs[index], prompt, namespace)
                    index += 1
            while self._flying:
                self._collect_one()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            for flying in self._flying:
                for stream in flying.streams:
                    stream.abort()
        return self._results

    def _submit(self, index: int, job: Job, prompt: Prompt, namespace: str) -> None:
        while self._flying and sum(flying.job.count for flying in self._flying) + job.count > self._window:
            self._collect_one()
        while True:
            try:
                streams = self._streams(job, prompt, namespace)
                self._flying.append(_Flying(index, job, prompt, streams))
                return
            except OverloadedError:  # others use this engine too
                if not self._flying:
                    raise
            self._collect_one()

    def _streams(self, job: Job, prompt: Prompt, namespace: str) -> list[Stream]:
        """One for each answer. The engine computes a prompt that several of them have once."""
        streams: list[Stream] = []
        pooling = job.params if isinstance(job.params, PoolingParams) else None
        for index, sampling in enumerate(answers(job.params)):
            request_id = job.id if job.count == 1 else f"{job.id}-{index}"
            try:
                stream = self._client.submit(
                    prompt, sampling, request_id=request_id, namespace=namespace, priority=job.priority, pooling=pooling
                )
            except SensoriumError:
                for other in streams:
                    other.abort()
                    deque(other, maxlen=0)  # its end must come before its id is used again
                raise
            streams.append(stream)
        return streams

    def _collect_one(self) -> None:
        first = self._flying[0]
        try:
            result = collect(first.job.id, first.prompt, first.job.params, first.streams, self._client.tokenizer)
        except EngineError as error:
            raise self._numbered(error, first.index) from None
        self._flying.popleft()
        self._bars.processed(*tokens_of(result))
        self._results.append(result)

    @contextmanager
    def _numbering(self, index: int) -> Generator[None, None, None]:
        """Give the prompt's number to errors inside."""
        try:
            yield
        except SensoriumError as error:
            raise self._numbered(error, index) from error.__cause__

    def _numbered(self, error: SensoriumError, index: int) -> SensoriumError:
        """The error with the prompt's number, which errors of a batch need; one that has it already stays."""
        if len(self._jobs) > 1 and not str(error).startswith("prompt "):
            error.args = (f"prompt {index}: {error.message}",)
        return error
