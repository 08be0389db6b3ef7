"""From slots to the numbers that their next codes are drawn with: one table of int64 and one of float32.

b rows · R rounds
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from sensorium.engine.speech_rules import MIN_KEPT, PENALTY_WINDOW
from sensorium.engine.speech_sampler import NONE, Draw
from sensorium.engine.speech_slot import Slot, call_of

# Columns of a row. Behind them, int64: the recent codes and R forced ones; float32: R random numbers.
_TOP_K, _FILTERED, _GREEDY, _END_FREE, _INTS = range(5)
# In _FILTERED: the round from which top_p and top_k apply.
_NEVER = 1 << 40
_TEMPERATURE, _PENALTY, _TOP_P, _FLOATS = range(4)
RECENT = slice(_INTS, _INTS + PENALTY_WINDOW)
_FORCED = RECENT.stop
# Candidates that top_p and top_k look at where top_k allows it: a short sort in place of a long one.
FEW = 32


def widths(rounds: int) -> tuple[int, int]:
    """Columns of the two tables."""
    return _FORCED + rounds, _FLOATS + rounds


def draw_numbers(slots: Sequence[Slot], rounds: int, num_codes: int) -> tuple[np.ndarray, np.ndarray, int]:
    """The tables for the next `rounds` codes of each slot, and how many candidates have to be sorted."""
    num_ints, num_floats = widths(rounds)
    ints = np.full((len(slots), num_ints), NONE, dtype=np.int64)
    floats = np.zeros((len(slots), num_floats), dtype=np.float32)
    most = 0
    for i, slot in enumerate(slots):
        call, sampling = call_of(slot), slot.sampling
        top_k = num_codes if sampling.top_k is None else min(max(sampling.top_k, MIN_KEPT), num_codes)
        filtered = slot.rule.filters and (sampling.top_p, sampling.top_k) != (None, None)
        most = max(most, top_k * filtered)
        since = (0 if slot.is_limited else 1) if filtered else _NEVER
        ints[i, :_INTS] = top_k, since, sampling.greedy, call.min_new - call.steps
        if recent := slot.penalised:
            ints[i, RECENT.stop - len(recent) : RECENT.stop] = recent
        for step, code in call.work.forced.items():
            if 0 <= step - call.steps < rounds:
                ints[i, _FORCED + step - call.steps] = code
        top_p = 1.0 if sampling.top_p is None else sampling.top_p
        floats[i, :_FLOATS] = sampling.temperature, sampling.repetition_penalty, top_p
        uniforms = call.uniforms[call.steps : call.steps + rounds]
        floats[i, _FLOATS : _FLOATS + len(uniforms)] = uniforms
    return ints, floats, most and (min(FEW, num_codes) if most <= FEW else num_codes)


def read_draw(ints: torch.Tensor, floats: torch.Tensor, at: torch.Tensor) -> Draw:
    """What round `at`, int64 [1], draws with."""
    places = at.expand(len(ints), 1)
    return Draw(
        temperature=floats[:, _TEMPERATURE, None],
        penalty=floats[:, _PENALTY, None],
        top_p=floats[:, _TOP_P, None],
        top_k=ints[:, _TOP_K, None],
        filtered=ints[:, _FILTERED, None] <= at,
        greedy=ints[:, _GREEDY] > 0,
        recent=ints[:, RECENT],
        no_end=ints[:, _END_FREE] > at,
        uniform=floats[:, _FLOATS:].gather(1, places)[:, 0],
        forced=ints[:, _FORCED:].gather(1, places)[:, 0],
    )
