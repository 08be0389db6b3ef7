"""Names, shapes and types of a checkpoint's tensors, from the headers of its safetensors files. No weight is read."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from sensorium.errors import CheckpointError

INDEX, WHOLE = "model.safetensors.index.json", "model.safetensors"
_MAX_HEADER = 100 << 20
_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor of a file. dtype: as safetensors writes it, such as BF16."""

    shape: tuple[int, ...]
    dtype: str
    num_bytes: int

    @property
    def count(self) -> int:
        return prod(self.shape)


def stored_tensors(folder: Path) -> dict[str, Stored]:
    """Every tensor of a checkpoint folder. Raises CheckpointError with what to do."""
    found: dict[str, Stored] = {}
    for path in _files(folder):
        found |= _header(path)
    if not found:
        raise CheckpointError(f"the files of {folder} hold no tensors")
    return found


def _files(folder: Path) -> list[Path]:
    if (folder / INDEX).is_file():
        try:
            names = sorted(set(json.loads((folder / INDEX).read_text("utf-8"))["weight_map"].values()))
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise CheckpointError(f"{folder / INDEX} cannot be read: {error!r}") from error
        if absent := [name for name in names if not (folder / name).is_file()]:
            more = f" and {len(absent) - 3} more" if len(absent) > 3 else ""
            raise CheckpointError(
                f"{folder} lacks {', '.join(absent[:3])}{more}, named in {INDEX}; is the download complete?"
            )
        return [folder / name for name in names]
    files = [folder / WHOLE] if (folder / WHOLE).is_file() else sorted(folder.glob("*.safetensors"))
    if not files:
        pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt")) or any(folder.glob("*.pth"))
        reason = "its weights are pickled (.bin, .pt): convert them" if pickled else "download the weights too"
        raise CheckpointError(f"{folder} has no *.safetensors file; {reason}")
    return files


def _header(path: Path) -> dict[str, Stored]:
    """A file begins with the length of its header, 8 bytes little-endian, and the header as JSON."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(size - 8, _MAX_HEADER):
                raise ValueError(f"its header would be {length} bytes long")
            entries = json.loads(file.read(length))
        found = {name: _stored(entry) for name, entry in entries.items() if name != "__metadata__"}
        end = max((entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"), default=0)
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, struct.error) as error:
        raise CheckpointError(
            f"{path} is no safetensors file, or not a whole one ({error}); is the download complete?"
        ) from error
    if size < 8 + length + end:
        raise CheckpointError(f"{path} has {size} of {8 + length + end} bytes; is the download complete?")
    return found


def _stored(entry: dict[str, Any]) -> Stored:
    shape, dtype = tuple(int(side) for side in entry["shape"]), str(entry["dtype"])
    start, stop = entry["data_offsets"]
    if dtype in _BITS and stop - start != prod(shape) * _BITS[dtype] // 8:
        raise ValueError(f"{stop - start} bytes for a {dtype} tensor of shape {list(shape)}")
    return Stored(shape, dtype, stop - start)
