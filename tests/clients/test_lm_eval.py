"""lm-eval's API models against a server: log-likelihoods by echo, generation, and chat with pictures."""

from __future__ import annotations

import json
import math
import os
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from clients import lm_eval_tasks

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def evaluate(tmp_path_factory: pytest.TempPathFactory) -> Any:
    cache = str(tmp_path_factory.mktemp("hub"))
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", HF_DATASETS_CACHE=cache)
    lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed (the extra clients)")
    from lm_eval.api.task import ConfigurableTask

    def run(kind: str, task: dict[str, Any], arguments: dict[str, Any], **options: Any) -> dict[str, Any]:
        made = ConfigurableTask(config=dict(task))
        return lm_eval.simple_evaluate(
            model=kind, model_args=arguments, tasks=[made], log_samples=True, bootstrap_iters=0, **options
        )

    return run


def server(url: str, path: str, **more: Any) -> dict[str, Any]:
    return {"model": "tiny", "base_url": url + path, "max_retries": 1, **more}


def score(url: str, prompt: list[int]) -> list[float]:
    """The log-probabilities of all tokens but the first."""
    body = {"prompt": prompt, "max_tokens": 0, "echo": True, "logprobs": 1}
    request = urllib.request.Request(
        f"{url}/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request) as response:
        return json.load(response)["choices"][0]["logprobs"]["token_logprobs"][1:]


@pytest.mark.parametrize("batch", [1, 4])
def test_log_likelihoods_are_the_models(evaluate: Any, url: str, packaged_model: Path, batch: int):
    arguments = server(url, "/v1/completions", tokenizer=str(packaged_model), tokenizer_backend="huggingface")
    results = evaluate("local-completions", lm_eval_tasks.CHOICE, arguments, batch_size=batch)
    samples = sorted(results["samples"]["choice"], key=lambda sample: sample["doc_id"])
    assert len(samples) == 3
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(packaged_model)
    for sample in samples:
        prompt = sample["doc"]["prompt"]
        for choice, (found, is_greedy) in zip(sample["doc"]["choices"], sample["filtered_resps"], strict=True):
            start, whole = tokenizer.encode(prompt), tokenizer.encode(prompt + choice)
            wanted = sum(score(url, whole)[len(start) - 1 :])
            assert math.isclose(float(found), wanted, abs_tol=1e-3)
            assert is_greedy in (True, False, "True", "False")
    assert 0 <= results["results"]["choice"]["acc,none"] <= 1


def test_completions_are_generated(evaluate: Any, url: str, packaged_model: Path):
    arguments = server(url, "/v1/completions", tokenizer=str(packaged_model), tokenizer_backend="huggingface")
    results = evaluate("local-completions", lm_eval_tasks.WRITING, arguments)
    assert all(isinstance(sample["resps"][0][0], str) for sample in results["samples"]["writing"])


def test_chat_about_pictures_is_judged_right(evaluate: Any, url: str):
    """The model knows these pictures: every answer is the expected one."""
    arguments = server(url, "/v1/chat/completions")
    results = evaluate("local-chat-completions", lm_eval_tasks.SCENES, arguments, apply_chat_template=True)
    assert results["results"]["scenes"]["exact_match,none"] == 1
