"""CUDA graphs recorded while others wait: without what torch.cuda.graph does around a recording to save memory."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any, TypeVar

import torch

T = TypeVar("T")
_SPARE = 2 << 30
"""Bytes of the device: with fewer free, what PyTorch keeps for later is given back before a recording."""


def capture(compute: Callable[[], T], pool: Any, stream: torch.cuda.Stream) -> tuple[torch.cuda.CUDAGraph, T]:
    """Record what `compute` launches, once it has run as it is; its result lies where each replay writes it.

    stream: not the default one, and one for all graphs that may run beside others: libraries keep working memory for
    each stream.
    """
    compute()  # compiles kernels and grows what memory they keep
    torch.cuda.synchronize()
    if torch.cuda.mem_get_info()[0] < _SPARE:
        torch.cuda.empty_cache()
    graph, collects = torch.cuda.CUDAGraph(), gc.isenabled()
    gc.disable()  # what a collection frees may not be freed during a recording
    try:
        with torch.cuda.stream(stream):
            graph.capture_begin(pool=pool, capture_error_mode="thread_local")
            try:
                result = compute()
            finally:
                graph.capture_end()
    finally:
        if collects:
            gc.enable()
    return graph, result
