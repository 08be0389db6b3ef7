"""Latency, throughput and media in this process, and the arithmetic behind their rooflines."""

import json
import sys
import types
from pathlib import Path

import pytest
import torch

from sensorium.bench import presets, roofline
from sensorium.bench.roofline import Ceilings, Products, Sizes, Work
from sensorium.bench.sides import Place, open_other
from sensorium.cli import main
from sensorium.layers.mlp import Mlp
from sensorium.models.minicpmo import Config, Model

ONCE = ["--num-iters", "1", "--num-iters-warmup", "0", "--max-model-len", "512", "--json"]


def bench(capsys, *words) -> dict:
    assert main(["bench", *map(str, words), *ONCE]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.slow
def test_latency_beside_transformers(any_model, capsys):
    pytest.importorskip("transformers")
    words = ["--batch-size", 1, 3, "--input-len", 8, "--output-len", 4, "--compare", "transformers"]
    found = bench(capsys, "latency", any_model, *words)
    assert [(row["side"], row["batch_size"]) for row in found["rows"]] == [
        ("sensorium", 1), ("sensorium", 3), ("transformers", 1), ("transformers", 3)
    ]  # fmt: skip
    for row in found["rows"]:
        assert row["e2el_ms"]["lowest"] <= row["e2el_ms"]["median"] <= row["e2el_ms"]["highest"]
        assert row["ttft_roofline"] > 0
        assert row["tokens_per_s"] == pytest.approx(row["batch_size"] * 4 / row["e2el_ms"]["median"] * 1e3)
    theirs = found["rows"][2:]
    assert all(row["equal_tokens"] == 1 and row["ratio"] > 0 for row in theirs)


def test_throughput_beside_transformers(any_model, capsys, tmp_path):
    pytest.importorskip("transformers")
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "one", "output_tokens": 2}\n{"prompt": "two three", "output_tokens": 3}\n')
    words = ["--dataset-name", "custom", "--dataset-path", file, "--hf-max-batch-size", 1, "--compare", "transformers"]
    found = bench(capsys, "throughput", any_model, *words)
    ours, theirs = found["rows"]
    assert found["num_prompts"] == 2
    for row in (ours, theirs):
        seconds = row["seconds"]["median"]
        assert row["requests_per_s"]["median"] == pytest.approx(2 / seconds)
        assert row["output_tokens_per_s"]["median"] == pytest.approx(5 / seconds)
    assert theirs["ratio"] == pytest.approx(theirs["seconds"]["median"] / ours["seconds"]["median"])


def test_throughput_of_pictures(any_model, capsys):
    words = ["--dataset-name", "random-mm", "--num-prompts", 2, "--input-len", 5, "--output-len", 2]
    (row,) = bench(capsys, "throughput", any_model, *words)["rows"]
    # Pictures are most of the prompts.
    assert row["total_tokens_per_s"]["median"] > 20 * row["output_tokens_per_s"]["median"]


def test_media_stage_by_stage(packaged_model, capsys):
    words = ["--image-size", "80x60", "--audio-len", 1, "--video-len", 0.5, "--video-size", 64, "--batch-size", 2]
    found = bench(capsys, "media", packaged_model, *words)
    assert [row["media"] for row in found["rows"]] == ["picture 80x60", "sound 1 s", "video 64x64, 0.5 s"]
    stages = ("decode", "prepare", "encode", "prefill", "to_first_token")
    for row in found["rows"]:
        assert all(row[f"{stage}_ms"]["median"] > 0 for stage in stages)
        assert row["encode_roofline"] > 0
        assert 0 < row["rows"] < row["prompt_tokens"]
        assert row["items_per_s"]["median"] > 0


@pytest.mark.slow
def test_pictures_beside_transformers(golden, capsys):
    pytest.importorskip("transformers")
    words = ["--image-size", 64, "--batch-size", 1, "--compare", "transformers"]
    ours, theirs = bench(capsys, "media", golden / "models" / "llava", *words)["rows"]
    assert (ours["side"], theirs["side"]) == ("sensorium", "transformers")
    assert theirs["ratio"] == pytest.approx(theirs["to_first_token_ms"]["median"] / ours["to_first_token_ms"]["median"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["media", "--image-size", "0x5"], "invalid size"),
        (["media", "--audio-len", "-1"], "invalid length"),
        (["latency", "--output-len", "0"], "--output-len"),
        (["throughput", "--num-iters", "0"], "--num-iters"),
    ],
)
def test_what_cannot_be_measured_is_refused(words, said, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["bench", *words])
    assert exit_.value.code == 2
    assert said in capsys.readouterr().err


def test_what_cannot_be_compared_says_why(packaged_model, capsys):
    if "vllm" not in sys.modules:
        assert main(["bench", "latency", str(packaged_model), "--compare", "vllm"]) == 1
        assert "vllm, which is not installed" in capsys.readouterr().err
    words = ["--dataset-name", "random-mm", "--compare", "transformers"]
    assert main(["bench", "throughput", str(packaged_model), *words]) == 1
    assert "text only" in capsys.readouterr().err


def test_vllm_is_called_as_its_users_call_it(monkeypatch):
    """There is no vLLM to test with on most machines: this holds the calls to what its documentation shows."""
    asked = {}

    class LLM:
        def __init__(self, **options):
            asked.update(options)

        def generate(self, prompts, params, use_tqdm):
            pairs = zip(prompts, params, strict=True)
            answers = [[len(prompt["prompt_token_ids"])] * each.max_tokens for prompt, each in pairs]
            return [types.SimpleNamespace(outputs=[types.SimpleNamespace(token_ids=ids)]) for ids in answers]

    fake = types.SimpleNamespace(LLM=LLM, SamplingParams=lambda **kw: types.SimpleNamespace(**kw), __version__="1")
    monkeypatch.setitem(sys.modules, "vllm", fake)
    side = open_other("vllm", Path("folder"), Place(torch.device("cpu"), torch.bfloat16, 512, 0.9))
    assert side.generate([[5, 6, 7], [8]], [2, 1]) == [[3, 3], [1]]
    assert (asked["model"], asked["dtype"], asked["max_model_len"]) == ("folder", "bfloat16", 512)


def test_a_decode_step_of_a_known_shape_reads_and_multiplies_what_it_must():
    with torch.device("meta"):
        sizes = Sizes.of(Model(Config.from_hf(presets.source("qwen3-0.6b"))), torch.bfloat16)
    # 28 layers of 15.7 M, and a head of 151,936 x 1024.
    assert sizes.layers == 28 * (1024 * 4096 + 2048 * 1024 + 3 * 1024 * 3072)
    assert sizes.head == 151936 * 1024
    step = sizes.decode([100, 200])
    assert step.bytes == 2 * (sizes.layers + sizes.head) + 300 * 2 * 28 * 8 * 128 * 2
    assert step.flops == 2 * 2 * (sizes.layers + sizes.head) + 2 * 300 * 2 * 28 * 16 * 128
    # One token at a time is the same arithmetic as all at once, and reads the weights as often as there are steps.
    whole, begin = sizes.generate([10], [3]), sizes.prefill([10])
    later = [sizes.decode([11]), sizes.decode([12])]
    assert whole.flops == pytest.approx(begin.flops + sum(work.flops for work in later))
    assert whole.bytes == begin.bytes + sum(work.bytes for work in later)


def test_the_roofline_is_the_slower_of_reading_and_multiplying():
    ceilings = Ceilings(bytes_per_s=10.0, flops_per_s=100.0)
    assert ceilings.seconds(Work(20, 100)) == 2.0
    assert ceilings.seconds(Work(20, 400)) == 4.0
    assert ceilings.share(Work(20, 100), 8.0) == 0.25


def test_ceilings_are_measured():
    found = roofline.measure(torch.device("cpu"), torch.float32)
    # Any machine reads a hundred megabytes and multiplies a hundred million numbers a second.
    assert found.bytes_per_s > 1e8
    assert found.flops_per_s > 1e8


def test_products_are_counted_once_however_they_are_computed():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 4, stride=4), torch.nn.Flatten(2), Mlp(4, 6, "tanh"))
    for parameter in model.parameters():
        parameter.data.normal_()
    with Products(model) as products, torch.inference_mode():
        model(torch.ones(1, 3, 8, 8))
    assert products.flops == 2 * (8 * 4 * 48 + 8 * 4 * 6 + 8 * 6 * 4)
    assert products.work.bytes == 4 * (8 * 48 + 2 * 4 * 6)
    before = products.flops
    model(torch.ones(1, 3, 8, 8))
    assert products.flops == before


@pytest.mark.slow
def test_starts_are_measured_part_by_part(capsys, any_model):
    words = ["startup", any_model, "--max-model-len", 256, "--kv-cache-bytes", "8M"]
    found = bench(capsys, *words)
    stages = {row["stage"]: row["s"]["median"] for row in found["rows"]}
    assert 0 < stages["ready"] < stages["first_token"]
    assert {"processor", "weights"} <= set(stages)


def test_vllms_name_of_the_media_benchmark(capsys):
    with pytest.raises(SystemExit):
        main(["bench", "mm-processor", "--batch-size", "0"])
    assert "sensorium bench media: error: argument --batch-size" in capsys.readouterr().err
