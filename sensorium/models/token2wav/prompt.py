"""A reference voice as the codec takes it: its codes, its speaker vector and its mel."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from sensorium.errors import CheckpointError, MediaError
from sensorium.models.token2wav.config import FRAMES_PER_CODE, MELS, RATE
from sensorium.models.token2wav.features import VOICE_RATE, prompt_mel, speaker_features
from sensorium.models.token2wav.resample import resample
from sensorium.models.token2wav.s3 import S3Tokenizer, read_onnx_weights
from sensorium.models.token2wav.speaker import SpeakerEncoder
from sensorium.models.token2wav.weights import Weights

TOKENIZER_FILE, SPEAKER_FILE = "speech_tokenizer_v2_25hz.onnx", "campplus.onnx"
MIN_VOICE_S = 0.2
# Lower rates are telephone sound at best; higher ones exist in no file format.
_MIN_RATE, _MAX_RATE = 4_000, 384_000


@dataclass(frozen=True, slots=True)
class VoicePrompt:
    """codes [n] int64 · speaker [192] float32 · mel [2n, 80] float32, all on the CPU."""

    codes: torch.Tensor
    speaker: torch.Tensor
    mel: torch.Tensor

    def __post_init__(self) -> None:
        n = len(self.codes)
        if self.codes.dim() != 1 or n < 3 or self.speaker.dim() != 1 or self.mel.shape != (FRAMES_PER_CODE * n, MELS):
            raise CheckpointError(
                f"a voice has codes [n], n >= 3, a speaker vector and a mel [2n, {MELS}], not shapes "
                f"{list(self.codes.shape)}, {list(self.speaker.shape)} and {list(self.mel.shape)}"
            )

    def save(self, path: str | Path) -> None:
        """One safetensors file: a voice that can be used where the ONNX packages are not installed."""
        save_file({"codes": self.codes, "speaker": self.speaker, "mel": self.mel.contiguous()}, path)

    @classmethod
    def load(cls, path: str | Path) -> VoicePrompt:
        """Raises CheckpointError for a file that save() did not write."""
        try:
            t = load_file(path)
            return cls(t["codes"].long(), t["speaker"].float(), t["mel"].float())
        except (SafetensorError, KeyError, OSError) as error:
            raise CheckpointError(f"{path} is not a saved voice: {error}") from None


class PromptMaker:
    """Recordings to voices, with the two ONNX files of a codec folder. Needs the extra `speech`."""

    def __init__(self, folder: Path, speaker_width: int, device: torch.device | str) -> None:
        path = folder / TOKENIZER_FILE
        self._tokenize = S3Tokenizer(Weights(read_onnx_weights(path), path.name, device))
        self._speaker = SpeakerEncoder(folder / SPEAKER_FILE, speaker_width)

    @torch.inference_mode()
    def __call__(self, samples: np.ndarray, rate: int) -> VoicePrompt:
        """[S] or [S, channels] floats with full scale 1. Codes and speaker hear the first channel, the mel their mean.

        Raises MediaError for what is no recording, and for one of less than 0.2 s.
        """
        sound = _checked(samples, rate)
        heard = resample(sound[:, 0], rate, VOICE_RATE)
        codes = self._tokenize(heard).cpu()
        speaker = torch.from_numpy(self._speaker(speaker_features(heard).numpy()))
        mel = prompt_mel(resample(sound.mean(1), rate, RATE))
        frames = FRAMES_PER_CODE * len(codes)
        mel = torch.cat((mel, mel[-1:].expand(max(0, frames - len(mel)), -1)))[:frames]
        return VoicePrompt(codes, speaker, mel.contiguous())


def _checked(samples: np.ndarray, rate: int) -> torch.Tensor:
    """[S, channels] float32."""
    if samples.ndim not in (1, 2) or not np.issubdtype(samples.dtype, np.floating):
        raise MediaError("a voice must be floats, [S] or [S, channels]", param="voice")
    if not _MIN_RATE <= rate <= _MAX_RATE:
        raise MediaError(f"a voice must have {_MIN_RATE} to {_MAX_RATE} samples per second", param="voice")
    if len(samples) < MIN_VOICE_S * rate:
        raise MediaError(f"a voice must last at least {MIN_VOICE_S} s", param="voice")
    if not np.isfinite(samples).all():
        raise MediaError("the voice holds values that are not finite numbers", param="voice")
    return torch.from_numpy(np.ascontiguousarray(samples.reshape(len(samples), -1), dtype=np.float32))
