"""What is decided in full duplex, against the traces of the released code and of its demo."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from sensorium.models.minicpm_codes import TurnSpeech
from sensorium.models.minicpm_draw import Uniforms, candidates
from sensorium.models.minicpm_duplex import MAX_CHARS, DuplexPolicy
from sensorium.models.minicpm_duplex_record import SessionRecord
from sensorium.models.minicpm_duplex_sampler import TextSampler, TextSampling, adjusted, decode_all
from sensorium.types import Decision, MediaItem, Prompt, SamplingParams, Span, Unit
from tests.models.speech_golden import LittleTokenizer, little_tokens, needs_golden, read_case, read_case_tensors

pytestmark = needs_golden
TRACES = ["duplex_released_window_off", "duplex_released_window_basic", "duplex_released_window_context"]
DEMO = "duplex_demo_deferred_finalize"


class Scripted(Uniforms):
    def __init__(self, *numbers: float) -> None:
        super().__init__(0)
        self.numbers = numbers

    def __call__(self) -> float:
        self.position += 1
        return self.numbers[self.position - 1]


# ---- the sampler --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", range(14))
def test_the_sampler_draws_from_the_distributions_of_the_reference(row):
    case, tensors, tokens = read_case("duplex_decode_step"), read_case_tensors("duplex_decode_step"), little_tokens()
    stored = case["rows"][row]
    sampling = TextSampling(**{**case["defaults"], **stored["params"]})
    logits = tensors[f"logits_{row}"][None]
    assert sorted(tokens.forbidden) == sorted(case["forbidden"])
    ends = stored["draws"][0] == tokens.chunk_eos
    # 0 takes the likeliest of the candidates, and chunk_eos in the first draw; almost 1 never takes it there.
    sampler = TextSampler(tokens)
    sampler.uniforms = Scripted(0.0 if ends else 0.9999999, 0.0)
    sampler.history = list(stored["history_before"])
    if f"probs_final_{row}" in tensors:
        ids, shares = candidates(
            adjusted([sampler], [sampling], logits), [sampling.temperature], [sampling.top_k], [sampling.top_p]
        )
        found = torch.zeros(logits.shape[1]).scatter(0, ids[0], shares[0])
        torch.testing.assert_close(found, tensors[f"probs_final_{row}"], atol=2e-5, rtol=0)
    assert decode_all([sampler], [sampling], logits) == [stored["returned"]]
    assert sampler.history == stored["history_after"]


def test_sessions_sampled_together_draw_what_each_draws_alone():
    case, tensors, tokens = read_case("duplex_decode_step"), read_case_tensors("duplex_decode_step"), little_tokens()
    samplings = [TextSampling(**{**case["defaults"], **row["params"]}) for row in case["rows"]]
    samplings += [TextSampling(decode_mode="greedy"), TextSampling(listen_scale=0.0), TextSampling(listen_scale=3.0)]
    logits = torch.stack([tensors[f"logits_{row % 14}"] for row in range(len(samplings))])

    def fresh() -> list[TextSampler]:
        samplers = [TextSampler(tokens, seed) for seed in range(len(samplings))]
        for sampler in samplers:
            sampler.history = list(case["rows"][0]["history_before"])
        return samplers

    together = decode_all(fresh(), samplings, logits)
    alone = [
        decode_all([sampler], [sampling], row[None])[0]
        for sampler, sampling, row in zip(fresh(), samplings, logits, strict=True)
    ]
    assert together == alone
    assert len(set(together)) > 5


def test_draws_have_the_frequencies_of_the_distribution():
    tokens = little_tokens()
    logits = torch.full((512,), -20.0)
    logits[13], logits[14], logits[tokens.chunk_eos] = 1.0, 0.0, 0.0
    sampling = TextSampling(temperature=1.0, top_p=1.0, text_repetition_penalty=1.0)
    samplers = [TextSampler(tokens, seed) for seed in range(4000)]
    got = decode_all(samplers, [sampling] * 4000, logits.expand(4000, -1))
    share = logits.softmax(0)
    ended = share[tokens.chunk_eos].item()
    first = (1 - ended) * (share[13] / (share[13] + share[14])).item()
    assert abs(got.count(tokens.chunk_eos) / 4000 - ended) < 0.03
    assert abs(got.count(13) / 4000 - first) < 0.03


def test_our_own_scale_changes_the_odds_of_listening():
    tokens = little_tokens()
    logits = torch.randn(1, 512, generator=torch.Generator().manual_seed(1))

    def odds(scale: float) -> float:
        sampler = TextSampler(tokens)
        share = adjusted([sampler], [TextSampling(listen_scale=scale)], logits).softmax(1)[0, tokens.listen].item()
        return share / (1 - share)

    assert odds(3.0) == pytest.approx(3 * odds(1.0), rel=1e-4)
    assert odds(0.0) == 0.0


# ---- whole sessions -----------------------------------------------------------------------------------------------


class Replay:
    """A stored session, unit by unit, through a policy, a record and the state of its speech."""

    def __init__(self, name: str) -> None:
        self.case, self.tensors, self.tokenizer = read_case(name), read_case_tensors(name), LittleTokenizer()
        self.demo = name == DEMO
        config = dict(self.case["config"])
        suffix = [492, 483] if config["sliding_window_mode"] == "context" else []
        self.policy = DuplexPolicy(self.tokenizer, SamplingParams(), {**config, "suffix_ids": suffix})  # type: ignore[arg-type]
        self.record = SessionRecord(lambda ids: self.tokenizer.decode(ids, skip_special=False))
        self.speech = TurnSpeech(eager=self.demo)
        self.length = 0
        self.said: list[int] = []

    def opened(self) -> None:
        before = [op for op in self.case["ops"][: self.index("prepared")] if op["op"] == "feed"]
        self.length = sum(op["n"] for op in before)
        self.policy.opened(self.length)

    def index(self, name: str) -> int:
        return next(i for i, op in enumerate(self.case["ops"]) if op["op"] == name)

    def units(self) -> Iterator[list[dict[str, Any]]]:
        ops = self.case["ops"][self.index("prepared") + 1 :]
        starts = [i for i, op in enumerate(ops) if op["op"] == "unit_begin"]
        for start, stop in zip(starts, [*starts[1:], len(ops)], strict=True):
            if any(op["op"] == "prefill_result" and op["success"] for op in ops[start:stop]):
                yield ops[start:stop]

    def unit(self, ops: list[dict[str, Any]]) -> dict[str, Any]:
        """Runs one unit: everything that was fed, dropped, spoken and told must be as stored. Its info."""
        result = next(op for op in ops if op["op"] == "result")
        cut = next(i for i, op in enumerate(ops) if op["op"] == "prefill_result")
        prompt = self.prompt([op for op in ops[:cut] if op["op"] == "feed"])
        options = self.options(ops)
        self.policy.begin(Unit(result["unit"], prompt, 0, 0, options=options), self.length)
        self.record.begin()
        self.record.fed(prompt)
        self.length += len(prompt.ids)
        fed: list[int] = []
        for decision in self.decisions(ops):
            fed += decision.feed
            self.length += len(decision.feed)
        stored = [i for op in ops[cut:] if op["op"] == "feed" for i in op["what"]]
        if self.policy.options.window.sliding_window_mode == "context":
            stored = stored[: len(fed)]  # what follows is the suffix, computed anew
        assert fed == stored
        self.record.said(fed)
        outcome = self.policy.end(self.length)
        for splice in outcome.splices:
            assert splice.stop is not None
            self.length += len(splice.ids) - (splice.stop - splice.start)
        self.check_state(ops)
        self.check_speech(ops, result, outcome.info)
        return dict(outcome.info)

    def decisions(self, ops: list[dict[str, Any]]) -> Iterator[Decision]:
        rows = [(op["logits_tensor"], i) for i, op in enumerate(ops) if op["op"] == "feed" and op["logits"]]
        for name, at in rows:
            logits = self.tensors[name].clone()
            following = ops[at + 1 : at + 2]
            if following and following[0]["op"] == "override":
                logits[following[0]["token"]] = logits.max() + 50
            decision = self.policy.decide(logits)
            yield decision
            if decision.end:
                return
        raise AssertionError("the unit did not end")

    def options(self, ops: list[dict[str, Any]]) -> dict[str, Any]:
        decoded = [op for op in ops if op["op"] == "decode"]
        names = {"mode": "decode_mode"}
        given = {names.get(k, k): v for k, v in decoded[0]["params"].items()} if decoded else {"decode_mode": "greedy"}
        if self.demo:
            fed = [op["what"] for op in ops if op["op"] == "feed"]
            given |= {"max_chars": MAX_CHARS, "force_listen": [502] in fed and not decoded}
        # Token 27 is the one that the demo's limit of characters rejects.
        if decoded and decoded[-1]["token"] not in (27, *self.policy.tokens.terminators):
            given["max_new_speak_tokens_per_chunk"] = len(decoded) + 1
        return given

    def prompt(self, feeds: list[dict[str, Any]]) -> Prompt:
        ids: list[int] = []
        spans: list[Span] = []
        media: list[MediaItem] = []
        for part in self.parts(feeds):
            if isinstance(part, int):
                ids.append(part)
                continue
            modality, rows = part
            spans.append(Span(len(ids), rows, len(media)))
            media.append(MediaItem(modality, b"", rows, {}))  # type: ignore[arg-type]
            ids += [510] * rows
        return Prompt(tuple(ids), tuple(spans), tuple(media))

    def parts(self, feeds: list[dict[str, Any]]) -> Iterator[int | tuple[str, int]]:
        """Ids, and media as (modality, rows): a picture has 3 here, a second of sound 4."""
        for op in feeds:
            for part in op["what"] if isinstance(op["what"], list) else [op["what"]]:
                yield part if isinstance(part, int) else (part.partition(":")[0], 4 if part[0] == "a" else 3)

    def check_state(self, ops: list[dict[str, Any]]) -> None:
        state = next(op for op in ops if op["op"] == "state")
        window = self.policy.window
        assert self.length == window.length == state["cache_len"]
        units = [
            {
                "id": unit.id,
                "length": unit.length,
                "type": unit.type,
                "is_listen": unit.is_listen,
                "generated_tokens": [] if unit.is_listen else list(unit.ids),
                "text": "" if unit.is_listen else unit.text,
            }
            for unit in window.units
        ]
        stored = [dict(unit) for unit in state["units"]]
        for unit in stored:  # what a listening unit said before is not asked for
            if unit["is_listen"]:
                unit.update(generated_tokens=[], text="")
        assert units == stored
        assert self.policy.sampler.history == state["generated_tokens_for_penalty"]

    def check_speech(self, ops: list[dict[str, Any]], result: dict[str, Any], info: dict[str, Any]) -> None:
        ids = self.policy.words.ids
        for name in ("is_listen", "end_of_turn"):
            assert info[name] == result[name]
        assert len(ids) == result["n_tokens"]
        assert result["text"] == ("" if info["is_listen"] else self.tokenizer.decode(ids))
        assert info["turn_open"] is not result["current_turn_ended"]
        tts = [op for op in ops if op["op"] == "tts"]
        streamed = [(tuple(op["tokens"]), op["last_chunk"]) for op in ops if op["op"] == "codec_stream"]
        if info["speech_ends"]:
            self.speech.reset()
        if info["is_listen"]:
            assert not tts
            return
        assert len(tts) == 1
        bounds = self.speech.bounds(end_of_turn=info["end_of_turn"])
        if self.speech.position == tts[0]["text_start_pos"]:
            assert bounds == (tts[0]["min_new_tokens"], tts[0]["max_new_token"])
        else:
            assert self.demo, "only where the demo carries a dropped turn's cache on, ours starts afresh"
        assert tts[0]["condition_len"] == len(ids) + 1
        blocks = self.speech.take(len(ids) + 1, tts[0]["returned"], end_of_turn=info["end_of_turn"])
        if not self.demo or self.speech.position == result["tts_text_start_pos"]:
            assert [(block.codes, block.last) for block in blocks] == streamed
        assert self.speech.buffer.codes == result["codec_buffer"]


@pytest.mark.parametrize("name", [*TRACES, DEMO])
def test_sessions_feed_say_and_drop_what_the_reference_does(name):
    replay = Replay(name)
    replay.opened()
    prepared = replay.case["ops"][replay.index("prepared")]
    assert replay.policy.window.protected_len == prepared["preserve_len"]
    for ops in replay.units():
        info = replay.unit(ops)
        dropped = [op for op in ops if op["op"] == "window_context_drop"]
        if dropped:
            assert info["window"]["preserve_length"] == dropped[-1]["preserve_len"]
            assert list(replay.policy.window.previous_ids) == dropped[-1]["previous_token_ids"]
            assert info["window"]["previous_text"] == dropped[-1]["previous_text"]
    assert replay.record.session_schema() == replay.case["session_schema"]
