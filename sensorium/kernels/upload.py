"""Numbers from the host to a device, without waiting for what the device is doing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

_ALIGNED = 16
# Bytes of an array from which several threads copy it.
_SHARED = 1 << 18


def upload(values: np.ndarray | Sequence[Any], device: torch.device) -> torch.Tensor:
    """A tensor of the values on the device. Copies from ordinary memory would wait for the device to come to rest."""
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def upload_all(arrays: Sequence[np.ndarray], device: torch.device) -> list[torch.Tensor]:
    """Each array as a tensor, all of them in one copy; for a CPU they stay where they are."""
    if device.type == "cpu":
        return [torch.from_numpy(array if array.flags.writeable else array.copy()) for array in arrays]
    starts = np.cumsum([0, *(-(-array.nbytes // _ALIGNED) * _ALIGNED for array in arrays)]).tolist()
    staged = torch.empty(starts[-1], dtype=torch.uint8, pin_memory=True)
    host, parts = staged.numpy(), list(zip(starts, arrays, strict=False))
    for start, array in parts:
        there = slice(start, start + array.nbytes)
        if array.nbytes >= _SHARED and array.flags.c_contiguous and array.flags.writeable:
            # torch copies with several threads: one alone copies some 5 GB/s, less than the way to the device carries.
            staged[there].copy_(torch.from_numpy(array.reshape(-1).view(np.uint8)))
        else:
            host[there].view(array.dtype).reshape(array.shape)[...] = array
    on_device = staged.to(device, non_blocking=True)
    kinds = [torch.from_numpy(np.empty(0, array.dtype)).dtype for array in arrays]
    return [
        on_device[start : start + array.nbytes].view(kind).view(array.shape)
        for (start, array), kind in zip(parts, kinds, strict=True)
    ]
