"""What the training code draws and asks: true answers, the processor's prompts, a model that can learn."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image

from sensorium.models.minicpm_mel import log_mel as reference_mel
from sensorium.models.minicpm_processor import Processor
from sensorium.types import ChatOptions, Media, Message
from training import ask_scene, ask_series, batches, draw, families, scenes, sound, views
from training.ask_speech import Clip, rows_of
from training.atlas import Atlas, Font
from training.conversation import Encoder, Heard, Shown, Turn, encode
from training.lexicon import GLYPHS, SHAPES
from training.optimiser import orthogonal
from training.small_talk import TALKS
from training.student import Student
from training.templates import ASK

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "sensorium" / "packaged" / "sensorium-tiny"
FONT = Font("flat", len(SHAPES), (0.6,) * len(GLYPHS), 0.2)


class Silent:
    """Stands where espeak-ng would: a tone, as long as the text."""

    def speak(self, text: str, voice: object) -> np.ndarray:
        return (8000 * np.sin(np.arange(1200 * len(text)) * 0.05)).astype(np.int16)


def atlas() -> Atlas:
    """Every glyph a disc, as a distance field."""
    y, x = np.mgrid[0:64, 0:64] - 31.5
    disc = np.clip((25.6 - np.hypot(x, y)) / 8 * 127, -127, 127).astype(np.int8)
    return Atlas(np.repeat(disc[None], len(SHAPES) + len(GLYPHS), 0), (FONT,), ())


def source(seed: int = 5) -> families.Source:
    return families.Source(seed, (FONT,), Silent(), {})  # type: ignore[arg-type]


def encoder() -> Encoder:
    return Encoder(str(PACKAGE / "tokenizer.json"))


def test_questions_have_ten_forms_in_each_language() -> None:
    thin = [(task, lang) for task, asks in ASK.items() for lang, forms in asks.items() if len(set(forms)) < 10]
    assert thin == []
    assert {lang for asks in ASK.values() for lang in asks} == {"en", "zh"} == set(TALKS)


@pytest.mark.parametrize("seed", range(5))
def test_counts_and_relations_are_true(seed: int) -> None:
    random = Random(seed)
    scene = scenes.things_scene(random, 4)
    a, b = scene.things[0], scene.things[-1]
    assert len(scene.things) >= 2
    side = ask_scene.side_of(a, b)
    if side is not None:
        assert {"left": a.x < b.x, "right": a.x > b.x, "up": a.y < b.y, "down": a.y > b.y}[side]
    ask = ask_scene.ask_describe(random, scene, "en")
    if ask is not None:
        assert ask.answer.count(" and ") + ask.answer.count(",") == len(scene.things) - 1


def test_boxes_hold_their_things() -> None:
    random = Random(3)
    scene = scenes.sample_canvas(random)
    assert scenes.place(random, scene, 1, 0, (255, 0, 0), 20.0)
    ask = ask_scene.ask_box(random, scene, "en")
    assert ask is not None
    x1, y1, x2, y2 = (int(n) for n in ask.answer.split("<box>")[1].removesuffix("</box>").split(" "))
    thing = scene.things[0]
    assert x1 < 1000 * thing.x / scene.width < x2
    assert y1 < 1000 * thing.y / scene.height < y2


def test_change_is_the_only_difference() -> None:
    for seed in range(40):
        first, second, change, before, after = ask_series.changed_pair(Random(seed))
        kinds = [sorted(t.kind for t in scene.things) for scene in (first, second)]
        assert (kinds[0] == kinds[1]) == (change == "none")
        assert (before is None) == (change in ("none", "added"))
        assert (after is None) == (change in ("none", "removed"))


def test_drawn_pixels_lie_where_the_scene_says() -> None:
    scene = scenes.Scene(224, 224, 9, (255, 255, 255), (255, 255, 255), 0.0)
    scene.things.append(scenes.Thing(0, 0, 56.0, 112.0, 40.0, rgb=(255, 0, 0)))
    rows = np.zeros((1, scenes.MAX_ROWS, scenes.ROW_WIDTH), np.float32)
    rows[0, :1] = scene.rows()
    view = torch.tensor(views.view_rows(Random(0), 0, 224, 224), dtype=torch.float32)
    view[:, 7] = 1.0
    pictures = draw.Pictures(torch.from_numpy(rows), torch.tensor([1]), torch.from_numpy(scene.backdrop()[None]), view)
    pixels, labels = draw.draw(torch.from_numpy(atlas().cells), pictures, 256)
    image = pixels[0].float().view(16, 16, 3, 14, 14).permute(2, 0, 3, 1, 4).reshape(3, 224, 224)
    red = (image[0] - image[1]) > 0.5
    ys, xs = torch.nonzero(red, as_tuple=True)
    assert abs(xs.float().mean() - 55.5) < 1
    assert abs(ys.float().mean() - 111.5) < 1
    assert abs(red.sum().item() / (np.pi * 40**2) - 1) < 0.05
    assert labels[0].max() == 0
    assert (labels[0, 0] == -1).all()


def processed(turns: list[Turn], seed: int) -> tuple[list[int], list[int]]:
    """Ids of the first prompt by the training code, and by the processor."""
    ask = turns[0].ask
    out = encode(encoder(), turns[:1], Random(seed), 4096)
    assert out is not None
    parts = [_media(part) if not isinstance(part, str) else part for part in turns[0].parts]
    options = ChatOptions(template_kwargs={"enable_thinking": False})
    prompt = Processor(PACKAGE).chat([Message("user", (*parts, ask.question))], options)
    return out.ids[: out.answers[0][1]], list(prompt.ids)


def _media(part: Shown | Heard) -> Media:
    if isinstance(part, Heard):
        return Media("audio", part.clip.samples.astype(np.float32) / 32768, b"a", rate=16_000)
    blank = np.zeros((part.scene.height, part.scene.width, 3), np.uint8)
    return Media("image", blank, repr(part.scene.seed).encode())


@pytest.mark.parametrize("size", [(200, 150), (900, 300), (700, 640)])
def test_prompts_are_those_of_the_processor(size: tuple[int, int]) -> None:
    ask = ask_scene.Ask("count", "How many circles are there?", "3")
    shown = [Shown(scenes.Scene(*size, None, (0, 0, 0), (0, 0, 0), 0.0, seed=n)) for n in range(2)]
    ours, theirs = processed([Turn(list(shown), ask)], seed=1)
    assert ours == theirs
    clip = Clip(np.ones(40_000, np.int16), "Yes.", "yes", "", "en", True)
    ours, theirs = processed([Turn([shown[0], Heard(clip, 0, clip.rows)], ask)], seed=1)
    assert ours == theirs


def test_mel_is_that_of_the_processor() -> None:
    random = np.random.default_rng(2)
    samples = random.normal(0, 0.1, 30_000).astype(np.float32)
    wave = torch.zeros(1, 40_000)
    wave[0, :30_000] = torch.from_numpy(samples)
    mel, frames = sound.log_mel(wave, torch.tensor([30_000]))
    want = reference_mel(samples)
    assert int(frames) == want.shape[1]
    assert rows_of(30_000) == ((want.shape[1] - 1) // 2 + 1) // 5
    np.testing.assert_allclose(mel[0, :, : want.shape[1]].numpy(), want, atol=2e-3)


def test_orthogonal_evens_out_singular_values() -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonal(torch.randn(2, 48, 32)))
    assert values.min() > 0.5
    assert values.max() < 1.4


SMALL = batches.Shape((4, 256), (1, 640), 24, 24, 4, 64, 768)


def filled() -> dict[str, np.ndarray]:
    writer = batches.BatchWriter(source(), encoder(), SMALL, families.TASK_NUMBERS, batches.ctc_symbols())
    out = batches.arrays_over(bytearray(SMALL.nbytes()), SMALL)
    writer.fill(out)
    return out


def test_batch_rows_point_at_placeholders() -> None:
    out, unk, end = filled(), encoder().unk, encoder().end
    ids = np.concatenate((out["ids_short"].ravel(), out["ids_long"].ravel()))
    rows = np.concatenate((out["rows_short"].ravel(), out["rows_long"].ravel()))
    assert (ids[rows >= 0] == unk).all()
    assert len(np.unique(rows[rows >= 0])) == (rows >= 0).sum()
    learned = out["learn_answer"] >= 0
    assert (ids[out["learn_at"][learned] + 1] == out["learn_target"][learned]).all()
    last = np.flatnonzero(np.diff(out["learn_answer"][learned], append=-2))
    assert (out["learn_target"][learned][last] == end).all()


@pytest.mark.slow
def test_every_weight_gets_a_gradient() -> None:
    batch = {name: torch.from_numpy(array) for name, array in filled().items()}
    pictures = draw.Pictures(batch["scene_rows"], batch["scene_counts"], batch["backdrops"], batch["views"])
    pixels, labels = draw.draw(torch.from_numpy(atlas().cells), pictures, views.MAX_PATCHES)
    lengths = batch["wave_lengths"].long().clamp(min=1600)
    mel, frames = sound.log_mel(sound.roughen(batch["waves"], lengths), lengths)
    batch |= {"patches": draw.degrade(pixels).float(), "labels": labels, "mel": mel, "frames": frames}
    student = Student(PACKAGE, 1 + len(batches.ctc_symbols()), torch.device("cpu"), torch.float32, 0)
    losses = student(batch)
    losses.total.backward()
    assert torch.isfinite(losses.total)
    still = [
        n for n, p in student.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.isfinite().all())
    ]
    assert still == []


def test_the_demo_files_are_there() -> None:
    folder = ROOT / "sensorium" / "packaged" / "demo"
    for entry in json.loads((folder / "demo.json").read_text("utf-8")):
        assert (folder / entry["file"]).stat().st_size < 200_000
    with Image.open(folder / "scene.png") as image:
        assert image.size == (960, 640)
    assert base64.b64encode((folder / "speech.wav").read_bytes()[:4]) == b"UklGRg=="
