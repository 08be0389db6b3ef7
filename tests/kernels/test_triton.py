"""Triton kernels against the reference. They need a GPU."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch

from sensorium.errors import CheckpointError
from sensorium.kernels.cpu_plan import CpuPlan
from sensorium.kernels.reference import HeadNorms, Ops, PagedPlan
from sensorium.kernels.select import paged_attention
from sensorium.layers.linear import Linear

if torch.cuda.is_available():
    from sensorium.kernels.triton_decode import DecodePlan, Scratch
    from sensorium.kernels.triton_ops import head_product

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def test_the_cpu_takes_the_reference_and_says_why():
    choice = paged_attention(torch.device("cpu"), torch.float32)
    assert (choice.name, choice.implementation) == ("reference", CpuPlan)
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


class Rms(NamedTuple):
    weight: torch.Tensor
    eps: float = 1e-6


def make_linear(n_in, n_out):
    linear = Linear(n_in, n_out).to("cuda", torch.bfloat16)
    torch.nn.init.normal_(linear.weight, std=0.02)
    return linear


def close(ours, theirs):
    assert (ours.float() - theirs).norm() < 8e-3 * theirs.norm()


@needs_gpu
@pytest.mark.parametrize("rows", [1, 2, 7, 31, 32, 33, 100, 2100])
@pytest.mark.parametrize(("n_in", "n_out"), [(4096, 6144), (12288, 512), (896, 1000), (64, 322), (1536, 36), (100, 64)])
@torch.inference_mode()
def test_products_with_what_surrounds_them(rows, n_in, n_out):
    ops = paged_attention(torch.device("cuda"), torch.bfloat16).implementation.ops
    linear, gate_up = make_linear(n_in, n_out), make_linear(n_in, 2 * n_out)
    x, residual = (torch.randn(rows, width, device="cuda", dtype=torch.bfloat16) for width in (n_in, n_out))
    rms = Rms(1 + 0.1 * torch.randn(n_in, device="cuda", dtype=torch.bfloat16))
    ours = [
        ops.norm_linear(x, rms, linear),
        ops.norm_gated(x, rms, gate_up),
        ops.linear_add(x, linear, residual.clone()),
    ]
    linear, gate_up, x, residual = linear.float(), gate_up.float(), x.float(), residual.float()
    rms = Rms(rms.weight.float())
    close(ours[0], Ops.norm_linear(x, rms, linear))
    close(ours[1], Ops.norm_gated(x, rms, gate_up))
    close(ours[2], Ops.linear_add(x, linear, residual))


@needs_gpu
@pytest.mark.parametrize("rows", [1, 20, 40])
@torch.inference_mode()
def test_the_output_head_of_an_odd_vocabulary(rows):
    weight = torch.randn(1003, 256, device="cuda", dtype=torch.bfloat16)
    x = torch.randn(rows, 256, device="cuda", dtype=torch.bfloat16)
    held, forward = head_product(weight)
    assert torch.equal(held, weight)
    assert forward(x).shape == (rows, 1003)
    close(forward(x), x.float() @ weight.float().T)


@needs_gpu
@pytest.mark.parametrize("heads", [(32, 8, 128), (12, 2, 128), (4, 4, 64), (6, 1, 32)], ids=str)
@pytest.mark.parametrize("lens", [[1], [100], [4000], [1, 300, 17], [1 + 29 * i for i in range(64)]], ids=len)
@pytest.mark.parametrize("normed", [False, True])
@torch.inference_mode()
def test_decode_attention_from_the_projection_on(heads, lens, normed):
    device, block_size = torch.device("cuda"), 16
    h, kh, dim = heads
    sizes = [-(-n // block_size) for n in lens]
    order = torch.randperm(sum(sizes)).tolist()
    tables = [[order.pop() for _ in range(size)] for size in sizes]
    kv = torch.randn(2, sum(sizes), block_size, kh, dim, device=device, dtype=torch.bfloat16)
    qkv = torch.randn(len(lens), (h + 2 * kh) * dim, device=device, dtype=torch.bfloat16)
    angle = torch.randn(len(lens), 1, dim // 2, device=device)
    cos = torch.cat((angle.cos(), angle.cos()), -1).bfloat16()
    sin = torch.cat((-angle.sin(), angle.sin()), -1).bfloat16()
    weights = 1 + 0.1 * torch.randn(2, dim, device=device, dtype=torch.bfloat16)
    norms = HeadNorms(weights[0], weights[1], 1e-6) if normed else None
    exact = HeadNorms(weights[0].float(), weights[1].float(), 1e-6) if normed else None
    theirs_kv = kv.float()
    reference = PagedPlan([1] * len(lens), lens, tables, block_size, device)
    theirs = reference.attend_qkv(qkv.float(), (h, kh), exact, cos.float(), sin.float(), theirs_kv, dim**-0.5)
    width = max(sizes)
    flat = torch.tensor([[*table, *[0] * (width - len(table))] for table in tables], dtype=torch.int32, device=device)
    numbers = (torch.tensor(lens, dtype=torch.int32, device=device), flat.flatten())
    plan = DecodePlan(*numbers, torch.tensor([width], dtype=torch.int32, device=device), block_size, Scratch(device))
    for _ in range(2):  # the second time with scratch memory that has been used
        ours_kv = kv.clone()
        close(plan.attend_qkv(qkv, (h, kh), norms, cos, sin, ours_kv, dim**-0.5), theirs)
        close(ours_kv, theirs_kv)


@needs_gpu
@pytest.mark.parametrize("heads", [(32, 8, 128), (4, 4, 64)], ids=str)
@pytest.mark.parametrize("decodes", [0, 3, 40])
@torch.inference_mode()
def test_decodes_and_chunks_in_one_step_of_fixed_memory(heads, decodes):
    """A ChunkPlan with more room than rows, and more for decodes than there are."""
    device, block_size, room = torch.device("cuda"), 16, 64
    h, kh, dim = heads
    generator = torch.Generator(device).manual_seed(1)

    def random(*shape):
        return torch.randn(*shape, generator=generator, device=device, dtype=torch.bfloat16)

    counts = [1] * decodes + [100, 1, 70]
    lens = [5 + 31 * i for i in range(decodes)] + [100, 33, 200]
    sizes = [-(-n // block_size) for n in lens]
    order = torch.randperm(sum(sizes)).tolist()
    tables = [[order.pop() for _ in range(size)] for size in sizes]
    total, width = sum(counts), max(sizes)
    qkv, kv = random(total + 9, (h + 2 * kh) * dim), random(2, sum(sizes), block_size, kh, dim)
    angle = random(total + 9, 1, dim // 2).float()
    cos = torch.cat((angle.cos(), angle.cos()), -1).bfloat16()
    sin = torch.cat((-angle.sin(), angle.sin()), -1).bfloat16()
    norms = HeadNorms(1 + 0.1 * random(dim), 1 + 0.1 * random(dim), 1e-6)
    numbers = lambda values: torch.tensor(values, dtype=torch.int32, device=device)  # noqa: E731
    slots, tiles, first = [-1] * (total + 9), [], 0
    for i, (count, length) in enumerate(zip(counts, lens, strict=True)):
        if i >= decodes:
            at = range(length - count, length)
            slots[first : first + count] = [tables[i][n // block_size] * block_size + n % block_size for n in at]
            rows = range(0, count, 64)
            tiles += [[first + row, min(64, count - row), length - count + row, i] for row in rows]
        first += count
    padded = numbers([table + [0] * (width - len(table)) for table in tables])
    plans = paged_attention(device, torch.bfloat16, force="triton").implementation
    plan = plans.chunk_plan(numbers(slots), numbers([*tiles, [0, 0, 0, 0]]), padded, numbers([width]))
    padding = [0] * (room - decodes)
    plan.decodes = DecodePlan(numbers(lens[:decodes] + padding), padded, numbers([width]), block_size, Scratch(device))
    theirs_kv = kv.clone().float()
    ours = plan.attend_qkv(qkv, (h, kh), norms, cos, sin, kv, dim**-0.5)[:total]
    wide = [tensor[:total].float() for tensor in (qkv, cos, sin)]
    norms = HeadNorms(norms.q.float(), norms.k.float(), norms.eps)
    reference = PagedPlan(counts, lens, tables, block_size, device)
    theirs = reference.attend_qkv(wide[0], (h, kh), norms, wide[1], wide[2], theirs_kv, dim**-0.5)
    close(kv, theirs_kv)
    close(ours[decodes:], theirs[decodes:])
    if decodes:
        close(ours[:decodes], theirs[:decodes])
