"""Questions about one picture, with the true answer. Each asker returns None where its question has no clear answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from random import Random

from training.lexicon import COLOURS, SHAPES
from training.scenes import Line, Scene, Thing
from training.templates import ASK, PLACES, SIDE_ANSWERS, SIDES, TRUE, YES

BOX_SCALE = 1000
"""Box coordinates are x1 y1 x2 y2 in thousandths of the picture's width and height, 0 to 999."""


@dataclass(frozen=True, slots=True)
class Ask:
    """A question and its answer. spell: the answer is written letter by letter, not in whole-word tokens."""

    task: str
    question: str
    answer: str
    spell: bool = False


def phrase(random: Random, task: str, language: str, **slots: str) -> str:
    return random.choice(ASK[task][language]).format(**slots)


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def stop(language: str) -> str:
    return "." if language == "en" else "。"


def article(text: str) -> str:
    return ("an " if text[0] in "aeiou" else "a ") + text


def kind_name(colour: int | None, shape: int | None, language: str, plural: bool = False) -> str:
    """'red circle', 'red objects', '红色的圆形' …"""
    if language == "zh":
        if shape is None:
            return "物体" if colour is None else COLOURS[colour].zh + "物体"
        return SHAPES[shape].zh if colour is None else COLOURS[colour].zh + SHAPES[shape].zh
    noun = "object" if shape is None else SHAPES[shape].en
    if plural:
        noun = noun + ("es" if noun.endswith(("s", "x")) else "s")
    return noun if colour is None else f"{COLOURS[colour].en} {noun}"


def answer_kind(thing: Thing, language: str) -> str:
    name = kind_name(thing.colour, thing.shape, language)
    return (capital(article(name)) if language == "en" else name) + stop(language)


def name_of(random: Random, scene: Scene, thing: Thing, language: str, colour_known: bool = True) -> str | None:
    """A description that fits only this thing, None where there is none."""
    same_shape = [t for t in scene.things if t.shape == thing.shape]
    if len(same_shape) == 1 and (not colour_known or random.random() < 0.5):
        return kind_name(None, thing.shape, language)
    if not colour_known:
        return None
    same_colour = [t for t in scene.things if t.colour == thing.colour]
    if len(same_colour) == 1 and random.random() < 0.15:
        return kind_name(thing.colour, None, language)
    if sum(t.kind == thing.kind for t in scene.things) == 1:
        return kind_name(thing.colour, thing.shape, language)
    return None


def ask_colour(random: Random, scene: Scene, language: str) -> Ask | None:
    thing = random.choice(scene.things)
    name = name_of(random, scene, thing, language, colour_known=False)
    if name is None:
        return None
    answer = capital(COLOURS[thing.colour][language]) + stop(language)
    return Ask("colour", phrase(random, "colour", language, a=name), answer)


def ask_shape(random: Random, scene: Scene, language: str) -> Ask | None:
    thing = random.choice(scene.things)
    if sum(t.colour == thing.colour for t in scene.things) > 1:
        return None
    colour = COLOURS[thing.colour][language]
    slots = {"a": f"the {colour} object", "c": colour}
    answer = SHAPES[thing.shape][language]
    answer = capital(article(answer)) if language == "en" else answer
    return Ask("shape", phrase(random, "shape", language, **slots), answer + stop(language))


def describe_list(things: list[Thing], language: str) -> str:
    """Things from left to right: 'A red circle, a blue star and a green ring.'"""
    names = [kind_name(t.colour, t.shape, language) for t in things]
    if language == "zh":
        return "、".join(names) + "。"
    names = [article(n) for n in names]
    joined = names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
    return capital(joined) + "."


def ask_describe(random: Random, scene: Scene, language: str) -> Ask | None:
    things = sorted(scene.things, key=lambda t: t.x)
    if len(things) > 5 or any(b.x - a.x < 0.035 * scene.width for a, b in pairwise(things)):
        return None
    answer = describe_list(things, language)
    if scene.lines:
        if len(scene.lines) > 1:
            return None
        text = scene.lines[0].text
        answer = f'{answer[:-1]} and the text "{text}".' if language == "en" else f"{answer[:-1]}和文字“{text}”。"
        return Ask("describe_text", phrase(random, "describe", language), answer, spell=True)
    return Ask("describe", phrase(random, "describe", language), answer)


def ask_count(random: Random, scene: Scene, language: str) -> Ask | None:
    way = random.random()
    thing = random.choice(scene.things)
    if way < 0.3:
        colour, shape = None, None
    elif way < 0.55:
        colour, shape = None, thing.shape
    elif way < 0.75:
        colour, shape = thing.colour, None
    else:
        colour, shape = thing.kind
    if random.random() < 0.05:
        colour, shape = None, random.randrange(len(SHAPES))
    count = sum(colour in (None, t.colour) and shape in (None, t.shape) for t in scene.things)
    if count > 9:
        return None
    name = kind_name(colour, shape, language, plural=True)
    return Ask("count", phrase(random, "count", language, a=name), str(count))


def ask_exists(random: Random, scene: Scene, language: str) -> Ask | None:
    thing = random.choice(scene.things)
    other = random.choice(scene.things)
    way = random.random()
    if way < 0.45:
        colour, shape = thing.kind
    elif way < 0.65:
        colour, shape = thing.colour, other.shape
    elif way < 0.85:
        colour, shape = random.choice(
            ((random.randrange(len(COLOURS)), thing.shape), (thing.colour, random.randrange(len(SHAPES))))
        )
    else:
        colour, shape = None, random.randrange(len(SHAPES))
    truth = any(colour in (None, t.colour) and t.shape == shape for t in scene.things)
    slots = {"a": kind_name(colour, shape, language), "b": kind_name(colour, shape, language, plural=True)}
    question = phrase(random, "exists", language, **slots)
    if language == "en" and slots["a"][0] in "aeiou":
        question = question.replace(" a " + slots["a"], " an " + slots["a"])
    return Ask("exists", question, YES[language][truth])


def side_of(a: Thing, b: Thing) -> str | None:
    """Where a is, seen from b; None near the diagonal or too close."""
    dx, dy = a.x - b.x, a.y - b.y
    if max(abs(dx), abs(dy)) < 1.4 * min(abs(dx), abs(dy)):
        return None
    if abs(dx) > abs(dy):
        return "left" if dx < 0 else "right"
    return "up" if dy < 0 else "down"


def _named_pair(random: Random, scene: Scene, language: str) -> tuple[Thing, Thing, str, str] | None:
    if len(scene.things) < 2:
        return None
    a, b = random.sample(scene.things, 2)
    name_a, name_b = (name_of(random, scene, t, language) for t in (a, b))
    return None if name_a is None or name_b is None else (a, b, name_a, name_b)


def ask_where(random: Random, scene: Scene, language: str) -> Ask | None:
    pair = _named_pair(random, scene, language)
    side = side_of(pair[0], pair[1]) if pair else None
    if pair is None or side is None:
        return None
    return Ask("where", phrase(random, "where", language, a=pair[2], b=pair[3]), SIDE_ANSWERS[language][side])


def ask_relation(random: Random, scene: Scene, language: str) -> Ask | None:
    pair = _named_pair(random, scene, language)
    side = side_of(pair[0], pair[1]) if pair else None
    if pair is None or side is None:
        return None
    opposite = {"left": "right", "right": "left", "up": "down", "down": "up"}[side]
    asked = random.choice((side, opposite))
    question = phrase(random, "relation", language, a=pair[2], b=pair[3], r=SIDES[language][asked])
    return Ask("relation", question, TRUE[language][asked == side])


def ask_place(random: Random, scene: Scene, language: str) -> Ask | None:
    thing = random.choice(scene.things)
    name = name_of(random, scene, thing, language)
    if name is None:
        return None
    cells = []
    for at in (thing.y / scene.height, thing.x / scene.width):
        if min(abs(at - 1 / 3), abs(at - 2 / 3)) < 0.04:
            return None
        cells.append(int(at * 3))
    place = PLACES[language][cells[0]][cells[1]]
    answer = f"In the {place}." if language == "en" else f"{place}。"
    return Ask("place", phrase(random, "place", language, a=name), answer)


EXTREMES = {
    "left": ("leftmost", "最左边"),
    "right": ("rightmost", "最右边"),
    "top": ("topmost", "最上面"),
    "bottom": ("bottommost", "最下面"),
    "big": ("biggest", "最大"),
    "small": ("smallest", "最小"),
}


def ask_extreme(random: Random, scene: Scene, language: str) -> Ask | None:
    if len(scene.things) < 2:
        return None
    way = random.choice(tuple(EXTREMES))
    sign = -1 if way in ("right", "bottom", "big") else 1
    key: dict[str, Callable[[Thing], float]] = {
        "left": lambda t: t.x / scene.width, "right": lambda t: t.x / scene.width,
        "top": lambda t: t.y / scene.height, "bottom": lambda t: t.y / scene.height,
        "big": area, "small": area,
    }  # fmt: skip
    first, second = sorted(scene.things, key=lambda t: sign * key[way](t))[:2]
    a, b = key[way](first), key[way](second)
    clear = max(a, b) > 1.6 * min(a, b) if way in ("big", "small") else abs(a - b) > 0.05
    if not clear:
        return None
    word = EXTREMES[way][0 if language == "en" else 1]
    if language == "en" and random.random() < 0.3:
        word = {"biggest": "largest", "topmost": "highest", "bottommost": "lowest"}.get(word, word)
    return Ask("extreme", phrase(random, "extreme", language, e=word), answer_kind(first, language))


def area(thing: Thing) -> float:
    w, h = thing.half_extents
    return 4 * w * h


def ask_bigger(random: Random, scene: Scene, language: str) -> Ask | None:
    pair = _named_pair(random, scene, language)
    if pair is None or max(area(pair[0]), area(pair[1])) < 1.6 * min(area(pair[0]), area(pair[1])):
        return None
    winner = pair[2] if area(pair[0]) > area(pair[1]) else pair[3]
    answer = (f"The {winner}" if language == "en" else winner) + stop(language)
    return Ask("bigger", phrase(random, "bigger", language, a=pair[2], b=pair[3]), answer)


def ask_background(random: Random, scene: Scene, language: str) -> Ask | None:
    if scene.background is None:
        return None
    answer = capital(COLOURS[scene.background][language]) + stop(language)
    return Ask("background", phrase(random, "background", language), answer)


def box_text(x1: float, y1: float, x2: float, y2: float, scene: Scene) -> str:
    values = (x1 / scene.width, y1 / scene.height, x2 / scene.width, y2 / scene.height)
    return "<box>" + " ".join(str(min(BOX_SCALE - 1, max(0, int(v * BOX_SCALE)))) for v in values) + "</box>"


def ask_box(random: Random, scene: Scene, language: str) -> Ask | None:
    thing = random.choice(scene.things)
    name = name_of(random, scene, thing, language)
    if name is None:
        return None
    w, h = thing.half_extents
    box = box_text(thing.x - w, thing.y - h, thing.x + w, thing.y + h, scene)
    return Ask("box", phrase(random, "box", language, a=name), f"<ref>{name}</ref>{box}")


# ---- text in the picture ------------------------------------------------------------------------------------------


def _ordered(scene: Scene) -> list[Line]:
    return sorted(scene.lines, key=lambda line: line.y)


def ask_read(random: Random, scene: Scene, language: str) -> Ask | None:
    question = phrase(random, "read", language)
    if not scene.lines:
        return Ask("no_text", question, "There is no text." if language == "en" else "图中没有文字。")
    return Ask("read", question, "\n".join(line.text for line in _ordered(scene)), spell=True)


def ask_read_which(random: Random, scene: Scene, language: str) -> Ask | None:
    lines = _ordered(scene)
    if len(lines) < 2:
        return None
    line = random.choice(lines)
    if sum(other.colour == line.colour for other in lines) == 1 and random.random() < 0.5:
        which = COLOURS[line.colour][language]
    elif len(lines) == 3 and line is lines[1]:
        which = "middle" if language == "en" else "中间"
    else:
        which = ("top", "上面") if line is lines[0] else ("bottom", "下面")
        which = which[0 if language == "en" else 1]
    return Ask("read_which", phrase(random, "read_which", language, w=which), line.text, spell=True)


def ask_text_colour(random: Random, scene: Scene, language: str) -> Ask | None:
    if len({line.colour for line in scene.lines}) != 1:
        return None
    answer = capital(COLOURS[scene.lines[0].colour][language]) + stop(language)
    return Ask("text_colour", phrase(random, "text_colour", language), answer)


def ask_any_text(random: Random, scene: Scene, language: str) -> Ask | None:
    return Ask("any_text", phrase(random, "any_text", language), YES[language][bool(scene.lines)])


THING_ASKERS: dict[str, Callable[[Random, Scene, str], Ask | None]] = {
    "colour": ask_colour,
    "shape": ask_shape,
    "describe": ask_describe,
    "count": ask_count,
    "exists": ask_exists,
    "where": ask_where,
    "relation": ask_relation,
    "place": ask_place,
    "extreme": ask_extreme,
    "bigger": ask_bigger,
    "background": ask_background,
    "box": ask_box,
    "read": ask_read,
    "any_text": ask_any_text,
}
TEXT_ASKERS: dict[str, Callable[[Random, Scene, str], Ask | None]] = {
    "read": ask_read,
    "read_which": ask_read_which,
    "text_colour": ask_text_colour,
    "any_text": ask_any_text,
}
