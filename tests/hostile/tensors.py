"""H: embeddings that a caller sends in place of media. MiniCPM takes 64 rows for a picture of 64 x 48."""

from __future__ import annotations

import base64
import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
from hostile.cases import COMPLETIONS, LISTED, OK, Case, Table
from safetensors.numpy import save
from server.bodies import chat, part
from server.live import user

ROWS, HIDDEN = 64, 256
SIZE = np.array([64, 48])
GOOD = np.random.default_rng(0).normal(size=(ROWS, HIDDEN)).astype(np.float32)
MARKER = "/tmp/sensorium-hostile-marker"
PLACE = "messages[0].content[0].image_embeds"


class Gadget:
    """Leaves a mark where it is unpickled."""

    def __reduce__(self) -> Any:
        return open, (MARKER, "w")


def npy(array: np.ndarray, **options: Any) -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array(out, array, **options)
    return out.getvalue()


def npy_head(header: str, version: tuple[int, int] = (1, 0), body: bytes = b"") -> bytes:
    size = struct.pack("<H" if version == (1, 0) else "<I", len(header))
    return b"\x93NUMPY" + bytes(version) + size + header.encode() + body


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def whole(rows: np.ndarray, **more: Any) -> str:
    return encoded(save({"image_embeds": rows, "image_sizes": SIZE, **more}))


def named(rows: bytes) -> dict[str, Any]:
    return {"image_embeds": encoded(rows), "image_sizes": SIZE.tolist()}


def given(value: object, status: int | tuple[int, ...] = 400, make: Callable[..., Any] = part, **more: Any) -> Case:
    return Case(
        make(type="image_embeds", image_embeds=value), status, PLACE if status != OK else None, server=LISTED, **more
    )


def lying_safetensors(**entry: Any) -> str:
    fields = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16], **entry}
    header = json.dumps({"image_embeds": fields}).encode()
    return encoded(struct.pack("<Q", len(header)) + header + bytes(16))


def torch_zip(content: bytes, method: int = zipfile.ZIP_STORED) -> str:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/version", "3\n")
    return encoded(out.getvalue())


def asking(**fields: Any) -> Callable[..., Any]:
    return lambda **content: chat(messages=user([content, "?"]), **fields)


def with_value(value: float) -> np.ndarray:
    rows = GOOD.copy()
    rows[3, 4] = value
    return rows


OBJECTS = np.array([Gadget()], dtype=object)
PAIRS: dict[str, dict[str, Any]] = {
    "log-probabilities": {"logprobs": True, "top_logprobs": 2},
    "log-probabilities of the prompt": {"prompt_logprobs": 1},
    "a stop string": {"stop": "e"},
    "a stop token": {"stop_token_ids": [5]},
    "two answers": {"n": 2},
    "a form": {"structured_outputs": {"choice": ["a", "b"]}},
    "a cache salt": {"cache_salt": "x"},
    "echo": {"echo": True, "add_generation_prompt": False},
    "a budget of tokens": {"truncate_prompt_tokens": 8},
}

CASES: Table = {
    "H-157 while that is off": Case(
        part(type="image_embeds", image_embeds=whole(GOOD)), 400, "messages[0].content[0]", "unsupported"
    ),
    "H-157 while that is on": given(whole(GOOD), OK),
    "H-158 a pickle": given(encoded(pickle.dumps(Gadget()))),
    "H-158 a torch file with a gadget": given(torch_zip(pickle.dumps(Gadget(), 2)), slow=True),
    "H-158 an array of objects": given(named(npy(OBJECTS, allow_pickle=True))),
    "H-159 a shape of 10^12": given(
        named(npy_head("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000, 1000000)}\n", body=bytes(12))),
        (400, 413),
    ),
    "H-160 a header of 1 MB": given(named(npy_head(" " * (1 << 20), (2, 0)))),
    "H-160 version 3": given(
        named(npy_head("{'descr': '<f4', 'fortran_order': False, 'shape': (1,)}\n", (3, 0), bytes(4)))
    ),
    "H-160 code": given(named(npy_head("__import__('os').system('id')\n"))),
    "H-160 fields": given(named(npy(np.zeros(3, [("a", "<f4"), ("b", "<i4")])))),
    "H-160 a negative shape": given(named(npy_head("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}\n"))),
    "H-160 a broken shape": given(named(npy_head("{'descr': '<f4', 'fortran_order': False, 'shape': (1.5,)}\n"))),
    "H-160 Fortran order": given(named(npy(np.asfortranarray(GOOD))), OK),
    "H-161 a compressed archive": given(torch_zip(bytes(1 << 20), zipfile.ZIP_DEFLATED), slow=True),
    "H-162 a wider row": given(whole(np.zeros((ROWS, HIDDEN + 1), np.float32))),
    "H-162 a narrower row": given(whole(np.zeros((ROWS, HIDDEN - 1), np.float32))),
    "H-162 no rows": given(whole(np.zeros((0, HIDDEN), np.float32))),
    "H-162 a row too few": given(whole(GOOD[1:])),
    "H-162 a row too many": given(whole(np.concatenate([GOOD, GOOD[:1]]))),
    "H-162 four dimensions": given(whole(GOOD[None, None])),
    "H-163 NaN": given(whole(with_value(float("nan")))),
    "H-163 infinite": given(whole(with_value(float("inf")))),
    "H-163 1e38": given(whole(with_value(1e38)), OK),
    "H-163 zeros": given(whole(np.zeros_like(GOOD)), OK),
    "H-164 float64": given(whole(GOOD.astype(np.float64)), OK),
    "H-164 float16": given(whole(GOOD.astype(np.float16)), OK),
    "H-164 int8": given(whole(np.ones((ROWS, HIDDEN), np.int8)), (OK, 400)),
    "H-164 bool": given(whole(np.ones((ROWS, HIDDEN), bool))),
    "H-164 complex": given(named(npy(GOOD.astype(np.complex64)))),
    "H-164 big-endian": given(named(npy(GOOD.astype(">f4"))), OK),
    "H-165 a byte less": given(encoded(save({"image_embeds": GOOD, "image_sizes": SIZE})[:-1])),
    "H-165 a byte more": given(encoded(save({"image_embeds": GOOD, "image_sizes": SIZE}) + b"x")),
    "H-165 offsets outside": given(lying_safetensors(data_offsets=[0, 10**12], shape=[10**6, 10**6])),
    "H-165 offsets backwards": given(lying_safetensors(data_offsets=[16, 0])),
    "H-166 longer than the context": given(
        encoded(save({"image_embeds": np.zeros((64 * 40, HIDDEN), np.float32), "image_sizes": np.array([4000, 4000])})),
        (400, 413),
    ),
    "H-167 nothing but embeddings": given(whole(GOOD), OK),
    **{
        f"H-168 with {name}": Case(
            asking(**fields)(type="image_embeds", image_embeds=whole(GOOD)), (OK, 400), server=LISTED
        )
        for name, fields in PAIRS.items()
    },
    "H-169 a negative size": given({"image_embeds": encoded(npy(GOOD)), "image_sizes": [-1, 48]}),
    "H-169 a size of 2^31": given({"image_embeds": encoded(npy(GOOD)), "image_sizes": [2**31, 2**31]}),
    "H-169 a grid of another model": given({"image_embeds": encoded(npy(GOOD)), "image_grid_thw": [1, 2, 2]}),
    "H-171 hidden states": Case(chat(return_hidden_states=True), 400, "return_hidden_states", server=LISTED),
    "H-171 the whole prompt's states": Case(chat(hidden_states={"layer": 10**9}), 400, "hidden_states", server=LISTED),
    "H-172 words of torch": given(lying_safetensors(requires_grad=True, device="cuda:0", shape=[2, 2])),
    "H-172 embeddings of a prompt": Case(
        {"prompt_embeds": whole(GOOD), "max_tokens": 1}, 400, "prompt_embeds", server=LISTED, path=COMPLETIONS
    ),
}
