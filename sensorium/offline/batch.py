"""Many prompts through one engine: prepared ahead in threads, submitted as there is room, collected in order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from sensorium.engine.client import EngineClient, Stream
from sensorium.errors import EngineError, OverloadedError, SensoriumError, UnsupportedError
from sensorium.offline.progress import Bars
from sensorium.offline.results import Output, Params, collect, tokens_of
from sensorium.types import PoolingParams, Prompt


@dataclass(frozen=True, slots=True)
class Job:
    """One prompt. prepare runs in a thread and returns the prompt with the namespace of its caches."""

    id: str
    prepare: Callable[[], tuple[Prompt, str]]
    params: Params
    priority: int = 0


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
            for index, job in enumerate(self._jobs):
                try:
                    prompt, namespace = prepared.popleft().result()
                    self._bars.rendered()
                    if index + ahead < len(self._jobs):
                        prepared.append(pool.submit(self._jobs[index + ahead].prepare))
                    self._submit(index, job, prompt, namespace)
                except SensoriumError as error:
                    raise self._numbered(error, index) from error.__cause__
            while self._flying:
                self._collect_one()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            for flying in self._flying:
                for stream in flying.streams:
                    stream.abort()
        return self._results

    def _submit(self, index: int, job: Job, prompt: Prompt, namespace: str) -> None:
        while sum(len(flying.streams) for flying in self._flying) >= self._window:
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
        params = job.params
        if isinstance(params, PoolingParams):
            raise UnsupportedError("this engine generates; it has no embeddings to give", param="pooling_params")
        return [self._client.submit(prompt, params, request_id=job.id, namespace=namespace, priority=job.priority)]

    def _collect_one(self) -> None:
        first = self._flying[0]
        try:
            result = collect(first.job.id, first.prompt, first.job.params, first.streams, self._client.tokenizer)
        except EngineError as error:
            raise self._numbered(error, first.index) from None
        self._flying.popleft()
        self._bars.processed(*tokens_of(result))
        self._results.append(result)

    def _numbered(self, error: SensoriumError, index: int) -> SensoriumError:
        """The error with the prompt's number, which errors of a batch need; one that has it already stays."""
        if len(self._jobs) > 1 and not str(error).startswith("prompt "):
            error.args = (f"prompt {index}: {error.message}",)
        return error
