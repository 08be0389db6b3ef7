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
