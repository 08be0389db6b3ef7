"""Hostile addresses, inline data, pictures, videos and sounds.

Name, starting with the number of its class -> (body, status expected, what `param` of the error begins with).
"""

from __future__ import annotations

from server import samples
from server.bodies import (
    AUDIO,
    AUDIO_URL,
    IMAGE,
    OK,
    PNG,
    PNG_URL,
    VIDEO,
    WAV,
    Case,
    audio,
    audio_url,
    chat,
    image,
    image_part,
    png,
    video,
    video_url,
)
from server.live import user

BIG = 10**9
HUGE = b"\xff\xff\xff\x7f"

CASES: dict[str, Case] = {
    # A, C: addresses and paths
    "H-001 loopback": (image("http://127.0.0.1/a.png"), 400, IMAGE),
    "H-002 localhost": (image("http://localhost/a.png"), 400, IMAGE),
    "H-003 cloud metadata": (image("http://169.254.169.254/latest/meta-data"), 400, IMAGE),
    "H-005 private": (image("http://192.168.0.1/a.png"), 400, IMAGE),
    "H-006 unspecified": (image("http://0.0.0.0/a.png"), 400, IMAGE),
    "H-007 one decimal number": (image("http://2130706433/a.png"), 400, IMAGE),
    "H-008 octal": (image("http://0177.0.0.1/a.png"), 400, IMAGE),
    "H-009 hexadecimal": (image("http://0x7f.1/a.png"), 400, IMAGE),
    "H-010 short form": (image("http://127.1/a.png"), 400, IMAGE),
    "H-011 loopback in IPv6": (image("http://[::1]/a.png"), 400, IMAGE),
    "H-011 mapped": (image("http://[::ffff:127.0.0.1]/a.png"), 400, IMAGE),
    "H-013 NAT64": (image("http://[64:ff9b::a9fe:a9fe]/a.png"), 400, IMAGE),
    "H-016 user information": (image("http://example.com@127.0.0.1/a.png"), 400, IMAGE),
    "H-017 backslash": (image("http://127.0.0.1\\@example.com/a.png"), 400, IMAGE),
    "H-018 three slashes": (image("http:///127.0.0.1/a.png"), 400, IMAGE),
    "H-020 full-width digits": (image("http://\uff11\uff12\uff17.0.0.1/a.png"), 400, IMAGE),
    "H-023 newline in the scheme": (image("ht\ntp://127.0.0.1/a.png"), 400, IMAGE),
    "H-026 another port": (audio_url("http://127.0.0.1:22/"), 400, AUDIO_URL),
    "H-027 another scheme": (image("gopher://example.com/"), 400, IMAGE),
    "H-037 loopback for a video": (video_url("http://127.0.0.1/a.mp4"), 400, VIDEO),
    "H-040 a URL of 1 MB": (image("http://example.com/" + "a" * (1 << 20)), 400, IMAGE),
    "H-061 a local file": (image("file:///etc/passwd"), 400, IMAGE),
    "H-061 a bare path": (image("/etc/passwd"), 400, IMAGE),
    "H-067 a network share": (image("file://host/share/x"), 400, IMAGE),
    "H-069 a path as the model": (chat(model="../../etc/passwd"), 404, "model"),
    # D: inline data
    "H-075 only data:": (image("data:"), 400, IMAGE),
    "H-075 no comma": (image("data:image/png;base64"), 400, IMAGE),
    "H-075 nothing after the comma": (image("data:,"), 400, IMAGE),
    "H-076 wrong padding": (image("data:image/png;base64,AAA"), 400, IMAGE),
    "H-076 data after the padding": (image(PNG_URL + "=AAAA"), 400, IMAGE),
    "H-076 percent signs": (image("data:image/png;base64,%41%41%41%41"), 400, IMAGE),
    "H-077 more bytes than one item may have": (audio(bytes(5 << 20)), (400, 413), AUDIO),
    "H-078 parts without end": (chat(messages=user(["a"] * 100_000)), 400, "messages[0].content"),
    "H-079 a picture as a video": (video(PNG), 400, VIDEO),
    "H-080 HTML as a picture": (image(samples.data_url("text/html", b"<html></html>")), 400, IMAGE),
    "H-080 a pickle as a picture": (image(samples.data_url("application/x-python-pickle", b"\x80\x04N.")), 400, IMAGE),
    "H-081 not base64": (image("data:image/png,%89PNG"), 400, IMAGE),
    "H-081 upper case": (image("DATA:image/png;BASE64," + PNG_URL.partition(",")[2]), (OK, 400), None),
    "H-082 no bytes": (png(b""), 400, IMAGE),
    "H-082 one byte": (png(b"\x89"), 400, IMAGE),
    "H-083 a Cyrillic letter": (image("data:image/png;base64,\u0430AAA"), 400, IMAGE),
    # E: pictures
    "H-086 claims 50,000 x 50,000": (png(samples.png_claiming(50_000, 50_000)), (400, 413), IMAGE),
    "H-087 claims 13,000 x 13,000": (png(samples.png_claiming(13_000, 13_000)), (400, 413), IMAGE),
    "H-090 truncated JPEG": (png(samples.picture(file_format="JPEG")[:-200]), 400, IMAGE),
    "H-090 truncated PNG": (png(PNG[: len(PNG) // 2]), 400, IMAGE),
    "H-092 only a PNG's first bytes": (png(PNG[:8]), 400, IMAGE),
    "H-092 only a JPEG's first bytes": (png(b"\xff\xd8\xff"), 400, IMAGE),
    "H-092 only a GIF's first bytes": (png(b"GIF89a"), 400, IMAGE),
    "H-093 one pixel": (png(samples.picture(1, 1)), (OK, 400), None),
    "H-093 two by 10,000": (png(samples.picture(2, 10_000)), (OK, 400), None),
    "H-094 no width": (png(samples.png_claiming(0, 10)), 400, IMAGE),
    "H-094 the largest width": (png(samples.png_claiming(2**31 - 1, 1)), (400, 413), IMAGE),
    "H-105 SVG": (png(b"<svg xmlns='http://www.w3.org/2000/svg'/>"), 400, IMAGE),
    "H-106 PostScript": (png(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), 400, IMAGE),
    "H-106 Photoshop": (png(b"8BPS\0\1" + bytes(64)), 400, IMAGE),
    "H-108 a PNG with a tail": (png(PNG + b"PK\x03\x04" + bytes(100)), (OK, 400), None),
    "H-111 more pictures than allowed": (chat(messages=user([image_part(PNG_URL)] * 65)), 400, "messages"),
    # F: videos
    "H-122 a sound as a video": (video(WAV), 400, VIDEO),
    "H-125 10^9 frames": (video(b"", num_frames=BIG), 400, "media_io_kwargs.video.num_frames"),
    "H-125 no frames": (video(b"", num_frames=0), 400, "media_io_kwargs.video.num_frames"),
    "H-125 frames as text": (video(b"", num_frames="8"), 400, "media_io_kwargs.video.num_frames"),
    "H-125 10^9 frames a second": (video(b"", fps=BIG), 400, "media_io_kwargs.video.fps"),
    "H-130 truncated video": (video(samples.video()[:700]), 400, VIDEO),
    "H-132 a playlist": (video(b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n"), 400, VIDEO),
    "H-132 a list of files": (video(b"ffconcat version 1.0\nfile /etc/passwd\n"), 400, VIDEO),
    # G: sounds
    "H-141 a header that claims 4 GB": (audio(WAV[:4] + HUGE + WAV[8:40] + HUGE), 400, AUDIO),
    "H-142 no samples": (audio(samples.sound(0)), 400, AUDIO),
    "H-143 samples that are no numbers": (audio(samples.float_wav([float("nan")] * 4000)), (OK, 400), None),
    "H-143 infinite samples": (audio(samples.float_wav([float("inf"), 1e38] * 4000)), (OK, 400), None),
    "H-149 MIDI": (audio(b"MThd\0\0\0\6\0\0\0\1\0\x60MTrk\0\0\0\4\0\xff\x2f\0"), 400, AUDIO),
}  # fmt: skip
