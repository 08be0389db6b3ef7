"""Golden transcripts: what real clients and a server said to each other, without what differs from run to run.

A file holds one frame a line, {"client": event} or {"server": event}, in the order of the wire. Ids are named by their
place, texts and numbers that a model makes are masked, sound is the number of its bytes. `replay` says the client's
side again to a server and holds what comes back against the server's side.

Some events race: transcripts with answers, sound with words. So the order is checked in lanes, and of deltas only that
they are there and inside of their item.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).resolve().parent / "golden" / "transcripts"
RECORD = "SENSORIUM_RECORD_TRANSCRIPTS"
"""Set in the environment, the tests of tests/clients write the files anew, and replays the server's side of them."""
IDS = ("id", "call_id", "client_event_id", "conversation_id", "event_id", "session")
TEXTS = ("arguments", "delta", "instructions", "message", "text", "transcript", "audio", "image", "frame_base64_list")
TEXTS += ("audio_base64", "audio_data", "resume_token", "reason_text")
DRAWN = ("text_end",)
KEPT_NUMBERS = ("content_index", "output_index", "rate", "threshold", "prefix_padding_ms", "silence_duration_ms")
KEPT_NUMBERS += ("speed", "n", "current_time")
HEARD_MS = 100
"""What a client says it has heard of an answer depends on how fast both were; a replay has heard so much at least."""
SOUNDS = {"audio": "int16", "audio_base64": "float32"}
Event = dict[str, Any]


def is_delta(kind: str) -> bool:
    return kind.endswith(".delta") or kind == "text"


def lane_of(event: Event) -> str:
    kind = event["type"]
    if is_delta(kind):
        return kind
    if "input_audio_transcription" in kind:
        return "transcripts"
    if kind.startswith("input_audio_buffer") or event.get("item", {}).get("role") == "user":
        return "input"
    return "answers"


class Names:
    """Names for ids, in the order in which a lane brings them up."""

    def __init__(self) -> None:
        self.of: dict[str, str] = {}
        self._counts: dict[str, int] = {}

    def name(self, ident: str, lane: str) -> str:
        if ident not in self.of:
            self._counts[lane] = self._counts.get(lane, 0) + 1
            self.of[ident] = f"{lane}-{self._counts[lane]}"
        return self.of[ident]


def masked(value: Any, names: Names, lane: str, key: str = "") -> Any:
    """What a server said, without what differs from run to run."""
    if isinstance(value, dict):
        return {name: masked(inner, names, lane, name) for name, inner in value.items()}
    if isinstance(value, list):
        return [masked(inner, names, lane, key) for inner in value]
    if _is_id(value, key):
        return "id" if key == "event_id" else names.name(value, lane)
    if key in DRAWN:
        return "drawn"
    if isinstance(value, str) and key in TEXTS:
        return "text"
    if isinstance(value, (int, float)) and not isinstance(value, bool) and key not in KEPT_NUMBERS:
        return "number"
    return value


def _is_id(value: Any, key: str) -> bool:
    return isinstance(value, str) and (key in IDS or key.endswith("_id")) and value != "root"


class Listener:
    """The server's side as it grows: per lane the masked events, deltas once each."""

    def __init__(self) -> None:
        self.names = Names()
        self.lanes: dict[str, list[Event]] = {}
        self._open: set[str] = set()
        self._ended: set[str] = set()

    def hear(self, event: Event) -> Event | None:
        """The masked event, or None for a delta that says nothing new."""
        lane = lane_of(event)
        shape = masked(event, self.names, lane)
        said = self.lanes.setdefault(lane, [])
        if is_delta(lane):
            self._check_place(event)
            if shape in said:
                return None
        elif event["type"] == "response.output_item.added":
            self._open.add(event["item"]["id"])
        elif event["type"] == "response.output_item.done":
            self._ended.add(event["item"]["id"])
        said.append(shape)
        return shape

    def _check_place(self, event: Event) -> None:
        if event["type"].startswith("response."):
            assert event["item_id"] in self._open, event
            assert event["item_id"] not in self._ended, event


def keep(said: list[tuple[str, Event]], name: str, last: str = "") -> None:
    """Write what went over a wire as that golden file, if that is asked for. last: the type of its last event."""
    if not os.environ.get(RECORD):
        return
    if last:
        said = said[: [event["type"] for _, event in said].index(last) + 1]
    listener, frames = Listener(), list[Event]()
    for who, event in said:
        if who == "server":
            shape = listener.hear(event)
            if shape is not None:
                frames.append({"server": shape})
            continue
        asked = _asked(event, listener.names)
        before = frames[-1].get("client", {}) if frames else {}
        sound = next((key for key in SOUNDS if isinstance(asked.get(key), int)), None)
        if sound and before.get("type") == asked["type"] and set(before) == set(asked) == {"type", sound}:
            before[sound] += asked[sound]
        else:
            frames.append({"client": asked})
    _write(frames, name)


def _write(frames: list[Event], name: str) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(frame, ensure_ascii=False, separators=(",", ":")) for frame in frames]
    (FOLDER / f"{name}.jsonl").write_text("\n".join(lines) + "\n", "utf-8")


def _asked(value: Any, names: Names, key: str = "") -> Any:
    """What a client said: ids by name, sound by its size."""
    if isinstance(value, dict):
        sound = {name for name in SOUNDS if isinstance(value.get(name), str)}
        kept = {name: inner for name, inner in value.items() if not (name == "event_id" and "append" in value["type"])}
        return {
            name: len(base64.b64decode(inner)) if name in sound else _asked(inner, names, name)
            for name, inner in kept.items()
        }
    if isinstance(value, list):
        return [_asked(inner, names, key) for inner in value]
    if key == "audio_end_ms":
        return min(value, HEARD_MS)
    return names.name(value, "client") if _is_id(value, key) else value


def replay(
    name: str,
    send: Callable[[str], None],
    receive: Callable[[], str],
    sound: Callable[[int], np.ndarray],
    *,
    is_cut: bool = False,
) -> None:
    """Say the client's side of a golden file, and hold the server's against it.

    receive: the next message, or an exception when none comes. sound: so many samples, int16. is_cut: the file ends in
    the middle of things.
    """
    is_new = bool(os.environ.get(RECORD))
    frames = [json.loads(line) for line in (FOLDER / f"{name}.jsonl").read_text("utf-8").splitlines()]
    expected: dict[str, list[Event]] = {}
    for frame in frames:
        if "server" in frame:
            expected.setdefault(lane_of(frame["server"]), []).append(frame["server"])
    listener, due = Listener(), dict[str, int]()
    for frame in frames:
        if "client" in frame:
            send(json.dumps(_filled(frame["client"], listener.names, sound)))
            continue
        awaited = lane_of(frame["server"])
        due[awaited] = due.get(awaited, 0) + 1
        while len(listener.lanes.get(awaited, ())) < due[awaited]:
            event = json.loads(receive())
            lane, shape = lane_of(event), listener.hear(event)
            if shape is None or is_delta(lane):
                continue
            wanted = expected.get(lane, [])
            place = len(listener.lanes[lane]) - 1
            assert place < len(wanted) or is_cut, f"not in the transcript: {event}"
            assert place >= len(wanted) or shape == wanted[place] or is_new
        frame["server"] = listener.lanes[awaited][due[awaited] - 1]
    if is_new:
        _write(frames, name)
    for lane, events in expected.items():
        if is_delta(lane):
            assert {event["type"] for event in events} <= {event["type"] for event in listener.lanes.get(lane, ())}


def _filled(value: Any, names: Names, sound: Callable[[int], np.ndarray], key: str = "") -> Any:
    if isinstance(value, dict):
        return {name: _filled(inner, names, sound, name) for name, inner in value.items()}
    if isinstance(value, list):
        return [_filled(inner, names, sound, key) for inner in value]
    if key in SOUNDS and isinstance(value, int):
        samples = sound(value // np.dtype(SOUNDS[key]).itemsize)
        data = samples if SOUNDS[key] == "int16" else (samples / 32768).astype("<f4")
        return base64.b64encode(data.tobytes()).decode()
    if not _is_id(value, key):
        return value
    known = next((ident for ident, given in names.of.items() if given == value), None)
    if known is None:  # the client makes it up: its name does as well
        known = names.of[value] = value
    return known
