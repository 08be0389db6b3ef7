"""Copies by index in 16-byte elements give what copies in the tensors' own elements give."""

from __future__ import annotations

import pytest
import torch

from sensorium.kernels.wide import widened


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_rows_are_copied_as_they_are(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    state, new = torch.randn(2, 9, 32).to(dtype), torch.randn(2, 3, 48).to(dtype)[..., 16:]
    at, seen = torch.tensor([7, 0, 4]), torch.tensor([0, 4, 4, 8, 7])
    expected = state.index_copy(1, at, new).index_select(1, seen)
    wide, made = widened(state, new)
    assert wide.dtype == made.dtype == torch.complex128
    assert wide.shape[-1] == 32 * dtype.itemsize // 16
    wide.index_copy_(1, at, made)
    assert torch.equal(wide.index_select(1, seen).view(dtype), expected)


@pytest.mark.parametrize(
    "odd",
    [torch.zeros(2, 5), torch.zeros(2, 9)[:, 1:5], torch.zeros(2, 10)[:, :8], torch.zeros(8, 8).T],
    ids=["length", "offset", "step", "order"],
)
def test_both_stay_as_they_are_where_one_does_not_fit(odd: torch.Tensor) -> None:
    even = torch.zeros(2, 8)
    assert [x is y for x, y in zip(widened(even, odd), (even, odd), strict=True)] == [True, True]
