"""What the settings of loading do, on the packaged model and on one with random weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from sensorium.config import FIT, EngineConfig
from sensorium.engine import checkpoint
from sensorium.engine.client import EngineClient
from sensorium.engine.defaults import default_sampling
from sensorium.errors import CheckpointError, OverloadedError
from sensorium.types import Finished, SamplingParams, TextDelta

PACKAGED = checkpoint.resolve_folder("")
LIMIT = checkpoint.read_config(PACKAGED)["max_position_embeddings"]
GREEDY = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)


def client(**settings) -> EngineClient:
    return EngineClient(EngineConfig(**({"kv_cache_bytes": 8 << 20} | settings)))


def tokens(engine: EngineClient, sampling: SamplingParams = GREEDY, ids=(5, 6, 7)) -> list[int]:
    events = list(engine.submit(engine.prepare_raw(list(ids)), sampling))
    assert isinstance(events[-1], Finished)
    return [token for event in events if isinstance(event, TextDelta) for token in event.token_ids]


# ---- context ------------------------------------------------------------------------------------------------------


def test_a_context_beyond_the_checkpoints_needs_the_environments_leave(monkeypatch):
    monkeypatch.delenv("VLLM_ALLOW_LONG_MAX_MODEL_LEN", raising=False)
    with pytest.raises(CheckpointError, match=f"more than the {LIMIT} tokens.*ALLOW_LONG_MAX_MODEL_LEN"):
        client(max_model_len=LIMIT + 1)
    monkeypatch.setenv("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "1")
    with client(max_model_len=2 * LIMIT, kv_cache_bytes=256 << 20) as engine:
        assert engine.max_model_len == 2 * LIMIT
        assert len(tokens(engine, ids=[100] * (LIMIT + 9))) == 8


def test_a_context_that_does_not_fit_names_the_largest_that_does():
    with client(max_model_len=FIT, num_gpu_blocks_override=20) as engine:
        assert engine.max_model_len == 20 * 16
    with pytest.raises(CheckpointError, match="the largest that fits is 320"):
        client(max_model_len=321, num_gpu_blocks_override=20)
    with client(max_model_len=320, num_gpu_blocks_override=20) as engine:
        assert engine.max_model_len == 320


def test_without_chunked_prefill_a_step_must_hold_a_prompt():
    with pytest.raises(CheckpointError, match="raise max_num_batched_tokens"):
        client(enable_chunked_prefill=False, max_num_batched_tokens=64, max_model_len=128)


@pytest.mark.parametrize(
    "settings",
    [
        {"enable_chunked_prefill": False, "max_num_batched_tokens": 256},
        {"long_prefill_token_threshold": 7, "max_num_batched_tokens": 64},
        {"disable_chunked_mm_input": True, "max_num_batched_tokens": 96, "limit_mm_per_prompt": {"audio": 0}},
        {"max_num_batched_tokens": 33},
    ],
)
def test_how_prompts_are_split_changes_no_token(settings, small_image):
    prompts = [list(range(10, 10 + length)) for length in (3, 120, 40, 77)]
    with client(max_model_len=256) as plain:
        wanted = [tokens(plain, ids=ids) for ids in prompts]
        media = _describe(plain, small_image)
    with client(max_model_len=256, **settings) as engine:
        streams = [engine.submit(engine.prepare_raw(ids), GREEDY) for ids in prompts]
        found = [[t for e in stream if isinstance(e, TextDelta) for t in e.token_ids] for stream in streams]
        assert _describe(engine, small_image) == media
        engine.loaded.engine.scheduler.check()
    assert found == wanted


def _describe(engine: EngineClient, image) -> list[int]:
    from sensorium.messages import read_messages

    parts = [{"type": "text", "text": "what is this? " * 3}, {"type": "image_pil", "image_pil": image}]
    prompt = engine.prepare_chat(read_messages([{"role": "user", "content": parts}]))
    return [t for e in engine.submit(prompt, GREEDY) if isinstance(e, TextDelta) for t in e.token_ids]


@pytest.fixture(scope="module")
def small_image():
    from PIL import Image

    return Image.effect_noise((64, 64), 90).convert("RGB")


# ---- weights, configuration, tokenizer ----------------------------------------------------------------------------


def test_dummy_weights_read_no_file_and_repeat(tmp_path):
    for file in PACKAGED.iterdir():
        if file.is_file() and file.suffix != ".safetensors":
            shutil.copyfile(file, tmp_path / file.name)
    answers = []
    for seed in (1, 1, 2):
        with client(model=str(tmp_path), load_format="dummy", seed=seed, max_model_len=64) as engine:
            answers.append(tokens(engine))
    assert answers[0] == answers[1] != answers[2]


def test_overrides_reach_the_model_and_the_processor(tmp_path):
    with client(hf_overrides={"max_position_embeddings": 96}) as engine:
        assert engine.max_model_len == 96
    assert checkpoint.read_config(PACKAGED)["max_position_embeddings"] == LIMIT


def test_a_tokenizer_of_its_own(tmp_path):
    shutil.copyfile(PACKAGED / "tokenizer.json", tmp_path / "tokenizer.json")
    settings = json.loads((PACKAGED / "tokenizer_config.json").read_text())
    settings["chat_template"] = "{% for message in messages %}<<{{ message.content }}>>{% endfor %}"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    config = EngineConfig(tokenizer=str(tmp_path))
    folder, hf_config = checkpoint.open_checkpoint(config)
    assert folder == PACKAGED
    processor = checkpoint.open_processor(folder, hf_config, config)
    own = checkpoint.open_processor(folder, hf_config, EngineConfig())
    assert processor.tokenizer.encode("hello") == own.tokenizer.encode("hello")
    with pytest.raises(CheckpointError, match="no model folder"):
        checkpoint.open_processor(folder, hf_config, EngineConfig(tokenizer="./nowhere"))


def test_the_hub_is_asked_with_revision_folder_and_token(monkeypatch, tmp_path):
    asked = {}

    def download(name, **settings):
        asked.update(settings, name=name)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    config = EngineConfig(model="owner/name", revision="v2", download_dir="cache", hf_token="t", load_format="dummy")
    assert checkpoint.resolve_folder(config.model, config.revision, config) == tmp_path
    assert (asked["name"], asked["revision"], asked["cache_dir"], asked["token"]) == ("owner/name", "v2", "cache", "t")
    assert "*.safetensors" not in asked["allow_patterns"]


def test_text_only_loads_no_tower():
    with client() as whole, client(language_model_only=True) as text, client(limit_mm_per_prompt={"audio": 0}) as deaf:
        assert set(text.modalities) == set()
        assert "audio" not in deaf.modalities
        assert text.facts.plan.weights < deaf.facts.plan.weights < whole.facts.plan.weights
        assert tokens(text) == tokens(whole) == tokens(deaf)


# ---- memory -------------------------------------------------------------------------------------------------------


def test_blocks_and_rows_may_be_counted_by_hand():
    with client(num_gpu_blocks_override=11, encoder_cache_tokens=400, max_model_len=176) as engine:
        assert engine.stats().kv_blocks_total == 11
        assert engine.facts.encoder_cache_bytes == 400 * engine.facts.row_bytes


# ---- sampling defaults --------------------------------------------------------------------------------------------


def test_sampling_defaults_come_from_where_the_setting_says(tmp_path):
    (tmp_path / "generation_config.json").write_text('{"temperature": 0.3, "top_k": 7}')
    other = tmp_path / "other"
    other.mkdir()
    (other / "generation_config.json").write_text('{"top_p": 0.5}')

    def read(**settings) -> SamplingParams:
        return default_sampling(tmp_path, EngineConfig(**settings))

    neutral = SamplingParams(max_tokens=None)
    assert read() == SamplingParams(max_tokens=None, temperature=0.3, top_k=7)
    assert read(generation_config="vllm") == read(generation_config="none") == neutral
    assert read(generation_config=str(other)) == SamplingParams(max_tokens=None, top_p=0.5)
    override = {"temperature": 0.9, "max_new_tokens": 5}
    assert read(override_generation_config=override) == SamplingParams(max_tokens=5, temperature=0.9, top_k=7)
    for wrong in ({"generation_config": "nowhere"}, {"override_generation_config": {"topk": 1}}):
        with pytest.raises(CheckpointError, match=next(iter(wrong))):
            read(**wrong)


def test_the_operators_bound_on_answers_holds_for_requests_too():
    with client(override_generation_config={"max_new_tokens": 3}) as engine:
        assert len(tokens(engine)) == 3
        assert len(tokens(engine, SamplingParams(max_tokens=2, ignore_eos=True))) == 2


def test_the_seed_repeats_a_run_and_its_requests_differ():
    sampling = SamplingParams(temperature=2.0, max_tokens=12, ignore_eos=True)
    runs = []
    for seed in (3, 3, 4):
        with client(seed=seed) as engine:
            runs.append([tokens(engine, sampling) for _ in range(2)])
    assert runs[0] == runs[1] != runs[2]
    assert runs[0][0] != runs[0][1]


# ---- queue --------------------------------------------------------------------------------------------------------


def test_the_queue_is_bounded_by_requests_and_by_prompt_tokens():
    long = SamplingParams(temperature=0.0, max_tokens=2000, ignore_eos=True)
    with client(max_num_queued_reqs=1) as engine:
        first = engine.submit(engine.prepare_raw([5, 6]), long)
        with pytest.raises(OverloadedError, match="1 requests"):
            engine.submit(engine.prepare_raw([5, 6]), GREEDY)
        first.abort()
        assert isinstance(list(first)[-1], Finished)
    with client(max_num_queued_tokens=10, max_num_seqs=1) as engine:
        first = engine.submit(engine.prepare_raw([5, 6]), long)
        assert next(iter(first))  # computed: its tokens do not wait any more
        second = engine.submit(engine.prepare_raw(list(range(5, 20))), GREEDY)
        with pytest.raises(OverloadedError, match="15 prompt tokens"):
            engine.submit(engine.prepare_raw([5]), GREEDY)
        for stream in (first, second):
            stream.abort()


def test_packaged_files_are_as_this_test_expects():
    assert isinstance(PACKAGED, Path)
    assert LIMIT > 320


# ---- sessions and speech ------------------------------------------------------------------------------------------


def test_a_policy_of_ones_own_decides_in_sessions():
    with client(session_policies={"mine": "sensorium.bench.scripted:ScriptedDuplex"}, max_model_len=512) as engine:
        session = engine.open_session(engine.prepare_raw([5, 6, 7]), "mine", max_len=256)
        session.opened()
        done = session.run(engine.prepare_raw([8, 9]), options={"max_new_speak_tokens_per_chunk": 6})
    assert (len(done.ids), done.info["is_listen"]) == (4, False)


@pytest.mark.parametrize("path", ["nowhere:Policy", "sensorium.bench.scripted:Nothing", "sensorium.bench.scripted"])
def test_a_policy_that_is_not_there_is_named(path: str):
    with pytest.raises(CheckpointError, match=f"session_policies: 'mine' is '{path}'.*write module:Class"):
        client(session_policies={"mine": path})
