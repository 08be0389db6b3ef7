"""What the engine asks of a model family: two protocols, nothing to inherit."""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

import numpy as np

from sensorium.params import LiveSettings
from sensorium.types import (
    ChatOptions,
    Decision,
    Embeds,
    Media,
    MediaItem,
    Message,
    Modality,
    ModelInputs,
    Outcome,
    Prepared,
    Prompt,
    SamplingParams,
    Unit,
)

if TYPE_CHECKING:
    import numpy as np
    import torch

T = TypeVar("T")


class Tokenizer(Protocol):
    """The part of a tokenizer that the engine and its callers use."""

    eos_ids: tuple[int, ...]
    special_ids: frozenset[int]
    vocab_size: int

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """Token ids. Unless allow_special, text that spells a control token is encoded as plain text."""
        ...

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str: ...

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes a token adds to the text (control tokens: their spelling)."""
        ...


class Processor(Protocol):
    """Messages and media to a Prompt. numpy only; called from several threads at once.

    Optional, for a family that can be told to write down speech: `speech_instructions`, a mapping from "transcribe",
    "translate", or one of them with a language ("transcribe:zh"), to the user message that asks for it, in which
    {audio} stands for the recording, and `speech_clip_s`, the seconds of speech that it hears at once. For a family
    that holds live sessions: `live(stream)`, the LivePrompts of a session whose id is `stream`. For one that speaks:
    `speaking_prompts`, a SpeakingPrompts.
    """

    tokenizer: Tokenizer
    origin: tuple[Path, Mapping[str, Any]]
    """The folder and configuration it was loaded with, so that media workers can load the same."""
    scales_on_device: bool
    """Whether the model's device scales pictures faster than a CPU can. Families that cannot leave it to the device
    take no notice."""
    piece_types: tuple[type, ...]
    """The dataclasses that the content of its Prepared media is made of, besides arrays and plain values."""

    def __init__(self, folder: Path, config: Any) -> None: ...

    def prepare(self, media: Media | Embeds, options: Mapping[str, Any]) -> Prepared:
        """All that can be done to one item on its own. options: ChatOptions.media_kwargs. Runs in media workers too."""
        ...

    def largest(self, modality: Modality, longest: int, options: Mapping[str, Any]) -> Media:
        """A blank medium that becomes as many rows as any, but at most `longest` where that is possible.

        options: as in prepare. The start plans memory with it, before limits of the media themselves.
        """
        ...

    def chat(self, messages: Sequence[Message], options: ChatOptions) -> Prompt:
        """Render the chat template and expand media. No MediaRef is left by now."""
        ...

    def raw(
        self, text: str | Sequence[int], media: Sequence[Media | Embeds | Prepared], options: ChatOptions
    ) -> Prompt:
        """A prompt written by the caller, control tokens and media placeholders included (offline use)."""
        ...


class LivePrompts(Protocol):
    """Makes the prompts of one live session, in the order of its units. numpy only; one thread at a time.

    The policy tells of every unit, in UnitDone.info: is_listen, whether nothing was said in it, and turn_open, whether
    what is being said goes on in the next one.
    """

    policy: str
    """The name of the session policy that decides."""

    def opening(
        self, settings: LiveSettings, max_len: int, reference: Media | None = None
    ) -> tuple[Prompt, Mapping[str, Any]]:
        """What the session begins with, and the policy's options. max_len: rows that it may hold.

        reference: a recording of the voice that it speaks in, for the model to hear.
        """
        ...

    def frame_options(self, max_slices: int) -> Mapping[str, Any]:
        """ChatOptions.media_kwargs to prepare pictures of units with. max_slices: see ../docs/duplex-protocol.md."""
        ...

    def unit(self, samples: np.ndarray, frames: Sequence[Prepared], texts: Sequence[str]) -> tuple[Prompt, int]:
        """A second of sound [16000] float32, pictures and typed words; and the row that decides."""
        ...

    def unit_options(self, settings: LiveSettings, *, force_listen: bool, force_speak: bool) -> Mapping[str, Any]:
        """The policy's options for a unit. force_speak: it speaks, if the model knows what, also where a session begins
        with units in which the model only listens."""
        ...


class SpeechSettings(Protocol):
    """The part of a speech LM's configuration that its stage reads."""

    @property
    def llm_dim(self) -> int: ...
    @property
    def num_text_tokens(self) -> int: ...
    @property
    def attention_type(self) -> Literal["full_attention", "sliding_window", "sliding_recompute", "reindex"]: ...
    @property
    def token_window(self) -> int: ...
    @property
    def temperature(self) -> float: ...
    @property
    def top_p(self) -> float | None: ...
    @property
    def top_k(self) -> int | None: ...
    @property
    def repetition_penalty(self) -> float: ...


class SpeechModel(Protocol):
    """The speech LM of a family that speaks: condition rows and codes in, distributions of codes out."""

    @property
    def config(self) -> SpeechSettings: ...

    num_codes: int
    eos_code: int
    hidden_size: int
    num_layers: int
    num_kv_heads: int
    head_dim: int
    max_len: int
    position_axes: int
    """As of Model; 1."""

    def condition(self, ids: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """ids [N] of the backbone and its final-norm states [N, llm_dim] after each of them -> rows [N, E]."""
        ...

    def marks(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows [1, E] of the end of the text and of the beginning of the sound."""
        ...

    def embed(self, codes: torch.Tensor) -> torch.Tensor:
        """[M] -> [M, E]."""
        ...

    def rotate(self, keys: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
        """Keys [..., n, K, D] of the cache, turned on by so many positions, [n]."""
        ...

    def forward(self, x: torch.Tensor, inputs: ModelInputs) -> torch.Tensor: ...

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[M, E] -> [M, V]."""
        ...

    def fuse(self, fused_class: Any) -> None: ...


class Event(Protocol):
    """Something that the device has yet to reach, as torch.cuda.Event."""

    def query(self) -> bool: ...

    def synchronize(self) -> None: ...


Slices = Generator["Event | None", None, T]
"""Work in slices: yields None, or an event that the next slice needs; returns what came of it."""


class Codec(Protocol):
    """What makes sound of codes in a reference voice, for many streams at once.

    Voices and streams are its own objects. `voice` may be called from any thread; it does not hold up the others.
    """

    @property
    def num_codes(self) -> int: ...
    @property
    def can_clone(self) -> bool:
        """Whether `voice` works: recordings need packages that need not be there."""
        ...

    def voice(self, samples: np.ndarray, rate: int) -> Any:
        """A voice of a recording, [S] or [S, channels] floats. Raises MediaError, UnsupportedError."""
        ...

    def reserve(self, streams: int, voices: int, voice_s: float) -> None:
        """Take the memory for so many streams and voices now."""
        ...

    def silent_voice(self, seconds: float) -> Any:
        """A voice of that length, for rehearsals."""
        ...

    def rehearse(self, voice: Any, streams: int) -> None:
        """Speak a piece with so many streams: to measure what that needs."""
        ...

    def record(self, voice: Any, streams: int) -> None:
        """Record what can be recorded for pieces of up to so many streams of a voice."""
        ...

    def prepare(self, voice: Any) -> Slices[None]:
        """Make what streams of a voice begin with; `release` forgets it."""
        ...

    def is_prepared(self, voice: Any) -> bool: ...

    def release(self, voice: Any) -> None: ...

    def open(self, voice: Any) -> Any:
        """A stream. Its state goes when nobody refers to it any more."""
        ...

    @property
    def batch(self) -> int:
        """Streams that are worth computing at once; of more the rest follows."""
        ...

    def kind(self, num_codes: int, last: bool) -> Hashable:
        """Pieces of one kind are computed as one batch."""
        ...

    def pieces(self, works: Sequence[tuple[Any, Sequence[int], bool]]) -> Slices[list[np.ndarray]]:
        """The next codes of each stream, and whether they are its last -> float32 [S] each.

        Unless last, the final codes are only looked at.
        """
        ...

    def pcm(self, sound: np.ndarray) -> bytes:
        """[S] float32 as 16-bit little-endian samples."""
        ...


class Model(Protocol):
    """Weights and forward pass of one family, written for one device.

    Optional: `session_policies`, a mapping of names to SessionPolicy classes; `spoken_end`, the control token that ends
    a spoken answer; and, where encoders keep state for MediaItem.stream, `drop_stream(session_id)`, called when a
    session ends, `stream_bytes`, what one stream takes, and `reserve_streams(count)`, called once before the first.
    """

    modalities: tuple[Modality, ...]
    vocab_size: int
    max_model_len: int
    hidden_size: int
    num_layers: int
    num_kv_heads: int
    head_dim: int
    speech: SpeechModel | None
    """None for families that do not speak, and where it is not loaded."""
    position_axes: int
    """Rows of ModelInputs.positions: 1, or 3 for M-RoPE."""

    def wrap_encoders(self, wrap: Callable[[Callable[..., torch.Tensor], bool], Callable[..., torch.Tensor]]) -> None:
        """Let encoders of tensors, positional arguments in and one tensor out, go through `wrap`, which is told whether
        the encoder has no effect but its result."""
        ...

    def rehearse(self, frames: Sequence[MediaItem]) -> Iterator[None]:
        """Parts of what wrapped encoders are better asked for before anybody waits. It has no effect but time.

        frames: pictures of the shapes that sessions are likely to bring.
        """
        ...

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """[N] -> [N, E]."""
        ...

    def encode(self, modality: str, items: Sequence[MediaItem]) -> list[torch.Tensor]:
        """One [rows, E] tensor per item, batched by shape inside."""
        ...

    def forward(self, x: torch.Tensor, inputs: ModelInputs) -> torch.Tensor:
        """[N, E] -> hidden [N, E], after the final norm."""
        ...

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[M, E] -> [M, V]."""
        ...

    def turn(self, before: torch.Tensor, after: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        """A function that rotates cached keys [n, K, D] from positions before [n] to positions after [n]."""
        ...

    def fuse(self, fused_class: Any) -> None:
        """Run the decoder on the compiled kernels that kernels.select found, from the next step on."""
        ...


class SessionPolicy(Protocol):
    """What a family decides in a session: a state machine per session, in the engine's process and thread.

    A family names its classes in `session_policies` of its Model, {name: class}. A policy of which a method raises ends
    its session, but for RequestError in `__init__` and `begin`. Optional, where a class can decide for many sessions in
    one batch: a static method `decide_all(policies, logits [M, V]) -> list[Decision]`.
    """

    max_feed: int
    """Most ids that the decisions of one unit feed, closing ones included."""

    def __init__(self, tokenizer: Tokenizer, sampling: SamplingParams, options: Mapping[str, Any]) -> None:
        """Raises RequestError naming an option that is wrong."""
        ...

    def opened(self, length: int) -> None:
        """The opening prompt has so many rows."""
        ...

    def begin(self, unit: Unit, at: int) -> None:
        """The unit's rows will begin at row `at`. A RequestError refuses the unit, and only that."""
        ...

    def decide(self, logits: torch.Tensor) -> Decision:
        """logits [V] float32, on the device: of the unit's deciding row, then of the last id that was fed."""
        ...

    def end(self, length: int) -> Outcome:
        """The unit is over; the session has so many rows, those included that are yet to be computed."""
        ...

    def interrupt(self, options: Mapping[str, Any]) -> tuple[int, ...]:
        """The user speaks over what is said. Ids that close it; a unit that was going on is over with them."""
        ...

    def rewind(self, index: int) -> None:
        """All that came after unit `index` has not been; -1 is the opening prompt."""
        ...


Arrays = Mapping[str, "torch.Tensor"]
