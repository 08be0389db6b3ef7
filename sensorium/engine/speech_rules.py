"""What the speech LM is asked for, and the three rules by which MiniCPM's calls make codes. No torch.

A *call* speaks one piece of text on a state slot; the calls of a *turn* share the slot's KV cache. Codes are 25 a
second; the highest code is the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from sensorium.errors import SensoriumError
from sensorium.params import SpeechRule as RuleName
from sensorium.params import SpeechSampling as SpeechSampling

if TYPE_CHECKING:
    import torch

PENALTY_WINDOW = 16
"""Codes that the repetition penalty looks back on."""
MIN_KEPT = 3
"""Codes that top_p and top_k leave at least."""


@dataclass(frozen=True, slots=True)
class Rule:
    """How calls of one kind differ. Source: speech.md 1.4."""

    scope: Literal["call", "turn"]
    """Whose codes the penalty sees, and whose first code is drawn from the plain distribution."""
    text_eos: Literal["always", "last", "never"]
    """Whether the end of the text is marked in the condition."""
    filters: bool
    """top_p and top_k apply."""
    keeps_last: bool
    """The code picked when max_new is reached is spoken; else it is dropped."""
    min_new: int
    max_new: int
    one_call: bool = False
    """Each call is a turn of its own."""


RULES: Mapping[RuleName, Rule] = {
    "chat": Rule("call", "always", True, False, 50, 2048, one_call=True),
    "half_duplex": Rule("turn", "last", True, True, 0, 500),
    "duplex": Rule("call", "never", False, False, 26, 26),
}


@dataclass(frozen=True, slots=True, eq=False)
class SpeechWork:
    """One call: speak `ids`, whose final-norm hidden states of the backbone are hidden [n, llm_dim].

    Row i of hidden belongs to id i itself, computed after it was fed. Without ids only the mark of the sound's start is
    fed (a duplex unit without text).
    """

    slot: int
    ids: Sequence[int]
    hidden: torch.Tensor | None = None
    last: bool = True
    """The turn's text ends here: the slot starts anew afterwards. Calls of the chat rule are always last."""
    min_new: int | None = None
    """Codes before which the end is not drawn. None is the rule's; a duplex turn's first and last call have 0."""
    max_new: int | None = None
    """Codes picked at most. None is the rule's."""
    forced: Mapping[int, int] = field(default_factory=dict[int, int])
    """Step of the call -> the code taken there, whatever is likely: to repeat a recorded call."""


@dataclass(frozen=True, slots=True)
class Spoken:
    """What a call has said since it was last asked. `ended`: drew the end, reached max_new, or failed with `error`."""

    slot: int
    codes: list[int]
    ended: Literal["eos", "length", "error"] | None = None
    error: SensoriumError | None = None
