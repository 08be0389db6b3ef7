"""How many prompt tokens a step computes beside decodes, by what steps took."""

from __future__ import annotations

import pytest
from small import drive, prompt, request, tokens

from sensorium.engine.pace import Pace
from sensorium.errors import ConfigError


def settle(pace: Pace, decodes: int, seconds_of, steps: int = 60) -> list[tuple[int, float]]:
    """Steps while prompts always wait, each (prompt tokens, seconds)."""
    seen = []
    for _ in range(steps):
        count = pace.prompt_tokens(decodes, 1)
        seconds = seconds_of(decodes, count)
        pace.observe(decodes, count, seconds)
        seen.append((count, seconds))
    return seen


def gpu(decodes: int, prompt_tokens: int) -> float:
    """Reading the weights, or arithmetic where that is longer, and the context of each decode."""
    return max(3.6e-3, 20e-6 * (decodes + prompt_tokens)) + 20e-6 * decodes


def cpu(decodes: int, prompt_tokens: int) -> float:
    return 1e-3 + 90e-6 * (decodes + prompt_tokens)


@pytest.mark.parametrize("device", [gpu, cpu])
@pytest.mark.parametrize("decodes", [1, 30, 256])
def test_steps_come_to_take_what_they_may(device, decodes: int) -> None:
    pace = Pace(1.4, fewest=8, most=8192)
    seen = settle(pace, decodes, device)
    assert seen[0][0] == 0, "the first step shows what decodes take alone"
    alone = device(decodes, 0)
    late = seen[40:]
    assert all(seconds < 1.6 * alone or count == 8 for count, seconds in late)
    assert max(seconds for _, seconds in late) > 1.2 * alone


def test_prompts_get_on_however_long_steps_take() -> None:
    pace = Pace(1.4, fewest=64, most=2048)
    assert all(count == 64 for count, _ in settle(pace, 4, lambda _, count: 1.0 + count)[1:])


def test_a_number_of_decodes_that_was_never_measured_is_measured_first() -> None:
    pace = Pace(1.4, fewest=64, most=8192)
    settle(pace, 32, gpu)
    assert pace.prompt_tokens(36, 1) > 0
    assert pace.prompt_tokens(100, 1) == 0
    pace.observe(100, 0, gpu(100, 0))
    assert pace.prompt_tokens(100, 1) > 0
    assert pace.prompt_tokens(32, 1) == 0


def test_steps_with_few_prompt_tokens_are_no_reason_for_more() -> None:
    pace = Pace(1.4, fewest=100, most=8192)
    pace.observe(10, 0, 5e-3)
    for _ in range(50):
        pace.observe(10, 3, 5e-3)
    assert pace.prompt_tokens(10, 1) == 100


def test_a_crowd_of_prompts_has_whole_steps() -> None:
    """100 tokens a step of 14 ms are 7,000 a second: what would need more than one second does not wait for it."""
    pace = Pace(1.4, fewest=100, most=8192)
    pace.observe(50, 0, 10e-3)
    assert pace.prompt_tokens(50, 7000) == 100
    assert pace.prompt_tokens(50, 7300) == 8192
    pace.observe(50, 7300, 180e-3)
    assert pace.prompt_tokens(50, 1000) == 100, "a step of a crowd says nothing about those of few"


def test_prompts_alone_have_the_whole_step_and_beside_decodes_their_share(make_engine) -> None:
    texts = {f"r{i}": prompt(f"{i} " + "word " * 40) for i in range(5)}
    want = {name: tokens(drive(make_engine(), request(name, made))[name]) for name, made in texts.items()}
    engine = make_engine(decode_slowdown=1.5, max_num_batched_tokens=256)
    run, shapes, clock = engine.runner.run, [], engine.clock

    def watched(batch, *then):
        counts = [work.count for work in batch.works]
        shapes.append((counts.count(1), sum(counts) - counts.count(1)))
        clock.now_s += cpu(*shapes[-1])
        return run(batch, *then)

    engine.runner.run = watched
    got = drive(engine, *(request(name, made) for name, made in texts.items()))
    assert {name: tokens(events) for name, events in got.items()} == want
    assert shapes[0] == (0, 256)
    mixed = [count for decodes, count in shapes if decodes and count]
    assert mixed
    assert max(mixed) <= 70, "the least a step may take is 64"
    assert any(decodes and not count for decodes, count in shapes[:3]), "one step showed what decodes take alone"
    engine.scheduler.check()


def test_without_a_bound_prompts_fill_the_step(make_engine) -> None:
    engine = make_engine()
    assert engine.scheduler.pace is None
    engine = make_engine(decode_slowdown=1.4, enable_chunked_prefill=False)
    assert engine.scheduler.pace is None, "a prompt that cannot be split would never begin"
    engine = make_engine(decode_slowdown=1.4, disable_chunked_mm_input=True)
    assert engine.scheduler.pace is None


def test_a_bound_below_one_is_refused(make_engine) -> None:
    with pytest.raises(ConfigError, match="decode_slowdown must be 0 for no bound, or at least 1"):
        make_engine(decode_slowdown=0.5)
