"""POST /v1/audio/transcriptions and /translations: speech as text, by models that can be asked to write it down."""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType
from starlette.datastructures import Headers
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from sensorium.config import ServerConfig
from sensorium.errors import NotFoundError, RequestError, UnsupportedError
from sensorium.server.body import decode, decode_fields, read_body
from sensorium.server.door import reply
from sensorium.server.generation import Generation, Job, Origin, Progress, Tally, unless_gone
from sensorium.server.metrics import Metrics
from sensorium.server.multipart import read_form
from sensorium.server.sampling import to_sampling
from sensorium.server.schema import Input, Label, Penalty, SamplingFields, TokenCount, Url
from sensorium.server.served import Served
from sensorium.server.sse import DONE, frame
from sensorium.types import Clip, MediaRef, SamplingParams, TextDelta

Task = Literal["transcribe", "translate"]
Format = Literal["json", "text", "verbose_json", "srt", "vtt", "diarized_json"]
TASKS: dict[str, Task] = {"/v1/audio/transcriptions": "transcribe", "/v1/audio/translations": "translate"}
NOUN = {"transcribe": "transcription", "translate": "translation"}
UNSPACED = ("zh", "ja")
"""Languages written without blanks between sentences."""
SAMPLING = (
    "top_p", "top_k", "min_p", "seed", "frequency_penalty", "presence_penalty", "repetition_penalty",
    "max_completion_tokens",
)  # fmt: skip
UNSUPPORTED = {
    "hotwords": "a list of words to listen for (say them in prompt)",
    "to_language": "a language to translate to",
    "use_beam_search": "beam search",
    "length_penalty": "beam search",
    "n": "several transcripts",
    "include": "log-probabilities of a transcript",
    "known_speaker_names": "telling speakers apart",
    "known_speaker_references": "telling speakers apart",
    "vllm_xargs": "extra arguments",
}


class SpeechRequest(Input, kw_only=True):
    """A form with the upload `file`, or JSON with `file_url`."""

    file_url: Url | None = None
    model: str | None = None
    language: Label | None = None
    prompt: Annotated[str, Meta(max_length=4096)] | None = None
    """What the model is told before the recording."""
    response_format: Format | None = None
    """diarized_json is refused, as nothing here tells speakers apart."""
    timestamp_granularities: list[Literal["segment", "word"]] | None = None
    """segment: word is refused, as nothing here says when a word was spoken."""
    stream: bool | None = None
    stream_include_usage: bool | None = None
    stream_continuous_usage_stats: bool | None = None
    chunking_strategy: Literal["auto"] | None = None
    """Recordings are always cut where it is quiet."""
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    """0 by default."""
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=(1 << 31) - 1)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    seed: Annotated[int, Meta(ge=0, le=(1 << 63) - 1)] | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    max_completion_tokens: TokenCount | None = None
    """For each clip."""


class DurationUsage(Struct):
    seconds: int
    type: Literal["duration"] = "duration"


class Transcript(Struct, kw_only=True):
    text: str
    usage: DurationUsage


class Segment(Struct, kw_only=True):
    """Times in seconds."""

    id: int
    seek: int
    start: float
    end: float
    text: str
    tokens: list[int]
    temperature: float
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float | None = None


class VerboseTranscript(Struct, kw_only=True):
    task: Task
    duration: str
    language: str
    text: str
    segments: list[Segment]
    words: None = None
    usage: DurationUsage


class SpeechDelta(Struct):
    content: str


class SpeechChoice(Struct, kw_only=True):
    index: int = 0
    delta: SpeechDelta
    finish_reason: str | None = None
    stop_reason: int | str | None = None


class TranscriptChunk(Struct, kw_only=True):
    """One event of a stream: what vLLM's clients read (choices) and what OpenAI's read (type, delta, text) at once."""

    id: str
    object: Literal["transcription.chunk", "translation.chunk"]
    created: int
    model: str
    type: Literal["transcript.text.delta", "transcript.text.done"]
    delta: str | UnsetType = UNSET
    text: str | UnsetType = UNSET
    choices: list[SpeechChoice]
    usage: DurationUsage | UnsetType = UNSET


def transcription_routes(served: Served, config: ServerConfig, metrics: Metrics) -> list[Route]:
    return [Route(path, Speech(served, config, metrics, task), methods=["POST"]) for path, task in TASKS.items()]


class Speech:
    """One of the two endpoints, as raw ASGI."""

    def __init__(self, served: Served, config: ServerConfig, metrics: Metrics, task: Task) -> None:
        self._served = served
        self._config = config
        self._metrics = metrics
        self._task: Task = task

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        require_task(self._served, self._task)
        request, file = await self._read(scope, receive)
        self._served.check_name(request.model)
        _check(request)
        source = request.file_url if file is None else file
        if source is None:
            raise RequestError("file: this field is required", param="file")
        if file is not None and request.file_url is not None:
            raise RequestError("file_url: not together with file", param="file_url")
        recording = MediaRef("audio", source, "file" if file is not None else "file_url")
        del file, source
        await unless_gone(receive, self._answer(request, recording, scope, send))

    async def _read(self, scope: Scope, receive: Receive) -> tuple[SpeechRequest, bytes | None]:
        if Headers(scope=scope).get("content-type", "").startswith("application/json"):
            body = await read_body(scope, receive, self._config)
            return decode(body, SPEECH_REQUEST, UNSUPPORTED, lenient=self._config.allow_unknown_fields), None
        fields, file = await read_form(scope, receive, self._config.max_audio_filesize_mb << 20)
        return decode_fields(fields, SpeechRequest, UNSUPPORTED), file

    async def _answer(self, request: SpeechRequest, recording: MediaRef, scope: Scope, send: Send) -> None:
        client = self._served.client()
        instruction = _instruction(client.speech_instructions, self._task, request.language)
        origin = Origin.of(scope, "trsc-" if self._task == "transcribe" else "trsl-")
        clips = await client.aprepare_speech(recording, instruction, request.prompt or "")
        del recording
        sampling = _sampling(request, client.default_sampling)
        generation = Generation(client, self._metrics, origin, [Job(clip.prompt, sampling) for clip in clips])
        codec = _Codec(
            request,
            self._task,
            origin.id,
            self._served.name,
            clips,
            generation.tallies,
            always_usage=self._config.enable_force_include_usage,
        )
        if request.stream:
            await generation.stream(codec, send, self._config.sse_keep_alive_interval)
        else:
            await generation.run(codec)
            await reply(send, codec.reply(), media_type=codec.media_type)


def require_task(served: Served, task: str) -> None:
    """Raises NotFoundError where the model does something else."""
    tasks = served.client().tasks
    if task not in tasks:
        supported = ", ".join(NOUN.get(name, name) for name in tasks)
        reason = f"model {served.name} does not support task {NOUN.get(task, task)}; supported: {supported}"
        raise NotFoundError(reason, param="model")


def _check(request: SpeechRequest) -> None:
    """What the types cannot say: fields that make sense only together, and values for what no model here can do."""
    if request.response_format == "diarized_json":
        reason = "response_format: diarized_json needs a model that tells speakers apart; verbose_json has segments"
        raise UnsupportedError(reason, param="response_format")
    if "word" in (request.timestamp_granularities or ()):
        reason = "timestamp_granularities: this model does not say when a word was spoken; segment works"
        raise UnsupportedError(reason, param="timestamp_granularities")
    for name in ("stream_include_usage", "stream_continuous_usage_stats"):
        if getattr(request, name) and not request.stream:
            raise RequestError(f"{name}: only with stream", param=name)
    if request.stream and request.response_format not in (None, "json", "text"):
        raise RequestError("response_format: a stream has text only", param="response_format")
    if request.timestamp_granularities and request.response_format != "verbose_json":
        reason = "timestamp_granularities: only with response_format verbose_json"
        raise RequestError(reason, param="timestamp_granularities")


def _instruction(instructions: Mapping[str, str], task: Task, language: str | None) -> str:
    known = sorted(name.partition(":")[2] for name in instructions if name.startswith(f"{task}:"))
    if language is None:
        return instructions[task]
    if language.lower() not in known:
        codes = ", ".join(known) or "none: leave it out"
        raise RequestError(f"language: {language!r} is not known to this model; it knows {codes}", param="language")
    return instructions[f"{task}:{language.lower()}"]


def _sampling(request: SpeechRequest, defaults: SamplingParams) -> SamplingParams:
    given = {name: getattr(request, name) for name in SAMPLING}
    fields = SamplingFields(temperature=request.temperature or 0.0, **given)
    return replace(to_sampling(fields, defaults), logprobs=0)


@dataclass(slots=True)
class _Said:
    """What one clip says, so far. `sent`: how much of the text was passed on."""

    text: str = ""
    sent: int = 0
    ids: list[int] = field(default_factory=list[int])
    logprob: float = 0.0


class _Codec:
    """Transcripts in each format, and their stream. Jobs are the clips in order."""

    def __init__(
        self,
        request: SpeechRequest,
        task: Task,
        id_: str,
        model: str,
        clips: Sequence[Clip],
        tallies: Sequence[Tally],
        *,
        always_usage: bool = False,
    ) -> None:
        """always_usage: in every event, whatever the request says."""
        self._request = request
        self._always_usage = always_usage
        self._task: Task = task
        self._id, self._model, self._created = id_, model, int(time.time())
        self._times = [(clip.start_s, clip.stop_s) for clip in clips]
        self._tallies = tallies
        self._said = [_Said() for _ in clips]
        self._between = "" if request.language in UNSPACED else " "
        self._current = 0
        self._sent: list[str] = []
        self.media_type = {"text": "text/plain; charset=utf-8", "srt": "text/plain; charset=utf-8"}.get(
            request.response_format or "json", "application/json"
        )
        if request.response_format == "vtt":
            self.media_type = "text/vtt; charset=utf-8"

    def take(self, number: int, event: Progress) -> None:
        if isinstance(event, TextDelta):
            said = self._said[number]
            said.text += event.text
            said.ids.extend(event.token_ids)
            said.logprob += sum(entry.logprob for entry in event.logprobs)

    def reply(self) -> bytes:
        form = self._request.response_format or "json"
        text, usage = self._joined(), self._usage()
        if form == "text":
            return text.encode() + b"\n"
        if form in ("srt", "vtt"):
            return _subtitles(self._segments(), form).encode()
        if form == "json":
            return msgspec.json.encode(Transcript(text=text, usage=usage))
        verbose = VerboseTranscript(
            task=self._task,
            duration=str(self._times[-1][1]),
            language=self._request.language or "und",
            text=text,
            segments=self._segments(),
            usage=usage,
        )
        return msgspec.json.encode(verbose)

    def opening(self) -> Sequence[bytes]:
        return ()

    def news(self, numbers: Collection[int]) -> Sequence[bytes]:
        """Clips are passed on in order, however they are finished."""
        frames: list[bytes] = []
        while self._current < len(self._said):
            said, ended = self._said[self._current], self._tallies[self._current].finished is not None
            new = said.text[said.sent :]
            if not said.sent:
                new = new.lstrip()
                new = self._between + new if new and self._sent else new
            if ended:
                new = new.rstrip()
            said.sent = len(said.text)
            if new:
                self._sent.append(new)
                frames.append(self._frame("transcript.text.delta", new))
            if not ended:
                break
            self._current += 1
        return frames

    def ending(self) -> Sequence[bytes]:
        return [self._frame("transcript.text.done", ""), DONE]

    def _frame(self, kind: Literal["transcript.text.delta", "transcript.text.done"], new: str) -> bytes:
        done = kind == "transcript.text.done"
        reasons = [tally.finished.reason for tally in self._tallies if tally.finished]
        reason = ("length" if "length" in reasons else "stop") if done else None
        wanted = self._request.stream_include_usage is not False
        with_usage = wanted if done else bool(self._request.stream_continuous_usage_stats)
        chunk = TranscriptChunk(
            id=self._id,
            object="transcription.chunk" if self._task == "transcribe" else "translation.chunk",
            created=self._created,
            model=self._model,
            type=kind,
            delta=UNSET if done else new,
            text="".join(self._sent) if done else UNSET,
            choices=[SpeechChoice(delta=SpeechDelta(new), finish_reason=reason)],
            usage=self._usage() if with_usage or self._always_usage else UNSET,
        )
        return frame(msgspec.json.encode(chunk))

    def _joined(self) -> str:
        return self._between.join(text for said in self._said if (text := said.text.strip()))

    def _usage(self) -> DurationUsage:
        return DurationUsage(math.ceil(self._times[-1][1]))

    def _segments(self) -> list[Segment]:
        """One for each clip that says something."""
        segments: list[Segment] = []
        for said, (start, stop) in zip(self._said, self._times, strict=True):
            if text := said.text.strip():
                data = text.encode()
                segment = Segment(
                    id=len(segments),
                    seek=round(start * 100),
                    start=start,
                    end=stop,
                    text=text,
                    tokens=said.ids,
                    temperature=self._request.temperature or 0.0,
                    avg_logprob=said.logprob / max(len(said.ids), 1),
                    compression_ratio=len(data) / len(zlib.compress(data)),
                )
                segments.append(segment)
        return segments


def _subtitles(segments: Sequence[Segment], form: str) -> str:
    mark = "," if form == "srt" else "."
    cues: list[str] = []
    for segment in segments:
        number = f"{segment.id + 1}\n" if form == "srt" else ""
        # A line that looks like a time line would begin a cue of its own.
        text = " ".join(segment.text.split()).replace("-->", "->")
        cues.append(f"{number}{_clock(segment.start, mark)} --> {_clock(segment.end, mark)}\n{text}\n")
    return ("" if form == "srt" else "WEBVTT\n\n") + "\n".join(cues)


def _clock(seconds: float, mark: str) -> str:
    milliseconds = round(seconds * 1000)
    hours, rest = divmod(milliseconds, 3_600_000)
    minutes, rest = divmod(rest, 60_000)
    return f"{hours:02}:{minutes:02}:{rest // 1000:02}{mark}{rest % 1000:03}"


SPEECH_REQUEST = msgspec.json.Decoder(SpeechRequest)
