"""A full-duplex session that speaks whatever the logits say: for measurements with random weights.

Everything is computed and drawn as in a real session; only what becomes of a draw is decided beforehand.
"""

from __future__ import annotations

from sensorium.models.minicpm_duplex import DuplexPolicy
from sensorium.types import Decision

UNITS_PER_TURN = 10
"""A turn ends with every so many units."""
FIRST_WORD, NUM_WORDS = 40, 211


class ScriptedDuplex(DuplexPolicy):
    """Says max_new_speak_tokens_per_chunk - 2 tokens in each unit, the same in any company."""

    def _take(self, token: int) -> Decision:
        tokens, last = self.tokens, self._unit.max_new_speak_tokens_per_chunk - 1
        if self._step == 1:
            token = tokens.listen if self.turn_open else tokens.speak  # within a turn, listen stands for "go on"
        elif self._step == last and self._num_units % UNITS_PER_TURN == 0:
            token = tokens.turn_eos
        else:
            token = FIRST_WORD + (31 * self._num_units + self._step) % NUM_WORDS
        return super()._take(token)
