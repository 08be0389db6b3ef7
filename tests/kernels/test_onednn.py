"""The packed product against the plain one, over odd shapes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from sensorium.kernels import onednn
from sensorium.layers.linear import Linear


@pytest.mark.parametrize("shape", [(4,), (5,), (16,), (33,), (3, 7), (2, 1, 9), (256,), (257,), (2, 411)])
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


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_number_of_shapes() -> None:
    linear = Linear(256, 256, bias=True)
    if not onednn.supports(linear.weight):
        pytest.skip("this torch has no oneDNN products")
    linear.weight.zero_()
    linear.pack()
    x = torch.zeros(600, 256)
    with torch.inference_mode():
        for rows in range(4, 300):
            linear(x[:rows])
        before = _resident_mb()
        for rows in range(300, 600):
            linear(x[:rows])
    # With a kernel for each number of rows: 100 MB and more.
    assert _resident_mb() - before < 10


def _resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6
