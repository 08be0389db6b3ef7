"""From the sampling fields of a request to the engine's parameters."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import msgspec

from sensorium.envs import Environment
from sensorium.errors import RequestError
from sensorium.params import SamplingParams, StructuredOutputs
from sensorium.server.schema import FOREIGN, SamplingFields, StructuredFields

log = logging.getLogger(__name__)

_GUIDED = ("json", "regex", "choice", "grammar", "json_object", "whitespace_pattern")
_RULES = ("response_format", "structured_outputs", *(f"guided_{name}" for name in _GUIDED), "guided_decoding_backend")
_NAMES = [name for name in SamplingFields.__struct_fields__ if name not in _RULES and name not in FOREIGN]


def to_sampling(request: SamplingFields, defaults: SamplingParams, choice: int = 0, **more: Any) -> SamplingParams:
    """The model's defaults but for what is given. With a seed, each of the n choices has its own.

    more: fields of SamplingParams that stand whatever the request says.
    """
    given = {name: value for name in _NAMES if (value := getattr(request, name)) is not None}
    if "max_completion_tokens" in given:
        given["max_tokens"] = given.pop("max_completion_tokens")
    if (limit := defaults.max_tokens) is not None:
        given["max_tokens"] = min(given.get("max_tokens", limit), limit)
    if given.get("seed", -1) != -1:
        given["seed"] = (given["seed"] + choice + (1 << 63)) % (1 << 64) - (1 << 63)
    if "stop_token_ids" in given:
        given["stop_token_ids"] = (*defaults.stop_token_ids, *given["stop_token_ids"])
    top = given.pop("top_logprobs", 0)
    given["logprobs"] = top if given.get("logprobs") else None
    rule = to_rule(request)
    if rule is not None:
        given["structured_outputs"] = rule
    return replace(defaults, **(given | more))


def check_logprobs(name: str, value: int | None, most: int) -> None:
    """Raises RequestError where a request asks for more per token than the server gives."""
    if value is None or most == -1 or 0 <= value <= most:
        return
    wanted = "the whole vocabulary" if value == -1 else str(value)
    raise RequestError(f"{name}: {wanted} is more than the {most} that --max-logprobs allows", param=name)


def check_counts(n: int | None, best_of: int | None, stop: str | list[str] | None, environment: Environment) -> None:
    """Raises RequestError where a request has more of something than the environment's variables allow."""
    most = environment.max_n_sequences
    for name, count in (("n", n), ("best_of", best_of)):
        if (count or 0) > most:
            reason = f"{name}: {count} is more than the {most} that SENSORIUM_MAX_N_SEQUENCES allows"
            raise RequestError(reason, param=name)
    if isinstance(stop, list) and len(stop) > environment.max_stop_strings:
        most = environment.max_stop_strings
        reason = f"stop: {len(stop)} texts are more than the {most} that SENSORIUM_MAX_STOP_STRINGS allows"
        raise RequestError(reason, param="stop")


def to_rule(request: SamplingFields) -> StructuredOutputs | None:
    """What the answer must be, from whichever of the three notations is used. Raises RequestError for two of them."""
    found: dict[str, StructuredOutputs] = {}
    if request.response_format is not None and (rule := _response_format(request)) is not None:
        found["response_format"] = rule
    if request.structured_outputs is not None:
        found["structured_outputs"] = _read(request.structured_outputs)
    guided = {name: value for name in _GUIDED if (value := getattr(request, f"guided_{name}")) is not None}
    if guided:
        log.warning("guided_%s is an older name; structured_outputs.%s is used", min(guided), min(guided))
        first = f"guided_{next(iter(guided))}"
        found[first] = _made(first, guided)
    if len(found) > 1:
        names = list(found)
        raise RequestError(f"{names[1]}: not together with {names[0]}", param=names[1])
    return next(iter(found.values()), None)


def _response_format(request: SamplingFields) -> StructuredOutputs | None:
    wanted = request.response_format
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return StructuredOutputs(json_object=True)
    if wanted.type == "json_schema":
        if wanted.json_schema is None:
            raise RequestError("response_format.json_schema: is required", param="response_format.json_schema")
        return _made("response_format", {"json": wanted.json_schema.schema})
    tag = {name: value for name, value in msgspec.to_builtins(wanted).items() if value is not None}
    return _made("response_format", {"structural_tag": tag})


def _read(given: StructuredFields) -> StructuredOutputs:
    values = {name: value for name, value in msgspec.structs.asdict(given).items() if value is not None}
    return _made("structured_outputs", values)


def _made(name: str, values: Mapping[str, Any]) -> StructuredOutputs:
    values = dict(values)
    if "choice" in values:
        values["choice"] = tuple(values["choice"])
    try:
        return StructuredOutputs(**values)
    except RequestError as error:
        if name != "structured_outputs":
            error.param = name
        raise
