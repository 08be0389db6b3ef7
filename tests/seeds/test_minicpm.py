"""Seeds 002 and 004: every Python snippet as it stands there, after its imports name sensorium."""

from __future__ import annotations

import json
import re
import sys
import wave
from pathlib import Path

import pytest
import torch
from minicpm.clips import write_clip
from minicpm.speaking import speaking_checkpoint
from seeds import extract, layouts
from seeds.stage import GOLDEN, Script, picture

from sensorium.errors import CheckpointError
from sensorium.inspect import inspect

HUB, AWQ = "OpenBMB/MiniCPM-V-4_5-int4", "OpenBMB/MiniCPM-V-4_5-AWQ"
ANSWER = 12
"""Tokens that an answer may have: the context of the checkpoints ends there."""


def between(name: str, start: str, end: str) -> str:
    """What stands between two lines of a document; the first occurrence of each."""
    text = extract.text(name)
    text = text[text.index(start) + len(start) :]
    return text[: text.index(end)].strip() + "\n"


def script(source: str) -> Script:
    """The replacement that every snippet gets; where there is no GPU, the CPU takes its place."""
    source = re.sub(r"\bfrom (transformers|modelscope) import", "from sensorium.minicpm import", source)
    source = re.sub(r"\bfrom minicpmo\.utils import", "from sensorium.minicpm.utils import", source)
    if not torch.cuda.is_available():
        source = re.sub(r'"cuda:\d"', '"cpu"', source).replace(".cuda()", '.to("cpu")')
    return Script(source)


def broken(name: str) -> str:
    """A snippet of seed 004, with its line breaks put back."""
    start, end, layout = layouts.SNIPPETS[name]
    return layouts.broken(between("004", start, end), layout)


def checkpoint(source: str, folder: Path, context: int | None = None, **config: object) -> Path:
    """A copy of a random checkpoint that ends after so many tokens."""
    folder.mkdir(parents=True)
    for path in (GOLDEN / source).iterdir():
        if path.name not in ("config.json", "cases.json", "tensor_names.json"):
            (folder / path.name).symlink_to(path)
    settings = json.loads((GOLDEN / source / "config.json").read_text())
    if context is not None:
        settings["max_position_embeddings"] = context
    (folder / "config.json").write_text(json.dumps({**settings, **config}))
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The folder that the relative names of the snippets start from."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.split(".")[0] == "decord"]:
        del sys.modules[name]


def closing(scope: dict) -> dict:
    scope["model"].close()
    return scope


# ---- 002 -------------------------------------------------------------------------------------------------------------


def test_002_the_structure_as_json(here, capsys):
    source = between("002", "打印模型架构的 python 脚本\n", "\n3.3 ")
    checkpoint("minicpmo45/tiny", here / "model")
    (here / "structure").mkdir()
    scope = script(source).run()
    saved = json.loads((here / "structure" / "MiniCPM-model-structure.json").read_text("utf-8"))
    assert saved == scope["clean_structure"] == inspect("model").tree
    assert saved["llm"]["lm_head"] == {"_type": "Linear", "_shape": [362, 256]}
    printed = capsys.readouterr().out
    assert "警告" not in printed
    for line in ("llm: Qwen3ForCausalLM\n", "  lm_head: Linear\n", "vpm: SiglipVisionTransformer\n", "      ...\n"):
        assert line in printed
    assert scope["model"]._client is None, "no weight was read"


def test_002_a_picture(here, capsys):
    source = between("002", "节省显存的推理代码(仅视觉)\n", "\n上述代码输入的图像")
    checkpoint("minicpmo45/tiny", here / "model", 116 + ANSWER)
    (here / "model" / "assets").mkdir()
    picture(3).save(here / "model" / "assets" / "fossil.png")
    scope = closing(script(source).run())
    assert scope["res"]
    assert capsys.readouterr().out == scope["res"] + "\n"
    assert scope["model"].dtype == torch.bfloat16


FULL = ("采用官方推理代码(全双工,爆显存预警\n", "\n  • 体验感受")


def speaking(here: Path, stage, context: int) -> None:
    """What the snippet finds under model/."""
    folder = speaking_checkpoint(GOLDEN / "minicpmo45" / "tiny", here / "model", context)
    write_clip(folder / "assets" / "Skiing.mp4")
    (folder / "assets" / "HT_ref_audio.wav").symlink_to(stage.media / "audio.wav")


DUPLEX = {"duplex_model = model.as_duplex()": "", "model = duplex_model.as_simplex(reset_session=True)": ""}


@pytest.mark.parametrize("whole", [False, True])
def test_002_a_spoken_answer_about_a_video(here, stage, capsys, whole):
    """As it stands, and without its two lines about full duplex."""
    speaking(here, stage, 401 + ANSWER)
    source = script(between("002", *FULL))
    scope = closing((source if whole else source.replaced(DUPLEX)).run())
    assert capsys.readouterr().out == scope["res"] + "\n"
    assert [type(part).__name__ for part in scope["omni_contents"]] == ["Image", "ndarray"] * 3
    with wave.open("output.wav") as file:
        assert file.getframerate() == 24_000
        assert file.getnframes() >= 50 * 960


# ---- 004 -------------------------------------------------------------------------------------------------------------


def local(name: str, here: Path, context: int) -> Script:
    """A snippet whose quantised model is replaced by a folder with one that is not."""
    folder = checkpoint("minicpmo45/v45/tiny", here / "model", context + ANSWER)
    return script(broken(name)).replaced({HUB: str(folder)})


def test_004_one_picture_as_a_stream(here, capsys):
    picture(0).save(here / "example.jpeg")
    scope = closing(local("one", here, 119).run())
    assert len(scope["generated_text"]) > 0
    assert capsys.readouterr().out == scope["generated_text"]
    again = closing(script(broken("one")).replaced({HUB: str(here / "model")}).run())
    assert again["generated_text"] == scope["generated_text"], "torch.manual_seed(100) is at its beginning"


def test_004_several_pictures(here, capsys):
    for seed, name in enumerate(("s1.jpg", "s2.jpg")):
        picture(seed).save(here / name)
    scope = closing(local("two", here, 237).run())
    assert isinstance(scope["answer"], str)
    assert capsys.readouterr().out == scope["answer"] + "\n"


def test_004_few_shot(here):
    for seed, name in enumerate(("example1.jpg", "example2.jpg", "test.jpg")):
        picture(seed).save(here / name)
    scope = closing(local("shots", here, 342).run())
    assert isinstance(scope["answer"], str)
    assert len(scope["msgs"][0]["content"]) == 2, "what was asked is left as it was"


def test_004_a_video(here, stage):
    pytest.importorskip("decord", reason="the snippet reads videos with decord")
    pytest.importorskip("scipy", reason="the snippet finds times with scipy")
    (here / "video_test.mp4").symlink_to(stage.media / "video.mp4")
    scope = closing(local("video", here, 1400).run())
    assert isinstance(scope["answer"], str)
    assert [len(group) for group in scope["frame_ts_id_group"]] == [1] * 20
    from sensorium.minicpm.utils import encode_video

    frames, groups = encode_video("video_test.mp4", 5)
    assert len(frames) == len(scope["frames"])
    assert groups == [[int(time) for time in group] for group in scope["frame_ts_id_group"]]


@pytest.mark.parametrize(("name", "method"), [(HUB, "bitsandbytes"), (AWQ, "awq")])
def test_004_quantised_checkpoints_wait(name, method, here):
    """Once they can be read this fails, and the snippets must run with them."""
    checkpoint("minicpmo45/v45/tiny", here / name, quantization_config={"quant_method": method})
    source = script(broken("two")).replaced({HUB: name})
    with pytest.raises(CheckpointError) as caught:
        source.run()
    assert str(caught.value) == f"this checkpoint is quantised ({method}); load the bfloat16 release instead"
