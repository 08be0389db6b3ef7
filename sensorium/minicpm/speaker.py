"""The voice of a session: a speech of the engine, and a stream of the codec."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from sensorium.engine.speech_chunks import Block
from sensorium.engine.speech_rules import RuleName, SpeechSampling
from sensorium.models.token2wav import VocoderStream, Voice
from sensorium.types import SOUND_RATE

if TYPE_CHECKING:
    from sensorium.minicpm.omni import MiniCPMO


class Speaker:
    """Speaks for one session, from one thread, until close(). Without a voice there are codes and no sound."""

    def __init__(
        self, model: MiniCPMO, rule: RuleName, sampling: SpeechSampling | None = None, voice: Voice | None = None
    ) -> None:
        """Takes one of the engine's places for speech. Raises OverloadedError where there is none."""
        self._codec = model.codec
        self._stream: VocoderStream | None = None
        self.take_voice(voice)
        self._speech = model.client.open_speech(rule, sampling)

    @property
    def has_voice(self) -> bool:
        return self._stream is not None

    def take_voice(self, voice: Voice | None) -> None:
        """Speak with a voice from now on, or with none."""
        self._stream = None if voice is None else self._codec.open(voice)

    def codes(
        self,
        ids: Sequence[int],
        hidden: np.ndarray,
        *,
        last: bool,
        min_new: int | None = None,
        max_new: int | None = None,
    ) -> list[int]:
        """What the speech LM makes of text and its final-norm hidden states [n, E]; arguments as in SpeechWork."""
        rows = hidden if len(ids) else None
        return self._speech.speak(ids, rows, last=last, min_new=min_new, max_new=max_new)

    def sound(self, blocks: Sequence[Block]) -> list[np.ndarray]:
        """[n] float32 of each block at 24 kHz; behind the last block of a turn the stream begins anew."""
        if self._stream is None:
            return []
        waves: list[np.ndarray] = []
        for block in blocks:
            waves += self._codec.stream([(self._stream, block.codes, block.last)])
            if block.last:
                self._codec.reset(self._stream)
        return waves

    def reset(self) -> None:
        """Drop what is being said."""
        self._speech.hush()
        if self._stream is not None:
            self._codec.reset(self._stream)

    def close(self) -> None:
        """Give the place back."""
        self._speech.close()
        list(self._speech)


def unit_wave(waves: Sequence[np.ndarray], *, end_of_turn: bool) -> np.ndarray | None:
    """Waves [n] float32 of a unit's blocks, joined; within a turn silence in front makes up a whole second."""
    if not waves:
        return None
    wave = np.concatenate(waves).astype(np.float32, copy=False)
    missing = SOUND_RATE - len(wave)
    return wave if end_of_turn or missing <= 0 else np.pad(wave, (missing, 0))
