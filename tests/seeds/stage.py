"""What the snippets of the seeds need around them: checkpoints, media, and a server of media."""

from __future__ import annotations

import ast
import json
import re
import threading
import wave
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import av
import numpy as np
import PIL.Image
import torch

GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "golden"
QWEN_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% if message.content is string %}"
    "{{ message.content }}{% else %}{% for part in message.content %}{% if part.type == 'text' %}{{ part.text }}"
    "{% else %}<|vision_start|><|{{ part.type }}_pad|><|vision_end|>{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Published name -> the random checkpoint of its family; the families that are not there yet, by architecture.
FAMILIES = {
    "llava-hf/llava-1.5-7b-hf": "models/llava",
    "Qwen/Qwen2-VL-2B-Instruct": "models/qwen2_vl",
    "Qwen/Qwen2.5-VL-3B-Instruct": "models/qwen2_5_vl",
    "openbmb/MiniCPM-V-2_6": "minicpmo45/tiny",
    "openbmb/MiniCPM-o-4_5": "minicpmo45/tiny",
}
WAITING = {
    "microsoft/Phi-3.5-vision-instruct": ("models/phi3_v", "Phi3VForCausalLM"),
    "llava-hf/llava-onevision-qwen2-0.5b-ov-hf": ("models/llava_onevision", "LlavaOnevisionForConditionalGeneration"),
    "Qwen/Qwen3-VL-30B-A3B-Instruct": ("models/qwen3_vl_moe", "Qwen3VLMoeForConditionalGeneration"),
    "fixie-ai/ultravox-v0_5-llama-3_2-1b": ("models/ultravox", "UltravoxModel"),
    "openai/whisper-large-v3-turbo": ("models/whisper_turbo", "WhisperForConditionalGeneration"),
    "openai/whisper-large-v3": ("models/whisper_large_v3", "WhisperForConditionalGeneration"),
}


def checkpoint(name: str, folder: Path) -> Path:
    """A copy of a family's random checkpoint, with what its published relatives have: a chat template, no code."""
    source = GOLDEN / FAMILIES[name]
    made = folder / name
    if made.is_dir():
        return made
    made.mkdir(parents=True)
    for path in source.iterdir():
        if path.suffix != ".json" or path.name in ("cases.json", "tensor_names.json"):
            (made / path.name).symlink_to(path)
            continue
        content = json.loads(path.read_text("utf-8"))
        if isinstance(content, dict):
            content.pop("auto_map", None)
            if "tokenizer_class" in content and "MiniCPM" in name:
                content["tokenizer_class"] = "Qwen2Tokenizer"  # what the published class, which is code, derives from
        (made / path.name).write_text(json.dumps(content), "utf-8")
    if "Qwen" in name:
        (made / "chat_template.jinja").write_text(QWEN_TEMPLATE)
    return made


# ---- media ----------------------------------------------------------------------------------------------------------


def picture(seed: int, size: tuple[int, int] = (84, 56)) -> PIL.Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return PIL.Image.fromarray(pixels)


def write_media(folder: Path) -> Path:
    """One file for every one that the snippets name."""
    for seed, name in enumerate(("a", "b", "airplane", "boardwalk", "duck", "lion", "picsum", "cherry_blossom")):
        picture(seed).save(folder / f"{name}.jpg", quality=95)
    _write_video(folder / "video.mp4")
    tone = (np.sin(np.arange(16000 * 2) / 20) * 8000).astype(np.int16)
    for name, channels in (("audio", 1), ("stereo_audio", 2), ("long_audio", 1)):
        with wave.open(str(folder / f"{name}.wav"), "wb") as file:
            file.setnchannels(channels)
            file.setsampwidth(2)
            file.setframerate(16000)
            file.writeframes(np.repeat(np.tile(tone, 20 if name == "long_audio" else 1), channels).tobytes())
    _write_ogg(folder / "winning_call.ogg")
    return folder


def _write_video(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 112, 56, "yuv420p"
        for index in range(40):
            frame = av.VideoFrame.from_ndarray(np.asarray(picture(index // 10, (112, 56))), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _write_ogg(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libopus", rate=48000, layout="mono")
        samples = (np.sin(np.arange(48000) / 30) / 4).astype(np.float32)[None]
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
        frame.sample_rate = 48000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


class _Media(SimpleHTTPRequestHandler):
    """Every address of the seeds ends in a name it has; one of them redirects, as that of the seed does."""

    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.path.startswith("/assets/"):
            self.path = "/" + self.path.rpartition("/")[2]
        if self.path == "/id/32/512/512":
            self.send_response(302)
            self.send_header("Location", "/picsum.jpg")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        super().do_GET()

    def log_message(self, *args: Any) -> None:
        pass


@contextmanager
def media_server(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Its address, and the paths it is asked for."""
    asked: list[str] = []
    handler = partial(type("Handler", (_Media,), {"asked": asked}), directory=str(folder))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, name="media-server")
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@dataclass(frozen=True)
class Stage:
    """What a case plays on. asked: the paths that were asked of the media server."""

    folder: Path
    media: Path
    url: str
    asked: list[str]

    @property
    def host(self) -> str:
        return self.url.removeprefix("http://")

    def model(self, name: str) -> str:
        return str(checkpoint(name, self.folder))


# ---- running ---------------------------------------------------------------------------------------------------------

SCOPES: list[dict[str, Any]] = []
"""The names that scripts have made, until their test is over."""


@dataclass
class Script:
    """A snippet after the replacements that are allowed: names, paths, and what the seed leaves open."""

    source: str
    names: dict[str, Any] = field(default_factory=dict)

    def replaced(self, changes: Mapping[str, str]) -> Script:
        """Each must be there."""
        source = self.source
        for old, new in changes.items():
            assert old in source, f"the seed no longer has {old!r}"
            source = source.replace(old, new)
        return Script(source, self.names)

    def filled(self, pattern: str, *values: str) -> Script:
        """What matches the pattern, one after the other, is replaced by each value."""
        left = list(values)
        source = re.sub(pattern, lambda match: left.pop(0) if left else match[0], self.source)
        assert not left, f"the seed has fewer {pattern!r} than {len(values)}"
        return Script(source, self.names)

    def run(self, after: Callable[[str, dict[str, Any]], None] | None = None, **names: Any) -> dict[str, Any]:
        """Executes it statement by statement. after is called with each name that a statement assigned."""
        scope: dict[str, Any] = {"__name__": "__main__", "PIL": PIL, "torch": torch, **self.names, **names}
        SCOPES.append(scope)
        for statement in ast.parse(self.source).body:
            exec(compile(ast.Module([statement], []), "<seed>", "exec"), scope)
            if after and isinstance(statement, ast.Assign):
                for target in statement.targets:
                    after(ast.unparse(target), scope)
        return scope


def for_sensorium(snippet: str) -> Script:
    """The one replacement that every snippet gets."""
    return Script(re.sub(r"\bfrom vllm\b", "from sensorium", snippet))
