"""flow.yaml and config.yaml of a codec folder, read as data: their constructor tags are never executed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sensorium.errors import CheckpointError

RATE = 24_000
CODES_PER_S, FRAMES_PER_CODE = 25, 2
FRAMES_PER_S = CODES_PER_S * FRAMES_PER_CODE
HOP = RATE // FRAMES_PER_S
MELS = 80
LOOKAHEAD = 3
"""Codes that a chunk hears beyond the sound it makes."""

# What the code below is written for; a file that says otherwise is another model.
_FIXED = {
    "flow": {"output_size": MELS, "output_type": "mel"},
    "flow.encoder": {
        "input_layer": "linear",
        "pre_lookahead_len": LOOKAHEAD,
        "up_stride": 2,
        "up_scale_factor": 2,
        "pos_enc_layer_type": "rel_pos_espnet",
        "selfattention_layer_type": "rel_selfattn",
        "key_bias": True,
        "normalize_before": True,
    },
    "flow.decoder.estimator": {"in_channels": 4 * MELS, "out_channels": MELS},
}
_MEL = {
    "n_fft": 1920,
    "num_mels": MELS,
    "sampling_rate": RATE,
    "hop_size": HOP,
    "win_size": 1920,
    "fmin": 0,
    "fmax": 8000,
    "center": False,
}


@dataclass(frozen=True, slots=True)
class FlowConfig:
    """Sizes of the flow model. Source: flow.yaml of minicpmo-utils 1.0.5 to 1.0.7."""

    vocab: int
    speaker: int
    width: int
    encoder_heads: int
    encoder_ffn: int
    num_blocks: int
    num_up_blocks: int
    depth: int
    heads: int
    head_dim: int
    hidden: int
    mlp: int
    cfg_rate: float


def read_flow_config(path: Path) -> FlowConfig:
    """Raises CheckpointError naming the field that is missing, or says something this codec cannot do."""
    root = _read(path)
    for prefix, fixed in _FIXED.items():
        for key, value in fixed.items():
            if (found := _field(root, f"{prefix}.{key}", path)) != value:
                raise CheckpointError(f"{path.name}: {prefix}.{key} is {found!r}; only {value!r} is supported")
    encoder, estimator = "flow.encoder", "flow.decoder.estimator"
    hidden = _size(root, f"{estimator}.hidden_size", path)
    width = _size(root, f"{encoder}.output_size", path)
    for name in ("flow.input_size", f"{encoder}.input_size"):
        if _size(root, name, path) != width:
            raise CheckpointError(f"{path.name}: {name} must equal {encoder}.output_size, which is {width}")
    return FlowConfig(
        vocab=_size(root, "flow.vocab_size", path),
        speaker=_size(root, "flow.spk_embed_dim", path),
        width=width,
        encoder_heads=_size(root, f"{encoder}.attention_heads", path),
        encoder_ffn=_size(root, f"{encoder}.linear_units", path),
        num_blocks=_size(root, f"{encoder}.num_blocks", path),
        num_up_blocks=_size(root, f"{encoder}.num_up_blocks", path),
        depth=_size(root, f"{estimator}.depth", path),
        heads=_size(root, f"{estimator}.num_heads", path),
        head_dim=_size(root, f"{estimator}.head_dim", path),
        hidden=hidden,
        mlp=int(hidden * _number(root, f"{estimator}.mlp_ratio", path)),
        cfg_rate=_number(root, "flow.decoder.inference_cfg_rate", path),
    )


def check_causal_config(path: Path) -> None:
    """Of config.yaml only the mel settings matter here: the sizes of the vocoder are those of its tensors."""
    found = next((part for part in _mappings(_read(path)) if "num_mels" in part), None)
    if found is None:
        raise CheckpointError(f"{path.name} has no mel settings (num_mels, hop_size, ...)")
    for key, value in _MEL.items():
        if key not in found:
            raise CheckpointError(f"{path.name}: the mel setting {key} is missing")
        if found[key] != value:
            raise CheckpointError(f"{path.name}: the mel setting {key} is {found[key]!r}; only {value!r} is supported")


class _Loader(yaml.SafeLoader):
    """Tags such as !new:package.Class give the mapping, list or text below them."""


def _plain(loader: _Loader, _: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    return loader.construct_scalar(node) if isinstance(node, yaml.ScalarNode) else None


_Loader.add_multi_constructor("!", _plain)


def _read(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"the codec folder {path.parent} has no {path.name}")
    try:
        # A SafeLoader: it makes numbers, text, lists and mappings and nothing else.
        found = yaml.load(path.read_text("utf-8"), Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise CheckpointError(f"{path.name} is not valid YAML: {error}"[:500]) from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path.name} is not a mapping")
    return found


def _field(root: Mapping[str, Any], name: str, path: Path) -> Any:
    value: Any = root
    for key in name.split("."):
        if not isinstance(value, Mapping) or key not in value:
            raise CheckpointError(f"{path.name}: the field {name} is missing")
        value = value[key]
    return value


def _size(root: Mapping[str, Any], name: str, path: Path) -> int:
    value = _field(root, name, path)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CheckpointError(f"{path.name}: {name} must be a positive whole number, not {value!r}")
    return value


def _number(root: Mapping[str, Any], name: str, path: Path) -> float:
    value = _field(root, name, path)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 1e6:
        raise CheckpointError(f"{path.name}: {name} must be a number of at least 0, not {value!r}")
    return float(value)


def _mappings(value: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(value, Mapping):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from _mappings(part)
