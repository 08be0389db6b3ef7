"""The reference ops against their definitions, over odd shapes."""

from __future__ import annotations

import pytest
import torch

from sensorium.kernels.reference import PackedPlan, PagedPlan, act_mul, norm


def test_norm_and_activation():
    x, weight = torch.randn(3, 7), torch.randn(7)
    expected = x / (x.pow(2).mean(-1, keepdim=True) + 1e-3).sqrt()
    torch.testing.assert_close(norm(x, None, 1e-3), expected)
    torch.testing.assert_close(norm(x, weight, 1e-3), expected * weight)
    gate, up = torch.randn(3, 5), torch.randn(3, 5)
    torch.testing.assert_close(act_mul(torch.cat((gate, up), -1)), gate * gate.sigmoid() * up)


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    """The last len(q) rows of a causal sequence, written out: q [n, H, D], k and v [L, K, D]."""
    n, length, group = len(q), len(k), q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = torch.einsum("nhd,lhd->hnl", q, k) * scale
    hidden = torch.arange(length) > torch.arange(length - n, length)[:, None]
    return torch.einsum("hnl,lhd->nhd", scores.masked_fill(hidden, -torch.inf).softmax(-1), v)


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize(
    ("counts", "lens"),
    [
        ([1], [1]),
        ([1], [8]),
        ([1, 1, 1], [3, 8, 9]),
        ([5], [5]),
        ([3], [10]),
        ([1, 4, 1, 2], [7, 4, 1, 12]),
    ],
)
def test_paged_attention(heads, counts, lens):
    torch.manual_seed(0)
    h, kh = heads
    block_size, dim = 4, 8
    full = [(torch.randn(n, kh, dim), torch.randn(n, kh, dim)) for n in lens]
    q = torch.randn(sum(counts), h, dim)
    blocks = torch.randperm(40).tolist()
    # Longer tables than needed are allowed: blocks are reserved ahead.
    tables = [[blocks.pop() for _ in range(n // block_size + 2)] for n in lens]
    kv = torch.randn(2, 40, block_size, kh, dim)
    for (k, v), table, n, count in zip(full, tables, lens, counts, strict=True):
        for at in range(n - count):
            kv[0, table[at // block_size], at % block_size] = k[at]
            kv[1, table[at // block_size], at % block_size] = v[at]
    new_k, new_v = (
        torch.cat([pair[i][n - c :] for pair, n, c in zip(full, lens, counts, strict=True)]) for i in (0, 1)
    )
    plan = PagedPlan(counts, lens, tables, block_size, q.device)
    out = plan.attend(q, new_k, new_v, kv, 0.3)
    for rows, (k, v), part in zip(q.split(counts), full, out.split(counts), strict=True):
        torch.testing.assert_close(part, attention(rows, k, v, 0.3))


def test_packed_attention_keeps_sequences_apart():
    q, k, v = torch.randn(6, 4, 8), torch.randn(6, 2, 8), torch.randn(6, 2, 8)
    out = PackedPlan(2).attend(q, k, v, None, 0.3)
    expected = [attention(q[i : i + 3], k[i : i + 3], v[i : i + 3], 0.3) for i in (0, 3)]
    torch.testing.assert_close(out, torch.cat(expected))
