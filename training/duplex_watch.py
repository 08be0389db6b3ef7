"""What the camera's picture may change to, and who wants to be told: by the system prompt, or by an earlier request."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Literal

from training.ask_scene import article, capital, kind_name
from training.lexicon import COLOURS, SHAPES
from training.scenes import Scene, Thing, contrast, pick_colour, place

CIRCLE = 0
PLAIN = (
    "Streaming Omni Conversation.",
    "Streaming Omni Conversation.",
    "Streaming Omni Conversation.",
    "You are a helpful assistant.",
    "You are a helpful assistant. You can accept audio and text input and output voice and text.",
    "You are a guide.",
    "Answer briefly.",
    "You are sensorium-tiny.",
    "Answer questions about what the camera shows.",
    "You are a friendly assistant. Speak only when you are asked.",
    "",
)
_ASKS = ("Tell me when", "Let me know when", "Say when", "Please tell me when", "Please say when")
_ANY = ("something changes", "anything changes", "the picture changes")
_WHOLE = (
    "Say what changes.",
    "Tell me what changes.",
    "Watch the camera and say what changes.",
    "You watch the camera. Say what changes.",
)

Kind = Literal["turns", "appears", "gone", "any"]


@dataclass(frozen=True, slots=True)
class Change:
    """scene: what it is afterwards. name: what is called by the colour that it had, or by its shape alone."""

    kind: Kind
    scene: Scene
    thing: Thing
    """After it, or before it was gone."""
    name: str


@dataclass(frozen=True, slots=True)
class Watch:
    kind: Kind
    shape: int = 0
    colour: int = 0
    is_light: bool = False

    @property
    def clause(self) -> str:
        shape = "light" if self.is_light else SHAPES[self.shape].en
        if self.kind == "turns":
            return f"the {shape} turns {COLOURS[self.colour].en}"
        return f"{article(shape)} appears" if self.kind == "appears" else f"the {shape} is gone"

    def request(self, random: Random) -> str:
        clause = random.choice(_ANY) if self.kind == "any" else self.clause
        return f"{random.choice(_ASKS)} {clause}."

    def remark(self, change: Change) -> str | None:
        """What is said about it; None: nothing."""
        thing = change.thing
        if self.kind != "any":
            if (self.kind, self.shape) != (change.kind, thing.shape):
                return None
            if self.kind == "turns" and thing.colour != self.colour:
                return None
        if change.kind == "turns":
            return f"The {'light' if self.is_light else change.name} turned {COLOURS[thing.colour].en}."
        kind = kind_name(thing.colour, thing.shape, "en")
        return f"{capital(article(kind))} appeared." if change.kind == "appears" else f"The {kind} is gone."


def plain_prompt(random: Random) -> str:
    return random.choice(PLAIN)


def watch_prompt(random: Random, watch: Watch) -> str:
    before = random.choice(("", "", "", "You are a helpful assistant. ", "Streaming Omni Conversation. "))
    if watch.kind == "any" and random.random() < 0.6:
        return before + random.choice(_WHOLE)
    return before + watch.request(random)


def _alone(scene: Scene) -> list[Thing]:
    """Things whose shape no other has."""
    return [t for t in scene.things if sum(o.shape == t.shape for o in scene.things) == 1]


def draw_watch(random: Random, scene: Scene) -> Watch | None:
    """Something that can happen in the scene; None where nothing has a name of its own."""
    kind: Kind = random.choice(("turns", "turns", "appears", "gone", "any", "any"))
    if kind == "any":
        return Watch("any")
    if kind == "appears":
        absent = [s for s in range(len(SHAPES)) if all(t.shape != s for t in scene.things)]
        return Watch("appears", random.choice(absent))
    alone = _alone(scene)
    if not alone:
        return None
    thing = random.choice(alone)
    if kind == "gone":
        return Watch("gone", thing.shape)
    colour = random.choice([c for c in range(len(COLOURS)) if c not in (thing.colour, scene.background)])
    return Watch("turns", thing.shape, colour, is_light=thing.shape == CIRCLE and random.random() < 0.5)


def change_scene(random: Random, scene: Scene, watch: Watch | None) -> Change | None:
    """A change, often the one that is waited for; None where it did not come about, or for something else entirely."""
    if watch is None and random.random() < 0.3:
        return None
    wanted = watch if watch is not None and watch.kind != "any" and random.random() < 0.65 else None
    kind = wanted.kind if wanted else random.choice(("turns", "turns", "appears", "gone"))
    new = scene.clone()
    if kind == "appears":
        return _appears(random, new, wanted.shape if wanted else None)
    alone = [t for t in _alone(new) if wanted is None or t.shape == wanted.shape]
    if not alone:
        return None
    thing = random.choice(alone)
    name = SHAPES[thing.shape].en
    if kind == "gone":
        if len(new.things) < 2:
            return None
        new.things.remove(thing)
        return Change("gone", new, thing, name)
    before = thing.colour, thing.rgb
    for _ in range(10):
        thing.colour, thing.rgb = pick_colour(random, new, (wanted.colour,) if wanted else None)
        if thing.colour != before[0] and thing.colour != new.background and contrast(thing.rgb, before[1]) > 60:
            return Change("turns", new, thing, name)
    return None


def _appears(random: Random, new: Scene, shape: int | None) -> Change | None:
    if shape is None:
        shape = random.choice([s for s in range(len(SHAPES)) if all(t.shape != s for t in new.things)])
    elif any(t.shape == shape for t in new.things):
        return None
    colour, rgb = pick_colour(random, new)
    radius = random.uniform(0.09, 0.2) * min(new.width, new.height)
    if len(new.things) > 5 or not place(random, new, shape, colour, rgb, radius):
        return None
    new.things[-1].outline = 0.0
    return Change("appears", new, new.things[-1], SHAPES[shape].en)
