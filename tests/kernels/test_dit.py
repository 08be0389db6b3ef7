"""What lies between the products of a diffusion transformer's block, on a GPU beside torch's operations."""

from __future__ import annotations

import pytest
import torch

from sensorium.kernels.dit import DitOps, dit_ops

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3}


@pytest.fixture(params=list(TOLERANCE), ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert ours.shape == theirs.shape
    torch.testing.assert_close(ours, theirs, atol=TOLERANCE[ours.dtype], rtol=TOLERANCE[ours.dtype])


@torch.inference_mode()
@pytest.mark.parametrize(("frames", "heads", "dim"), [(50, 8, 64), (3, 2, 16), (7, 3, 24)])
def test_kernels_do_what_torch_does(dtype: torch.dtype, frames: int, heads: int, dim: int):
    torch.manual_seed(0)
    width, ops = heads * dim, dit_ops(torch.zeros(1, device="cuda"))
    assert ops is not DitOps

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device="cuda", dtype=dtype)

    x, y, gate, shift, scale = random(3, frames, 2, width), random(3, frames, 2, width), *random(3, width).unbind()
    close(ops.modulate(x, shift, scale), DitOps.modulate(x, shift, scale))
    for ours, theirs in zip(
        ops.add_modulate(x, y, gate, shift, scale), DitOps.add_modulate(x, y, gate, shift, scale), strict=True
    ):
        close(ours, theirs)
    norms = tuple(random(2, dim).unbind()), tuple(random(2, dim).unbind())
    qkv = random(3, frames, 2, 3 * width)
    for ours, theirs in zip(ops.split(qkv, heads, *norms), DitOps.split(qkv, heads, *norms), strict=True):
        close(ours, theirs)
    close(ops.norm_mish(x * 8, (gate, shift)), DitOps.norm_mish(x * 8, (gate, shift)))
    before = random(3, 2, 2, 2, width)
    for ends in (None, torch.tensor([frames, 0, 1], device="cuda")):
        for conv in range(2):
            after = torch.zeros(2, *before.shape, device="cuda", dtype=dtype)
            found = ops.taps(x, before[:, conv], ends, after[0][:, conv])
            assert torch.equal(found, DitOps.taps(x, before[:, conv], ends, after[1][:, conv]))
            assert torch.equal(*after)
