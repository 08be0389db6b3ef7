"""From the bytes of pictures to the numbers an encoder reads."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch


def normalised(pixels: np.ndarray, arrays: Mapping[str, np.ndarray], like: torch.Tensor) -> torch.Tensor:
    """uint8 [..., 3] -> (u / 255 - mean) / std with mean and std of the item's arrays, on the device of `like`."""
    mean, std = (torch.from_numpy(arrays[key]).to(like.device) for key in ("mean", "std"))
    return ((torch.from_numpy(pixels).to(like.device).float() / 255 - mean) / std).to(like.dtype)
