"""MiniCPM-V and MiniCPM-o: SigLIP and Whisper towers in front of a Llama-shaped decoder, and a speech LM behind it.

One file serves MiniCPM-Llama3-V 2.5, MiniCPM-V 2.6 / 4.0 / 4.5 and MiniCPM-o 2.6 / 4.5; they differ in configuration.
S slices · L patches · E width · R rows of an item
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from sensorium.errors import UnsupportedError
from sensorium.kernels.upload import upload_all
from sensorium.models import minicpm_speech
from sensorium.models.minicpm_config import Config
from sensorium.models.minicpm_duplex import DuplexPolicy
from sensorium.models.minicpm_features import log_mels
from sensorium.models.minicpm_half_duplex import HalfDuplexPolicy
from sensorium.models.minicpm_live_mel import DUPLEX_SHAPES
from sensorium.models.minicpm_mel import HOP, mel_frames
from sensorium.models.minicpm_pixels import Slices, slice_sizes
from sensorium.models.minicpm_speech import SpeechLM
from sensorium.models.parts import decoder, siglip, whisper
from sensorium.models.parts.decoder import TextModel
from sensorium.models.parts.resampler import Resampler
from sensorium.models.parts.siglip import Siglip, patch_inputs
from sensorium.models.parts.whisper import AudioProjector, AudioStream, StreamMemory, Whisper, encoder_frames
from sensorium.types import MediaItem, Modality

# Our module -> (prefix in the checkpoint, rules below it).
RENAMES = {
    "decoder.": ("llm.", decoder.RENAMES),
    "vision.": ("vpm.", siglip.RENAMES),
    "resampler.": ("resampler.", ()),
    "audio.": ("apm.", whisper.RENAMES),
    "projector.": ("audio_projection_layer.", ()),
    "speech.": ("tts.", minicpm_speech.RENAMES),
}
Tower = TypeVar("Tower", bound=nn.Module)
# Clips encoded together: 30 s of sound are 1500 frames, about as much work as a slice.
AUDIO_BATCH = 8
# On a GPU with so much memory so many slices and clips at least: on an H200 32 slices take 8 % less each than 16, and
# some 2 GB while they are encoded.
_LARGE_GPU = 40 << 30
_GPU_SLICES, _GPU_CLIPS = 32, 16
# Items encoded together where graphs are recorded, which are one per size; one size may be filled up to.
_GRAPH_SIZES = (1, 2, 4, 6, 8, 12, 16, 20, 24, 28, 32)
# Live streams encoded together, and the numbers of keys that they are computed with where graphs are recorded.
LIVE_BATCH, _GPU_LIVE_BATCH = 8, 32
_LIVE_KEYS = (256, 768)


class Model(TextModel):
    session_policies: ClassVar[dict[str, type]] = {"duplex": DuplexPolicy, "half_duplex": HalfDuplexPolicy}
    spoken_end = "<|tts_eos|>"

    def __init__(self, config: Config) -> None:
        super().__init__(config.decoder)
        self.config = config
        self.modalities: tuple[Modality, ...] = ("image", "video") * (config.vision is not None) + ("audio",) * (
            config.audio is not None
        )
        self.vision: Siglip | None = None
        self.resampler: Resampler | None = None
        self.audio: Whisper | None = None
        self.projector: AudioProjector | None = None
        if config.vision is not None:
            layers = config.vision.num_layers - config.drop_vision_last_layer
            self.vision = Siglip(replace(config.vision, num_layers=layers))
            self.resampler = Resampler(config.query_num, self.hidden_size, config.vision.width)
        if config.audio is not None:
            self.audio = Whisper(config.audio, config.audio_chunk_s)
            self.projector = AudioProjector(config.audio.intermediate // 4, self.hidden_size, config.audio_pool_step)
        self._memory: StreamMemory | None = None
        if config.speech is not None:
            self.speech = SpeechLM(config.speech)
        self._streams: dict[str, AudioStream] = {}
        # By name, once they are wrapped: methods kept here would keep the model from being freed with its last owner.
        self._wrapped: dict[str, Callable[..., torch.Tensor]] = {}
        self._live_keys: tuple[int, ...] = ()
        self._sizes: tuple[int, ...] = ()

    def wrap_encoders(self, wrap: Callable[[Callable[..., torch.Tensor], bool], Callable[..., torch.Tensor]]) -> None:
        """Let what the towers compute from tensors go through `wrap`; live sound is also remembered."""
        for embed in (self.embed_slices, self.embed_clips, self.embed_sounds, self.embed_live):
            self._wrapped[embed.__name__] = wrap(embed, embed != self.embed_live)
        # Few shapes, so that what is wrapped may keep one result of its work for each.
        self._live_keys, self._sizes = _LIVE_KEYS, _GRAPH_SIZES

    def _call(self, embed: Callable[..., torch.Tensor], *tensors: object) -> torch.Tensor:
        return self._wrapped.get(embed.__name__, embed)(*tensors)

    def rehearse(self, frames: Sequence[MediaItem] = ()) -> Iterator[None]:
        """The shapes of sessions' sound and pictures, smallest batches first, as often as it takes to be recorded."""
        if self.audio is None or not self._live_keys or not self._stream_memory().num_slots:
            return
        memory = self._stream_memory()
        yield from self._rehearse_sound(memory)
        for size in (size for size in self._sizes if size <= memory.num_slots):
            for frame in frames:
                for _ in range(2):
                    self._encode_images([frame] * size)
                    yield

    def _rehearse_sound(self, memory: StreamMemory) -> Iterator[None]:
        whisper, weight = _loaded(self.audio, "audio"), self.decoder.embedding.weight
        most = 1 << (min(self._live_batch, memory.num_slots) - 1).bit_length()
        for keys in (*self._live_keys, memory.frames):
            for size in (1 << power for power in range(most.bit_length())):
                for frames, before, after in DUPLEX_SHAPES if keys == self._live_keys[0] else DUPLEX_SHAPES[1:]:
                    mel = torch.zeros(size, whisper.conv1.in_channels, frames, dtype=weight.dtype).to(weight.device)
                    places = torch.tensor([[memory.num_slots] * size, [0] * size], device=weight.device)
                    for _ in range(2):
                        self._call(self.embed_live, mel, places, keys, before, after)
                        yield

    # ---- checkpoint names -----------------------------------------------------------------------------------------

    renames = RENAMES

    @property
    def ignored(self) -> tuple[str, ...]:
        """Checkpoint prefixes that may be present and are not read: the parts left out, and what nothing reads."""
        absent = [theirs for ours, (theirs, _) in RENAMES.items() if getattr(self, ours[:-1]) is None]
        if self.config.vision is not None and self.config.drop_vision_last_layer:
            absent.append(f"vpm.encoder.layers.{self.config.vision.num_layers - 1}.")
        if self.config.decoder.tied:
            absent.append("llm.lm_head.")
        if self.speech is not None:
            absent += [f"tts.{name}" for name in minicpm_speech.UNUSED]
        return tuple(absent)

    # ---- media ----------------------------------------------------------------------------------------------------

    def encode(self, modality: str, items: Sequence[MediaItem]) -> list[torch.Tensor]:
        """One [R, E] tensor per item. Video arrives as packed frame groups, in the arrays of an image.

        Images: pixels and how they are cut into S slices (see minicpm_pixels); optionally groups [S] (which 64 rows a
        slice helps to make) and temporal_ids [S].
        Audio: mel float32 [80, T], clips concatenated, and frames int32 [C]; or, for the device to make that of them,
        samples float32 [S] and lengths int32 [C]. Live sound, which goes on where its stream
        was: mel [80, T]; context int32 [2], how many frames at its ends belong to the neighbouring pieces.
        """
        if modality == "audio":
            return self._encode_audio(items)
        if modality in ("image", "video"):
            return self._encode_images(items)
        raise UnsupportedError(f"this model takes no {modality} input")

    def _encode_images(self, items: Sequence[MediaItem]) -> list[torch.Tensor]:
        weight = self.decoder.embedding.weight
        slices = Slices(items, weight.device)
        units = [unit for n, item in enumerate(items) for unit in _units(n, item)]
        rows: dict[int, torch.Tensor] = {}
        # Slices of like length share a batch, so that little of it is padding.
        order = sorted(range(len(units)), key=lambda i: units[i].longest)
        counts = [len(unit.members) for unit in units]
        limit = max(self.config.vision_batch_size, _GPU_SLICES if _is_large(weight.device) else 1)
        for batch, size in self._batches(order, counts, limit, few_sizes=len(items) > 1):
            found = self._encode_units([units[i] for i in batch], slices, size)
            rows |= zip(batch, found[: len(batch)], strict=True)
        return [torch.cat([rows[i] for i, unit in enumerate(units) if unit.item == n]) for n in range(len(items))]

    def _encode_units(self, units: Sequence[_ImageUnit], slices: Slices, size: int) -> torch.Tensor:
        """Units of up to F slices each -> [size, Q, E], of which those behind the units' mean nothing."""
        units = [*units, *[units[-1]] * (size - len(units))]
        patches = slices.take([(unit.item, number) for unit in units for number in unit.members])
        padded = len({len(some) for some in patches}) > 1
        numbers = [np.concatenate([unit.sizes for unit in units])]
        if any(len(unit.members) > 1 for unit in units):
            numbers.append(np.concatenate([unit.times for unit in units]))
            numbers.append(_group_table([len(unit.members) for unit in units]))
        sizes, *packing = upload_all(numbers, patches[0].device)
        times, groups = packing or (None, None)
        pixels = pad_sequence(patches, batch_first=True) if padded else torch.stack(patches)
        x = patch_inputs(pixels, self.decoder.embedding.weight.dtype)
        return self._call(self.embed_slices, x, sizes, times, groups, padded)

    def _batches(
        self, order: Sequence[int], counts: Sequence[int], limit: int, few_sizes: bool
    ) -> Iterator[tuple[list[int], int]]:
        """Cut `order` into runs whose counts add up to at most `limit` (a larger single one stands alone), each with
        the number of units that it is encoded as.

        few_sizes: runs shorter than that are cut further. An encoder's graphs are one per shape: of what comes from
        several requests any number may come, and a graph for each would seldom be used again.
        """
        batch: list[int] = []
        filled = 0
        for i in order:
            if batch and filled + counts[i] > limit:
                yield batch, len(batch)
                batch, filled = [], 0
            batch.append(i)
            filled += counts[i]
        while batch:
            size = _near(len(batch), self._sizes) if few_sizes and filled < limit else len(batch)
            yield batch[:size], size
            batch = batch[size:]

    def embed_slices(
        self,
        x: torch.Tensor,
        sizes: torch.Tensor,
        temporal_ids: torch.Tensor | None = None,
        groups: torch.Tensor | None = None,
        padded: bool = True,
    ) -> torch.Tensor:
        """Normalised patches [S, L, 588] -> [S or G, Q, E]; arguments as in Resampler."""
        strip = sizes.new_ones(len(sizes), 2) if self.config.strip_positions else None
        if strip is not None:
            strip[:, 1] = sizes.prod(-1)
        seen = _loaded(self.vision, "vision")(x, sizes if strip is None else strip, padded)
        return _loaded(self.resampler, "vision")(seen, sizes, temporal_ids, groups, padded)

    def _encode_audio(self, items: Sequence[MediaItem]) -> list[torch.Tensor]:
        live = [item for item in items if item.stream]
        rest = [item for item in items if not item.stream]
        heard, others = iter(self._encode_live(live)), iter(self._encode_recordings(rest))
        return [next(heard if item.stream else others) for item in items]

    def _encode_recordings(self, items: Sequence[MediaItem]) -> list[torch.Tensor]:
        clips = [(n, clip) for n, item in enumerate(items) for clip in _clips(item)]
        rows: dict[int, torch.Tensor] = {}
        limit = _GPU_CLIPS if _is_large(self.decoder.embedding.weight.device) else AUDIO_BATCH
        for axes in sorted({clip.ndim for _, clip in clips}):  # samples and features are encoded apart
            some = [i for i, (_, clip) in enumerate(clips) if clip.ndim == axes]
            order = sorted(some, key=lambda i: clips[i][1].shape[-1])
            for batch, size in self._batches(order, [1] * len(clips), limit, few_sizes=len(items) > 1):
                rows |= zip(batch, self._encode_clips([clips[i][1] for i in batch], size), strict=True)
        joined = [torch.cat([rows[i] for i, (n, _) in enumerate(clips) if n == number]) for number in range(len(items))]
        # Pieces of a message are merged before the encoder; what the last fraction of a row adds has no placeholder.
        return [out[: item.rows] for out, item in zip(joined, items, strict=True)]

    def _encode_clips(self, clips: Sequence[np.ndarray], size: int) -> Iterator[torch.Tensor]:
        """Samples [S] or mel features [80, T] of clips -> rows of each, computed as `size` clips."""
        weight, count = self.decoder.embedding.weight, len(clips)
        clips = [*clips, *[clips[-1]] * (size - count)]
        if clips[0].ndim == 1:
            frames = [mel_frames(len(clip)) for clip in clips]
            *sounds, counts = upload_all([*clips, np.array([len(clip) for clip in clips])], weight.device)
            samples = pad_sequence(sounds, batch_first=True)
            samples = F.pad(samples, (0, max(frames) * HOP - samples.shape[1]))
            out = self._call(self.embed_sounds, samples, counts, min(frames) < max(frames))
        else:
            frames = [mel.shape[1] for mel in clips]
            batch = np.zeros((size, clips[0].shape[0], max(frames)), dtype=np.float32)
            for i, mel in enumerate(clips):
                batch[i, :, : frames[i]] = mel
            features, numbers = upload_all([batch, np.array(frames)], weight.device)
            out = self._call(self.embed_clips, features.to(weight.dtype), numbers, min(frames) < max(frames))
        pool = self.config.audio_pool_step
        return (rows[: encoder_frames(n) // pool] for rows, n in zip(out[:count], frames[:count], strict=True))

    def embed_sounds(self, samples: torch.Tensor, counts: torch.Tensor, padded: bool = True) -> torch.Tensor:
        """samples float32 [B, 160 T] and counts [B] as in log_mels -> [B, rows, E]; padded as in Whisper."""
        features, frames = log_mels(samples, counts)
        return self.embed_clips(features.to(self.decoder.embedding.weight.dtype), frames, padded)

    def embed_clips(self, mel: torch.Tensor, frames: torch.Tensor, padded: bool = True) -> torch.Tensor:
        """mel [B, 80, T], zero-padded, frames [B] -> [B, rows, E]; arguments as in Whisper."""
        return _loaded(self.projector, "audio")(_loaded(self.audio, "audio")(mel, frames, padded))

    def _encode_live(self, items: Sequence[MediaItem]) -> list[torch.Tensor]:
        """The next sound of streams, those of one shape together. Items of one stream follow each other."""
        rows: dict[int, torch.Tensor] = {}
        while len(rows) < len(items):
            at = [i for i in range(len(items)) if i not in rows]
            first = [i for place, i in enumerate(at) if all(items[i].stream != items[j].stream for j in at[:place])]
            shape = live_shape(items[first[0]])
            batch = [i for i in first if live_shape(items[i]) == shape][: self._live_batch]
            rows |= zip(batch, self._encode_streams([items[i] for i in batch], *shape[1:]), strict=False)
        return [rows[i] for i in range(len(items))]

    @property
    def _live_batch(self) -> int:
        return _GPU_LIVE_BATCH if _is_large(self.decoder.embedding.weight.device) else LIVE_BATCH

    def _encode_streams(self, items: Sequence[MediaItem], before: int, after: int) -> torch.Tensor:
        """Items of one shape and of different streams -> [B or more, R, E]. Streams go on only if nothing fails."""
        whisper, memory, weight = _loaded(self.audio, "audio"), self._stream_memory(), self.decoder.embedding.weight
        for item in items:
            if item.stream not in self._streams:
                self._streams[item.stream] = memory.open()
        streams = [self._streams[item.stream] for item in items]
        frames = encoder_frames(items[0].arrays["mel"].shape[1]) - min(before, 1) - min(after, 1)
        starts = [s.num_frames if s.num_frames + frames < whisper.max_frames else 0 for s in streams]
        longest = max(starts) + frames
        size, keys = len(items), min(-(-longest // 8) * 8, memory.frames)
        if self._live_keys:
            size = 1 << (size - 1).bit_length()
            keys = next((some for some in self._live_keys if some >= longest), memory.frames)
        mel = np.zeros((size, *items[0].arrays["mel"].shape), dtype=np.float32)
        places = np.zeros((2, size), dtype=np.int64)
        places[0, len(items) :] = memory.num_slots
        for i, (item, stream, start) in enumerate(zip(items, streams, starts, strict=True)):
            mel[i], places[:, i] = item.arrays["mel"], (stream.slot, start)
        x, at_rows = upload_all([mel, places], weight.device)
        heard = self._call(self.embed_live, x.to(weight.dtype), at_rows, keys, before, after)
        for stream, start in zip(streams, starts, strict=True):
            stream.num_frames = start + frames
        return heard

    def embed_live(
        self, mel: torch.Tensor, places: torch.Tensor, num_keys: int, before: int, after: int
    ) -> torch.Tensor:
        """mel [B, 80, T] -> [B, R, E]. places int64 [2, B]: slots and starts; the rest as in Whisper.stream."""
        slots, starts = places.unbind()
        memory = self._stream_memory().layers
        heard = _loaded(self.audio, "audio").stream(mel, memory, slots, starts, num_keys, before, after)
        return _loaded(self.projector, "audio")(heard)

    def _stream_memory(self) -> StreamMemory:
        if self._memory is None:
            self._memory = StreamMemory(_loaded(self.audio, "audio"))
        return self._memory

    @property
    def stream_bytes(self) -> int:
        """Memory of one live stream; 0 where nothing hears."""
        return 0 if self.audio is None else self._stream_memory().slot_bytes

    def reserve_streams(self, count: int) -> None:
        """Make room for so many live streams."""
        if self.audio is not None and count > self._stream_memory().num_slots:
            self._stream_memory().reserve(count)

    def drop_stream(self, name: str) -> None:
        """A session has ended: forget what its sound was."""
        if (stream := self._streams.pop(name, None)) is not None:
            self._stream_memory().close(stream)


def live_shape(item: MediaItem) -> tuple[int, int, int]:
    """Mel frames of a live item, and how many of the first and of the last belong to its neighbours."""
    before, after = (int(count) for count in item.arrays["context"])
    return item.arrays["mel"].shape[1], before, after


@lru_cache(maxsize=8)
def _is_large(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_properties(device).total_memory >= _LARGE_GPU


def _loaded(tower: Tower | None, name: str) -> Tower:
    if tower is None:
        raise UnsupportedError(f"this model has no {name} tower, or was loaded without it (init_{name})")
    return tower


@dataclass(frozen=True, slots=True)
class _ImageUnit:
    """Slices that make one set of rows together: one slice of an image, or the packed frames of a video."""

    item: int
    members: list[int]
    sizes: np.ndarray
    times: np.ndarray
    longest: int
    """Patches of its largest slice."""


def _units(number: int, item: MediaItem) -> Iterator[_ImageUnit]:
    sizes = slice_sizes(item.arrays)
    lengths = sizes.prod(1).tolist()
    times = np.asarray(item.arrays.get("temporal_ids", np.full(len(sizes), -1)), dtype=np.int64)
    if "groups" not in item.arrays:
        for k, length in enumerate(lengths):
            yield _ImageUnit(number, [k], sizes[k : k + 1], times[k : k + 1], length)
        return
    groups = item.arrays["groups"]
    for group in range(int(groups.max()) + 1):
        members = np.flatnonzero(groups == group)
        longest = max(lengths[k] for k in members)
        yield _ImageUnit(number, members.tolist(), sizes[members], times[members], longest)


def _group_table(counts: Sequence[int]) -> np.ndarray:
    """Consecutive slice numbers per group, int64 [G, F], -1 where a group is short."""
    table = np.full((len(counts), max(counts)), -1, dtype=np.int64)
    start = 0
    for i, count in enumerate(counts):
        table[i, :count] = np.arange(start, start + count)
        start += count
    return table


def _near(count: int, sizes: Sequence[int]) -> int:
    """The size that the first of `count` units are encoded in: one that has hardly more places, or the next smaller.

    sizes: ascending from 1; powers of two without any.
    """
    if not sizes:
        return 1 << (count.bit_length() - 1)
    filled_up = (size for size in sizes if 0 <= size - count <= max(size // 16, 1))
    return next(filled_up, max(size for size in sizes if size <= count))


def _clips(item: MediaItem) -> list[np.ndarray]:
    if "samples" in item.arrays:
        return np.split(item.arrays["samples"], np.cumsum(item.arrays["lengths"])[:-1])
    return np.split(item.arrays["mel"], np.cumsum(item.arrays["frames"])[:-1], axis=1)
