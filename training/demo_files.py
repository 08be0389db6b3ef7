"""The files that `make demo` asks about, made without the training renderer: Pillow, espeak-ng's program, PyAV.

`python -m training.demo_files` writes them to sensorium/packaged/demo/ (needs espeak-ng and open fonts).
"""

from __future__ import annotations

import json
import subprocess
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from training.espeak import Espeak, Voice
from training.evaluate_items import encode_wave

FOLDER = Path(__file__).parent.parent / "sensorium" / "packaged" / "demo"
FONT = "/usr/share/fonts/truetype/lato/Lato-Bold.ttf"
FPS = 24

QUESTIONS = (
    ("scene.png", "What is in the picture?", "A blue star, a red circle, a green triangle and a purple heart."),
    ("scene.png", "How many objects are there?", "4"),
    ("scene.png", "圆形是什么颜色？", "红色。"),
    ("sign.jpg", "What does the text say?", "OPEN 24"),
    ("speech.wav", "Transcribe the speech.", "The small bird is near the window."),
    ("speech.wav", "Is the speaker a man or a woman?", "A woman."),
    ("moving.mp4", "In which direction does the square move?", "Right."),
    ("moving.mp4", "What happens in the video?", "An orange square moves right."),
)


def scene() -> Image.Image:
    """960 x 640 on a soft gradient."""
    factor = 3
    width, height = 960 * factor, 640 * factor
    ramp = np.linspace(255, 236, height)[:, None, None] * np.array([1.0, 0.99, 0.95])
    image = Image.fromarray(np.broadcast_to(ramp, (height, width, 3)).astype(np.uint8))
    draw = ImageDraw.Draw(image)

    def at(*points: tuple[float, float]) -> list[tuple[float, float]]:
        return [(x * factor, y * factor) for x, y in points]

    turn = np.pi / 5 * np.arange(10) - np.pi / 2
    radius = np.where(np.arange(10) % 2 == 0, 110, 45)
    draw.polygon(at(*zip(150 + radius * np.cos(turn), 170 + radius * np.sin(turn), strict=True)), fill=(35, 80, 200))
    draw.ellipse(at((300, 360), (500, 560)), fill=(215, 40, 40))
    draw.polygon(at((610, 80), (720, 270), (500, 270)), fill=(30, 140, 60))
    t = np.linspace(0, 2 * np.pi, 200)
    x, y = 16 * np.sin(t) ** 3, 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    draw.polygon(at(*zip(800 + 7 * x, 440 - 7 * y, strict=True)), fill=(130, 40, 150))
    return image.resize((960, 640), Image.Resampling.LANCZOS)


def sign() -> Image.Image:
    """720 x 300: wide enough to be cut into slices."""
    image = Image.new("RGB", (720, 300), (24, 60, 110))
    draw = ImageDraw.Draw(image)
    draw.text((360, 150), "OPEN 24", fill=(250, 250, 245), font=ImageFont.truetype(FONT, 120), anchor="mm")
    return image


def speech(path: Path) -> None:
    text = "the small bird is near the window"
    subprocess.run(["espeak-ng", "-v", "en-us+f4", "-s", "150", "-w", str(path), text], check=True)


def question(path: Path) -> None:
    """Asked in the demo's live session; 16 kHz, as short as it is."""
    voice = Voice("en", "en-us", "f4", True, 150, 50, 50)
    path.write_bytes(encode_wave(Espeak().speak("What do you see?", voice))[1])


def moving(path: Path, seconds: int = 5) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        stream.time_base = Fraction(1, FPS)
        count = FPS * seconds
        for i in range(count):
            image = Image.new("RGB", (320, 240), (235, 240, 245))
            x = 50 + 220 * i / (count - 1)
            ImageDraw.Draw(image).rectangle((x - 32, 88, x + 32, 152), fill=(245, 130, 30))
            container.mux(stream.encode(av.VideoFrame.from_image(image)))
        container.mux(stream.encode())


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    scene().save(FOLDER / "scene.png", optimize=True)
    sign().save(FOLDER / "sign.jpg", quality=85)
    speech(FOLDER / "speech.wav")
    question(FOLDER / "question.wav")
    moving(FOLDER / "moving.mp4")
    listed = [{"file": file, "question": question, "expected": expected} for file, question, expected in QUESTIONS]
    (FOLDER / "demo.json").write_text(json.dumps(listed, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
