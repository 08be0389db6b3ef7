"""What /metrics says after real requests to a live server: every family moves as it should."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from server.bodies import chat, image, png, raw
from server.live import Live, eventually, serve, user
from server.samples import data_url, picture, sound
from server.test_faults import Streaming

from sensorium.config import ServerConfig
from sensorium.engine.client import EngineClient
from sensorium.engine.histogram import Histogram
from sensorium.errors import SensoriumError
from sensorium.server.app import build_app
from sensorium.server.lag import PERIOD_S, LoopLag
from sensorium.server.metrics import TOKENS
from sensorium.types import SamplingParams

VLLM = {
    "num_requests_running", "num_requests_waiting", "num_requests_waiting_by_reason", "kv_cache_usage_perc",
    "cache_config_info", "prefix_cache_queries", "prefix_cache_hits", "mm_cache_queries", "mm_cache_hits",
    "num_preemptions", "prompt_tokens", "prompt_tokens_by_source", "prompt_tokens_cached", "generation_tokens",
    "request_success", "admission_rejections", "time_to_first_token_seconds", "inter_token_latency_seconds",
    "request_time_per_output_token_seconds", "e2e_request_latency_seconds", "request_queue_time_seconds",
    "request_prefill_time_seconds", "request_decode_time_seconds", "request_inference_time_seconds",
    "request_prompt_tokens", "request_generation_tokens", "request_max_num_generation_tokens", "request_params_n",
    "request_params_max_tokens", "iteration_tokens_total", "request_num_preemptions",
    "request_prefill_kv_computed_tokens",
}  # fmt: skip
"""The names of vLLM that mean something here."""


class Scrape(dict[str, float]):
    """Samples of the sensorium: and http names, as name or name{label,...}; what is not there is 0."""

    def __init__(self, live: Live) -> None:
        text = live.request("GET", "/metrics")[2].decode()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                labels = [v for k, v in sorted(sample.labels.items()) if k not in ("model_name", "engine")]
                name = sample.name.removeprefix("sensorium:")
                self[name + (f"{{{','.join(labels)}}}" if labels else "")] = sample.value

    def __missing__(self, name: str) -> float:
        return 0.0


class Moved(Scrape):
    """What the requests made inside `watching` changed."""

    def __init__(self) -> None:
        dict.__init__(self)


@contextmanager
def watching(live: Live) -> Iterator[Moved]:
    before, moved = Scrape(live), Moved()
    yield moved
    after = Scrape(live)
    moved.update({name: value - before[name] for name, value in after.items()})


def counted(moved: Moved, *histograms: str) -> list[float]:
    """How many values each histogram got; its last bucket and its count must agree."""
    for name in histograms:
        assert moved[f"{name}_count"] == moved[f"{name}_bucket{{+Inf}}"]
    return [moved[f"{name}_count"] for name in histograms]


# ---- names ----


def families(text: str, prefix: str) -> dict[str, str]:
    found = {family.name: family.type for family in text_string_to_metric_families(text)}
    return {name.removeprefix(prefix): kind for name, kind in found.items() if name.startswith(prefix)}


def test_the_names_of_vllm_are_there_twice_and_say_the_same(live: Live):
    live.post(chat())
    text = live.request("GET", "/metrics")[2].decode()
    vllm, own = families(text, "vllm:"), families(text, "sensorium:")
    assert set(vllm) == VLLM
    assert vllm.items() <= own.items()
    lines = text.splitlines()
    theirs = {line.replace("vllm:", "") for line in lines if "vllm:" in line}
    assert theirs <= {line.replace("sensorium:", "") for line in lines}


def test_every_sample_of_an_engine_says_which(live: Live):
    lines = live.request("GET", "/metrics")[2].decode().splitlines()
    samples = [line for line in lines if line.startswith(("vllm:", "sensorium:"))]
    assert samples
    assert all('engine="0"' in line and 'model_name="tiny"' in line for line in samples)


# ---- requests ----


def test_a_finished_request_is_counted_once(live: Live):
    with watching(live) as moved:
        begun = time.monotonic()
        status, answer = live.post(chat(max_tokens=9, ignore_eos=True))
        seconds = time.monotonic() - begun
    prompt = answer["usage"]["prompt_tokens"]
    assert status == 200
    assert moved["generation_tokens_total"] == moved["request_generation_tokens_sum"] == 9
    assert moved["request_success_total{length}"] == moved["request_params_n_sum"] == 1
    assert moved["request_params_max_tokens_sum"] == moved["request_max_num_generation_tokens_sum"] == 9
    assert moved["request_prompt_tokens_sum"] == moved["prompt_tokens_total"] == prompt
    once = ("e2e_request_latency_seconds", "time_to_first_token_seconds", "request_queue_time_seconds",
            "request_prefill_time_seconds", "request_decode_time_seconds", "request_inference_time_seconds",
            "request_time_per_output_token_seconds", "request_num_preemptions")  # fmt: skip
    assert counted(moved, *once) == [1] * len(once)
    assert counted(moved, "inter_token_latency_seconds") == [8]
    parts = moved["request_prefill_time_seconds_sum"] + moved["request_decode_time_seconds_sum"]
    assert parts == pytest.approx(moved["request_inference_time_seconds_sum"], abs=1e-4)
    whole = moved["request_queue_time_seconds_sum"] + moved["request_inference_time_seconds_sum"]
    assert whole == pytest.approx(moved["e2e_request_latency_seconds_sum"], abs=1e-4)
    assert 0 < moved["inter_token_latency_seconds_sum"] < seconds
    steps = counted(moved, "iteration_tokens_total")[0]
    assert moved["engine_steps_total"] >= steps >= 9
    computed = moved["prompt_tokens_by_source_total{local_compute}"] + 9 - 1
    assert moved["iteration_tokens_total_sum"] == computed, "the last token is never computed with"


def test_several_answers_to_a_prompt(live: Live):
    with watching(live) as moved:
        live.post(chat(n=3, seed=1, temperature=2.0, max_tokens=4, ignore_eos=True))
    assert moved["request_params_n_sum"] == 3
    assert counted(moved, "request_params_n", "request_max_num_generation_tokens") == [1, 1]
    assert moved["request_max_num_generation_tokens_sum"] == 4
    assert counted(moved, "request_generation_tokens", "e2e_request_latency_seconds") == [3, 3]


def test_tokens_found_in_the_prefix_cache(live: Live):
    body = chat(messages=user("A sentence that is long enough to fill some blocks of the cache. " * 4))
    live.post(body)
    with watching(live) as moved:
        usage = live.post(body)[1]["usage"]
    prompt, cached = usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]
    assert cached > 0
    assert moved["prefix_cache_queries_total"] == moved["prompt_tokens_total"] == prompt
    assert moved["prefix_cache_hits_total"] == moved["prompt_tokens_cached_total"] == cached
    assert moved["prompt_tokens_by_source_total{local_cache_hit}"] == cached
    assert moved["prompt_tokens_by_source_total{local_compute}"] == prompt - cached
    assert moved["request_prefill_kv_computed_tokens_sum"] == prompt - cached


def test_gauges_while_a_request_runs_and_after(live: Live):
    with watching(live) as moved:
        stream = Streaming(live, max_tokens=600)
        assert stream.begun.wait(120)
        now = Scrape(live)
        assert now["num_requests_running"] == 1
        assert 0 < now["kv_cache_usage_perc"] < 1
        stream.wait()
        assert eventually(lambda: Scrape(live)["num_requests_running"] == 0)
    assert moved["request_success_total{length}"] == 1
    assert moved["kv_cache_usage_perc"] == 0


def test_what_a_client_leaves_is_an_abort_and_what_is_refused_is_not(live: Live):
    with watching(live) as moved:
        live.post(chat(messages=user("word " * 5000)))
    assert moved["request_errors_total{context_length_exceeded}"] == 1
    assert sum(moved[f"request_success_total{{{reason}}}"] for reason in ("abort", "error", "stop")) == 0
    with watching(live) as moved:
        body = b'{"messages":[{"role":"user","content":"Go on."}],"max_tokens":1500,"ignore_eos":true}'
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
        leave(live, head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
    assert moved["request_success_total{abort}"] == 1
    assert moved["http_requests_total{/v1/chat/completions,POST,499}"] == 1


def leave(live: Live, data: bytes) -> None:
    with socket.create_connection(("127.0.0.1", live.port)) as connection:
        connection.sendall(data)
        assert eventually(lambda: live.engine.num_requests == 1)
    assert eventually(lambda: live.engine.num_requests == 0)


def test_preempted_requests_count_their_prompt_once(engine: EngineClient):
    config = replace(engine.config, max_model_len=600, num_gpu_blocks_override=40, enable_prefix_caching=False)
    with EngineClient(config) as tight, serve(tight) as live, watching(live) as moved:
        streams = [
            Streaming(
                live, messages=user(f"{i} " + "and so on " * 20), max_tokens=200, stream_options={"include_usage": True}
            )
            for i in range(4)
        ]
        usage = [stream.wait()[-1]["usage"] for stream in streams]
    assert moved["num_preemptions_total"] > 0
    assert moved["request_num_preemptions_sum"] == moved["num_preemptions_total"]
    assert moved["prompt_tokens_total"] == sum(one["prompt_tokens"] for one in usage)
    assert moved["prefix_cache_queries_total"] == 0, "the cache is off"
    assert moved["iteration_tokens_total_sum"] > moved["prompt_tokens_total"] + moved["generation_tokens_total"]


def test_requests_too_many(engine: EngineClient):
    with EngineClient(replace(engine.config, max_num_queued_reqs=1)) as narrow, serve(narrow) as live:
        stream = Streaming(live)
        assert stream.begun.wait(120)
        with watching(live) as moved:
            assert live.post(chat())[0] == 429
        assert moved["admission_rejections_total{requests}"] == moved["request_errors_total{overloaded}"] == 1
        narrow.cut()
        stream.wait()


def test_answer_formats(live: Live):
    wanted: dict[str, Any] = {"regex": f"[a-d]{{{1 + time.time_ns() % 50}}}"}
    body = chat(structured_outputs=wanted, max_tokens=4)
    with watching(live) as moved:
        assert live.post(body)[0] == 200
    assert counted(moved, "structured_output_compile_seconds", "structured_output_check_seconds") == [1, 1]
    assert moved["structured_output_compile_seconds_sum"] > 0
    with watching(live) as moved:
        live.post(body)
    assert counted(moved, "structured_output_compile_seconds", "structured_output_check_seconds") == [1, 0]


# ---- sessions ----


def test_units_of_a_session(live: Live):
    prompt = live.engine.prepare_raw([5, 6, 7])
    with watching(live) as moved:
        session = live.engine.open_session(prompt, sampling=SamplingParams(max_tokens=3, ignore_eos=True), max_len=256)
        session.opened()
        assert eventually(lambda: Scrape(live)["sessions_open"] == 1)
        for deadline_s in (0.0, time.monotonic() + 3600):
            session.run(prompt, deadline_s=deadline_s)
        with pytest.raises(SensoriumError):
            session.run(prompt, options={"unknown": 1})
        session.barge_in()
        session.close()
        assert eventually(lambda: Scrape(live)["sessions_open"] == 0)
    units = {result: moved[f"session_units_total{{{result}}}"] for result in ("on_time", "late", "failed")}
    assert units == {"on_time": 1, "late": 1, "failed": 1}
    assert moved["session_barge_ins_total"] == 1
    stages = [f"session_unit_seconds_sum{{{stage}}}" for stage in ("queue", "prefill", "decode")]
    assert sum(moved[stage] for stage in stages) == pytest.approx(moved["session_unit_seconds_sum{total}"], abs=1e-4)
    assert moved["session_unit_seconds_count{total}"] == 2
    assert moved["device_pass_seconds_count{prefill}"] >= 2
    assert moved["device_pass_seconds_count{decode}"] >= 4
    assert moved["engine_step_seconds_total{run}"] > 0


# ---- media ----


def test_a_picture_all_the_way(live: Live):
    data = picture(seed=time.time_ns() % 10**6)
    with watching(live) as moved:
        assert live.post(png(data))[0] == 200
    assert moved["mm_items_total{image}"] == moved["mm_encoded_items_total"] == 1
    assert moved["media_bytes_total{image}"] == len(data)
    assert (moved["mm_cache_queries_total"], moved["mm_cache_hits_total"]) == (1, 0)
    assert (moved["encoder_cache_queries_total"], moved["encoder_cache_hits_total"]) == (1, 0)
    phases = [f"mm_{phase}_seconds" for phase in ("fetch", "decode", "preprocess", "encoder")]
    for name in phases:
        assert moved[f"{name}_count{{image}}"] == moved[f"{name}_bucket{{+Inf,image}}"] == 1
        assert 0 < moved[f"{name}_sum{{image}}"] < 60
    assert moved["encoder_cache_bytes"] > 0 < moved["encoder_cache_usage_perc"] < 1
    with watching(live) as moved:
        live.post(png(data))
    assert (moved["mm_cache_queries_total"], moved["mm_cache_hits_total"]) == (1, 1)
    assert moved["mm_items_total{image}"] == 1
    assert moved["mm_decode_seconds_count{image}"] == moved["mm_encoded_items_total"] == 0


def test_media_that_are_refused(live: Live):
    with watching(live) as moved:
        assert live.post(image(data_url("image/png", b"no picture")))[0] == 400
        assert live.post(image("http://127.0.0.1:1/a.png"))[0] == 400
    assert moved["mm_errors_total{image,invalid_media}"] == 1
    assert moved["mm_errors_total{image,media_url_blocked}"] == 1
    assert moved["mm_items_total{image}"] == 0
    assert moved["request_errors_total{invalid_media}"] == 1


# ---- HTTP ----


def test_exchanges_by_route_with_their_sizes(live: Live):
    body = b'{"prompt":"a","model":"tiny"}'
    with watching(live) as moved:
        _, _, answer = live.request("POST", "/tokenize", body, {"content-type": "application/json"})
        live.request("GET", "/health")
        live.request("GET", "/v1/models")
    assert moved["http_requests_total{/tokenize,POST,200}"] == 1
    assert moved["http_request_duration_seconds_count{/tokenize,POST}"] == 1
    assert moved["http_request_size_bytes_sum{/tokenize}"] == len(body)
    assert moved["http_response_size_bytes_sum{/tokenize}"] == len(answer)
    assert sum(value for name, value in moved.items() if name.startswith("http_requests_total")) == 2


def test_paths_and_methods_of_strangers_make_no_new_labels(live: Live):
    for number in range(50):
        live.request("GET", f"/v1/guess/{number}")
        live.post(chat(model=f"guess-{number}"))
    live.request("PROPFIND", "/v1/models")
    live.post(raw("temperature", "1e999"))
    text = live.request("GET", "/metrics")[2].decode()
    assert "guess" not in text
    assert "PROPFIND" not in text
    assert 'handler="other"' in text


def test_without_statistics_only_http_is_counted(engine: EngineClient):
    with EngineClient(replace(engine.config, disable_log_stats=True)) as quiet, serve(quiet) as live:
        live.post(chat())
        text = live.request("GET", "/metrics")[2].decode()
    assert "http_requests_total{" in text
    assert "sensorium:" not in text


async def test_an_exchange_is_counted_before_its_last_bytes_leave(engine: EngineClient):
    app, pages = build_app(engine, ServerConfig()), []

    async def get(path: str, send: Any) -> None:
        scope = {
            "type": "http",
            "method": "GET",
            "path": path,
            "query_string": b"",
            "headers": [(b"host", b"localhost")],
        }
        await app(scope, asyncio.Event().wait, send)  # pyright: ignore

    async def look(message: Any) -> None:
        if message["type"] == "http.response.body" and not message.get("more_body"):
            await get("/metrics", keep)

    async def keep(message: Any) -> None:
        pages.append(message.get("body", b""))

    await get("/v1/models", look)
    assert b'http_requests_total{handler="/v1/models",method="GET",status="200"} 1.0' in b"".join(pages)


# ---- parts ----


def test_histogram_buckets_are_cumulative():
    histogram = Histogram(TOKENS[:3])
    for value in (0.5, 1, 2, 3, 99):
        histogram.observe(value)
    assert histogram.freeze() is histogram.freeze()
    histogram.observe(4, times=2)
    frozen = histogram.freeze()
    assert frozen.cumulative(TOKENS[:3]) == [("1.0", 2), ("2.0", 3), ("5.0", 6), ("+Inf", 7)]
    assert frozen.sum == 113.5


async def test_a_blocked_loop_is_late():
    lag, begun = LoopLag(), time.monotonic()
    lag.watch()
    lag.watch()
    end = time.monotonic() + 3 * PERIOD_S
    while time.monotonic() < end:
        pass
    for _ in range(2):
        await asyncio.sleep(0)
    seconds = time.monotonic() - begun
    frozen = lag.histogram.freeze()
    assert sum(frozen.counts) == 1, "one timer, however often it is asked to watch"
    assert 1.9 * PERIOD_S < frozen.sum < seconds - 0.9 * PERIOD_S


def test_the_loop_of_a_server_is_watched(live: Live):
    live.request("GET", "/health")
    before = Scrape(live)["event_loop_lag_seconds_count"]
    assert eventually(lambda: Scrape(live)["event_loop_lag_seconds_count"] > before)


def test_a_recording_counts_as_one(live: Live):
    part = {"type": "input_audio", "input_audio": {"data": re.sub("^.*,", "", data_url("", sound())), "format": "wav"}}
    with watching(live) as moved:
        assert live.post(chat(messages=user([part])))[0] == 200
    assert moved["mm_items_total{audio}"] == 1


# ---- in answers ----


@pytest.fixture(scope="module")
def timed(engine: EngineClient) -> Iterator[Live]:
    with serve(engine, enable_per_request_metrics=True) as server:
        yield server


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_an_answer_says_how_long_it_took(timed: Live, path: str):
    asked = {"messages": user("hi")} if "chat" in path else {"prompt": "hi"}
    body = asked | {"max_tokens": 6, "ignore_eos": True}
    start = time.monotonic()
    metrics = timed.post(body, path)[1]["metrics"]
    whole_ms = 1000 * (time.monotonic() - start)
    assert 0 <= metrics["queue_time_ms"] < metrics["time_to_first_token_ms"] < metrics["generation_time_ms"] < whole_ms
    rest_ms = metrics["generation_time_ms"] - metrics["time_to_first_token_ms"]
    assert metrics["mean_itl_ms"] == pytest.approx(rest_ms / 5, abs=0.01)
    assert metrics["tokens_per_second"] == pytest.approx(6000 / metrics["generation_time_ms"], rel=0.01)
    assert "metrics" not in timed.post(body | {"n": 2, "seed": 1, "temperature": 1.0}, path)[1]
    data = json.dumps(body | {"stream": True, "stream_options": {"include_usage": True}}).encode()
    streamed = timed.request("POST", path, data, {"content-type": "application/json"})[2].split(b"\n\n")
    chunks = [json.loads(line.removeprefix(b"data: ")) for line in streamed if line.startswith(b"data: {")]
    assert ["metrics" in chunk for chunk in chunks] == [False] * (len(chunks) - 1) + [True]


def test_answers_say_nothing_of_it_unasked(live: Live):
    assert "metrics" not in live.post(chat())[1]
