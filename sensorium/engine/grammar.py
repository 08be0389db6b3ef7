"""Structured output: what a user writes becomes a grammar, checked in a process that may die, and then a matcher that
says before every token which tokens may come.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sensorium.engine.grammar_compile import TokenTable, begin
from sensorium.engine.histogram import COMPILE_S, Histogram
from sensorium.errors import OverloadedError, RequestError, SensoriumError
from sensorium.models.base import Tokenizer
from sensorium.types import StructuredOutputs

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

_PARAM = "structured_outputs"
_WALL_S = 30.0
"""The worker has 2 s of processor time; this is for a machine that gives it none, to start or to compile."""
_MAX_WAITING = 32
_MAX_ERROR_CHARS = 300
_CACHE_BYTES = 64 << 20
_MAX_MATCHERS = 64
_STACK_BYTES = 64 << 20


class GrammarChecker:
    """Turns StructuredOutputs into checked grammars, in a worker process that is started when first needed.

    Safe to call from several threads; they take turns. Results, errors too, are kept up to 64 MiB.
    """

    def __init__(self, tokenizer: Tokenizer, settings: Mapping[str, Any] | None = None) -> None:
        """settings: EngineConfig.structured_outputs_config."""
        self._tokenizer = tokenizer
        self._defaults = read_defaults(settings or {})
        self._pool: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()
        self._turn = threading.Lock()
        self._num_waiting = 0
        self._worker: subprocess.Popen[bytes] | None = None
        self._known: OrderedDict[bytes, dict[str, str]] = OrderedDict()
        self._known_bytes = 0
        self.seconds = Histogram(COMPILE_S)
        """Of checks that could not be answered from memory."""

    def check(self, wanted: StructuredOutputs) -> str:
        """The grammar in llguidance's notation. Blocks for up to some seconds.

        RequestError where nothing can be made of it within 2 s and 256 MiB, OverloadedError where too many wait or the
        machine is too busy to tell.
        """
        key, job = self._job(wanted)
        answer = self._recall(key)
        if answer is None:
            with self._waiting():
                answer = self._resolve(key, job)
        return _grammar(answer)

    async def acheck(self, wanted: StructuredOutputs) -> str:
        """As check, in an event loop, which goes on meanwhile."""
        key, job = self._job(wanted)
        answer = self._recall(key)
        if answer is None:
            with self._waiting():
                self._pool = self._pool or ThreadPoolExecutor(1, "sensorium-grammar")
                answer = await asyncio.get_running_loop().run_in_executor(self._pool, self._resolve, key, job)
        return _grammar(answer)

    def _job(self, wanted: StructuredOutputs) -> tuple[bytes, bytes]:
        """What is remembered by, and what is sent."""
        fields = dataclasses.asdict(wanted)
        del fields["after"]
        fields |= {name: True for name, value in self._defaults.items() if value}
        job = json.dumps(fields).encode()
        return hashlib.sha256(job).digest(), job

    def _resolve(self, key: bytes, job: bytes) -> dict[str, str]:
        with self._turn:
            answer = self._recall(key)
            if answer is None:
                start = time.perf_counter()
                answer = self._ask(job)
                self.seconds.observe(time.perf_counter() - start)
                self._keep(key, answer)
            return answer

    def close(self) -> None:
        """End the worker process, whatever it does. A later check starts another."""
        worker = self._worker
        if worker is not None:
            worker.kill()
        with self._turn:
            self._kill()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    @contextlib.contextmanager
    def _waiting(self) -> Iterator[None]:
        with self._lock:
            if self._num_waiting >= _MAX_WAITING:
                raise OverloadedError(
                    f"{self._num_waiting} grammars wait to be compiled already; try again later", reason="grammars"
                )
            self._num_waiting += 1
        try:
            yield
        finally:
            with self._lock:
                self._num_waiting -= 1

    def _recall(self, key: bytes) -> dict[str, str] | None:
        with self._lock:
            answer = self._known.get(key)
            if answer is not None:
                self._known.move_to_end(key)
            return answer

    def _keep(self, key: bytes, answer: dict[str, str]) -> None:
        with self._lock:
            self._known[key] = answer
            self._known_bytes += sum(map(len, answer.values()))
            while self._known_bytes > _CACHE_BYTES:
                _, old = self._known.popitem(last=False)
                self._known_bytes -= sum(map(len, old.values()))

    def _ask(self, job: bytes) -> dict[str, str]:
        if self._worker is None or self._worker.poll() is not None:
            tokens, special = token_table(self._tokenizer)
            table = {"tokens": [token.hex() for token in tokens], "special": special}
            self._worker = _start_worker()
            if not self._exchange(self._worker, json.dumps(table).encode()):
                raise SensoriumError("the process that compiles grammars does not start")
        line = self._exchange(self._worker, job)
        return json.loads(line) if line else {"error": "too large or too deep to compile within 2 seconds and 256 MiB"}

    def _exchange(self, worker: subprocess.Popen[bytes], line: bytes) -> bytes:
        """The worker's answer to a line; empty where that was its end. OverloadedError where it got no time for it."""
        assert worker.stdin is not None
        assert worker.stdout is not None
        answer = b""
        with contextlib.suppress(BrokenPipeError):
            worker.stdin.write(line + b"\n")
            worker.stdin.flush()
            if not select.select([worker.stdout], [], [], _WALL_S)[0]:
                self._kill()
                reason = f"a grammar got no processor time in {_WALL_S:g} s; try again later"
                raise OverloadedError(reason, param=_PARAM, reason="grammars")
            answer = worker.stdout.readline()
        if not answer.endswith(b"\n"):
            self._kill()
            return b""
        return answer

    def _kill(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.kill()
            with contextlib.suppress(BrokenPipeError):
                worker.__exit__(None, None, None)  # closes the pipes and waits


def read_defaults(settings: Mapping[str, Any]) -> dict[str, bool]:
    """What structured_outputs_config switches on for every request. RequestError names what is not known."""
    for name, value in settings.items():
        if name == "backend" and value in ("auto", "guidance"):
            continue
        if name not in ("disable_any_whitespace", "disable_additional_properties", "enable_in_reasoning"):
            known = (
                "disable_any_whitespace, disable_additional_properties, enable_in_reasoning; backend auto or guidance"
            )
            reason = f"structured_outputs_config: {name}={value!r} is not supported; known: {known}"
            raise RequestError(reason, param="structured_outputs_config")
    return {name: settings.get(name) is True for name in ("disable_any_whitespace", "disable_additional_properties")}


def _grammar(answer: Mapping[str, str]) -> str:
    if "grammar" not in answer:
        message = " ".join(answer["error"].split())[:_MAX_ERROR_CHARS]
        raise RequestError(f"{_PARAM}: {message}", param=_PARAM)
    return answer["grammar"]


def _start_worker() -> subprocess.Popen[bytes]:
    root = str(Path(__file__).resolve().parents[2])
    paths = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-m", "sensorium.engine.grammar_worker"]
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": paths},
        start_new_session=True,  # Ctrl-C in a terminal is for its parent
    )


class Matcher:
    """Follows one answer through its grammar.

    size: tokens of the table it was compiled for. ends: ids that end a text, allowed once the grammar accepts. after:
    ids that must have come before it begins.
    """

    def __init__(self, inner: LLMatcher, size: int, ends: frozenset[int], after: tuple[int, ...] = ()) -> None:
        self._inner = inner
        self._size = size
        self._ends = sorted(ends)
        self._after = after
        self._tail: list[int] = []
        self._begun = not after

    @property
    def is_complete(self) -> bool:
        """Whether the grammar is satisfied and nothing can follow."""
        return self._begun and self._inner.is_stopped() and self._inner.is_accepting()

    def closed(self, width: int) -> np.ndarray | None:
        """[width] bool, true for tokens that may not come next; None where any may."""
        if not self._begun:
            return None
        allowed = np.zeros(width, dtype=bool)
        if not self._inner.is_error():
            bits = np.unpackbits(np.frombuffer(self._inner.compute_bitmask(), np.uint8), bitorder="little")
            size = min(width, self._size)
            allowed[:size] = bits[:size]
            if self._inner.is_accepting():
                allowed[[end for end in self._ends if end < width]] = True
        return ~allowed

    def accept(self, token: int) -> None:
        if not self._begun:
            self._tail = [*self._tail[1 - len(self._after) :], token] if len(self._after) > 1 else [token]
            self._begun = tuple(self._tail) == self._after
        elif not self._inner.is_stopped():
            self._inner.consume_token(token)


def token_table(tokenizer: Tokenizer) -> tuple[list[bytes], list[int]]:
    """The bytes of every token, and the ids that are no text: an answer could grow by them without getting on."""
    tokens = [tokenizer.token_bytes(token) for token in range(tokenizer.vocab_size)]
    return tokens, [i for i, text in enumerate(tokens) if i in tokenizer.special_ids or not text]


class GrammarCompiler:
    """Makes matchers for one tokenizer in a thread of its own. The engine polls the futures."""

    def __init__(self, tokenizer: Tokenizer, settings: Mapping[str, Any] | None = None) -> None:
        """settings: EngineConfig.structured_outputs_config."""
        self._tokenizer = tokenizer
        self.checker = GrammarChecker(tokenizer, settings)
        self._pool: ThreadPoolExecutor | None = None
        self._table: LLTokenizer | None = None
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()
        self.seconds = Histogram(COMPILE_S)

    def submit(self, wanted: StructuredOutputs, ends: frozenset[int]) -> Future[Matcher]:
        """A matcher, or RequestError. ends: ids that may end the answer."""
        if self._pool is None:
            previous = threading.stack_size(_STACK_BYTES)
            self._pool = ThreadPoolExecutor(1, "sensorium-grammar")
            self._pool.submit(int).result()  # its thread starts now, while the size holds
            threading.stack_size(previous)
        return self._pool.submit(self._compile, wanted, ends)

    def close(self) -> None:
        """End the thread and the worker process. A later submit starts both again."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self.checker.close()  # what is being checked ends now
            self._pool.shutdown(wait=True)
            self._pool = None
            self.checker.close()

    def _compile(self, wanted: StructuredOutputs, ends: frozenset[int]) -> Matcher:
        start = time.perf_counter()
        grammar = self.checker.check(wanted)
        inner = self._compiled.get(grammar)
        if inner is None:
            if self._table is None:
                self._table = TokenTable(*token_table(self._tokenizer), self._tokenizer.encode).build()
            inner = self._compiled[grammar] = begin(self._table, grammar)
            if len(self._compiled) > _MAX_MATCHERS:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(grammar)
        self.seconds.observe(time.perf_counter() - start)
        return Matcher(inner.deep_copy(), self._tokenizer.vocab_size, ends, wanted.after)
