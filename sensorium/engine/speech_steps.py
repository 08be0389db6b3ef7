"""Rounds of the speech stage without the host: each leaves on the device what the next one reads.

So a round can be a CUDA graph, and the host may do something else while several of them run.
b rows · R rounds · W blocks of a slot · E width
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch

from sensorium.engine.graphs import Likeliest, Recorder
from sensorium.engine.speech_draw import FEW, RECENT, draw_numbers, read_draw, widths
from sensorium.engine.speech_sampler import pick
from sensorium.engine.speech_slot import Call, Slot, call_of
from sensorium.kernels.ahead import compiling
from sensorium.kernels.upload import upload
from sensorium.models.base import SpeechModel
from sensorium.types import ModelInputs

MakePlan = Callable[[torch.Tensor, torch.Tensor], Any]
"""From lengths int32 [b] that count the new row, 0 for padding, and block tables int32 [b, W]."""


class Feeds:
    """What rounds feed: the row of a code, or in place of the code `begin` the mark of the sound's beginning."""

    def __init__(self, model: SpeechModel) -> None:
        self.begin = model.num_codes
        self.end, self._mark = model.marks()
        self._embed = model.embed

    def __call__(self, codes: torch.Tensor) -> torch.Tensor:
        """int64 [b] -> [b, E]."""
        return torch.where((codes == self.begin)[:, None], self._mark, self._embed(codes.clamp(max=self.begin - 1)))

    def next_code(self, call: Call) -> int:
        """What the next round of a call feeds."""
        return call.codes[-1] if call.codes else self.begin

    @property
    def marks(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows [1, E] of the end of the text and of the sound's beginning."""
        return self.end, self._mark


@dataclass(slots=True)
class Flight:
    """Rounds that are on the device: of which calls, and what each picks. Keeps alive what they read."""

    calls: list[tuple[Slot, Call]]
    picks: list[Likeliest] = field(default_factory=list[Likeliest])
    num_rounds: int = 0

    @property
    def is_over(self) -> bool:
        """Whether all of them are computed."""
        return not self.picks or self.picks[-1].is_there

    def settle(self, eos: int) -> None:
        """Wait for the rounds, and account for them on the host, which follows what the device did."""
        for picked in self.picks:
            for (slot, call), code in zip(self.calls, picked.tolist(), strict=True):
                if slot.call is call and call.ended is None:
                    slot.feed(1)
                    slot.take(code, eos)
        self.picks = []


class SpeechSteps:
    """tables [slots, W]: the blocks of each slot. rounds: most that one run makes."""

    def __init__(
        self,
        model: SpeechModel,
        feeds: Feeds,
        kv: list[torch.Tensor],
        make_plan: MakePlan,
        tables: np.ndarray,
        rounds: int,
    ) -> None:
        self.rounds = rounds
        self._model, self._kv, self._make_plan, self._host_tables = model, kv, make_plan, tables
        self._feeds = feeds
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

    def record(self, recorder: Recorder) -> None:
        """Make rounds CUDA graphs: of powers of two rows, without filters and with those that need a short sort."""
        few = min(FEW, self._model.num_codes)
        with compiling(self._lens.device):
            for size in self._sizes:
                self._compute(size, few)
        self._state.zero_()  # what was only compiled may have left anything
        self._lens.zero_()
        self._ints.fill_(1)
        for size in reversed(self._sizes):
            for candidates in (0, few):
                # Recording runs a round too, of nothing but padding; rounds are counted up to the width of the tables.
                self._at.zero_()
                compute = partial(self._compute, size, candidates)
                self._graphs[size, candidates] = recorder.record(compute)

    def launch(self, slots: Sequence[Slot], rounds: int, *, wait: bool) -> Flight:
        """Begin up to `rounds` more codes for the call of each slot. wait: until they are there, or all have ended."""
        left = max(call_of(slot).max_new - call_of(slot).steps for slot in slots)
        size = next(size for size in self._sizes if size >= len(slots))
        candidates = self._send(slots, size)
        flight = Flight([(slot, call_of(slot)) for slot in slots])
        for _ in range(min(rounds, left, self.rounds)):
            flight.picks.append(Likeliest(self._compute_or_replay(size, candidates)[: len(slots)]))
            flight.num_rounds += 1
            if wait:
                flight.settle(self._model.eos_code)
                if all(call.ended for _, call in flight.calls):
                    break
        return flight

    def _send(self, slots: Sequence[Slot], size: int) -> int:
        """Upload where the calls are; returns how many candidates have to be sorted."""
        ints, floats, candidates = draw_numbers(slots, self.rounds, self._model.num_codes)
        count, device = len(slots), self._lens.device
        calls = [call_of(slot) for slot in slots]
        state = [
            (self._feeds.next_code(call), slot.position, call.max_new - call.steps)
            for slot, call in zip(slots, calls, strict=True)
        ]
        self._lens[:size] = 0
        self._lens[:count] = upload(np.array([slot.length + 1 for slot in slots], np.int32), device)
        self._ints[:count] = upload(ints, device)
        self._floats[:count] = upload(floats, device)
        self._state[:count] = upload(np.array(state, np.int64), device)
        tables = self._host_tables[[slot.index for slot in slots]]
        self._tables[:count] = upload(tables.astype(np.int32), device)
        self._at.zero_()
        return candidates

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
        hidden = self._model.forward(self._feeds(codes), ModelInputs(positions, plan, self._kv))
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
