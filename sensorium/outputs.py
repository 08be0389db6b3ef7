"""What LLM returns. Names follow vLLM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from sensorium.types import FinishReason, Timings, Usage

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Logprob:
    """rank: 1 for the most likely token of its position."""

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


SampleLogprobs = list[dict[int, Logprob]]
PromptLogprobs = list[dict[int, Logprob] | None]


@dataclass(frozen=True, slots=True)
class CompletionOutput:
    """One answer. logprobs: per token its alternatives by id, the chosen one first; None unless asked for."""

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None
    logprobs: SampleLogprobs | None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    lora_request: None = None

    def finished(self) -> bool:
        return self.finish_reason is not None


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """A prompt with its answers. prompt_token_ids: with media expanded. prompt_logprobs: one entry a token, first None.

    `prompt` is the rendered text where the processor keeps it. usage and metrics are sensorium's own; the fields with
    None as their only value are there because programs written for vLLM read them.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    prompt_logprobs: PromptLogprobs | None
    outputs: list[CompletionOutput]
    finished: bool
    metrics: Timings
    usage: Usage
    num_cached_tokens: int = 0
    num_cache_creation_tokens: int = 0
    lora_request: None = None
    encoder_prompt: None = None
    encoder_prompt_token_ids: None = None
    kv_transfer_params: None = None
    ec_transfer_params: None = None


@dataclass(frozen=True, slots=True, eq=False)
class PoolingOutput:
    """data: [E], or [N, E] with a vector for each token; float32."""

    data: torch.Tensor


@dataclass(frozen=True, slots=True)
class EmbeddingOutput:
    embedding: list[float]

    @property
    def hidden_size(self) -> int:
        return len(self.embedding)


@dataclass(frozen=True, slots=True)
class ScoringOutput:
    """score: the cosine of two embeddings, -1 to 1."""

    score: float


@dataclass(frozen=True, slots=True)
class PoolingRequestOutput(Generic[T]):
    """A prompt with what pooling made of it: a PoolingOutput, EmbeddingOutput or ScoringOutput."""

    request_id: str
    outputs: T
    prompt_token_ids: list[int]
    finished: bool
    num_cached_tokens: int = 0


EmbeddingRequestOutput = PoolingRequestOutput[EmbeddingOutput]
ScoringRequestOutput = PoolingRequestOutput[ScoringOutput]


@dataclass(frozen=True, slots=True)
class BeamSearchSequence:
    """tokens: of prompt and answer; text: of the answer. cum_logprob: the sum over the answer's tokens.

    score: what beams are ranked by, cum_logprob over a power of the answer's length.
    """

    tokens: list[int]
    cum_logprob: float
    text: str
    score: float
    finish_reason: FinishReason


@dataclass(frozen=True, slots=True)
class BeamSearchOutput:
    """The best sequences, best first."""

    sequences: list[BeamSearchSequence]
