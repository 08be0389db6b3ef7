"""Flow matching: codes to mel, whole utterances or chunk by chunk, the chunks of many streams in one batch.

B streams · k codes of a chunk · T = 2k or 2(k - 3) frames · n codes of a voice
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import torch
import torch.nn.functional as F

from sensorium.errors import RequestError
from sensorium.models.token2wav.config import FRAMES_PER_CODE, LOOKAHEAD, MELS, FlowConfig
from sensorium.models.token2wav.dit import ROWS, TAPS_PAST, Estimator, EstimatorPast
from sensorium.models.token2wav.encoder import CODE_PAST, FRAME_PAST, Encoder, EncoderPast
from sensorium.models.token2wav.prompt import VoicePrompt
from sensorium.models.token2wav.rows import KeyView, RowPool
from sensorium.models.token2wav.trimming import Trimming, trim_encoder, trim_estimator
from sensorium.models.token2wav.weights import Weights

SILENCE_CODE = 4218
MAX_FRAMES = 30_000
"""Ten minutes: frames of the noise that one call starts from."""
_NOISE_SEED = 0


@dataclass(slots=True)
class _Rows:
    """Rows that one owner holds, and gives back when it is gone."""

    codes: list[int] = field(default_factory=list)
    frames: list[int] = field(default_factory=list)
    estimator: list[int] = field(default_factory=list)
    columns: list[int] = field(default_factory=list)


class FlowVoice:
    """The state after a voice: shared by all its streams, freed when neither they nor anyone else refers to it."""

    def __init__(self, prompt: VoicePrompt, speaker: torch.Tensor, rows: _Rows) -> None:
        self.prompt, self.speaker, self.rows = prompt, speaker, rows

    @property
    def frames(self) -> int:
        return len(self.prompt.mel)


class FlowStream:
    """What one stream has said so far, as tables of pool rows. Its columns are a row of their own pool."""

    def __init__(self, voice: FlowVoice, owned: _Rows) -> None:
        self.voice, self.owned = voice, owned
        self.codes, self.frames = list(voice.rows.codes), list(voice.rows.frames)
        self.estimator = list(voice.rows.estimator)


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
    ) -> None:
        """silent_ahead: a voice is followed by silence while it is computed (1.0.5, 1.0.6), else by its own start."""
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
        self._make_pools()

    def _make_pools(self) -> None:
        c, kind = self.config, (self.device, self.dtype)
        steps, inner = self.estimator.n_timesteps, c.heads * c.head_dim
        self.code_rows = RowPool(1, (c.num_blocks, 2), (c.width,), *kind)
        self.frame_rows = RowPool(1, (c.num_up_blocks, 2), (c.width,), *kind)
        self.estimator_rows = RowPool(steps, (c.depth, 2), (ROWS * inner,), *kind)
        self._encoder_columns = RowPool(1, (), (CODE_PAST + FRAME_PAST, c.width), *kind)
        self._estimator_columns = RowPool(steps, (c.depth,), (2, TAPS_PAST, ROWS, c.hidden), *kind)

    @property
    def state_bytes(self) -> int:
        """Memory of the rows in use, voices included."""
        pools = (self.code_rows, self.frame_rows, self.estimator_rows, self._encoder_columns, self._estimator_columns)
        return sum(pool.used * pool.bytes_per_row for pool in pools)

    # ---- whole utterances ---------------------------------------------------------------------------------------

    @torch.inference_mode()
    def whole(self, prompt: VoicePrompt, codes: Sequence[int]) -> torch.Tensor:
        """mel [2 · len(codes), 80] float32 of an utterance that is all there."""
        all_codes = torch.cat((prompt.codes, self._checked([codes])[0]))
        mu, _ = self.encoder(all_codes[None].to(self.device), last=True)
        known = self._known(prompt, mu.shape[1])
        mel, _ = self.estimator.solve(self._noise_at(0, mu.shape[1])[None], mu, self._speaker_of(prompt), known)
        return mel[0, len(prompt.mel) :]

    # ---- streams ------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def voice(self, prompt: VoicePrompt) -> FlowVoice:
        """Runs the prompt once and keeps its state, 2n rows."""
        n = len(prompt.codes)
        frames = FRAMES_PER_CODE * n
        self._noise_at(0, frames)
        ahead = torch.full((LOOKAHEAD,), SILENCE_CODE) if self._silent_ahead else prompt.codes[:LOOKAHEAD]
        rows = _Rows(
            self.code_rows.allocate(n),
            self.frame_rows.allocate(frames),
            self.estimator_rows.allocate(frames),
            [self._encoder_columns.allocate(1)[0], self._estimator_columns.allocate(1)[0]],
        )
        voice = FlowVoice(prompt, self._speaker_of(prompt), rows)
        weakref.finalize(voice, self._free, rows).atexit = False
        codes = torch.cat((prompt.codes, ahead))[None].to(self.device)
        columns = self.encoder.width, CODE_PAST + FRAME_PAST
        past = EncoderPast(
            KeyView(self.code_rows, [[]], [rows.codes]),
            KeyView(self.frame_rows, [[]], [rows.frames]),
            torch.zeros(1, columns[1], columns[0], device=self.device, dtype=self.dtype),
        )
        mu, after = self.encoder(codes, last=False, past=past)
        self._encoder_columns.data[0][rows.columns[0]] = after[0]
        keys = KeyView(self.estimator_rows, [[]], [rows.estimator])
        blank = [part.new_zeros(self.config.depth, 1, *part.shape[2:]) for part in self._estimator_columns.data]
        noise = self._noise_at(0, frames)[None]
        known = self._known(prompt, frames)
        _, steps = self.estimator.solve(noise, mu, voice.speaker, known, EstimatorPast(keys, blank))
        for part, made in zip(self._estimator_columns.data, steps, strict=True):
            part[:, rows.columns[1]] = made[:, 0].to(part.dtype)
        return voice

    @torch.inference_mode()
    def open(self, voice: FlowVoice) -> FlowStream:
        owned = _Rows(columns=[self._encoder_columns.allocate(1)[0], self._estimator_columns.allocate(1)[0]])
        stream = FlowStream(voice, owned)
        weakref.finalize(stream, self._free, owned).atexit = False
        theirs = voice.rows.columns
        self._encoder_columns.data[0][owned.columns[0]] = self._encoder_columns.data[0][theirs[0]]
        for part in self._estimator_columns.data:
            part[:, owned.columns[1]] = part[:, theirs[1]]
        return stream

    @torch.inference_mode()
    def chunk(self, streams: Sequence[FlowStream], codes: Sequence[Sequence[int]], last: bool) -> torch.Tensor:
        """mel [B, T, 80] float32. All chunks have k codes; unless last, the final three make no sound yet."""
        given = self._checked(codes).to(self.device)
        heard = given.shape[1] - (0 if last else LOOKAHEAD)
        frames = heard * FRAMES_PER_CODE
        # Refused before any state is touched.
        noise = torch.stack([self._noise_at(len(stream.estimator), frames) for stream in streams])
        new = [
            _Rows(
                self.code_rows.allocate(heard), self.frame_rows.allocate(frames), self.estimator_rows.allocate(frames)
            )
            for _ in streams
        ]
        try:
            mel = self._solve(streams, new, given, noise, last)
        except BaseException:
            for rows in new:
                self._free(rows)
            raise
        for stream, rows in zip(streams, new, strict=True):
            self._advance(stream, rows)
        return mel

    def _solve(
        self, streams: Sequence[FlowStream], new: list[_Rows], codes: torch.Tensor, noise: torch.Tensor, last: bool
    ) -> torch.Tensor:
        mu = self._encode(streams, new, codes, last)
        speaker = torch.cat([stream.voice.speaker for stream in streams])
        slots = torch.tensor([stream.owned.columns[1] for stream in streams], device=self.device)
        past = EstimatorPast(
            KeyView(self.estimator_rows, [s.estimator for s in streams], [rows.estimator for rows in new]),
            [part.index_select(1, slots) for part in self._estimator_columns.data],
        )
        mel, columns = self.estimator.solve(noise, mu, speaker, torch.zeros_like(mu), past)
        for part, after in zip(self._estimator_columns.data, columns, strict=True):
            part.index_copy_(1, slots, after.to(part.dtype))
        return mel

    def _encode(self, streams: Sequence[FlowStream], new: list[_Rows], codes: torch.Tensor, last: bool) -> torch.Tensor:
        slots = torch.tensor([stream.owned.columns[0] for stream in streams], device=self.device)
        past = EncoderPast(
            KeyView(self.code_rows, [s.codes for s in streams], [rows.codes for rows in new]),
            KeyView(self.frame_rows, [s.frames for s in streams], [rows.frames for rows in new]),
            self._encoder_columns.data[0].index_select(0, slots),
        )
        mu, columns = self.encoder(codes, last, past)
        self._encoder_columns.data[0].index_copy_(0, slots, columns)
        return mu

    def _advance(self, stream: FlowStream, new: _Rows) -> None:
        """Adds a chunk's rows to the tables of its stream, and gives back the rows that it no longer sees."""
        frames = stream.voice.frames
        stream.estimator = trim_estimator(new.estimator + stream.estimator, frames, self._trimming)
        stream.codes, stream.frames = trim_encoder(
            stream.codes + new.codes, stream.frames + new.frames, frames, self._trimming
        )
        owned = stream.owned
        owned.codes = _keep(self.code_rows, owned.codes + new.codes, stream.codes)
        owned.frames = _keep(self.frame_rows, owned.frames + new.frames, stream.frames)
        owned.estimator = _keep(self.estimator_rows, owned.estimator + new.estimator, stream.estimator)

    def _free(self, rows: _Rows) -> None:
        self.code_rows.free(rows.codes)
        self.frame_rows.free(rows.frames)
        self.estimator_rows.free(rows.estimator)
        if rows.columns:
            self._encoder_columns.free(rows.columns[:1])
            self._estimator_columns.free(rows.columns[1:])
        rows.codes, rows.frames, rows.estimator, rows.columns = [], [], [], []

    # ---- inputs -------------------------------------------------------------------------------------------------

    def check(self, codes: Sequence[int]) -> None:
        """Raises RequestError for codes that there are not."""
        if len(codes) and not 0 <= min(codes) <= max(codes) < self.config.vocab:
            raise RequestError(f"codes must lie between 0 and {self.config.vocab - 1}", param="codes")

    def _checked(self, codes: Sequence[Sequence[int]]) -> torch.Tensor:
        for row in codes:
            self.check(row)
        return torch.tensor([list(row) for row in codes], dtype=torch.int64)

    def _noise_at(self, start: int, frames: int) -> torch.Tensor:
        if start + frames > len(self._noise):
            raise RequestError(
                f"at most {len(self._noise)} frames of sound, the voice's included, can be made at once, "
                f"not {start + frames}; use a shorter voice or text",
                param="codes",
            )
        return self._noise[start : start + frames]

    def _known(self, prompt: VoicePrompt, frames: int) -> torch.Tensor:
        mel = prompt.mel.to(self.device, self.dtype)
        return F.pad(mel, (0, 0, 0, frames - len(mel)))[None]

    def _speaker_of(self, prompt: VoicePrompt) -> torch.Tensor:
        speaker = F.normalize(prompt.speaker[None].to(self.device, self.dtype), dim=1)
        return F.linear(speaker, *self._speaker)


@lru_cache(maxsize=1)
def _start_noise() -> torch.Tensor:
    """[30000, 80]: the reference draws it when it is built and does not keep it; here it is always the same."""
    return torch.randn(MELS, MAX_FRAMES, generator=torch.Generator().manual_seed(_NOISE_SEED)).T.contiguous()


def _keep(pool: RowPool, rows: list[int], seen: list[int]) -> list[int]:
    still = set(seen)
    pool.free([row for row in rows if row not in still])
    return [row for row in rows if row in still]
