"""The MiniCPM family on a GPU in 16 bits against the CPU in 32."""

from __future__ import annotations

import pytest
import torch
from tiny_minicpm import random_image, random_sound, tiny_model

from sensorium.kernels.select import paged_attention
from sensorium.models import loader
from sensorium.models.minicpmo import Model
from sensorium.types import ModelInputs

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert (ours.float().cpu() - theirs).norm() / theirs.norm() < 0.03


@torch.inference_mode()
def test_towers_and_decoder():
    device = torch.device("cuda")
    # Heads of 32: the GPU's attention takes no smaller ones than 16.
    cpu = tiny_model(head_dim=32)
    gpu = loader.build(Model, cpu.config, device, torch.bfloat16)
    gpu.load_state_dict(cpu.state_dict())
    images = [
        random_image([(3, 5)]),
        random_image([(2, 80), (7, 4), (4, 4)]),
        random_image([(2, 3)] * 4, [[0, 3], [5, 6]]),
    ]
    sounds = [random_sound([33], 3), random_sound([3000, 130], 306)]
    for modality, items in (("image", images), ("audio", sounds)):
        close(torch.cat(gpu.encode(modality, items)), torch.cat(cpu.encode(modality, items)))
    ids = torch.arange(50)
    kinds = {}
    for model, where in ((cpu, torch.device("cpu")), (gpu, device)):
        plan_class = paged_attention(where, model.decoder.norm.weight.dtype).implementation
        kv = [torch.zeros(2, 5, 16, 2, 32, device=where, dtype=model.decoder.norm.weight.dtype) for _ in range(2)]
        logits = []
        for start, count in ((0, 20), (20, 17), (37, 1), (38, 1), (39, 11)):
            at = torch.arange(start, start + count, device=where)
            plan = plan_class([count], [start + count], [[4, 2, 3, 1]], 16, where)
            logits.append(model.logits(model(model.embed(ids.to(where)[at]), ModelInputs(at, plan, kv))))
        kinds[where.type] = torch.cat(logits)
    close(kinds["cuda"], kinds["cpu"])
