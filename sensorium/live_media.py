"""Live objects as media: PIL pictures, numpy arrays, torch tensors, files and bytes; and tensors of embeddings."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sensorium.config import MediaLimits
from sensorium.errors import MediaError, RequestError, SensoriumError, UnsupportedError
from sensorium.media import audio, embeds, image
from sensorium.types import Embeds, Media, MediaRef, Modality

Item = Media | MediaRef | Embeds
MODALITIES: tuple[Modality, ...] = ("image", "audio", "video")
FRAMES_PER_SECOND = 24.0
"""Of frames that come without a rate."""
_ANY_LENGTH = MediaLimits(max_audio_s=float("inf"))
_SCHEMES = ("http", "https", "data", "file")
_METADATA = ("fps", "frames_indices", "total_num_frames", "duration", "video_backend", "do_sample_frames")


def read_items(
    modality: Modality, value: Any, uuids: Any = None, part: str = "", options: Mapping[str, Any] | None = None
) -> list[Item]:
    """What multi_modal_data holds for one modality: one item or several, in any of the forms of docs/offline.md.

    uuids: an id, or a list with one for each item; None leaves an item to be known by its content. Items of None are
    references by uuid. options: how live pictures are read, as in media_io_kwargs.
    """
    values, is_list = _split(modality, value)
    named = list(uuids) if isinstance(uuids, list | tuple) else [uuids] * len(values) if uuids is None else [uuids]
    if len(named) != len(values):
        raise RequestError(
            f"multi_modal_uuids[{modality!r}] must have the length of multi_modal_data[{modality!r}]: "
            f"{len(named)} ids for {len(values)} items",
            param=f"multi_modal_uuids.{modality}",
        )
    names = [f"{part}[{index}]" if is_list else part for index in range(len(values))]
    return [
        read_media(modality, item, name, uuid, options) for item, name, uuid in zip(values, names, named, strict=True)
    ]


def read_media(
    modality: Modality, value: Any, part: str, uuid: Any = None, options: Mapping[str, Any] | None = None
) -> Item:
    """One item. Paths are the caller's own and are read as they are. part names it in errors."""
    name = None if uuid is None else str(uuid)
    if value is None:
        if name is None:
            raise RequestError(f"{part} is None and has no uuid: there is nothing to look up", param=part)
        return MediaRef(modality, None, part, uuid=name)
    if isinstance(value, MediaRef | Media | Embeds):
        return replace(value, uuid=name or value.uuid, part=part)
    if isinstance(value, str) and value.partition(":")[0].lower() in _SCHEMES:
        return MediaRef(modality, value, part, uuid=name)
    if isinstance(value, str | Path):
        try:
            value = Path(value).expanduser().read_bytes()
        except OSError as error:
            raise MediaError(f"{part}: cannot read {str(value)!r} ({error.strerror})", param=part) from error
    if isinstance(value, bytes):
        return MediaRef(modality, value, part, uuid=name)
    if isinstance(value, Mapping) or _is_embedding(value):
        (item,) = read_embeds(modality, value, part, [name])
        return item
    try:
        read = {"image": _image, "audio": _audio, "video": _video}[modality]
        return replace(read(value, part, options or {}), uuid=name)
    except SensoriumError:
        raise
    except (TypeError, ValueError, IndexError, OverflowError) as error:
        raise MediaError(f"{part}: {error}", param=part) from error


# ---- one or many ----------------------------------------------------------------------------------------------------


def _split(modality: Modality, value: Any) -> tuple[list[Any], bool]:
    """The items, and whether they were written as a list."""
    part = f"multi_modal_data.{modality}"
    if isinstance(value, Mapping):
        return [*read_embeds(modality, value, part)], True
    if _is_tensor(value) and _is_floating(value) and value.ndim == 3:
        return [*read_embeds(modality, value, part)], True
    if value is None or isinstance(value, str | bytes | Path | Image.Image) or _has_extra(value):
        return [value], False
    dimensions = getattr(value, "ndim", None)
    if dimensions is not None:
        # Arrays of one dimension more than an item has are batches.
        whole = {"image": 3, "audio": 1, "video": 4}[modality]
        return (list(value), True) if dimensions == whole + 1 else ([value], False)
    if not isinstance(value, list | tuple):
        return [value], False
    first = next((item for item in value if item is not None), None)
    if modality == "audio" and isinstance(first, int | float):
        return [value], False
    if modality == "video" and _is_frame(first):
        return [value], False
    return list(value), True


def _is_frame(value: Any) -> bool:
    return isinstance(value, Image.Image) or getattr(value, "ndim", 0) == 3 or (_is_array_2d(value))


def _is_array_2d(value: Any) -> bool:
    """A grey frame; a 2-D tensor of floats is an embedding."""
    return getattr(value, "ndim", 0) == 2 and not (_is_tensor(value) and _is_floating(value))


def _has_extra(value: Any) -> bool:
    """(samples, rate), (frames, rate) or (frames, metadata)."""
    if not isinstance(value, tuple) or len(value) != 2:
        return False
    return (
        isinstance(value[1], Mapping)
        or (not hasattr(value[1], "shape") and np.isscalar(value[1]))
        or (getattr(value[1], "ndim", None) == 0)
    )


# ---- embeddings -----------------------------------------------------------------------------------------------------


def read_embeds(modality: Modality, value: Any, part: str, uuids: Sequence[str | None] | None = None) -> list[Embeds]:
    """Embeddings of one or more items.

    A tensor [rows, E] is one item, [items, rows, E] or a list of [rows, E] are several. A dict also has what the model
    needs to know about them, such as image_grid_thw [items, 3] or image_sizes [items, 2]; with a grid, the items may
    follow one another in one [rows, E]. Shapes are checked against the model when the prompt is prepared.
    """
    main = f"{modality}_embeds"
    fields: dict[str, Any] = dict(value) if isinstance(value, Mapping) else {main: value}
    if fields.get(main) is None:
        raise RequestError(f"{part} has no {main!r}, only {', '.join(map(repr, fields)) or 'nothing'}", param=part)
    rows = _rows(fields.pop(main), main, part)
    others = {name: _stacked(content, name, part) for name, content in fields.items()}
    grid = others.get(f"{modality}_grid_thw")
    if len(rows) == 1 and grid is not None and grid.ndim == 2 and len(grid) > 1:
        rows = _cut(rows[0], grid, part)
    several = len(rows) > 1 or any(array.ndim > 1 for array in others.values())
    for name, array in others.items():
        if several and (not array.ndim or len(array) != len(rows)):
            raise RequestError(
                f"{part}: {name} has shape {list(array.shape)}, but there are embeddings of {len(rows)} items",
                param=part,
            )
    found: list[Embeds] = []
    for index, tensor in enumerate(rows):
        of_it = {name: array[index] if several else array for name, array in others.items()}
        tensors = {main: tensor, **{name: np.asarray(array) for name, array in of_it.items()}}
        uuid = uuids[index] if uuids and index < len(uuids) else None
        found.append(embeds.from_arrays(modality, tensors, part, uuid))
    if uuids is not None and len(found) != len(uuids):
        raise RequestError(f"{part} holds embeddings of {len(found)} items; one is expected here", param=part)
    return found


def _rows(value: Any, name: str, part: str) -> list[np.ndarray]:
    """[rows, E] for each item."""
    items: Iterable[Any] = value if isinstance(value, list | tuple) or _dimensions(value) == 3 else [value]
    found = [_numbers(item, name, part) for item in items]
    found = [item[0] if item.ndim == 3 and len(item) == 1 else item for item in found]
    if not found or any(item.ndim != 2 for item in found):
        shapes = ", ".join(str(list(item.shape)) for item in found) or "none"
        raise RequestError(f"{part}: {name} must be [rows, width] for each item; got {shapes}", param=part)
    return found


def _stacked(value: Any, name: str, part: str) -> np.ndarray:
    if isinstance(value, list | tuple) and any(hasattr(item, "detach") for item in value):
        return np.stack([_numbers(item, name, part) for item in value])
    return _numbers(value, name, part)


def _numbers(value: Any, name: str, part: str) -> np.ndarray:
    try:
        array = _array(value)
        return array.astype(np.int64) if np.issubdtype(array.dtype, np.integer) else array
    except (TypeError, ValueError) as error:
        raise RequestError(f"{part}: {name} cannot be read as a tensor ({error})", param=part) from error


def _cut(rows: np.ndarray, grid: np.ndarray, part: str) -> list[np.ndarray]:
    """Rows of several items by the sizes of their grids."""
    sizes = np.prod(grid.astype(np.int64), axis=1)
    ends = np.cumsum(sizes) * len(rows)
    if sizes.min() <= 0 or np.any(ends % sizes.sum()):
        raise RequestError(f"{part}: {len(rows)} embeddings do not fill grids of {sizes.tolist()} patches", param=part)
    return np.split(rows, ends[:-1] // sizes.sum())


# ---- pictures, recordings, videos -----------------------------------------------------------------------------------


def _image(value: Any, part: str, options: Mapping[str, Any]) -> Media:
    """A PIL picture, or an array [H, W], [H, W, C] or [3, H, W] of bytes; floats [H, W, C] too, as in _bytes."""
    if isinstance(value, Image.Image):
        return image.from_pil(value, part, options=options)
    pixels = _array(value)
    return image.from_array(_bytes(_channel_last(pixels)) if pixels.ndim == 3 else pixels, part, options=options)


def _audio(value: Any, part: str, options: Mapping[str, Any]) -> Media:
    """(samples, rate), or samples at 16 kHz: [S], [channels, S] or [S, channels]; float in -1..1, or integers."""
    rate = audio.RATE
    if _has_extra(value):
        value, rate = value[0], int(value[1])
    samples = _array(value)
    if samples.ndim not in (1, 2):
        raise ValueError(f"unsupported audio shape {list(samples.shape)}; use [S], [channels, S] or [S, channels]")
    if samples.ndim == 2 and samples.shape[0] <= samples.shape[1]:
        samples = samples.T
    if samples.dtype == np.uint8:
        samples = (samples.astype(np.float32) - 128) / 128
    # How long a recording may be is asked when it is prepared, by the limits of the engine.
    return audio.from_array(samples, rate, part, _ANY_LENGTH, options)


def _video(value: Any, part: str, options: Mapping[str, Any]) -> Media:
    """Frames, (frames, frames per second) or (frames, metadata); frames are a list of pictures or [F, H, W, C]."""
    metadata: dict[str, Any] = {}
    if _has_extra(value):
        value, extra = value
        metadata = dict(extra) if isinstance(extra, Mapping) else {"fps": extra}
    elif isinstance(value, tuple) and len(value) == 2 and value[1] is None:
        value = value[0]
    pictures = {name: option for name, option in options.items() if name == "rgba_background_color"}
    if getattr(value, "ndim", 0) == 4:
        value = _bytes(_array(value))
    frames: list[Media] = [_image(frame, f"{part}[{index}]", pictures) for index, frame in enumerate(value)]
    if not frames:
        raise ValueError("a video needs at least one frame")
    if len({frame.data.shape for frame in frames}) > 1:
        raise ValueError("the frames of a video must have one size")
    times = _times(metadata, len(frames))
    digest = hashlib.blake2b(b"".join(frame.digest for frame in frames), digest_size=32, person=b"video")
    digest.update(times.tobytes())
    pixels = np.stack([frame.data for frame in frames])
    return Media("video", pixels, digest.digest(), times_s=times, part=part)


def _times(metadata: Mapping[str, Any], count: int) -> np.ndarray:
    """When each frame is shown, seconds."""
    if unknown := [name for name in metadata if name not in _METADATA]:
        raise ValueError(f"unknown video metadata {unknown[0]!r}; known: {', '.join(_METADATA)}")
    if metadata.get("do_sample_frames"):
        raise UnsupportedError("do_sample_frames: frames given as arrays are used as they are; choose them before")
    rate = metadata.get("fps")
    fps = FRAMES_PER_SECOND if rate is None else float(rate)
    if not 0 < fps < float("inf"):
        raise ValueError(f"video has {fps} frames per second")
    indices = metadata.get("frames_indices")
    numbers = np.arange(count) if indices is None else np.asarray(indices, dtype=np.float64)
    if numbers.shape != (count,) or np.any(np.diff(numbers) < 0):
        raise ValueError(f"frames_indices must be one ascending number for each of the {count} frames")
    return (numbers - numbers[0]) / fps


# ---- arrays ---------------------------------------------------------------------------------------------------------


def _bytes(pixels: np.ndarray) -> np.ndarray:
    """uint8; floats are 0..1, or 0..255 where one is larger than 1."""
    if not np.issubdtype(pixels.dtype, np.floating):
        return pixels
    scale = 255.0 if pixels.max(initial=0.0) <= 1.0 else 1.0
    if not np.isfinite(pixels).all():
        raise ValueError("pixels that are not finite numbers")
    return np.clip(np.rint(pixels * scale), 0, 255).astype(np.uint8)


def _channel_last(pixels: np.ndarray) -> np.ndarray:
    is_first = pixels.ndim == 3 and pixels.shape[0] == 3 and pixels.shape[2] not in (1, 3, 4)
    return pixels.transpose(1, 2, 0) if is_first else pixels


def _array(value: Any) -> np.ndarray:
    """numpy arrays, lists of numbers, and torch tensors; bfloat16 becomes float32, which numpy has."""
    if _is_tensor(value):
        value = value.detach().cpu()
        value = (value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy()
    array = np.asarray(value)
    if not np.issubdtype(array.dtype, np.number):
        raise ValueError(f"cannot read media from {type(value).__name__}")
    return array


def _is_tensor(value: Any) -> bool:
    return hasattr(value, "detach")


def _is_floating(tensor: Any) -> bool:
    return bool(tensor.is_floating_point())


def _is_embedding(value: Any) -> bool:
    """A torch tensor [rows, E] of floats, as a list of embeddings holds them."""
    return _is_tensor(value) and _is_floating(value) and value.ndim == 2


def _dimensions(value: Any) -> int:
    return int(getattr(value, "ndim", np.ndim(value) if not isinstance(value, list | tuple) else 0))
