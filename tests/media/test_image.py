"""Decoding images: one documented result for every mode, and refusal of what is too large, damaged or no image."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageFile

from sensorium.config import MediaLimits
from sensorium.errors import MediaError, RequestError, TooLargeError
from sensorium.media import image

LIMITS = MediaLimits()
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)


def encode(picture: Image.Image, name: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    picture.save(out, name, **options)
    return out.getvalue()


def png(width: int, height: int, rows: bytes = b"", bits: int = 8, colour: int = 2, extra: bytes = b"") -> bytes:
    """A PNG by hand, so that its header can lie."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + extra
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def bmp(width: int, height: int, bits: int) -> bytes:
    """The headers of a BMP."""
    return b"BM" + struct.pack("<IHHIIiiHHIIIIII", 200, 0, 0, 62, 40, width, height, 1, bits, 0, 0, 0, 0, 2, 0)


def decode(data: bytes, limits: MediaLimits = LIMITS) -> np.ndarray:
    return image.from_bytes(data, "messages[0].content[1]", limits, {}).data


@pytest.mark.parametrize("name", ["PNG", "GIF", "BMP", "TIFF", "WEBP"])
def test_formats(name: str):
    picture = Image.fromarray(PIXELS)
    options = {"lossless": True} if name == "WEBP" else {}
    decoded = decode(encode(picture.quantize(256) if name == "GIF" else picture, name, **options))
    assert decoded.dtype == np.uint8
    if name == "GIF":
        assert np.abs(decoded.astype(int) - PIXELS).mean() < 20
    else:
        np.testing.assert_array_equal(decoded, PIXELS)


def test_jpeg_with_bytes_after_its_end():
    """H-108: what follows the image is ignored."""
    data = encode(Image.fromarray(PIXELS), "JPEG")
    np.testing.assert_array_equal(decode(data), np.asarray(Image.open(io.BytesIO(data))))
    np.testing.assert_array_equal(decode(data + b"PK\x03\x04<?php"), decode(data))


MODES = {
    "1": (Image.new("1", (2, 2), 1), 255),
    "L": (Image.new("L", (2, 2), 77), 77),
    "LA opaque": (Image.new("LA", (2, 2), (77, 255)), 77),
    "P": (Image.new("RGB", (2, 2), (77, 77, 77)).quantize(2), 77),
    "PA": (Image.new("RGBA", (2, 2), (77, 77, 77, 255)).convert("PA"), 77),
    "RGBA half": (Image.new("RGBA", (2, 2), (0, 0, 0, 128)), 127),
    "CMYK": (Image.new("CMYK", (2, 2), (0, 0, 0, 178)), 77),
    "YCbCr": (Image.new("YCbCr", (2, 2), (77, 128, 128)), 77),
    "LAB": (Image.new("LAB", (2, 2), (255, 128, 128)), None),
    "I": (Image.new("I", (2, 2), 77 * 257), 77),
    "I;16": (Image.fromarray(np.full((2, 2), 77 * 257, dtype=np.uint16)), 77),
    "F unit": (Image.new("F", (2, 2), 77 / 255), 77),
    "F bytes": (Image.new("F", (2, 2), 77.0), 77),
    "F NaN": (Image.new("F", (2, 2), float("nan")), 0),
}


@pytest.mark.parametrize("mode", MODES)
def test_h096_every_mode_has_one_rgb_result(mode: str):
    picture, value = MODES[mode]
    media = image.from_pil(picture)
    assert media.data.shape == (2, 2, 3)
    assert value is None or np.abs(media.data.astype(int) - value).max() <= 1


def test_h096_sixteen_bit_grey_is_scaled_not_clipped():
    levels = np.linspace(0, 65535, 64).astype(np.uint16)[None].repeat(2, 0)
    assert len(np.unique(decode(encode(Image.fromarray(levels))))) == 64


def test_h097_cmyk_jpeg_is_not_inverted():
    data = encode(Image.new("CMYK", (8, 8), (0, 0, 0, 178)), "JPEG")
    assert abs(int(decode(data).mean()) - 77) < 4


def test_h098_transparent_parts_become_white():
    for under in ((0, 0, 0, 0), (255, 255, 255, 0)):
        assert (decode(encode(Image.new("RGBA", (4, 4), under))) == 255).all()
    palette = Image.new("P", (4, 4), 0)
    assert (decode(encode(palette, transparency=0)) == 255).all()


@pytest.mark.parametrize("orientation", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 65535])
def test_h103_exif_orientation(orientation: int):
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = {
        2: PIXELS[:, ::-1], 3: PIXELS[::-1, ::-1], 4: PIXELS[::-1], 5: PIXELS.transpose(1, 0, 2),
        6: np.rot90(PIXELS, 3), 7: np.rot90(PIXELS.transpose(1, 0, 2), 2), 8: np.rot90(PIXELS),
    }.get(orientation, PIXELS)  # fmt: skip
    np.testing.assert_array_equal(decode(encode(Image.fromarray(PIXELS), exif=exif)), upright)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_h103_broken_exif_is_ignored():
    data = encode(Image.fromarray(PIXELS), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + bytes(range(200)))
    assert decode(data).shape == PIXELS.shape


@pytest.mark.parametrize("name", ["GIF", "PNG", "WEBP"])
def test_h099_animations_give_their_first_frame(name: str):
    frames = [Image.new("RGB", (16, 16), (index * 3 % 256, 0, 0)) for index in range(40)]
    decoded = decode(encode(frames[0], name, save_all=True, append_images=frames[1:]))
    assert decoded.shape == (16, 16, 3)
    assert decoded.max() <= 3


TOO_LARGE = {
    "H-086 claims 50,000 x 50,000": png(50_000, 50_000),
    "H-087 claims 13,000 x 13,000": png(13_000, 13_000),
    "H-110 one-bit BMP 32k x 32k": bmp(32_000, 32_000, bits=1),
    "a side of 100,000": png(100_000, 2),
}  # fmt: skip


@pytest.mark.parametrize("case", TOO_LARGE)
def test_too_many_pixels_are_refused_by_the_header(case: str):
    tracemalloc.start()
    with pytest.raises(TooLargeError) as caught:
        decode(TOO_LARGE[case])
    assert tracemalloc.get_traced_memory()[1] < 5 << 20
    tracemalloc.stop()
    assert caught.value.param == "messages[0].content[1]"


def test_h088_a_small_file_with_many_pixels_is_never_inflated():
    data = png(9000, 9000, bytes(1000))
    with pytest.raises(TooLargeError):
        decode(data, replace(LIMITS, max_pixels=50_000_000))


def test_h090_truncated_files_are_errors():
    for name in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"):
        picture = Image.fromarray(PIXELS)
        data = encode(picture.quantize() if name == "GIF" else picture, name)
        for eighth in range(1, 8):
            with pytest.raises(MediaError):
                decode(data[: len(data) * eighth // 8])
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"BM", b"II*\0", b"RIFF\0\0\0\0WEBP")
JUNK = {
    "H-092 empty": b"",
    "H-092 one byte": b"\x89",
    **{f"H-092 only {magic!r}": magic for magic in MAGIC},
    "H-094 no width": png(0, 4),
    "H-094 no height": png(4, 0),
    "H-094 2^31-1": png(2**31 - 1, 1),
    "H-094 negative BMP": bmp(-4, 4, bits=24) + bytes(48),
    "H-105 SVG": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
    "H-106 PSD": b"8BPS\0\x01" + bytes(40),
    "H-106 EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "H-106 FITS": b"SIMPLE  =                    T" + bytes(200),
    "H-106 ICO": b"\0\0\1\0\1\0\x10\x10" + bytes(100),
    "H-106 ICNS": b"icns\0\0\0\x10" + bytes(50),
    "H-106 JPEG 2000": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(50),
    "H-106 PDF": b"%PDF-1.7\n",
    "H-107 HEIC": b"\0\0\0\x18ftypheic" + bytes(50),
    "H-107 AVIF": b"\0\0\0\x18ftypavif" + bytes(50),
    "H-035 HTML": b"<html><meta http-equiv=refresh content='0;url=http://127.0.0.1'></html>",
    "H-104 circular TIFF": b"II*\0\x08\0\0\0\0\0\x08\0\0\0",
}  # fmt: skip


@pytest.mark.parametrize("case", JUNK)
def test_what_is_no_image_is_refused(case: str):
    with pytest.raises(RequestError) as caught:
        decode(JUNK[case])
    assert caught.value.param == "messages[0].content[1]"
    assert "PIL" not in caught.value.message


@pytest.mark.parametrize("size", [(1, 1), (1, 3), (3, 1), (2, 10_000), (10_000, 2)])
def test_h093_extreme_shapes_keep_the_channel_last(size: tuple[int, int]):
    assert decode(encode(Image.new("RGB", size))).shape == (size[1], size[0], 3)
    assert image.from_array(np.zeros((size[1], size[0], 3), dtype=np.uint8)).data.shape == (size[1], size[0], 3)


def test_h101_text_chunks_that_inflate_do_no_harm():
    bomb = zlib.compress(bytes(64 << 20), 9)
    body = b"zTXt" + b"a\0\0" + bomb
    extra = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    tracemalloc.start()
    try:
        decoded = decode(png(2, 2, b"\0" + bytes(6) + b"\0" + bytes(6), extra=extra))
        assert decoded.shape == (2, 2, 3)
    except MediaError:
        pass
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()


def test_h114_indices_beyond_the_palette():
    picture = Image.new("P", (4, 4), 200)
    picture.putpalette([1, 2, 3] * 4)
    assert decode(encode(picture)).shape == (4, 4, 3)


def test_h118_the_librarys_guards_are_untouched():
    assert Image.MAX_IMAGE_PIXELS == 89_478_485


def test_h113_digests_tell_shapes_and_modes_of_arrival_apart():
    flat = np.arange(30 * 100 * 3, dtype=np.uint32).astype(np.uint8)
    tall, wide = image.from_array(flat.reshape(100, 30, 3)), image.from_array(flat.reshape(30, 100, 3))
    assert tall.digest != wide.digest
    assert tall.digest == image.from_array(flat.reshape(100, 30, 3)).digest
    data = encode(Image.fromarray(PIXELS))
    assert image.from_bytes(data, "", LIMITS).digest == image.from_bytes(data, "other", LIMITS).digest


def test_arrays():
    grey = PIXELS[:, :, 0]
    np.testing.assert_array_equal(image.from_array(grey).data, grey[:, :, None].repeat(3, 2))
    np.testing.assert_array_equal(image.from_array(grey[:, :, None]).data, grey[:, :, None].repeat(3, 2))
    clear = np.dstack([PIXELS, np.zeros_like(grey)])
    assert (image.from_array(clear).data == 255).all()
    for wrong in (PIXELS.astype(np.float32), PIXELS[None], PIXELS[:, :, :2], np.zeros((0, 3, 3), dtype=np.uint8)):
        with pytest.raises(MediaError):
            image.from_array(wrong, "p")
    with pytest.raises(TooLargeError):
        image.from_array(PIXELS, "p", replace(LIMITS, max_pixels=100))


@pytest.mark.parametrize(
    ("mode", "pixel", "seen"),
    [
        ("RGBA", (255, 0, 0, 128), [(255, 127, 127), (128, 0, 0), (128, 0, 127)]),
        ("RGBA", (10, 20, 30, 0), [(255, 255, 255), (0, 0, 0), (0, 0, 255)]),
        ("RGBA", (0, 0, 0, 127), [(128, 128, 128), (0, 0, 0), (0, 0, 128)]),
        ("RGB", (10, 20, 30), [(10, 20, 30)] * 3),
        ("CMYK", (0, 128, 255, 10), [(245, 122, 0)] * 3),
    ],
)
def test_what_stands_behind_transparent_pictures(mode: str, pixel: tuple[int, ...], seen: list[tuple[int, ...]]):
    """S003-07, S003-25: from a file and from PIL alike."""
    picture = Image.new(mode, (2, 2), pixel)
    out = io.BytesIO()
    picture.save(out, "TIFF")
    digests = set()
    for background, expected in zip([None, [0, 0, 0], (0, 0, 255)], seen, strict=True):
        options = {} if background is None else {"rgba_background_color": background}
        from_file = image.from_bytes(out.getvalue(), "p", MediaLimits(), options)
        assert tuple(from_file.data[0, 0]) == expected
        assert tuple(image.from_pil(picture, "p", options=options).data[0, 0]) == expected
        assert not from_file.options
        digests.add(from_file.digest)
    assert len(digests) == 3


@pytest.mark.parametrize("color", [[256, 0, 0], [0, 0], "red", [0.5, 0, 0], [True, 0, 0]])
def test_backgrounds_are_three_integers(color: object):
    with pytest.raises(RequestError, match=r"^rgba_background_color must be a list or tuple of 3 integers"):
        image.from_pil(Image.new("RGBA", (2, 2)), options={"rgba_background_color": color})
