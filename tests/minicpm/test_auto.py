"""from_pretrained and the calls that place a model."""

from __future__ import annotations

import pytest
import torch

from sensorium.errors import CheckpointError, ConfigError, UnsupportedError
from sensorium.minicpm import AutoModel, AutoProcessor, AutoTokenizer

SEED_OPTIONS = {
    "trust_remote_code": True,
    "attn_implementation": "flash_attention_2",
    "torch_dtype": torch.bfloat16,
    "init_vision": True,
    "init_audio": False,
    "init_tts": False,
    "device_map": "cpu",
    "local_files_only": True,
    "low_cpu_mem_usage": True,
}


def test_options_reach_the_engine(reference):
    model = AutoModel.from_pretrained(reference / "tiny", **SEED_OPTIONS, max_num_seqs=3)
    assert model.dtype == torch.bfloat16
    with model.eval().to("cpu"):
        assert model.client.facts.dtype == "bfloat16"
        assert model.client.modalities == ("image", "video")
        assert model.client.config.max_num_seqs == 3
        with pytest.raises(UnsupportedError, match="audio"):
            model.chat(msgs=[{"role": "user", "content": [torch.zeros(16000)]}], max_new_tokens=1)


def test_moving_starts_the_engine_anew(reference):
    with AutoModel.from_pretrained(reference / "tiny", device_map={"": "cpu"}) as model:
        first = model.client
        assert model.to("cpu") is model
        assert model.client is first
        assert model.bfloat16().dtype == torch.bfloat16
        assert not first.is_alive
        assert model.client.facts.dtype == "bfloat16"
        assert model.to(torch.float32).to(dtype=torch.float32).dtype == torch.float32
        assert model.device == torch.device("cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(reference):
    model = AutoModel.from_pretrained(reference / "tiny")
    assert model.device == torch.device("cpu")
    for move in (model.cuda, lambda: model.cuda(1), lambda: model.to("cuda:0")):
        with pytest.raises(ConfigError, match="sees no CUDA device"):
            move()
    with pytest.raises(CheckpointError, match="torch sees none"):
        AutoModel.from_pretrained(reference / "tiny", device_map="cuda:1").chat(msgs=[{"role": "user", "content": "x"}])


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"attn_implementation": "magic"}, ConfigError, "attn_implementation: 'magic' is none of eager, sdpa"),
        ({"device_map": {"llm": 0, "vpm": 1}}, ConfigError, "one device, not on 0, 1"),
        ({"device_map": "balanced"}, ConfigError, "device_map: 'balanced'"),
        ({"load_in_4bit": True}, TypeError, r"from_pretrained\(\) got an unexpected keyword argument 'load_in_4bit'"),
        ({"init_vison": True}, TypeError, "did you mean 'init_vision'"),
        ({"max_num_seqs": 0}, ConfigError, "max_num_seqs"),
    ],
)
def test_options_that_cannot_be_had(reference, options, error, words):
    with pytest.raises(error, match=words):
        AutoModel.from_pretrained(reference / "tiny", **options)


def test_models_that_are_not_there(tmp_path, monkeypatch):
    with pytest.raises(CheckpointError, match="no model folder at 'model/'"):
        AutoModel.from_pretrained("model/")
    with pytest.raises(CheckpointError, match="local_files_only"):
        AutoModel.from_pretrained("model/", local_files_only=True)
    with pytest.raises(CheckpointError, match=r"cache on this machine has none.*local_files_only"):
        AutoModel.from_pretrained("OpenBMB/MiniCPM-V-4_5", local_files_only=True, cache_dir=str(tmp_path))
    packaged = AutoModel.from_pretrained("sensorium-tiny", local_files_only=True)
    assert packaged.checkpoint.folder == AutoModel.from_pretrained("sensorium-tiny").checkpoint.folder
    (tmp_path / "config.json").write_text('{"model_type": "llava", "architectures": ["LlavaForX"]}')
    with pytest.raises(CheckpointError, match=r"no MiniCPM-V or MiniCPM-o checkpoint \(LlavaForX\)"):
        AutoModel.from_pretrained(tmp_path)


def test_the_engine_starts_once_and_closes(reference):
    model = AutoModel.from_pretrained(reference / "tiny", device_map="cpu")
    assert model.client is model.client
    client = model.client
    model.close()
    assert not client.is_alive
    model.close()
    assert model.chat(msgs=[{"role": "user", "content": "x"}], num_beams=1, max_new_tokens=1) is not None
    client = model.client
    del model
    assert not client.is_alive


def test_training_is_refused(reference):
    model = AutoModel.from_pretrained(reference / "tiny")
    assert model.train(False) is model
    with pytest.raises(UnsupportedError, match="train"):
        model.train()


def test_tokenizers_and_processors(reference):
    tokenizer = AutoTokenizer.from_pretrained(reference / "tiny", trust_remote_code=True)
    ids = tokenizer.encode("<|im_start|>a")
    assert tokenizer("<|im_start|>a") == {"input_ids": ids, "attention_mask": [1] * len(ids)}
    assert tokenizer(["a", "b"])["input_ids"] == [tokenizer.encode("a"), tokenizer.encode("b")]
    assert tokenizer.batch_decode([ids]) == ["<|im_start|>a"]
    processor = AutoProcessor.from_pretrained(reference / "tiny", trust_remote_code=True)
    msgs = [{"role": "user", "content": "Hi"}]
    for made in (tokenizer, processor):
        text = made.apply_chat_template(msgs, tokenize=False, add_generation_prompt=True)
        assert text.startswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")


def test_modules_are_seen_without_loading(reference):
    model = AutoModel.from_pretrained(reference / "tiny", device_map="cpu")
    modules = dict(model.named_modules())
    assert type(modules["llm.model.layers.0.self_attn.q_proj"]).__name__ == "Linear"
    assert list(modules["llm.lm_head"].weight.shape) == [362, 256]
    assert sum(parameter.numel() for parameter in model.parameters()) > 10**6
    assert dict(model.named_parameters())["resampler.query"].device.type == "meta"
    assert "(vpm): SiglipVisionTransformer(" in str(model)
    assert model._client is None
