"""The codec of MiniCPM-o 4.5: speech codes (25 per second) and a reference voice to sound at 24 kHz.

    codec = Token2Wav.load(folder)
    voice = codec.voice(samples, rate)
    sound = codec(codes, voice)                         # a whole utterance
    stream = codec.open(voice)                          # or piece by piece, with many streams in one call
    (piece,) = codec.stream([(stream, codes, False)])

Threads may share a codec; their calls wait for each other. k codes of a piece · S samples
"""

from __future__ import annotations

import threading
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from sensorium.errors import RequestError, UnsupportedError
from sensorium.models.token2wav.assets import Parts, load_parts
from sensorium.models.token2wav.config import CODES_PER_S, FRAMES_PER_CODE, LOOKAHEAD, MELS, RATE
from sensorium.models.token2wav.fixed import BATCHES, batch_for
from sensorium.models.token2wav.flow import SILENCE_CODE
from sensorium.models.token2wav.flow_state import FlowStream, FlowVoice
from sensorium.models.token2wav.hift_causal import CausalState, CausalVocoder
from sensorium.models.token2wav.hift_fixed import FixedVocoder
from sensorium.models.token2wav.hift_original import OVERLAP, FadeState
from sensorium.models.token2wav.pcm import to_pcm16
from sensorium.models.token2wav.prompt import VoicePrompt
from sensorium.models.token2wav.steps import Steps, finish, to_host
from sensorium.models.token2wav.trimming import Trimming

LEAD = OVERLAP
"""Samples of silence in front of a stream, unless its first piece is its last: sound leaves that much late."""
T = TypeVar("T")
Work = tuple["VocoderStream", Sequence[int], bool]
"""A stream, its next codes, and whether they are its last."""


class Voice:
    """A reference voice, shared by the streams that speak with it. Its streaming state is made by the first of them."""

    def __init__(self, prompt: VoicePrompt) -> None:
        self.prompt = prompt
        self.flow: FlowVoice | None = None


class VocoderStream:
    """One utterance on its way out; it owns its state, which is freed with it. `reset` begins the next utterance."""

    def __init__(self, voice: Voice, flow: FlowStream, vocoder: FadeState | CausalState) -> None:
        self.voice, self.flow, self.vocoder = voice, flow, vocoder
        self.begun = self.ended = False


class Token2Wav:
    """Made by `load`; the constructor takes parts that are made already."""

    rate = RATE
    pcm = staticmethod(to_pcm16)
    batch = BATCHES[-1]
    """Streams that are computed at once in a fixed shape."""

    def __init__(self, parts: Parts) -> None:
        self.flow, self._whole, self._streaming, self._prompts = parts.flow, parts.whole, parts.streaming, parts.prompts
        self._fixed = None
        if parts.flow.has_fixed_shapes and isinstance(parts.streaming, CausalVocoder):
            self._fixed = FixedVocoder(parts.streaming)
        self._lock, self._listening = threading.RLock(), threading.Lock()

    @property
    def num_codes(self) -> int:
        return self.flow.config.vocab

    @property
    def can_clone(self) -> bool:
        """Whether `voice` can make voices of recordings."""
        return self._prompts is not None

    @classmethod
    def load(
        cls,
        folder: str | Path,
        n_timesteps: int = 10,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        cloning: bool = True,
        trimming: Trimming = "reference",
        graphs: bool = False,
    ) -> Token2Wav:
        """folder: assets/token2wav of a checkpoint, in either layout. dtype: of the flow; see CausalVocoder.

        cloning: recordings can become voices, for which the extra `speech` must be installed; without it only saved
        voices can. trimming: what streams still see of their past (see `Trimming`); "voice" takes the least memory.
        graphs: pieces of up to 25 codes are computed in few fixed shapes, each of which is a CUDA graph on a GPU.
        Raises CheckpointError naming a file or tensor, ConfigError, UnsupportedError naming the extra.
        """
        where = torch.device(device)
        parts = load_parts(Path(folder), n_timesteps, where, dtype, cloning=cloning, trimming=trimming, graphs=graphs)
        return cls(parts)

    def reserve(self, streams: int, voices: int = 1, voice_s: float = 10.0) -> None:
        """Memory for so many streams at once, before they come; what is not reserved is added as it is needed."""
        self.flow.reserve(streams, voices, voice_s)
        self._streaming.reserve(streams + 1)

    def silent_voice(self, seconds: float) -> Voice:
        """A voice of that length, for rehearsals."""
        n, config = max(int(seconds * CODES_PER_S), LOOKAHEAD), self.flow.config
        codes = torch.full((n,), SILENCE_CODE % config.vocab)
        return Voice(VoicePrompt(codes, torch.ones(config.speaker), torch.zeros(FRAMES_PER_CODE * n, MELS)))

    def rehearse(self, voice: Voice, streams: int) -> None:
        """Speak a second with so many streams: to measure what that needs."""
        piece = voice.prompt.codes[:1].tolist() * (CODES_PER_S + LOOKAHEAD)
        self.stream([(self.open(voice), piece, False) for _ in range(streams)])

    def record(self, voice: Voice, streams: int) -> None:
        """Have the graphs of pieces of this voice ready, for up to so many streams at once; nothing without graphs."""
        largest = batch_for(min(streams, self.batch))
        for size in BATCHES if self.flow.has_fixed_shapes else ():
            if size <= largest:
                self.rehearse(voice, min(size, streams))

    def voice(self, samples: np.ndarray, rate: int) -> Voice:
        """A recording of a voice: [S] or [S, channels] floats, full scale 1. Raises MediaError if it cannot be used."""
        if self._prompts is None:
            raise UnsupportedError("the codec was loaded with cloning=False; give it saved voices", param="voice")
        with self._listening:  # not the lock of the streams: those go on meanwhile
            return Voice(self._prompts(samples, rate))

    # ---- whole utterances ---------------------------------------------------------------------------------------

    def __call__(self, codes: Sequence[int], voice: Voice) -> np.ndarray:
        """[960 · k] float32."""
        if not len(codes):
            return np.zeros(0, dtype=np.float32)
        with self._lock:
            return self._whole.whole(self.flow.whole(voice.prompt, codes)[None])[0].cpu().numpy()

    # ---- streams ------------------------------------------------------------------------------------------------

    def prepare(self, voice: Voice) -> Steps[None]:
        """Makes the state that streams of a voice begin with, in slices; without it the first `open` does."""
        return self._in_turn(self._prepare(voice))

    def _prepare(self, voice: Voice) -> Steps[None]:
        if not self.is_prepared(voice):
            voice.flow = yield from self.flow.voice(voice.prompt)

    def is_prepared(self, voice: Voice) -> bool:
        # A voice may come from another codec, say of other time steps: its rows are not ours.
        return voice.flow is not None and voice.flow.state is self.flow.state

    def release(self, voice: Voice) -> None:
        """Forget that state, which goes with the last stream of the voice."""
        with self._lock:
            voice.flow = None

    def open(self, voice: Voice) -> VocoderStream:
        with self._lock:
            finish(self._prepare(voice))
            assert voice.flow is not None
            return VocoderStream(voice, self.flow.open(voice.flow), self._streaming.open())

    def reset(self, stream: VocoderStream) -> None:
        """Forgets what was said: the stream is as if just opened."""
        with self._lock:
            fresh = self.open(stream.voice)
            stream.flow, stream.vocoder = fresh.flow, fresh.vocoder
            stream.begun = stream.ended = False

    def stream(self, works: Sequence[Work]) -> list[np.ndarray]:
        """The next codes of each stream to float32 [S] each, S >= 0; pieces of one `kind` are computed together.

        Unless last, the final three codes are only looked at, and must be given again at the head of the next piece.
        Raises RequestError, before any stream moves, for codes out of range, fewer than four codes that are not the
        last, a stream that has ended or occurs twice.
        """
        with self._lock:
            return finish(self._stream(works))

    def pieces(self, works: Sequence[Work]) -> Steps[list[np.ndarray]]:
        """As `stream`, in slices; until it is over, its streams take part in nothing else."""
        return self._in_turn(self._stream(works))

    def _in_turn(self, steps: Steps[T]) -> Steps[T]:
        """Slices between which other callers come to their turn."""
        while True:
            with self._lock:
                try:
                    wait = next(steps)
                except StopIteration as end:
                    return end.value
            yield wait

    def _stream(self, works: Sequence[Work]) -> Steps[list[np.ndarray]]:
        self._check(works)
        sounds: list[np.ndarray] = [np.zeros(0, dtype=np.float32)] * len(works)
        groups: dict[Hashable, list[int]] = {}
        for i, (_, codes, last) in enumerate(works):
            groups.setdefault(self.kind(len(codes), last), []).append(i)
        for kind, members in groups.items():
            if kind is None:
                for first in range(0, len(members), self.batch):
                    yield from self._fixed_shape(works, members[first : first + self.batch], sounds)
                continue
            _, codes, last = works[members[0]]
            mels = torch.empty(len(members), 0, self.flow.mels, device=self.flow.device)
            if len(codes):
                streams = [works[i][0].flow for i in members]
                mels = yield from self.flow.chunk(streams, [works[i][1] for i in members], last)
            yield from self._vocode(works, members, mels, last, sounds)
        return sounds

    def kind(self, num_codes: int, last: bool) -> Hashable:
        """Pieces of one kind are computed together; None: in a fixed shape, up to `batch` of them at once."""
        if self._fixed is not None and self.flow.takes(num_codes, last):
            return None
        return num_codes, last

    def _fixed_shape(self, works: Sequence[Work], members: list[int], sounds: list[np.ndarray]) -> Steps[None]:
        assert self._fixed is not None
        streams, codes, last = zip(*(works[i] for i in members), strict=True)
        mel, counts = self.flow.fixed([stream.flow for stream in streams], codes, last)
        sound, samples = self._fixed.stream([stream.vocoder for stream in streams], mel, counts, last)
        heard = yield from to_host(sound)
        for i, stream, piece, count, over in zip(members, streams, heard, samples, last, strict=True):
            sounds[i] = self._led(stream, piece[:count], over)

    def _vocode(
        self, works: Sequence[Work], members: list[int], mels: torch.Tensor, last: bool, sounds: list[np.ndarray]
    ) -> Steps[None]:
        """mels [members, M, 80]; streams that have just begun keep less of the past than others."""
        shapes: dict[tuple[int, ...], list[int]] = {}
        for at, i in enumerate(members):
            shapes.setdefault(self._streaming.shape(works[i][0].vocoder), []).append(at)
        for shape, same in shapes.items():
            streams = [works[members[at]][0] for at in same]
            if not shape[0] and not mels.shape[1]:  # ended before it said anything
                for stream in streams:
                    stream.ended = True
                continue
            part = mels if len(same) == len(members) else mels[torch.tensor(same, device=mels.device)]
            sound = yield from to_host(self._streaming.stream([one.vocoder for one in streams], part, last))
            for at, stream, piece in zip(same, streams, sound, strict=True):
                sounds[members[at]] = self._led(stream, piece, last)

    @staticmethod
    def _led(stream: VocoderStream, piece: np.ndarray, last: bool) -> np.ndarray:
        begins = not stream.begun and len(piece) > 0
        stream.begun, stream.ended = stream.begun or begins, last
        return np.concatenate((np.zeros(LEAD, dtype=np.float32), piece)) if begins and not last else piece

    def _check(self, works: Sequence[Work]) -> None:
        if len({id(stream) for stream, _, _ in works}) != len(works):
            raise RequestError("a stream may occur only once in a call", param="works")
        for stream, codes, last in works:
            if stream.flow.voice.state is not self.flow.state:
                raise RequestError("the stream was opened by another codec", param="works")
            if stream.ended:
                raise RequestError("the stream has ended; reset it, or open another one", param="works")
            if not last and len(codes) <= LOOKAHEAD:
                raise RequestError(
                    f"a piece that is not the last needs more than {LOOKAHEAD} codes, not {len(codes)}", param="codes"
                )
            self.flow.check(codes, stream.flow)
