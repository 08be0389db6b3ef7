"""Features of live sound: equal to the reference's however the sound arrives."""

from __future__ import annotations

import numpy as np
import pytest

from sensorium.models.minicpm_live_mel import DUPLEX_SHAPES, FIRST_SAMPLES, LiveMel, LiveSound
from tests.models.minicpm_golden import clip, needs_golden, read_tensors

RATE = 16_000


def seconds(samples: np.ndarray) -> list[np.ndarray]:
    return [samples[start : start + RATE] for start in range(0, len(samples), RATE)]


@needs_golden
def test_duplex_units_are_those_of_the_reference():
    golden, sound = read_tensors("audio/streaming.safetensors"), LiveSound()
    for number, piece in enumerate(seconds(clip("wave_7.3s", 0, 7 * RATE))):
        chunk = sound.take(piece)
        assert (chunk.before, chunk.after) == (2 * (number > 0), 2)
        np.testing.assert_allclose(chunk.mel, golden[f"duplex_{number:02d}_mel"], atol=2e-5)
    assert sound.num_waiting == 80


@needs_golden
@pytest.mark.parametrize("name", ["half", "long"])
def test_pieces_of_a_turn_are_those_of_the_reference(name):
    golden, live = read_tensors("audio/streaming.safetensors"), LiveMel()
    samples = clip("wave_7.3s", 0, 116800) if name == "half" else clip("wave_31.0s", 0, 496000)
    pieces = seconds(samples)
    pieces[0] = np.pad(pieces[0], (FIRST_SAMPLES - RATE, 0))
    for number, piece in enumerate(pieces):
        chunk = live.push(piece, last=number == len(pieces) - 1)
        assert chunk is not None
        if name == "half":
            np.testing.assert_allclose(chunk.mel, golden[f"half_{number:02d}_mel"], atol=2e-5)
        elif number == len(pieces) - 2:
            np.testing.assert_allclose(chunk.mel, golden["long_last_mel"], atol=2e-5)


def test_what_is_missing_is_known_before_anything_is_taken():
    sound = LiveSound()
    assert sound.missing(0) == 16480
    assert sound.missing(10) == 0  # silence makes up for the rest of the first unit
    sound.take(np.zeros(10, np.float32))
    assert sound.num_waiting == 80
    assert sound.missing(15_000) == 920
    sound.keep(np.zeros(15_000, np.float32))
    assert sound.missing(920) == 0
    assert sound.take(np.zeros(920, np.float32)).mel.shape == (80, 104)
    again = LiveSound()
    chunks = [again.take(np.zeros(samples, np.float32)) for samples in (RATE, RATE)]
    assert tuple((chunk.mel.shape[1], chunk.before, chunk.after) for chunk in chunks) == DUPLEX_SHAPES
    assert sound.num_waiting == 0


def test_sound_in_small_pieces_gives_the_same_chunks():
    samples = np.random.default_rng(0).normal(0, 0.1, 12 * RATE).astype(np.float32)
    whole, parts = LiveMel(2), LiveMel(2)
    one = [chunk.mel for piece in seconds(samples) if (chunk := whole.push(piece)) is not None]
    many = [chunk.mel for start in range(0, len(samples), 1000) if (chunk := parts.push(samples[start : start + 1000]))]
    assert len(one) == len(many) == 11
    # Below 5 s nothing depends on what else is held already.
    for first, second in zip(one[:4], many[:4], strict=True):
        np.testing.assert_allclose(first, second, atol=1e-6)
