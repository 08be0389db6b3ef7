"""The packed product against the plain one, over odd shapes."""

from __future__ import annotations

import pytest
import torch

from sensorium.kernels import onednn
from sensorium.layers.linear import Linear


@pytest.mark.parametrize("shape", [(4,), (5,), (16,), (33,), (3, 7), (2, 1, 9)])
@pytest.mark.parametrize(("n_in", "n_out"), [(1, 1), (3, 130), (64, 17), (255, 256)])
@pytest.mark.parametrize("bias", [False, True])
def test_packed_equals_plain(shape: tuple[int, ...], n_in: int, n_out: int, bias: bool) -> None:
    linear = Linear(n_in, n_out, bias=bias)
    if not onednn.supports(linear.weight):
        pytest.skip("this torch has no oneDNN products")
    torch.manual_seed(n_in)
    torch.nn.init.normal_(linear.weight)
    if linear.bias is not None:
        torch.nn.init.normal_(linear.bias)
    x = torch.randn(*shape, n_in)
    with torch.inference_mode():
        plain = linear(x)
        linear.pack()
        packed = linear(x)
        views = linear(x.transpose(0, -2)) if x.dim() > 2 else packed
    assert packed.shape == plain.shape
    torch.testing.assert_close(packed, plain, rtol=1e-5, atol=1e-4)
    if x.dim() > 2:
        torch.testing.assert_close(views, plain.transpose(0, -2), rtol=1e-5, atol=1e-4)
