"""The module tree of a checkpoint, from the names of its tensors and the types that are known."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from sensorium.inspect.headers import Stored
from sensorium.inspect.published import Child, Table, tables

Names = Mapping[tuple[str, ...], Stored]
_BY_DIMENSIONS = {2: "Linear", 3: "Conv1d", 4: "Conv2d", 5: "Conv3d"}


@dataclass(slots=True)
class Node:
    """A module. tensors: its own parameters. is_shared: another module owns them."""

    type: str
    tensors: dict[str, Stored] = field(default_factory=dict[str, Stored])
    children: dict[str, Node] = field(default_factory=dict[str, "Node"])
    is_shared: bool = False

    @property
    def weight_shape(self) -> tuple[int, ...] | None:
        """Of `weight`, also where that is computed from others."""
        if "weight" in self.tensors:
            return self.tensors["weight"].shape
        whole = self.children.get("parametrizations")
        direction = whole and whole.children["weight"].tensors.get("original1")
        return direction.shape if direction else None

    def stored(self) -> Iterator[Stored]:
        """The tensors in it and below."""
        if not self.is_shared:
            yield from self.tensors.values()
        for child in self.children.values():
            yield from child.stored()


def build_tree(tensors: Mapping[str, Stored], hf_config: Mapping[str, Any]) -> Node:
    """The whole model."""
    root, table = tables(hf_config)
    node = _node(root, {tuple(name.split(".")): stored for name, stored in tensors.items()}, table)
    _tie(node, hf_config)
    return node


def _node(kind: str, names: Names, table: Table) -> Node:
    groups: dict[str, dict[tuple[str, ...], Stored]] = {}
    node = Node(kind)
    for path, stored in names.items():
        if len(path) == 1:
            node.tensors[path[0]] = stored
        else:
            groups.setdefault(path[0], {})[path[1:]] = stored
    if not kind:
        node.type = _inferred(node, groups)
    present = set(groups)
    for name, child in table.get(kind, {}).items():
        below = groups.pop(name, {})
        if child.many and below:
            node.children[name] = _node("ModuleList", below, {"ModuleList": _each(below, child)} | dict(table))
        elif below or (child.bare and (not child.beside or child.beside in present)):
            node.children[name] = _node(child.type, below, table)
        elif child.absent:
            node.children[name] = Node(child.absent)
    for name in sorted(groups, key=_natural):
        node.children[name] = _named(name, groups[name], table)
    return node


def _each(below: Names, child: Child) -> dict[str, Child]:
    return {name: Child(child.type) for name in sorted({path[0] for path in below}, key=_natural)}


def _named(name: str, below: Names, table: Table) -> Node:
    """A child that no table knows: of what its tensors look like, and its name."""
    node = _node("", below, table)
    if node.type == "Linear" and name.startswith(("embed", "emb_", "position_embedding", "wte")):
        node.type = "Embedding"
    return node


def _inferred(node: Node, groups: Mapping[str, object]) -> str:
    if groups and all(name.isdigit() for name in groups):
        return "ModuleList"
    if "qweight" in node.tensors:
        return "QuantizedLinear"
    weight = node.tensors.get("weight")
    if weight is None:
        return "Module"
    if len(weight.shape) == 1:
        return "LayerNorm" if "bias" in node.tensors else "RMSNorm"
    if weight.dtype == "U8":
        return "Linear4bit"
    return _BY_DIMENSIONS.get(len(weight.shape), "Module")


def _tie(root: Node, hf_config: Mapping[str, Any]) -> None:
    """A head whose weights are the embedding's is a module all the same."""
    llm = root.children.get("llm")
    model = llm and llm.children.get("model")
    if llm and model and hf_config.get("tie_word_embeddings") and "lm_head" not in llm.children:
        embedding = model.children.get("embed_tokens")
        if embedding:
            llm.children["lm_head"] = Node("Linear", dict(embedding.tensors), is_shared=True)


def _natural(name: str) -> tuple[int, int, str]:
    """Numbers by their value, before names."""
    return (0, int(name), "") if name.isdigit() else (1, 0, name)
