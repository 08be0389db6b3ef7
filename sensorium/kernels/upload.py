"""Numbers from the host to a device, without waiting for what the device is doing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch


def upload(values: np.ndarray | Sequence[Any], device: torch.device) -> torch.Tensor:
    """A tensor of the values on the device. Copies from ordinary memory would wait for the device to come to rest."""
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
