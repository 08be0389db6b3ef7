"""The engine's invariants on a real (small, random) omni model: what is cut, batched or cached changes no token."""

from __future__ import annotations

import random

import pytest
from small import drive, image, prompt, request, sound, tokens

from sensorium.engine.protocol import Abort
from sensorium.types import Failed, Finished, MediaItem

MIXED = {
    "text": prompt("What is the colour of the small circle on the left?"),
    "image": prompt("Look: ", image(1)),
    "images": prompt("Compare ", image(1), image(2, 9, 4)),
    "sound": prompt("Listen: ", sound(3)),
    "omni": prompt("Both: ", image(4), sound(5, 110), image(1)),
}


@pytest.fixture
def solo(make_engine) -> dict[str, list[int]]:
    """Every prompt alone, prefilled at once, nothing cached."""
    return {name: tokens(drive(make_engine(), request("solo", made))["solo"]) for name, made in MIXED.items()}


@pytest.mark.parametrize("budget", [1, 7, 64])
def test_chunked_prefill_equals_full_prefill(make_engine, solo, budget: int) -> None:
    for name, made in MIXED.items():
        engine = make_engine(max_num_batched_tokens=budget)
        assert tokens(drive(engine, request("a", made))["a"]) == solo[name], name


def test_a_batch_equals_singles(make_engine, solo) -> None:
    engine = make_engine(max_num_batched_tokens=100)
    events = drive(engine, *(request(name, made) for name, made in MIXED.items()))
    assert {name: tokens(got) for name, got in events.items()} == solo


def test_a_prefix_hit_equals_a_miss(make_engine, solo) -> None:
    engine = make_engine()
    for name, made in MIXED.items():
        first, second = (drive(engine, request("a", made))["a"] for _ in range(2))
        assert tokens(first) == tokens(second) == solo[name]
        assert isinstance(second[-1], Finished)
        assert second[-1].usage.cached_tokens == (len(made.ids) - 1) // 16 * 16


def test_preempted_equals_undisturbed(make_engine, solo) -> None:
    # 21 blocks hold the largest prompt with its answer, but never all five at once.
    engine = make_engine(num_blocks=21, enable_prefix_caching=False)
    events = drive(engine, *(request(name, made, max_tokens=40) for name, made in MIXED.items()))
    assert engine.stats.preemptions > 0
    for name, got in events.items():
        assert tokens(got)[:12] == solo[name], name
    engine.scheduler.check()


def test_cached_media_equals_fresh(make_engine, solo) -> None:
    engine = make_engine(enable_prefix_caching=False)
    for _ in range(2):
        for name, made in MIXED.items():
            assert tokens(drive(engine, request("a", made))["a"]) == solo[name]
    assert engine.stats.encoded_items == 5, "five different items, each encoded once"


def test_an_encoder_cache_of_one_item_still_serves(make_engine, solo) -> None:
    row_bytes = 128 * 4
    engine = make_engine(encoder_cache_bytes=96 * row_bytes, enable_prefix_caching=False)
    names = ("text", "image", "sound")
    events = drive(engine, *(request(name, MIXED[name]) for name in names))
    assert all(tokens(events[name]) == solo[name] for name in names)
    assert engine.scheduler.encoder_cache.used_bytes <= 96 * row_bytes
    assert set(engine.runner.rows) >= set(engine.scheduler.encoder_cache._sizes)


def test_seeded_sampling_does_not_depend_on_neighbours(make_engine) -> None:
    sampling = {"temperature": 1.0, "top_p": 0.9, "seed": 7}
    alone = tokens(drive(make_engine(), request("a", MIXED["image"], **sampling))["a"])
    crowd = [request(f"b{i}", MIXED["text"], temperature=1.0, seed=i) for i in range(5)]
    together = drive(make_engine(), *crowd, request("a", MIXED["image"], **sampling))
    assert tokens(together["a"]) == alone


def test_every_request_ends_in_exactly_one_terminal_event(make_engine) -> None:
    engine = make_engine(num_blocks=40, max_num_batched_tokens=50)
    rng = random.Random(0)
    names = list(MIXED)
    live, events = [], {}
    for index in range(60):
        name = f"r{index}"
        engine.inbox.append(request(name, MIXED[rng.choice(names)], max_tokens=rng.randint(1, 20)))
        events[name] = []
        live.append(name)
        if rng.random() < 0.3:
            engine.inbox.append(Abort(rng.choice(live)))
        for _ in range(rng.randint(0, 3)):
            for event in engine.step():
                events[event.request_id].append(event)
    while engine.has_work:
        for event in engine.step():
            events[event.request_id].append(event)
    for name, got in events.items():
        ends = [event for event in got if isinstance(event, Finished | Failed)]
        assert len(ends) == 1, name
        assert got[-1] is ends[0], "nothing follows the terminal event"
    engine.scheduler.check()
    assert engine.scheduler.pool.num_free == 40
    assert not engine.runner.readout.states


def test_stop_rules_name_their_reason(make_engine, solo) -> None:
    third = solo["text"][2]
    ended = drive(make_engine(), request("a", MIXED["text"], stop_token_ids=(third,)))["a"]
    at = solo["text"].index(third)
    assert tokens(ended) == solo["text"][: at + 1]
    assert (ended[-1].reason, ended[-1].stop_reason) == ("stop", third)
    long = drive(make_engine(), request("a", MIXED["text"], max_tokens=3))["a"]
    assert (long[-1].reason, long[-1].usage.completion_tokens) == ("length", 3)
    late = drive(make_engine(), request("a", MIXED["text"], stop_token_ids=(third,), min_tokens=8))["a"]
    assert third not in tokens(late)[:8]


def test_generation_stops_at_the_context_limit(make_engine) -> None:
    engine = make_engine(max_model_len=64)
    ended = drive(engine, request("a", prompt("x" * 50), max_tokens=None))["a"]
    assert ended[-1].reason == "length"
    assert ended[-1].usage.prompt_tokens + ended[-1].usage.completion_tokens == 64


def test_usage_counts_media_tokens(make_engine) -> None:
    ended = drive(make_engine(), request("a", MIXED["omni"]))["a"]
    assert ended[-1].usage.media_tokens == {"image": 128, "audio": 11}


def test_media_that_cannot_be_encoded_ends_its_request_alone(make_engine, solo) -> None:
    broken = MediaItem("image", b"broken", 60, image(1).arrays)  # the encoder makes 64 rows of it
    events = drive(make_engine(), request("bad", prompt("x", broken)), request("good", MIXED["image"]))
    assert isinstance(events["bad"][-1], Failed)
    assert tokens(events["good"]) == solo["image"]


def test_a_failing_step_ends_its_requests_and_not_the_engine(make_engine, solo, model) -> None:
    engine = make_engine()
    weight = model.decoder.norm.weight
    kept = weight.clone()
    weight.fill_(float("nan"))
    try:
        failed = drive(engine, request("a", MIXED["text"]))["a"]
    finally:
        weight.copy_(kept)
    assert isinstance(failed[-1], Failed)
    assert "not a number" in failed[-1].message
    assert tokens(drive(engine, request("b", MIXED["text"], namespace="fresh"))["b"]) == solo["text"]


def test_namespaces_do_not_share_blocks(make_engine) -> None:
    engine = make_engine()
    drive(engine, request("a", MIXED["text"], namespace="one"))
    other = drive(engine, request("a", MIXED["text"], namespace="two"))["a"]
    assert other[-1].usage.cached_tokens == 0


def test_timings_come_from_the_clock(make_engine) -> None:
    engine = make_engine()
    engine.inbox.append(request("a", MIXED["text"], max_tokens=3))
    events = []
    while engine.has_work:
        engine.clock.now_s += 1.0
        events += engine.step()
    assert events[-1].timings.queue_s == 1.0
    assert events[-1].timings.ttft_s == 1.0
    assert events[-1].timings.total_s == 3.0
