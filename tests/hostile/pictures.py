"""E: pictures, whole and broken. Built when they are sent: some are large."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from hostile.cases import OK, Case, Table
from PIL import Image
from server import samples
from server.bodies import IMAGE, PNG_URL, chat, image_part, png
from server.live import user

EITHER, TOO_LARGE = (OK, 400), (400, 413)
JPEG = samples.picture(160, 120, "JPEG")


def case(make: Callable[[], bytes] | bytes, status: int | tuple[int, ...] = 400, **more: Any) -> Case:
    param = IMAGE if OK not in ((status,) if isinstance(status, int) else status) else None
    return Case(lambda _: png(make() if callable(make) else make), status, param, **more)


def encode(picture: Image.Image, name: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    picture.save(out, name, **options)
    return out.getvalue()


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png_file(width: int, height: int, rows: bytes, *, bits: int = 8, colour: int = 2, extra: bytes = b"") -> bytes:
    """rows: compressed already."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def one_colour(side: int) -> bytes:
    """A whole picture of side x side in some hundred kilobytes."""
    packer = zlib.compressobj(1)
    row = bytes(1 + 3 * side)
    rows = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    return png_file(side, side, rows)


def swollen(name: bytes, head: bytes) -> bytes:
    """A small picture with a chunk that inflates to 128 MB."""
    packer = zlib.compressobj(1)
    zeros = b"".join(packer.compress(bytes(1 << 20)) for _ in range(128)) + packer.flush()
    return png_file(8, 8, zlib.compress(bytes(8 * 25)), extra=chunk(name, head + zeros))


def animated(name: str, frames: int, size: tuple[int, int] = (2, 2)) -> bytes:
    pictures = [Image.new("RGB", size, (n % 256, n // 256, 0)) for n in range(frames)]
    return encode(pictures[0], name, save_all=True, append_images=pictures[1:], duration=20)


def frame_outside() -> bytes:
    """A GIF whose second frame lies outside its canvas."""
    data = bytearray(animated("GIF", 2, (16, 16)))
    at = data.rfind(b"\x2c", 0, len(data) - 8)
    data[at + 1 : at + 5] = struct.pack("<HH", 60_000, 60_000)
    return bytes(data)


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(Image.new("RGB", (30, 20)), exif=exif)


def restarts() -> bytes:
    return encode(Image.new("RGB", (800, 800)), "JPEG", restart_marker_blocks=1)


def segments() -> Iterator[int]:
    """Where the segments of the JPEG begin."""
    at = 2
    while at + 4 < len(JPEG) and JPEG[at] == 0xFF and JPEG[at + 1] != 0xDA:
        yield at
        at += 2 + struct.unpack(">H", JPEG[at + 2 : at + 4])[0]


def webp_claiming(width: int, height: int) -> bytes:
    bits = (width - 1) | (height - 1) << 14
    body = b"VP8L" + struct.pack("<I", 20) + b"\x2f" + struct.pack("<I", bits) + bytes(15)
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def bmp(width: int, height: int, bits: int, compression: int = 0, body: bytes = b"") -> bytes:
    head = struct.pack("<IHHIIiiHHIIIIII", 200, 0, 0, 62, 40, width, height, 1, bits, compression, 0, 0, 0, 2, 0)
    return b"BM" + head + bytes(8) + body


MODES: dict[str, Callable[[], bytes]] = {
    "1": lambda: encode(Image.new("1", (32, 32), 1)),
    "L": lambda: encode(Image.new("L", (32, 32), 77)),
    "LA": lambda: encode(Image.new("LA", (32, 32), (77, 128))),
    "P with transparency": lambda: encode(Image.new("P", (32, 32), 0), transparency=0),
    "RGB": lambda: encode(Image.new("RGB", (32, 32))),
    "RGBA": lambda: encode(Image.new("RGBA", (32, 32), (0, 0, 0, 128))),
    "CMYK": lambda: encode(Image.new("CMYK", (32, 32)), "JPEG"),
    "YCbCr": lambda: encode(Image.new("YCbCr", (32, 32)), "JPEG"),
    "LAB": lambda: encode(Image.new("LAB", (32, 32)), "TIFF"),
    "I": lambda: encode(Image.new("I", (32, 32), 70_000), "TIFF"),
    "16 bit": lambda: encode(Image.fromarray(np.full((32, 32), 60_000, np.uint16))),
    "F": lambda: encode(Image.new("F", (32, 32), 0.5), "TIFF"),
    "F without numbers": lambda: encode(Image.new("F", (32, 32), float("nan")), "TIFF"),
}
FORBIDDEN: dict[str, bytes] = {
    "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "PSD": b"8BPS\0\1" + bytes(64),
    "FITS": b"SIMPLE  =                    T" + bytes(200),
    "ICNS": b"icns\0\0\0\x10" + bytes(50),
    "ICO of 256": b"\0\0\1\0\0\1" + b"\x10\x10\0\0\1\0\x20\0\x40\0\0\0\x16\0\0\0" * 256,
    "WMF": b"\xd7\xcd\xc6\x9a" + bytes(60),
    "MSP": b"DanM" + bytes(60),
    "FPX": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600),
    "BLP": b"BLP2" + bytes(200),
    "DDS": b"DDS " + bytes(200),
    "JPEG 2000": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(50),
    "XBM": b"#define a_width 8\n#define a_height 8\nstatic char a_bits[] = {0};",
    "PDF": b"%PDF-1.7\n",
    "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(60),
}
SVG = b"<svg xmlns='http://www.w3.org/2000/svg' xmlns:xlink='http://www.w3.org/1999/xlink'>"
SIZES = (
    (1, 1),
    (2, 2),
    (3, 5),
    (7, 13),
    (14, 14),
    (27, 28),
    (29, 28),
    (32, 31),
    (55, 57),
    (63, 64),
    (336, 337),
    (449, 447),
)

CASES: Table = {
    "H-088 a real 9,000 x 9,000": case(lambda: one_colour(9000), 413, slow=True),
    **{f"H-090 a JPEG cut after {n}/8": case(JPEG[: len(JPEG) * n // 8]) for n in range(1, 8)},
    **{f"H-090 a JPEG cut at byte {at}": case(JPEG[:at]) for at in segments()},
    "H-091 10,000 restart markers": case(restarts, EITHER, slow=True),
    "H-091 65,500 x 1": case(lambda: encode(Image.new("L", (65_500, 1)), "JPEG"), TOO_LARGE),
    "H-091 progressive": case(lambda: encode(Image.new("RGB", (900, 900)), "JPEG", progressive=True), OK),
    **{
        f"H-092 only the beginning of a {name}": case(data)
        for name, data in {"BMP": b"BM", "TIFF": b"II*\0", "big TIFF": b"MM\0*", "WebP": b"RIFF\0\0\0\0WEBP"}.items()
    },
    **{
        f"H-093 {w} by {h}": case(lambda w=w, h=h: samples.picture(w, h), EITHER)
        for w, h in ((1, 3), (3, 1), (10_000, 2))
    },
    "H-094 no height": case(samples.png_claiming(10, 0)),
    "H-094 a negative BMP": case(bmp(-4, 4, 24, body=bytes(48)), TOO_LARGE),
    "H-094 a BMP of 2^31 - 1": case(bmp(2**31 - 1, 2**31 - 1, 24), TOO_LARGE),
    **{
        f"H-095 {w} by {h}": case(
            lambda w=w, h=h: samples.picture(w, h),
            OK,
            check=lambda answer: answer["usage"]["prompt_tokens_details"]["image_tokens"] % 64 == 0,
        )
        for w, h in SIZES
    },
    **{f"H-096 {mode}": case(make, OK) for mode, make in MODES.items()},
    "H-097 an inverted CMYK": case(lambda: encode(Image.new("CMYK", (32, 32), (0, 0, 0, 178)), "JPEG"), OK),
    **{
        f"H-098 transparent over {name}": case(lambda v=v: encode(Image.new("RGBA", (32, 32), (v, v, v, 0))), OK)
        for name, v in (("black", 0), ("white", 255))
    },
    "H-099 a GIF of 3,001 frames": case(lambda: animated("GIF", 3001), OK),
    "H-099 a WebP of 60 frames": case(lambda: animated("WEBP", 60, (16, 16)), OK),
    "H-099 an APNG of 1,000 frames": case(lambda: animated("PNG", 1000), OK),
    "H-100 a frame outside": case(frame_outside, EITHER),
    "H-101 text of 128 MB": case(lambda: swollen(b"zTXt", b"a\0\0"), EITHER, slow=True),
    "H-101 a profile of 128 MB": case(lambda: swollen(b"iCCP", b"a\0\0"), EITHER),
    "H-102 a broken profile": case(lambda: encode(Image.new("RGB", (9, 9)), icc_profile=b"junk"), OK),
    "H-102 a profile of 4 MB": case(lambda: encode(Image.new("RGB", (9, 9)), icc_profile=bytes(4 << 20)), EITHER),
    **{f"H-103 orientation {n}": case(lambda n=n: turned(n), OK) for n in (*range(10), 65_535)},
    "H-103 broken EXIF": case(
        lambda: encode(Image.new("RGB", (9, 9)), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + bytes(range(200))),
        EITHER,
    ),
    "H-103 a note of 60 KB": case(
        lambda: encode(Image.new("RGB", (9, 9)), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0" + bytes(60_000)), EITHER
    ),
    "H-104 a circular TIFF": case(b"II*\0\x08\0\0\0\0\0\x08\0\0\0"),
    "H-104 200 pages": case(
        lambda: encode(Image.new("L", (2, 2)), "TIFF", save_all=True, append_images=[Image.new("L", (2, 2))] * 199), OK
    ),
    "H-104 LZW": case(lambda: encode(Image.new("L", (5000, 5000)), "TIFF", compression="tiff_lzw"), EITHER, slow=True),
    "H-104 1 x 65,535": case(lambda: encode(Image.new("L", (1, 65_535)), "TIFF"), TOO_LARGE),
    "H-104 JPEG in TIFF": case(lambda: encode(Image.new("RGB", (64, 64)), "TIFF", compression="jpeg"), EITHER),
    "H-104 BigTIFF": case(b"II+\0\x08\0\0\0" + struct.pack("<Q", 16) + bytes(100)),
    "H-105 an entity": case(
        b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]>' + SVG + b"&b;</svg>"
    ),
    "H-105 a picture from elsewhere": Case(
        lambda world: png(SVG + f"<image href='http://127.0.0.1:{world.trap.port}/x'/></svg>".encode()), 400, IMAGE
    ),
    "H-105 1 MB of uses": case(lambda: SVG + b"<g><use xlink:href='#a'/></g>" * 36_000 + b"</svg>"),
    **{f"H-106 {name}": case(data) for name, data in FORBIDDEN.items()},
    "H-107 HEIC": case(b"\0\0\0\x18ftypheic" + bytes(50)),
    "H-107 AVIF": case(b"\0\0\0\x18ftypavif" + bytes(50)),
    "H-107 JPEG XL": case(b"\xff\x0a" + bytes(50)),
    "H-107 JPEG XL in boxes": case(b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(50)),
    "H-108 a JPEG with PHP": case(JPEG + b"<?php system('id'); ?>", OK),
    "H-108 a GIF with a script": case(lambda: animated("GIF", 1) + b"=1;alert(1)", OK),
    "H-109 WebP of 16,383 x 16,383": case(webp_claiming(16_383, 16_383), TOO_LARGE),
    "H-110 one bit, 32,000 x 32,000": case(bmp(32_000, 32_000, 1), TOO_LARGE),
    "H-110 RLE to the end": case(bmp(7000, 7000, 8, 1, b"\0\1"), TOO_LARGE),
    "H-111 50 pictures too many": Case(chat(messages=user([image_part(PNG_URL)] * 114)), 400, "messages"),
    "H-112 the same 16 times": Case(
        chat(messages=user([image_part(PNG_URL)] * 16)),
        OK,
        check=lambda answer: answer["usage"]["prompt_tokens_details"]["image_tokens"] == 16 * 64,
    ),
    "H-114 indices beyond the palette": case(
        png_file(8, 8, zlib.compress((b"\0" + b"\xff" * 8) * 8), colour=3, extra=chunk(b"PLTE", b"abc")), EITHER
    ),
}
