"""Triton kernels against the reference. They need a GPU."""

from __future__ import annotations

import pytest
import torch

from sensorium.errors import CheckpointError
from sensorium.kernels.reference import PagedPlan
from sensorium.kernels.select import paged_attention

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def test_the_cpu_takes_the_reference_and_says_why():
    choice = paged_attention(torch.device("cpu"), torch.float32)
    assert (choice.name, choice.implementation) == ("reference", PagedPlan)
    assert choice.refused == (("triton", "it needs a CUDA device, not cpu"),)
    with pytest.raises(CheckpointError, match="reference: triton was asked for"):
        paged_attention(torch.device("cpu"), torch.float32, force="triton")


@needs_gpu
@pytest.mark.parametrize("heads", [(4, 4, 64), (32, 8, 128), (28, 4, 128), (32, 2, 80), (14, 2, 64)], ids=str)
@pytest.mark.parametrize(
    ("counts", "lens"),
    [
        ([1], [1]),
        ([1], [3000]),
        ([1] * 70, [1 + 37 * i for i in range(70)]),
        ([300], [300]),
        ([130], [1000]),
        ([1, 64, 1, 2, 500], [700, 64, 1, 12, 513]),
    ],
)
@pytest.mark.parametrize("block_size", [16, 32])
def test_paged_attention(heads, counts, lens, block_size):
    device = torch.device("cuda")
    h, kh, dim = heads
    generator = torch.Generator(device).manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, generator=generator, device=device, dtype=torch.bfloat16)

    sizes = [-(-n // block_size) for n in lens]
    order = torch.randperm(sum(sizes)).tolist()
    tables = [[order.pop() for _ in range(size)] for size in sizes]
    kv = random(2, sum(sizes), block_size, kh, dim)
    packed = random(sum(counts), h + 2 * kh, dim)
    q, k, v = packed.split((h, kh, kh), dim=1)
    plan = paged_attention(device, torch.bfloat16, force="triton").implementation
    ours_kv, theirs_kv = kv.clone(), kv.clone().float()
    ours = plan(counts, lens, tables, block_size, device).attend(q, k, v, ours_kv, dim**-0.5)
    reference = PagedPlan(counts, lens, tables, block_size, device)
    theirs = reference.attend(q.float(), k.float(), v.float(), theirs_kv, dim**-0.5)
    assert torch.equal(ours_kv.float(), theirs_kv)
    torch.testing.assert_close(ours.float(), theirs, rtol=2e-2, atol=1e-2)
