"""Settings that contradict themselves are refused where they are made; the environment is read with names and types."""

from __future__ import annotations

import pytest

from sensorium.config import FIT, EngineConfig, ServerConfig
from sensorium.envs import Environment, read_environment
from sensorium.errors import ConfigError


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("gpu_memory_utilization", 0.0),
        ("gpu_memory_utilization", 1.01),
        ("gpu_memory_utilization", float("nan")),
        ("max_model_len", 0),
        ("max_model_len", -2),
        ("mm_processor_cache_gb", -0.1),
        ("limit_mm_per_prompt", {"image": -1}),
        ("limit_mm_per_prompt", {"image": 1.5}),
        ("limit_mm_per_prompt", {"image": True}),
        ("limit_mm_per_prompt", {"video": {"count": 1, "widht": 3}}),
        ("max_num_seqs", 0),
        ("max_logprobs", -2),
    ],
)
def test_a_value_out_of_range_names_its_field(field, value):
    with pytest.raises(ConfigError, match=field) as caught:
        EngineConfig(**{field: value})
    assert caught.value.param == field


@pytest.mark.parametrize(
    ("config", "fields"),
    [
        (EngineConfig, {"encoder_cache_bytes": 1, "encoder_cache_tokens": 1}),
        (EngineConfig, {"runner": "generate", "convert": "embed"}),
        (ServerConfig, {"enable_auto_tool_choice": True}),
        (ServerConfig, {"fingerprint_mode": "custom"}),
        (ServerConfig, {"ssl_keyfile": "key.pem"}),
    ],
)
def test_contradictions_blame_no_single_field(config, fields):
    with pytest.raises(ConfigError) as caught:
        config(**fields)
    assert caught.value.param is None


def test_values_at_the_edge_are_fine():
    EngineConfig(gpu_memory_utilization=1, max_model_len=FIT, mm_processor_cache_gb=0, max_logprobs=-1)
    EngineConfig(limit_mm_per_prompt={"image": 0, "video": {"count": 2, "num_frames": 32}})
    ServerConfig(port=0, enable_auto_tool_choice=True, tool_call_parser="hermes")


def test_an_empty_environment_is_the_defaults():
    assert read_environment({}) == Environment()


def test_variables_have_types_and_two_prefixes():
    environ = {
        "VLLM_IMAGE_FETCH_TIMEOUT": "10",
        "SENSORIUM_VIDEO_FETCH_TIMEOUT": "2.5",
        "VLLM_VIDEO_FETCH_TIMEOUT": "99",
        "VLLM_MEDIA_URL_ALLOW_REDIRECTS": "0",
        "SENSORIUM_MAX_IMAGE_PIXELS": "1000",
        "VLLM_API_KEY": "secret",
        "VLLM_MEDIA_LOADING_THREAD_COUNT": "3",
        "SENSORIUM_MAX_AUDIO_PREPROCESS_WORKERS": "2",
        "VLLM_ENGINE_READY_TIMEOUT_S": "90",
        "VLLM_MAX_STOP_STRINGS": "4",
        "SERVER_DEV_MODE": "1",
    }
    wanted = Environment(
        image_fetch_timeout=10.0,
        video_fetch_timeout=2.5,
        media_url_allow_redirects=False,
        max_image_pixels=1000,
        api_key="secret",
        media_loading_thread_count=3,
        max_audio_preprocess_workers=2,
        engine_ready_timeout_s=90.0,
        max_stop_strings=4,
    )
    assert read_environment(environ) == wanted


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("VLLM_IMAGE_FETCH_TIMEOUT", "soon"),
        ("VLLM_IMAGE_FETCH_TIMEOUT", "nan"),
        ("SENSORIUM_MEDIA_FETCH_MAX_RETRIES", "1.5"),
        ("SENSORIUM_MAX_IMAGE_PIXELS", "-1"),
        ("VLLM_MEDIA_LOADING_THREAD_COUNT", "many"),
        ("VLLM_MAX_AUDIO_PREPROCESS_WORKERS", "-2"),
        ("VLLM_ENGINE_READY_TIMEOUT_S", "inf"),
        ("VLLM_MAX_STOP_STRINGS", "0x10"),
        ("VLLM_MAX_N_SEQUENCES", "1.5"),
        ("VLLM_MEDIA_URL_ALLOW_REDIRECTS", "maybe"),
    ],
)
def test_a_variable_that_cannot_be_read_is_named(name, text):
    with pytest.raises(ConfigError, match=name):
        read_environment({name: text})
