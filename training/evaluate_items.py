"""Held-out test items drawn by Pillow and spoken by held-out voices: another renderer, other fonts, other seeds.

An item is a question with its media as bytes, the true answer, and how to compare.
"""

from __future__ import annotations

import io
import math
import wave
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from training import ask_scene, ask_series, ask_speech
from training.ask_scene import Ask
from training.atlas import HELD_OUT
from training.espeak import Espeak
from training.lexicon import CLEAR, READ_WORDS
from training.scenes import OUTLINES, RING, Scene, Thing, things_scene

Part = tuple[str, bytes]
"""("image/png" | "audio/wav" | "video/mp4", content)"""


@dataclass(frozen=True, slots=True)
class Item:
    task: str
    language: str
    parts: tuple[Part, ...]
    question: str
    answer: str
    history: tuple[tuple[str, str], ...] = field(default=())


# ---- pictures -----------------------------------------------------------------------------------------------------


def paint(scene: Scene, random: Random, smooth: bool | None = None) -> Image.Image:
    """With or without anti-aliasing, as drawing programs do."""
    factor = 4 if (random.random() < 0.6 if smooth is None else smooth) else 1
    size = (scene.width * factor, scene.height * factor)
    image = Image.new("RGB", size, tuple(int(c) for c in scene.rgb))
    draw = ImageDraw.Draw(image)
    for thing in scene.things:
        paint_thing(draw, thing, factor, tuple(int(c) for c in scene.rgb))
    return image.resize((scene.width, scene.height), Image.Resampling.LANCZOS) if factor > 1 else image


def paint_thing(draw: ImageDraw.ImageDraw, thing: Thing, factor: int, background: tuple[int, ...]) -> None:
    if thing.shape in (0, RING):
        box = [(c + s * thing.radius) * factor for s in (-1, 1) for c in (thing.x, thing.y)]
        draw.ellipse(box, fill=thing.rgb)
        if thing.shape == RING:
            inner = [(c + s * thing.radius * 0.58) * factor for s in (-1, 1) for c in (thing.x, thing.y)]
            draw.ellipse(inner, fill=background)
        return
    c, s = math.cos(math.radians(thing.angle)), math.sin(math.radians(thing.angle))
    points = OUTLINES[thing.shape] @ np.array([[c, s], [-s, c]]) * thing.radius + (thing.x, thing.y)
    draw.polygon([tuple(p) for p in points * factor], fill=thing.rgb)


def encode_image(image: Image.Image, random: Random) -> Part:
    buffer = io.BytesIO()
    if random.random() < 0.5:
        image.save(buffer, "JPEG", quality=random.randint(70, 95))
        return "image/jpeg", buffer.getvalue()
    image.save(buffer, "PNG")
    return "image/png", buffer.getvalue()


def _font_files() -> list[Path]:
    folder = Path("/usr/share/fonts")
    found = {p.stem: p for p in folder.rglob("*.[to]tf")}
    return [found[name] for name in HELD_OUT if name in found]


def _picture(random: Random, task: str, ask: Ask, language: str, *scenes: Scene) -> Item:
    parts = tuple(encode_image(paint(scene, random), random) for scene in scenes)
    return Item(task, language, parts, ask.question, ask.answer)


def _plain_scene(random: Random, count: int, large: bool = False, repeat: float = 0.0) -> Scene:
    """A scene that Pillow can paint with the same truth: no border lines, background of one colour."""
    while True:
        scene = things_scene(random, count, large, repeat)
        scene.rgb2, scene.texture = scene.rgb, 0.0
        for thing in scene.things:
            thing.outline = 0.0
        if len(scene.things) == count:
            return scene


def _ask_until(random: Random, language: str, asker: Callable, make: Callable[[], Scene]) -> tuple[Scene, Ask]:
    while True:
        scene = make()
        ask = asker(random, scene, language)
        if ask is not None:
            return scene, ask


def thing_item(task: str, asker: Callable, low: int, high: int, repeat: float = 0.0) -> Callable:
    def make(random: Random, language: str) -> Item:
        large = random.random() < 0.3
        scene, ask = _ask_until(
            random, language, asker, lambda: _plain_scene(random, random.randint(low, high), large, repeat)
        )
        return _picture(random, task, ask, language, scene)

    return make


def colour_and_shape(random: Random, language: str) -> Item:
    return thing_item("colour + shape", random.choice((ask_scene.ask_colour, ask_scene.ask_shape)), 1, 4)(
        random, language
    )


def relation(random: Random, language: str) -> Item:
    return thing_item("relation", random.choice((ask_scene.ask_where, ask_scene.ask_relation)), 2, 4)(random, language)


def count(random: Random, language: str) -> Item:
    while True:
        item = thing_item("count to 6", ask_scene.ask_count, 1, 6, 0.6)(random, language)
        if item.answer != "0":
            return item


def read_text(random: Random) -> str:
    return random.choice(
        (
            "".join(random.choice(CLEAR) for _ in range(random.randint(1, 8))),
            str(random.randint(0, 10 ** random.randint(1, 6))),
            random.choice((str.upper, str.lower, str.title))(random.choice(READ_WORDS)),
        )
    )


def read(random: Random, language: str) -> Item:
    """One line in a font that training never drew; half of the pictures are cut into slices."""
    text = read_text(random)
    area = random.uniform(0.5, 1.0) if random.random() < 0.5 else random.uniform(1.3, 8.0)
    scene = _plain_scene(random, 1)
    width = int(224 * math.sqrt(area * random.uniform(1.0, 1.8)))
    height = int(area * 224 * 224 / width)
    image = Image.new("RGB", (width, height), tuple(int(c) for c in scene.rgb))
    scale = max(1.0, math.sqrt(area) / 2)
    size = random.uniform(20 * scale, 60 * scale)
    font = ImageFont.truetype(str(random.choice(_font_files())), round(size))
    while font.getlength(text) > 0.92 * width:
        size *= 0.9
        font = ImageFont.truetype(str(random.choice(_font_files())), round(size))
    room = width - font.getlength(text)
    dark = sum(scene.rgb) > 380
    fill = random.choice(((0, 0, 0), (20, 20, 90), (120, 0, 0)) if dark else ((255, 255, 255), (255, 255, 60)))
    place = (random.uniform(0.02, 0.98) * room, random.uniform(size, max(size, height - 0.4 * size)))
    ImageDraw.Draw(image).text(place, text, fill=fill, font=font, anchor="ls")
    task = "reading, one slice" if area <= 1 else "reading, several slices"
    question = ask_scene.phrase(random, "read", language)
    return Item(task, language, (encode_image(image, random),), question, text)


def comparison(random: Random, language: str) -> Item:
    if random.random() < 0.5:
        first, second, change, before, after = ask_series.changed_pair(random)
        for scene in (first, second):
            scene.rgb2, scene.texture = scene.rgb, 0.0
            for thing in scene.things:
                thing.outline = 0.0
        answer = ask_series.change_answer(change, before, after, language)
        ask = Ask("changed", ask_scene.phrase(random, "changed", language), answer)
        return _picture(random, "comparison", ask, language, first, second)
    while True:
        scenes, asks = ask_series.more_asks(random, language)
        for scene in scenes:
            scene.rgb2, scene.texture = scene.rgb, 0.0
            for thing in scene.things:
                thing.outline = 0.0
        if asks:
            return _picture(random, "comparison", random.choice(asks), language, *scenes)


# ---- videos -------------------------------------------------------------------------------------------------------


def encode_video(frames: list[Image.Image], fps: int = 8) -> Part:
    """Each frame is shown for one second."""
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps)
        width, height = (frames[0].width // 2 * 2, frames[0].height // 2 * 2)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame in frames:
            for _ in range(fps):
                container.mux(stream.encode(av.VideoFrame.from_image(frame.resize((width, height)))))
        container.mux(stream.encode())
    return "video/mp4", buffer.getvalue()


def video_item(task: str, wanted: tuple[str, ...], make: Callable) -> Callable:
    def build(random: Random, language: str) -> Item:
        while True:
            scenes, asks = make(random, random.randint(3, 7), language)
            asks = [a for a in asks if a.task in wanted]
            if asks:
                break
        for scene in scenes:
            scene.rgb2, scene.texture = scene.rgb, 0.0
            for thing in scene.things:
                thing.outline = 0.0
        ask = random.choice(asks)
        frames = [paint(scene, random, smooth=True) for scene in scenes]
        return Item(task, language, (encode_video(frames),), ask.question, ask.answer)

    return build


# ---- sound --------------------------------------------------------------------------------------------------------


def encode_wave(samples: np.ndarray) -> Part:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(samples.tobytes())
    return "audio/wav", buffer.getvalue()


def speech_item(task: str, spoken: str | None, asker: Callable, engine: Espeak) -> Callable:
    """spoken: the language heard, None for either. Voices that training never used."""

    def make(random: Random, language: str) -> Item:
        while True:
            clip = ask_speech.make_clip(random, engine, held_out=True)
            ask = asker(random, clip, language) if spoken in (None, clip.language) else None
            if ask is not None and not (spoken and clip.digits):
                return Item(task, language, (encode_wave(clip.samples),), ask.question, ask.answer)

    return make


def tasks(engine: Espeak) -> dict[str, Callable[[Random, str], Item]]:
    return {
        "colour + shape": colour_and_shape,
        "count to 6": count,
        "relation": relation,
        "place": thing_item("place", ask_scene.ask_place, 1, 4),
        "exists": thing_item("exists", ask_scene.ask_exists, 1, 5),
        "describe": thing_item("describe", ask_scene.ask_describe, 1, 4),
        "box (IoU 0.7)": thing_item("box (IoU 0.7)", ask_scene.ask_box, 1, 4),
        "reading": read,
        "comparison": comparison,
        "video direction": video_item("video direction", ("direction",), ask_series.moving_video),
        "video order": video_item("video order", ("order",), ask_series.order_video),
        "video colour change": video_item("video colour change", ("colour_at",), ask_series.recolour_video),
        "speech, English": speech_item("speech, English", "en", ask_speech.ask_transcribe, engine),
        "speech, Chinese": speech_item("speech, Chinese", "zh", ask_speech.ask_transcribe, engine),
        "spoken number": speech_item("spoken number", None, ask_speech.ask_number, engine),
        "male or female": speech_item("male or female", None, ask_speech.ask_gender, engine),
    }
