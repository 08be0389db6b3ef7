"""Questions about two pictures, and about the frames of a short video."""

from __future__ import annotations

from random import Random

from training.ask_scene import Ask, article, capital, kind_name, phrase, stop
from training.lexicon import COLOURS, SHAPES
from training.scenes import Scene, Thing, contrast, pick_colour, place, things_scene
from training.templates import MOVES, TRUE

# ---- pairs --------------------------------------------------------------------------------------------------------


def changed_pair(random: Random, large: bool = False) -> tuple[Scene, Scene, str, Thing | None, Thing | None]:
    """Two pictures with at most one difference: (first, second, change, thing before, thing after)."""
    first = things_scene(random, random.randint(1, 5), large)
    if random.random() < 0.5:
        for thing in list(first.things):
            if sum(t.kind == thing.kind for t in first.things) > 1:
                first.things.remove(thing)
    second = first.clone()
    change = random.choice(("none", "none", "colour", "colour", "shape", "added", "removed"))
    if change in ("colour", "shape", "removed") and second.things:
        index = random.randrange(len(second.things))
        before, after = first.things[index], second.things[index]
        if change == "removed":
            second.things.pop(index)
            return first, second, change, before, None
        if change == "colour":
            for _ in range(10):
                colour, rgb = pick_colour(random, second)
                if colour != before.colour and contrast(rgb, before.rgb) > 60:
                    after.colour, after.rgb = colour, rgb
                    return first, second, change, before, after
        else:
            after.shape = random.choice([s for s in range(len(SHAPES)) if s != before.shape])
            after.angle = 0.0
            after.outline = 0.0
            return first, second, change, before, after
    if change == "added":
        colour, rgb = pick_colour(random, second)
        side = min(second.width, second.height)
        if place(random, second, random.randrange(len(SHAPES)), colour, rgb, random.uniform(0.09, 0.2) * side):
            return first, second, change, None, second.things[-1]
    return first, first.clone(), "none", None, None


def change_answer(change: str, before: Thing | None, after: Thing | None, language: str) -> str:
    def name(t: Thing | None) -> str:
        assert t is not None
        return kind_name(t.colour, t.shape, language)

    if change == "none":
        return "Nothing changed." if language == "en" else "没有变化。"
    if change == "added":
        return f"{capital(article(name(after)))} was added." if language == "en" else f"多了一个{name(after)}。"
    if change == "removed":
        return f"The {name(before)} was removed." if language == "en" else f"少了一个{name(before)}。"
    assert after is not None
    if change == "colour":
        to = COLOURS[after.colour][language]
        return f"The {name(before)} became {to}." if language == "en" else f"{name(before)}变成了{to}。"
    to = SHAPES[after.shape][language]
    return f"The {name(before)} became {article(to)}." if language == "en" else f"{name(before)}变成了{to}。"


def pair_asks(random: Random, language: str) -> tuple[list[Scene], list[Ask]]:
    first, second, change, before, after = changed_pair(random)
    same = Ask("same", phrase(random, "same", language), TRUE[language][change == "none"])
    if language == "zh":
        same = Ask("same", same.question, "一样。" if change == "none" else "不一样。")
    what = Ask("changed", phrase(random, "changed", language), change_answer(change, before, after, language))
    asks = [same, what]
    random.shuffle(asks)
    return [first, second], asks


ORDINALS = {"en": ("first", "second"), "zh": ("第一张", "第二张")}


def more_asks(random: Random, language: str) -> tuple[list[Scene], list[Ask]]:
    """Two unrelated pictures: which has more, and questions about one of them."""
    scenes = [things_scene(random, random.randint(1, 6), repeat=0.5) for _ in range(2)]
    asks = []
    everything = [t for s in scenes for t in s.things]
    for _ in range(3):
        thing = random.choice(everything)
        colour, shape = random.choice(((None, None), (None, thing.shape), (thing.colour, None)))
        counts = [sum(colour in (None, t.colour) and shape in (None, t.shape) for t in s.things) for s in scenes]
        name = kind_name(colour, shape, language, plural=True)
        if counts[0] != counts[1]:
            winner = ORDINALS[language][counts[1] > counts[0]]
            answer = f"The {winner} picture." if language == "en" else f"{winner}图。"
            asks.append(Ask("more", phrase(random, "more", language, a=name), answer))
        which = random.randrange(2)
        word = ORDINALS[language][which]
        question = f"How many {name} are in the {word} picture?" if language == "en" else f"{word}图里有几个{name}？"
        asks.append(Ask("count_in", question, str(counts[which])))
    random.shuffle(asks)
    return scenes, asks[:4]


# ---- videos -------------------------------------------------------------------------------------------------------

STEPS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}


def _stage(random: Random) -> Scene:
    scene = things_scene(random, 1)
    while not scene.things:
        scene = things_scene(random, 1)
    thing = scene.things[0]
    side = min(scene.width, scene.height)
    thing.radius = random.uniform(0.09, 0.2) * side
    return scene


def _bystander(random: Random, scene: Scene) -> None:
    if random.random() < 0.3:
        colour, rgb = pick_colour(random, scene)
        shape = random.choice([s for s in range(len(SHAPES)) if s != scene.things[0].shape])
        place(random, scene, shape, colour, rgb, random.uniform(0.06, 0.12) * min(scene.width, scene.height))


def moving_video(random: Random, frames: int, language: str) -> tuple[list[Scene], list[Ask]]:
    stage = _stage(random)
    thing = stage.things[0]
    way = random.choice(tuple(STEPS))
    dx, dy = STEPS[way]
    travel = random.uniform(0.35, 0.95)
    start, end = 0.5 - travel / 2, 0.5 + travel / 2
    free_x, free_y = stage.width - 2 * thing.radius, stage.height - 2 * thing.radius
    across, shift = random.random(), random.uniform(-1, 1) * (1 - travel) / 2
    _bystander(random, stage)
    scenes = []
    for i in range(frames):
        frame = stage.clone()
        along = start + (end - start) * (i / (frames - 1)) + shift
        along = along if dx + dy > 0 else 1 - along
        moved = frame.things[0]
        moved.x = thing.radius + free_x * (along if dx else across)
        moved.y = thing.radius + free_y * (along if dy else across)
        scenes.append(frame)
    name = kind_name(*random.choice(((None, thing.shape), thing.kind)), language)
    full = kind_name(thing.colour, thing.shape, language)
    if language == "en":
        answer, story = f"{capital(MOVES['en'][way])}.", f"{capital(article(full))} moves {MOVES['en'][way]}."
    else:
        answer, story = f"向{MOVES['zh'][way]}。", f"一个{full}向{MOVES['zh'][way]}移动。"
    asks = [Ask("direction", phrase(random, "direction", language, a=name), answer)]
    asks.append(Ask("video", phrase(random, "video", language), story))
    if len(stage.things) == 1:
        question = phrase(random, "colour", language, a=SHAPES[thing.shape][language])
        asks.append(Ask("colour", question, capital(COLOURS[thing.colour][language]) + stop(language)))
    random.shuffle(asks)
    return scenes, asks


def recolour_video(random: Random, frames: int, language: str) -> tuple[list[Scene], list[Ask]]:
    stage = _stage(random)
    thing = stage.things[0]
    colour, rgb = thing.colour, thing.rgb
    while colour == thing.colour or contrast(rgb, thing.rgb) < 60:
        colour, rgb = pick_colour(random, stage)
    turn = random.randint(1, frames - 1)
    scenes = []
    for i in range(frames):
        frame = stage.clone()
        if i >= turn:
            frame.things[0].colour, frame.things[0].rgb = colour, rgb
        scenes.append(frame)
    shape = SHAPES[thing.shape][language]
    old, new = COLOURS[thing.colour][language], COLOURS[colour][language]
    at_start = (
        random.choice(("at the start", "at the beginning")) if language == "en" else random.choice(("开始", "一开始"))
    )
    at_end = random.choice(("at the end", "in the last frame")) if language == "en" else random.choice(("最后", "结束"))
    story = f"The {shape} changes from {old} to {new}." if language == "en" else f"{shape}从{old}变成{new}。"
    asks = [
        Ask("colour_at", phrase(random, "colour_at", language, a=shape, o=at_start), capital(old) + stop(language)),
        Ask("colour_at", phrase(random, "colour_at", language, a=shape, o=at_end), capital(new) + stop(language)),
        Ask("video", phrase(random, "video", language), story),
    ]
    random.shuffle(asks)
    return scenes, asks


def size_video(random: Random, frames: int, language: str) -> tuple[list[Scene], list[Ask]]:
    stage = _stage(random)
    thing = stage.things[0]
    side = min(stage.width, stage.height)
    small, big = random.uniform(0.06, 0.12) * side, random.uniform(0.2, 0.3) * side
    thing.x = random.uniform(big, stage.width - big)
    thing.y = random.uniform(big, stage.height - big)
    grows = random.random() < 0.5
    scenes = []
    for i in range(frames):
        frame = stage.clone()
        share = i / (frames - 1) if grows else 1 - i / (frames - 1)
        frame.things[0].radius = small + (big - small) * share
        scenes.append(frame)
    shape, full = SHAPES[thing.shape][language], kind_name(thing.colour, thing.shape, language)
    if language == "en":
        answer = "It grows." if grows else "It shrinks."
        story = f"{capital(article(full))} {'grows' if grows else 'shrinks'}."
    else:
        answer = "变大。" if grows else "变小。"
        story = f"一个{full}{'变大' if grows else '变小'}。"
    asks = [Ask("grow", phrase(random, "grow", language, a=shape), answer)]
    asks.append(Ask("video", phrase(random, "video", language), story))
    random.shuffle(asks)
    return scenes, asks


def order_video(random: Random, frames: int, language: str) -> tuple[list[Scene], list[Ask]]:
    """Two or three different shapes shown one after the other."""
    count = random.randint(2, min(3, frames))
    stage = _stage(random)
    shapes = random.sample(range(len(SHAPES)), count)
    actors = []
    for shape in shapes:
        actor = stage.clone()
        colour, rgb = pick_colour(random, stage)
        actor.things[0].shape, actor.things[0].colour, actor.things[0].rgb = shape, colour, rgb
        actor.things[0].angle = 0.0
        reach = actor.things[0].radius
        actor.things[0].x = random.uniform(reach, stage.width - reach)
        actor.things[0].y = random.uniform(reach, stage.height - reach)
        actors.append(actor)
    cuts = sorted(random.sample(range(1, frames), count - 1))
    scenes = [actors[sum(i >= c for c in cuts)].clone() for i in range(frames)]
    words = (("first", "最先"), ("last", "最后"))
    asks = []
    for (en, zh), actor in zip(words, (actors[0], actors[-1]), strict=True):
        question = phrase(random, "order", language, o=en if language == "en" else zh)
        name = kind_name(*actor.things[0].kind, language)
        answer = f"{capital(article(name))}." if language == "en" else f"{name}。"
        asks.append(Ask("order", question, answer))
    names = [kind_name(*a.things[0].kind, language) for a in actors]
    story = (
        capital(", then ".join(article(n) for n in names)) + "."
        if language == "en"
        else "先是" + "，然后是".join(names) + "。"
    )
    asks.append(Ask("video", phrase(random, "video", language), story))
    random.shuffle(asks)
    return scenes, asks


VIDEOS = (moving_video, moving_video, recolour_video, size_video, order_video)
