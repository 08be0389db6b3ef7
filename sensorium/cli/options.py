"""Flags made from the configuration dataclasses: one table of help texts, types and defaults read from the fields."""

from __future__ import annotations

import argparse
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any, TypeVar

from sensorium.cli.parser import integer, json_object, number
from sensorium.config import EngineConfig, MediaLimits, ServerConfig

Config = TypeVar("Config", EngineConfig, MediaLimits, ServerConfig)

# Field -> help, or (flag, help) where the flag is not the field's name with dashes.
HELP: dict[type, dict[str, str | tuple[str, str]]] = {
    EngineConfig: {
        "device": "cpu, cuda, cuda:N, or auto: CUDA where there is one",
        "dtype": "what weights and activations are held in; auto is the checkpoint's own, float32 on a CPU",
        "max_model_len": "longest prompt plus answer in tokens; by default the checkpoint's",
        "block_size": "tokens in one block of the KV cache",
        "kv_cache_bytes": "bytes for the KV cache, such as 2G; by default what the device has left",
        "gpu_memory_utilization": "share of the GPU's memory to use",
        "max_num_seqs": "sequences in one step",
        "max_num_batched_tokens": "tokens in one step",
        "max_encoder_rows": "media embeddings computed in one step",
        "encoder_cache_bytes": "bytes for the embeddings of media that were seen before; by default 65,536 of them",
        "max_waiting": "requests that may wait; one more is answered 429",
        "enable_prefix_caching": "reuse the KV blocks of equal prompt beginnings",
        "init_vision": "load the vision tower",
        "init_audio": "load the audio tower",
        "init_tts": "load the speech side; refused, this version does not speak yet",
        "trust_remote_code": "accepted for compatibility; code that comes with a checkpoint is never executed",
        "media_threads": "threads that fetch, decode and preprocess media; 0 is half the cores",
    },
    ServerConfig: {
        "host": "address to listen on; 0.0.0.0 is every interface",
        "port": "port to listen on; 0 picks a free one",
        "api_keys": ("--api-key", "keys that clients may present; none means no check"),
        "served_model_name": ("--served-model-name", "names that clients may use; by default the model as given"),
        "max_body_bytes": "largest request body",
        "allowed_origins": "web origins whose pages may call the API; * is every one",
        "allowed_hosts": "host names to answer to besides loopback ones",
        "insecure": "allow an address that other machines reach without any key",
        "drain_s": "seconds that running requests may go on after SIGTERM",
        "access_log": "one line per request",
        "log_format": "log lines as text or as JSON objects",
        "allow_unknown_fields": "warn about request fields that are not known instead of refusing the request",
        "trust_request_mm_kwargs": "let requests set media and processor options beyond the safe ones",
        "trust_request_chat_template": "let requests bring a chat template of their own",
        "chat_template": "a Jinja template instead of the checkpoint's",
        "chat_template_content_format": "what the template takes as content; auto looks at the template",
        "interleave_mm_strings": "keep media where they stand in the text; by default only if text and media alternate",
        "default_chat_template_kwargs": "JSON object of template variables that requests may override",
        "response_role": "role of the messages that are generated",
        "enable_auto_tool_choice": "let the model choose whether to call a tool; needs --tool-call-parser",
        "tool_call_parser": "how the model writes tool calls, such as hermes",
        "reasoning_parser": "how the model writes its reasoning, such as qwen3",
        "exclude_tools_when_tool_choice_none": "leave tools out of the prompt when tool_choice is none",
        "enable_force_include_usage": "usage with every answer and every chunk",
        "return_tokens_as_token_ids": "write tokens in log-probabilities as token_id:N",
        "sse_keep_alive_interval": "seconds of silence after which a stream gets a comment line; 0 is never",
        "max_logprobs": "most log-probabilities per token that requests may ask for; -1 is the whole vocabulary",
    },
    MediaLimits: {
        "max_bytes": ("--max-media-bytes", "largest file"),
        "max_pixels": ("--max-image-pixels", "largest picture, before it is decoded"),
        "max_audio_s": "longest recording in seconds",
        "max_video_s": "longest video in seconds",
        "max_video_frames": "frames sampled from one video",
        "max_items": ("--max-media-items", "media in one request"),
        "fetch_timeout_s": ("--media-fetch-timeout-s", "seconds that fetching one URL may take"),
        "connect_timeout_s": ("--media-connect-timeout-s", "seconds that connecting to its host may take"),
        "allowed_domains": (
            "--allowed-media-domains",
            "hosts to fetch media from; by default any public one",
        ),
        "allowed_local_path": ("--allowed-local-media-path", "folder below which file:// URLs may be read"),
        "allow_private_addresses": ("--allow-private-media-addresses", "fetch media from private addresses too"),
    },
}

# Type of a field -> how its flag is read, and what --help calls the value.
READERS: dict[Any, tuple[Any, str]] = {
    int: (integer, "N"),
    float: (number, "X"),
    Path: (Path, "PATH"),
    str: (str, "TEXT"),
    Mapping: (json_object, "JSON"),
}


def add_flags(parser: argparse.ArgumentParser, config: type[Config], title: str) -> None:
    group = parser.add_argument_group(title)
    hints = typing.get_type_hints(config)
    for field in fields(config):
        if field.name in HELP[config]:
            flag, text = _flag(config, field.name)
            group.add_argument(flag, dest=_dest(config, field.name), help=text, **_kind(field, hints[field.name]))


def build(config: type[Config], args: argparse.Namespace, **given: Any) -> Config:
    """The configuration that the parsed flags describe; `given` fills the fields that are no flags."""
    return config(**{name: getattr(args, _dest(config, name)) for name in HELP[config]}, **given)


def _flag(config: type, name: str) -> tuple[str, str]:
    entry = HELP[config][name]
    return ("--" + name.replace("_", "-"), entry) if isinstance(entry, str) else entry


def _dest(config: type, name: str) -> str:
    return f"{config.__name__}.{name}"


def _kind(field: Field[Any], hint: Any) -> dict[str, Any]:
    """What argparse needs to read one field."""
    kind: dict[str, Any] = {"default": None if field.default is MISSING else field.default}
    if field.default_factory is not MISSING:
        kind["default"] = field.default_factory()
    if isinstance(hint, types.UnionType):
        hint = next(option for option in typing.get_args(hint) if option is not type(None))
    if typing.get_origin(hint) is Mapping:
        hint = Mapping
    if hint is bool:
        return kind | {"action": argparse.BooleanOptionalAction}
    if typing.get_origin(hint) is typing.Literal:
        return kind | {"choices": typing.get_args(hint)}
    if typing.get_origin(hint) is tuple:
        return kind | {"action": _Tuple, "nargs": "+", "metavar": "TEXT"}
    reader, metavar = READERS[hint]
    return kind | {"type": reader, "metavar": metavar}


class _Tuple(argparse.Action):
    """Lists on the command line are tuples in the configuration."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option: str | None = None) -> None:
        setattr(namespace, self.dest, tuple(values))
