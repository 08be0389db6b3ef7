"""The spelling of the beta, for clients that ask for it (OpenAI-Beta: realtime=v1): a table for the way out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

HEADER, SUBPROTOCOL = b"realtime=v1", "openai-beta.realtime-v1"
RENAMED = {
    "response.output_text.delta": "response.text.delta",
    "response.output_text.done": "response.text.done",
    "response.output_audio.delta": "response.audio.delta",
    "response.output_audio.done": "response.audio.done",
    "response.output_audio_transcript.delta": "response.audio_transcript.delta",
    "response.output_audio_transcript.done": "response.audio_transcript.done",
    "conversation.item.added": "conversation.item.created",
}
PART_TYPES = {"output_text": "text", "output_audio": "audio"}
FORMATS = {"audio/pcm": "pcm16", "audio/pcmu": "g711_ulaw", "audio/pcma": "g711_alaw"}


def to_beta(event: dict[str, Any]) -> list[dict[str, Any]]:
    """The events that stand for one of today's: one, none, or two."""
    kind = event["type"]
    if kind == "conversation.item.done":
        return []
    told: dict[str, Any] = {**event, "type": RENAMED.get(kind, kind)}
    for name in ("item", "response", "session"):
        if name in told:
            told[name] = _SPELLED[name](told[name])
    if kind == "session.created":
        conversation = {"id": event["session"]["id"].replace("sess", "conv"), "object": "realtime.conversation"}
        return [
            told,
            {"type": "conversation.created", "event_id": event["event_id"] + "b", "conversation": conversation},
        ]
    return [told]


def _item(item: dict[str, Any]) -> dict[str, Any]:
    if "content" not in item:
        return item
    return {
        **item,
        "content": [{**part, "type": PART_TYPES.get(part["type"], part["type"])} for part in item["content"]],
    }


def _response(response: dict[str, Any]) -> dict[str, Any]:
    told = {name: value for name, value in response.items() if name != "output_modalities"}
    modalities = _modalities(response["output_modalities"])
    return {**told, "modalities": modalities, "output": [_item(item) for item in response["output"]]}


def _session(session: dict[str, Any]) -> dict[str, Any]:
    told = {name: value for name, value in session.items() if name not in ("audio", "output_modalities", "type")}
    heard, spoken = session["audio"]["input"], session["audio"].get("output")
    told |= {
        "input_audio_format": FORMATS[heard["format"]["type"]],
        "input_audio_transcription": heard["transcription"],
        "input_audio_noise_reduction": heard["noise_reduction"],
        "turn_detection": heard["turn_detection"],
    }
    if spoken is not None:
        told |= {
            "modalities": _modalities(session["output_modalities"]),
            "output_audio_format": FORMATS[spoken["format"]["type"]],
            "voice": spoken["voice"],
            "max_response_output_tokens": told.pop("max_output_tokens"),
        }
    return told


def _modalities(modalities: list[str]) -> list[str]:
    """What is heard came with its text, which the beta named too."""
    return ["audio", "text"] if "audio" in modalities else modalities


Spelling = Callable[[dict[str, Any]], dict[str, Any]]
_SPELLED: dict[str, Spelling] = {"item": _item, "response": _response, "session": _session}
