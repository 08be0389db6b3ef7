"""MiniCPM-o 4.5's codec: flow matching and vocoder, from speech codes to sound. Token2Wav is the whole of it."""

from sensorium.models.token2wav.config import CODES_PER_S, LOOKAHEAD, RATE
from sensorium.models.token2wav.flow import SILENCE_CODE
from sensorium.models.token2wav.pcm import to_pcm16, to_wav
from sensorium.models.token2wav.prompt import VoicePrompt
from sensorium.models.token2wav.token2wav import Token2Wav, VocoderStream, Voice

__all__ = [
    "CODES_PER_S", "LOOKAHEAD", "RATE", "SILENCE_CODE", "Token2Wav", "VocoderStream", "Voice", "VoicePrompt",
    "to_pcm16", "to_wav",
]  # fmt: skip
