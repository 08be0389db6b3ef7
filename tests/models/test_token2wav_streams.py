"""Streams of the codec: batched equal alone, state belongs to its stream, memory is bounded and given back."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from sensorium.bench.codec import SMALL, random_parts, random_voice
from sensorium.errors import RequestError
from sensorium.models.token2wav import Token2Wav, Voice
from sensorium.models.token2wav.token2wav import LEAD
from sensorium.models.token2wav.trimming import trim_encoder, trim_estimator

KINDS = ("original", "causal")


@pytest.fixture(scope="module", params=KINDS)
def codec(request: pytest.FixtureRequest) -> Token2Wav:
    return Token2Wav(random_parts(SMALL, request.param, 2))


def voice(seconds: float, seed: int = 0) -> Voice:
    return Voice(random_voice(SMALL, seconds, seed))


def pieces(count: int, seed: int, size: int = 25) -> list[tuple[list[int], bool]]:
    """A stream of `count` whole pieces and a short last one, with the look-ahead given twice."""
    codes = np.random.default_rng(seed).integers(0, 6561, count * size + 3).tolist()
    whole = [(codes[i * size : (i + 1) * size + 3], False) for i in range(count)]
    return [*whole, (codes[count * size :], True)]


def speak(codec: Token2Wav, voice: Voice, parts: list[tuple[list[int], bool]]) -> list[np.ndarray]:
    stream = codec.open(voice)
    return [codec.stream([(stream, codes, last)])[0] for codes, last in parts]


def test_batched_streams_sound_as_alone(codec: Token2Wav):
    """Voices of different lengths, streams that begin at different times, pieces of different lengths."""
    short, long = voice(0.6), voice(1.4, seed=1)
    plans = [(short, pieces(4, 1)), (long, pieces(3, 2)), (short, pieces(2, 3)), (long, pieces(4, 4, size=10))]
    alone = [speak(codec, voice, parts) for voice, parts in plans]
    streams = [codec.open(voice) for voice, _ in plans]
    together: list[list[np.ndarray]] = [[] for _ in plans]
    for tick in range(6):
        # The third stream begins a tick late.
        due = [(i, tick - (i == 2)) for i in range(len(plans)) if 0 <= tick - (i == 2) < len(plans[i][1])]
        sounds = codec.stream([(streams[i], *plans[i][1][at]) for i, at in due])
        for (i, _), sound in zip(due, sounds, strict=True):
            together[i].append(sound)
    for ours, theirs in zip(together, alone, strict=True):
        assert [len(sound) for sound in ours] == [len(sound) for sound in theirs]
        np.testing.assert_allclose(np.concatenate(ours), np.concatenate(theirs), atol=2e-4)


def test_a_second_of_codes_is_a_second_of_sound(codec: Token2Wav):
    sounds = speak(codec, voice(0.6), pieces(2, 5))
    # 25 codes a piece, then the three of the look-ahead and what the vocoder held back.
    assert [len(sound) for sound in sounds] == [24_000, 24_000, 3 * 960 + LEAD]
    assert not sounds[0][:LEAD].any()
    assert sounds[1].any()
    assert len(speak(codec, voice(0.6), [(list(range(7)), True)])[0]) == 7 * 960


def test_a_stream_may_end_with_nothing_more_to_say(codec: Token2Wav):
    parts = pieces(2, 6)[:2]
    sounds = speak(codec, voice(0.6), [*parts, ([], True)])
    assert [len(sound) for sound in sounds] == [24_000, 24_000, LEAD]
    assert [len(sound) for sound in speak(codec, voice(0.6), [([], True)])] == [0]


def test_short_first_pieces_lose_no_sound(codec: Token2Wav):
    codes = np.random.default_rng(7).integers(0, 6561, 40).tolist()
    sounds = speak(
        codec, voice(0.6), [(codes[:4], False), (codes[1:9], False), (codes[6:34], False), (codes[31:], True)]
    )
    assert sum(map(len, sounds)) == LEAD + 40 * 960


def test_reset_begins_again(codec: Token2Wav):
    parts, stream = pieces(2, 8), codec.open(voice(0.6))
    first = [codec.stream([(stream, codes, last)])[0] for codes, last in parts]
    codec.reset(stream)
    again = [codec.stream([(stream, codes, last)])[0] for codes, last in parts]
    np.testing.assert_array_equal(np.concatenate(first), np.concatenate(again))


def test_refusals_move_no_stream(codec: Token2Wav):
    parts = pieces(1, 9)
    expected = speak(codec, voice(0.6), parts)
    stream, other = codec.open(voice(0.6)), codec.open(voice(0.6))
    for works, message in (
        ([(stream, parts[0][0], False), (other, [1, 2, 3, 4, 6561], False)], "between 0 and 6560"),
        ([(stream, parts[0][0], False), (other, [1, 2, 3], False)], "more than 3 codes"),
        ([(stream, parts[0][0], False), (stream, parts[0][0], False)], "only once"),
    ):
        with pytest.raises(RequestError, match=message):
            codec.stream(works)
    sounds = [codec.stream([(stream, codes, last)])[0] for codes, last in parts]
    np.testing.assert_array_equal(np.concatenate(sounds), np.concatenate(expected))
    with pytest.raises(RequestError, match="has ended"):
        codec.stream([(stream, [1, 2, 3, 4], False)])


def test_fixed_shapes_change_nothing():
    """As CUDA graphs need them: padded batches, tables and pieces, with whatever a stream before left in its rows."""
    rng = np.random.default_rng(0)

    def part(size: int, last: bool = False) -> tuple[list[int], bool]:
        return rng.integers(0, 6561, size).tolist(), last

    plans = [
        (voice(0.6), [part(28), part(28), part(28), part(10, last=True)]),
        (voice(1.4, seed=1), [part(9), part(5), part(28), part(25, last=True)]),
        (voice(0.6), [part(28), part(28), part(3, last=True)]),
        (voice(0.6), [part(7, last=True)]),
        (voice(0.6), [part(20), part(0, last=True)]),
        (voice(0.6), [part(28), part(28), part(28), part(27, last=True)]),
        (voice(0.6), [part(0, last=True)]),
    ]
    heard: list[list[np.ndarray]] = []
    for graphs in (False, True):
        codec = Token2Wav(random_parts(SMALL, "causal", 2, graphs=graphs))
        for turn in range(1 + graphs):
            streams = [codec.open(Voice(one.prompt)) for one, _ in plans]
            sounds: list[list[np.ndarray]] = [[] for _ in plans]
            for tick in range(4):
                due = [i for i, (_, parts) in enumerate(plans) if tick < len(parts)]
                if turn and tick == 1:
                    due = due[1:]  # the first one is late: the others are at other places than before
                works = [(streams[i], *plans[i][1][tick]) for i in due]
                for i, sound in zip(due, codec.stream(works), strict=True):
                    sounds[i].append(sound)
                if turn and tick == 1:
                    sounds[0] += codec.stream([(streams[0], *plans[0][1][tick])])
            heard.append([np.concatenate(parts) for parts in sounds])
            del streams
    for others in heard[1:]:
        for one, other in zip(heard[0], others, strict=True):
            np.testing.assert_allclose(one, other, atol=2e-4)


def test_pieces_of_one_kind():
    plain, fixed, faded = (
        Token2Wav(random_parts(SMALL, kind, 1, graphs=graphs))
        for kind, graphs in (("causal", False), ("causal", True), ("original", True))
    )
    assert fixed.kind(28, False) == fixed.kind(25, True) == fixed.kind(0, True) == fixed.kind(8, False)
    assert fixed.kind(26, True) != fixed.kind(25, True)
    assert plain.kind(28, False) != plain.kind(25, True)
    assert faded.kind(28, False) != faded.kind(25, True)
    # More streams than are computed at once.
    one, codes, fixed.batch = voice(0.6), list(range(5)), 2
    streams = [fixed.open(one) for _ in range(fixed.batch + 1)]
    sounds = fixed.stream([(stream, codes, True) for stream in streams])
    (alone,) = plain.stream([(plain.open(Voice(one.prompt)), codes, True)])
    for sound in sounds:
        np.testing.assert_allclose(sound, alone, atol=2e-4)


def test_voices_move_between_codecs_and_streams_do_not():
    slow, quick = (Token2Wav(random_parts(SMALL, "causal", n)) for n in (2, 1))
    one, part = voice(0.6), [(list(range(28)), False)]
    expected = speak(quick, Voice(one.prompt), part)
    stream = slow.open(one)
    np.testing.assert_array_equal(speak(quick, one, part)[0], expected[0])
    with pytest.raises(RequestError, match="another codec"):
        quick.stream([(stream, list(range(28)), False)])
    assert len(slow.stream([(stream, list(range(28)), False)])[0]) == 24_000


@pytest.mark.parametrize("graphs", [False, True])
def test_what_is_reserved_is_enough(graphs: bool):
    parts = random_parts(SMALL, "causal", 2, trimming="voice", graphs=graphs)
    codec, pools = Token2Wav(parts), [*parts.flow.state.pools, *parts.streaming.pools.all]
    codec.reserve(3, voices=1, voice_s=2.0)
    before = [pool.grown for pool in pools]
    one = voice(2.0)
    codec.record(one, 3)
    streams = [codec.open(one) for _ in range(3)]
    for _ in range(4):
        codec.stream([(stream, list(range(28)), False) for stream in streams])
    assert [pool.grown for pool in pools] == before


def test_a_voice_is_kept_once_and_state_is_given_back():
    codec = Token2Wav(random_parts(SMALL, "original", 2))
    speaker = voice(1.0)
    streams = [codec.open(speaker) for _ in range(3)]
    assert codec.flow.state.estimator.used == 50
    for _ in range(4):
        codec.stream([(stream, list(range(28)), False) for stream in streams])
    # Each owns the newest 50 frames, as many as the voice has, and the earliest 50.
    assert codec.flow.state.estimator.used == 50 + 3 * 100
    before = codec.flow.state.bytes_used
    codec.stream([(stream, list(range(28)), False) for stream in streams])
    assert codec.flow.state.bytes_used == before
    del streams
    gc.collect()
    assert codec.flow.state.estimator.used == 50
    del speaker
    gc.collect()
    assert codec.flow.state.bytes_used == 0


def test_the_whole_voice_may_stay_in_sight():
    codec = Token2Wav(random_parts(SMALL, "causal", 2, trimming="voice"))
    stream = codec.open(voice(3.0))
    for _ in range(6):
        codec.stream([(stream, list(range(28)), False)])
    assert len(stream.flow.estimator) == 150 + 100
    assert set(stream.voice.flow.rows.estimator) < set(stream.flow.estimator)
    assert len(stream.flow.owned.estimator) == 100


def test_trimming_rules():
    voice_rows, said = list(range(300)), list(range(300, 500))
    estimator = said + voice_rows
    assert trim_estimator(estimator, 300, "reference") == (said + voice_rows)[:300] + voice_rows[200:]
    assert trim_estimator(estimator, 300, "voice") == said[:100] + voice_rows
    assert trim_estimator(estimator[100:], 300, "reference") == estimator[100:]
    codes, frames = list(range(250)), list(range(500))
    kept = trim_encoder(codes, frames, 300, "reference")
    assert kept == (codes[:150] + codes[200:], frames[:300] + frames[400:])
    packed = trim_encoder(codes, frames, 300, "packed")
    assert packed == ((codes + codes)[:200], kept[1])
