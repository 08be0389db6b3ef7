"""Copies by index in large elements: on a GPU they cost by the element, not by the byte."""

from __future__ import annotations

import torch

_WIDEST = torch.complex128


def widened(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The same memory as each x [..., n], of one type, in elements of 16 bytes, [..., n']; as they are where the layout
    of one of them does not allow that."""
    return tuple(x.view(_WIDEST) for x in tensors) if all(map(_fits, tensors)) else tensors


def _fits(x: torch.Tensor) -> bool:
    size = _WIDEST.itemsize // x.itemsize
    steps = (*x.stride()[:-1], x.storage_offset(), x.shape[-1])
    return x.stride(-1) == 1 and x.data_ptr() % _WIDEST.itemsize == 0 and not any(step % size for step in steps)
