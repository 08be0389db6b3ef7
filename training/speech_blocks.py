"""Blocks of spoken items as arrays of fixed shapes, made by worker processes in shared memory.

A block's items lie one after another on a tape of sound. Start the workers before CUDA: they are forked.
"""

from __future__ import annotations

import mmap
import multiprocessing
import random as pyrandom
from pathlib import Path

import numpy as np
import tokenizers
import torch

from training.batches import _padded
from training.conversation import THINK
from training.duplex_watch import plain_prompt
from training.espeak import Espeak
from training.speech_items import CODE_SAMPLES, CONTEXT, LONG, MAX_IDS, SHORT, Item, Speaker, draw_order
from training.speech_texts import _question

TAPE = 4096
"""Codes of a block, 164 s."""
ITEMS, CONTEXTS = 112, 2
ORDERS = {"short": (192, SHORT), "long": (48, LONG)}
PER_ITEM = 2
"""Orders made of each item."""
FIELDS: dict[str, tuple[tuple[int, ...], type]] = {
    "wave": ((TAPE * CODE_SAMPLES,), np.int16),
    "counts": ((3,), np.int32),
    "starts": ((ITEMS,), np.int32),
    "ids": ((ITEMS, MAX_IDS), np.int16),
    "context": ((ITEMS, CONTEXTS, CONTEXT), np.int16),
    "context_at": ((ITEMS, CONTEXTS), np.int16),
    **{
        f"{part}_{name}": ((count, *((width,) if part != "item" else ())), np.int16)
        for name, (count, width) in ORDERS.items()
        for part in ("fed", "picked", "item")
    },
}
SLOTS = 3
_fork = multiprocessing.get_context("fork")


def nbytes() -> int:
    return sum(_padded(int(np.prod(shape)) * np.dtype(kind).itemsize) for shape, kind in FIELDS.values())


def arrays_over(buffer) -> dict[str, np.ndarray]:
    out, at = {}, 0
    for name, (shape, kind) in FIELDS.items():
        count = int(np.prod(shape))
        out[name] = np.frombuffer(buffer, dtype=kind, count=count, offset=at).reshape(shape)
        at += _padded(count * np.dtype(kind).itemsize)
    return out


class BlockWriter:
    def __init__(self, espeak: Path | None, tokenizer: Path, seed: int) -> None:
        self._tokenizer = tokenizers.Tokenizer.from_file(str(tokenizer))
        self._speaker = Speaker(Espeak(espeak), self._tokenizer)
        self._random = pyrandom.Random(seed)
        self._turn_end = self._tokenizer.token_to_id("<|turn_eos|>")

    def fill(self, out: dict[str, np.ndarray]) -> None:
        for name, values in out.items():
            values[:] = -1 if name.startswith("picked") else 0
        filled = items = 0
        orders = dict.fromkeys(ORDERS, 0)
        while items < ITEMS:
            item = self._speaker.draw(self._random)
            if filled + item.num_codes > TAPE:
                break
            at = filled * CODE_SAMPLES
            out["wave"][at : at + len(item.samples)] = item.samples
            out["starts"][items] = filled
            ids = [*item.ids, self._turn_end]
            out["ids"][items, : len(ids)] = ids
            for number in range(CONTEXTS):
                before = self._before()[: CONTEXT - len(ids)]
                row = [*before, *ids]
                out["context"][items, number, : len(row)] = row
                out["context_at"][items, number] = len(before)
            for _ in range(PER_ITEM):
                self._add_order(out, item, items, orders)
            filled += item.num_codes
            items += 1
        out["counts"][:] = items, orders["short"], orders["long"]

    def _before(self) -> list[int]:
        """What stands before an answer: nothing, or a question."""
        if self._random.random() < 0.15:
            return []
        question = _question(self._random)
        if self._random.random() < 0.4:
            text = f"<|im_start|>system\n{plain_prompt(self._random)}<|im_end|><unit>{question}<|speak|>"
            return self._tokenizer.encode(text, add_special_tokens=False).ids
        tail = THINK + ("<|tts_bos|>" if self._random.random() < 0.7 else "")
        text = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n{tail}"
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def _add_order(self, out: dict[str, np.ndarray], item: Item, number: int, orders: dict[str, int]) -> None:
        order = draw_order(item, self._random)
        for name, (count, width) in ORDERS.items():
            at = orders[name]
            if len(order.fed) > width or at == count:
                continue
            out[f"fed_{name}"][at, : len(order.fed)] = order.fed
            out[f"picked_{name}"][at, : len(order.picked)] = order.picked
            out[f"item_{name}"][at] = number
            orders[name] += 1
            return


class Blocks:
    """Iterating gives arrays that hold until the next one is asked for."""

    def __init__(self, count: int, espeak: Path | None, tokenizer: Path, seed: int) -> None:
        self._memory = [[mmap.mmap(-1, nbytes()) for _ in range(SLOTS)] for _ in range(count)]
        self._ready = _fork.SimpleQueue()
        self._free = [_fork.SimpleQueue() for _ in range(count)]
        self._processes = [
            _fork.Process(target=self._work, args=(i, espeak, tokenizer, seed * 1000 + i), daemon=True)
            for i in range(count)
        ]
        for process in self._processes:
            process.start()
        self._arrays = [[arrays_over(memory) for memory in slots] for slots in self._memory]

    def _work(self, number: int, espeak: Path | None, tokenizer: Path, seed: int) -> None:
        torch.set_num_threads(1)
        writer = BlockWriter(espeak, tokenizer, seed)
        slots = [arrays_over(memory) for memory in self._memory[number]]
        for slot in range(SLOTS):
            self._free[number].put(slot)
        while True:
            slot = self._free[number].get()
            writer.fill(slots[slot])
            self._ready.put((number, slot))

    def get(self, device: torch.device, wait: bool) -> dict[str, torch.Tensor] | None:
        """The next block, on the device; None if there is none yet."""
        if not wait and self._ready.empty():
            return None
        number, slot = self._ready.get()
        block = {name: torch.from_numpy(a).to(device, copy=True) for name, a in self._arrays[number][slot].items()}
        if device.type == "cuda":
            torch.cuda.current_stream().synchronize()
        self._free[number].put(slot)
        return block

    def close(self) -> None:
        for process in self._processes:
            process.terminate()
