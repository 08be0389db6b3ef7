"""espeak-ng through its C library: text and a voice to 16 kHz samples.

`python -m training.espeak FOLDER` packs the library and the data of the languages used here into a folder that runs on
any x86-64 Linux machine (the audio output library is replaced by an empty one: nothing is ever played).
"""

from __future__ import annotations

# ruff: noqa: SIM905 - long lists of words read better as text
import ctypes
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import ClassVar

import numpy as np

RATE = 16_000
SYSTEM_LIBRARY = Path("/usr/lib/x86_64-linux-gnu")
MALE = (
    "m1 m2 m4 m5 m6 m7 m8 Alex Andy Denis Gene Lee Mario Mike adam benjamin boris caleb david ed john max michel "
    "miguel norbert pablo paul pedro quincy rob robert travis victor"
).split()
FEMALE = "f1 f2 f3 f5 Alicia Andrea Annie anika aunty belinda steph steph2 steph3".split()
HELD_OUT_MALE = ("m3", "edward", "Michael")
HELD_OUT_FEMALE = ("f4", "linda")
ACCENTS = ("en-us", "en-us", "en-us", "en", "en", "en-gb-scotland", "en-029", "en-gb-x-rp")
_RATE_PARAMETER, _PITCH, _RANGE, _GAP = 1, 3, 4, 7


class _Event(ctypes.Structure):
    """espeak_EVENT of speak_lib.h."""

    _fields_: ClassVar = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", ctypes.c_char * 8),
    ]


_WORD_EVENT = 1


@dataclass(frozen=True, slots=True)
class Voice:
    language: str
    accent: str
    variant: str
    female: bool
    speed: int
    pitch: int
    span: int


def sample_voice(random: Random, language: str, held_out: bool = False) -> Voice:
    female = random.random() < 0.5
    if held_out:
        variant = random.choice(HELD_OUT_FEMALE if female else HELD_OUT_MALE)
    else:
        common = ("f1", "f2", "f3", "f5") if female else ("m1", "m2", "m4", "m5", "m6", "m7", "m8", "")
        variant = random.choice(common if random.random() < 0.5 else FEMALE if female else MALE)
    accent = "cmn" if language == "zh" else random.choice(ACCENTS)
    return Voice(
        language, accent, variant, female, random.randint(120, 215), random.randint(38, 62), random.randint(35, 65)
    )


class Espeak:
    """One per process: the library keeps global state."""

    def __init__(self, folder: Path | None = None) -> None:
        """folder: what pack() made; None is the system's installation."""
        home = folder or SYSTEM_LIBRARY
        if folder is not None:
            for name in ("libpcaudio.so.0", "libsonic.so.0"):
                ctypes.CDLL(str(folder / name), mode=ctypes.RTLD_GLOBAL)
        self._library = ctypes.CDLL(str(home / "libespeak-ng.so.1"))
        rate = self._library.espeak_Initialize(2, 0, str(home).encode(), 0)
        if rate <= 0:
            raise RuntimeError(f"espeak-ng did not start from {home}")
        self.rate = rate
        self._parts: list[np.ndarray] = []
        self._words: list[tuple[int, int]] = []
        kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))
        self._callback = kind(self._receive)
        self._library.espeak_SetSynthCallback(self._callback)
        self._voice = ""

    def _receive(self, samples, count: int, events) -> int:
        if samples and count > 0:
            self._parts.append(np.ctypeslib.as_array(samples, shape=(count,)).copy())
        at = 0
        while events[at].type:
            character = events[at].text_position - 1
            # Some events come twice, or name no place in the text.
            if events[at].type == _WORD_EVENT and character > (self._words[-1][0] if self._words else -1):
                self._words.append((character, events[at].sample))
            at += 1
        return 0

    def speak(self, text: str, voice: Voice) -> np.ndarray:
        """int16 [S] at 16 kHz, without the silence at its ends."""
        samples, _ = self.speak_timed(text, voice)
        return resample(samples.astype(np.float32), self.rate)

    def speak_timed(self, text: str, voice: Voice) -> tuple[np.ndarray, list[tuple[int, int]]]:
        """int16 [S] at `rate` without the silence at its ends; (character, sample) at which words begin."""
        name = voice.accent + (f"+{voice.variant}" if voice.variant else "")
        if name != self._voice and self._library.espeak_SetVoiceByName(name.encode()) != 0:
            raise RuntimeError(f"espeak-ng has no voice {name}")
        self._voice = name
        for parameter, value in ((_RATE_PARAMETER, voice.speed), (_PITCH, voice.pitch), (_RANGE, voice.span)):
            self._library.espeak_SetParameter(parameter, value, 0)
        self._parts, self._words = [], []
        data = text.encode() + b"\0"
        self._library.espeak_Synth(data, len(data), 0, 1, 0, 1, None, None)
        self._library.espeak_Synchronize()
        samples = np.concatenate(self._parts) if self._parts else np.zeros(1, np.int16)
        loud = np.flatnonzero(np.abs(samples) > 250)
        first, last = (int(loud[0]), int(loud[-1]) + 1) if len(loud) else (0, len(samples))
        return samples[first:last], [(character, max(0, sample - first)) for character, sample in self._words]


def resample(samples: np.ndarray, rate: int, to: int = RATE) -> np.ndarray:
    """float32 [S] at `rate` -> int16 at `to`, by a windowed sinc."""
    from scipy.signal import resample_poly

    divisor = np.gcd(rate, to)
    out = resample_poly(samples, to // divisor, rate // divisor)
    return np.clip(np.round(out), -32768, 32767).astype(np.int16)


_STUB = """
int create_audio_device_object(void) {return 0;} int audio_object_open(void) {return 0;}
int audio_object_close(void) {return 0;} int audio_object_destroy(void) {return 0;}
int audio_object_drain(void) {return 0;} int audio_object_flush(void) {return 0;}
int audio_object_write(void) {return 0;} const char *audio_object_strerror(void) {return "";}
"""


def pack(folder: Path) -> None:
    data = folder / "espeak-ng-data"
    source = SYSTEM_LIBRARY / "espeak-ng-data"
    (data / "lang").mkdir(parents=True, exist_ok=True)
    for name in ("phondata", "phonindex", "phontab", "intonations", "en_dict", "cmn_dict"):
        shutil.copy(source / name, data / name)
    for family in ("gmw", "sit"):
        shutil.copytree(source / "lang" / family, data / "lang" / family, dirs_exist_ok=True)
    shutil.copytree(source / "voices" / "!v", data / "voices" / "!v", dirs_exist_ok=True)
    shutil.copy((SYSTEM_LIBRARY / "libespeak-ng.so.1").resolve(), folder / "libespeak-ng.so.1")
    shutil.copy((SYSTEM_LIBRARY / "libsonic.so.0").resolve(), folder / "libsonic.so.0")
    with tempfile.TemporaryDirectory() as work:
        stub = Path(work) / "stub.c"
        stub.write_text(_STUB)
        target = str(folder / "libpcaudio.so.0")
        subprocess.run(["gcc", "-shared", "-fPIC", "-Wl,-soname,libpcaudio.so.0", "-o", target, str(stub)], check=True)


if __name__ == "__main__":
    pack(Path(sys.argv[1]))
