"""Embedding doors on a generator served with the pooling runner: forms, encodings, scores, ranks, hostile requests."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from server import samples
from server.bodies import image_part
from server.live import Live, eventually, serve, user

from sensorium.config import EngineConfig
from sensorium.engine.client import EngineClient
from sensorium.server.vectors import to_bytes

PNG_URL = samples.data_url("image/png", samples.picture())


@pytest.fixture(scope="module")
def pooler(packaged_model: Path) -> Iterator[Live]:
    config = EngineConfig(
        model=str(packaged_model),
        runner="pooling",
        max_model_len=1024,
        max_num_seqs=4,
        max_waiting=4,
        kv_cache_bytes=32 << 20,
    )
    with EngineClient(config) as engine, serve(engine, served_model_name="tiny") as server:
        yield server


@pytest.fixture(scope="module")
def sdk(pooler: Live) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{pooler.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


def vectors(live: Live, **body: Any) -> list[list[float]]:
    status, answer = live.post(body, "/v1/embeddings")
    assert status == 200, answer
    assert [item["index"] for item in answer["data"]] == list(range(len(answer["data"])))
    return [item["embedding"] for item in answer["data"]]


def test_the_sdk_gets_vectors_of_length_one(sdk: openai.OpenAI, pooler: Live):
    answer = sdk.embeddings.create(model="tiny", input=["Hello", "Good morning"])  # base64 on the wire
    assert answer.object == "list"
    assert len(answer.data) == 2
    for item in answer.data:
        assert len(item.embedding) == pooler.engine.facts.hidden_size
        assert math.hypot(*item.embedding) == pytest.approx(1, abs=1e-4)
    [plain, _] = vectors(pooler, input=["Hello", "Good morning"])
    assert answer.data[0].embedding == pytest.approx(plain, abs=1e-6)
    _, tokens = pooler.post({"prompt": "Hello"}, "/tokenize")
    one = sdk.embeddings.create(model="tiny", input="Hello")
    assert one.usage.prompt_tokens == one.usage.total_tokens == tokens["count"]
    by_ids = sdk.embeddings.create(model="tiny", input=tokens["tokens"])
    assert by_ids.data[0].embedding == pytest.approx(plain, abs=1e-3)
    assert sdk.embeddings.create(model="tiny", input=[tokens["tokens"]]).data[0].index == 0


def test_a_prompt_has_the_same_vector_alone_and_among_many(pooler: Live):
    texts = [f"Sentence number {number}, and so on." for number in range(20)]  # more than the engine takes at once
    together = vectors(pooler, input=texts)
    for number in (0, 7, 19):
        assert vectors(pooler, input=texts[number])[0] == pytest.approx(together[number], abs=2e-3)
    assert np.abs(np.array(together[0]) - together[1]).max() > 1e-3


def test_conversations_with_pictures_have_vectors(pooler: Live):
    [plain] = vectors(pooler, messages=user("What is that?"))
    [shown] = vectors(pooler, messages=user([image_part(PNG_URL), {"type": "text", "text": "What is that?"}]))
    [other] = vectors(pooler, messages=user([image_part(PNG_URL), "What is that?"]), add_generation_prompt=True)
    assert len(plain) == len(shown) == len(other)
    assert np.abs(np.array(plain) - shown).max() > 1e-3
    assert np.abs(np.array(other) - shown).max() > 1e-3


def test_use_activation_false_leaves_the_length(pooler: Live):
    [unit] = vectors(pooler, input="Hello")
    [whole] = vectors(pooler, input="Hello", use_activation=False)
    assert math.hypot(*whole) > 1.5
    assert (np.array(whole) / math.hypot(*whole)).tolist() == pytest.approx(unit, abs=1e-4)


@pytest.mark.parametrize("order", ["little", "big"])
@pytest.mark.parametrize(("kind", "error"), [("float32", 0), ("float16", 1e-3), ("bfloat16", 8e-3)])
def test_bytes_hold_the_same_numbers(pooler: Live, kind: str, error: float, order: str):
    [plain] = vectors(pooler, input="Hello")
    encoding = {"encoding_format": "base64", "embed_dtype": kind, "endianness": order}
    [coded] = vectors(pooler, input="Hello", **encoding)
    data = base64.b64decode(coded)
    mark = "<" if order == "little" else ">"
    if kind == "bfloat16":
        numbers = (np.frombuffer(data, f"{mark}u2").astype(np.uint32) << 16).view(np.float32)
    else:
        numbers = np.frombuffer(data, f"{mark}f{4 if kind == 'float32' else 2}")
    assert numbers.tolist() == pytest.approx(plain, abs=1e-6 + error)


def test_raw_bytes_come_with_or_without_their_places(pooler: Live):
    plain = vectors(pooler, input=["a", "b"])
    headers = {"content-type": "application/json"}
    for form in ("bytes", "bytes_only"):
        body = json.dumps({"input": ["a", "b"], "encoding_format": form}).encode()
        status, answered, data = pooler.request("POST", "/v1/embeddings", body, headers)
        assert status == 200
        assert answered["content-type"] == "application/octet-stream"
        assert np.frombuffer(data, "=f4").tolist() == pytest.approx(plain[0] + plain[1], abs=1e-3)
        assert ("metadata" in answered) == (form == "bytes")
    places = json.loads(pooler.request("POST", "/v1/embeddings", body.replace(b"_only", b""), headers)[1]["metadata"])
    assert [place["end"] - place["start"] for place in places["data"]] == [len(plain[0]) * 4] * 2


def test_eight_bit_floats_are_rounded_to_the_nearest():
    """Against all values of the format, written out from its definition: sign, exponent, mantissa."""
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(0, 1, 500), rng.normal(0, 1e-3, 200), [0, -0.0, 1e9, -1e9, 448, 2**-9]])
    for kind, mantissa, bias, largest in (("fp8_e4m3", 3, 7, 0x7E), ("fp8_e5m2", 2, 15, 0x7B)):
        table = []
        for code in range(largest + 1):
            exponent, rest = code >> mantissa, (code & ((1 << mantissa) - 1)) / (1 << mantissa)
            table.append(rest * 2.0 ** (1 - bias) if exponent == 0 else (1 + rest) * 2.0 ** (exponent - bias))
        signed = np.array(table + [-value for value in table])
        codes = np.frombuffer(to_bytes(values.astype(np.float32), kind), np.uint8)
        decoded = np.array(table)[codes & 0x7F] * np.where(codes >> 7, -1, 1)
        nearest = np.abs(signed[None] - values.astype(np.float32)[:, None]).min(axis=1)
        assert np.abs(decoded - values.astype(np.float32)) == pytest.approx(nearest, abs=1e-12)


def test_long_inputs_are_cut_where_that_is_asked_for(pooler: Live):
    _, long = pooler.post({"prompt": "word " * 50}, "/tokenize")
    ids = long["tokens"]
    [head] = vectors(pooler, input=ids, truncate_prompt_tokens=10)
    [tail] = vectors(pooler, input=ids, truncate_prompt_tokens=10, truncation_side="left")
    assert head == pytest.approx(vectors(pooler, input=ids[:10])[0], abs=1e-3)
    assert tail == pytest.approx(vectors(pooler, input=ids[-10:])[0], abs=1e-3)
    assert vectors(pooler, input="word " * 5000, truncate_prompt_tokens=-1)


def test_each_token_may_have_a_vector(pooler: Live):
    _, tokens = pooler.post({"prompt": "Hello there"}, "/tokenize")
    status, answer = pooler.post({"input": "Hello there", "task": "token_embed"}, "/pooling")
    assert status == 200
    rows = answer["data"][0]["data"]
    assert len(rows) == tokens["count"]
    [last] = vectors(pooler, input="Hello there")
    assert rows[-1] == pytest.approx(last, abs=1e-3)
    coded = pooler.post({"input": "Hello there", "task": "token_embed", "encoding_format": "base64"}, "/pooling")[1]
    assert coded["data"][0]["shape"] == [tokens["count"], len(last)]
    _, whole = pooler.post({"input": "Hello there"}, "/pooling")
    assert whole["data"][0]["data"] == pytest.approx(last, abs=1e-3)


def test_scores_are_the_cosines_of_the_vectors(pooler: Live):
    texts = ["Hello", "Good morning", "A red circle"]
    table = np.array(vectors(pooler, input=texts))
    for path in ("/score", "/v1/score"):
        _, one = pooler.post({"text_1": texts[0], "text_2": texts}, path)
        assert [item["score"] for item in one["data"]] == pytest.approx((table @ table[0]).tolist(), abs=2e-3)
    _, pairs = pooler.post({"queries": texts, "documents": texts[::-1]}, "/score")
    assert [item["score"] for item in pairs["data"]] == pytest.approx((table * table[::-1]).sum(1).tolist(), abs=2e-3)
    _, shown = pooler.post({"data_1": "Hello", "data_2": {"content": [image_part(PNG_URL)]}}, "/score")
    assert -1 <= shown["data"][0]["score"] <= 1
    assert shown["usage"]["prompt_tokens"] > 50


def test_documents_are_ranked_by_their_score(pooler: Live):
    documents: list[Any] = ["Hello", "A red circle", {"content": [image_part(PNG_URL)]}, "Hello there"]
    _, scored = pooler.post({"queries": "Hello", "documents": documents}, "/score")
    for path in ("/rerank", "/v1/rerank", "/v2/rerank"):
        _, ranking = pooler.post({"query": "Hello", "documents": documents}, path)
        results = ranking["results"]
        assert results[0]["index"] == 0
        assert results[0]["document"]["text"] == "Hello"
        assert sorted(item["index"] for item in results) == [0, 1, 2, 3]
        values = [item["relevance_score"] for item in results]
        assert values == sorted(values, reverse=True)
        expected = [scored["data"][item["index"]]["score"] for item in results]
        assert values == pytest.approx(expected, abs=2e-3)
    _, best = pooler.post({"query": "Hello", "documents": documents, "top_n": 2, "return_documents": False}, "/rerank")
    assert len(best["results"]) == 2
    assert "document" not in best["results"][0]


def test_tasks_that_the_model_lacks_are_named(pooler: Live, live: Live):
    bodies = {
        "/v1/embeddings": {"input": "a"},
        "/pooling": {"input": "a"},
        "/score": {"queries": "a", "documents": "b"},
        "/rerank": {"query": "a", "documents": ["b"]},
    }
    for path, body in bodies.items():
        status, answer = live.post(body, path)
        assert status == 404
        assert answer["error"]["message"].startswith("model tiny does not support task ")
        assert "supported: generate" in answer["error"]["message"]
    for server in (live, pooler):
        assert server.post({"input": "a"}, "/classify")[0] == 404
    assert pooler.post({"input": "a", "task": "classify"}, "/pooling")[0] == 404
    generating = {"/v1/chat/completions": {"messages": user("a")}, "/v1/completions": {"prompt": "a"}}
    for path, body in generating.items():
        status, answer = pooler.post(body, path)
        assert status in (400, 404)
        assert "embedding" in answer["error"]["message"]


HOSTILE: dict[str, tuple[str, dict[str, Any], str]] = {
    "nothing": ("/v1/embeddings", {}, "input"),
    "a template of the client": (
        "/v1/embeddings",
        {"messages": user("a"), "chat_template": "{{ 1 }}"},
        "chat_template",
    ),
    "a template without messages": ("/v1/embeddings", {"input": "a", "chat_template": "x"}, "chat_template"),
    "an option that needs trust": (
        "/v1/embeddings",
        {"messages": user("a"), "mm_processor_kwargs": {"trust_me": 1}},
        "mm_processor_kwargs.trust_me",
    ),
    "loading that needs trust": (
        "/pooling",
        {"messages": user("a"), "media_io_kwargs": {"audio": {"sr": 1}}},
        "media_io_kwargs.audio.sr",
    ),
    "a priority that nobody heeds": ("/v1/embeddings", {"input": "a", "priority": 3}, "priority"),
    "both": ("/v1/embeddings", {"input": "a", "messages": user("a")}, "input"),
    "an empty text": ("/v1/embeddings", {"input": ""}, "input"),
    "an empty text among others": ("/v1/embeddings", {"input": ["a", ""]}, "input[1]"),
    "no texts": ("/v1/embeddings", {"input": []}, "input"),
    "texts and ids": ("/v1/embeddings", {"input": ["a", 1]}, "input"),
    "an id past the vocabulary": ("/v1/embeddings", {"input": [1 << 30]}, "input"),
    "too many": ("/v1/embeddings", {"input": ["a"] * 1025}, "input"),
    "too long": ("/v1/embeddings", {"input": "word " * 3000}, "input"),
    "a conversation too long": ("/v1/embeddings", {"messages": user("word " * 3000)}, "messages"),
    "a chat field with input": ("/v1/embeddings", {"input": "a", "continue_final_message": True}, "continue_final"),
    "shorter vectors": ("/v1/embeddings", {"input": "a", "dimensions": 8}, "dimensions"),
    "no dimension": ("/v1/embeddings", {"input": "a", "dimensions": 0}, "dimensions"),
    "an unknown encoding": ("/v1/embeddings", {"input": "a", "encoding_format": "hex"}, "encoding_format"),
    "a type of numbers in JSON": ("/v1/embeddings", {"input": "a", "embed_dtype": "float16"}, "embed_dtype"),
    "places of many vectors": ("/v1/embeddings", {"input": ["a"] * 100, "encoding_format": "bytes"}, "encoding_format"),
    "a side of nothing": ("/v1/embeddings", {"input": "a", "truncation_side": "left"}, "truncation_side"),
    "a broken picture": (
        "/v1/embeddings",
        {"messages": user([image_part("data:image/png;base64,AAAA")])},
        "messages[0].content[0].image_url",
    ),
    "a cut through a picture": (
        "/v1/embeddings",
        {"messages": user([image_part(PNG_URL)]), "truncate_prompt_tokens": 20},
        "truncate_prompt_tokens",
    ),
    "an unknown task": ("/pooling", {"input": "a", "task": "dream"}, "task"),
    "an unknown field": ("/pooling", {"inptu": "a"}, "inptu"),
    "one side": ("/score", {"queries": "a"}, "queries"),
    "sides of two pairs": ("/score", {"queries": "a", "text_2": "b"}, "queries"),
    "unequal sides": ("/score", {"queries": ["a", "b"], "documents": ["a", "b", "c"]}, "queries"),
    "an empty document": ("/score", {"queries": "a", "documents": ["b", ""]}, "documents[1]"),
    "a document that is none": ("/score", {"queries": "a", "documents": 5}, "documents"),
    "a broken picture in a document": (
        "/rerank",
        {"query": "a", "documents": ["b", {"content": [image_part("data:image/png;base64,AAAA")]}]},
        "documents[1].content[0].image_url",
    ),
    "no documents": ("/rerank", {"query": "a", "documents": []}, "documents"),
    "less than none": ("/rerank", {"query": "a", "documents": ["b"], "top_n": -1}, "top_n"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_wrong_is_named(pooler: Live, name: str):
    path, body, param = HOSTILE[name]
    status, answer = pooler.post(body, path)
    assert status == 400, answer
    assert answer["error"]["param"].startswith(param), answer
    assert eventually(lambda: pooler.engine.num_requests == 0)


def test_a_template_of_the_client_with_trust(pooler: Live):
    with serve(pooler.engine, trust_request_chat_template=True) as server:
        given = vectors(server, messages=user("Hello"), chat_template="{{ messages[0].content }}")
    assert given == vectors(pooler, input="Hello", add_special_tokens=False)
