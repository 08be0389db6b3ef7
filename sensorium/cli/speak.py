"""`sensorium speak`: a text read aloud into a file, by a model in this process."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from sensorium.cli.loading import LoadingBar
from sensorium.cli.options import add_flags, build
from sensorium.cli.parser import Parser
from sensorium.cli.values import number
from sensorium.config import EngineConfig, MediaLimits
from sensorium.errors import CheckpointError, EngineError, RequestError
from sensorium.types import Failed, Sound

if TYPE_CHECKING:
    from sensorium.engine.client import EngineClient
    from sensorium.media.encode import SoundFormat
    from sensorium.server.speech.voices import Picked

ENDINGS = {".ogg": "opus", ".raw": "pcm", **{f".{name}": name for name in ("wav", "pcm", "mp3", "opus", "aac", "flac")}}
RECORDING = "voice"
"""What the engine calls the voice of a file."""


def add_arguments(parser: Parser) -> None:
    parser.usage = f"{parser.prog} TEXT [options]"
    parser.add_argument("text", nargs="?", metavar="TEXT", help="what to read; by default what comes on stdin")
    parser.add_argument("--model", default="", help="folder or hub name; none is the packaged model")
    parser.add_argument(
        "-o", "--output", default="speech.wav", metavar="FILE", help="ends in .wav, .mp3, .opus, .aac, .flac or .pcm"
    )
    parser.add_argument("--voice", default="default", metavar="FILE", help="a recording of 3 to 15 s, or a name")
    parser.add_argument("--instructions", default="", metavar="TEXT", help="how to read it")
    parser.add_argument("--speed", type=number, default=1.0, metavar="X", help="0.25 to 4")
    add_flags(parser, EngineConfig, title="engine")


def run(parser: Parser, given: dict[str, Any]) -> int:
    text = (sys.stdin.read() if given["text"] is None else given["text"]).strip()
    if not text:
        raise RequestError("there is nothing to read")
    path = Path(given["output"])
    form = ENDINGS.get(path.suffix.lower())
    if form is None:
        raise RequestError(f"-o: {path.name} must end in one of {', '.join(ENDINGS)}")
    if not path.parent.is_dir():
        raise RequestError(f"-o: there is no folder {path.parent}")
    config = replace(build(EngineConfig, given, model=given["model"]), init_tts=True)
    with _loaded(config) as client:
        seconds = _write(client, given, text, path, form)  # type: ignore[arg-type] - one of the endings
    print(f"{path}: {seconds:.1f} s", file=sys.stderr)
    return 0


@contextmanager
def _loaded(config: EngineConfig) -> Iterator[EngineClient]:
    from sensorium.engine.client import EngineClient

    silent = RequestError(f"{config.model or 'the packaged model'} does not speak; name a model that does with --model")
    with LoadingBar(config.use_tqdm_on_load) as bar:
        try:
            client = EngineClient(config, bar.update)
        except CheckpointError as error:
            raise silent if error.param == "init_tts" else error from None
    with client:
        if not client.can_sound:
            raise silent
        yield client


def _write(client: EngineClient, given: dict[str, Any], text: str, path: Path, form: SoundFormat) -> float:
    """Seconds of sound written. A file that is left unfinished is removed."""
    from sensorium.media.encode import RATE, SoundEncoder

    encoder, num_bytes = SoundEncoder(form, given["speed"]), 0
    pieces = _sound(client, text, _pick(client, given["voice"]), given["instructions"])
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as file:
            for pcm in pieces:
                file.write(encoder.write(pcm))
                num_bytes += len(pcm)
            file.write(encoder.finish())
            if form == "wav":
                _settle(file)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return num_bytes / 2 / RATE / given["speed"]


def _settle(file: BinaryIO) -> None:
    """Write into the head of a WAVE file how long it has become."""
    size = file.tell()
    for place, value in ((4, size - 8), (40, size - 44)):
        file.seek(place)
        file.write(value.to_bytes(4, "little"))


def _pick(client: EngineClient, voice: str) -> Picked:
    """A voice that the model brings, or that of a recording."""
    from sensorium.media.audio import RATE, from_bytes
    from sensorium.server.speech.voices import MAX_CLIP_S, Picked, check_clip

    if voice in client.voices:
        return Picked(voice)
    path = Path(voice).expanduser()
    if not path.is_file():
        known = ", ".join(client.voices) or "none"
        raise RequestError(f"--voice: {voice} is neither a file nor a voice of this model; it has {known}")
    client.check_cloning("--voice")
    clip = from_bytes(path.read_bytes(), "--voice", MediaLimits())
    clip = replace(clip, data=clip.data[: int(MAX_CLIP_S * RATE)])
    check_clip(clip.data, "--voice")
    client.add_voice(RECORDING, clip.data, RATE)
    return Picked(RECORDING, clip)


def _sound(client: EngineClient, text: str, voice: Picked, instructions: str) -> Iterator[bytes]:
    from sensorium.server.speech.spoken import reading, reading_messages, with_reply

    messages, options = reading_messages(client, text, voice, instructions)
    prompt, num_ids = with_reply(client, client.prepare_chat(messages, options), text)
    sampling, speech = reading(num_ids, voice)
    stream = client.submit(prompt, sampling, speech=speech)
    try:
        for event in stream:
            if isinstance(event, Failed) or (isinstance(event, Sound) and event.ended == "failed"):
                raise EngineError(event.message)
            if isinstance(event, Sound):
                yield event.pcm
    finally:
        stream.abort()
