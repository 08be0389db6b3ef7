"""A very small checkpoint that speaks: the reference's, with a text table for its whole vocabulary, and a codec."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tiny_codec import write_codec


def speaking_checkpoint(source: Path, folder: Path, context: int | None = None) -> Path:
    """source: the tiny MiniCPM-o 4.5 of the full reference data. context: tokens it may see, if not its own number."""
    folder.mkdir(parents=True)
    for path in source.iterdir():
        if path.name not in ("config.json", "model.safetensors", "tensor_names.json"):
            (folder / path.name).symlink_to(path)
    config = json.loads((source / "config.json").read_text())
    config["tts_config"]["num_text_tokens"] = config["vocab_size"]
    if context is not None:
        config["max_position_embeddings"] = context
    (folder / "config.json").write_text(json.dumps(config))
    tensors = load_file(source / "model.safetensors")
    shape = (config["vocab_size"], config["tts_config"]["hidden_size"])
    tensors["tts.emb_text.weight"] = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    save_file(tensors, folder / "model.safetensors")
    write_codec(folder / "assets" / "token2wav")
    return folder
