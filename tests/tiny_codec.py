"""Complete codec folders of very small size with random weights, both layouts, ONNX graphs included."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from sensorium.bench.codec import write_folder
from sensorium.models.token2wav.hift import Kind

SPEAKER_WIDTH = 192


def write_codec(folder: Path, kind: Kind = "original") -> Path:
    """folder as `assets/token2wav` of a checkpoint: original is the layout of 1.0.5 and 1.0.6, causal that of 1.0.7."""
    tensors = write_folder(folder, kind)
    write_tokenizer(folder / "speech_tokenizer_v2_25hz.onnx", tensors)
    write_speaker(folder / "campplus.onnx")
    return folder


def write_tokenizer(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Weights under the names an export gives them: only some keep those of their modules, the rest is in the nodes."""
    import onnx
    from onnx import helper, numpy_helper

    nodes, values = [], []

    def node(kind: str, name: str, *arrays: torch.Tensor) -> None:
        inputs = [f"onnx::{kind}_{len(values) + i}" for i in range(len(arrays))]
        values.extend(
            numpy_helper.from_array(array.contiguous().numpy(), key) for array, key in zip(arrays, inputs, strict=True)
        )
        before = [] if kind in ("Add", "Mul") else [f"x{len(nodes) - 1}"]
        nodes.append(
            helper.make_node(kind, [*before, *inputs, *(["x"] if kind == "Add" else [])], [f"x{len(nodes)}"], name)
        )

    def linear(ours: str, theirs: str) -> None:
        node("MatMul", f"{theirs}/MatMul", tensors[f"{ours}.weight"].T)
        if (bias := tensors.get(f"{ours}.bias")) is not None:
            node("Add", f"{theirs}/Add", bias)

    for conv in ("conv1", "conv2"):
        node("Conv", f"/{conv}/Conv", tensors[f"encoder.{conv}.weight"], tensors[f"encoder.{conv}.bias"])
    i = 0
    while f"encoder.blocks.{i}.attn.query.weight" in tensors:
        ours, theirs = f"encoder.blocks.{i}", f"/blocks.{i}"
        for norm in ("attn_ln", "mlp_ln"):
            pair = [tensors[f"{ours}.{norm}.{part}"] for part in ("weight", "bias")]
            node("LayerNormalization", f"{theirs}/{norm}/LayerNormalization", *pair)
        for name in ("query", "key", "value", "out"):
            linear(f"{ours}.attn.{name}", f"{theirs}/attn/{name}")
        node("Mul", f"{theirs}/attn/Mul", torch.tensor(0.35))
        node("Conv", f"{theirs}/attn/fsmn_block/Conv", tensors[f"{ours}.attn.fsmn_block.weight"])
        linear(f"{ours}.mlp.0", f"{theirs}/mlp/mlp.0")
        linear(f"{ours}.mlp.2", f"{theirs}/mlp/mlp.2")
        i += 1
    linear("quantizer._codebook.project_down", "/quantizer/project_in")
    node("Mul", "/quantizer/Mul", torch.arange(8.0))
    onnx.save(helper.make_model(helper.make_graph(nodes, "tokenizer", [], [], values)), str(path))


def write_speaker(path: Path) -> None:
    """[1, T, 80] to [1, 192]: a linear layer over the mean magnitude of each band."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weight = np.random.default_rng(0).standard_normal((80, SPEAKER_WIDTH)).astype(np.float32)
    nodes = [
        helper.make_node("Abs", ["feature"], ["magnitude"]),
        helper.make_node("ReduceMean", ["magnitude"], ["mean"], axes=[1], keepdims=0),
        helper.make_node("MatMul", ["mean", "weight"], ["embedding"]),
    ]
    graph = helper.make_graph(
        nodes,
        "speaker",
        [helper.make_tensor_value_info("feature", TensorProto.FLOAT, [1, "T", 80])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, [1, SPEAKER_WIDTH])],
        [numpy_helper.from_array(weight, "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(path))
