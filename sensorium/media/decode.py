"""From the bytes of one item to decoded media: the step that hostile files attack, so it runs in a media worker."""

from __future__ import annotations

from sensorium.config import MediaLimits
from sensorium.errors import MediaError
from sensorium.media import audio, embeds, image, video
from sensorium.types import Embeds, Media, MediaRef

_DECODERS = {"image": image.from_bytes, "audio": audio.from_bytes, "video": video.from_bytes}


def decode(ref: MediaRef, limits: MediaLimits) -> Media | Embeds:
    """ref.source holds the item's bytes; of embeddings, bytes or a mapping of names to bytes and numbers."""
    if ref.form == "embeds":
        return embeds.from_ref(ref, limits)
    if not isinstance(ref.source, bytes):
        raise MediaError(f"this {ref.modality} has not been fetched", param=ref.part or None)
    return _DECODERS[ref.modality](ref.source, ref.part, limits, ref.options)
