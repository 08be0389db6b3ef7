"""The reference's full-duplex sessions through the engine: every row of logits, every hidden row, the KV cache."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small import ManualClock

from sensorium.config import EngineConfig
from sensorium.engine.engine import Engine
from sensorium.engine.loading import build_engine
from sensorium.engine.protocol import AppendUnit, MemoryPlan, OpenSession
from sensorium.models import loader
from sensorium.models.minicpm_duplex import DuplexPolicy
from sensorium.models.minicpmo import Config, Model
from sensorium.types import Decision, MediaItem, Prompt, Request, SamplingParams, Span, Unit, UnitDone
from tests.golden_speech import FULL, needs_golden
from tests.models.speech_golden import LittleTokenizer, read_case, read_case_tensors, read_config

pytestmark = needs_golden
TRACES = ["duplex_released_window_off", "duplex_released_window_basic", "duplex_released_window_context"]
LOGITS, HIDDEN, CACHE = 2e-4, 1e-4, 2e-4
"""The tolerances of the reference data."""


class Forced(DuplexPolicy):
    """Decides what the reference decided: before some draws one logit was raised above the others."""

    decide_all = None
    asked: list[tuple[dict[str, Any], torch.Tensor]]

    def decide(self, logits: torch.Tensor) -> Decision:
        op = self.rows.pop(0)
        self.asked.append((op, logits.clone()))
        row = logits.clone()
        if op["override"] is not None:
            row[op["override"]] = row.max() + 50
        return DuplexPolicy.decide_all([self], row[None])[0]


class Trace:
    """A stored session as messages to an engine."""

    def __init__(self, name: str) -> None:
        self.ops, self.tensors = read_case(name)["ops"], read_case_tensors(name)
        self.options = dict(read_case(name)["config"])
        if self.options["sliding_window_mode"] == "context":
            self.options["suffix_ids"] = [492, 483]
        at = next(i for i, op in enumerate(self.ops) if op["op"] == "prepared")
        self.opening = self.prompt(self.ops[:at])
        starts = [i for i, op in enumerate(self.ops) if op["op"] == "unit_begin"]
        units = [self.ops[a:b] for a, b in zip(starts, [*starts[1:], len(self.ops)], strict=True)]
        self.units = [ops for ops in units if any(op["op"] == "prefill_result" and op["success"] for op in ops)]

    def prompt(self, ops: list[dict[str, Any]]) -> Prompt:
        ids: list[int] = []
        spans: list[Span] = []
        media: list[MediaItem] = []
        for op in ops:
            if op["op"] != "feed":
                continue
            for part in op["what"] if isinstance(op["what"], list) else [op["what"]]:
                if isinstance(part, int):
                    ids.append(part)
                    continue
                kind, _, number = part.partition(":")
                rows = (
                    self.tensors["image_embeds"][int(number)]
                    if kind == "image"
                    else self.tensors[f"audio_embed_{number}"]
                )
                spans.append(Span(len(ids), len(rows), len(media)))
                media.append(MediaItem(kind, part.encode(), len(rows), {"embeds": rows.numpy()}))
                ids += [510] * len(rows)
        return Prompt(tuple(ids), tuple(spans), tuple(media))

    def unit(self, index: int) -> Prompt:
        ops = self.units[index]
        return self.prompt(ops[: next(i for i, op in enumerate(ops) if op["op"] == "prefill_result")])

    def unit_options(self, index: int) -> dict[str, Any]:
        decoded = [op for op in self.units[index] if op["op"] == "decode"]
        if not decoded:
            return {"decode_mode": "greedy"}
        given = {{"mode": "decode_mode"}.get(name, name): value for name, value in decoded[0]["params"].items()}
        if decoded[-1]["token"] not in (498, 503, 506):  # the limit of tokens ended the unit
            given["max_new_speak_tokens_per_chunk"] = len(decoded) + 1
        return given

    def rows(self, index: int) -> list[dict[str, Any]]:
        """The rows of logits of a unit in their order, with what was raised before the draw."""
        ops, found = self.units[index], []
        for op, following in zip(ops, [*ops[1:], {"op": ""}], strict=True):
            if op["op"] == "feed" and op["logits"]:
                found.append(
                    {
                        "name": op["logits_tensor"],
                        "override": following.get("token") if following["op"] == "override" else None,
                    }
                )
        return found


@pytest.fixture(scope="module")
def golden_model() -> Model:
    config = Config.from_hf(read_config(), init_vision=False, init_audio=False, init_tts=False)
    return loader.load(Model, config, FULL, "cpu", torch.float32)


@pytest.fixture
def engine(golden_model: Model) -> Engine:
    class Processor:
        tokenizer = LittleTokenizer()

    config = EngineConfig(max_model_len=512)
    made = build_engine(
        golden_model, Processor(), config, torch.device("cpu"), torch.float32, MemoryPlan(0, 0, 0, 1 << 20, 1024)
    )  # pyright: ignore
    made.clock = ManualClock()
    made.sessions.policies["forced"] = Forced
    return made


def cache(engine: Engine, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
    """[K, rows, D] each, of the only session."""
    (seq,) = engine.scheduler.resident
    slots = torch.tensor([seq.blocks[row // 16] * 16 + row % 16 for row in range(seq.computed)])
    keys, values = engine.runner.kv[layer].view(2, -1, *engine.runner.kv[layer].shape[3:])
    return keys[slots].transpose(0, 1), values[slots].transpose(0, 1)


def settle(engine: Engine) -> list[Any]:
    events = []
    while engine.has_work:
        events += engine.step()
    return events


@pytest.mark.parametrize("name", TRACES)
def test_a_session_computes_what_the_reference_computed(engine: Engine, name: str) -> None:
    trace = Trace(name)
    request = Request("s", trace.opening, SamplingParams())
    engine.inbox.append(OpenSession(request, "forced", trace.options, 512, 4, 1.0, return_hidden=True))
    settle(engine)
    policy = engine.sessions.policy("s")
    policy.asked = []
    for index in range(len(trace.units)):
        policy.rows = trace.rows(index)
        engine.inbox.append(AppendUnit("s", Unit(index, trace.unit(index), 0.0, 1.0, -1, trace.unit_options(index))))
        events = settle(engine)
        (done,) = [event for event in events if isinstance(event, UnitDone)]
        stored = {op["op"]: op for op in trace.units[index]}
        assert done.num_tokens == stored["state"]["cache_len"]
        assert done.info["is_listen"] == stored["result"]["is_listen"]
        if not done.info["is_listen"]:  # what a unit said before it listened is not told there
            assert done.text == stored["result"]["text"]
        if done.ids:
            asked = [op["name"].replace("logits", "hidden") for op, _ in policy.asked[-len(done.ids) :]]
            hidden = torch.stack([trace.tensors[name] for name in asked])
            torch.testing.assert_close(torch.from_numpy(done.hidden), hidden, atol=HIDDEN, rtol=0)
    for op, logits in policy.asked:
        torch.testing.assert_close(logits, trace.tensors[op["name"]], atol=LOGITS, rtol=0)
    assert len(policy.asked) > 25
    finish(engine, trace)
    engine.scheduler.check()


def finish(engine: Engine, trace: Trace) -> None:
    """The closing ids of the last unit wait for one more; then the cache is the reference's."""
    (seq,) = engine.scheduler.resident
    seq.is_idle = False
    settle(engine)
    for layer in (0, 1):
        for ours, theirs in zip(cache(engine, layer), ("k", "v"), strict=True):
            torch.testing.assert_close(ours, trace.tensors[f"final_{theirs}_{layer}"], atol=CACHE, rtol=0)
