"""The APIs of embedding models as types: embeddings, pooling, classes, scores and rankings."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from sensorium.server.chat_schema import MediaOptions, Messages, ProcessorOptions, TemplateText, TemplateVariables
from sensorium.server.prompts import PromptInput
from sensorium.server.schema import Input, Key, Label, Priority, Salt, Truncation
from sensorium.server.vectors import Endianness, VectorType

Encoding = Literal["float", "base64", "bytes", "bytes_only"]
UNSUPPORTED = {"documents": "documents beside the messages"}


# ---- requests -----------------------------------------------------------------------------------------------------


class PoolingFields(Input, kw_only=True):
    """What every request for vectors may say."""

    model: str | None = None
    user: Label | None = None
    truncate_prompt_tokens: Truncation | None = None
    """Longer prompts are cut to so many tokens; -1 is this model's context."""
    truncation_side: Literal["left", "right"] | None = None
    """Where they are cut; right by default."""
    add_special_tokens: bool | None = None
    mm_processor_kwargs: ProcessorOptions | None = None
    media_io_kwargs: MediaOptions | None = None
    request_id: Key | None = None
    cache_salt: Salt | None = None
    priority: Priority | None = None


class EmbeddingRequest(PoolingFields, kw_only=True):
    """POST /v1/embeddings, with `input` or `messages`."""

    input: PromptInput | None = None
    messages: Messages | None = None
    add_generation_prompt: bool | None = None
    """False by default."""
    continue_final_message: bool | None = None
    chat_template: TemplateText | None = None
    chat_template_kwargs: TemplateVariables | None = None
    encoding_format: Encoding | None = None
    embed_dtype: VectorType | None = None
    endianness: Endianness | None = None
    dimensions: Annotated[int, Meta(ge=1, le=1 << 20)] | None = None
    use_activation: bool | None = None
    """Whether vectors are normalised; true by default."""
    normalize: bool | None = None
    """An older name of use_activation."""


class PoolingRequest(EmbeddingRequest, kw_only=True):
    """POST /pooling."""

    task: Literal["embed", "token_embed", "classify", "token_classify"] | None = None


class ScoreItem(Input, kw_only=True):
    """A text with media, as parts of a message."""

    content: Annotated[list[str | dict[str, Any]], Meta(min_length=1, max_length=256)]


ScoreInput = str | ScoreItem
ScoreInputs = str | ScoreItem | Annotated[list[ScoreInput], Meta(min_length=1, max_length=1024)]


class ScoreRequest(PoolingFields, kw_only=True):
    """POST /score: one against many, or many against as many. Each pair of names means the same."""

    queries: ScoreInputs | None = None
    documents: ScoreInputs | None = None
    text_1: ScoreInputs | None = None
    text_2: ScoreInputs | None = None
    data_1: ScoreInputs | None = None
    data_2: ScoreInputs | None = None
    items: ScoreInputs | None = None
    """Goes with queries, as documents does."""


class RerankRequest(PoolingFields, kw_only=True):
    """POST /rerank."""

    query: ScoreInput
    documents: Annotated[list[ScoreInput], Meta(min_length=1, max_length=1024)]
    top_n: Annotated[int, Meta(ge=0)] | None = None
    """So many of the best; 0, the default, is all."""
    return_documents: bool | None = None
    max_tokens_per_doc: None = None


class ClassifyRequest(PoolingFields, kw_only=True):
    """POST /classify."""

    input: PromptInput | None = None
    messages: Messages | None = None


# ---- replies ------------------------------------------------------------------------------------------------------


class PoolingUsage(Struct, kw_only=True):
    prompt_tokens: int
    total_tokens: int
    completion_tokens: int = 0
    prompt_tokens_details: dict[str, int] | None = None


class Embedding(Struct, kw_only=True):
    index: int
    object: Literal["embedding"] = "embedding"
    embedding: list[float] | str


class Embeddings(Struct, kw_only=True):
    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[Embedding]
    usage: PoolingUsage


class PooledData(Struct, kw_only=True):
    index: int
    object: Literal["pooling"] = "pooling"
    data: list[float | list[float]] | str
    shape: list[int] | UnsetType = UNSET
    """Given where the data are bytes."""


class Poolings(Struct, kw_only=True):
    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[PooledData]
    usage: PoolingUsage


class Score(Struct, kw_only=True):
    index: int
    object: Literal["score"] = "score"
    score: float


class Scores(Struct, kw_only=True):
    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[Score]
    usage: PoolingUsage


class RankedDocument(Struct, kw_only=True):
    text: str | None = None
    multi_modal: list[Any] | None = None


class Ranked(Struct, kw_only=True):
    index: int
    document: RankedDocument | UnsetType = UNSET
    relevance_score: float


class Ranking(Struct, kw_only=True):
    id: str
    model: str
    results: list[Ranked]
    usage: PoolingUsage


EMBEDDING_REQUEST = msgspec.json.Decoder(EmbeddingRequest)
POOLING_REQUEST = msgspec.json.Decoder(PoolingRequest)
SCORE_REQUEST = msgspec.json.Decoder(ScoreRequest)
RERANK_REQUEST = msgspec.json.Decoder(RerankRequest)
CLASSIFY_REQUEST = msgspec.json.Decoder(ClassifyRequest)
