"""vision_hidden_states of chat(): rows of pictures that the caller has computed, in place of the pictures' own."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np

from sensorium.errors import RequestError
from sensorium.types import MediaItem, Prompt

NAME = "vision_hidden_states"


def rows_of_each(given: Any, is_batch: bool, count: int) -> list[np.ndarray | None]:
    """[rows, E] for each conversation. given: one tensor, or a list of tensors; of a list of conversations a list."""
    if given is None:
        return [None] * count
    each: list[Any] = list(cast("Sequence[Any]", given)) if is_batch else [given]
    if len(each) != count:
        raise RequestError(f"{NAME}: {len(each)} entries for {count} conversations", param=NAME)
    return [_flat(one) for one in each]


def with_rows(prompt: Prompt, rows: np.ndarray | None) -> Prompt:
    """The prompt, with rows [n, E] dealt to its pictures in order."""
    if rows is None:
        return prompt
    spans, media = list(prompt.spans), list(prompt.media)
    wanted = sum(span.length for span in spans if media[span.media].modality != "audio")
    if len(rows) != wanted:
        raise RequestError(f"{NAME}: {len(rows)} rows; the pictures of the prompt take {wanted}", param=NAME)
    start = 0
    for place, span in enumerate(spans):
        if prompt.media[span.media].modality == "audio":
            continue
        part = np.ascontiguousarray(rows[start : start + span.length])
        start += span.length
        key = hashlib.blake2b(part.tobytes(), digest_size=32, person=b"given rows").digest()
        spans[place] = replace(span, media=len(media), row=0)
        media.append(MediaItem(prompt.media[span.media].modality, key, len(part), {"embeds": part}))
    # What no span takes rows from any more is not to be encoded.
    used = sorted({span.media for span in spans})
    spans = [replace(span, media=used.index(span.media)) for span in spans]
    return replace(prompt, spans=tuple(spans), media=tuple(media[number] for number in used))


def _flat(given: Any) -> np.ndarray:
    parts = list(cast("Sequence[Any]", given)) if isinstance(given, list | tuple) else [given]
    arrays = [_array(part) for part in parts]
    widths = {array.shape[-1] for array in arrays}
    if not arrays or len(widths) != 1:
        raise RequestError(f"{NAME}: give a tensor [.., rows, E], or a list of such", param=NAME)
    return np.concatenate([array.reshape(-1, widths.copy().pop()) for array in arrays])


def _array(given: Any) -> np.ndarray:
    array = np.asarray(given.detach().cpu().float() if hasattr(given, "detach") else given)
    if array.ndim < 2 or not np.issubdtype(array.dtype, np.floating):
        raise RequestError(f"{NAME}: give a tensor [.., rows, E], or a list of such", param=NAME)
    return array.astype(np.float32)
