"""The speech LM as a stage: calls of many sessions make their codes together, each on its own state slot.

Slots have fixed memory. A call's condition rows are computed together with those of other new calls; then all running
calls gain one code a round. What a call says depends on its own slot only. Only one thread may use a stage.
b rows of a round · n condition rows · E width · L layers · K key/value heads · D head dim
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch

from sensorium.engine.graphs import ChunkGraphs, Recorder
from sensorium.engine.speech_draw import draw_numbers, read_draw
from sensorium.engine.speech_rules import RULES, RuleName, SpeechSampling, SpeechWork, Spoken
from sensorium.engine.speech_sampler import pick
from sensorium.engine.speech_slot import Slot, call_of
from sensorium.engine.speech_steps import Feeds, Flight, MakePlan, SpeechSteps
from sensorium.engine.speech_window import SpeechWindow
from sensorium.engine.stopwatch import Stopwatch, timed, wait_for
from sensorium.errors import ContextLengthError, OverloadedError, RequestError
from sensorium.kernels.reference import TablePlan
from sensorium.kernels.select import paged_attention
from sensorium.kernels.upload import upload
from sensorium.models.base import SpeechModel
from sensorium.types import ModelInputs

CODES_PER_S = 25
# Rounds that keep to the device for one upload: a full-duplex unit has 26.
_ROUNDS = 32
# Of one call: its random numbers are drawn when it starts.
_MOST_CODES = 1 << 16


class SpeechStage:
    """slots: calls that may run at once. max_len: rows of KV cache of each; None is the model's own limit.

    A turn that outgrows its slot goes on from its previous call alone, as with attention type sliding_recompute.
    """

    def __init__(self, model: SpeechModel, slots: int, *, max_len: int | None = None, block_size: int = 16) -> None:
        self.model, self.block_size = model, block_size
        self.default_sampling = SpeechSampling(
            model.config.temperature, model.config.top_p, model.config.top_k, model.config.repetition_penalty
        )
        mark = model.marks()[0]
        self.device, self.dtype = mark.device, mark.dtype
        self._blocks = -(-min(max_len or model.max_len, model.max_len) // block_size)
        self.max_len = self._blocks * block_size
        # One block more, which belongs to no slot: rows of padding write there.
        shape = (model.num_layers, 2, slots * self._blocks + 1, block_size, model.num_kv_heads, model.head_dim)
        self._memory = torch.zeros(shape, dtype=self.dtype, device=self.device)
        self._kv = list(self._memory.unbind(0))
        self._window = SpeechWindow(model, self._memory, self.max_len)
        self._plans = paged_attention(self.device, self.dtype).implementation
        self._tables = np.arange(slots * self._blocks).reshape(slots, -1)
        self._zero = torch.zeros(1, dtype=torch.int64, device=self.device)
        self._free = list(reversed(range(slots)))
        self._slots: dict[int, Slot] = {}
        self._feeds = Feeds(model)
        self._steps: SpeechSteps | None = None
        self._chunks: ChunkGraphs | None = None
        self.runs_ahead = False
        """Whether rounds go on between calls of `advance`, beside what else the device does."""
        self._side: torch.cuda.Stream | None = None
        self._flight: Flight | None = None
        self.passes: Stopwatch | None = None
        """What tells how long rounds take, where somebody wants to know."""

    @staticmethod
    def slot_bytes(model: SpeechModel, dtype: torch.dtype, block_size: int = 16, max_len: int | None = None) -> int:
        """Device memory of one slot."""
        row = 2 * model.num_layers * model.num_kv_heads * model.head_dim * dtype.itemsize
        return -(-min(max_len or model.max_len, model.max_len) // block_size) * block_size * row

    @torch.inference_mode()
    def record_graphs(self) -> None:
        """Run rounds as CUDA graphs from now on, where the device and the kernels allow it."""
        if self.device.type != "cuda":
            return
        # First in line: its kernels are many and small, and would each wait for a large one of the backbone.
        self._side, self.runs_ahead = torch.cuda.Stream(self.device, priority=-1), True
        recorder = Recorder(self._side)
        self._steps = self.make_steps()
        self._steps.record(recorder)
        if self._plans.decode_plan is not None and not self.model.head_dim & (self.model.head_dim - 1):
            chunks = ChunkGraphs(self.model, self._kv, self._plans, self.block_size, self._blocks, recorder)
            self._chunks = chunks

    def make_steps(self) -> SpeechSteps:
        """Rounds that keep to the device, not recorded yet."""
        make_plan: MakePlan = partial(TablePlan, block_size=self.block_size)
        plans, head_dim = self._plans, self.model.head_dim
        if plans.decode_plan is not None and not head_dim & (head_dim - 1):
            width = torch.tensor([self._blocks], dtype=torch.int32, device=self.device)
            options = {"width": width, "block_size": self.block_size, "scratch": plans.scratch(self.device)}
            make_plan = partial(plans.decode_plan, **options)
        return SpeechSteps(self.model, self._feeds, self._kv, make_plan, self._tables, _ROUNDS)

    # ---- slots ----------------------------------------------------------------------------------------------------

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def is_speaking(self) -> bool:
        """Whether `advance` has something to do."""
        return any(slot.call is not None for slot in self._slots.values())

    def open(self, rule: RuleName, sampling: SpeechSampling | None = None) -> int:
        """A slot for a session's calls under one rule. OverloadedError when all are taken."""
        if rule not in RULES:
            raise RequestError(f"no speech rule {rule!r}; known: {', '.join(RULES)}", param="rule")
        if not self._free:
            raise OverloadedError(f"all {len(self._tables)} speech slots are taken", reason="speech")
        sampling = sampling or self.default_sampling
        generator = torch.Generator()
        if sampling.seed is None:
            generator.seed()
        else:
            generator.manual_seed(sampling.seed)
        index = self._free.pop()
        self._slots[index] = Slot(index, RULES[rule], sampling, generator)
        return index

    def reset(self, slot: int) -> None:
        """Drop the slot's call and turn (a barge-in). Its generator goes on."""
        state = self._state(slot)
        state.call = None
        state.start_anew()

    def close(self, slot: int) -> None:
        """Give the slot back; what it was saying is dropped."""
        del self._slots[self._state(slot).index]
        self._free.append(slot)

    def _state(self, slot: int) -> Slot:
        if slot not in self._slots:
            raise RequestError(f"speech slot {slot} is not open", param="slot")
        return self._slots[slot]

    # ---- calls ----------------------------------------------------------------------------------------------------

    def start(self, work: SpeechWork) -> None:
        """Queue a call; `advance` runs it. Raises RequestError for a work that cannot run, which changes nothing."""
        self._check(work)
        self._slots[work.slot].begin(work)

    def _check(self, work: SpeechWork) -> None:
        slot, config = self._state(work.slot), self.model.config
        if slot.call is not None:
            raise RequestError(f"speech slot {work.slot} is still speaking; reset it to cut its call off", param="slot")
        count = 0 if work.hidden is None else len(work.hidden)
        if count != len(work.ids):
            raise RequestError(f"{len(work.ids)} ids to speak, but {count} hidden rows", param="hidden")
        for name, value in (("min_new", work.min_new), ("max_new", work.max_new)):
            least = int(name == "max_new")
            if value is not None and not least <= value <= _MOST_CODES:
                raise RequestError(f"{name} must be from {least} to {_MOST_CODES}, not {value}", param=name)
        longest = self.max_len - 3
        if count > longest:
            raise ContextLengthError(f"{count} tokens to speak in one call; the limit is {longest}", param="ids")
        if work.hidden is not None and work.hidden.shape != (count, config.llm_dim):
            raise RequestError(f"hidden is {list(work.hidden.shape)}, not [{count}, {config.llm_dim}]", param="hidden")
        for name, values, stop in (
            ("ids", work.ids, config.num_text_tokens),
            ("forced", work.forced.values(), self.model.num_codes),
        ):
            if wrong := [value for value in values if not 0 <= value < stop]:
                raise RequestError(f"{name} holds {wrong[0]}, which is not from 0 to {stop - 1}", param=name)

    def speak(self, works: Sequence[SpeechWork]) -> list[list[int]]:
        """Run calls to their ends: the codes of each. Raises the error of the first that failed.

        For callers who have no other call running: what that said meanwhile would go nowhere.
        """
        if self.is_speaking:
            raise RequestError("speak while other calls run would lose their codes; use start and advance")
        codes: dict[int, list[int]] = {work.slot: [] for work in works}
        if len(codes) < len(works):
            raise RequestError("two works for one speech slot; the second needs what the first leaves", param="slot")
        for work in works:
            self._check(work)
        for work in works:
            self.start(work)
        failed = None
        while any(self._slots[slot].call is not None for slot in codes):
            for spoken in self.advance(_ROUNDS):
                codes[spoken.slot] += spoken.codes
                failed = failed or spoken.error
        if failed is not None:
            raise failed
        return [codes[work.slot] for work in works]

    @torch.inference_mode()
    def advance(
        self,
        rounds: int = CODES_PER_S,
        *,
        waits: Callable[[], bool] = lambda: True,
        given: torch.cuda.Event | None = None,
    ) -> list[Spoken]:
        """Up to `rounds` more codes for every call. What is new, in the order in which the slots were opened.

        Where the stage runs ahead they are begun, and those that the last call began are told. While the device still
        computes those, `waits` says whether to wait on; if not, nothing happens. given: after what on the device the
        hidden rows of all works are there; None: after all that it was told to do.
        """
        try:
            if not self.runs_ahead:
                with timed(self.passes, "speech"):
                    self._run(rounds)
                return self._tell()
            if self._flight is not None and not wait_for(lambda flight=self._flight: flight.is_over, waits):
                return []
            flight, self._flight = self._flight, None
            if flight is not None:
                flight.settle(self.model.eos_code)
            told = self._tell()
            if self._side is not None and given is None:
                self._side.wait_stream(torch.cuda.current_stream(self.device))
            elif self._side is not None and given is not None:
                self._side.wait_event(given)
            with torch.cuda.stream(self._side), timed(self.passes, "speech"):
                self._begin(rounds)
            return told
        except BaseException:
            self._flight = None
            for slot in self._slots.values():
                slot.call = None
                slot.start_anew()
            raise

    def _tell(self) -> list[Spoken]:
        return [spoken for slot in self._slots.values() if (spoken := slot.tell()) is not None]

    def _speaking(self) -> list[Slot]:
        return [slot for slot in self._slots.values() if slot.call is not None and slot.call.ended is None]

    def _begin(self, rounds: int) -> None:
        """Leave rounds on the device, where they can go by themselves."""
        slots = self._prefilled()
        if any(self._window.slides(slot) for slot in slots):
            self._run(rounds)
        elif slots and self._steps is not None:
            self._flight = self._steps.launch(slots, rounds, wait=False)

    def _run(self, rounds: int) -> None:
        """Wait for rounds until there are so many, or all calls have ended."""
        slots = self._prefilled()
        windowed = any(self._window.slides(slot) for slot in slots)
        while slots and rounds > 0:
            if self._steps is not None and not windowed:
                rounds -= self._steps.launch(slots, rounds, wait=True).num_rounds
            else:
                self._round(slots)
                rounds -= 1
            slots = [slot for slot in slots if call_of(slot).ended is None]

    def _round(self, slots: list[Slot]) -> None:
        """One more code for each, with a plan made on the host."""
        codes = upload(np.array([self._feeds.next_code(call_of(slot)) for slot in slots], np.int64), self.device)
        hidden = self._forward(slots, self._feeds(codes), [1] * len(slots))
        self._window.cut(slots)
        ints, floats, candidates = draw_numbers(slots, 1, self.model.num_codes)
        draw = read_draw(upload(ints, self.device), upload(floats, self.device), self._zero)
        eos = self.model.eos_code
        for slot, code in zip(slots, pick(self.model.logits(hidden), draw, eos, candidates).tolist(), strict=True):
            slot.take(code, eos)

    # ---- condition ------------------------------------------------------------------------------------------------

    def _prefilled(self) -> list[Slot]:
        """The slots that speak, with the conditions of new calls fed, all but the last row of each."""
        slots = self._speaking()
        fresh = [slot for slot in slots if call_of(slot).rows is None]
        parts: list[tuple[Slot, torch.Tensor]] = []
        for slot, rows in zip(fresh, self._conditions(fresh) if fresh else (), strict=True):
            call = call_of(slot)
            call.rows = rows
            part = self._window.begin(slot, rows)
            call.max_new = min(call.max_new, self._window.room(slot, len(part)))
            if len(part) > 1:
                parts.append((slot, part[:-1]))
        for some in self._together(parts):
            self._forward([slot for slot, _ in some], torch.cat([part for _, part in some]), [len(p) for _, p in some])
        return slots

    def _together(self, parts: list[tuple[Slot, torch.Tensor]]) -> Iterator[list[tuple[Slot, torch.Tensor]]]:
        """Rows of calls in runs that recorded steps hold; where nothing is recorded, all at once."""
        some: list[tuple[Slot, torch.Tensor]] = []
        for part in parts:
            fits = self._chunks is None or self._chunks.fits([len(rows) for _, rows in (*some, part)])
            if some and not fits:
                yield some
                some = []
            some.append(part)
        if some:
            yield some

    def _conditions(self, slots: list[Slot]) -> list[torch.Tensor]:
        """Rows [n, E] of each call: its text, then the marks that its rule asks for."""
        works = [call_of(slot).work for slot in slots]
        ids = upload(np.array([id for work in works for id in work.ids], np.int64), self.device)
        given = [work.hidden.to(self.device, self.dtype) for work in works if work.hidden is not None and work.ids]
        end, begin = self._feeds.marks
        pool = torch.cat((begin, end, self.model.condition(ids, torch.cat(given)) if given else end[:0]))
        picked: list[int] = []
        counts: list[int] = []
        first = 2
        for slot, work in zip(slots, works, strict=True):
            rule, stop = slot.rule.text_eos, first + len(work.ids)
            ends = rule == "always" or (rule == "last" and work.last)
            rows = [*range(first, stop), *([1, 0] if ends else [0])]
            picked += rows
            counts.append(len(rows))
            first = stop
        return list(pool[upload(np.array(picked), self.device)].split(counts))

    def _forward(self, slots: list[Slot], x: torch.Tensor, counts: list[int]) -> torch.Tensor:
        """Feed counts[i] rows of x to each slot -> hidden of the last one of each, [b, E]."""
        at = np.array([slot.position + i for slot, count in zip(slots, counts, strict=True) for i in range(count)])
        for slot, count in zip(slots, counts, strict=True):
            slot.feed(count)
        lens = [slot.length for slot in slots]
        tables = [self._tables[slot.index, : -(-slot.length // self.block_size)].tolist() for slot in slots]
        if self._chunks is not None and self._chunks.fits(counts):
            self._chunks.x[: len(x)] = x
            return self._chunks.run(counts, lens, at[None], tables)[2]
        plan = self._plans(counts, lens, tables, self.block_size, self.device)
        rows = upload(np.cumsum(counts) - 1, self.device) if len(at) > len(slots) else None
        return self.model.forward(x, ModelInputs(upload(at, self.device), plan, self._kv, rows))
