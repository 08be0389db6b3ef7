"""LLM: the engine in your own process, with no server. Names follow vLLM where it has them."""

from __future__ import annotations

import itertools
import logging
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, fields, replace
from typing import Any, Literal, cast

import torch

from sensorium.config import EngineConfig
from sensorium.engine.beam import beam_search
from sensorium.engine.client import EngineClient
from sensorium.engine.sleep import check_sleep, check_tags
from sensorium.errors import SensoriumError, UnsupportedError
from sensorium.inputs import PromptType
from sensorium.messages import read_content, read_messages
from sensorium.offline import batch
from sensorium.offline.batch import Job
from sensorium.offline.keywords import read_keywords
from sensorium.offline.progress import Bars, UseTqdm
from sensorium.offline.prompts import is_one_prompt, read_prompt
from sensorium.offline.results import Output
from sensorium.offline.tokenizer import OfflineTokenizer
from sensorium.outputs import (
    BeamSearchOutput,
    BeamSearchSequence,
    EmbeddingOutput,
    EmbeddingRequestOutput,
    PoolingOutput,
    PoolingRequestOutput,
    RequestOutput,
    ScoringOutput,
    ScoringRequestOutput,
)
from sensorium.types import BeamSearchParams, ChatOptions, Message, PoolingParams, Prompt, SamplingParams

log = logging.getLogger(__name__)
Messages = Sequence[Mapping[str, Any]]
DEFAULT_MAX_TOKENS = 16
_ALIVE: weakref.WeakSet[LLM] = weakref.WeakSet()


class LLM:
    """Loads a model and answers lists of prompts.

    Keywords are the fields of EngineConfig and vLLM's names for them; docs/offline.md lists them. Delete the object,
    close it or use it as a context manager to free the device.

    >>> with LLM() as llm:
    ...     llm.chat([{"role": "user", "content": "Hello"}])[0].outputs[0].text
    """

    def __init__(self, model: str = "", **options: Any) -> None:
        config, self._template = read_keywords(model, options)
        self.client = self._load(config)
        self._close = weakref.finalize(self, _stop, self.client)
        self._ids = itertools.count()
        self._queue = ThreadPoolExecutor(1, thread_name_prefix="sensorium-queue")
        self._queued: list[Future[list[Output]]] = []
        self._told = False
        _ALIVE.add(self)

    @classmethod
    def from_config(cls, config: EngineConfig) -> LLM:
        """The same from a configuration object."""
        return cls(**{field.name: getattr(config, field.name) for field in fields(config)})

    # ---- generation ------------------------------------------------------------------------------------------------

    def generate(
        self,
        prompts: PromptType | Sequence[PromptType],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: UseTqdm = True,
        lora_request: None = None,
        priority: int | Sequence[int] | None = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        mm_processor_kwargs: Mapping[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Continue prompts in the model's own notation, control tokens and media placeholders included.

        A prompt is a string, a list of token ids, or a dict; see sensorium.inputs. Outputs come in the order of the
        prompts, one each. Without sampling_params the model's defaults hold, and as in vLLM an answer ends after 16
        tokens. A prompt that cannot be used raises a ValueError with its number, and no prompt is answered.
        """
        _refuse(lora_request=lora_request, tokenization_kwargs=tokenization_kwargs)
        jobs = self._raw_jobs(prompts, sampling_params, priority, mm_processor_kwargs)
        return cast("list[RequestOutput]", self._run(jobs, use_tqdm, "prompts", sampling_params is None))

    def chat(
        self,
        messages: Messages | Sequence[Messages],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: UseTqdm = True,
        lora_request: None = None,
        priority: int | Sequence[int] | None = None,
        chat_template: str | None = None,
        chat_template_content_format: str = "auto",
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        mm_processor_kwargs: Mapping[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Answer one conversation, or a list of them, in the OpenAI form; see sensorium.messages for the parts.

        chat_template: a Jinja template instead of the model's. sampling_params and errors as in generate.
        """
        _refuse(lora_request=lora_request, tokenization_kwargs=tokenization_kwargs)
        options = ChatOptions(
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            template_kwargs=chat_template_kwargs or {},
            media_kwargs=mm_processor_kwargs or {},
            tools=tuple(tools or ()),
        )
        options = self._template.applied(options, chat_template, chat_template_content_format)
        jobs = self._chat_jobs(messages, options, sampling_params, priority)
        return cast("list[RequestOutput]", self._run(jobs, use_tqdm, "conversations", sampling_params is None))

    def beam_search(
        self,
        prompts: PromptType | Sequence[PromptType],
        params: BeamSearchParams,
        lora_request: None = None,
        use_tqdm: UseTqdm = False,
    ) -> list[BeamSearchOutput]:
        """The likeliest whole answers, beam_width of them for each prompt, best first."""
        _refuse(lora_request=lora_request)
        jobs = self._raw_jobs(prompts, SamplingParams(max_tokens=1), None, None)
        with Bars(use_tqdm, len(jobs)) as bars:
            return [self._beams(job, params, bars) for job in jobs]

    def enqueue(
        self,
        prompts: PromptType | Sequence[PromptType],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        lora_request: None = None,
        priority: int | Sequence[int] | None = None,
        use_tqdm: UseTqdm = False,
        tokenization_kwargs: Mapping[str, Any] | None = None,
    ) -> list[str]:
        """Like generate, but returns the ids of the requests at once; wait_for_completion has the outputs."""
        _refuse(lora_request=lora_request, tokenization_kwargs=tokenization_kwargs)
        return self._later(self._raw_jobs(prompts, sampling_params, priority, None), use_tqdm, "prompts")

    def enqueue_chat(
        self,
        messages: Messages | Sequence[Messages],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: UseTqdm = False,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        mm_processor_kwargs: Mapping[str, Any] | None = None,
    ) -> list[str]:
        """Like chat, but returns the ids of the requests at once; wait_for_completion has the outputs."""
        options = ChatOptions(
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            template_kwargs=chat_template_kwargs or {},
            media_kwargs=mm_processor_kwargs or {},
            tools=tuple(tools or ()),
        )
        options = self._template.applied(options, chat_template, "auto")
        return self._later(self._chat_jobs(messages, options, sampling_params, None), use_tqdm, "conversations")

    def wait_for_completion(self) -> list[RequestOutput]:
        """Outputs of everything enqueued since the last call, in that order. Raises what the first bad prompt did."""
        waiting, self._queued = self._queued, []
        return [cast("RequestOutput", output) for future in waiting for output in future.result()]

    # ---- embeddings ------------------------------------------------------------------------------------------------

    def encode(
        self,
        prompts: PromptType | Sequence[PromptType],
        pooling_params: PoolingParams | Sequence[PoolingParams] | None = None,
        use_tqdm: UseTqdm = True,
        lora_request: None = None,
        pooling_task: Literal["embed", "token_embed"] = "token_embed",
    ) -> list[PoolingRequestOutput[PoolingOutput]]:
        """What pooling makes of each prompt, as tensors: one vector for each token, or with "embed" one in all.

        Needs runner="pooling". pooling_task counts where no pooling_params are given.
        """
        _refuse(lora_request=lora_request)
        jobs = self._raw_jobs(prompts, pooling_params or PoolingParams(task=pooling_task), None, None)
        return cast("list[PoolingRequestOutput[PoolingOutput]]", self._run(jobs, use_tqdm, "prompts"))

    def embed(
        self,
        prompts: PromptType | Sequence[PromptType],
        use_tqdm: UseTqdm = True,
        pooling_params: PoolingParams | Sequence[PoolingParams] | None = None,
        lora_request: None = None,
    ) -> list[EmbeddingRequestOutput]:
        """One embedding for each prompt, as a list of numbers."""
        found = self.encode(prompts, pooling_params, use_tqdm, lora_request, "embed")
        return [_with(output, EmbeddingOutput(_numbers(output.outputs.data))) for output in found]

    def score(self, data_1: Any, data_2: Any, use_tqdm: UseTqdm = True) -> list[ScoringRequestOutput]:
        """How alike texts or pictures are: the cosine of their embeddings.

        Each side is a string, {"content": parts} as in a chat message, or a list of those; one is compared with all
        of the other side, and lists of equal length pair by pair. Ids in the results are those of data_2's prompts.
        """
        sides = [_one_or_many(data, lambda value: isinstance(value, str | Mapping)) for data in (data_1, data_2)]
        if len(sides[0]) != len(sides[1]) and 1 not in map(len, sides):
            raise ValueError(f"data_1 and data_2 have {len(sides[0])} and {len(sides[1])} entries; give one or as many")
        params = PoolingParams(task="embed")
        jobs = [Job(self._id(), self._scored(item), params) for side in sides for item in side]
        found = cast("list[PoolingRequestOutput[PoolingOutput]]", self._run(jobs, use_tqdm, "prompts"))
        left, right = found[: len(sides[0])], found[len(sides[0]) :]
        count = max(len(left), len(right))
        pairs = zip(left * (count // len(left)), right * (count // len(right)), strict=True)
        return [_with(two, ScoringOutput(_cosine(one.outputs.data, two.outputs.data))) for one, two in pairs]

    # ---- around it -------------------------------------------------------------------------------------------------

    def get_tokenizer(self) -> OfflineTokenizer:
        return OfflineTokenizer(self.client)

    def get_default_sampling_params(self) -> SamplingParams:
        """What generate and chat use where they are given none: the model's own values, and 16 tokens."""
        return replace(self.client.default_sampling, max_tokens=DEFAULT_MAX_TOKENS)

    def reset_mm_cache(self) -> None:
        """Forget preprocessed media, those known by a uuid among them."""
        self.client.reset_mm_cache()

    def reset_prefix_cache(self) -> bool:
        """Forget the KV cache of earlier prompts. True: it can always be done."""
        self.client.reset_prefix_cache()
        return True

    def get_metrics(self) -> dict[str, int | float]:
        """Counters of the engine since it started, by name."""
        stats = self.client.stats()
        return {name: value for name, value in asdict(stats).items() if isinstance(value, int | float)}

    def close(self) -> None:
        """Stop the engine and free the device. Safe to call twice."""
        self._queue.shutdown(wait=False, cancel_futures=True)
        self._close()

    def sleep(self, level: int = 1, mode: str = "abort") -> None:
        """Give the device back until wake_up(); needs LLM(enable_sleep_mode=True). What is queued fails.

        Levels 1 and 2 are one: weights are read again, caches are empty. Raises UnsupportedError for other wishes.
        """
        check_sleep(level, mode, self.client.config)
        if not self.is_sleeping:
            self._close()

    def wake_up(self, tags: Sequence[str] | None = None) -> None:
        """Load again after sleep(); weights and caches come back together, whichever of them `tags` names."""
        check_tags(tags or ())
        if self.is_sleeping:
            self.client = self._load(self.client.config)
            self._close = weakref.finalize(self, _stop, self.client)

    @property
    def is_sleeping(self) -> bool:
        return not self.client.is_alive

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"LLM has no {name}" + (f": {_ABSENT[name]}" if name in _ABSENT else ""))

    # ---- parts -----------------------------------------------------------------------------------------------------

    @staticmethod
    def _load(config: EngineConfig) -> EngineClient:
        try:
            return EngineClient(config)
        except (SensoriumError, MemoryError, torch.OutOfMemoryError) as error:
            others = [repr(llm.client.model_name) for llm in _ALIVE if llm.client.is_alive]
            if others and getattr(error, "code", "") != "unsupported":
                hint = f"; {', '.join(others)} of this process still holds memory: close() or delete it first"
                error.args = (f"{error}{hint}",)
            raise

    def _id(self) -> str:
        return str(next(self._ids))

    def _raw_jobs(
        self, prompts: Any, params: Any, priority: Any, mm_processor_kwargs: Mapping[str, Any] | None
    ) -> list[Job]:
        items = _one_or_many(prompts, is_one_prompt)
        calls = [lambda item=item: self._prepare_raw(item, mm_processor_kwargs or {}) for item in items]
        return self._jobs(calls, params, priority)

    def _chat_jobs(self, messages: Any, options: ChatOptions, params: Any, priority: Any) -> list[Job]:
        items = _one_or_many(messages, lambda value: bool(value) and isinstance(value[0], Mapping))
        calls = [lambda item=item: self._prepare_chat(read_messages(item, self._loading), options) for item in items]
        return self._jobs(calls, params, priority)

    def _jobs(self, calls: Sequence[Callable[[], tuple[Prompt, str]]], params: Any, priority: Any) -> list[Job]:
        each = _per_prompt("sampling_params", params, len(calls), self.get_default_sampling_params())
        first = _per_prompt("priority", priority, len(calls), 0)
        return [Job(self._id(), call, own, rank) for call, own, rank in zip(calls, each, first, strict=True)]

    def _prepare_raw(self, item: PromptType, media_kwargs: Mapping[str, Any]) -> tuple[Prompt, str]:
        raw = read_prompt(item, media_kwargs, self._loading)
        return self.client.prepare_raw(raw.text, raw.media, raw.options), raw.options.namespace

    def _prepare_chat(self, messages: Sequence[Message], options: ChatOptions) -> tuple[Prompt, str]:
        return self.client.prepare_chat(messages, options), options.namespace

    def _scored(self, item: Any) -> Callable[[], tuple[Prompt, str]]:
        if isinstance(item, str):
            return lambda: self._prepare_raw(item, {})
        unknown = [name for name in item if name != "content"]
        if unknown or "content" not in item:
            raise ValueError('what is scored is a string or {"content": parts}')
        options = self._template.applied(ChatOptions(add_generation_prompt=False), None, "auto")
        parts = read_content(item["content"], "content", self._loading)
        return lambda: self._prepare_chat([Message("user", parts)], options)

    @property
    def _loading(self) -> Mapping[str, Mapping[str, Any]]:
        return self.client.config.media_io_kwargs

    def _run(self, jobs: Sequence[Job], use_tqdm: UseTqdm, what: str, by_default: bool = False) -> list[Output]:
        with Bars(use_tqdm, len(jobs), what) as bars:
            outputs = batch.run(self.client, jobs, bars)
        cut = [output for output in outputs if isinstance(output, RequestOutput)] if by_default else []
        if not self._told and any(answer.finish_reason == "length" for output in cut for answer in output.outputs):
            self._told = True
            log.warning(
                "answers end after %d tokens where no sampling_params are given; pass "
                "SamplingParams(max_tokens=...) for longer ones",
                DEFAULT_MAX_TOKENS,
            )
        return outputs

    def _beams(self, job: Job, params: BeamSearchParams, bars: Bars) -> BeamSearchOutput:
        prompt, namespace = job.prepare()
        bars.rendered()
        found = beam_search(self.client, prompt, params, namespace=namespace)
        bars.processed(len(prompt.ids), sum(len(beam.token_ids) for beam in found))
        sequences = [
            BeamSearchSequence([*prompt.ids, *one.token_ids], one.cum_logprob, one.text, one.score, one.finish_reason)
            for one in found
        ]
        return BeamSearchOutput(sequences)

    def _later(self, jobs: list[Job], use_tqdm: UseTqdm, what: str) -> list[str]:
        self._queued.append(self._queue.submit(self._run, jobs, use_tqdm, what))
        return [job.id for job in jobs]


_ABSENT = {
    "classify": "no model with a classification head is supported",
    "start_profile": "profile the process with torch.profiler",
    "stop_profile": "profile the process with torch.profiler",
    "collective_rpc": "there is one engine, without workers to call",
    "apply_model": "there is one engine, without workers to call",
}


def _stop(client: EngineClient) -> None:
    client.close()


def _one_or_many(value: Any, is_one: Callable[[Any], bool]) -> list[Any]:
    return [value] if is_one(value) else list(value)


def _per_prompt(name: str, value: Any, count: int, default: Any) -> list[Any]:
    """One for each prompt, from one for all, a list, or None."""
    if value is None or not isinstance(value, list | tuple):
        return [default if value is None else value] * count
    each = cast("Sequence[Any]", value)
    if len(each) != count:
        raise ValueError(f"{len(each)} {name} for {count} prompts; give one, or one each")
    return list(each)


def _refuse(**given: Any) -> None:
    for name, value in given.items():
        if value:
            raise UnsupportedError(f"{name}: not supported; leave it out", param=name)


def _with(output: PoolingRequestOutput[PoolingOutput], outputs: Any) -> PoolingRequestOutput[Any]:
    return replace(output, outputs=outputs)


def _numbers(vector: torch.Tensor) -> list[float]:
    return vector.tolist()  # pyright: ignore - torch's stubs say nothing of its items


def _cosine(one: torch.Tensor, two: torch.Tensor) -> float:
    return torch.nn.functional.cosine_similarity(one.flatten(), two.flatten(), dim=0).item()
