"""The vocoder's activation on a GPU beside torch's operations."""

from __future__ import annotations

import pytest
import torch

from sensorium.kernels.snake import by_torch, snake


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("shape", [(1, 3, 1), (2, 5, 1024), (3, 64, 5341)])
@pytest.mark.parametrize("left", [0, 7, 50])
@pytest.mark.parametrize("with_bias", [False, True])
def test_one_kernel_does_what_torch_does_in_six(shape: tuple[int, int, int], left: int, with_bias: bool):
    x = torch.randn(shape, device="cuda") * 3
    alpha = torch.rand(shape[1], 1, device="cuda") * 4 + 0.01
    given = (x, alpha, 1 / alpha, left, torch.randn(shape[1], device="cuda") if with_bias else None)
    torch.testing.assert_close(snake(*given), by_torch(*given), rtol=1e-5, atol=1e-5)
