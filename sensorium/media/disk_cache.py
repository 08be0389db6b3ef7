"""Downloaded media kept in a folder between requests and starts, where the operator names one (MEDIA_CACHE).

A file is called by its address: whoever may name an address is given what is kept of it, whoever fetched it first.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import tempfile
import time
from pathlib import Path
from urllib.parse import urlsplit

from sensorium.envs import Environment
from sensorium.errors import ConfigError

_ENDING = re.compile(r"\.[A-Za-z0-9]{1,8}")


class DiskCache:
    """Safe for several processes on one folder. Files older than ttl_s do not count; the longest unused go first."""

    def __init__(self, folder: Path, max_bytes: int, ttl_s: float) -> None:
        """Raises ConfigError for a folder that cannot be written."""
        self._folder, self._max, self._ttl = folder, max_bytes, ttl_s
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            name = "SENSORIUM_MEDIA_CACHE"
            raise ConfigError(f"{name}: {folder} cannot be written ({error.strerror})", param=name) from None

    @classmethod
    def of(cls, env: Environment) -> DiskCache | None:
        """The one that the environment names, if it does."""
        if not env.media_cache:
            return None
        folder = Path(env.media_cache).expanduser()
        return cls(folder, env.media_cache_max_size_mb << 20, env.media_cache_ttl_hours * 3600)

    def get(self, url: str) -> bytes | None:
        """What is kept of an address."""
        path = self._path(url)
        try:
            kept = path.stat()
            if time.time() - kept.st_mtime > self._ttl:
                path.unlink()
                return None
            data = path.read_bytes()
            os.utime(path, (time.time(), kept.st_mtime))  # used now, as old as before
        except OSError:
            return None
        return data

    def put(self, url: str, data: bytes) -> None:
        """Keep it; what cannot be kept is not."""
        if len(data) > self._max:
            return
        with contextlib.suppress(OSError):
            with tempfile.NamedTemporaryFile(dir=self._folder, prefix=".", delete=False) as file:
                file.write(data)
            os.replace(file.name, self._path(url))
            self._shrink()

    def _shrink(self) -> None:
        """Down to the bound."""
        kept = [(entry.stat(), entry.path) for entry in os.scandir(self._folder) if entry.is_file()]
        total = sum(stat.st_size for stat, _ in kept)
        for stat, path in sorted(kept, key=lambda pair: pair[0].st_atime):
            if total <= self._max:
                return
            with contextlib.suppress(OSError):
                os.unlink(path)
                total -= stat.st_size

    def _path(self, url: str) -> Path:
        ending = _ENDING.fullmatch(Path(urlsplit(url).path).suffix)
        return self._folder / (hashlib.sha256(url.encode()).hexdigest()[:20] + (ending[0] if ending else ""))
