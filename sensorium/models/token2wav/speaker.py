"""CAM++, the speaker encoder: an ONNX graph, run by ONNX Runtime on one thread."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sensorium.errors import CheckpointError, UnsupportedError
from sensorium.models.token2wav.features import SPEAKER_BANDS
from sensorium.models.token2wav.s3 import EXTRA


class SpeakerEncoder:
    """Raises UnsupportedError naming the extra where onnxruntime is not installed."""

    def __init__(self, path: Path, width: int) -> None:
        try:
            import onnxruntime
        except ImportError:
            raise UnsupportedError(
                f"running {path.name} needs the onnxruntime package: {EXTRA}", param="init_tts"
            ) from None
        if not path.is_file():
            raise CheckpointError(f"the codec folder {path.parent} has no {path.name}")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise CheckpointError(f"{path.name} cannot be run as an ONNX model: {error}"[:500]) from None
        self._input, self._file, self._width = self._session.get_inputs()[0].name, path.name, width

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """[T, 80] float32, their mean removed, to the speaker vector [width] float32."""
        assert features.shape[1] == SPEAKER_BANDS
        (vector,) = self._session.run(None, {self._input: features[None].astype(np.float32)})[:1]
        vector = np.asarray(vector, dtype=np.float32).reshape(-1)
        if len(vector) != self._width:
            raise CheckpointError(f"{self._file} gives vectors of {len(vector)} numbers, not {self._width}")
        return vector
