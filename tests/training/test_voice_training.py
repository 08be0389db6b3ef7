"""What the packaged model's voice learns from: items, orders, and the engine's codec with live parameters."""

from __future__ import annotations

import re
from random import Random

import numpy as np
import pytest
import torch

from sensorium.models.token2wav.flow import Flow
from sensorium.models.token2wav.hift_original import OriginalVocoder
from sensorium.models.token2wav.weights import Weights
from training.speech_codes import DIGITS, LEVELS, CodeBook
from training.speech_items import (
    BEGIN,
    BLOCK,
    CODE,
    CODE_SAMPLES,
    END_CODE,
    IGNORE,
    MIN_CHAT,
    QUIET,
    TEXT_END,
    Item,
    Order,
    chat_order,
    duplex_order,
    turn_order,
)
from training.speech_live import (
    FLOW,
    LiveEstimator,
    LivePast,
    Seen,
    encode,
    flow_start,
    speaker_row,
    vocoder_start,
)
from training.speech_package import _weight_normed
from training.speech_tape import find_pitch
from training.speech_texts import text

CPU = torch.device("cpu")


def item(ids: int, codes: int) -> Item:
    starts = [round(1 + i * (codes - 3) / ids) for i in range(ids)]
    return Item("", list(range(ids)), starts, np.zeros(codes * CODE_SAMPLES, np.int16))


def codes_of(order: Order) -> list[int]:
    return [value - CODE for value in order.fed if value >= CODE]


@pytest.mark.parametrize("seed", range(20))
def test_every_order_says_all_codes_once_and_each_pick_is_what_is_fed_next(seed: int) -> None:
    random = Random(seed)
    one = item(random.randint(1, 40), random.randint(5, 200))
    for order in (chat_order(one), turn_order(one), duplex_order(one, random)):
        assert codes_of(order) == list(range(one.num_codes))
        # Full duplex is told the end of the turn behind the text, as one more of its tokens.
        told = len(one.ids) + (BEGIN in order.fed and TEXT_END not in order.fed)
        assert [value for value in order.fed if 0 < value < TEXT_END] == list(range(1, told + 1))
        for picked, after in zip(order.picked, [*order.fed[1:], None], strict=True):
            if picked not in (IGNORE, END_CODE):
                assert picked == after


def test_chat_marks_the_end_of_the_text_and_is_silent_until_it_may_end() -> None:
    order = chat_order(item(3, 20))
    assert order.fed[:5] == [1, 2, 3, TEXT_END, BEGIN]
    assert order.fed[25:] == [QUIET] * (MIN_CHAT - 20)
    assert order.picked[-1] == END_CODE


def test_turns_end_each_group_and_begin_in_the_middle_where_they_were_cut() -> None:
    one = item(25, 100)
    order = turn_order(one)
    assert order.picked.count(END_CODE) == 3
    assert order.fed.count(TEXT_END) == 1
    assert codes_of(turn_order(one, first=2)) == list(range(one.starts[20], 100))


@pytest.mark.parametrize("seed", range(20))
def test_duplex_units_have_25_codes_and_no_end_of_text(seed: int) -> None:
    order = duplex_order(item(20, 130), Random(seed))
    assert TEXT_END not in order.fed
    marks = [at for at, value in enumerate(order.fed) if value == BEGIN]
    lengths = [sum(v >= QUIET for v in order.fed[a:b]) for a, b in zip(marks, [*marks[1:], None], strict=True)]
    assert lengths[:-1] == [BLOCK] * (len(lengths) - 1)
    assert lengths[-1] <= BLOCK


def test_texts_are_plain_sentences() -> None:
    random = Random(3)
    texts = [text(random) for _ in range(2000)]
    assert not [t for t in texts if "{" in t or "  " in t or not t.isascii()]
    assert not [t for t in texts if re.search(r"\ba [aeiou]", t.lower()) and "word" not in t and " a u" not in t][40:]
    assert len(set(texts)) > 1500


def test_live_flow_is_the_engines() -> None:
    params = flow_start(0, CPU)
    for tensor in params.values():
        tensor.data += 0.02 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1))
    flow = Flow(Weights({name: p.detach() for name, p in params.items()}, "flow.pt"), FLOW, 3)
    codes = torch.arange(40).view(2, 20)
    mu = encode(params, codes, torch.zeros(2, 20), last=True)
    theirs, _ = flow.encoder(codes, last=True)
    assert torch.equal(mu, theirs)
    x, row = torch.randn_like(mu), speaker_row(params, torch.randn(192)).expand(2, -1)
    live = LiveEstimator(params, FLOW, torch.full((2,), flow.estimator.times[1]))
    ours, _ = live.velocity(0, x, live.condition(mu, row, x), LivePast(Seen(torch.zeros(2, 40))))  # type: ignore[arg-type]
    real, _ = flow.estimator.velocity(1, x, flow.estimator.condition(mu, row, x), None)
    torch.testing.assert_close(ours, real, rtol=1e-4, atol=1e-4)


def test_a_frame_does_not_see_pieces_after_its_own() -> None:
    params, codes = flow_start(0, CPU), torch.arange(20)[None]
    pieces = torch.arange(20)[None] // 10
    changed = codes.clone()
    changed[0, 15] = 999
    first, second = (encode(params, c, pieces, last=True) for c in (codes, changed))
    assert torch.equal(first[:, :20], second[:, :20])
    assert not torch.equal(first[:, 20:], second[:, 20:])


def test_saved_vocoders_load_in_the_engine() -> None:
    params = vocoder_start(0, CPU)
    saved = _weight_normed({name: p.detach() for name, p in params.items()})
    vocoder = OriginalVocoder(Weights(saved, "hift.pt"), torch.zeros(1, 9))
    assert vocoder.whole(torch.full((1, 10, 80), -6.0)).shape == (1, 4800)


def test_codes_are_below_the_tables_and_silence_has_its_own() -> None:
    book = CodeBook()
    mel = torch.randn(1, 200, 80) * 3 - 6
    silent = torch.full((40, 80), -11.5)
    book.name_silence(silent)
    assert int(book(silent[None])[0, 10]) == 4218
    codes = book(mel)
    assert codes.shape == (1, 100)
    assert bool(((codes < LEVELS**DIGITS) | (codes == 4218)).all())


@pytest.mark.parametrize("hertz", [80.0, 130.0, 220.0])
def test_pitch_is_found(hertz: float) -> None:
    time = torch.arange(24_000) / 24_000
    sound = sum(torch.sin(2 * torch.pi * hertz * k * time) / k for k in range(1, 6)) * 0.2
    found = find_pitch(sound)[3:-3]
    assert float((found - hertz).abs().max()) < 0.02 * hertz
    assert float(find_pitch(torch.zeros(24_000)).max()) == 0
