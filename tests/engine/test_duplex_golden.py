"""The stored full-duplex sessions through the real engine: logits, hidden rows, keys and values, alone and together."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from scripted import append, open_session, settle
from small import ManualClock

from sensorium.config import EngineConfig
from sensorium.engine.engine import Engine
from sensorium.engine.loading import build_engine, encoder_cache_bytes
from sensorium.engine.protocol import MemoryPlan
from sensorium.models import loader
from sensorium.models.minicpm_duplex import DuplexPolicy
from sensorium.models.minicpmo import Config, Model
from sensorium.types import Decision, Event, Prompt, Request, SamplingParams, UnitDone
from tests.golden_speech import FULL, needs_golden
from tests.models.speech_golden import DEMO, TRACES, LittleTokenizer, Trace

pytestmark = needs_golden
NAMES = (*TRACES, DEMO)


class Replayed(DuplexPolicy):
    """Raises the logits of the tokens that the stored session chose, and keeps what it was asked with."""

    scripts: dict[str, Iterator[int | None]] = {}  # noqa: RUF012 - one for each session, by name
    seen: dict[str, list[torch.Tensor]] = {}  # noqa: RUF012

    def __init__(self, tokenizer: Any, sampling: SamplingParams, options: Mapping[str, Any]) -> None:
        rest = dict(options)
        self.name = rest.pop("name")
        super().__init__(tokenizer, sampling, rest)

    @staticmethod
    def decide_all(policies: Any, logits: torch.Tensor) -> list[Decision]:
        raised = logits.clone()
        for row, policy in enumerate(policies):
            Replayed.seen[policy.name].append(logits[row].clone())
            if (token := next(Replayed.scripts[policy.name])) is not None:
                raised[row, token] = raised[row].max() + 50
        return DuplexPolicy.decide_all(policies, raised)


class OnlyTokenizer:
    tokenizer = LittleTokenizer() if FULL.is_dir() else None


@pytest.fixture(scope="module")
def model() -> Model:
    source = json.loads((FULL / "config.json").read_text("utf-8"))
    source |= {"vision_config": {}, "audio_config": {}}
    return loader.load(Model, Config.from_hf(source, init_vision=False, init_audio=False), FULL, "cpu", torch.float32)


@pytest.fixture
def engine(model: Model) -> Engine:
    # Small blocks, so that rows which move cross their borders.
    config = EngineConfig(block_size=8, max_num_batched_tokens=64)
    plan = MemoryPlan(0, 0, 0, encoder_cache_bytes(config, model.hidden_size * 4), 256 * config.block_size)
    made = build_engine(model, OnlyTokenizer(), config, torch.device("cpu"), torch.float32, plan)  # type: ignore[arg-type]
    made.clock = ManualClock()
    made.sessions.policies["replayed"] = Replayed
    return made


class Run:
    """A stored session in an engine."""

    def __init__(self, engine: Engine, name: str) -> None:
        self.engine, self.name, self.trace = engine, name, Trace(name)
        self.units = list(self.trace.units())
        Replayed.seen[name] = []
        Replayed.scripts[name] = iter([token for unit in self.units for _, token in self._asked(unit)])
        request = Request(name, self.trace.opening(), SamplingParams(seed=1))
        options = self.trace.session_options | {"name": name}
        open_session(engine, request, "replayed", options=options, return_hidden=True)

    @staticmethod
    def _asked(unit: Any) -> list[tuple[str, int | None]]:
        """What decisions are made from: the closing token's logits are nobody's."""
        closing = [op for op in unit.ops if op["op"] == "feed" and op["logits"] and op["what"] in ([498], [503], [506])]
        return unit.rows[: len(unit.rows) - len(closing)] if not unit.options.get("force_listen") else unit.rows[:1]

    def append(self, index: int) -> None:
        unit = self.units[index]
        append(self.engine, self.name, index, unit.prompt, 1.0 + index, deciding=unit.deciding, **unit.options)

    def check_unit(self, index: int, done: UnitDone) -> None:
        unit = self.units[index]
        assert done.num_tokens == unit.state["cache_len"]
        assert done.info["is_listen"] == unit.result["is_listen"]
        assert done.info["end_of_turn"] == unit.result["end_of_turn"]
        assert len(done.ids) == unit.result["n_tokens"]
        hidden = [self.trace.tensors.get(name.replace("logits", "hidden")) for name, _ in unit.rows]
        # Row 0 decides, row 1 follows the unit's first token, which is not spoken.
        wanted = [row for row in hidden[2 : 2 + len(done.ids)] if row is not None]
        assert done.hidden is not None
        assert len(done.hidden) == len(done.ids) == len(wanted)
        for mine, stored in zip(done.hidden, wanted, strict=True):
            torch.testing.assert_close(torch.from_numpy(mine), stored, atol=1e-4, rtol=0)

    def check_end(self) -> None:
        names = [name for unit in self.units for name, _ in self._asked(unit)]
        for name, seen in zip(names, Replayed.seen[self.name], strict=True):
            torch.testing.assert_close(seen, self.trace.tensors[name], atol=2e-4, rtol=0)
        (seq,) = [seq for seq in self.engine.scheduler.resident if seq.id == self.name]
        size = self.engine.runner.block_size
        at = torch.tensor([seq.blocks[row // size] * size + row % size for row in range(seq.computed)])
        for number, layer in enumerate(self.engine.runner.kv):
            keys, values = layer.view(2, -1, *layer.shape[3:]).unbind()
            for mine, kind in ((keys, "k"), (values, "v")):
                stored = self.trace.tensors[f"final_{kind}_{number}"].squeeze(0).transpose(0, 1)
                assert len(at) >= len(stored) - 2  # closing ids may wait for the next unit
                torch.testing.assert_close(mine[at], stored[: len(at)], atol=2e-4, rtol=0)


def done(events: list[Event], name: str) -> UnitDone:
    (found,) = [event for event in events if isinstance(event, UnitDone) and event.request_id == name]
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_session_is_computed_as_the_reference_does(engine, name):
    run = Run(engine, name)
    for index in range(len(run.units)):
        run.append(index)
        run.check_unit(index, done(settle(engine), name))
    run.check_end()
    engine.scheduler.check()


def test_sessions_side_by_side_are_what_each_is_alone(engine):
    runs = [Run(engine, name) for name in NAMES]
    engine.inbox.append(Request("chat", Prompt(tuple(range(13, 60))), SamplingParams(temperature=0.0, max_tokens=40)))
    for index in range(max(len(run.units) for run in runs)):
        going = [run for run in runs if index < len(run.units)]
        for run in going:
            run.append(index)
        events = settle(engine)
        for run in going:
            run.check_unit(index, done(events, run.name))
    for run in runs:
        run.check_end()
    engine.scheduler.check()
