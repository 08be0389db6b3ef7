"""Embeddings that callers computed themselves, read from tensor files: safetensors, .npy, and torch's own format.

Sizes are checked against the bytes at hand before anything is allocated. Nothing is unpickled here; torch files are
read by torch with weights_only, in a media worker.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import math
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.lib import format as npy

from sensorium.config import MediaLimits
from sensorium.errors import MediaError, SensoriumError, TooLargeError
from sensorium.inline import Pieces, decode_base64, text_size
from sensorium.types import Embeds, MediaRef, Modality

_NPY, _ZIP = b"\x93NUMPY", b"PK\x03\x04"
_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "U8": "<u1"}
_MAX_HEADER, _MAX_TENSORS, _MAX_DIMS = 100_000, 16, 4


def payload(ref: MediaRef, limits: MediaLimits) -> bytes | Pieces | dict[str, Any]:
    """What ref.source says as bytes: base64 text is decoded, of a mapping every value; numbers stay as they are."""
    if isinstance(ref.source, Mapping):
        if len(ref.source) > _MAX_TENSORS:
            raise MediaError(f"embeddings of more than {_MAX_TENSORS} tensors", param=ref.part or None)
        return {
            str(name)[:64]: _bytes(value, ref, limits) if isinstance(value, str | bytes) else value
            for name, value in ref.source.items()
        }
    if not isinstance(ref.source, str | bytes):
        raise MediaError("embeddings must be base64 text, bytes, or a mapping of those", param=ref.part or None)
    return _bytes(ref.source, ref, limits)


def from_ref(ref: MediaRef, limits: MediaLimits) -> Embeds:
    """ref.source as `payload` returns it."""
    try:
        if isinstance(ref.source, Mapping):
            tensors = {name: _single(value, limits) for name, value in ref.source.items()}
        else:
            found = _read(ref.source, limits) if isinstance(ref.source, bytes) else {}
            # A file of one tensor needs no name: that is the embeddings.
            tensors = found if len(found) > 1 else {f"{ref.modality}_embeds": next(iter(found.values()))}
        return from_arrays(ref.modality, tensors, ref.part, ref.uuid, limits)
    except SensoriumError as error:
        error.param = error.param or ref.part or None
        raise
    except MemoryError:
        raise
    except Exception:  # what readers raise on damaged files
        raise MediaError("the embeddings are no readable tensor file", param=ref.part or None) from None


def from_arrays(
    modality: Modality,
    tensors: Mapping[str, np.ndarray],
    part: str = "",
    uuid: str | None = None,
    limits: MediaLimits | None = None,
) -> Embeds:
    """Embeddings at hand. Floats become float32 and must be finite, integers int64. The processor checks shapes."""
    most = (limits or MediaLimits()).max_embeds_bytes
    checked: dict[str, np.ndarray] = {}
    digest = hashlib.blake2b(digest_size=32, person=b"embeds")
    for name, array in sorted(tensors.items()):
        if array.dtype.kind not in "fiu" or array.ndim > _MAX_DIMS:
            raise MediaError(f"{name} must hold numbers in at most {_MAX_DIMS} dimensions", param=part or None)
        if array.size * 4 > most:
            raise TooLargeError(f"{name} has {array.size} numbers; at most {most // 4} are allowed", param=part or None)
        with np.errstate(over="ignore"):
            array = np.ascontiguousarray(array, dtype=np.float32 if array.dtype.kind == "f" else np.int64)
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise MediaError(f"{name} holds values that are not finite numbers", param=part or None)
        digest.update(repr((name, array.shape, array.dtype.str)).encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
        checked[name] = array
    return Embeds(modality, checked, digest.digest(), part, uuid)


def load_reader(ref: MediaRef) -> None:
    """Imports torch where the file needs it: that takes more address space than decoding is given."""
    values = ref.source.values() if isinstance(ref.source, Mapping) else [ref.source]
    if ref.form == "embeds" and any(isinstance(value, bytes) and value.startswith(_ZIP) for value in values):
        importlib.import_module("torch")


def _bytes(value: str | bytes, ref: MediaRef, limits: MediaLimits) -> bytes | Pieces:
    size = len(value) if isinstance(value, bytes) else text_size(value) // 4 * 3 - 2
    if size > limits.max_embeds_bytes:
        raise TooLargeError(f"embeddings of more than {limits.max_embeds_bytes} bytes", param=ref.part or None)
    if isinstance(value, bytes):
        return value
    try:
        return decode_base64(value)
    except ValueError:
        raise MediaError("the base64 text of the embeddings is not valid", param=ref.part or None) from None


def _single(value: Any, limits: MediaLimits) -> np.ndarray:
    if isinstance(value, bytes):
        found = _read(value, limits)
        if len(found) != 1:
            raise MediaError(f"a file of {len(found)} tensors where one is named")
        return next(iter(found.values()))
    return np.asarray(value)


def _read(data: bytes, limits: MediaLimits) -> dict[str, np.ndarray]:
    if data.startswith(_NPY):
        return {"": _read_npy(data)}
    if data.startswith(_ZIP):
        return _read_torch(data, limits)
    return _read_safetensors(data)


def _read_npy(data: bytes) -> np.ndarray:
    file = io.BytesIO(data)
    version = npy.read_magic(file)
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    shape, fortran, dtype = readers[version](file)
    if dtype.kind not in "fiu" or math.prod(shape) * dtype.itemsize != len(data) - file.tell():
        raise MediaError("the .npy file does not hold the numbers that its header says")
    return np.frombuffer(data, dtype=dtype, offset=file.tell()).reshape(shape, order="F" if fortran else "C")


def _read_safetensors(data: bytes) -> dict[str, np.ndarray]:
    """The format's header is JSON: name -> dtype, shape, and where the numbers stand behind it."""
    length = int.from_bytes(data[:8], "little")
    if not 2 <= length <= min(_MAX_HEADER, len(data) - 8):
        raise MediaError("the embeddings are no readable tensor file")
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    if not 1 <= len(header) <= _MAX_TENSORS:
        raise MediaError(f"a file of {len(header)} tensors; 1 to {_MAX_TENSORS} are allowed")
    body, end = memoryview(data)[8 + length :], 0
    tensors: dict[str, np.ndarray] = {}
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        start, stop = entry["data_offsets"]
        shape, kind = tuple(entry["shape"]), entry["dtype"]
        dtype = np.dtype(np.uint16 if kind == "BF16" else _DTYPES[kind])
        if start != end or min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != stop - start:
            raise MediaError(f"{str(name)[:64]} does not hold the numbers that the file's header says")
        numbers, end = np.frombuffer(body[start:stop], dtype=dtype).reshape(shape), stop
        tensors[str(name)[:64]] = (numbers.astype(np.uint32) << 16).view(np.float32) if kind == "BF16" else numbers
    if end != len(body):
        raise MediaError("the file has bytes behind its tensors")
    return tensors


def _read_torch(data: bytes, limits: MediaLimits) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
        if sum(entry.file_size for entry in entries) > limits.max_embeds_bytes:
            raise TooLargeError(f"embeddings of more than {limits.max_embeds_bytes} bytes")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise MediaError("a tensor file of torch is not compressed")
    torch = importlib.import_module("torch")
    loaded = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    tensors = loaded if isinstance(loaded, dict) else {"": loaded}
    found: dict[str, np.ndarray] = {}
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided:
            raise MediaError("a tensor file of torch must hold one dense tensor, or a dict of those")
        if tensor.numel() * 4 > limits.max_embeds_bytes:
            raise TooLargeError(f"a tensor of {tensor.numel()} numbers")
        tensor = tensor.detach()
        found[str(name)[:64]] = (tensor.float() if tensor.is_floating_point() else tensor.long()).numpy()
    if not 1 <= len(found) <= _MAX_TENSORS:
        raise MediaError(f"a file of {len(found)} tensors; 1 to {_MAX_TENSORS} are allowed")
    return found
