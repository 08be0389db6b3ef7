"""Embeddings that a caller gave, checked against what the model would have computed: names, shapes, row counts."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from sensorium.errors import MediaError
from sensorium.types import Embeds, MediaItem


def one_tensor(embeds: Embeds, name: str) -> np.ndarray:
    """The only tensor, which must have this name."""
    return named(embeds, (name,))[0]


def named(embeds: Embeds, names: Sequence[str], optional: Sequence[str] = ()) -> list[np.ndarray]:
    """The tensors of these names, in order; exactly these must be there, besides the optional ones."""
    found = set(embeds.tensors)
    if found - set(optional) != set(names):
        raise MediaError(
            f"embeddings of this {embeds.modality} must be {', '.join(names)}, not {', '.join(sorted(found))[:200]}",
            param=embeds.part or None,
        )
    return [embeds.tensors[name] for name in names]


def rows_item(
    embeds: Embeds,
    rows: np.ndarray,
    width: int,
    preprocessing: bytes,
    *,
    expected: int | None = None,
    extra: Mapping[str, np.ndarray] | None = None,
) -> MediaItem:
    """The item whose rows [R, width] were given. [1, R, width] and [slices, rows, width] are read as one list of rows.

    expected: how many rows the rest of the input asks for.
    """
    part = embeds.part or None
    if rows.dtype.kind != "f" or rows.ndim not in (2, 3):
        raise MediaError(
            f"the embeddings have shape {list(rows.shape)}; they must be floats [rows, {width}]", param=part
        )
    if rows.shape[-1] != width:
        raise MediaError(
            f"the embeddings have {rows.shape[-1]} numbers a row; the hidden size of this model is {width}", param=part
        )
    flat = np.ascontiguousarray(rows.reshape(-1, width))
    if not len(flat) or (expected is not None and len(flat) != expected):
        wanted = "at least 1" if expected is None else str(expected)
        raise MediaError(f"the embeddings have {len(flat)} rows; this {embeds.modality} needs {wanted}", param=part)
    key = hashlib.blake2b(b"given" + preprocessing + embeds.modality.encode() + embeds.digest, digest_size=32)
    return MediaItem(embeds.modality, key.digest(), len(flat), {"embeds": flat, **(extra or {})})
