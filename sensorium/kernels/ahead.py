"""Triton kernels compiled side by side before they are needed: one after another they are most of a first start."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

_MOST_THREADS = 16


class Kernel:
    """A function of triton.jit, launched as kernel[grid](...); inside `compiling` it is compiled and not run."""

    is_compiling = False

    def __init__(self, function: Any) -> None:
        self._function = function

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., Any]:
        if Kernel.is_compiling:
            return partial(self._function.warmup, grid=grid)
        return self._function[grid]


@contextmanager
def compiling(device: torch.device) -> Iterator[None]:
    """Launches inside start compilations and nothing else, so that tensors hold anything; at the end all are done.

    Only for one thread at a time. Does nothing where there is no Triton that can: then the body runs as it is.
    """
    mode = None
    if device.type == "cuda" and importlib.util.find_spec("triton") is not None:
        mode = getattr(importlib.import_module("triton"), "AsyncCompileMode", None)
    if mode is None:
        yield
        return
    with ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1)) as pool, mode(pool):
        Kernel.is_compiling = True
        try:
            yield
        finally:
            Kernel.is_compiling = False
