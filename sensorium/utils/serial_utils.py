"""Tensors as text, for embeddings in HTTP requests."""

from __future__ import annotations

import base64
import io

import torch


def tensor2base64(x: torch.Tensor) -> str:
    """base64 of the tensor as `torch.save` writes it; dtype and shape survive.

    A view is copied first: saved as it is, it would carry the whole memory it looks into.
    """
    buffer = io.BytesIO()
    torch.save(x.detach().cpu().clone(memory_format=torch.contiguous_format), buffer)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
