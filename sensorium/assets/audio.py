"""Sample recordings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

from sensorium.assets.download import asset_path, asset_url

FOLDER = "multimodal_asset"


@dataclass(frozen=True)
class AudioAsset:
    """Among the names are winning_call, mary_had_lamb and azacinto_foscolo."""

    name: str

    @property
    def filename(self) -> str:
        return f"{self.name}.ogg"

    @property
    def url(self) -> str:
        return asset_url(f"{FOLDER}/{self.filename}")

    def get_local_path(self) -> Path:
        return asset_path(f"{FOLDER}/{self.filename}")

    @property
    def audio_and_sample_rate(self) -> tuple[np.ndarray, int]:
        """[S] float32, the mean of the channels, at the recording's own rate."""
        return read_audio(self.get_local_path())


def read_audio(path: Path, rate: int | None = None) -> tuple[np.ndarray, int]:
    """The first sound track of a file that one trusts, mono; rate: None is the file's own."""
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        own = rate or stream.rate
        convert = av.AudioResampler(format="fltp", rate=own)
        frames = [piece for frame in container.decode(stream) for piece in convert.resample(frame)]
        frames += convert.resample(None)
    samples = np.concatenate([frame.to_ndarray().mean(axis=0, dtype=np.float32) for frame in frames])
    return samples, own
