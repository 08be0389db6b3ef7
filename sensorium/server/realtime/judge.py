"""How long a pause must last to end a turn: what was said is written down and judged (semantic_vad)."""

from __future__ import annotations

import asyncio
import contextlib

import numpy as np

from sensorium.errors import SensoriumError
from sensorium.server.live.clock import Clock, within
from sensorium.server.realtime.audio import to_wav
from sensorium.server.realtime.schema import SemanticVad, Transcription
from sensorium.server.realtime.transcripts import Transcriber
from sensorium.server.realtime.turn_end import TurnEnd, WordsAndVoice, wait_ms
from sensorium.types import MediaRef

JUDGE_S = 2.0
"""A transcript that takes longer is done without: nobody waits for the judgement of a pause."""


class Judge:
    """Of one connection."""

    def __init__(self, transcriber: Transcriber, clock: Clock, policy: TurnEnd | None = None) -> None:
        self._transcriber = transcriber
        self._clock = clock
        self._policy = policy or WordsAndVoice()

    async def wait_ms(self, said: np.ndarray, detection: SemanticVad, wanted: Transcription | None) -> int:
        """said: [n], the end of the turn, without the pause. wanted: how the session's transcripts are made."""
        text = await self._text(said, wanted or Transcription())
        completeness = await asyncio.to_thread(self._policy.completeness, said, text)
        return wait_ms(completeness, detection.eagerness)

    async def _text(self, said: np.ndarray, wanted: Transcription) -> str | None:
        try:
            if not self._transcriber.is_able(wanted):
                return None
            return await within(self._clock, JUDGE_S, self._transcribe(said, wanted))
        except (SensoriumError, asyncio.TimeoutError):
            return None  # a server too busy for it still hears the voice

    async def _transcribe(self, said: np.ndarray, wanted: Transcription) -> str:
        whole = ""
        async with contextlib.aclosing(self._transcriber.texts(MediaRef("audio", to_wav(said)), wanted)) as deltas:
            async for delta, _ in deltas:
                whole += delta
        return whole
