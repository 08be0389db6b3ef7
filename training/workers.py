"""Processes that draw batches into shared memory, and the thread that moves them to the device.

Start the workers before CUDA: they are forked.
"""

from __future__ import annotations

import mmap
import multiprocessing
import queue
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from training.atlas import load
from training.batches import BatchWriter, Shape, arrays_over, ctc_symbols
from training.conversation import Encoder
from training.espeak import Espeak
from training.families import TASK_NUMBERS, Source

SLOTS = 3
_fork = multiprocessing.get_context("fork")


@dataclass(frozen=True, slots=True)
class Files:
    """Where the data comes from. espeak: a packed folder, or None for the system's."""

    atlas: Path
    espeak: Path | None
    tokenizer: Path


class SharedErrors(Mapping[str, float]):
    """Task -> share of wrong answers, written by the trainer for the workers; and the share of easy examples."""

    def __init__(self) -> None:
        self._values = np.frombuffer(mmap.mmap(-1, 4096), dtype=np.float32)
        self._values[: len(TASK_NUMBERS)] = 0.4

    def update(self, values: np.ndarray, ease: float) -> None:
        self._values[: len(values)] = values
        self._values[-1] = ease

    @property
    def ease(self) -> float:
        return float(self._values[-1])

    def __getitem__(self, task: str) -> float:
        return float(self._values[TASK_NUMBERS[task]])

    def __len__(self) -> int:
        return len(TASK_NUMBERS)

    def __iter__(self):
        return iter(TASK_NUMBERS)


Fill = Callable[[dict[str, np.ndarray]], None]
"""Writes the next batch over the one before."""


class Shaped(Protocol):
    """The shape of batches."""

    def fields(self) -> dict[str, tuple[tuple[int, ...], type]]: ...
    def nbytes(self) -> int: ...


def questions(files: Files, shape: Shape, seed: int, errors: SharedErrors, answers: float = 0.0) -> Fill:
    """answers: see training.families.Source."""
    source = Source(seed, load(files.atlas).fonts, Espeak(files.espeak), errors, answers)
    writer = BatchWriter(source, Encoder(str(files.tokenizer)), shape, TASK_NUMBERS, ctc_symbols())

    def fill(out: dict[str, np.ndarray]) -> None:
        source.ease = errors.ease
        writer.fill(out)

    return fill


class Workers:
    """make: from files, shape and seed, in a worker process, to what fills batches."""

    def __init__(
        self, count: int, shape: Shaped, files: Files, seed: int, make: Callable[..., Fill] = questions
    ) -> None:
        self.shape, self._make = shape, make
        self.errors = SharedErrors()
        self._memory = [[mmap.mmap(-1, shape.nbytes()) for _ in range(SLOTS)] for _ in range(count)]
        self._ready = _fork.SimpleQueue()
        self._free = [_fork.SimpleQueue() for _ in range(count)]
        self._processes = [
            _fork.Process(target=self._work, args=(number, files, seed + number), daemon=True)
            for number in range(count)
        ]
        for process in self._processes:
            process.start()

    def _work(self, number: int, files: Files, seed: int) -> None:
        torch.set_num_threads(1)
        fill = self._make(files, self.shape, seed, self.errors)
        slots = [arrays_over(memory, self.shape) for memory in self._memory[number]]
        for slot in range(SLOTS):
            self._free[number].put(slot)
        while True:
            slot = self._free[number].get()
            fill(slots[slot])
            self._ready.put((number, slot))

    def batches(self, device: torch.device, ahead: int = 3) -> queue.Queue:
        """A queue of batches on the device, filled by a thread."""
        out: queue.Queue = queue.Queue(maxsize=ahead)
        threading.Thread(target=self._move, args=(device, out), daemon=True).start()
        return out

    def _move(self, device: torch.device, out: queue.Queue) -> None:
        stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        arrays = [[arrays_over(memory, self.shape) for memory in slots] for slots in self._memory]
        while True:
            number, slot = self._ready.get()
            with torch.cuda.stream(stream):
                batch = {name: torch.from_numpy(a).to(device, copy=True) for name, a in arrays[number][slot].items()}
            if stream is not None:
                stream.synchronize()
            self._free[number].put(slot)
            out.put(batch)

    def close(self) -> None:
        for process in self._processes:
            process.terminate()
