"""Live talks in training: the rows and features of real sessions, answers where they belong."""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch

from sensorium.models.minicpm_live import MiniCPMLive
from sensorium.models.minicpm_live_mel import LiveSound
from sensorium.models.minicpm_processor import Processor
from sensorium.models.minicpm_units import SessionPrompts
from sensorium.params import LiveSettings
from sensorium.types import Media
from training.conversation import Encoder
from training.duplex_batches import tokens_of, write
from training.duplex_items import UNIT, Director, Pace, Talk, Voices, is_clear, reply_unit
from training.duplex_student import Learner, encode, live_mel
from training.duplex_watch import Change, Watch, change_scene, draw_watch
from training.scenes import things_scene
from training.speech_items import Item

PACKAGE = Path(__file__).parents[2] / "sensorium" / "packaged" / "sensorium-tiny"


class Tone:
    """Stands where espeak-ng would: a tone, as long as the text."""

    rate = 16_000

    def speak(self, text: str, voice: object) -> np.ndarray:
        return (8000 * np.sin(np.arange(1000 * len(text)) * 0.05)).astype(np.int16)


class Slow:
    """Stands where the voice would: a word takes half a second."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder

    def say(self, text: str) -> Item:
        ids = list(self._encoder.text(text))
        return Item(text, ids, [1 + 12 * i for i in range(len(ids))], np.zeros(960 * (12 * len(ids) + 3), np.int16))


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(str(PACKAGE / "tokenizer.json"))


def director(encoder: Encoder, seed: int) -> Director:
    random, tokens = Random(seed), tokens_of(encoder)
    voices = Voices(random, Tone())  # type: ignore[arg-type]
    return Director(random, voices, Pace(Slow(encoder), tokens), tokens)  # type: ignore[arg-type]


def session_ids(processor: Processor, talk: Talk) -> list[int]:
    """What a live session feeds where the model decides as the talk says."""
    live = MiniCPMLive(SessionPrompts(processor, "a"))
    prompt, _ = live.opening(LiveSettings(instructions=talk.instructions), 4096)
    ids = list(prompt.ids)
    for number, second in enumerate(talk.seconds):
        samples = talk.samples[number * UNIT :][:UNIT].astype(np.float32) / 32768
        frames = []
        if second.frame is not None:
            blank = np.zeros((second.frame.height, second.frame.width, 3), np.uint8)
            frames = [processor.prepare(Media("image", blank, b"%d" % number), live.frame_options(1))]
        unit, deciding = live.unit(samples, frames, [second.typed] if second.typed else [])
        assert unit.ids[deciding] == processor.tokenizer.id("<unk>")
        ids += [*unit.ids, *second.ids, processor.tokenizer.id("</unit>")]
    return ids


@pytest.mark.parametrize("seed", range(3))
def test_talks_are_the_rows_of_live_sessions(encoder: Encoder, seed: int) -> None:
    talk = director(encoder, seed).talk(2048)
    written = write(encoder, talk)
    assert written.ids == session_ids(Processor(PACKAGE), talk)
    assert len(written.ids) <= 2048
    for _, deciding, start, stop in written.units:
        assert written.ids[deciding] == encoder.unk
        assert stop > start > deciding


def test_mel_is_that_of_live_sessions() -> None:
    source = np.random.default_rng(3)
    loud = np.repeat(source.uniform(0, 0.3, 9 * 4), UNIT // 4)
    samples = (source.normal(0, 1, 9 * UNIT) * loud).astype(np.float32)
    ours = live_mel(torch.from_numpy(samples)[None])[0].numpy()
    sound = LiveSound()
    for unit in range(9):
        chunk = sound.take(samples[unit * UNIT : (unit + 1) * UNIT])
        theirs = chunk.mel[:, chunk.before : chunk.mel.shape[1] - chunk.after]
        assert np.abs(ours[:, 100 * unit : 100 * unit + 100] - theirs).max() < 2e-3


@pytest.mark.parametrize("seed", range(12))
def test_turns_begin_and_end_as_the_policy_wants(encoder: Encoder, seed: int) -> None:
    tokens, is_open = tokens_of(encoder), False
    for second in director(encoder, seed).talk(2048).seconds:
        ids = second.ids
        if second.task == "stop":
            assert is_open
            assert ids == (tokens.turn_eos, tokens.listen)
            is_open = False
        elif second.task == "listen":
            assert not is_open
            assert ids == (tokens.listen,)
        else:
            assert is_open == (second.task == "go on")
            assert ids[0] == tokens.speak
            assert ids[-1] == tokens.chunk_eos
            assert len(ids) <= 20
            is_open = tokens.turn_eos not in ids


def test_answers_come_in_the_unit_that_hears_the_silence() -> None:
    assert reply_unit(3 * UNIT + 1) == 3
    assert reply_unit(4 * UNIT - 1000) == 4
    assert not is_clear(4 * UNIT - 5000)


def test_only_what_is_waited_for_is_remarked() -> None:
    told = silent = 0
    for seed in range(300):
        random = Random(seed)
        scene = things_scene(random, 3)
        watch = draw_watch(random, scene) if scene.things else None
        change = change_scene(random, scene, watch) if watch else None
        if watch is None or change is None:
            continue
        remark = watch.remark(change)
        told, silent = told + (remark is not None), silent + (remark is None)
        if watch.kind != "any":
            assert (remark is not None) == _matches(watch, change)
        assert change.scene is not scene
    assert told > 40
    assert silent > 20


def _matches(watch: Watch, change: Change) -> bool:
    same = (watch.kind, watch.shape) == (change.kind, change.thing.shape)
    return same and (watch.kind != "turns" or change.thing.colour == watch.colour)


def test_training_hears_what_a_session_hears(encoder: Encoder) -> None:
    """The rows of sound in training are those that the engine's encoder makes of live units."""
    talk, processor = director(encoder, 4).talk(2048), Processor(PACKAGE)
    learner = Learner(PACKAGE, 3, torch.device("cpu"), torch.float32, 0)
    # Never quite silent: where it is, the unit at which silence gets its floor sees a little of the next.
    hiss = np.random.default_rng(0).normal(0, 0.01, 7 * UNIT)
    samples = torch.from_numpy((talk.samples[: 7 * UNIT] / 32768 + hiss).astype(np.float32))[None]
    prompts = SessionPrompts(processor, "a")
    with torch.inference_mode():
        heard = encode(learner.model, live_mel(samples), torch.tensor([7 * 100 + 2]))
        ours = learner.model.projector(heard)[0]
        for unit in range(7):
            made = prompts.unit_of(samples[0, unit * UNIT : (unit + 1) * UNIT].numpy(), [])
            (theirs,) = learner.model.encode("audio", made.prompt.media)
            assert (ours[10 * unit : 10 * unit + 10] - theirs).abs().max() < 0.02
