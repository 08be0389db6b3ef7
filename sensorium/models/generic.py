"""<image>, <audio> and <video> in raw prompts, for callers who do not know how a family writes its media."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Protocol

log = logging.getLogger(__name__)


class HasModality(Protocol):
    @property
    def modality(self) -> str: ...


def with_own_placeholders(
    text: str, media: Sequence[HasModality], written: Mapping[str, str], own: Mapping[str, re.Pattern[str]]
) -> str:
    """The text with <modality> replaced by what the family writes, where its own placeholder does not occur and the
    generic one occurs as often as there are media. own: matches the family's placeholder."""
    for modality, placeholder in written.items():
        generic = f"<{modality}>"
        count = sum(item.modality == modality for item in media)
        if count and not own[modality].search(text) and text.count(generic) == count:
            if generic not in _TOLD:
                _TOLD.add(generic)
                log.info("%s in the prompt is read as %s, the model's own placeholder", generic, placeholder)
            text = text.replace(generic, placeholder)
    return text


_TOLD: set[str] = set()
