"""From the bytes of pictures to the numbers an encoder reads."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch


def normalised(arrays: Mapping[str, np.ndarray], name: str, like: torch.Tensor) -> torch.Tensor:
    """arrays[name] uint8 [..., 3] -> (u / 255 - mean) / std with the arrays' own mean and std, as `like` is stored."""
    mean, std = (torch.from_numpy(arrays[key]).to(like.device) for key in ("mean", "std"))
    pixels = torch.from_numpy(arrays[name]).to(like.device)
    return ((pixels.float() / 255 - mean) / std).to(like.dtype)
