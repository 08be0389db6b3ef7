"""Rounds of the speech stage without the host: each leaves on the device what the next one reads.

So a round can be a CUDA graph, and the next one starts while the host still reads the codes of the last.
b rows · R rounds · W blocks of a slot
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from sensorium.engine.graphs import Likeliest, Recorder
from sensorium.engine.speech_draw import FEW, RECENT, draw_numbers, read_draw, widths
from sensorium.engine.speech_sampler import pick
from sensorium.engine.speech_slot import Slot, call_of
from sensorium.models.base import SpeechModel
from sensorium.types import ModelInputs

MakePlan = Callable[[torch.Tensor, torch.Tensor], Any]
"""From lengths int32 [b] that count the new row, 0 for padding, and block tables int32 [b, W]."""


class SpeechSteps:
    """tables [slots, W]: the blocks of each slot. rounds: most that one run makes."""

    def __init__(
        self, model: SpeechModel, kv: list[torch.Tensor], make_plan: MakePlan, tables: np.ndarray, rounds: int
    ) -> None:
        self.rounds = rounds
        self._model, self._kv, self._make_plan, self._host_tables = model, kv, make_plan, tables
        device, most = kv[0].device, len(tables)
        num_ints, num_floats = widths(rounds)
        # Ones, as padding is drawn too, and a top_k of 0 would read before the first candidate.
        self._ints = torch.ones(most, num_ints, dtype=torch.int64, device=device)
        self._floats = torch.ones(most, num_floats, device=device)
        # Per row: the code to feed, its position, and how many more may be picked.
        self._state = torch.zeros(most, 3, dtype=torch.int64, device=device)
        self._lens = torch.zeros(most, dtype=torch.int32, device=device)
        self._tables = torch.zeros(tables.shape, dtype=torch.int32, device=device)
        self._at = torch.zeros(1, dtype=torch.int64, device=device)
        self._sizes = [*(1 << i for i in range((most - 1).bit_length())), most]
        self._graphs: dict[tuple[int, int], tuple[torch.cuda.CUDAGraph, torch.Tensor]] = {}

    def record(self) -> None:
        """Make rounds CUDA graphs: of powers of two rows, without filters and with those that need a short sort."""
        recorder = Recorder()
        for size in reversed(self._sizes):
            for candidates in (0, min(FEW, self._model.num_codes)):
                # Recording runs a round too, of nothing but padding; rounds are counted up to the width of the tables.
                self._at.zero_()
                compute = partial(self._compute, size, candidates)
                self._graphs[size, candidates] = recorder.record(compute)

    def run(self, slots: Sequence[Slot], rounds: int) -> int:
        """Up to `rounds` more codes for the call of each slot; how many rounds that were."""
        left = max(call_of(slot).max_new - call_of(slot).steps for slot in slots)
        rounds = min(rounds, left, self.rounds)
        size = next(size for size in self._sizes if size >= len(slots))
        candidates = self._send(slots, size)
        unread: Likeliest | None = None
        for _ in range(rounds):
            picked = Likeliest(self._compute_or_replay(size, candidates)[: len(slots)])
            if not picked.device.is_cuda:
                self._settle(slots, picked)
            elif unread is not None:
                self._settle(slots, unread)
            unread = picked
            if all(call_of(slot).ended for slot in slots):
                break
        if unread is not None and unread.device.is_cuda:
            self._settle(slots, unread)
        return rounds

    def _send(self, slots: Sequence[Slot], size: int) -> int:
        """Upload where the calls are; returns how many candidates have to be sorted."""
        ints, floats, candidates = draw_numbers(slots, self.rounds, self._model.num_codes)
        count = len(slots)
        calls = [call_of(slot) for slot in slots]
        state = [
            (call.codes[-1], slot.position, call.max_new - call.steps) for slot, call in zip(slots, calls, strict=True)
        ]
        self._lens[:size] = 0
        self._lens[:count] = torch.tensor([slot.length + 1 for slot in slots], dtype=torch.int32)
        self._ints[:count] = torch.from_numpy(ints)
        self._floats[:count] = torch.from_numpy(floats)
        self._state[:count] = torch.tensor(state)
        self._tables[:count] = torch.from_numpy(self._host_tables[[slot.index for slot in slots]])
        self._at.zero_()
        return candidates

    def _settle(self, slots: Sequence[Slot], picked: Likeliest) -> None:
        """Account for a round on the host, which follows what the device did."""
        for slot, code in zip(slots, picked.tolist(), strict=True):
            if call_of(slot).ended is None:
                slot.feed(1)
                slot.take(code, self._model.eos_code)

    def _compute_or_replay(self, size: int, candidates: int) -> torch.Tensor:
        recorded = self._graphs.get((size, candidates))
        if recorded is None:
            return self._compute(size, candidates)
        recorded[0].replay()
        return recorded[1]

    def _compute(self, size: int, candidates: int) -> torch.Tensor:
        """One round of `size` rows: their picks, int64 [size]."""
        codes, positions, left = self._state[:size].unbind(1)
        lens, ints, eos = self._lens[:size], self._ints[:size], self._model.eos_code
        plan = self._make_plan(lens, self._tables[:size])
        hidden = self._model.forward(self._model.embed(codes), ModelInputs(positions, plan, self._kv))
        draw = read_draw(ints, self._floats[:size], self._at)
        picked = pick(self._model.logits(hidden), draw, eos, candidates)
        going = (lens > 0) & (picked >= 0) & (picked != eos) & (left > self._at + 1)
        recent = ints[:, RECENT]
        recent.copy_(torch.cat((recent[:, 1:], picked[:, None]), 1))
        codes.copy_(torch.where(going, picked, 0))
        positions.add_(1)
        lens.copy_(torch.where(going, lens + 1, 0))
        self._at.add_(1)
        return picked
