"""Sample videos."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from sensorium.assets.audio import read_audio
from sensorium.assets.download import VIDEOS, asset_path

FILES = {"baby_reading": "sample_demo_1.mp4"}


@dataclass(frozen=True)
class VideoAsset:
    """num_frames: so many evenly spread; -1 is all."""

    name: str = "baby_reading"
    num_frames: int = -1
    fps: int = -1
    """Frames a second to take, where num_frames does not already ask for fewer; -1 is the file's own."""

    @property
    def filename(self) -> str:
        return FILES.get(self.name, f"{self.name}.mp4")

    @property
    def video_path(self) -> str:
        return str(self._path)

    @property
    def np_ndarrays(self) -> np.ndarray:
        """[F, H, W, 3] uint8."""
        wanted = set(self._chosen)
        with av.open(self.video_path) as container:
            frames = enumerate(container.decode(video=0))
            return np.stack([frame.to_ndarray(format="rgb24") for index, frame in frames if index in wanted])

    @property
    def pil_images(self) -> list[Image.Image]:
        return [Image.fromarray(frame) for frame in self.np_ndarrays]

    @property
    def metadata(self) -> dict[str, Any]:
        """What goes with the frames in (frames, metadata)."""
        total, rate = self._facts
        return {
            "total_num_frames": total,
            "fps": rate,
            "duration": total / rate,
            "video_backend": "pyav",
            "frames_indices": self._chosen,
            "do_sample_frames": False,
        }

    def get_audio(self, sampling_rate: float | None = None) -> np.ndarray:
        """[S] float32 of the sound track; sampling_rate: None is its own."""
        return read_audio(self._path, None if sampling_rate is None else int(sampling_rate))[0]

    @property
    def _path(self) -> Path:
        return asset_path(self.filename, VIDEOS)

    @property
    def _facts(self) -> tuple[int, float]:
        """Frames in the file, and frames a second."""
        with av.open(self.video_path) as container:
            stream = container.streams.video[0]
            total = stream.frames or sum(1 for _ in container.decode(stream))
            return total, float(stream.average_rate or 24)

    @property
    def _chosen(self) -> list[int]:
        total, rate = self._facts
        count = min(self.num_frames, total) if self.num_frames > 0 else total
        if self.fps > 0:
            count = min(count, int(total / rate * self.fps))
        return np.linspace(0, total - 1, max(count, 1)).astype(int).tolist() if count < total else list(range(total))
