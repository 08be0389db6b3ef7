"""A small speech LM with random weights."""

from __future__ import annotations

from typing import Any

import torch

from sensorium.engine.speech_rules import RuleName, SpeechSampling, SpeechWork
from sensorium.kernels.reference import PackedPlan
from sensorium.models import loader
from sensorium.models.minicpm_speech import SpeechLM
from sensorium.models.minicpm_speech_config import SpeechConfig
from sensorium.types import ModelInputs

GREEDY = SpeechSampling(greedy=True)
LLM_DIM = 24
SMALL: dict[str, Any] = {
    "llm_dim": LLM_DIM,
    "llm_intermediate_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "num_audio_tokens": 60,
    "num_text_tokens": 50,
    "audio_bos_token_id": 48,
    "text_eos_token_id": 49,
    "condition_type": "hidden_text_merge",
    "normalize_projected_hidden": True,
    "attention_type": "full_attention",
    "audio_tokenizer_type": "s3tokenizer",
}


def small_speech(**changes: Any) -> SpeechLM:
    """The same weights every time, large enough for distributions that are not flat."""
    model = loader.build(SpeechLM, SpeechConfig.from_hf(SMALL | changes), "cpu", torch.float32)
    loader.init_random_(model, seed=1, std=0.3)
    return model


def work(slot: int, ids: list[int], seed: int = 0, **options: Any) -> SpeechWork:
    """A call with hidden states of its own."""
    hidden = torch.randn(len(ids), LLM_DIM, generator=torch.Generator().manual_seed(seed)) if ids else None
    return SpeechWork(slot, ids, hidden, **options)


# Rule, sampling, and two calls of each session.
SESSIONS: list[tuple[RuleName, SpeechSampling, list[dict[str, Any]]]] = [
    ("chat", SpeechSampling(seed=1), [{"ids": [1, 2, 3], "max_new": 40}, {"ids": [4] * 30, "max_new": 60}]),
    ("half_duplex", SpeechSampling(seed=2, top_k=None), [{"ids": [5, 6], "last": False, "max_new": 20}, {"ids": [7]}]),
    ("duplex", SpeechSampling(seed=3, temperature=1.2), [{"ids": [8, 9], "last": False}, {"ids": [], "last": False}]),
    ("duplex", SpeechSampling(seed=3, repetition_penalty=1.5), [{"ids": [8, 9], "last": False}, {"ids": [1]}]),
    ("half_duplex", GREEDY, [{"ids": [11, 12, 13], "last": False, "max_new": 33}, {"ids": [14], "max_new": 9}]),
]


@torch.inference_mode()
def scores_after(speech: SpeechLM, rows: torch.Tensor, codes: list[int]) -> torch.Tensor:
    """What greedy duplex calls choose by: scores [len(codes), V] after rows [n, E] and after each code but the last.

    Computed in one pass, the end left out.
    """
    x = torch.cat((rows, speech.embed(torch.tensor(codes[:-1]))))
    hidden = speech(x, ModelInputs(torch.arange(len(x)), PackedPlan(1)))
    scores = speech.logits(hidden[len(rows) - 1 :]).double() / 0.8
    scores[:, speech.eos_code] = -torch.inf
    for step in range(1, len(codes)):
        recent = codes[max(0, step - 16) : step]
        for code in set(recent):
            scale = 1.05 ** recent.count(code)
            score = scores[step, code]
            scores[step, code] = score * scale if score < 0 else score / scale
    return scores
