"""F, G: videos and sounds, whole and broken, and forms that carry sounds."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import av
import numpy as np
from hostile.cases import OK, Case, Table
from media.clips import pcm, sound_file, tone, video_file, wav
from PIL import Image
from server import samples
from server.bodies import AUDIO, VIDEO, audio, video, video_url

EITHER, TOO_LONG = (OK, 400), (400, 413)
TRANSCRIPTIONS = "/v1/audio/transcriptions"


def film(make: Callable[[], bytes] | bytes, status: int | tuple[int, ...] = 400, **more: Any) -> Case:
    param = VIDEO if status == 400 else None
    return Case(lambda _: video(make() if callable(make) else make), status, param, **more)


def sound(make: Callable[[], bytes] | bytes, status: int | tuple[int, ...] = 400, **more: Any) -> Case:
    param = AUDIO if status == 400 else None
    return Case(lambda _: audio(make() if callable(make) else make), status, param, **more)


def lying(field: bytes, offset: int, value: int, frames: int = 16) -> bytes:
    """An mp4 with one number of its headers changed, wherever the box stands."""
    data = bytearray(video_file(frames=frames, fps=8, sound=None))
    at = data.find(field)
    while at >= 0:
        data[at + offset : at + offset + 4] = struct.pack(">I", value)
        at = data.find(field, at + 4)
    return bytes(data)


def box(data: bytes, name: bytes) -> tuple[int, int]:
    """Where a box begins and ends."""
    at = data.index(name) - 4
    return at, at + struct.unpack(">I", data[at : at + 4])[0]


def many_tracks(count: int) -> bytes:
    data = video_file(frames=8, fps=8, sound=None)
    begin, end = box(data, b"moov")
    first, last = box(data, b"trak")
    extra = data[first:last] * count
    grown = struct.pack(">I", end - begin + len(extra)) + data[begin + 4 : last] + extra + data[last:end]
    return data[:begin] + grown + data[end:]


def empty_fragments(count: int) -> bytes:
    data = video_file(frames=8, fps=8, sound=None)
    fragment = struct.pack(">I4sI4sII", 24, b"moof", 16, b"mfhd", 0, 1)
    return data + fragment * count


def elsewhere() -> bytes:
    """An mp4 that says its frames are in another file."""
    data = bytearray(video_file(frames=8, fps=8, sound=None))
    at = data.index(b"dref")
    flags = data.index(b"url ", at) + 4
    data[flags : flags + 4] = bytes(4)
    return bytes(data)


def growing() -> bytes:
    """Frames of 64 to 2,048 pixels in one stream."""
    out = io.BytesIO()
    with av.open(out, "w", format="matroska") as container:
        stream = container.add_stream("mjpeg", rate=4)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuvj420p"
        for number, side in enumerate((64, 64, 512, 2048, 64)):
            packed = io.BytesIO()
            Image.new("RGB", (side, side)).save(packed, "JPEG")
            packet = av.Packet(packed.getvalue())
            packet.stream, packet.time_base, packet.pts = stream, Fraction(1, 1000), number * 250
            packet.dts = packet.pts
            container.mux(packet)
    return out.getvalue()


def pixels(form: str) -> bytes:
    out = io.BytesIO()
    with av.open(out, "w", format="matroska") as container:
        stream = container.add_stream("ffv1" if "a" in form[:4] or form.startswith("gray") else "libx264", rate=4)
        stream.width = stream.height = 64
        stream.pix_fmt = form
        for _ in range(8):
            frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24").reformat(format=form)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return out.getvalue()


def damaged(eighth: int) -> bytes:
    data = bytearray(video_file(frames=24, fps=8, sound=None))
    at = len(data) * eighth // 8
    data[at : at + 64] = bytes(64)
    return bytes(data)


def subtitles() -> bytes:
    """A Matroska head with a track of subtitles only."""
    track = b"\xae\x8b\xd7\x81\x01\x83\x81\x11\x86\x83S_T"
    return b"\x1a\x45\xdf\xa3\x84\x42\x82\x81a" + b"\x18\x53\x80\x67\x95\x16\x54\xae\x6b\x90" + track


PLAYLISTS = {
    "HLS": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:{port}/x.ts\n",
    "DASH": "<?xml version='1.0'?><MPD><BaseURL>http://127.0.0.1:{port}/</BaseURL></MPD>",
    "SDP": "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\nc=IN IP4 127.0.0.1\r\nm=video {port} RTP/AVP 96\r\n",
    "concat": "ffconcat version 1.0\nfile http://127.0.0.1:{port}/x\n",
    "a sequence of pictures": "/etc/%03d.png",
}

VIDEOS: Table = {
    "H-119 claims ten hours": film(lambda: lying(b"mvhd", 20, 2**31 - 1), EITHER),
    "H-119 a track that claims ten hours": film(lambda: lying(b"mdhd", 20, 2**31 - 1), EITHER),
    "H-120 claims a second, has an hour": film(
        lambda: video_file("matroska", "mpeg4", fps=1, frames=3700, sound=None, size=(16, 16)),
        (OK, 400, 413),
        slow=True,
    ),
    "H-121 10^6 ticks a frame": film(lambda: lying(b"mdhd", 16, 10**6), EITHER),
    "H-121 no ticks": film(lambda: lying(b"mdhd", 16, 0), EITHER),
    "H-121 a rate of -1": film(lambda: lying(b"mdhd", 16, 2**32 - 1), EITHER),
    "H-122 nothing": film(b""),
    "H-122 only sound": film(lambda: sound_file("mp4", "aac", tone(1.0, 48_000))),
    "H-122 only subtitles": film(subtitles),
    "H-122 an empty track": film(lambda: lying(b"stsz", 12, 0), EITHER),
    "H-123 one frame": film(lambda: video_file(frames=1, sound=None), OK),
    "H-123 two frames": film(lambda: video_file(frames=2, sound=None), OK),
    "H-124 a gap of an hour": film(
        lambda: video_file("matroska", sound=None, pts_ms=lambda i: i * 40 + 3_000_000 * (i >= 40)), EITHER, slow=True
    ),
    "H-124 all at once": film(lambda: video_file("matroska", sound=None, frames=20, pts_ms=lambda i: i // 10), EITHER),
    "H-124 late by 2^40": film(
        lambda: video_file("matroska", sound=None, frames=20, pts_ms=lambda i: 2**40 + i), (OK, 400, 413)
    ),
    "H-125 frames below 0": Case(video(b"", num_frames=-2), 400, "media_io_kwargs.video.num_frames"),
    "H-125 frames a second below 0": Case(video(b"", fps=-2), 400, "media_io_kwargs.video.fps"),
    "H-125 an unknown option": Case(video(b"", max_frames=10**9), 400, "media_io_kwargs.video"),
    "H-126 5,000 pictures as one video": Case(
        lambda _: video_url("data:video/jpeg;base64," + ",".join(["/9j/AA=="] * 5000)), 400, VIDEO
    ),
    "H-127 turned": film(lambda: video_file(frames=8, fps=8, rotation=90, sound=None), OK),
    "H-128 growing frames": film(growing, (OK, 400, 413)),
    **{
        f"H-129 {form}": film(lambda form=form: pixels(form), EITHER) for form in ("yuv444p", "yuv422p", "gray", "bgra")
    },
    "H-130 no index": film(lambda: samples.video()[:700]),
    "H-130 an index of 10 million": film(lambda: lying(b"stsz", 12, 10_000_000), EITHER),
    "H-130 times of 10 million": film(lambda: lying(b"stts", 8, 10_000_000), EITHER),
    "H-131 100,000 empty fragments": film(lambda: empty_fragments(100_000), EITHER, slow=True),
    "H-131 1,000 tracks": film(lambda: many_tracks(1000), EITHER),
    **{
        f"H-132 {name}": Case(
            lambda world, text=text: video(text.replace("{port}", str(world.trap.port)).encode()), 400, VIDEO
        )
        for name, text in PLAYLISTS.items()
    },
    "H-133 frames in another file": film(elsewhere, EITHER),
    "H-134 one key frame": film(lambda: video_file(codec="mpeg4", frames=600, fps=60, size=(32, 32), sound=None), OK),
    "H-136 webm": film(lambda: video_file("webm", "libvpx", frames=16, fps=8, sound=None), OK),
    "H-136 avi": film(lambda: video_file("avi", "mpeg4", frames=16, fps=8, sound=None), OK),
    "H-136 mjpeg in mkv": film(lambda: video_file("matroska", "mjpeg", frames=8, fps=8, sound=None), OK),
    "H-136 a GIF": film(lambda: samples.picture(file_format="GIF")),
    "H-136 a transport stream": film(lambda: video_file("mpegts", "mpeg2video", frames=8, fps=25, sound=None)),
    "H-136 flv": film(lambda: video_file("flv", "flv", frames=8, fps=8, sound=None)),
    "H-137 hevc": film(lambda: video_file(codec="libx265", frames=8, fps=8, sound=None), OK, slow=True),
    "H-137 vp9": film(lambda: video_file("webm", "libvpx-vp9", frames=8, fps=8, sound=None), OK),
    "H-137 prores": film(lambda: samples.video(), OK),
    "H-137 msmpeg4": film(lambda: video_file("avi", "msmpeg4v2", sound=None, frames=8)),
    "H-137 wmv": film(lambda: video_file("asf", "wmv2", sound=None, frames=8)),
    **{f"H-139 damaged at {n}/8": film(lambda n=n: damaged(n), EITHER) for n in range(1, 8)},
}


def floats(values: list[float], **more: Any) -> bytes:
    return wav(np.array(values, "<f4").tobytes(), bits=32, codec=3, **more)


SOUNDS: Table = {
    "H-140 Opus beyond the limit": sound(
        lambda: sound_file("ogg", "libopus", np.zeros(48_000 * 90, np.float32)), TOO_LONG, slow=True
    ),
    "H-141 claims nothing": sound(wav(pcm(tone(0.5)), size=0), OK),
    "H-141 still recording": sound(wav(pcm(tone(0.5)), size=0xFFFFFFFF), OK),
    "H-142 one sample": sound(wav(pcm(tone(1 / 16_000))), EITHER),
    "H-142 shorter than a window": sound(wav(pcm(tone(0.01))), EITHER),
    "H-143 1e38": sound(floats([1e38] * 4000), EITHER),
    "H-143 denormal": sound(floats([1e-42] * 4000), OK),
    "H-144 192 kHz, 8 channels, 64 bit": sound(
        wav(np.zeros(8 * 19_200, "<f8").tobytes(), rate=192_000, channels=8, bits=64, codec=3), OK
    ),
    **{f"H-144 {rate} Hz": sound(wav(pcm(tone(1)), rate=rate)) for rate in (0, 1, 2**32 - 1)},
    "H-144 no channels": sound(wav(bytes(4000), channels=0)),
    "H-144 100 channels": sound(wav(bytes(4000), channels=100)),
    "H-145 silence beyond the limit": sound(
        lambda: sound_file("flac", "flac", np.zeros(16_000 * 300, np.float32), 16_000), TOO_LONG
    ),
    "H-146 tags of 10 MB": sound(
        lambda: b"ID3\x04\0\0\x04\x62\x5a\0" + bytes(10_000_000) + sound_file("mp3", "libmp3lame", tone(1, 48_000)),
        EITHER,
    ),
    "H-146 tags and no sound": sound(b"ID3\x04\0\0\0\0\x0f\x7f" + bytes(2000)),
    "H-147 A-law": sound(lambda: sound_file("wav", "pcm_alaw", tone(0.5, 48_000)), OK),
    "H-147 mu-law": sound(lambda: sound_file("wav", "pcm_mulaw", tone(0.5, 48_000)), OK),
    "H-147 24 bit": sound(lambda: sound_file("wav", "pcm_s24le", tone(0.5, 48_000)), OK),
    "H-147 ADPCM": sound(lambda: sound_file("wav", "adpcm_ms", tone(0.5, 48_000)), OK),
    "H-147 AIFF": sound(lambda: sound_file("aiff", "pcm_s16be", tone(0.5, 48_000)), OK),
    "H-147 W64": sound(lambda: sound_file("w64", "pcm_s16le", tone(0.5, 48_000)), EITHER),
    "H-148 chained Ogg": sound(
        lambda: (
            sound_file("ogg", "libopus", tone(0.5, 48_000)) + sound_file("ogg", "libopus", tone(0.5, 24_000), 24_000)
        ),
        EITHER,
    ),
    "H-149 a tracker's module": sound(b"Extended Module: x" + bytes(500)),
    "H-149 IAMF": sound(b"\xf8\x06iamf\0\0" + bytes(200)),
    "H-149 protected": sound(lambda: sound_file("mp4", "aac", tone(0.5, 48_000)).replace(b"mp4a", b"drms"), EITHER),
    "H-150 a video with sound": sound(lambda: video_file(frames=25), OK),
    "H-150 a video without sound": sound(lambda: video_file(frames=25, sound=None)),
    "H-151 silence": sound(wav(bytes(32_000)), OK),
    "H-151 full scale": sound(wav(pcm(np.sign(tone(1)))), OK),
    "H-151 a constant": sound(wav(pcm(np.ones(16_000, np.float32))), OK),
    **{
        f"H-156 {samples_} samples": sound(wav(pcm(tone(samples_ / 16_000))), OK)
        for samples_ in (1599, 1600, 1601, 15_999, 16_000, 16_001, 16_159, 16_161)
    },
}


def form(fields: dict[str, str], file: bytes | None = None, name: str = "file", filename: str = "a.wav") -> bytes:
    """A form as browsers send it."""
    parts = [
        f'--b\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{value}\r\n'.encode()
        for key, value in fields.items()
    ]
    if file is not None:
        head = f'--b\r\nContent-Disposition: form-data; name="{name}"; filename="{filename}"\r\n\r\n'
        parts.append(head.encode() + file + b"\r\n")
    return b"".join([*parts, b"--b--\r\n"])


def upload(body: Callable[[], bytes] | bytes, status: int | tuple[int, ...] = 400, boundary: str = "b") -> Case:
    return Case(
        lambda _: body() if callable(body) else body,
        status,
        path=TRANSCRIPTIONS,
        headers={"content-type": f"multipart/form-data; boundary={boundary}"},
    )


WAV = samples.sound()
FORMS: Table = {
    **{
        f"H-071 {label}": upload(form({}, WAV, filename=name), (OK, 400))
        for label, name in {"a path": "../../x.wav", "an absolute path": "/etc/x.wav", "NUL": "a\0.wav"}.items()
    },
    "H-071 1 MB": upload(lambda: form({}, WAV, filename="a" * (1 << 20))),
    "H-152 27 MB": upload(lambda: form({}, bytes(27 << 20)), (400, 413)),
    "H-153 10,000 fields": upload(lambda: form({f"f{n}": "" for n in range(10_000)})),
    "H-153 1,000 files": upload(
        lambda: b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nx\r\n' * 1000 + b"--b--\r\n"
    ),
    "H-153 a boundary of 30 KB": upload(b"--b--", (400, 431), boundary="b" * 30_000),
    "H-153 no last boundary": upload(form({}, WAV)[:-8]),
    "H-153 no name": upload(b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--\r\n"),
    "H-153 a form in a form": upload(
        b"--b\r\nContent-Type: multipart/mixed; boundary=c\r\n\r\n--c\r\n\r\nx\r\n--c--\r\n--b--\r\n"
    ),
    "H-154 an unknown language": upload(form({"language": "xx"}, WAV)),
    "H-154 a prompt of 10 KB": upload(form({"prompt": "a" * 10_240}, WAV)),
    "H-154 a list of temperatures": upload(form({"temperature": "[0, 1]"}, WAV)),
    "H-154 an unknown measure": upload(form({"timestamp_granularities[]": "x" * 1000}, WAV)),
    "H-155 1 MB to speak": Case(
        lambda _: {"input": "a" * (1 << 20), "voice": "x", "speed": 0}, 404, path="/v1/audio/speech"
    ),
}

CASES: Table = {**VIDEOS, **SOUNDS, **FORMS}
