"""LLaVA and the Qwen-VL families in 16 bits, and on a GPU where there is one, against the stored rows and logits."""

from __future__ import annotations

import pytest
import torch
from vl_golden import Family, encode, needs_golden

from sensorium.config import EngineConfig
from sensorium.engine.checkpoint import read_config
from sensorium.kernels.reference import PackedPlan
from sensorium.models import build, registry
from sensorium.types import ChatOptions, ModelInputs

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")),
]
KWARGS = {"llava": {}, "qwen2_vl": {"min_pixels": 3136}, "qwen2_5_vl": {"min_pixels": 3136}}


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert (ours.float().cpu() - theirs).norm() / theirs.norm() < 0.05


@needs_golden
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", KWARGS)
@torch.inference_mode()
def test_rows_and_logits(name: str, device: str):
    family = Family(name)
    hf_config = read_config(family.folder)
    processor = registry.load_processor(family.folder, hf_config)
    model = build.load_model(family.folder, hf_config, EngineConfig(), torch.device(device), torch.bfloat16)
    case = "image2"
    options = ChatOptions(media_kwargs=KWARGS[name])
    prompt = processor.raw(family.cases[case]["prompt"], family.media(case), options)
    rows = encode(model, prompt.media)
    close(torch.cat(rows), torch.from_numpy(family.tensor(case, "image_features")))
    x = model.embed(torch.tensor(prompt.ids, device=device))
    for span in prompt.spans:
        x[span.start : span.stop] = rows[span.media]
    positions = torch.arange(len(x)) if prompt.positions is None else torch.from_numpy(prompt.positions)
    logits = model.logits(model.forward(x, ModelInputs(positions.to(device), PackedPlan(1))))
    close(logits[family.cases[case]["logits_from"] :], torch.from_numpy(family.tensor(case, "logits")[0]))
