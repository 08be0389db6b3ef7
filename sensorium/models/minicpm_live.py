"""MiniCPM-o 4.5 in live sessions: what a server's session says, in the terms of the full-duplex policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from sensorium.errors import ContextLengthError
from sensorium.models.minicpm_units import SessionPrompts
from sensorium.params import LiveSettings
from sensorium.types import Media, Prepared, Prompt

INSTRUCTIONS = "Streaming Omni Conversation."
MIN_LEN = 256
"""Rows that a session needs at least: of its opening and a few units."""
_UNIT_ROOM = 2048
_WINDOWS = {"slide": "basic", "context": "context", "off": "off"}
_SAMPLING = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "repetition_penalty": "text_repetition_penalty",
    "length_penalty": "length_penalty",
    "max_tokens": "max_new_speak_tokens_per_chunk",
    "listen_bias": "listen_scale",
}


class MiniCPMLive:
    """One session; see LivePrompts."""

    policy = "duplex"

    def __init__(self, prompts: SessionPrompts) -> None:
        self._prompts = prompts

    def opening(
        self, settings: LiveSettings, max_len: int, reference: Media | None = None
    ) -> tuple[Prompt, Mapping[str, Any]]:
        """Raises ContextLengthError where so many rows do not hold the opening and units behind it."""
        prompts = self._prompts
        rows = prompts.rows()
        rows.add(prompts.encode("<|im_start|>system\n"))
        # Written by a stranger: what spells a control token there is text.
        written = INSTRUCTIONS if settings.instructions is None else settings.instructions
        rows.add(prompts.processor.tokenizer.encode(written))
        suffix = "<|im_end|>"
        if reference is not None:
            rows.add(prompts.encode("\n<|audio_start|>"))
            prompts.add_recording(rows, reference)
            suffix = "<|audio_end|>" + suffix
        suffix_ids = prompts.encode(suffix)
        rows.add(suffix_ids)
        high = max_len - min(_UNIT_ROOM, max_len // 2)
        if len(rows.ids) + MIN_LEN // 2 > high:
            raise ContextLengthError(
                f"instructions: the session begins with {len(rows.ids)} tokens and holds {max_len}; shorten them",
                param="instructions",
            )
        window = {
            "sliding_window_mode": _WINDOWS[settings.window],
            "basic_window_high_tokens": high,
            "basic_window_low_tokens": max(high * 3 // 4, len(rows.ids)),
        }
        silent = settings.force_listen_units
        silent = prompts.processor.force_listen_units if silent is None else silent
        return rows.prompt(), window | {"suffix_ids": suffix_ids, "force_listen_count": silent}

    def frame_options(self, max_slices: int) -> Mapping[str, Any]:
        return {"max_slice_nums": max_slices, "use_image_id": False}

    def unit(self, samples: np.ndarray, frames: Sequence[Prepared], texts: Sequence[str]) -> tuple[Prompt, int]:
        pictures = [picture for frame in frames for picture in frame.content]
        made = self._prompts.unit_of(samples, pictures, texts)
        return made.prompt, made.deciding

    def unit_options(self, settings: LiveSettings, *, force_listen: bool, force_speak: bool) -> Mapping[str, Any]:
        if force_speak:
            settings = replace(settings, listen_bias=0.0)
        given = {name: getattr(settings, ours) for ours, name in _SAMPLING.items()}
        return {name: value for name, value in given.items() if value is not None} | {
            "force_listen": force_listen,
            "skip_listen": force_speak,
        }
