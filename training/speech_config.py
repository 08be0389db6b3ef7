"""tts_config of the packaged checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from training.speech_codes import NUM_CODES
from training.speech_items import LONG


def tts_config(vocabulary: int, ids: Mapping[str, int]) -> dict[str, Any]:
    """As MiniCPM-o 4.5's, smaller. ids: of control tokens; those that mark text and sound are the released ones'."""
    return {
        "model_type": "minicpmtts",
        "llm_dim": 256,
        "hidden_size": 192,
        "intermediate_size": 448,
        "num_hidden_layers": 4,
        "num_attention_heads": 3,
        "num_key_value_heads": 3,
        "max_position_embeddings": LONG,
        "num_audio_tokens": NUM_CODES + 1,
        "num_text_tokens": vocabulary,
        "audio_bos_token_id": ids["<focus>"],
        "text_eos_token_id": ids["</perception>"],
        "num_vq": 1,
        "projector_type": "mlp",
        "condition_type": "hidden_text_merge",
        "normalize_projected_hidden": True,
        "interleaved": False,
        "attention_type": "full_attention",
        "recomputed_chunks": 1,
        "window_size": 2,
        "streaming_sliding_window_audio_window_size": 300,
        "audio_tokenizer_type": "s3tokenizer_step_audio",
        "audio_tokenizer_sample_rate": 16000,
        "top_p": 0.85,
        "top_k": 25,
        "repetition_penalty": 1.05,
        "temperature": 0.3,
        "s3_stream_chunk_size": 25,
        "s3_stream_prelook": 3,
        "s3_stream_n_timesteps": 10,
        "s3_stream_generate": False,
    }
