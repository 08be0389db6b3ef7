"""What depends on the model and is checked before a request is queued. No torch: callers' processes import it."""

from __future__ import annotations

from sensorium.config import EngineConfig
from sensorium.engine.protocol import EngineFacts
from sensorium.engine.rules import END_THINK, bad_word_ids, thinking_marks
from sensorium.errors import ContextLengthError, RequestError, UnsupportedError
from sensorium.models.base import Tokenizer
from sensorium.params import MAX_NAMED_IDS
from sensorium.types import PoolingParams, Prompt, SamplingParams

MAX_SCORES = 1_000_000
"""Log-probabilities of prompt tokens in one answer."""


class Admission:
    """Refuses requests the engine could not carry out, with errors that name the field."""

    def __init__(self, facts: EngineFacts, tokenizer: Tokenizer, config: EngineConfig) -> None:
        self._facts = facts
        self._tokenizer = tokenizer
        self._config = config

    def check(self, prompt: Prompt, sampling: SamplingParams, priority: int, *, limit_logprobs: bool = True) -> None:
        """A generation. limit_logprobs: whether max_logprobs holds; our own beam search may look further."""
        if self._facts.pooler is not None:
            raise UnsupportedError("this engine was started for embeddings (runner=pooling) and generates nothing")
        if sampling.n != 1:
            reason = "n: one request is one answer; submit sampling.choice(i) for each of them"
            raise RequestError(reason, param="n")
        count, limit = len(prompt.ids), self._facts.max_model_len
        self._check_prompt(prompt)
        if count >= limit:
            raise ContextLengthError(
                f"the prompt has {count} tokens; with one to generate that exceeds this model's context of {limit}",
                param="messages",
            )
        if sampling.min_tokens > limit - count:
            reason = f"min_tokens: {sampling.min_tokens} exceeds the {limit - count} tokens left in the context"
            raise RequestError(reason, param="min_tokens")
        self._check_priority(priority)
        self._check_ids(sampling)
        if limit_logprobs:
            self._check_logprobs(sampling, count)
        if sampling.thinking_token_budget is not None and thinking_marks(self._tokenizer) is None:
            reason = f"thinking_token_budget: this model's vocabulary has no token {END_THINK}"
            raise UnsupportedError(reason, param="thinking_token_budget")

    def check_pooling(self, prompt: Prompt, pooling: PoolingParams, priority: int = 0) -> None:
        """An embedding; the prompt may fill the whole context."""
        if self._facts.pooler is None:
            raise UnsupportedError("this engine generates text; for embeddings start it with runner=pooling")
        self._check_prompt(prompt)
        self._check_priority(priority)
        if len(prompt.ids) > self._facts.max_model_len:
            reason = f"the input has {len(prompt.ids)} tokens; this model's context is {self._facts.max_model_len}"
            raise ContextLengthError(reason, param="input")
        self._facts.pooler.check(pooling, self._facts.hidden_size)

    def _check_priority(self, priority: int) -> None:
        if priority and self._config.scheduling_policy != "priority":
            reason = f"priority: {priority} needs scheduling_policy=priority; this engine serves in order of arrival"
            raise RequestError(reason, param="priority")

    def check_session(self, prompt: Prompt, sampling: SamplingParams, max_len: int, max_units: int) -> None:
        """The opening prompt may be empty."""
        if self._facts.pooler is not None:
            raise UnsupportedError("this engine was started for embeddings (runner=pooling) and holds no sessions")
        if prompt.positions is not None:
            raise UnsupportedError("models with several position axes cannot hold a session yet")
        limit = self._facts.max_model_len
        if not 1 <= max_len <= limit:
            raise RequestError(f"max_len must be 1 to {limit}, the model's context, not {max_len}", param="max_len")
        if max_units < 1:
            raise RequestError(f"max_units must be at least 1, not {max_units}", param="max_units")
        if len(prompt.ids) >= max_len:
            raise ContextLengthError(
                f"the prompt has {len(prompt.ids)} tokens and the session holds {max_len}", param="prompt"
            )
        if prompt.ids:
            self._check_prompt(prompt)
        self._check_ids(sampling)

    def check_unit(self, prompt: Prompt) -> None:
        """A unit's tokens and media; its length is checked where the session's is known."""
        self._check_prompt(prompt)

    def _check_prompt(self, prompt: Prompt) -> None:
        if not prompt.ids:
            raise RequestError("the prompt is empty", param="prompt")
        self._check_range("prompt", prompt.ids, self._facts.vocab_size)
        longest = max((span.length for span in prompt.spans), default=0)
        if self._config.disable_chunked_mm_input and longest > self._config.max_num_batched_tokens:
            raise RequestError(
                f"a media item of {longest} tokens exceeds max_num_batched_tokens "
                f"({self._config.max_num_batched_tokens}), and disable_chunked_mm_input forbids to split it",
                param="messages",
            )
        size = sum({item.key: item.rows for item in prompt.media}.values()) * self._facts.row_bytes
        room = self._facts.encoder_cache_bytes
        most = room // self._facts.row_bytes
        if large := next((item for item in prompt.media if item.rows > most), None):
            raise RequestError(
                f"the prompt contains a(n) {large.modality} item with {large.rows} embedding tokens, which exceeds the "
                f"pre-allocated encoder cache size {most} (encoder_cache_tokens)",
                param="messages",
            )
        if size > room:
            raise RequestError(
                f"the prompt's media need {size} bytes of embeddings; the encoder cache holds {room}", param="messages"
            )

    def _check_ids(self, sampling: SamplingParams) -> None:
        vocab = self._facts.vocab_size
        self._check_range("stop_token_ids", sampling.stop_token_ids, vocab)
        self._check_range("logit_bias", tuple(sampling.logit_bias), vocab)
        self._check_range("logprob_token_ids", sampling.logprob_token_ids, vocab)
        # A model may have more rows of logits than its tokenizer has tokens: those spell nothing.
        self._check_range("allowed_token_ids", sampling.allowed_token_ids or (), min(self._tokenizer.vocab_size, vocab))
        if sampling.bad_words:
            sequences = bad_word_ids(sampling.bad_words, self._tokenizer)
            if len(sequences) > MAX_NAMED_IDS:
                reason = f"bad_words: {len(sequences)} token sequences; at most {MAX_NAMED_IDS} are allowed"
                raise RequestError(reason, param="bad_words")

    def _check_logprobs(self, sampling: SamplingParams, count: int) -> None:
        most = self._config.max_logprobs
        for name in ("logprobs", "prompt_logprobs"):
            wanted = getattr(sampling, name)
            if wanted is not None and most >= 0 and not 0 <= wanted <= most:
                shown = "the whole vocabulary" if wanted < 0 else wanted
                raise RequestError(f"{name}: {shown} exceeds max_logprobs, which is {most}", param=name)
        if sampling.prompt_logprobs is not None:
            each = sampling.prompt_logprobs + 1 if sampling.prompt_logprobs >= 0 else self._facts.vocab_size
            if count * (each + len(sampling.logprob_token_ids)) > MAX_SCORES:
                reason = f"prompt_logprobs: {each} for each of {count} prompt tokens; at most {MAX_SCORES} in all"
                raise RequestError(reason, param="prompt_logprobs")

    @staticmethod
    def _check_range(name: str, ids: tuple[int, ...], size: int) -> None:
        if ids and not 0 <= min(ids) <= max(ids) < size:
            raise RequestError(f"{name} holds a token id outside 0..{size - 1}", param=name)
