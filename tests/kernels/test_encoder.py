"""What encoders are made of on a GPU, against plain attention and layer norms in float32."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sensorium.kernels.encoder import EncoderOps, Segments
from sensorium.kernels.select import encoder_ops
from sensorium.layers.attention import SelfAttention, key_padding
from sensorium.layers.block import EncoderBlock, run_blocks

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def reference(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lens: list[int], chunk: int) -> torch.Tensor:
    out = []
    for parts in zip(*(x.float().split(lens) for x in (q, k, v)), strict=True):
        index = torch.arange(len(parts[0]), device=q.device)
        ends = (index // chunk + 1) * chunk if chunk else torch.full_like(index, len(index))
        q1, k1, v1 = (x.transpose(0, 1) for x in parts)
        out.append(F.scaled_dot_product_attention(q1, k1, v1, attn_mask=index < ends[:, None]).transpose(0, 1))
    return torch.cat(out)


@needs_gpu
@pytest.mark.parametrize("dim", [8, 16, 24, 64, 72, 80, 96, 128])
@pytest.mark.parametrize(
    ("lens", "chunk"), [([1], 0), ([64, 64], 0), ([1024, 0, 37, 200], 0), ([500, 130, 1], 50), ([65], 7)]
)
def test_segments(dim: int, lens: list[int], chunk: int):
    device = torch.device("cuda")
    generator = torch.Generator(device).manual_seed(dim)
    q, k, v = torch.randn(
        sum(lens), 3, 3, dim, generator=generator, device=device, dtype=torch.bfloat16
    ).unbind(1)  # fmt: skip
    bounds = torch.tensor([0, *lens], device=device).cumsum(0).int()
    ops = encoder_ops(device, torch.bfloat16).implementation
    ours = ops.attend(q, k, v, Segments(bounds, max(lens), chunk))
    theirs = reference(q, k, v, lens, chunk)
    assert (ours.float() - theirs).abs().max() < 0.03
    assert (ours.float() - theirs).norm() / theirs.norm() < 0.006


@needs_gpu
@pytest.mark.parametrize("shape", [(1, 7, 1152), (3, 1500, 1024), (2, 5, 40)])
def test_add_norm(shape: tuple[int, ...]):
    norm = nn.LayerNorm(shape[-1], 1e-6).cuda().bfloat16()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x, y = torch.randn(2, *shape, device="cuda", dtype=torch.bfloat16)
    ops = encoder_ops(x.device, x.dtype).implementation
    assert ops is not EncoderOps
    for added in (None, y):
        theirs = EncoderOps.add_norm(x.clone(), added, norm)
        for ours, wanted in zip(ops.add_norm(x.clone(), added, norm), theirs, strict=True):
            torch.testing.assert_close(ours, wanted, rtol=0.01, atol=0.02)


def test_blocks_one_after_another_and_run_together_agree():
    torch.manual_seed(0)
    blocks = [EncoderBlock(24, 3, 40, eps=1e-5, gelu="none") for _ in range(3)]
    norm = nn.LayerNorm(24)
    for parameter in [p for module in (*blocks, norm) for p in module.parameters()]:
        nn.init.normal_(parameter, std=0.3)
    x = torch.randn(2, 6, 24)
    mask = key_padding(torch.tensor([6, 4]), x, chunk=4)
    whole = x.clone()
    for block in blocks:
        whole = block(whole, mask)
    torch.testing.assert_close(run_blocks(blocks, norm, x.clone(), mask), norm(whole))


def test_a_chunk_is_seen_to_its_end_and_padding_never():
    x = torch.randn(2, 6, 8)
    mask = key_padding(torch.tensor([6, 3]), x, chunk=4)
    assert isinstance(mask, torch.Tensor)
    assert mask[0, 0].sum(-1).tolist() == [4, 4, 4, 4, 6, 6]
    assert mask[1, 0].sum(-1).tolist() == [3] * 6
    assert key_padding(torch.tensor([6, 6]), x, padded=False, chunk=6) is None
    attention = SelfAttention(8, 2)
    for parameter in attention.parameters():
        nn.init.normal_(parameter)
    before = attention(x, mask)
    x[0, 4:] += 1.0
    torch.testing.assert_close(attention(x, mask)[0, :4], before[0, :4])


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_pixels_are_normalised_to_the_bits_of_a_cpu(dtype: torch.dtype):
    pixels = torch.arange(256, dtype=torch.uint8).repeat(2, 7, 3)[..., :588]
    ops = encoder_ops(torch.device("cuda"), dtype).implementation
    ours = ops.normalise_pixels(pixels.cuda(), dtype)
    assert ours.shape == (2, 7, 592)
    assert torch.equal(ours[..., :588].cpu(), EncoderOps.normalise_pixels(pixels, dtype))
    assert not ours[..., 588:].any()


@needs_gpu
@pytest.mark.parametrize("length", [1, 12, 1024, 1100])
def test_grid_weights(length: int):
    generator = torch.Generator("cuda").manual_seed(length)
    shapes = ((3, 10, length), (3, length), (10, 1100), (10, 1100))
    scores, factors, by_row, by_column = (torch.randn(shape, generator=generator, device="cuda") for shape in shapes)
    sizes = torch.tensor([[1, length], [max(length // 4, 1), min(length, 4)], [1, 1]], device="cuda")
    ops = encoder_ops(scores.device, torch.bfloat16).implementation
    ours = ops.grid_weights(scores * 5, factors, by_row, by_column, sizes, torch.bfloat16)
    theirs = EncoderOps.grid_weights(scores * 5, factors, by_row, by_column, sizes, torch.float32)
    torch.testing.assert_close(ours.float(), theirs, rtol=0.01, atol=1e-5)
