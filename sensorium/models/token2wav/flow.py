"""Flow matching: codes to mel, whole utterances or chunk by chunk, the chunks of many streams in one batch.

B streams · k codes of a chunk · T = 2k or 2(k - 3) frames · n codes of a voice
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache

import torch
import torch.nn.functional as F

from sensorium.errors import RequestError
from sensorium.models.token2wav.config import FRAMES_PER_CODE, FRAMES_PER_S, LOOKAHEAD, MELS, FlowConfig
from sensorium.models.token2wav.dit import Estimator, EstimatorPast
from sensorium.models.token2wav.encoder import Encoder, EncoderPast
from sensorium.models.token2wav.flow_graphs import FlowGraphs
from sensorium.models.token2wav.flow_piece import Piece, PieceShape, is_padded, numbers_of, shape_of
from sensorium.models.token2wav.flow_state import FlowState, FlowStream, FlowVoice, Rows
from sensorium.models.token2wav.prompt import VoicePrompt
from sensorium.models.token2wav.rows import KeyView, RowPool
from sensorium.models.token2wav.steps import Steps, finish
from sensorium.models.token2wav.trimming import TAIL_FRAMES, Trimming
from sensorium.models.token2wav.weights import Weights

SILENCE_CODE = 4218
MAX_FRAMES = 30_000
"""Ten minutes: frames of the noise that one call starts from."""
_NOISE_SEED = 0


class Flow:
    """noise [F, 80] replaces the noise that calls start from; it is otherwise drawn once, from a fixed seed."""

    def __init__(
        self,
        weights: Weights,
        config: FlowConfig,
        n_timesteps: int,
        noise: torch.Tensor | None = None,
        silent_ahead: bool = True,
        trimming: Trimming = "reference",
        graphs: bool = False,
    ) -> None:
        """silent_ahead: a voice is followed by silence while it is computed (1.0.5, 1.0.6), else by its own start.

        graphs: pieces of up to 25 codes have few fixed shapes, and on a GPU are CUDA graphs.
        """
        self.config, self._silent_ahead = config, silent_ahead
        self._trimming: Trimming = trimming
        self.encoder = Encoder(weights, config)
        self._speaker = (
            weights.take("spk_embed_affine_layer.weight", MELS, config.speaker),
            weights.take("spk_embed_affine_layer.bias", MELS),
        )
        self.estimator = Estimator(weights, config, n_timesteps)
        weights.finish()
        noise = _start_noise() if noise is None else noise
        self.device, self.dtype, self.mels = weights.device, weights.dtype, MELS
        self._noise = noise.to(self.device, torch.float32).contiguous()
        self.state = FlowState(config, n_timesteps, self.device, self.dtype)
        self._graphs = FlowGraphs(self._at_once, self.state, self.device) if graphs else None

    def reserve(self, streams: int, voices: int, voice_s: float) -> None:
        """Room for the state of so many streams and voices of so many seconds: it is then never copied to grow."""
        streams += self.has_fixed_shapes  # the one that nobody hears
        frames = int(voice_s * FRAMES_PER_S)
        own = TAIL_FRAMES if self._trimming == "voice" else max(frames, TAIL_FRAMES)
        # A chunk's rows are there before those it displaces go back.
        rows = voices * frames + streams * (own + FRAMES_PER_S)
        self.state.codes.reserve(rows // FRAMES_PER_CODE)
        self.state.frames.reserve(rows)
        self.state.estimator.reserve(rows)
        for pool in self.state.slots:
            pool.reserve(streams + voices)

    # ---- whole utterances ---------------------------------------------------------------------------------------

    @torch.inference_mode()
    def whole(self, prompt: VoicePrompt, codes: Sequence[int]) -> torch.Tensor:
        """mel [2 · len(codes), 80] float32 of an utterance that is all there."""
        self.check_voice(prompt)
        self.check(codes)
        frames = FRAMES_PER_CODE * (len(prompt.codes) + len(codes))
        self._check_frames(frames)
        said = torch.tensor(codes, dtype=torch.int64)
        mu, _ = self.encoder(torch.cat((prompt.codes, said))[None].to(self.device), last=True)
        known = self.known(prompt, frames)
        mel, _ = finish(self.estimator.solve(self._noise[None, :frames], mu, self.speaker(prompt), known))
        return mel[0, len(prompt.mel) :]

    # ---- streams ------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def voice(self, prompt: VoicePrompt) -> Steps[FlowVoice]:
        """Runs the prompt once and keeps its state, 2n rows."""
        self.check_voice(prompt)
        state, n = self.state, len(prompt.codes)
        frames = FRAMES_PER_CODE * n
        self._check_frames(frames)
        rows = state.allocate(n, frames)
        rows.slot = state.allocate_slot()
        voice = FlowVoice(prompt, rows, state)
        state.free_with(voice, rows)
        ahead = torch.full((LOOKAHEAD,), SILENCE_CODE) if self._silent_ahead else prompt.codes[:LOOKAHEAD]
        codes = torch.cat((prompt.codes, ahead))[None].to(self.device)
        columns = torch.zeros_like(state.encoder_columns.data[0][:1])
        past = EncoderPast(self._only(state.codes, rows.codes), self._only(state.frames, rows.frames), columns)
        mu, after = self.encoder(codes, last=False, past=past)
        yield None
        slot, speaker = rows.slot[0], self.speaker(prompt)
        state.encoder_columns.data[0][slot] = after[0]
        state.speakers.data[0][slot] = speaker[0]
        blank = [torch.zeros_like(part[:, :1]) for part in state.estimator_columns.data]
        before = EstimatorPast(self._only(state.estimator, rows.estimator), blank)
        known = self.known(prompt, frames)
        _, steps = yield from self.estimator.solve(self._noise[None, :frames], mu, speaker, known, before)
        for part, made in zip(state.estimator_columns.data, steps, strict=True):
            part[:, slot] = made[:, 0]
        return voice

    def _only(self, pool: RowPool, rows: list[int]) -> KeyView:
        """A view of frames that see each other and nothing before."""
        return KeyView(pool, torch.tensor([rows], device=self.device), len(rows))

    @torch.inference_mode()
    def open(self, voice: FlowVoice) -> FlowStream:
        owned = Rows(slot=self.state.allocate_slot())
        stream = FlowStream(voice, owned)
        self.state.free_with(stream, owned)
        self.state.copy_slot(voice.rows.slot[0], stream.slot)
        return stream

    @property
    def has_fixed_shapes(self) -> bool:
        return self._graphs is not None

    def takes(self, num_codes: int, last: bool) -> bool:
        """Whether such pieces have a fixed shape: then they are computed in one batch with all others that have it."""
        return self._graphs is not None and self._graphs.takes(num_codes, last)

    @torch.inference_mode()
    def fixed(
        self, streams: Sequence[FlowStream], codes: Sequence[Sequence[int]], last: Sequence[bool]
    ) -> tuple[torch.Tensor, list[int]]:
        """Chunks that have the fixed shape: mel [B, 50, 80] float32, and how many frames of it each stream has."""
        assert self._graphs is not None
        for stream, given in zip(streams, codes, strict=True):
            self.check(given, stream)
        counts = [max(len(given) - (0 if ends else LOOKAHEAD), 0) for given, ends in zip(codes, last, strict=True)]
        with self._rows_for(streams, counts) as new:
            mel = self._graphs.run(streams, codes, new)
        return mel, [FRAMES_PER_CODE * count for count in counts]

    @torch.inference_mode()
    def chunk(self, streams: Sequence[FlowStream], codes: Sequence[Sequence[int]], last: bool) -> Steps[torch.Tensor]:
        """mel [B, T, 80] float32. All chunks have k codes; unless last, the final three make no sound yet."""
        shape = shape_of(streams, len(codes[0]), last)
        if self.takes(shape.codes, last):
            mel, _ = self.fixed(streams, codes, [last] * len(streams))
            return mel[:, : shape.new[1]]
        for stream, given in zip(streams, codes, strict=True):
            self.check(given, stream)
        with self._rows_for(streams, [shape.new[0]] * len(streams)) as new:
            numbers = numbers_of(shape, streams, codes, new)
            return (
                yield from self._compute(shape, torch.from_numpy(numbers).to(self.device), is_padded(numbers, shape))
            )

    @contextmanager
    def _rows_for(self, streams: Sequence[FlowStream], counts: Sequence[int]) -> Iterator[list[Rows]]:
        """Rows for so many new codes of each stream, which has them afterwards unless something failed."""
        new = [self.state.allocate(count, FRAMES_PER_CODE * count) for count in counts]
        try:
            yield new
        except BaseException:
            for rows in new:
                self.state.free(rows)
            raise
        for stream, rows in zip(streams, new, strict=True):
            self.state.advance(stream, rows, self._trimming)

    def _at_once(self, shape: PieceShape, numbers: torch.Tensor) -> torch.Tensor:
        return finish(self._compute(shape, numbers, padded=True))

    def _compute(self, shape: PieceShape, numbers: torch.Tensor, padded: bool) -> Steps[torch.Tensor]:
        return Piece(shape, self.encoder, self.estimator, self.state, self._noise).compute(numbers, padded)

    # ---- inputs -------------------------------------------------------------------------------------------------

    def check(self, codes: Sequence[int], stream: FlowStream | None = None) -> None:
        """Raises RequestError for codes that there are not, or more than one call can take."""
        if len(codes) and not 0 <= min(codes) <= max(codes) < self.config.vocab:
            raise RequestError(f"codes must lie between 0 and {self.config.vocab - 1}", param="codes")
        if stream is not None:
            self._check_frames(len(stream.estimator) + FRAMES_PER_CODE * len(codes))

    def check_voice(self, prompt: VoicePrompt) -> None:
        """Raises RequestError for a voice that was made for another codec."""
        c = self.config
        if prompt.speaker.shape != (c.speaker,) or int(prompt.codes.min()) < 0 or int(prompt.codes.max()) >= c.vocab:
            raise RequestError(
                f"the voice is another codec's: here codes are below {c.vocab} and a speaker has {c.speaker} numbers",
                param="voice",
            )

    def _check_frames(self, frames: int) -> None:
        if frames > len(self._noise):
            raise RequestError(
                f"at most {len(self._noise)} frames of sound, the voice's included, can be made at once, not {frames}; "
                "use a shorter voice or text",
                param="codes",
            )

    def known(self, prompt: VoicePrompt, frames: int) -> torch.Tensor:
        """The prompt's mel and then zeros, [1, frames, 80]."""
        mel = prompt.mel.to(self.device, self.dtype)
        return F.pad(mel, (0, 0, 0, frames - len(mel)))[None]

    def speaker(self, prompt: VoicePrompt) -> torch.Tensor:
        """The projected speaker vector [1, 80]."""
        speaker = F.normalize(prompt.speaker[None].to(self.device, self.dtype), dim=1)
        return F.linear(speaker, *self._speaker)


@lru_cache(maxsize=1)
def _start_noise() -> torch.Tensor:
    """[30000, 80]: the reference draws it when it is built and does not keep it; here it is always the same."""
    return torch.randn(MELS, MAX_FRAMES, generator=torch.Generator().manual_seed(_NOISE_SEED)).T.contiguous()
