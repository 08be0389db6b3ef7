"""The resampler's products in their other order, against the order of the checkpoint."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sensorium.models.parts.resampler import Resampler


def random_resampler(queries: int, width: int, vision_width: int) -> Resampler:
    torch.manual_seed(0)
    resampler = Resampler(queries, width, vision_width)
    for parameter in resampler.parameters():
        nn.init.normal_(parameter, std=0.3 if parameter.ndim == 1 else 1.0 / parameter.shape[-1] ** 0.5)
    nn.init.normal_(resampler.query)
    for norm in (resampler.ln_q, resampler.ln_kv, resampler.ln_post):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
    return resampler


@pytest.mark.parametrize("vision_width", [40, 256])
def test_products_in_another_order_give_the_same_rows(vision_width: int):
    resampler = random_resampler(5, 256, vision_width)
    sizes = torch.tensor([[3, 4], [1, 12], [2, 5]])
    x = torch.randn(3, 12, vision_width) + 3 * torch.randn(vision_width)
    torch.testing.assert_close(resampler.forward_folded(x, sizes), resampler(x, sizes), rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@torch.inference_mode()
def test_as_exact_on_a_gpu_in_16_bits():
    resampler = random_resampler(64, 1024, 288).cuda()
    sizes = torch.tensor([[32, 32], [20, 40], [1, 1030], [30, 30]], device="cuda")
    x = torch.randn(4, 1030, 288, device="cuda").bfloat16() + 4 * torch.randn(288, device="cuda").bfloat16()
    resampler.bfloat16()
    ours, without = resampler(x, sizes), resampler(x, sizes, torch.full((4,), -1, device="cuda"))
    exact = resampler.double()(x.double(), sizes)

    def error(rows: torch.Tensor) -> float:
        return float((rows.double() - exact).norm() / exact.norm())

    assert error(ours) < 1.5 * error(without) < 0.03
