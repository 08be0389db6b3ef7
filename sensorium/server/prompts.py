"""Prompts in the forms of the OpenAI API: a text, several, token ids, several of those."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Literal

from msgspec import Meta

from sensorium.errors import ContextLengthError, RequestError
from sensorium.server.schema import TokenId
from sensorium.types import Prompt

if TYPE_CHECKING:
    from sensorium.engine.client import EngineClient

MAX_PROMPTS = 1024
PromptInput = str | Annotated[list[str | TokenId | list[TokenId]], Meta(min_length=1)]


def split_prompts(value: PromptInput, name: str) -> list[tuple[str, str | list[int]]]:
    """Each prompt with its place for errors, such as ("prompt[2]", "Hello")."""
    if isinstance(value, str):
        prompts: list[tuple[str, str | list[int]]] = [(name, value)]
    elif isinstance(value[0], int):
        prompts = [(name, _ids(value, name))]
    else:
        kind = type(value[0])
        prompts = []
        for index, item in enumerate(value):
            if not isinstance(item, kind) or isinstance(item, int):
                raise RequestError(f"{name}[{index}]: texts, token ids and lists of them do not mix", param=name)
            prompts.append((f"{name}[{index}]", item))
    if len(prompts) > MAX_PROMPTS:
        raise RequestError(f"{name}: {len(prompts)} prompts in one request; at most {MAX_PROMPTS}", param=name)
    for place, prompt in prompts:
        if not prompt:
            raise RequestError(f"{place}: the prompt is empty", param=place)
    return prompts


def _ids(value: Sequence[str | int | list[int]], name: str) -> list[int]:
    ids = [item for item in value if isinstance(item, int)]
    if len(ids) < len(value):
        raise RequestError(f"{name}: texts, token ids and lists of them do not mix", param=name)
    return ids


async def prepare_text(client: EngineClient, text: str | Sequence[int], *, special: bool = True) -> Prompt:
    """A prompt in the model's own notation. special: begin with the tokens that this model's prompts begin with."""
    if not text:
        return Prompt(())
    if isinstance(text, str) and not special:
        text = client.tokenizer.encode(text, allow_special=True)
    return await client.aprepare_raw(text)


async def prepare_all(
    client: EngineClient,
    prompts: Sequence[tuple[str, str | list[int]]],
    limit: int,
    *,
    special: bool = True,
    cut: Callable[[Prompt], Prompt] = lambda prompt: prompt,
) -> list[Prompt]:
    """Prepared one after the other, so that one request never fills the workers. Errors name the prompt's place.

    limit: the most tokens a prompt may have once it is cut.
    """
    prepared: list[Prompt] = []
    for place, text in prompts:
        try:
            prepared.append(cut(await prepare_text(client, text, special=special)))
        except RequestError as error:
            error.param = place if error.param in (None, "prompt") else error.param
            raise
        check_length(prepared[-1], limit, place)
    return prepared


def check_length(prompt: Prompt, limit: int, place: str) -> None:
    """Raises ContextLengthError above `limit` tokens."""
    if (count := len(prompt.ids)) > limit:
        raise ContextLengthError(f"{place}: {count} tokens; this model takes {limit} here", param=place)


def truncate(prompt: Prompt, count: int, side: Literal["left", "right"]) -> Prompt:
    """At most `count` tokens: cut off at the given side. Raises RequestError where that would cut media."""
    if len(prompt.ids) <= count:
        return prompt
    if prompt.spans:
        reason = f"truncate_prompt_tokens: the prompt has {len(prompt.ids)} tokens, and one with media is not cut"
        raise RequestError(reason, param="truncate_prompt_tokens")
    ids = prompt.ids[len(prompt.ids) - count :] if side == "left" else prompt.ids[:count]
    return replace(prompt, ids=ids, text=None)
