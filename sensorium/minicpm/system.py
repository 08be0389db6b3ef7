"""The system messages of MiniCPM-o 4.5, by purpose and language, with a voice to speak in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sensorium.errors import RequestError
from sensorium.media.audio import RATE
from sensorium.minicpm.utils import load_audio

DEFAULT = "You are a helpful assistant. You can accept audio and text input and output voice and text."
_NO_VOICE = "Use the <reserved_53> voice."


@dataclass(frozen=True, slots=True)
class _Wording:
    """Texts before and after the voice."""

    before: str
    after: str = ""


_WORDINGS = {
    ("omni", "en"): _Wording(
        "Clone the voice in the provided audio prompt.", "As an assistant, you will speak using this voice style."
    ),
    ("omni", "zh"): _Wording(
        "模仿音频样本的音色并生成新的内容。",
        "请用这种声音风格来为用户提供帮助。 请认真、高质量地回复用户的问题。 请用高自然度的方式和用户聊天。",
    ),
    ("audio_assistant", "en"): _Wording(
        "Use the voice in the audio prompt to synthesize new content.",
        "You are a helpful assistant with the above voice style.",
    ),
    ("audio_assistant", "zh"): _Wording(
        "模仿音频样本的音色并生成新的内容。",
        "你的任务是用这种声音模式来当一个助手。请认真、高质量地回复用户的问题。请用高自然度的方式和用户聊天。"
        "你是由面壁智能开发的人工智能助手：面壁小钢炮。",
    ),
    ("audio_roleplay", "en"): _Wording(
        "Clone the voice in the provided audio prompt.",
        "Try to role-play the character based on the audio prompt above.",
    ),
    ("audio_roleplay", "zh"): _Wording("模仿输入音频中的声音特征。", "假装你是上述音频中的人物，与我进行对话。"),
    ("voice_cloning", "en"): _Wording("Clone the voice in the provided audio prompt."),
    ("voice_cloning", "zh"): _Wording("模仿输入音频中的声音特征。"),
}


def system_message(
    ref_audio: str | Path | np.ndarray | None, mode: str, language: str, ref_audio_max_ms: float | None
) -> dict[str, Any]:
    """{"role": "system", "content": [...]} with the voice as samples at 16 kHz between the texts."""
    if (mode, "en") not in _WORDINGS:
        return {"role": "system", "content": [DEFAULT]}
    wording = _WORDINGS.get((mode, language))
    if wording is None:
        raise RequestError(f"language: {language!r} is none of en, zh", param="language")
    if ref_audio is None:
        if mode == "voice_cloning":
            raise RequestError("ref_audio: voice_cloning needs the voice to clone", param="ref_audio")
        return {"role": "system", "content": [""] if mode == "omni" else [_NO_VOICE, wording.after]}
    content: list[Any] = [wording.before, _voice(ref_audio, ref_audio_max_ms)]
    return {"role": "system", "content": [*content, wording.after] if wording.after else content}


def _voice(ref_audio: Any, max_ms: float | None) -> np.ndarray:
    if isinstance(ref_audio, str | Path):
        return load_audio(ref_audio, max_ms)
    samples = np.asarray(ref_audio.detach().cpu() if hasattr(ref_audio, "detach") else ref_audio)
    if samples.ndim != 1 or not np.issubdtype(samples.dtype, np.floating):
        raise RequestError("ref_audio: give a path, or a 1-D array of floats at 16 kHz", param="ref_audio")
    return samples.astype(np.float32) if max_ms is None else samples[: int(max_ms * RATE / 1000)].astype(np.float32)
