"""Seeds 003 and 000, online part: each command starts a server, each client snippet talks to it as it stands there."""

from __future__ import annotations

import base64
import builtins
import io
import re
import urllib.request
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import openai
import pytest
import torch
from safetensors.numpy import load_file
from seeds import extract
from seeds.servers import Server, Servers
from seeds.stage import GOLDEN, WAITING, Script, Stage, for_sensorium, picture

from sensorium import LLM
from sensorium.errors import CheckpointError

LLAVA, QWEN2, QWEN25 = "llava-hf/llava-1.5-7b-hf", "Qwen/Qwen2-VL-2B-Instruct", "Qwen/Qwen2.5-VL-3B-Instruct"
MINICPM = "openbmb/MiniCPM-V-2_6"
BASE = '"https://:8000/v1"'
S3 = "https://vllm-public-assets.s3.us-west-2.amazonaws.com"
STOPS = (257, 259)
"""<|endoftext|> and <|im_end|> of the random MiniCPM checkpoint."""
CASES: dict[str, Callable[[Play], None]] = {}


@dataclass(frozen=True)
class Play:
    """The stage, its servers, and what a test may change for a while."""

    stage: Stage
    servers: Servers
    monkeypatch: pytest.MonkeyPatch
    capsys: pytest.CaptureFixture[str]

    def serve(self, command: str, *extra: str, model: str) -> Server:
        """With the media server on the list of hosts, after those that the seed lists."""
        listed = re.search(r"--allowed-media-domains ((?:[a-z.]+ ){2}[a-z.]+)", extract.text("003"))
        assert listed
        domains = ["--allowed-media-domains", *listed[1].split(), self.stage.host]
        return self.servers.get(command, *extra, *domains, model=self.stage.model(model))

    def waits(self, command: str, name: str) -> None:
        """The family that a command starts is not there, and the error names it. Once it is there, this fails."""
        folder, architecture = WAITING[name]
        assert name in command
        with pytest.raises(CheckpointError, match=architecture):
            LLM(str(GOLDEN / folder))


def case(name):
    def keep(function):
        CASES[name] = function
        return function

    return keep


def web(number: int) -> str:
    return extract.bare("003")[number]


def ask(server: Server, *parts, model=None, **options):
    """One greedy answer, as its choice with the log-probabilities of its tokens."""
    client = openai.OpenAI(api_key="EMPTY", base_url=server.url, max_retries=0)
    options = {"temperature": 0, "max_tokens": 4, "logprobs": True, **options}
    messages = [{"role": "user", "content": list(parts)}]
    return client.chat.completions.create(model=model or client.models.list().data[0].id, messages=messages, **options)


def scores(answer):
    return [token.logprob for token in answer.choices[0].logprobs.content]


def url(kind, address, **more):
    return {"type": kind, kind: {"url": address}, **more}


def png(image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def metric(server: Server, name: str) -> float:
    text = urllib.request.urlopen(server.url.removesuffix("/v1") + "/metrics").read().decode()
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))


TEXT = {"type": "text", "text": "What is it?"}


# ---- Phi-3.5: the client on Qwen2.5-VL, which is there ------------------------------------------------------------


def pictures(play: Play) -> Server:
    return play.serve(web(12), "--allowed-local-media-path", str(play.stage.media), model=QWEN25)


@case("S003-01")
def _(play):
    server = pictures(play)
    assert ask(server, url("image_url", f"{play.stage.url}/a.jpg")).choices[0].finish_reason in ("stop", "length")
    ask(server, url("image_url", png(picture(0))))
    with pytest.raises(openai.BadRequestError, match=r"upload\.wikimedia\.org"):
        ask(server, url("image_url", "http://example.com/a.jpg"))


@case("S003-18")
def _(play):
    play.waits(web(12), "microsoft/Phi-3.5-vision-instruct")
    server = pictures(play)
    model = openai.OpenAI(api_key="EMPTY", base_url=server.url).models.list().data[0]
    assert (model.id, model.max_model_len) == (play.stage.model(QWEN25), 4096)


@case("S003-19")
def _(play):
    """19a, b and c: a remote picture with an id, a local one, and two."""
    server = pictures(play)
    script = for_sensorium(web(13)).replaced(
        {
            BASE: repr(server.url),
            "microsoft/Phi-3.5-vision-instruct": play.stage.model(QWEN25),
            f"{S3}/vision_model_images/2560px-Gfp-wisconsin-madison-the-nature-": f"{play.stage.url}/",
            f"{S3}/multimodal_asset": play.stage.url,
            "/path/to/image.jpg": str(play.stage.media / "a.jpg"),
        }
    )
    script.run()
    printed = play.capsys.readouterr().out
    assert printed.count("Chat completion output") == 3
    assert "skipping" not in printed
    hits = metric(server, "vllm:mm_cache_hits_total")
    script.run()
    assert metric(server, "vllm:mm_cache_hits_total") >= hits + 3
    three = [url("image_url", png(picture(seed))) for seed in range(3)]
    with pytest.raises(openai.BadRequestError, match=r"At most 2 image\(s\)"):
        ask(server, *three)
    for outside in (f"file://{play.stage.media}/../x.jpg", "file:///etc/passwd"):
        with pytest.raises(openai.BadRequestError):
            ask(server, url("image_url", outside))


@case("S003-31")
def _(play):
    """Parts without media: what the id names, once it has been seen."""
    parts = eval(f"[{web(25)}]", {"image_uuid": "seen", "audio_uuid": "unheard"})
    server = pictures(play)
    first = ask(server, url("image_url", png(picture(5)), uuid="seen"), TEXT)
    for part in (parts[0], parts[3]):
        assert scores(ask(server, part, TEXT)) == pytest.approx(scores(first), abs=1e-3)
    for part in ({**parts[0], "uuid": "unseen"}, {"type": "image_url", "image_url": None}):
        with pytest.raises(openai.BadRequestError):
            ask(server, part)
    server = sounds(play)
    for part in (parts[1], parts[2]):
        with pytest.raises(openai.BadRequestError):
            ask(server, part)


# ---- LLaVA-OneVision and Qwen3-VL: the client on Qwen2-VL --------------------------------------------------------


def films(play: Play) -> Server:
    return play.serve(f"{web(15).strip()} --media-io-kwargs {recovery()} --enable-mm-embeds", model=QWEN2)


def recovery() -> str:
    """The flag's value in S003-24, still quoted."""
    found = re.search(r"--media-io-kwargs ('.*')", web(18))
    assert found
    return found[1]


@case("S003-21")
def _(play):
    play.waits(web(15), "llava-hf/llava-onevision-qwen2-0.5b-ov-hf")


@case("S003-22")
def _(play):
    video = "http://commondatastorage.googleapis.com/gtv-videos-bucket/sample/ForBiggerFun.mp4"
    script = for_sensorium(web(16)).replaced({BASE: repr(films(play).url), video: f"{play.stage.url}/video.mp4"})
    scope = script.run(model=play.stage.model(QWEN2))
    assert 0 < scope["chat_completion_from_url"].usage.completion_tokens <= 64


@case("S003-24")
def _(play):
    play.waits(web(18), "Qwen/Qwen3-VL-30B-A3B-Instruct")
    cut = (play.stage.media / "video.mp4").read_bytes()
    damaged = bytearray(cut)
    middle = cut.index(b"mdat") + 3000
    damaged[middle : middle + 1500] = b"\x55" * 1500
    address = "data:video/mp4;base64," + base64.b64encode(bytes(damaged)).decode()
    assert ask(films(play), url("video_url", address), TEXT).choices[0].finish_reason in ("stop", "length")


@case("S003-30b")
def _(play):
    golden = load_file(GOLDEN / "models/qwen2_vl/cases.safetensors")
    rows, grid = golden["image1/image_features"], golden["image1/image_grid_thw"][0]
    embeddings(play, films(play), QWEN2, [rows, grid])


# ---- LLaVA ---------------------------------------------------------------------------------------------------------


def llava(play: Play, colour: int) -> Server:
    """Black with embeddings, or grey."""
    command = re.findall(r"vllm serve.*?'\n", web(19), re.DOTALL)[colour]
    return play.serve(command, *(() if colour else ("--enable-mm-embeds",)), model=LLAVA)


@case("S003-30a")
def _(play):
    rows = load_file(GOLDEN / "models/llava/cases.safetensors")["image1/image_features"]
    embeddings(play, llava(play, 0), LLAVA, [rows])


@case("S003-25a")
def _(play):
    background(play, llava(play, 0), (0, 0, 0))


@case("S003-25b")
def _(play):
    background(play, llava(play, 1), (128, 128, 128))
    with pytest.raises(openai.BadRequestError, match="enable-mm-embeds"):
        ask(llava(play, 1), {"type": "image_embeds", "image_embeds": "AAAA"})


def background(play, server, colour):
    """A picture that is clear on its left half answers as one with this colour there."""
    clear = picture(3, (56, 56)).convert("RGBA")
    clear.paste((9, 9, 9, 0), (0, 0, 28, 56))
    filled = picture(3, (56, 56))
    filled.paste(colour, (0, 0, 28, 56))
    white = picture(3, (56, 56))
    white.paste((255, 255, 255), (0, 0, 28, 56))
    seen = [scores(ask(server, url("image_url", png(image)), TEXT)) for image in (clear, filled, white)]
    assert seen[0] == pytest.approx(seen[1], abs=1e-4)
    assert seen[0] != pytest.approx(seen[2], abs=1e-4)


# ---- Ultravox: the client on MiniCPM-o ----------------------------------------------------------------------------


def sounds(play: Play) -> Server:
    return play.serve(web(20), "--enable-mm-embeds", model=MINICPM)


@case("S003-26")
def _(play):
    play.waits(web(20), "fixie-ai/ultravox-v0_5-llama-3_2-1b")


@case("S003-27")
def _(play):
    """27 and 28: bytes of ogg that are said to be wav, and the same recording by its address."""
    play.monkeypatch.setenv("SENSORIUM_ASSETS_URL", f"{play.stage.url}/assets")
    script = for_sensorium(web(21)).replaced({BASE: repr(sounds(play).url)})
    scope = script.run(model=play.stage.model(MINICPM))
    first = scope["chat_completion_from_base64"]
    assert first.choices[0].finish_reason in ("stop", "length")
    scope = for_sensorium(web(22)).run(**{name: scope[name] for name in ("client", "model", "audio_url")})
    assert scope["chat_completion_from_url"].usage.prompt_tokens == first.usage.prompt_tokens


@case("S003-30c")
def _(play):
    rows = np.random.default_rng(0).standard_normal((64, 256), np.float32)
    embeddings(play, sounds(play), MINICPM, [rows, np.array([448, 448])])


def embeddings(play, server, name, tensors):
    """The snippet of S003-30 with one of the three models it goes through: d, e and f are its last three calls."""
    source = web(24)
    start = source.index(f'model = "{name}"')
    ends = [found.start() for found in re.finditer(r'^model = "|^# Additional|^# Single', source, re.MULTILINE)]
    chosen = source[start : next(end for end in ends if end > start)]
    head, calls = source[: source.index("# Basic usage")], source[source.index("# Single image input") :]
    script = for_sensorium(head + chosen + calls).replaced({name: play.stage.model(name)})
    script = script.filled(r"torch\.load\(\.\.\.\)", *(f"tensors[{index}]" for index in range(len(tensors))))
    answers = []
    scope = script.run(
        after=lambda assigned, scope: answers.append(scope[assigned]) if assigned == "chat_completion" else None,
        OpenAI=openai.OpenAI,
        openai_api_key="EMPTY",
        openai_api_base=server.url,
        image_url="an id",
        tensors=[torch.from_numpy(tensor) for tensor in tensors],
    )
    single, double, interleaved = (answer.usage.prompt_tokens for answer in answers)
    assert double > single + len(tensors[0])
    assert abs(interleaved - double) <= 2
    assert all(answer.choices[0].finish_reason in ("stop", "length") for answer in answers)
    assert scope["embeds"]["uuid"] == "an id"


# ---- seed 000 ------------------------------------------------------------------------------------------------------


def guide(play: Play, number: int) -> Server:
    return play.serve(extract.fenced("000")[number].replace("<模型路径>", "x"), model=MINICPM)


def guided(play: Play, number: int, server: Server) -> Script:
    """The ids of its two stop tokens are those of the random checkpoint, whose vocabulary is small."""
    script = for_sensorium(extract.fenced("000")[number])
    changes = {"<模型路径>": play.stage.model(MINICPM), "http://localhost:8000/v1": server.url}
    return script.replaced({**changes, "[151643, 151645]": str(list(STOPS))})


@case("S000-03")
def _(play):
    server = guide(play, 3)
    client = openai.OpenAI(api_key="wrong", base_url=server.url)
    with pytest.raises(openai.AuthenticationError):
        client.models.list()
    client = openai.OpenAI(api_key="token-abc123", base_url=server.url)
    assert client.models.list().data[0].id == play.stage.model(MINICPM)


@case("S000-04")
def _(play):
    script = guided(play, 4, guide(play, 3)).replaced(
        {"./assets/airplane.jpeg": str(play.stage.media / "airplane.jpg")}
    )
    scope = script.run()
    assert "<|im_end|>" not in scope["chat_response"].choices[0].message.content
    assert "Chat response content:" in play.capsys.readouterr().out


@case("S000-05")
def _(play):
    script = guided(play, 5, guide(play, 3)).replaced({"./videos/video.mp4": str(play.stage.media / "video.mp4")})
    assert script.run()["chat_response"].usage.prompt_tokens > 64


@case("S000-06")
def _(play):
    script = guided(play, 6, guide(play, 3)).replaced({"./audio/audio.wav": str(play.stage.media / "audio.wav")})
    assert script.run()["chat_response"].usage.prompt_tokens > 20


def refused(server, modality, *parts):
    client = openai.OpenAI(api_key="token-abc123", base_url=server.url, max_retries=0)
    with pytest.raises(openai.BadRequestError, match=rf"At most \d {modality}\(s\)"):
        client.chat.completions.create(
            model=client.models.list().data[0].id, messages=[{"role": "user", "content": list(parts)}]
        )


def film(play):
    data = base64.b64encode((play.stage.media / "video.mp4").read_bytes()).decode()
    return url("video_url", f"data:video/mp4;base64,{data}")


@case("S000-07")
def _(play):
    refused(guide(play, 7), "video", *[film(play)] * 4)


@case("S000-09")
def _(play):
    """The conversation of several turns: a video, a picture, a file of no known kind, and words alone."""
    server = guide(play, 7)
    (play.stage.media / "notes.txt").write_text("x")
    typed = []
    for file in ("video.mp4", "a.jpg", "notes.txt"):
        typed += ["看看", "y", str(play.stage.media / file)]
    typed += ["再见", "n", "exit"]
    play.monkeypatch.setattr(builtins, "input", lambda prompt: typed.pop(0))
    scope = guided(play, 9, server).run()
    assert [message["role"] for message in scope["messages"]] == ["system"] + ["user", "assistant"] * 4
    assert all(isinstance(message["content"], str) for message in scope["messages"][2::2])
    assert "不支持的文件类型" in play.capsys.readouterr().out
    assert not typed


@case("S000-08")
def _(play):
    server = guide(play, 8)
    refused(server, "video", *[film(play)] * 3)
    refused(server, "image", *[url("image_url", png(picture(seed))) for seed in range(6)])


@case("S000-10")
def _(play):
    source = extract.fenced("000")[10]
    script = for_sensorium(source).replaced(
        {"<模型路径>": play.stage.model(MINICPM), "./assets/airplane.jpeg": str(play.stage.media / "airplane.jpg")}
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # transformers, about the checkpoint's own config.json
        scope = script.run()
    (output,) = scope["outputs"]
    assert output.usage.media_tokens["image"] == 64
    assert output.outputs[0].stop_reason in (None, STOPS[0])
    # The batch that stands there as a comment, and several pictures as a list.
    commented = re.search(r"# inputs = .*?for _ in range\(2\)\]", source, re.DOTALL)
    assert commented
    batch = Script(commented[0].replace("# ", ""), scope).run()["inputs"]
    assert len(scope["llm"].generate(batch, scope["sampling_params"])) == 2
    twice = {"prompt": "(<image>./</image>)" * 2, "multi_modal_data": {"image": [scope["image"]] * 2}}
    assert scope["llm"].generate(twice)[0].usage.media_tokens["image"] == 128
    scope["llm"].close()


SLOW = {
    "S003-22",
    "S003-24",
    "S003-25a",
    "S003-25b",
    "S003-26",
    "S003-30a",
    "S003-30b",
    "S000-07",
    "S000-08",
    "S000-09",
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in CASES]
)
def test_seed(name, stage, servers, monkeypatch, capsys):
    CASES[name](Play(stage, servers, monkeypatch, capsys))
