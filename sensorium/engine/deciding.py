"""Where sessions' policies meet logits: beside the sampler, for the rows of a step that belong to sessions.

Shapes: m rows (sessions that decide in this step) · V vocabulary · E width.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Any

import torch

from sensorium.engine.graphs import Likeliest
from sensorium.engine.sampler import NOT_A_NUMBER, Unsampled
from sensorium.kernels.upload import upload
from sensorium.models.base import SessionPolicy
from sensorium.types import Decision

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Decider:
    policy: SessionPolicy
    collects: bool = False
    """Whether the row that is asked about next belongs to an id that was said."""
    kept: list[torch.Tensor] = field(default_factory=list[torch.Tensor])


class Deciders:
    """The policies of all sessions, and the hidden rows of what they say, which stay on the device."""

    def __init__(self) -> None:
        self._deciders: dict[str, _Decider] = {}

    def __bool__(self) -> bool:
        return bool(self._deciders)

    def open(self, session_id: str, policy: SessionPolicy) -> None:
        self._deciders[session_id] = _Decider(policy)

    def forget(self, session_id: str) -> None:
        self._deciders.pop(session_id, None)

    def rows(self, session_id: str, start: int = 0) -> list[torch.Tensor]:
        """Final-norm hidden states [E] of the ids said in the unit, from the start-th on, in the model's dtype.

        An id's comes with the decision after it.
        """
        return self._deciders[session_id].kept[start:]

    def clear(self, session_id: str) -> None:
        """A unit is over: what was fed last is not asked about, and what was said is told."""
        decider = self._deciders[session_id]
        decider.collects, decider.kept = False, []

    def decide(self, ids: Seq[str], logits: torch.Tensor, hidden: torch.Tensor) -> list[Decision | Unsampled]:
        """One decision per session from its row of logits [m, V] and hidden [m, E], or why there is none."""
        logits = logits.float()
        # Policies decide while this is on its way, so that a step waits for the device once; of rows that are not
        # numbers they see zeros, and what they make of those does not count.
        bad = torch.isnan(logits).any(-1)
        logits, broken = logits.masked_fill(bad[:, None], 0.0), Likeliest(bad)
        hidden = hidden.clone()
        groups: defaultdict[type, list[int]] = defaultdict(list)
        for row, session_id in enumerate(ids):
            decider = self._deciders[session_id]
            if decider.collects:
                decider.kept.append(hidden[row])
            groups[type(decider.policy)].append(row)
        results: dict[int, Decision | Unsampled] = {}
        for kind, rows in groups.items():
            results |= zip(rows, self._ask(kind, [ids[row] for row in rows], logits, rows), strict=True)
        results |= {row: NOT_A_NUMBER for row, is_bad in enumerate(broken.tolist()) if is_bad}
        for row, session_id in enumerate(ids):
            result = results[row]
            self._deciders[session_id].collects = isinstance(result, Decision) and result.collect
        return [results[row] for row in range(len(ids))]

    def _ask(self, kind: Any, ids: Seq[str], logits: torch.Tensor, rows: list[int]) -> Seq[Decision | Unsampled]:
        policies = [self._deciders[session_id].policy for session_id in ids]
        together = getattr(kind, "decide_all", None)
        if together is not None:
            part = logits if len(rows) == len(logits) else logits[upload(rows, logits.device)]
            return _guarded(lambda: together(policies, part), len(rows))
        return [
            _guarded(lambda policy=policy, row=row: [policy.decide(logits[row])], 1)[0]
            for policy, row in zip(policies, rows, strict=True)
        ]


def _guarded(decide: Any, count: int) -> Seq[Decision | Unsampled]:
    """What the policies decide; a defect of theirs ends their sessions, and no others."""
    try:
        decisions = list(decide())
        if len(decisions) != count:
            raise ValueError(f"{len(decisions)} decisions for {count} sessions")
        return decisions
    except Exception as error:
        log.exception("a session's policy failed")
        return [Unsampled(f"the session's policy failed ({type(error).__name__})", "engine_error", 500)] * count
