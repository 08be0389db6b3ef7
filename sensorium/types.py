"""The data types every layer shares. Slotted dataclasses, no logic but properties.

Request, control messages and Event are immutable: they are all that crosses between the caller and the engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sensorium.inline import Pieces
from sensorium.params import BeamSearchParams as BeamSearchParams
from sensorium.params import PoolingParams as PoolingParams
from sensorium.params import SamplingParams as SamplingParams
from sensorium.params import SpeechOptions as SpeechOptions
from sensorium.params import SpeechRule as SpeechRule
from sensorium.params import SpeechSampling as SpeechSampling
from sensorium.params import StructuredOutputs as StructuredOutputs

if TYPE_CHECKING:
    import torch

Modality = Literal["image", "audio", "video"]
Role = str
"""system, user, assistant, tool, or whatever else the chat template knows."""
FinishReason = Literal["stop", "length", "abort", "error"]


# ---- media, from the caller's reference to the model's rows -------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MediaRef:
    """A piece of media not fetched yet: a URL (http, https, data, file) or raw bytes. `part` names it in errors.

    With form "embeds" the source holds embeddings: base64 text or bytes of one tensor file, or a mapping of tensor
    names to those. A source of None is a reference by `uuid` to an item that the processor cache holds. Text may be a
    LongText, whose bytes are Pieces.
    """

    modality: Modality
    source: str | bytes | Pieces | Mapping[str, Any] | None
    part: str = ""
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    uuid: str | None = None
    form: Literal["media", "embeds"] = "media"


@dataclass(frozen=True, slots=True, eq=False)
class Media:
    """A decoded piece of media.

    image: data [H, W, 3] uint8 · audio: data [S] float32 mono at `rate` Hz · video: data [F, H, W, 3] uint8 with
    times_s [F] float64 and, where the container has a sound track, `audio`. `digest` identifies the content.
    """

    modality: Modality
    data: np.ndarray
    digest: bytes
    rate: int | None = None
    times_s: np.ndarray | None = None
    audio: Media | None = None
    part: str = ""
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    uuid: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Embeds:
    """Media that the caller has encoded already, one item.

    tensors: by the model's names, such as {"image_embeds": [rows, E] float32, "image_grid_thw": [3] int64}.
    """

    modality: Modality
    tensors: Mapping[str, np.ndarray]
    digest: bytes
    part: str = ""
    uuid: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """Media as the model's processor took it apart: `content` is the family's own."""

    modality: Modality
    content: Any
    part: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class MediaItem:
    """Media preprocessed for one model: `arrays` is what Model.encode reads, `rows` how many embeddings it returns.

    `key` hashes the content together with everything that shaped the arrays, so equal keys mean equal rows. Items whose
    arrays hold "embeds" [rows, E] are not encoded: those are the rows.
    """

    modality: Modality
    key: bytes
    rows: int
    arrays: Mapping[str, np.ndarray]
    stream: str = ""
    """The session whose encoder state the item continues: such items are encoded once, in the order of its units."""


@dataclass(frozen=True, slots=True)
class Span:
    """Prompt positions [start, start + length) take rows [row, row + length) of media item number `media`."""

    start: int
    length: int
    media: int
    row: int = 0

    @property
    def stop(self) -> int:
        return self.start + self.length


# ---- prompts ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Message:
    """One chat message. `parts` mixes text with media in the order written."""

    role: Role
    parts: tuple[str | MediaRef | Media | Embeds | Prepared, ...]
    extra: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """How messages become a prompt. `template_kwargs` reach the chat template; `media_kwargs` the processor.

    `media_io_kwargs`, by modality, reach the decoders: what the request adds to the server's own.
    """

    add_generation_prompt: bool = True
    continue_final_message: bool = False
    template_kwargs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    media_kwargs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    media_io_kwargs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])
    tools: tuple[Mapping[str, Any], ...] = ()
    template: str | None = None
    """A Jinja template instead of the checkpoint's own."""
    template_is_trusted: bool = True
    """False for a template that a remote client wrote: it is rendered in a process of its own, under limits."""
    content_format: Literal["auto", "string", "openai"] = "auto"
    """What the template is given as content: one string, or a list of parts; auto looks at the template."""
    interleave: bool | None = True
    """In a content string, media stay where they were written (True) or come first (False). None: first, unless text
    and media alternate."""
    namespace: str = ""
    """Whose media the processor cache may answer with; see Request.namespace."""


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """Token ids with the spans that media rows replace. positions: None (0..N-1) or int64 [axes, N] for M-RoPE."""

    ids: tuple[int, ...]
    spans: tuple[Span, ...] = ()
    media: tuple[MediaItem, ...] = ()
    positions: np.ndarray | None = None
    text: str | None = None

    def media_tokens(self) -> dict[str, int]:
        """Prompt positions per modality."""
        counts: dict[str, int] = {}
        for span in self.spans:
            modality = self.media[span.media].modality
            counts[modality] = counts.get(modality, 0) + span.length
        return counts


@dataclass(frozen=True, slots=True, eq=False)
class Clip:
    """A stretch of a recording with the question what is said in it. Seconds from the recording's start."""

    prompt: Prompt
    start_s: float
    stop_s: float


# ---- requests and what comes back ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Request:
    """One generation, or with `pooling` one embedding. Immutable; crosses to the engine."""

    id: str
    prompt: Prompt
    sampling: SamplingParams
    adapter: str | None = None
    namespace: str = ""
    """Prefix and encoder caches are shared only between requests of one namespace."""
    priority: int = 0
    arrival_s: float = 0.0
    pooling: PoolingParams | None = None
    speech: SpeechOptions | None = None
    """Speak the answer too. Finished then comes behind the last Sound."""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """rank: 1 for the most likely token. top: the likeliest ids with theirs, then the ids asked for by name."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    rank: int = 0


@dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    media_tokens: Mapping[str, int] = field(default_factory=dict[str, int])


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds. queue: arrival to first scheduling; ttft: arrival to first token; total: arrival to the end.

    preemptions: how often the request lost its place and had to be computed again.
    """

    queue_s: float
    ttft_s: float | None
    total_s: float
    preemptions: int = 0


@dataclass(frozen=True, slots=True)
class TextDelta:
    request_id: str
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = ()
    turn: int = 0


@dataclass(frozen=True, slots=True)
class PromptScored:
    """Before the first TextDelta where prompt_logprobs were asked for: one entry per prompt token, the first None."""

    request_id: str
    logprobs: tuple[TokenLogprob | None, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Pooled:
    """The result of a pooling request, before its Finished: [E], or [N, E] for token_embed; float32."""

    request_id: str
    data: np.ndarray


@dataclass(frozen=True, slots=True)
class Finished:
    request_id: str
    reason: FinishReason
    usage: Usage
    timings: Timings
    stop_reason: int | str | None = None
    turn: int = 0


@dataclass(frozen=True, slots=True)
class Failed:
    request_id: str
    code: str
    message: str
    status: int = 500
    param: str | None = None
    turn: int = 0


@dataclass(frozen=True, slots=True)
class SessionOpened:
    """The first event of a session: its opening prompt is computed, and num_tokens long."""

    request_id: str
    num_tokens: int


@dataclass(frozen=True, slots=True)
class UnitTimings:
    """Seconds since the unit arrived: until it was first scheduled, until its policy was first asked, until its end.

    decided_s is None where nothing was decided. lateness_s: from the deadline to the end, 0 when in time.
    """

    queue_s: float
    decided_s: float | None
    total_s: float
    lateness_s: float


@dataclass(frozen=True, slots=True, eq=False)
class UnitPart:
    """What was said in a unit since its last part, when its policy flushes, for sessions opened with return_hidden.

    hidden: float32 [len(ids), E], as in UnitDone, which repeats the parts.
    """

    request_id: str
    index: int
    turn: int
    ids: tuple[int, ...]
    hidden: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class UnitDone:
    """A session's unit is over: what was said in it, `ids` without the ids that only steer, and what the policy adds.

    hidden: float32 [len(ids), E], the final-norm hidden state of each id, for sessions opened with return_hidden.
    num_tokens: rows that the session holds now. interrupted: a barge-in ended it; the last id may have no hidden state.
    speaks: its words are spoken: there are Sounds of its index, before or behind this, the last one with `ended`.
    """

    request_id: str
    index: int
    turn: int
    ids: tuple[int, ...]
    text: str
    info: Mapping[str, Any]
    timings: UnitTimings
    num_tokens: int
    interrupted: bool = False
    hidden: np.ndarray | None = None
    speaks: bool = False


@dataclass(frozen=True, slots=True)
class UnitFailed:
    """A session's unit that was not carried out. The session goes on as if it had not come, unless that ends too."""

    request_id: str
    index: int
    turn: int
    code: str
    message: str
    status: int = 500


@dataclass(frozen=True, slots=True)
class Codes:
    """What a call of the speech LM has said since its last event.

    ended, with the last one: it drew the end (eos), reached its limit (length), or was hushed (cut).
    """

    request_id: str
    call: int
    codes: tuple[int, ...]
    ended: Literal["eos", "length", "cut"] | None = None


@dataclass(frozen=True, slots=True)
class CallFailed:
    """A call of the speech LM that ended without an end. Its speech goes on with the next call, as a new turn."""

    request_id: str
    call: int
    code: str
    message: str
    status: int = 500
    param: str | None = None


SOUND_RATE = 24_000
"""Samples a second of every Sound."""


@dataclass(frozen=True, slots=True)
class Sound:
    """The next sound of what is said: 16-bit little-endian samples, mono, SOUND_RATE.

    index: the call of a speech, the unit of a session, 0 of a request. ended, with the last one, whose pcm may be
    empty: all is said, a limit of codes was reached, a barge-in or an abort cut it, or it failed (code, message).
    """

    request_id: str
    index: int
    turn: int
    pcm: bytes
    ended: Literal["eos", "length", "cut", "failed"] | None = None
    code: str = ""
    message: str = ""


Event = (
    TextDelta
    | PromptScored
    | Pooled
    | SessionOpened
    | UnitPart
    | UnitDone
    | UnitFailed
    | Codes
    | CallFailed
    | Sound
    | Finished
    | Failed
)


# ---- sessions (resident sequences fed on a clock) -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Unit:
    """One clock slice of a session: tokens and media to append, and when its answer is due (engine clock, seconds).

    deciding: index into prompt.ids of the row whose logits the policy is asked with first, negative from the end; rows
    behind it are appended too, before what is decided. None: the rows are appended and nothing is decided.
    """

    index: int
    prompt: Prompt
    arrival_s: float
    deadline_s: float
    deciding: int | None = -1
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """The policy's, for this unit. Plain values."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What a session's policy makes of a row of logits: ids to feed next, whose last row it is then asked with.

    collect: the one id in `feed` is said, so it and the hidden state of its row are kept. flush: what was collected
    before is told now, as a UnitPart, not only at the end of the unit. end: the unit is over and `feed` closes it;
    those ids are computed together with the next unit, or at once with defer=False.
    """

    feed: tuple[int, ...] = ()
    collect: bool = False
    end: bool = False
    defer: bool = True
    flush: bool = False

    def __post_init__(self) -> None:
        if not self.feed and not self.end:
            raise ValueError("a decision feeds ids or ends the unit")
        if self.collect and len(self.feed) != 1:
            raise ValueError("a decision that collects feeds exactly one id")


@dataclass(frozen=True, slots=True)
class Splice:
    """Rows [start, stop) of a session become `ids`, computed anew on what lies before them; None is the end.

    The rows behind keep their keys and values: they move to contiguous positions, their keys rotated accordingly.
    """

    start: int
    stop: int | None
    ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a policy says at the end of a unit. info: plain values for UnitDone.

    splices: one after another, and after closing ids that are computed at once. speech: what becomes of the words of a
    session that speaks. more: they are spoken, and the turn goes on. end: they end it. stop: the same, where a limit
    cut the text off. drop: the turn is over without them. None: nothing is spoken, and an open turn stays open.
    """

    info: Mapping[str, Any] = field(default_factory=dict[str, Any])
    splices: tuple[Splice, ...] = ()
    speech: Literal["more", "end", "stop", "drop"] | None = None


# ---- one step, from scheduler to model ----------------------------------------------------------------------------


@dataclass(slots=True)
class ModelInputs:
    """What a model reads in one step, eager or under a graph.

    N tokens of all sequences packed together. positions [N] or [axes, N]; kv: per layer [2, blocks, block_size,
    kv_heads, head_dim] (None while training); plan: from kernels, has attend(q, k, v, kv_layer, scale).
    """

    positions: torch.Tensor
    plan: Any
    kv: list[torch.Tensor] | None = None
    rows: torch.Tensor | None = None
    """int64 [M], ascending: the rows whose hidden states are wanted, and the only ones that come back. None: all."""
