"""Seed 003, offline part: every snippet as it stands there, and what must come of it."""

from __future__ import annotations

import base64
import io
import sys
import types
from itertools import groupby
from pathlib import Path

import av
import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.numpy import load_file
from seeds import extract
from seeds.stage import GOLDEN, SCOPES, WAITING, Stage, for_sensorium, picture

from sensorium import LLM, SamplingParams
from sensorium.errors import CheckpointError
from sensorium.live_media import read_items

GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
LLAVA, QWEN2, QWEN25 = "llava-hf/llava-1.5-7b-hf", "Qwen/Qwen2-VL-2B-Instruct", "Qwen/Qwen2.5-VL-3B-Instruct"
MINICPM = "openbmb/MiniCPM-V-2_6"
LLAVA_ROWS, IMAGE = 16, {"llava": 260, "qwen": 262, "video": 263}
OPENED = r"(?<=open\()\.\.\."
EMBEDS = "enable.mm.embeds"
CASES = {}


def case(name):
    def keep(function):
        CASES[name] = function
        return function

    return keep


def snippet(number):
    return for_sensorium(extract.bare("003")[number])


def opened(stage, *names):
    """Paths of pictures for the seed's PIL.Image.open(...)."""
    return [repr(str(stage.media / f"{name}.jpg")) for name in names]


def runs(output, token):
    """Lengths of the runs of a placeholder in a prompt."""
    return [len(list(run)) for value, run in groupby(output.prompt_token_ids) if value == token]


def answered(outputs, count, most=16):
    assert len(outputs) == count
    for output in outputs:
        (answer,) = output.outputs
        assert isinstance(answer.text, str)
        assert answer.finish_reason in ("stop", "length")
        assert len(answer.token_ids) <= most


def waits(stage, script, name, **names):
    """The snippet of a family that is not there ends with its name. Once it is there, this fails: write the check."""
    folder, architecture = WAITING[name]
    with pytest.raises(CheckpointError, match=architecture):
        script.replaced({name: str(GOLDEN / folder)}).run(**names)


def tokens(outputs):
    return [output.outputs[0].token_ids for output in outputs]


@case("S003-02")
def _(stage, monkeypatch):
    assert "VLLM_MEDIA_URL_ALLOW_REDIRECTS=0" in extract.text("003")
    part = {"type": "image_url", "image_url": {"url": f"{stage.url}/id/32/512/512"}}
    for prefix in ("VLLM_", "SENSORIUM_"):
        monkeypatch.setenv(f"{prefix}MEDIA_URL_ALLOW_REDIRECTS", "0")
        with LLM(stage.model(LLAVA), allowed_media_domains=[stage.host]) as llm, pytest.raises(ValueError):
            llm.chat([{"role": "user", "content": [part]}])
        assert stage.asked[-1] == "/id/32/512/512"  # where it leads to was not asked
        monkeypatch.delenv(f"{prefix}MEDIA_URL_ALLOW_REDIRECTS")


@case("S003-03")
def _(stage):
    script = snippet(0).replaced({LLAVA: stage.model(LLAVA)})
    script = script.filled(
        r"(?<=open\()\.\.\.", *(repr(str(stage.media / name)) for name in ("a.jpg", "a.jpg", "b.jpg"))
    )
    found = []
    scope = script.run(after=lambda name, scope: found.append(scope["outputs"]) if name == "outputs" else None)
    answered(found[0], 1)
    answered(found[1], 2)
    assert [runs(output, IMAGE["llava"]) for output in found[0] + found[1]] == [[LLAVA_ROWS]] * 3
    assert [output.prompt for output in found[1]][1].startswith("USER: <image>\nWhat's the color")
    scope["llm"].close()


@case("S003-04")
def _(stage, monkeypatch):
    monkeypatch.setenv("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "1")  # the random checkpoint is made for fewer tokens
    script = snippet(1).filled(OPENED, *opened(stage, "a", "b"))
    waits(stage, script, "microsoft/Phi-3.5-vision-instruct")
    # What it shows is not the family's: two pictures in order, and no more than the limit.
    with LLM(stage.model(LLAVA), trust_remote_code=True, max_model_len=4096, limit_mm_per_prompt={"image": 2}) as llm:
        pictures = [picture(0), picture(1), picture(2)]
        prompt = {"prompt": "USER: <image>\n<image>\nCompare.\nASSISTANT:", "multi_modal_data": {"image": pictures[:2]}}
        swapped = {**prompt, "multi_modal_data": {"image": pictures[1::-1]}}
        one, other = llm.generate([prompt, swapped], GREEDY)
        assert runs(one, IMAGE["llava"]) == [LLAVA_ROWS] * 2
        assert one.outputs[0].token_ids != other.outputs[0].token_ids
        three = {"prompt": "<image><image><image>", "multi_modal_data": {"image": pictures}}
        with pytest.raises(ValueError, match=r"At most 2 image\(s\)"):
            llm.generate(three)


@case("S003-05")
def _(stage):
    rows = torch.from_numpy(load_file(GOLDEN / "models/llava/cases.safetensors")["image1/image_features"])
    script = snippet(2).replaced({"https://picsum.photos": stage.url, "torch.load(...)": "rows"})
    listed = f'LLM(model={stage.model(LLAVA)!r}, allowed_media_domains=["{stage.host}"])'
    scope = script.replaced({f'LLM(model="{LLAVA}")': listed}).run(rows=rows)
    answered(scope["outputs"], 1)
    assert runs(scope["outputs"][0], IMAGE["llava"]) == [LLAVA_ROWS] * 3
    assert stage.asked[-2:] == ["/id/32/512/512", "/picsum.jpg"]
    # In order: with two of them swapped it is another question.
    conversation = scope["conversation"]
    first = scope["llm"].chat(conversation, GREEDY)
    *pictures, text = conversation[-1]["content"]
    turned = [*conversation[:-1], {"role": "user", "content": [*pictures[::-1], text]}]
    assert tokens(scope["llm"].chat(turned, GREEDY)) != tokens(first)
    scope["llm"].close()
    with LLM(stage.model(LLAVA), enable_mm_embeds=False) as llm, pytest.raises(ValueError, match=EMBEDS):
        llm.chat([{"role": "user", "content": [pictures[2], text]}])


@case("S003-06")
def _(stage):
    def encode_image(frame):
        buffer = io.BytesIO()
        frame.save(buffer, "JPEG")
        return base64.b64encode(buffer.getvalue()).decode()

    script = snippet(3).replaced({QWEN2: stage.model(QWEN2), "video_frames = ...": "video_frames = frames"})
    scope = script.run(frames=[picture(seed) for seed in range(4)], encode_image=encode_image)
    answered(scope["outputs"], 1)
    (output,) = scope["outputs"]
    assert len(runs(output, IMAGE["qwen"])) == 4
    assert output.prompt.index("Describe this set") < output.prompt.index("<|image_pad|>")
    five = {**scope["message"], "content": [*scope["message"]["content"], scope["new_image"]]}
    with pytest.raises(ValueError, match=r"At most 4 image\(s\)"):
        scope["llm"].chat([five])
    scope["llm"].close()


@case("S003-07")
def _(stage):
    glass, opaque = PIL.Image.new("RGBA", (56, 56), (255, 0, 0, 128)), PIL.Image.new("RGB", (56, 56), (9, 8, 7))
    seen, alive = [], []

    def look(name, scope):
        llm = scope["llm"]
        alive.append(llm.client)
        prompts = [llm.client.prepare_raw("<image>", llm_read(llm, item)) for item in (glass, opaque)]
        seen.append([tuple(prompt.media[0].arrays["pixels"][5, 5].tolist()) for prompt in prompts])

    snippet(4).replaced({LLAVA: stage.model(LLAVA)}).run(after=look)
    assert [pair[0] for pair in seen] == [(255, 127, 127), (128, 0, 0), (128, 0, 127)]
    assert [pair[1] for pair in seen] == [(9, 8, 7)] * 3
    SCOPES.clear()
    assert [client.is_alive for client in alive] == [False] * 3  # rebinding and leaving the scope free the device
    for colour in ([256, 0, 0], [0, 0], "red"):
        with pytest.raises(ValueError, match="rgba_background_color"):
            LLM(stage.model(LLAVA), media_io_kwargs={"image": {"rgba_background_color": colour}})


def llm_read(llm, item):
    return read_items("image", item, options=llm.client.config.media_io_kwargs.get("image"))


@case("S003-08")
def _(stage, monkeypatch):
    """qwen_vl_utils and the processor need torchvision; their stand-ins return what they do for this video."""
    with av.open(str(stage.media / "video.mp4")) as container:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])[::5]
    # As large as qwen_vl_utils makes small frames, so that nothing scales them again.
    tensor = torch.from_numpy(frames).permute(0, 3, 1, 2).float()
    tensor = torch.nn.functional.interpolate(tensor, (224, 448), mode="bicubic", antialias=True).clamp(0, 255).round()
    frames = tensor.permute(0, 2, 3, 1).numpy().astype(np.uint8)
    utils = types.ModuleType("qwen_vl_utils")
    utils.process_vision_info = lambda messages: (None, [tensor])
    monkeypatch.setitem(sys.modules, "qwen_vl_utils", utils)
    script = snippet(5).replaced(
        {QWEN25: stage.model(QWEN25), "import AutoProcessor": "import AutoTokenizer as AutoProcessor"}
    )
    scope = script.run()
    answered(scope["outputs"], 1, most=1024)
    (output,) = scope["outputs"]
    llm = scope["llm"]
    count, _, height, width = tensor.shape
    assert sum(runs(output, IMAGE["video"])) == count // 2 * (height // 28) * (width // 28)
    forms = {"tensor": [tensor], "numpy": tensor.numpy(), "frames": list(frames), "bytes": [frames]}
    prompts = [{"prompt": scope["prompt"], "multi_modal_data": {"video": form}} for form in forms.values()]
    outputs = llm.generate(prompts, GREEDY)
    assert len({tuple(found) for found in tokens(outputs)}) == 1
    assert {tuple(found.prompt_token_ids) for found in outputs} == {tuple(output.prompt_token_ids)}
    llm.close()


@case("S003-09")
def _(stage):
    prompt = "(<audio>./</audio>)\nWhat?"
    with LLM(stage.model(MINICPM)) as llm:
        for rate in (16_000, 44_100):
            samples = (np.sin(np.arange(rate) / rate * 5000) / 2).astype(np.float32)
            one, many = {"audio": (samples, rate)}, {"audio": [(samples, rate), (samples, rate)]}
            outputs = llm.generate(
                [{"prompt": prompt, "multi_modal_data": one}, {"prompt": prompt * 2, "multi_modal_data": many}], GREEDY
            )
            answered(outputs, 2)
            assert outputs[1].usage.media_tokens["audio"] == 2 * outputs[0].usage.media_tokens["audio"]


def wav_reader(path, sr=None):
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray() for frame in container.decode(audio=0)]
        rate = container.streams.audio[0].rate
        channels = container.streams.audio[0].channels
    return np.concatenate(frames, axis=1).reshape(-1, channels).T.astype(np.float32) / 32768, rate


@case("S003-10")
def _(stage, monkeypatch):
    librosa = types.ModuleType("librosa")
    librosa.load = lambda path, sr: (wav_reader(path)[0][0], sr)
    monkeypatch.setitem(sys.modules, "librosa", librosa)
    script = snippet(6).replaced({"long_audio.wav": str(stage.media / "long_audio.wav")})
    found = {}
    with pytest.raises(CheckpointError, match="WhisperForConditionalGeneration"):
        script.replaced({"openai/whisper-large-v3-turbo": str(GOLDEN / "models/whisper_turbo")}).run(
            after=lambda name, scope: found.update(scope)
        )
    assert np.array_equal(np.concatenate(found["chunks"]), found["audio"])
    assert all(len(chunk) <= 30 * 16_000 for chunk in found["chunks"])
    assert len(found["chunks"]) == 2


@case("S003-11")
def _(stage, monkeypatch):
    torchaudio = types.ModuleType("torchaudio")
    torchaudio.load = lambda path: (torch.from_numpy(wav_reader(path)[0]), 16_000)
    monkeypatch.setitem(sys.modules, "torchaudio", torchaudio)
    script = snippet(7).replaced({"stereo_audio.wav": str(stage.media / "stereo_audio.wav")})
    waits(stage, script, "openai/whisper-large-v3")
    # The rule for channels holds for every family that hears.
    stereo = np.stack([np.sin(np.arange(44_100) / 9), np.cos(np.arange(44_100) / 5)]).astype(np.float32) / 2
    with LLM(stage.model(MINICPM)) as llm:
        for rate in (16_000, 44_100):
            forms = [stereo, stereo.T, stereo.mean(axis=0)]
            prompts = [{"prompt": "<audio>./</audio>", "multi_modal_data": {"audio": (form, rate)}} for form in forms]
            assert len({tuple(found) for found in tokens(llm.generate(prompts, GREEDY))}) == 1


@case("S003-12")
def _(stage):
    golden = load_file(GOLDEN / "models/llava/cases.safetensors")
    rows = torch.from_numpy(golden["image1/image_features"])[None]

    def look(name, scope):
        if name != "outputs":
            return
        llm = scope["llm"]
        answered(scope["outputs"], 1)
        prompt = scope["prompt"]
        forms = [rows, [rows[0]], PIL.Image.fromarray(golden["image1/image0"])]
        found = llm.generate([{"prompt": prompt, "multi_modal_data": {"image": form}} for form in forms], GREEDY)
        assert len({tuple(tokens_) for tokens_ in tokens(found)}) == 1
        with pytest.raises(ValueError, match="64"):
            llm.generate({"prompt": prompt, "multi_modal_data": {"image": torch.zeros(1, 16, 63)}})
        assert llm.generate(prompt.replace("<image>", ""), GREEDY)[0].finished

    embeddings(stage, after=look, rows=rows)
    with LLM(stage.model(LLAVA), enable_mm_embeds=False) as llm, pytest.raises(ValueError, match=EMBEDS):
        llm.generate({"prompt": "<image>", "multi_modal_data": {"image": rows}})


def embeddings(stage, after=None, rows=None):
    """The snippet of S003-12 to 14, with what each torch.load(...) reads."""
    golden = load_file(GOLDEN / "models/qwen2_vl/cases.safetensors")
    names = {
        "rows": rows if rows is not None else torch.zeros(1, LLAVA_ROWS, 64),
        "qwen_rows": torch.from_numpy(golden["image2/image_features"]),
        "qwen_grid": torch.from_numpy(golden["image2/image_grid_thw"]),
        "images": [picture(0, (448, 448)), picture(1, (1200, 500))],
    }
    script = snippet(8).replaced({name: stage.model(name) for name in (LLAVA, QWEN2, MINICPM)})
    script = script.filled(r"torch\.load\(\.\.\.\)", "rows", "qwen_rows", "qwen_grid", "minicpm_rows(image)")

    def minicpm_rows(image):
        return torch.from_numpy(
            np.random.default_rng(image.width).standard_normal((slices(image) * 64, 256), np.float32)
        )

    return script.run(after=after, minicpm_rows=minicpm_rows, **names)


def slices(image):
    """How many pictures MiniCPM makes of one: itself, and its slices."""
    return {448: 1, 1200: 3}[image.width]


@case("S003-13")
def _(stage):
    golden = load_file(GOLDEN / "models/qwen2_vl/cases.safetensors")
    checked = []

    def look(name, scope):
        if name != "mm_data" or "image_grid_thw" not in scope["mm_data"]["image"]:
            return
        data, llm = scope["mm_data"]["image"], scope["llm"]
        pictures = [PIL.Image.fromarray(golden[f"image2/image{index}"]) for index in range(2)]
        prompt = "<|vision_start|><|image_pad|><|vision_end|>" * 2 + "Compare."
        forms = [data, pictures]
        found = llm.generate([{"prompt": prompt, "multi_modal_data": {"image": form}} for form in forms], GREEDY)
        assert tokens(found)[0] == tokens(found)[1]
        wrong = {**data, "image_embeds": data["image_embeds"][:-1]}
        with pytest.raises(ValueError, match="13"):
            llm.generate({"prompt": prompt, "multi_modal_data": {"image": wrong}})
        checked.append(llm)

    embeddings(stage, after=look)
    assert checked


@case("S003-14")
def _(stage):
    scope = embeddings(stage)
    llm, data = scope["llm"], scope["mm_data"]["image"]
    as_tensor = {**data, "image_sizes": torch.tensor(data["image_sizes"])}
    prompt = "(<image>./</image>)(<image>./</image>)Compare."
    forms = [data, as_tensor]
    found = llm.generate([{"prompt": prompt, "multi_modal_data": {"image": form}} for form in forms], GREEDY)
    assert tokens(found)[0] == tokens(found)[1]
    assert found[0].usage.media_tokens["image"] == (1 + 3) * 64
    llm.close()


@case("S003-15")
def _(stage):
    waits(stage, snippet(9).replaced({"torch.load(...)": "None"}), "fixie-ai/ultravox-v0_5-llama-3_2-1b")
    # The generic placeholder, on a family that has another.
    samples = np.sin(np.arange(16_000) / 9).astype(np.float32)
    with LLM(stage.model(MINICPM)) as llm:
        prompts = [f"USER: {written}\nWhat is in this audio?" for written in ("<audio>", "(<audio>./</audio>)")]
        found = llm.generate([{"prompt": p, "multi_modal_data": {"audio": samples}} for p in prompts], GREEDY)
        assert found[0].prompt_token_ids == found[1].prompt_token_ids


def paths(stage, script):
    return script.replaced({QWEN25: stage.model(QWEN25), "/path/to/": f"{stage.media}/"})


@case("S003-16")
def _(stage):
    scope = paths(stage, snippet(10)).run()
    answered(scope["outputs"], 1)
    assert len(runs(scope["outputs"][0], IMAGE["qwen"])) == 2
    llm, prompt, pictures = scope["llm"], scope["prompt"], [scope["img_a"], scope["img_b"]]
    for uuids in ({"image": ["a"]}, {}, {"image": ["a", None], "audio": ["b"]}, {"image": "a"}):
        with pytest.raises(ValueError, match="multi_modal_uuids"):
            llm.generate({"prompt": prompt, "multi_modal_data": {"image": pictures}, "multi_modal_uuids": uuids})
    llm.close()


@case("S003-17")
def _(stage):
    with pytest.raises(ValueError, match=r"Cache miss for image at index 0 .*sku-1234-a"):
        paths(stage, snippet(11)).run()
    # On the engine that has seen the picture, the answer is that of S003-16.
    scope = paths(stage, snippet(10)).run()
    llm, prompt = scope["llm"], {"prompt": scope["prompt"], "multi_modal_uuids": {"image": ["sku-1234-a", None]}}
    seen = llm.generate({**prompt, "multi_modal_data": {"image": [scope["img_a"], scope["img_b"]]}}, GREEDY)
    again = llm.generate({**prompt, "multi_modal_data": {"image": [None, scope["img_b"]]}}, GREEDY)
    assert tokens(again) == tokens(seen)
    assert again[0].prompt_token_ids == seen[0].prompt_token_ids
    with pytest.raises(ValueError, match=r"\[1\]"):
        llm.generate({**prompt, "multi_modal_data": {"image": [scope["img_a"], None]}})
    llm.close()


@case("S003-17b")
def _(stage):
    with LLM(stage.model(QWEN25), mm_processor_cache_gb=0, enable_prefix_caching=False) as llm:
        prompt = {"prompt": "<image>", "multi_modal_uuids": {"image": "same"}}
        found = llm.generate([{**prompt, "multi_modal_data": {"image": picture(seed)}} for seed in (0, 1)], GREEDY)
        assert tokens(found)[0] != tokens(found)[1]  # the ids are ignored
        with pytest.raises(ValueError, match="cach"):
            llm.generate({**prompt, "multi_modal_data": {"image": None}})


@pytest.mark.parametrize("name", CASES)
def test_seed(name, stage: Stage, monkeypatch, tmp_path):
    monkeypatch.setenv("SENSORIUM_ASSETS_URL", f"{stage.url}/assets")
    monkeypatch.setenv("SENSORIUM_ASSETS_CACHE", str(tmp_path / Path("assets")))
    function = CASES[name]
    function(stage, monkeypatch) if function.__code__.co_argcount == 2 else function(stage)
