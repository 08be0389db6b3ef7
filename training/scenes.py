"""What a picture contains, before any pixel: things and lines of text on a canvas measured in pixels.

A scene is drawn as rows of numbers (`Scene.rows`), one per glyph of the atlas: shapes are glyphs too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from random import Random

import numpy as np

from training.atlas import CELL_EM, Font
from training.lexicon import ANCHORS, CLEAR, COLOURS, DIGITS, GLYPHS, READ_WORDS, SHAPES

MAX_ROWS = 40
ROW_WIDTH = 18
BACKGROUND_WIDTH = 20
# Half extents of each shape's bounding box in units of its size (radius of the cell's unit circle).
RING, MOON = 8, 9
TURNABLE = {1: 12, 2: 14, 3: 20, 4: 30, 5: 14, 6: 18, 7: 8, 9: 20, 10: 12}


@dataclass(slots=True)
class Thing:
    shape: int
    colour: int
    x: float
    y: float
    radius: float
    angle: float = 0.0
    rgb: tuple[int, int, int] = (0, 0, 0)
    outline: float = 0.0
    """Width of a dark border in pixels."""

    @property
    def kind(self) -> tuple[int, int]:
        return self.colour, self.shape

    @property
    def half_extents(self) -> tuple[float, float]:
        return extents(self.shape, self.angle, self.radius)


@dataclass(slots=True)
class Line:
    """A line of text; x, y is the left end of its baseline, em its size in pixels."""

    text: str
    colour: int
    font: Font
    x: float
    y: float
    em: float
    angle: float
    rgb: tuple[int, int, int]

    @property
    def width(self) -> float:
        return sum(self.font.advance(c) for c in self.text) * self.em


@dataclass(slots=True)
class Scene:
    width: int
    height: int
    background: int | None
    """Colour number, or None where no single name fits."""
    rgb: tuple[float, float, float]
    rgb2: tuple[float, float, float]
    texture: float
    things: list[Thing] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    seed: int = 0
    """Fixes the random part of the background, so that several pictures can share it."""

    def clone(self) -> Scene:
        return replace(self, things=[replace(t) for t in self.things], lines=list(self.lines))

    def rows(self) -> np.ndarray:
        """float32 [n, ROW_WIDTH]: glyph, inverse affine (6), cell size px, grow px, box (4), rgb (3), class, colour."""
        rows = [row for thing in self.things for row in _thing_rows(thing)]
        rows += [row for line in self.lines for row in _line_rows(line)]
        return np.asarray(rows[:MAX_ROWS], dtype=np.float32).reshape(-1, ROW_WIDTH)

    def backdrop(self) -> np.ndarray:
        """float32 [BACKGROUND_WIDTH]: two colours, gradient direction per px, texture strength and three waves."""
        random = Random(self.seed)
        turn, size = random.uniform(0, 2 * math.pi), 1.3 * max(self.width, self.height)
        values = [c / 255 for c in (*self.rgb, *self.rgb2)]
        values += [math.cos(turn) / size, math.sin(turn) / size, self.texture]
        for _ in range(3):
            wave, way = random.uniform(2, 40) / size, random.uniform(0, 2 * math.pi)
            values += [wave * 6.28 * math.cos(way), wave * 6.28 * math.sin(way), random.uniform(0, 6.28)]
        values += [self.width / 2, self.height / 2]
        return np.asarray(values, dtype=np.float32)


def extents(shape: int, angle: float, radius: float) -> tuple[float, float]:
    """Half width and half height of the turned shape's bounding box."""
    points = OUTLINES[shape]
    c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    turned = points @ np.array([[c, s], [-s, c]])
    return float(np.abs(turned[:, 0]).max() * radius), float(np.abs(turned[:, 1]).max() * radius)


def _polygon(n: int, start: float, inner: float | None = None) -> np.ndarray:
    count = n if inner is None else 2 * n
    turn = math.radians(start) + np.arange(count) * 2 * math.pi / count
    radius = np.where(np.arange(count) % 2 == 0, 1.0, 1.0 if inner is None else inner)
    return np.stack((np.cos(turn), np.sin(turn)), -1) * radius[:, None]


def _heart() -> np.ndarray:
    t = np.linspace(0, 2 * math.pi, 120, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return np.stack((x / 17, (y - 2.5) / 15), -1)


def _cross(arm: float = 0.33) -> np.ndarray:
    a, b = arm, 0.95
    corners = [
        (-a, -b),
        (a, -b),
        (a, -a),
        (b, -a),
        (b, a),
        (a, a),
        (a, b),
        (-a, b),
        (-a, a),
        (-b, a),
        (-b, -a),
        (-a, -a),
    ]
    return np.array(corners)


def _box(w: float, h: float) -> np.ndarray:
    return np.array([(-w, -h), (w, -h), (w, h), (-w, h)])


def _moon() -> np.ndarray:
    """A disc less a shifted disc; opens to the right."""
    outer = np.linspace(math.radians(50), math.radians(310), 80)
    inner = np.linspace(math.radians(295), math.radians(65), 60)
    edge = np.stack((np.cos(outer), np.sin(outer)), -1)
    bite = np.stack((0.42 + 0.83 * np.cos(inner), 0.83 * np.sin(inner)), -1)
    middle = (edge[:, 0].max() + edge[:, 0].min()) / 2
    return np.concatenate((edge, bite)) - (middle, 0)


OUTLINES: tuple[np.ndarray, ...] = (
    _polygon(90, 0),
    _box(0.85, 0.85),
    _polygon(3, -90) + np.array((0, 0.25)),
    _polygon(5, -90, 0.42) + np.array((0, 0.05)),
    _polygon(6, 0),
    _cross(),
    _heart(),
    _box(0, 0) + np.array([(0, -1), (0.66, 0), (0, 1), (-0.66, 0)]),
    _polygon(90, 0),
    _moon(),
    _box(1.0, 0.56),
)


def _affine(cx: float, cy: float, size: float, angle: float) -> tuple[float, ...]:
    """Canvas px -> cell coordinates in 0..1 for a cell of `size` px centred at (cx, cy)."""
    c, s = math.cos(math.radians(angle)) / size, math.sin(math.radians(angle)) / size
    return c, s, 0.5 - c * cx - s * cy, -s, c, 0.5 + s * cx - c * cy


def _thing_rows(t: Thing) -> list[list[float]]:
    size = t.radius / 0.4
    w, h = t.half_extents
    affine = _affine(t.x, t.y, size, t.angle)
    box = [t.x - w, t.y - h, t.x + w, t.y + h]
    rgb = [c / 255 for c in t.rgb]
    # The last two tell the training heads what a patch shows: class 0 is nothing, then shapes, then characters.
    fill = [float(t.shape), *affine, size, 0.0, *box, *rgb, 1.0 + t.shape, 1.0 + t.colour]
    if not t.outline:
        return [fill]
    edge = list(fill)
    edge[8] = t.outline
    dark = 0.0 if sum(rgb) > 0.5 else 1.0
    edge[13:16] = [dark * 0.8] * 3
    return [edge, fill]


def _line_rows(line: Line) -> list[list[float]]:
    c, s = math.cos(math.radians(line.angle)), math.sin(math.radians(line.angle))
    size = line.em / CELL_EM
    pen, rows = 0.0, []
    rgb = [v / 255 for v in line.rgb]
    for char in line.text:
        advance = line.font.advance(char) * line.em
        if char != " ":
            along, up = pen + advance / 2, line.font.lift * size
            cx, cy = line.x + c * along + s * up, line.y + s * along - c * up
            half = 0.36 * line.em
            box = [cx - advance / 2, cy - half, cx + advance / 2, cy + half]
            glyph = float(line.font.cell(char))
            label = 1.0 + len(SHAPES) + GLYPHS.index(char)
            rows.append([glyph, *_affine(cx, cy, size, line.angle), size, 0.0, *box, *rgb, label, 1.0 + line.colour])
        pen += advance
    return rows


# ---- sampling -----------------------------------------------------------------------------------------------------


def pick_rgb(random: Random, colour: int) -> tuple[int, int, int]:
    jitter = random.choice((0, 0, 6, 12))
    anchor = random.choice(ANCHORS[colour])
    r, g, b = (min(255, max(0, c + random.randint(-jitter, jitter))) for c in anchor)
    return r, g, b


def contrast(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    return math.sqrt(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)))


def sample_canvas(random: Random, large: bool = False) -> Scene:
    """An empty scene. Small canvases become one slice, large ones are cut."""
    ratio = math.exp(random.gauss(0, 0.28)) if random.random() < 0.6 else 1.0
    if large:
        area = random.uniform(1.15, 8.0) * 224 * 224
    else:
        area = 224 * 224 * random.choice((1.0, 0.999, 0.6, 0.3, random.uniform(0.15, 1.0)))
    width = max(28, int(math.sqrt(area * ratio)))
    height = max(28, int(area / width))
    scene = Scene(width, height, None, (255, 255, 255), (255, 255, 255), 0.0, seed=random.getrandbits(30))
    kind = random.random()
    if kind < 0.35:
        scene.background = 9
        scene.rgb = pick_rgb(random, 9)
    elif kind < 0.8:
        scene.background = random.randrange(len(COLOURS))
        scene.rgb = pick_rgb(random, scene.background)
    else:
        scene.rgb = tuple(random.uniform(0, 255) for _ in range(3))
    scene.rgb2 = scene.rgb
    if random.random() < 0.3:
        spread = 18 if scene.background is not None else 60
        scene.rgb2 = tuple(min(255.0, max(0.0, c + random.uniform(-spread, spread))) for c in scene.rgb)
    if random.random() < 0.35:
        scene.texture = random.uniform(0, 0.05)
    return scene


def pick_colour(
    random: Random, scene: Scene, allowed: tuple[int, ...] | None = None
) -> tuple[int, tuple[int, int, int]]:
    """A colour that stands out from the background."""
    for _ in range(40):
        colour = random.choice(allowed) if allowed else random.randrange(len(COLOURS))
        rgb = pick_rgb(random, colour)
        if colour != scene.background and min(contrast(rgb, scene.rgb), contrast(rgb, scene.rgb2)) > 75:
            return colour, rgb
    colour = 8 if sum(scene.rgb) > 380 else 9
    return colour, pick_rgb(random, colour)


def fits(things: list[Thing], x: float, y: float, radius: float, gap: float = 1.08) -> bool:
    return all(math.hypot(x - t.x, y - t.y) > gap * (radius + t.radius) for t in things)


def place(random: Random, scene: Scene, shape: int, colour: int, rgb: tuple[int, int, int], radius: float) -> bool:
    """Add a thing where it touches no other; False if there is no room."""
    if scene.width <= 2.1 * radius or scene.height <= 2.1 * radius:
        return False
    turn = TURNABLE.get(shape, 0) if random.random() < 0.5 else 0
    outline = random.uniform(0.05, 0.13) * radius if shape not in (RING, MOON) and random.random() < 0.15 else 0.0
    for _ in range(30):
        x = random.uniform(radius, scene.width - radius)
        y = random.uniform(radius, scene.height - radius)
        if fits(scene.things, x, y, radius) and not _on_text(scene, x, y, radius):
            angle = random.uniform(-turn, turn)
            scene.things.append(Thing(shape, colour, x, y, radius, angle, rgb, outline))
            return True
    return False


def _on_text(scene: Scene, x: float, y: float, radius: float) -> bool:
    return any(
        line.x - radius < x < line.x + line.width + radius
        and line.y - line.em - radius < y < line.y + 0.3 * line.em + radius
        for line in scene.lines
    )


def things_scene(random: Random, count: int, large: bool = False, repeat: float = 0.0) -> Scene:
    """`count` things; with probability `repeat` each copies the kind of an earlier one."""
    scene = sample_canvas(random, large)
    side = math.sqrt(scene.width * scene.height)
    most = min(0.42, 0.62 / math.sqrt(count))
    least = max(0.05, 0.16 / math.sqrt(max(count, 2))) if not large else max(0.035, 0.1 / math.sqrt(count))
    for _ in range(count):
        size = random.uniform(least, most) if random.random() < 0.5 else random.uniform(least, (least + most) / 2)
        radius = min(size * side, 0.46 * min(scene.width, scene.height))
        if scene.things and random.random() < repeat:
            twin = random.choice(scene.things)
            place(random, scene, twin.shape, twin.colour, twin.rgb, radius)
        else:
            colour, rgb = pick_colour(random, scene)
            place(random, scene, random.randrange(len(SHAPES)), colour, rgb, radius)
    return scene


def sample_text(random: Random) -> str:
    kind = random.random()
    if kind < 0.1:
        parts = random.choice(READ_WORDS), random.choice((str(random.randint(0, 99)), random.choice(READ_WORDS)))
        word = " ".join(parts)
        if len(word) > 11:
            word = parts[0]
    elif kind < 0.4:
        word = random.choice(READ_WORDS)
    elif kind < 0.5:
        word = "".join(
            random.choice("bcdfghjklmnprstvwz" if i % 2 == 0 else "aeiou") for i in range(random.randint(2, 8))
        )
    elif kind < 0.72:
        return "".join(random.choice(DIGITS) for _ in range(random.randint(1, 6)))
    elif kind < 0.95:
        return "".join(random.choice(CLEAR) for _ in range(random.randint(1, 8)))
    elif kind < 0.975:
        return f"{random.randint(0, 23):02d}:{random.randint(0, 59):02d}"
    else:
        return f"{random.choice('ABCDEFGH')}-{random.randint(10, 999)}"
    style = random.random()
    return word.upper() if style < 0.5 else word.title() if style < 0.7 else word


def add_line(random: Random, scene: Scene, fonts: list[Font], text: str, top: float, bottom: float) -> bool:
    """A line of text between two heights; False if it would be too small to read."""
    font = random.choice(fonts)
    unit = sum(font.advance(c) for c in text)
    scale = (
        224 * min(2.0, max(1.0, math.sqrt(scene.width * scene.height) / 224)) / math.sqrt(scene.width * scene.height)
    )
    largest = min(0.92 * scene.width / unit, (bottom - top) / 1.25)
    smallest = 17.0 / scale
    if largest < smallest:
        return False
    largest = max(smallest, min(largest, smallest * 6))
    em = math.exp(random.uniform(math.log(smallest), math.log(largest)))
    width = unit * em
    x = random.uniform(0.03 * scene.width, max(0.03 * scene.width, 0.97 * scene.width - width))
    y = random.uniform(top + 0.9 * em, max(top + 0.9 * em, bottom - 0.3 * em))
    room = min(y - 0.8 * em - top, bottom - y - 0.25 * em)
    angle = 0.0
    if random.random() < 0.3 and room > 0:
        most = math.degrees(math.atan2(room, width))
        angle = random.uniform(-min(8, most), min(8, most))
    colour, rgb = pick_colour(random, scene)
    if contrast(rgb, scene.rgb) < 110:
        colour, rgb = pick_colour(random, scene, (8, 9))
    scene.lines.append(Line(text, colour, font, x, y, em, angle, rgb))
    return True


def text_scene(random: Random, fonts: list[Font], lines: int, things: int, large: bool = False) -> Scene:
    scene = sample_canvas(random, large)
    edges = sorted(random.uniform(0.25, 0.75) for _ in range(lines - 1)) if lines == 2 else [1 / 3, 2 / 3][: lines - 1]
    tops = [0.02, *edges]
    for top, bottom in zip(tops, [*edges, 0.98], strict=True):
        for _ in range(6):
            if add_line(random, scene, fonts, sample_text(random), top * scene.height, bottom * scene.height):
                break
    side = min(scene.width, scene.height)
    for _ in range(things):
        colour, rgb = pick_colour(random, scene)
        place(random, scene, random.randrange(len(SHAPES)), colour, rgb, random.uniform(0.07, 0.18) * side)
    return scene
