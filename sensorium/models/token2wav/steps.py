"""Work in slices: between two of them a caller may do something else, or wait for the device."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, TypeVar

import torch

T = TypeVar("T")
Steps = Generator["torch.cuda.Event | None", None, T]
"""Yields None after a slice, or an event that the next slice needs; returns what came of it."""


def finish(steps: Steps[T]) -> T:
    """Do all that is left at once."""
    while True:
        try:
            wait = next(steps)
        except StopIteration as end:
            return end.value
        if wait is not None:
            wait.synchronize()


def to_host(tensor: torch.Tensor) -> Steps[Any]:
    """A tensor as a numpy array; the host is free while the device still computes it."""
    if not tensor.is_cuda:
        return tensor.numpy()
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    copy.copy_(tensor, non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    yield event
    return copy.numpy()
