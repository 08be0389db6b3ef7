"""Voice activity: where speech begins and ends in live or recorded sound. numpy; Silero's network is optional.

Sound is judged in windows of 1024 samples at 16 kHz (64 ms). A detector gives the probability of speech for each, and
the rules here make stretches of it.
"""

from __future__ import annotations

import copy
import importlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from sensorium.errors import ConfigError, RequestError, SensoriumError, UnsupportedError

RATE = 16_000
WINDOW = 1024
"""Samples that a detector judges at once."""


class Detector(Protocol):
    """Judges windows one after the other; keeps what it needs to remember between them."""

    def probability(self, window: np.ndarray) -> float:
        """[WINDOW] float32 -> how likely it holds speech, 0 to 1."""
        ...

    def reset(self) -> None:
        """What follows has nothing to do with what came before."""
        ...


@dataclass(frozen=True, slots=True)
class VadOptions:
    """Durations in ms. A window of at least `threshold` starts speech; one below threshold - 0.15 may end it.

    speech_pad_ms widens the stretches of a recording (find_speech); live speech is given as it was heard.
    """

    threshold: float = 0.8
    min_speech_duration_ms: float = 128
    min_silence_duration_ms: float = 800
    speech_pad_ms: float = 30

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise RequestError(f"threshold must be above 0 and at most 1, not {self.threshold}", param="threshold")
        for name in ("min_speech_duration_ms", "min_silence_duration_ms", "speech_pad_ms"):
            value = getattr(self, name)
            if not (value >= 0 and math.isfinite(value)):
                raise RequestError(f"{name} must be a finite number of at least 0, not {value}", param=name)

    @property
    def ends_below(self) -> float:
        return self.threshold - 0.15


RECORDING = VadOptions(threshold=0.7, min_silence_duration_ms=500)
"""The defaults for recordings."""


def _samples(ms: float) -> float:
    return ms * RATE / 1000


class VoiceActivity:
    """Live sound: tells when somebody speaks, and gives out what was said once silence has lasted."""

    def __init__(self, detector: Detector, options: VadOptions | None = None) -> None:
        self.detector = detector
        self.options = options or VadOptions()
        self.reset()

    def reset(self) -> None:
        """Forget everything, the detector's memory included."""
        self.detector.reset()
        self._rest = np.zeros(0, dtype=np.float32)
        self._speech: list[np.ndarray] = []
        self._now = 0
        self._speech_start: int | None = None
        self._silence_start: int | None = None

    @property
    def is_speaking(self) -> bool:
        return self._speech_start is not None

    @property
    def seconds(self) -> float:
        """How long the speech is that has not ended yet."""
        return len(self._speech) * WINDOW / RATE

    def feed(self, samples: np.ndarray) -> np.ndarray | None:
        """More sound [S] float32 -> the speech [n] that ended in it, its closing silence included, or None.

        Of several that end in one call the last is given.
        """
        self._rest = np.concatenate([self._rest, np.asarray(samples, dtype=np.float32)])
        found: np.ndarray | None = None
        whole = len(self._rest) // WINDOW * WINDOW
        for start in range(0, whole, WINDOW):
            ended = self._window(self._rest[start : start + WINDOW])
            found = ended if ended is not None else found
        self._rest = self._rest[whole:]
        return found

    def flush(self) -> np.ndarray | None:
        """The sound ends here: speech that was not over yet, or None."""
        if self._speech_start is None:
            return None
        return self._end()

    def _window(self, window: np.ndarray) -> np.ndarray | None:
        probability = self.detector.probability(window)
        now, self._now = self._now, self._now + WINDOW
        if probability >= self.options.threshold and self._speech_start is None:
            self._speech_start = now
        if self._speech_start is None:
            return None
        self._speech.append(window)
        if probability >= self.options.ends_below:
            self._silence_start = None
            return None
        if self._silence_start is None:
            self._silence_start = now
        if self._now - self._silence_start < _samples(self.options.min_silence_duration_ms):
            return None
        long_enough = now - self._speech_start >= _samples(self.options.min_speech_duration_ms)
        speech = self._end()
        return speech if long_enough else None

    def _end(self) -> np.ndarray:
        speech, self._speech = np.concatenate(self._speech), []
        self._speech_start = self._silence_start = None
        return speech


def find_speech(samples: np.ndarray, detector: Detector, options: VadOptions = RECORDING) -> list[tuple[int, int]]:
    """Where speech is in a recording [S] float32: (start, stop) in samples, in order, padded."""
    detector.reset()
    missing = -len(samples) % WINDOW
    padded = np.pad(np.asarray(samples, dtype=np.float32), (0, missing))
    probabilities = [detector.probability(window) for window in padded.reshape(-1, WINDOW)]
    return _padded(_stretches(probabilities, len(samples), options), len(samples), options)


def _stretches(probabilities: Sequence[float], length: int, options: VadOptions) -> list[tuple[int, int]]:
    shortest, silence = _samples(options.min_speech_duration_ms), _samples(options.min_silence_duration_ms)
    found: list[tuple[int, int]] = []
    start: int | None = None
    end: int | None = None
    for number, probability in enumerate(probabilities):
        now = number * WINDOW
        if probability >= options.threshold:
            end = None
            start = now if start is None else start
        elif probability < options.ends_below and start is not None:
            end = now if end is None else end
            if now - end >= silence:
                if end - start > shortest:
                    found.append((start, end))
                start = end = None
    if start is not None and length - start > shortest:
        found.append((start, length))
    return found


def _padded(found: Sequence[tuple[int, int]], length: int, options: VadOptions) -> list[tuple[int, int]]:
    """Stretches widened on both sides; neighbours too close for that share the silence between them."""
    pad = int(_samples(options.speech_pad_ms))
    edges = [0, *(edge for stretch in found for edge in stretch), length]
    out: list[tuple[int, int]] = []
    for number, (start, stop) in enumerate(found):
        before, after = start - edges[2 * number], edges[2 * number + 3] - stop
        left = before if number == 0 else before // 2 if before < 2 * pad else pad
        right = after if number == len(found) - 1 else after // 2 if after < 2 * pad else pad
        out.append((start - min(left, pad), stop + min(right, pad)))
    return out


class SileroDetector:
    """The Silero network from its ONNX file (inputs input, h, c, sr), on onnxruntime."""

    def __init__(self, path: str | Path) -> None:
        """Raises UnsupportedError without onnxruntime, RequestError where the file is another network."""
        try:
            import onnxruntime
        except ImportError:
            raise UnsupportedError(
                "the Silero detector needs onnxruntime: pip install 'sensorium[onnx]'", param="vad"
            ) from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        try:
            self._session: Any = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the library raises classes of its own binding
            raise RequestError(f"{Path(path).name} cannot be read as an ONNX network: {error}", param="vad") from None
        names = {given.name for given in self._session.get_inputs()}
        if names != {"input", "h", "c", "sr"}:
            raise RequestError(
                f"{Path(path).name} takes {', '.join(sorted(names))}; a Silero network of version 3 or 4 takes "
                "input, h, c and sr",
                param="vad",
            )
        self.reset()

    def another(self) -> SileroDetector:
        """The same network, for another voice."""
        made = copy.copy(self)
        made.reset()
        return made

    def reset(self) -> None:
        self._h = np.zeros((2, 1, 64), dtype=np.float32)
        self._c = np.zeros((2, 1, 64), dtype=np.float32)

    def probability(self, window: np.ndarray) -> float:
        given = {"input": window[None], "h": self._h, "c": self._c, "sr": np.array(RATE, dtype=np.int64)}
        out, self._h, self._c = self._session.run(None, given)
        return float(np.asarray(out).reshape(-1)[0])


class EnergyDetector:
    """Speech is what stands out of the background in the band of the voice, 200 to 3500 Hz. Needs no network.

    The background is the lowest level of the last 2 s, so a steady noise is forgotten about and a voice is not.
    """

    def __init__(self, margin_db: float = 9.0, quietest_db: float = -55.0) -> None:
        """margin_db: how far above the background a window counts as even odds. quietest_db: below this it is silence,
        whatever the background (0 dB is a sine of full amplitude)."""
        self._margin, self._quietest = margin_db, quietest_db
        frequencies = np.fft.rfftfreq(WINDOW, 1 / RATE)
        self._band = (frequencies >= 200) & (frequencies <= 3500)
        self._hann = np.hanning(WINDOW)
        # Of a sine of amplitude 1, whose energy the window spreads over its neighbours.
        self._full = float((self._hann**2).sum() * WINDOW / 4)
        self.reset()

    def reset(self) -> None:
        self._levels: list[float] = []

    def probability(self, window: np.ndarray) -> float:
        power = np.abs(np.fft.rfft(window * self._hann)) ** 2
        level = 10 * math.log10(float(power[self._band].sum()) / self._full + 1e-12)
        self._levels = [*self._levels[-31:], level]
        background = max(min(self._levels), self._quietest - self._margin)
        return 1.0 / (1.0 + math.exp(-(level - background - self._margin) / 1.5))


def detectors(wanted: str) -> Callable[[], Detector]:
    """Makes detectors, one for each voice to be followed.

    wanted: "energy", the path of Silero's .onnx file, or module:Class of a detector of one's own. Raises ConfigError.
    """
    if wanted == "energy":
        return EnergyDetector
    module, _, name = wanted.partition(":")
    try:
        make: Callable[[], Detector] = getattr(_imported(module), name) if name else SileroDetector(wanted).another
        make().probability(np.zeros(WINDOW, dtype=np.float32))
    except SensoriumError as error:
        raise ConfigError(f"vad: {error.message}", param="vad") from None
    except Exception as error:
        raise ConfigError(f"vad: {wanted!r} detects nothing: {error}", param="vad") from error
    return make


def _imported(module: str) -> object:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(f"vad: {module!r} cannot be imported ({error}); write module:Class", param="vad") from None
