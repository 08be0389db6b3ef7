"""Where compiled kernels come from: numba makes them once per machine, in a process of its own, and keeps them on disk.

Compiling takes some five seconds of a core, loading what is on disk a third of one. So an engine that finds nothing on
disk starts without, and changes over when they are there.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import logging
import os
import platform
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

_SOURCES = Path(__file__).parent / "jit"
_MODULE = "sensorium.kernels.jit.fused"
# Vectors are at most this wide: numbers in one, which head dims and block sizes must be multiples of.
_LANES = 16
_lock = threading.Lock()
_waiting: list[Callable[[Any], None]] = []


def why_not(head_dim: int, block_size: int) -> str | None:
    """Why a float32 decoder of this shape cannot run compiled here, or None."""
    if head_dim % _LANES or block_size % _LANES:
        return f"head_dim {head_dim} and block_size {block_size} are not both multiples of {_LANES}"
    return _why_not_at_all()


def _why_not_at_all() -> str | None:
    if importlib.util.find_spec("numba") is None:
        return "numba is not installed (pip install numba)"
    if not _writable(cache_folder()):
        return f"{cache_folder()} is not writable; set XDG_CACHE_HOME"
    return None


def cache_folder() -> Path:
    """Where kernels of these sources and this Python are kept. numba checks that they were made for this CPU."""
    digest = hashlib.sha256()
    for path in sorted(_SOURCES.glob("*.py")):
        digest.update(path.read_bytes())
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    python = f"{sys.implementation.cache_tag}-{platform.machine()}"
    return Path(base) / "sensorium" / "kernels" / f"{python}-{digest.hexdigest()[:16]}"


def is_compiled() -> bool:
    return (cache_folder() / "complete").is_file()


def compile_kernels() -> Any:
    """The class that runs a decoder, compiled now if it is not on disk: seconds the first time. Needs numba."""
    settings = importlib.import_module("numba").config
    folder = cache_folder()
    before, settings.CACHE_DIR = settings.CACHE_DIR, str(folder)
    try:
        module = importlib.import_module(_MODULE)
    finally:
        settings.CACHE_DIR = before
    (folder / "complete").touch()
    return module.FusedDecoder


def prepare() -> None:
    """Compile now what an engine would start without: for benchmarks."""
    if _why_not_at_all() is None:
        compile_kernels()


def when_ready(use: Callable[[Any], None]) -> None:
    """Call use(class) now if the kernels are on disk, else from a thread of our own once they are compiled."""
    if is_compiled():
        use(compile_kernels())
        return
    with _lock:
        _waiting.append(use)
        if len(_waiting) == 1:
            threading.Thread(target=_compile_for_all, name="compile-kernels", daemon=True).start()


def _compile_for_all() -> None:
    """Compile in another process, as compiling here would keep the interpreter from everything else."""
    code = "from sensorium.kernels.compiled import compile_kernels; compile_kernels()"
    try:
        subprocess.run(
            [sys.executable, "-c", code],
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        kernels = compile_kernels()
        log.info("the CPU kernels are compiled; later starts find them in %s", cache_folder())
    except Exception as error:
        log.warning("the CPU kernels could not be compiled (%s); going on without", error)
        kernels = None
    with _lock:
        waiting, _waiting[:] = list(_waiting), []
    for use in waiting:
        if kernels is not None:
            use(kernels)


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)
