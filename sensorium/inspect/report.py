"""What a checkpoint is made of, as JSON and as text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sensorium.inspect.tree import Node

_UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True, slots=True)
class Part:
    """A child of the whole model, or its assets. bytes: as stored. dtypes: as safetensors names them."""

    name: str
    type: str
    parameters: int
    bytes: int
    dtypes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """The structure of a checkpoint."""

    path: Path
    root: Node
    hf_config: Mapping[str, Any]

    @property
    def tree(self) -> dict[str, Any]:
        """Nested by module names; _type, _shape of the weight and _has_bias (where true) describe each."""
        return _as_dict(self.root)

    @property
    def parts(self) -> list[Part]:
        """Memory of each part: the children of the model, its own tensors, and the files under assets/."""
        found = [_part(name, child) for name, child in self.root.children.items()]
        if self.root.tensors:
            found.append(_part("(own)", Node(self.root.type, self.root.tensors)))
        if assets := sum(file.stat().st_size for file in (self.path / "assets").rglob("*") if file.is_file()):
            found.append(Part("assets", "files", 0, assets, ()))
        return [part for part in found if part.bytes]

    @property
    def kv_bytes_per_token(self) -> int | None:
        """Keys and values of one token in 16 bits, where config.json says the sizes."""
        nested = self.hf_config.get("text_config")
        config: Mapping[str, Any] = nested if isinstance(nested, Mapping) else self.hf_config
        heads = config.get("num_key_value_heads") or config.get("num_attention_heads")
        layers, width = config.get("num_hidden_layers"), config.get("hidden_size")
        if not heads or not layers or not width:
            return None
        head_dim = config.get("head_dim") or width // config["num_attention_heads"]
        return 2 * 2 * layers * heads * head_dim

    def json(self) -> dict[str, Any]:
        """All of it, for json.dump."""
        parts = self.parts
        return {
            "path": str(self.path),
            "type": self.root.type,
            "parameters": sum(part.parameters for part in parts),
            "bytes": sum(part.bytes for part in parts),
            "kv_bytes_per_token": self.kv_bytes_per_token,
            "parts": [asdict(part) for part in parts],
            "tree": self.tree,
        }

    def text(self, depth: int | None = None) -> str:
        """Memory by part, and the tree to `depth` levels; equal neighbours of a list are one line."""
        parts = self.parts
        rows = [(part.name, part.type, part.parameters, part.bytes, ", ".join(part.dtypes)) for part in parts]
        rows.append(("in all", "", sum(row[2] for row in rows), sum(row[3] for row in rows), ""))
        lines = [f"{self.root.type} in {self.path}", ""]
        lines.append(f"{'part':24}{'type':26}{'parameters':>12}{'bytes':>10}  stored as")
        for name, kind, count, size, dtypes in rows:
            lines.append(f"{name:24}{kind:26}{_short(count):>12}{_short(size) + 'B':>10}  {dtypes}".rstrip())
        if (per_token := self.kv_bytes_per_token) is not None:
            lines += ["", f"KV cache in 16 bits: {per_token} bytes a token"]
        return "\n".join([*lines, "", *_lines(self.root, depth, 0)])


def _part(name: str, node: Node) -> Part:
    stored = list(node.stored())
    dtypes = tuple(sorted({tensor.dtype for tensor in stored}))
    return Part(name, node.type, sum(one.count for one in stored), sum(one.num_bytes for one in stored), dtypes)


def _as_dict(node: Node) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, child in node.children.items():
        own: dict[str, Any] = {"_type": child.type}
        if (shape := child.weight_shape) is not None:
            own["_shape"] = list(shape)
        if "bias" in child.tensors:
            own["_has_bias"] = True
        found[name] = {**own, **_as_dict(child)}
    return found


def _lines(node: Node, depth: int | None, level: int) -> Iterator[str]:
    if not node.children:
        return
    if depth is not None and level >= depth:
        yield "  " * level + "..."
        return
    run: list[str] = []
    items = list(node.children.items())
    for place, (name, child) in enumerate(items):
        run.append(name)
        after = items[place + 1][1] if place + 1 < len(items) else None
        if after is not None and node.type == "ModuleList" and _alike(child, after):
            continue
        shown = run[0] if len(run) == 1 else f"{run[0]}-{run[-1]}"
        shape = child.weight_shape
        sides = f" {list(shape)}" if shape is not None else ""
        bias = " + bias" if "bias" in child.tensors else ""
        yield f"{'  ' * level}{shown}: {child.type}{sides}{bias}"
        yield from _lines(child, depth, level + 1)
        run = []


def _alike(one: Node, two: Node) -> bool:
    return one.type == two.type and _as_dict(one) == _as_dict(two)


def _short(value: int) -> str:
    unit, letter = next(((unit, letter) for unit, letter in _UNITS if value >= unit), (1, ""))
    return f"{value / unit:.2f} {letter}" if letter else f"{value} "
