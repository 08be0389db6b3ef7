"""What the endpoints have in common as types: what is not written here is refused, with the path of what was wrong.

Bounds are those of the OpenAI API where it has any. `X | None = None` means that null is the same as leaving it out.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from sensorium.errors import UnsupportedError

Label = Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[\x20-\x7e]*$")]
Key = Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9._:-]*$")]
Salt = Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[^@/\\\x00-\x1f\x7f]*$")]
TokenId = Annotated[int, Meta(ge=0, le=(1 << 31) - 1)]
TokenCount = Annotated[int, Meta(ge=1, le=(1 << 31) - 1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
StopText = Annotated[str, Meta(min_length=1, max_length=256)]
StopTexts = StopText | Annotated[list[StopText], Meta(max_length=1024)]
Url = Annotated[str, Meta(min_length=1)]
Scalar = bool | int | float | Annotated[str, Meta(max_length=1024)] | None
Groups = Annotated[list[Annotated[list[int], Meta(max_length=256)]], Meta(max_length=1024)]
TopCount = Annotated[int, Meta(ge=-1, le=1_000_000)]
Choices = Annotated[int, Meta(ge=1, le=16384)]
Priority = Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
Truncation = Annotated[int, Meta(ge=-1, le=(1 << 31) - 1)]
StreamInterval = Annotated[int, Meta(ge=1, le=(1 << 31) - 1)]


class Input(Struct, forbid_unknown_fields=True):
    """What clients write: strict, so that a misspelt field is an error and not a surprise."""


# ---- request ------------------------------------------------------------------------------------------------------


class StreamOptions(Input, kw_only=True):
    include_usage: bool = False
    continuous_usage_stats: bool = False


class JsonSchema(Input, kw_only=True):
    schema: dict[str, Any]
    name: str | None = None
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(Input, kw_only=True):
    type: Literal["text", "json_object", "json_schema", "structural_tag"]
    json_schema: JsonSchema | None = None
    format: dict[str, Any] | None = None
    structures: list[dict[str, Any]] | None = None
    triggers: list[str] | None = None


class StructuredFields(Input, kw_only=True):
    """The rule of an answer, as vLLM writes it; exactly one of the first six."""

    json: str | dict[str, Any] | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    structural_tag: str | dict[str, Any] | None = None
    whitespace_pattern: str | None = None
    disable_any_whitespace: bool | None = None
    disable_additional_properties: bool | None = None


class ForeignFields(Input, kw_only=True):
    """Fields of vLLM for what this server does not have. Only what asks for nothing is accepted; see refuse_foreign."""

    vllm_xargs: dict[str, Any] | None = None
    kv_transfer_params: Any = None
    ec_transfer_params: Any = None
    mm_payload: Any = None
    routed_experts_prompt_start: Any = None
    return_weight_versions: bool | None = None
    return_token_offsets: bool | None = None
    repetition_detection: Any = None
    watermarking: bool | None = None


FOREIGN = {
    "vllm_xargs": "this server has no extension that takes arguments",
    "kv_transfer_params": "this server shares no KV cache with others",
    "ec_transfer_params": "this server shares no encoder cache with others",
    "mm_payload": "media are sent as parts of messages",
    "routed_experts_prompt_start": "the routing of experts is not reported",
    "return_weight_versions": "weights have no versions here",
    "return_token_offsets": "offsets of tokens are not reported; logprobs and return_token_ids are",
    "repetition_detection": "repetitions are not looked for; use repetition_penalty",
    "watermarking": "answers carry no watermark",
}


def refuse_foreign(request: ForeignFields) -> None:
    """Raises UnsupportedError naming the first of FOREIGN that asks for something."""
    for name, reason in FOREIGN.items():
        if getattr(request, name) not in (None, False, {}, []):
            raise UnsupportedError(f"{name}: {reason}", param=name)


class TokenFields(ForeignFields, kw_only=True):
    """How tokens are chosen and when to stop, named alike at every door; null means the model's own default."""

    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=(1 << 31) - 1)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    seed: Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)] | None = None
    """-1 is the same as none."""
    logit_bias: Annotated[dict[TokenId, Annotated[float, Meta(ge=-100, le=100)]], Meta(max_length=1024)] | None = None
    min_tokens: Annotated[int, Meta(ge=0, le=(1 << 31) - 1)] | None = None
    stop: StopTexts | None = None
    stop_token_ids: Annotated[list[TokenId], Meta(max_length=64)] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    bad_words: Annotated[list[Annotated[str, Meta(min_length=1, max_length=256)]], Meta(max_length=128)] | None = None
    allowed_token_ids: Annotated[list[TokenId], Meta(min_length=1, max_length=1 << 18)] | None = None
    thinking_token_budget: Annotated[int, Meta(ge=-1, le=(1 << 31) - 1)] | None = None
    structured_outputs: StructuredFields | None = None


class SamplingFields(TokenFields, kw_only=True):
    """And what only the older doors have."""

    max_tokens: TokenCount | None = None
    max_completion_tokens: TokenCount | None = None
    """Wins over max_tokens. Without either, the answer may fill the context."""
    logprob_token_ids: Annotated[list[TokenId], Meta(max_length=128)] | None = None
    response_format: ResponseFormat | None = None
    guided_json: str | dict[str, Any] | None = None
    """The guided_ fields are older names of those in structured_outputs."""
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    guided_json_object: bool | None = None
    guided_whitespace_pattern: str | None = None
    guided_decoding_backend: str | None = None
    logprobs: bool | None = None
    top_logprobs: TopCount | None = None


# ---- response -----------------------------------------------------------------------------------------------------


class TopLogprob(Struct):
    token: str
    logprob: float
    bytes: list[int]


class PromptLogprob(Struct):
    logprob: float
    rank: int
    decoded_token: str


class ContentLogprob(Struct):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(Struct):
    content: list[ContentLogprob]


class PromptTokensDetails(Struct):
    """Both naming schemes: OpenAI's, and below it vLLM's."""

    cached_tokens: int = 0
    image_tokens: int = 0
    audio_tokens: int = 0
    video_tokens: int = 0
    text_tokens: int = 0
    cache_write_tokens: int = 0
    multimodal_tokens: dict[str, int] = msgspec.field(default_factory=dict[str, int])
    created_cache_tokens: int = 0


class CompletionTokensDetails(Struct):
    reasoning_tokens: int = 0
    audio_tokens: int = 0
    """Codes of the sound, 25 a second; completion_tokens counts them too."""


class UsageReport(Struct):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails | None
    completion_tokens_details: CompletionTokensDetails = msgspec.field(default_factory=CompletionTokensDetails)


class RequestTimings(Struct):
    """`metrics` of an answer, in milliseconds. generation_time: arrival to end; mean_itl: between two tokens."""

    time_to_first_token_ms: float
    generation_time_ms: float
    queue_time_ms: float
    mean_itl_ms: float | None
    tokens_per_second: float


class ModelPermission(Struct, kw_only=True):
    """What OpenAI's first clients read of each model: anyone who may ask may use it, nobody may change it."""

    id: str
    object: Literal["model_permission"] = "model_permission"
    created: int
    allow_create_engine: bool = False
    allow_sampling: bool = True
    allow_logprobs: bool = True
    allow_search_indices: bool = False
    allow_view: bool = True
    allow_fine_tuning: bool = False
    organization: str = "*"
    group: str | None = None
    is_blocking: bool = False


class ModelCard(Struct, kw_only=True):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "sensorium"
    root: str
    parent: str | None = None
    max_model_len: int
    modalities: list[str]
    capabilities: list[str]
    """speech: answers and texts can be heard. duplex: it holds live sessions."""
    permission: list[ModelPermission]


class ModelList(Struct):
    data: list[ModelCard]
    object: Literal["list"] = "list"
