"""What MiniCPM-o 4.5 does beside chat(): listen and speak by turns, or both at once."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

from sensorium.minicpm.duplex import Duplex
from sensorium.minicpm.model import MiniCPM
from sensorium.minicpm.simplex import Simplex

if TYPE_CHECKING:
    from sensorium.minicpm.omni import MiniCPMO


class Talking(MiniCPM):
    """The calls of sessions. One thread at a time may use them."""

    # ---- both at once ---------------------------------------------------------------------------------------------

    def as_duplex(self, device: Any = None, **overrides: Any) -> Duplex:
        """A full-duplex view of this model, on the same weights. Options: see DuplexOptions."""
        return Duplex(cast("MiniCPMO", self), device, **overrides)

    # ---- by turns -------------------------------------------------------------------------------------------------

    @cached_property
    def _simplex(self) -> Simplex:
        return Simplex(cast("MiniCPMO", self))

    def reset_session(self, reset_token2wav_cache: bool = True) -> None:
        """Forget the turn-based session; with reset_token2wav_cache its voice too."""
        self._simplex.reset_session(reset_token2wav_cache)

    def init_token2wav_cache(self, prompt_speech_16k: Any) -> None:
        """The voice of turn-based replies: samples at 16 kHz."""
        self._simplex.init_token2wav_cache(prompt_speech_16k)

    def streaming_prefill(self, session_id: Any, msgs: Any, *args: Any, **options: Any) -> str:
        """Feed one message of a turn-based session; see Simplex.streaming_prefill."""
        return self._simplex.streaming_prefill(session_id, msgs, *args, **options)

    def streaming_generate(self, session_id: Any, *args: Any, **options: Any) -> Iterator[Any]:
        """The reply to what was fed; see Simplex.streaming_generate."""
        return self._simplex.streaming_generate(session_id, *args, **options)

    def restore_speculative_snapshot(self) -> bool:
        """Take back the last reply that was asked for with enable_speculative_snapshot; whether there was one."""
        return self._simplex.restore_speculative_snapshot()
