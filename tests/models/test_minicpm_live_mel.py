"""Features of live sound: equal to the reference's however the sound arrives."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from sensorium.models.minicpm_live_mel import DUPLEX_SHAPES, FIRST_SAMPLES, LiveMel, LiveSound
from sensorium.models.minicpm_mel import log_powers
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


def by_definition(samples: np.ndarray, first: int) -> np.ndarray:
    """[80, 104], frames of all the sound that the reference holds, of which the chunk is frames `first` to +104."""
    frames = log_powers(np.pad(samples.astype(np.float64), 200, mode="reflect"), len(samples) // 160)
    return ((np.maximum(frames, frames.max() - 8.0)[first : first + 104].T + 4.0) / 4.0).astype(np.float32)


def test_a_minute_of_sound_is_what_the_reference_makes_of_its_newest_20_to_30_seconds():
    # Quiet, but for a click at the edge of what is held from the first drop on, and one that only edges hear twice.
    samples = np.random.default_rng(0).normal(0, 1e-6, 60 * RATE + 480).astype(np.float32)
    samples[[10 * RATE + 30, 20 * RATE + 290]] = 0.5
    live, start, length = LiveMel(2), 0, 0
    for number in range(60):
        before, length = length, number * RATE + RATE + 480
        start += 10 * RATE * (length - start >= 30 * RATE)
        chunk = live.push(samples[before:length])
        assert chunk is not None
        if number >= 5 and number % 10 in (7, 8, 9, 0):
            expected = by_definition(samples[start:length], number * 100 - 2 - start // 160)
            np.testing.assert_allclose(chunk.mel, expected, atol=1e-6)


def test_a_piece_longer_than_what_is_held_is_one_chunk():
    live = LiveMel()
    chunks = [live.push(np.ones(31 * RATE, np.float32)), live.push(np.ones(RATE, np.float32), last=True)]
    assert [chunk.mel.shape for chunk in chunks if chunk is not None] == [(80, 3000), (80, 200)]


def test_sound_that_was_heard_takes_no_memory():
    """F-069: each thread that made units kept what a unit takes."""
    rng, sound = np.random.default_rng(0), LiveSound()
    piece = rng.normal(0, 0.1, RATE).astype(np.float32)
    sound.take(piece)
    tracemalloc.start()
    for _ in range(35):
        tracemalloc.reset_peak()
        sound.take(piece)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 500_000
    assert peak < 2_500_000
