"""The module tree as torch modules, for code that walks named_modules()."""

from __future__ import annotations

from functools import cache
from math import prod

import torch
from torch import nn

from sensorium.inspect.headers import Stored
from sensorium.inspect.tree import Node

_DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32,
    "I64": torch.int64, "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip


def as_modules(root: Node) -> nn.Module:
    """Modules whose classes have the published names and whose parameters lie on the meta device."""
    made = _module(root)
    for name, child in root.children.items():
        head, model = child.children.get("lm_head"), child.children.get("model")
        if head is not None and head.is_shared and model is not None:
            embedding = made.get_submodule(f"{name}.model.embed_tokens")
            made.get_submodule(f"{name}.lm_head").register_parameter("weight", embedding.get_parameter("weight"))
    return made


def _module(node: Node) -> nn.Module:
    module = _class(node.type)()
    for name, stored in node.tensors.items():
        module.register_parameter(name, _parameter(stored))
    for name, child in node.children.items():
        module.add_module(name, _module(child))
    if "weight" not in node.tensors and (shape := node.weight_shape) is not None:
        module.weight = torch.empty(shape, device="meta")  # computed from others, as a parametrization's is
    return module


def _parameter(stored: Stored) -> nn.Parameter:
    data = torch.empty(stored.shape, dtype=_DTYPES.get(stored.dtype, torch.float32), device="meta")
    return nn.Parameter(data, requires_grad=False)


@cache
def _class(name: str) -> type[nn.Module]:
    """A class of that name. Made once, so that modules of a type share it."""
    return type(name, (_Outline,), {})


class _Outline(nn.Module):
    def forward(self, *_: object, **__: object) -> object:
        raise RuntimeError("this is the outline of a module: it has shapes and no weights")

    def extra_repr(self) -> str:
        own = [
            f"{name}={list(parameter.shape)}" for name, parameter in self._parameters.items() if parameter is not None
        ]
        size = sum(prod(parameter.shape) for parameter in self._parameters.values() if parameter is not None)
        return ", ".join(own) if size else ""
