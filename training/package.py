"""The checkpoint folder without its weights: configuration, tokenizer, chat template.

`python -m training.package FOLDER` builds it; the vocabulary is learned from conversations drawn with a fixed seed.
"""

from __future__ import annotations

# ruff: noqa: SIM905 - long lists of words read better as text
import json
import sys
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from sensorium.models.tokenizer import QWEN2_SPLIT
from training.atlas import load
from training.conversation import Heard, Shown
from training.espeak import Espeak
from training.families import LONG, SHORT, Source
from training.lexicon import CLEAR
from training.speech_config import tts_config
from training.views import MAX_SLICES, SIDE

VOCABULARY = 1536
_PAIRS = "image ref box quad point slice image_id unit answer focus line perception source_image image_save_to".split()
_SPOKEN = """audio_start audio audio_end spk_bos spk spk_eos tts_bos tts_eos listen speak interrupt vad_start vad_end
emotion_start emotion_end speed_start speed_end pitch_start pitch_end turn_bos turn_eos chunk_eos chunk_bos
chunk_tts_bos chunk_tts_eos tts_pad""".split()
_FIRST = """endoftext im_start im_end object_ref_start object_ref_end box_start box_end quad_start quad_end vision_start
vision_end vision_pad image_pad video_pad""".split()
_FILL = "fim_prefix fim_middle fim_suffix fim_pad repo_name file_sep".split()
# Not special, so that they stay in decoded text: the marks of answers besides those of Qwen3.
_VISIBLE = {"<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>", "<point>", "</point>"}


def control_tokens() -> list[tuple[str, bool]]:
    """(spelling, special) in the order of MiniCPM-o 4.5."""
    marks = [f"<{name}>" for name in _PAIRS for name in (name, "/" + name)]
    return [
        ("<unk>", True),
        *((f"<|{name}|>", True) for name in _FIRST),
        ("<tool_call>", False),
        ("</tool_call>", False),
        *((f"<|{name}|>", True) for name in _FILL),
        *((mark, False) for mark in ("<tool_response>", "</tool_response>", "<think>", "</think>")),
        *((mark, mark not in _VISIBLE) for mark in marks),
        *((f"<|{name}|>", True) for name in _SPOKEN),
        *((f"<|timbre_{number}|>", True) for number in range(7, 32)),
    ]


def corpus(source: Source, count: int) -> list[str]:
    """Questions and answers in which letters read from pictures do not count as words."""
    texts = []
    families = [*SHORT, *LONG]
    for number in range(count):
        for turn in source.draw(families[number % len(families)]):
            texts += [p for p in turn.parts if not isinstance(p, Shown | Heard)] + [turn.ask.question]
            texts.append(" ".join(turn.ask.answer) if turn.ask.spell else turn.ask.answer)
    texts += list(CLEAR) * 50
    return texts


def build_tokenizer(texts: list[str]) -> Tokenizer:
    control = control_tokens()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(QWEN2_SPLIT), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(control),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        min_frequency=5,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(text, normalized=False, special=special) for text, special in control])
    return tokenizer


def model_config(vocabulary: int, ids: dict[str, int]) -> dict:
    return {
        "model_type": "minicpmo",
        "version": "4.5",
        "architectures": ["MiniCPMO"],
        "hidden_size": 256,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "intermediate_size": 640,
        "vocab_size": vocabulary,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000,
        "rope_scaling": None,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": ids["<|im_start|>"],
        "eos_token_id": ids["<|im_end|>"],
        "use_sliding_window": False,
        "sliding_window": None,
        "max_window_layers": 6,
        "query_num": 64,
        "image_size": SIDE,
        "drop_vision_last_layer": False,
        "batch_vision_input": True,
        "use_image_id": True,
        "vision_batch_size": 16,
        "slice_config": {"patch_size": 14, "max_slice_nums": MAX_SLICES, "scale_resolution": SIDE},
        "vision_config": {
            "model_type": "siglip",
            "hidden_size": 192,
            "image_size": 448,
            "intermediate_size": 768,
            "num_attention_heads": 3,
            "num_hidden_layers": 6,
            "patch_size": 14,
        },
        "audio_config": {
            "d_model": 192,
            "encoder_layers": 5,
            "encoder_attention_heads": 3,
            "encoder_ffn_dim": 768,
            "num_mel_bins": 80,
            "max_source_positions": 1500,
            "activation_function": "gelu",
        },
        "audio_pool_step": 5,
        "audio_chunk_length": 1.0,
        "stream_input": True,
        "listen_speak_type": "asr",
        "init_vision": True,
        "init_audio": True,
        "init_tts": True,
        "tts_config": tts_config(vocabulary, ids),
        "torch_dtype": "bfloat16",
    }


def tokenizer_config(tokenizer: Tokenizer, template: str) -> dict:
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    control = [(tokenizer.token_to_id(text), text, special) for text, special in control_tokens()]
    return {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(i): {"content": text, **flags, "special": special} for i, text, special in control
        },
        "additional_special_tokens": [text for _, text, special in control if special],
        "bos_token": "<|im_start|>",
        "chat_template": template,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 4096,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2TokenizerFast",
        "unk_token": "<unk>",
    }


def preprocessor_config() -> dict:
    return {
        "image_processor_type": "MiniCPMVImageProcessor",
        "feature_extractor_type": "MiniCPMAAudioProcessor",
        "processor_class": "MiniCPMOProcessor",
        "max_slice_nums": MAX_SLICES,
        "scale_resolution": SIDE,
        "patch_size": 14,
        "use_image_id": True,
        "image_feature_size": 64,
        "im_start": "<image>",
        "im_end": "</image>",
        "slice_start": "<slice>",
        "slice_end": "</slice>",
        "unk": "<unk>",
        "im_id_start": "<image_id>",
        "im_id_end": "</image_id>",
        "slice_mode": True,
        "audio_pool_step": 5,
        "norm_mean": [0.5, 0.5, 0.5],
        "norm_std": [0.5, 0.5, 0.5],
        "version": 4.5,
        # How `POST /v1/audio/transcriptions` asks: two wordings of questions.txt, and the longest clip of training.
        "speech_instructions": {
            "transcribe": "{audio}Transcribe the speech.",
            "transcribe:en": "{audio}Transcribe the speech.",
            "transcribe:zh": "{audio}请转写这段语音。",
        },
        "speech_clip_s": 5.0,
        "live": True,
        # Its talks begin at once. It was not taught to read in a manner, and is shown no voice.
        "force_listen_units": 0,
        "speaking_prompts": {
            "read": "Please read the text below.\n{text}",
            "template_kwargs": {"use_tts_template": True},
        },
    }


def write(folder: Path, atlas: Path, espeak: Path | None, count: int = 30_000) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    source = Source(seed=1, fonts=load(atlas).fonts, engine=Espeak(espeak), errors={})
    tokenizer = build_tokenizer(corpus(source, count))
    tokenizer.save(str(folder / "tokenizer.json"))
    ids = {text: tokenizer.token_to_id(text) for text, _ in control_tokens()}
    template = (Path(__file__).parent / "chat_template.jinja").read_text(encoding="utf-8")
    eos = [ids["<|im_end|>"], ids["<|endoftext|>"]]
    files = {
        "config.json": model_config(tokenizer.get_vocab_size(), ids),
        "tokenizer_config.json": tokenizer_config(tokenizer, template),
        "preprocessor_config.json": preprocessor_config(),
        "added_tokens.json": ids,
        "generation_config.json": {
            "bos_token_id": ids["<|im_start|>"], "do_sample": False, "eos_token_id": eos,
            "pad_token_id": ids["<|endoftext|>"], "temperature": 0.0,
        },
    }  # fmt: skip
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    work = Path(__file__).parent / "work"
    write(Path(sys.argv[1]), work / "atlas.npz", work / "espeak" if (work / "espeak").exists() else None)
