"""Media of a step that is decided while another runs: encoded at once, each once, and its places are given back."""

from __future__ import annotations

import pytest
from small import drive, image, prompt, request, tokens
from test_ahead import LONG, at_rest, let_run_ahead, watch_starts

from sensorium.engine.protocol import Abort, ForgetMedia
from sensorium.types import Failed, Finished


def watch_encoding(engine, broken: bytes = b"") -> list[bytes]:
    """Keys in the order in which they are encoded; `broken` cannot be."""
    seen, encode = [], engine.runner.model.encode

    def watched(modality, items):
        if any(item.key == broken for item in items):
            raise RuntimeError("no picture")
        seen.extend(item.key for item in items)
        return encode(modality, items)

    engine.runner.model = _Watched(engine.runner.model, watched)
    return seen


class _Watched:
    def __init__(self, model, encode) -> None:
        self._model, self.encode = model, encode

    def __getattr__(self, name):
        return getattr(self._model, name)


def pictures(count: int, **sampling):
    return [request(f"m{i}", prompt(f"{i} Look: ", image(i)), **{"max_tokens": 1} | sampling) for i in range(count)]


def step(engine, got) -> None:
    for event in engine.step():
        got.setdefault(event.request_id, []).append(event)


def finish(engine, got) -> None:
    while engine.has_work:
        step(engine, got)


def test_the_next_pictures_are_encoded_and_their_prompts_started_while_the_first_are_computed(make_engine) -> None:
    made = pictures(5)
    want = {r.id: tokens(drive(make_engine(), r)[r.id]) for r in made}
    engine = make_engine(max_num_batched_tokens=2 * len(made[0].prompt.ids), max_encoder_rows=128)
    let_run_ahead(engine)
    seen, ahead = watch_encoding(engine), watch_starts(engine)
    got: dict = {}
    engine.inbox.extend(made)
    step(engine, got)
    assert seen == [b"image-0", b"image-1", b"image-2", b"image-3"]
    finish(engine, got)
    assert [[name for name, _, _ in works] for works in ahead] == [["m2", "m3"], ["m4"]]
    assert seen == [b"image-%d" % i for i in range(5)]
    assert engine.stats.encoded_items == 5
    assert {name: tokens(events) for name, events in got.items()} == want
    assert at_rest(engine)


def test_a_request_that_comes_while_a_step_is_started_is_in_the_next(make_engine) -> None:
    engine = make_engine()
    let_run_ahead(engine)
    first, second = pictures(2)
    coming, start = [second], engine.runner._start

    def started(works, before):
        if coming:
            engine.inbox.append(coming.pop())
        return start(works, before)

    engine.runner._start = started
    ahead = watch_starts(engine)
    got: dict = {}
    engine.inbox.append(first)
    finish(engine, got)
    assert ahead == [[("m1", 0, len(second.prompt.ids))]]


def test_an_abort_of_a_request_that_was_encoded_ahead_gives_its_place_back(make_engine) -> None:
    made = pictures(3)
    engine = make_engine(max_num_batched_tokens=len(made[0].prompt.ids))
    let_run_ahead(engine)
    seen, got = watch_encoding(engine), {}
    engine.inbox.extend(made[:2])
    step(engine, got)
    assert seen == [b"image-0", b"image-1"]
    engine.inbox.append(Abort("m1"))
    finish(engine, got)
    assert [event.reason for event in got["m1"] if isinstance(event, Finished)] == ["abort"]
    assert at_rest(engine)
    again = request("again", prompt("Once more: ", image(1)), max_tokens=3)
    assert tokens(drive(engine, again)["again"]) == tokens(drive(make_engine(), again)["again"])
    assert seen == [b"image-0", b"image-1"], "what was encoded is kept"
    assert at_rest(engine)


@pytest.mark.parametrize("max_tokens", [1, 8])
def test_a_picture_that_cannot_be_encoded_ahead_ends_its_request_alone(make_engine, max_tokens: int) -> None:
    made = pictures(4, max_tokens=max_tokens)
    want = {r.id: tokens(drive(make_engine(), r)[r.id]) for r in made}
    engine = make_engine(max_num_batched_tokens=len(made[0].prompt.ids) + 8)
    let_run_ahead(engine)
    watch_encoding(engine, broken=b"image-2")
    got = drive(engine, *made)
    assert isinstance(got["m2"][-1], Failed)
    assert not tokens(got["m2"])
    del got["m2"], want["m2"]
    assert {name: tokens(events) for name, events in got.items()} == want
    assert at_rest(engine)


def test_who_is_on_the_device_with_a_picture_that_fails_meanwhile_ends_once(make_engine) -> None:
    """Its rows were forgotten once it had read them, and another request asks for them again."""
    first = request("first", prompt("Look: ", image(0)), max_tokens=9)
    other = request("other", prompt("no picture"), max_tokens=9)
    want = tokens(drive(make_engine(), other)["other"])
    engine = make_engine(enable_prefix_caching=False)
    let_run_ahead(engine)
    got: dict = {}
    engine.inbox.extend([first, other])
    step(engine, got)
    watch_encoding(engine, broken=b"image-0")
    engine.inbox.append(ForgetMedia())
    step(engine, got)
    engine.inbox.append(request("second", prompt("And this? ", image(0)), max_tokens=9))
    finish(engine, got)
    for name in ("first", "second"):
        assert [type(event) for event in got[name] if isinstance(event, Failed | Finished)] == [Failed], name
    assert tokens(got["other"]) == want
    assert at_rest(engine)


def test_long_prompts_with_pictures_run_ahead_in_chunks(make_engine) -> None:
    made = [request(f"m{i}", prompt(f"{i} {LONG}", image(i), image(9)), max_tokens=5) for i in range(3)]
    want = {r.id: tokens(drive(make_engine(), r)[r.id]) for r in made}
    engine = make_engine(max_num_batched_tokens=96, max_encoder_rows=64)
    let_run_ahead(engine)
    seen = watch_encoding(engine)
    assert {name: tokens(events) for name, events in drive(engine, *made).items()} == want
    assert sorted(seen) == [b"image-0", b"image-1", b"image-2", b"image-9"]
    assert at_rest(engine)
