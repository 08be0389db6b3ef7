"""Rotary frequencies against transformers, and the rotation itself against its definition."""

from __future__ import annotations

import pytest
import torch

from sensorium.kernels.reference import rope as rotate
from sensorium.layers.rope import Rope, RopeConfig, frequencies

LONG = {"short_factor": [1.0 + i / 8 for i in range(8)], "long_factor": [2.0 + i for i in range(8)]}
SCALINGS = [
    {"rope_type": "default"},
    {"rope_type": "linear", "factor": 4.0},
    {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024},
    {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 1024,
        "mscale": 1.0,
        "mscale_all_dim": 0.5,
    },
    {"rope_type": "longrope", "original_max_position_embeddings": 4096} | LONG,
    {"rope_type": "longrope", "original_max_position_embeddings": 1024} | LONG,
]


@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda scaling: scaling["rope_type"])
def test_frequencies_equal_transformers(scaling):
    transformers = pytest.importorskip("transformers")
    utils = pytest.importorskip("transformers.modeling_rope_utils")
    parameters = {"rope_theta": 10000.0} | scaling
    config = transformers.LlamaConfig(
        hidden_size=64, num_attention_heads=4, max_position_embeddings=4096, rope_parameters=parameters
    )
    ours, factor = frequencies(RopeConfig.from_hf({"max_position_embeddings": 4096, "rope_scaling": parameters}, 16))
    if scaling["rope_type"] == "default":
        theirs, their_factor = 10000.0 ** (-torch.arange(0, 16, 2) / 16), 1.0
    else:
        theirs, their_factor = utils.ROPE_INIT_FUNCTIONS[scaling["rope_type"]](config, "cpu", seq_len=4096)
    torch.testing.assert_close(ours, theirs)
    assert factor == pytest.approx(their_factor)


def test_old_and_new_spelling_mean_the_same():
    old = RopeConfig.from_hf({"rope_theta": 5e5, "rope_scaling": {"type": "su"} | LONG}, 16)
    new = RopeConfig.from_hf({"rope_parameters": {"rope_theta": 5e5, "rope_type": "longrope"} | LONG}, 16)
    assert torch.equal(frequencies(old)[0], frequencies(new)[0])


def turned(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """x [N, H, D] as D/2 complex numbers (i, i + D/2), each turned by its angle."""
    first, second = x.chunk(2, -1)
    z = torch.complex(first, second) * torch.polar(torch.ones_like(angles), angles)[:, None]
    return torch.cat((z.real, z.imag), -1)


def test_rotation_is_a_complex_product():
    x = torch.randn(5, 3, 16)
    rope = Rope(RopeConfig.from_hf({"rope_theta": 100.0}, 16))
    positions = torch.tensor([0, 1, 7, 900, 3])
    cos, sin = rope(positions, torch.float32)
    torch.testing.assert_close(rotate(x, cos, sin), turned(x, positions[:, None] * rope.inv_freq), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(rotate(x, cos, sin)[0], x[0])


@pytest.mark.parametrize(("interleaved", "axes"), [(False, [0, 0, 0, 0, 1, 1, 2, 2]), (True, [0, 1, 2, 0, 1, 2, 0, 0])])
def test_channels_follow_their_axis(interleaved, axes):
    scaling = {"rope_type": "default", "mrope_section": [4, 2, 2], "mrope_interleaved": interleaved}
    rope = Rope(RopeConfig.from_hf({"rope_theta": 100.0, "rope_scaling": scaling}, 16))
    positions = torch.tensor([[1, 2], [10, 20], [100, 200]])
    x = torch.randn(2, 3, 16)
    angles = torch.stack([positions[axis] * rope.inv_freq[channel] for channel, axis in enumerate(axes)], -1)
    torch.testing.assert_close(rotate(x, *rope(positions, x.dtype)), turned(x, angles), rtol=1e-4, atol=1e-4)
    # Text counts alike on all axes, and may come as one row.
    same = torch.tensor([3, 9])
    for ours, theirs in zip(rope(same, x.dtype), rope(same.expand(3, 2), x.dtype), strict=True):
        torch.testing.assert_close(ours, theirs)
