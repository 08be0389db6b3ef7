"""LLM: the engine in your own process, with no server. Names follow vLLM where it has them."""

from __future__ import annotations

import difflib
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, cast

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sensorium.config import EngineConfig
from sensorium.engine.client import EngineClient, Stream
from sensorium.errors import EngineError, RequestError, SensoriumError
from sensorium.messages import read_media, read_messages
from sensorium.types import (
    ChatOptions,
    Failed,
    Finished,
    FinishReason,
    Media,
    MediaRef,
    Modality,
    Prompt,
    SamplingParams,
    TextDelta,
    Timings,
    TokenLogprob,
    Usage,
)

Messages = Sequence[Mapping[str, Any]]
RawPrompt = str | Sequence[int] | Mapping[str, Any]
MODALITIES: tuple[Modality, ...] = ("image", "audio", "video")
DEFAULT_MAX_TOKENS = 16
PROMPT_KEYS = ("prompt", "prompt_token_ids", "multi_modal_data", "mm_processor_kwargs")


@dataclass(frozen=True, slots=True)
class CompletionOutput:
    """One answer. cumulative_logprob is None unless log-probabilities were asked for."""

    index: int
    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprob] | None
    cumulative_logprob: float | None
    finish_reason: FinishReason
    stop_reason: int | str | None


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """A prompt with its answer. `prompt` is the rendered text where the processor keeps it."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool
    metrics: Timings
    usage: Usage


class LLM:
    """Loads a model and answers lists of prompts. Keywords are the fields of EngineConfig.

    >>> with LLM() as llm:
    ...     llm.chat([{"role": "user", "content": "Hello"}])[0].outputs[0].text
    """

    def __init__(self, model: str = "", **options: Any) -> None:
        known = [field.name for field in fields(EngineConfig)]
        for name in options:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else f"; the known ones are {', '.join(known)}"
                raise TypeError(f"LLM() got an unexpected keyword argument {name!r}{hint}")
        self.client = EngineClient(EngineConfig(model=str(model), **options))

    @classmethod
    def from_config(cls, config: EngineConfig) -> LLM:
        """The same from a configuration object."""
        return cls(**{field.name: getattr(config, field.name) for field in fields(config)})

    def generate(
        self,
        prompts: RawPrompt | Sequence[RawPrompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Continue prompts in the model's own notation, control tokens and media placeholders included.

        A prompt is a string, a list of token ids, or a dict with "prompt" or "prompt_token_ids", "multi_modal_data"
        ({"image": picture or list of them, "audio": (samples, rate), "video": frames}) and "mm_processor_kwargs".
        Outputs come in the order of the prompts, one each. Without sampling_params the model's defaults hold, and as
        in vLLM an answer ends after 16 tokens.
        """
        items = _one_or_many(prompts, _is_one_prompt)
        return self._run([lambda item=item: self._prepare_raw(item) for item in items], sampling_params, use_tqdm)

    def chat(
        self,
        messages: Messages | Sequence[Messages],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        mm_processor_kwargs: Mapping[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Answer one conversation, or a list of them, in the OpenAI form; see sensorium.messages for the parts.

        sampling_params as in generate.
        """
        options = ChatOptions(
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            template_kwargs=chat_template_kwargs or {},
            media_kwargs=mm_processor_kwargs or {},
            tools=tuple(tools or ()),
        )
        items = _one_or_many(messages, lambda value: bool(value) and isinstance(value[0], Mapping))
        calls = [lambda item=item: self.client.prepare_chat(read_messages(item), options) for item in items]
        return self._run(calls, sampling_params, use_tqdm)

    def close(self) -> None:
        """Stop the engine and free the device. Safe to call twice."""
        self.client.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- parts -----------------------------------------------------------------------------------------------------

    def _prepare_raw(self, item: RawPrompt) -> Prompt:
        if not isinstance(item, Mapping):
            return self.client.prepare_raw(item)
        if unknown := [key for key in item if key not in PROMPT_KEYS]:
            raise RequestError(f"a prompt has no {unknown[0]!r}; known: {', '.join(PROMPT_KEYS)}", param=unknown[0])
        text = item.get("prompt_token_ids", item.get("prompt"))
        if text is None:
            raise RequestError("a prompt needs 'prompt' or 'prompt_token_ids'", param="prompt")
        media = _media(item.get("multi_modal_data") or {})
        return self.client.prepare_raw(text, media, ChatOptions(media_kwargs=item.get("mm_processor_kwargs") or {}))

    def _run(
        self,
        calls: Sequence[Callable[[], Prompt]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None,
        use_tqdm: bool,
    ) -> list[RequestOutput]:
        """Prepare and submit while the engine generates, never more than its queue holds; collect in order."""
        params = _per_prompt(sampling_params, len(calls), self.client.default_sampling)
        flying: deque[tuple[Prompt, Stream]] = deque()
        outputs: list[RequestOutput] = []
        window = max(self.client.config.max_waiting, 1)
        with _bar(use_tqdm) as bar:
            task = bar.add_task("Answering", total=len(calls))
            try:
                for index, (call, sampling) in enumerate(zip(calls, params, strict=True)):
                    try:
                        prompt = call()
                        flying.append((prompt, self.client.submit(prompt, sampling)))
                    except SensoriumError as error:
                        if len(calls) > 1:
                            error.args = (f"prompt {index}: {error.message}",)
                        raise
                    if len(flying) == window:
                        outputs.append(_collect(*flying.popleft()))
                        bar.advance(task)
                while flying:
                    outputs.append(_collect(*flying.popleft()))
                    bar.advance(task)
            finally:
                for _, stream in flying:
                    stream.abort()
        return outputs


def _collect(prompt: Prompt, stream: Stream) -> RequestOutput:
    text: list[str] = []
    ids: list[int] = []
    logprobs: list[TokenLogprob] = []
    for event in stream:
        if isinstance(event, TextDelta):
            text.append(event.text)
            ids += event.token_ids
            logprobs += event.logprobs
        elif isinstance(event, Failed):
            raise EngineError(event.message, param=event.param)
        elif isinstance(event, Finished):
            return _output(prompt, event, "".join(text), ids, logprobs or None)
    raise AssertionError("a stream ended without its last event")


def _output(
    prompt: Prompt, end: Finished, text: str, ids: list[int], logprobs: list[TokenLogprob] | None
) -> RequestOutput:
    total = sum(item.logprob for item in logprobs) if logprobs else None
    answer = CompletionOutput(0, text, ids, logprobs, total, end.reason, end.stop_reason)
    return RequestOutput(
        request_id=end.request_id,
        prompt=prompt.text,
        prompt_token_ids=list(prompt.ids),
        outputs=[answer],
        finished=True,
        metrics=end.timings,
        usage=end.usage,
    )


def _one_or_many(value: Any, is_one: Callable[[Any], bool]) -> list[Any]:
    return [value] if is_one(value) else list(value)


def _is_one_prompt(value: Any) -> bool:
    return isinstance(value, str | Mapping) or (bool(value) and isinstance(value[0], int))


def _per_prompt(
    params: SamplingParams | Sequence[SamplingParams] | None, count: int, default: SamplingParams
) -> list[SamplingParams]:
    if params is None or isinstance(params, SamplingParams):
        return [params or replace(default, max_tokens=DEFAULT_MAX_TOKENS)] * count
    if len(params) != count:
        raise ValueError(f"{len(params)} sampling_params for {count} prompts; give one, or one each")
    return list(params)


def _media(data: Mapping[str, Any]) -> list[Media | MediaRef]:
    """multi_modal_data as media, images first, then audio, then video: a raw prompt's placeholders per modality."""
    for name in data:
        if name not in MODALITIES:
            raise RequestError(f"multi_modal_data has no {name!r}; use {', '.join(MODALITIES)}", param=name)
    found: list[Media | MediaRef] = []
    for modality in MODALITIES:
        if (value := data.get(modality)) is not None:
            items: Iterable[Any] = value if _is_many(modality, value) else [value]
            found += [read_media(modality, item, f"multi_modal_data.{modality}[{i}]") for i, item in enumerate(items)]
    return found


def _is_many(modality: Modality, value: Any) -> bool:
    """Whether a value is a list of media: a list of frames is one video, and a list of numbers one recording."""
    if not isinstance(value, list) or not value:
        return False
    first = cast("list[Any]", value)[0]
    if modality == "video":
        return isinstance(first, str | bytes | tuple | list) or getattr(first, "ndim", 0) == 4
    return not isinstance(first, int | float)


def _bar(shown: bool) -> Progress:
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
    return Progress(*columns, disable=not shown)
