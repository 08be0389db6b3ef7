"""Messages between processes without pickle: a tree of plain values, and the bytes of its arrays behind it.

A frame is two lengths, a msgpack tree, and raw buffers. Arrays of tens of megabytes cross in tens of milliseconds: they
are written from and read into their own memory. Only dataclasses that the reader names are made, so a reader gets
values of known kinds from a process that it does not trust.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from socket import socket
from typing import Any

import msgspec
import numpy as np

from sensorium.inline import Pieces

_LENGTHS = struct.Struct("<II")
_INLINE = 4096
_MAX_TREE, _MAX_BUFFERS = 64 << 20, 4 << 30
_KINDS = "biuf"


def send(connection: socket, value: Any) -> None:
    """Write one frame. Values: None, bool, numbers, str, bytes, Pieces, lists, tuples, dicts, arrays and flat
    dataclasses."""
    buffers: list[memoryview | Pieces] = []
    tree = msgspec.msgpack.encode([_flat(value, buffers), [len(buffer) for buffer in buffers]])
    connection.sendall(_LENGTHS.pack(len(tree), len(buffers)) + tree)
    for buffer in buffers:
        for part in buffer.parts if isinstance(buffer, Pieces) else (buffer,):
            connection.sendall(part)


def receive(connection: socket, known: tuple[type, ...] = ()) -> tuple[Any, int]:
    """The next frame's value and the bytes of its buffers. EOFError where the other side has gone; ValueError for
    anything `send` does not write. Bytes and Pieces come back as bytes, arrays own their memory."""
    head, count = _LENGTHS.unpack(_exactly(connection, _LENGTHS.size))
    if head > _MAX_TREE:
        raise ValueError("a tree over the limit")
    try:
        tree, sizes = msgspec.msgpack.decode(_exactly(connection, head), type=tuple[Any, list[int]])
    except msgspec.MsgspecError as error:
        raise ValueError("not a frame") from error
    if len(sizes) != count or any(size < 0 for size in sizes) or sum(sizes) > _MAX_BUFFERS:
        raise ValueError("buffers over the limit")
    buffers = [_exactly(connection, size) for size in sizes]
    try:
        return _value(tree, buffers, {kind.__name__: kind for kind in known}), sum(sizes)
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError("not a frame") from error


def _exactly(connection: socket, size: int) -> memoryview:
    # Not a bytearray, which would be filled with zeros first.
    data = view = np.empty(size, dtype=np.uint8).data
    while len(view):
        got = connection.recv_into(view)
        if not got:
            raise EOFError
        view = view[got:]
    return data


def _flat(value: Any, buffers: list[memoryview | Pieces]) -> Any:
    if value is None or (isinstance(value, bool | str | int | float) and not isinstance(value, np.generic)):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, bytes | bytearray | memoryview):
        if len(value) <= _INLINE:
            return ["b", bytes(value)]
        buffers.append(memoryview(value).cast("B"))
        return ["B", len(buffers) - 1]
    if isinstance(value, Pieces):
        buffers.append(value)
        return ["B", len(buffers) - 1]
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in _KINDS:
            raise TypeError(f"an array of {value.dtype} cannot cross processes")
        buffers.append(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
        return ["a", value.dtype.str, list(value.shape), len(buffers) - 1]
    if isinstance(value, list | tuple):
        return ["l" if isinstance(value, list) else "t", [_flat(item, buffers) for item in value]]
    if isinstance(value, Mapping):
        return ["d", [[_flat(key, buffers), _flat(item, buffers)] for key, item in value.items()]]
    if is_dataclass(value) and not isinstance(value, type):
        inside = {field.name: _flat(getattr(value, field.name), buffers) for field in fields(value)}
        return ["o", type(value).__name__, inside]
    raise TypeError(f"a {type(value).__name__} cannot cross processes")


def _value(tree: Any, buffers: list[memoryview], known: Mapping[str, type]) -> Any:
    if not isinstance(tree, list):
        return tree
    kind, *rest = tree
    if kind == "b":
        return bytes(rest[0])
    if kind == "B":
        return bytes(buffers[rest[0]])
    if kind == "a":
        dtype, shape, index = np.dtype(rest[0]), tuple(rest[1]), rest[2]
        if dtype.kind not in _KINDS or any(side < 0 for side in shape):
            raise ValueError("not an array")
        if math.prod(shape) * dtype.itemsize != len(buffers[index]):
            raise ValueError("an array of another size than its bytes")
        return np.frombuffer(buffers[index], dtype=dtype).reshape(shape)
    if kind in ("l", "t"):
        items = [_value(item, buffers, known) for item in rest[0]]
        return items if kind == "l" else tuple(items)
    if kind == "d":
        return {_value(key, buffers, known): _value(item, buffers, known) for key, item in rest[0]}
    if kind == "o":
        return known[rest[0]](**{name: _value(item, buffers, known) for name, item in rest[1].items()})
    raise ValueError("not a tree")
