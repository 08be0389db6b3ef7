"""How a session speaks: what its units say goes to its speaker, with their hidden rows, turn after turn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from sensorium.engine.answers import GROUP, Spoken, Words
from sensorium.engine.session import Session
from sensorium.engine.speakers import Speakers, Text
from sensorium.types import Event, SpeechOptions, UnitDone


class SessionVoice:
    """By the rule half_duplex a unit is spoken in groups of tokens while it goes on, by the others when it is over."""

    def __init__(self, speakers: Speakers, session_id: str, options: SpeechOptions, spoken: Spoken | None) -> None:
        """spoken: which tokens are; None: all that the policy collects. Raises what Speakers.open raises."""
        self._speakers, self._spoken = speakers, spoken
        self._speaker = speakers.open(session_id, options)
        self._rule = options.rule
        self._words = Words()
        self.num_seen = 0
        """Tokens of the unit whose rows have come."""
        self._has_said = False

    @property
    def is_quiet(self) -> bool:
        return self._speaker.is_quiet

    def goes_on(self, session: Session, rows: Sequence[torch.Tensor], events: list[Event]) -> None:
        """The unit says one more token; rows [E] of those before it that are new."""
        assert session.unit is not None
        self._take(session.said, rows)
        while self._rule == "half_duplex" and len(self._words.ids) >= GROUP:
            ids, hidden = self._words.take(GROUP)
            text = Text(session.unit.index, session.turn, ids, hidden, last=False, is_over=False, ends=False)
            self._speakers.say(self._speaker, text, events)
            self._has_said = True

    def unit_over(
        self,
        done: UnitDone,
        rows: Sequence[torch.Tensor],
        speech: Literal["more", "end", "stop", "drop"] | None,
        events: list[Event],
    ) -> bool:
        """Whether the unit is spoken; its sound may come later. speech: as in Outcome, None for one that broke off."""
        self._take(done.ids, rows)
        ids, hidden = self._words.take()
        has_said = self._has_said
        self.num_seen, self._has_said = 0, False
        if speech is None:
            return has_said
        # A unit of full duplex without text goes on with what was said before.
        is_spoken = speech != "drop" and (bool(ids) or has_said or self._rule == "duplex")
        text = Text(
            done.index, done.turn, ids, hidden, last=speech == "end", is_over=speech != "drop", ends=speech != "more",
            is_spoken=is_spoken,
        )  # fmt: skip
        self._speakers.say(self._speaker, text, events)
        return speech != "drop"

    def _take(self, ids: Sequence[int], rows: Sequence[torch.Tensor]) -> None:
        for token, row in zip(ids[self.num_seen : self.num_seen + len(rows)], rows, strict=True):
            if self._spoken is None or self._spoken.takes(token):
                self._words.add(token, row)
        self.num_seen += len(rows)

    def cut(self, events: list[Event]) -> None:
        """End what is being said."""
        self._speakers.cut(self._speaker, events)

    def close(self, events: list[Event]) -> None:
        self.cut(events)
        self._speakers.close(self._speaker)
