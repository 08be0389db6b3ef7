"""What may be asked of an engine that is to sleep, in vLLM's words."""

from __future__ import annotations

from collections.abc import Iterable

from sensorium.config import EngineConfig
from sensorium.errors import RequestError, UnsupportedError

TAGS = ("weights", "kv_cache")


def check_sleep(level: object, mode: str, config: EngineConfig) -> None:
    """Raises RequestError, or UnsupportedError for what vLLM has and this engine does not."""
    if not config.enable_sleep_mode:
        raise UnsupportedError("sleep: needs enable_sleep_mode (--enable-sleep-mode) at the start", param="level")
    if level == 0:
        raise UnsupportedError("level: 0, a pause that frees nothing, is not served; 1 and 2 are", param="level")
    if level not in (1, 2):
        raise RequestError(f"level: must be 1 or 2, not {level!r}", param="level")
    if mode == "keep":
        raise UnsupportedError("mode: keep is not served; requests end (abort) or are waited for (wait)", param="mode")
    if mode not in ("abort", "wait"):
        raise RequestError(f"mode: must be abort or wait, not {mode[:40]!r}", param="mode")


def check_tags(tags: Iterable[str]) -> None:
    """Raises RequestError for a part that is none of TAGS."""
    for tag in tags:
        if tag not in TAGS:
            raise RequestError(f"tags: must be of {', '.join(TAGS)}, not {tag[:40]!r}", param="tags")
