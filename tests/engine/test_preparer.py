"""The whole way from parts to a prompt: limits, uuids, what the cache answers and to whom, and embeddings."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
import torch
from media.clips import pcm, video_file, wav
from PIL import Image

from sensorium.config import EngineConfig
from sensorium.engine.checkpoint import read_config, resolve_folder
from sensorium.engine.prepare import Preparer
from sensorium.errors import CacheMissError, ConfigError, MediaError, RequestError, TooLargeError, UnsupportedError
from sensorium.live_media import read_media
from sensorium.media import embeds
from sensorium.models.base import Processor
from sensorium.models.registry import load_processor
from sensorium.types import ChatOptions, Embeds, MediaRef, Message, Prompt

OPTIONS = ChatOptions()
CONFIG = EngineConfig(media_threads=1, video_decode_workers=1)


@pytest.fixture(scope="module")
def processor() -> Processor:
    folder = resolve_folder("")
    return load_processor(folder, read_config(folder))


@contextmanager
def preparer(processor: Processor, **settings: Any) -> Iterator[Preparer]:
    made = Preparer(processor, ("image", "audio", "video"), replace(CONFIG, **settings))
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def shared(processor: Processor) -> Iterator[Preparer]:
    with preparer(processor) as made:
        yield made


def png(color: str, size: tuple[int, int] = (64, 48)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, color).save(out, "PNG")
    return out.getvalue()


def ask(preparer: Preparer, *parts: Any, options: ChatOptions = OPTIONS) -> Prompt:
    return preparer.chat([Message("user", parts)], options).result(30)


def keys(prompt: Prompt) -> list[bytes]:
    return [item.key for item in prompt.media]


def test_equal_pictures_are_decoded_once(shared: Preparer):
    before = shared.stats()
    first = ask(shared, MediaRef("image", png("red")), MediaRef("image", png("red")))
    second = ask(shared, MediaRef("image", png("red")))
    after = shared.stats()
    assert (len(first.spans), len(first.media)) == (2, 1)
    assert keys(first) == keys(second)
    assert after.pool.items - before.pool.items == 1
    assert (after.cache.queries - before.cache.queries, after.cache.hits - before.cache.hits) == (2, 1)


def test_a_uuid_stands_for_what_came_with_it(shared: Preparer):
    given = ask(shared, MediaRef("image", png("green"), uuid="https://example.org/a.png?x=1"))
    again = ask(shared, MediaRef("image", None, uuid="https://example.org/a.png?x=1"))
    other = ask(shared, MediaRef("image", png("blue"), uuid="https://example.org/a.png?x=1"))
    assert keys(given) == keys(again) == keys(other)


def test_a_uuid_is_the_callers_own(shared: Preparer):
    """H-184, H-185: another namespace neither reads nor changes it."""
    bob = ChatOptions(namespace="bob")
    anns = ask(shared, MediaRef("image", png("white"), uuid="shared"), options=ChatOptions(namespace="ann"))
    with pytest.raises(CacheMissError):
        ask(shared, MediaRef("image", None, uuid="shared"), options=bob)
    bobs = ask(shared, MediaRef("image", png("black"), uuid="shared"), options=bob)
    assert keys(bobs) != keys(anns)
    again = ask(shared, MediaRef("image", None, uuid="shared"), options=ChatOptions(namespace="ann"))
    assert keys(again) == keys(anns)


def test_options_are_part_of_what_a_uuid_names(shared: Preparer):
    ask(shared, MediaRef("image", png("cyan"), uuid="with options"))
    two_slices = ChatOptions(media_kwargs={"max_slice_nums": 2})
    with pytest.raises(CacheMissError):
        ask(shared, MediaRef("image", None, uuid="with options"), options=two_slices)


def test_a_miss_says_which(shared: Preparer):
    with pytest.raises(CacheMissError, match=r"^Cache miss for image at index 1 but data is not provided\.") as caught:
        ask(shared, MediaRef("image", png("red")), MediaRef("image", None, "messages[0].content[1]", uuid="nobody's"))
    assert (caught.value.code, caught.value.status) == ("mm_cache_miss", 400)
    assert caught.value.param == "messages[0].content[1]"


def test_without_a_cache_nothing_is_kept(processor: Processor):
    with preparer(processor, mm_processor_cache_gb=0) as made:
        ask(made, MediaRef("image", png("red"), uuid="kept?"))
        assert made.stats().cache.items == 0
        with pytest.raises(CacheMissError, match="disabled"):
            ask(made, MediaRef("image", None, uuid="kept?"))


def test_the_cache_stays_below_its_size(processor: Processor):
    with preparer(processor, mm_processor_cache_gb=1 / 1024) as made:
        for shade in range(6):
            ask(made, MediaRef("image", png(f"#{shade:02x}0000", (448, 448)), uuid=str(shade)))
        stats = made.stats().cache
        assert 0 < stats.bytes <= 1 << 20
        assert stats.items < 6
        ask(made, MediaRef("image", None, uuid="5"))
        with pytest.raises(CacheMissError):
            ask(made, MediaRef("image", None, uuid="0"))


def film(sound: str | None = "aac") -> MediaRef:
    return MediaRef("video", video_file(frames=50, sound=sound), "messages[0].content[0]")


def modalities(prompt: Prompt) -> set[str]:
    return {item.modality for item in prompt.media}


def test_the_sound_of_a_video_is_heard_unless_it_is_switched_off(processor: Processor, shared: Preparer):
    hears, deaf = (ChatOptions(media_kwargs={"use_audio_in_video": value}) for value in (True, False))
    assert modalities(ask(shared, film())) == {"video", "audio"}
    assert modalities(ask(shared, film(), options=hears)) == {"video", "audio"}
    assert modalities(ask(shared, film(), options=deaf)) == {"video"}
    with preparer(processor, mm_processor_kwargs={"use_audio_in_video": False}) as made:
        assert modalities(ask(made, film())) == {"video"}
        assert modalities(ask(made, film(), options=hears)) == {"video", "audio"}


def test_sound_that_is_not_there_is_missed(shared: Preparer):
    hears = ChatOptions(media_kwargs={"use_audio_in_video": True})
    assert modalities(ask(shared, film(None))) == {"video"}
    with pytest.raises(MediaError, match="no sound track") as caught:
        ask(shared, film(None), options=hears)
    assert caught.value.param == "messages[0].content[0]"
    frames = read_media("video", np.zeros((2, 32, 32, 3), np.uint8), "p")
    with pytest.raises(MediaError, match="give the recording as audio"):
        ask(shared, frames, options=hears)
    with pytest.raises(RequestError, match="true or false"):
        ask(shared, film(), options=ChatOptions(media_kwargs={"use_audio_in_video": "yes"}))


def test_minus_one_is_every_frame_and_no_rate(processor: Processor, shared: Preparer):
    def count(made: Preparer, **video: Any) -> int:
        options = ChatOptions(media_io_kwargs={"video": video}, media_kwargs={"use_audio_in_video": False})
        return len(ask(made, film(), options=options).spans)

    assert count(shared, num_frames=-1) == 50
    assert count(shared, fps=-1) == count(shared) == 2
    assert count(shared, num_frames=-1, fps=4) == 8
    assert count(shared, num_frames=5, fps=-1) == 5
    limits = replace(CONFIG.limits, max_video_frames=20)
    with preparer(processor, limits=limits, media_io_kwargs={"video": {"num_frames": -1}}) as made:
        assert count(made) == 20
        assert count(made, fps=-1) == 20
        assert count(made, fps=4) == 8


def test_a_recording_at_hand_is_no_longer_than_a_file_may_be(processor: Processor):
    with preparer(processor, limits=replace(CONFIG.limits, max_audio_s=1.0)) as made:
        assert modalities(ask(made, read_media("audio", np.zeros(16_000, np.float32), "p"))) == {"audio"}
        with pytest.raises(TooLargeError, match="max_audio_s"):
            ask(made, read_media("audio", np.zeros(16_001, np.float32), "p"))


def test_what_a_waiting_caller_has_at_hand_needs_no_other_thread(processor: Processor):
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    picture = [Message("user", (read_media("image", pixels, "p"), "What is this?"))]
    text = [Message("user", ("Hi",))]
    too_long = [Message("user", (read_media("audio", np.zeros(16_001, np.float32), "p"),))]
    with preparer(processor, limits=replace(CONFIG.limits, max_audio_s=1.0)) as made:
        there = set(threading.enumerate())
        done = [made.chat(messages, OPTIONS, here=True) for messages in (picture, picture, text, too_long)]
        assert all(future.done() for future in done)
        assert set(threading.enumerate()) <= there
        assert isinstance(done[3].exception(), TooLargeError)
        first, again, alone = (future.result() for future in done[:3])
        assert first.ids == again.ids
        assert keys(first) == keys(again)
        file = [Message("user", (MediaRef("image", png("red")),))]
        assert made.chat(file, OPTIONS, here=True).done()
        assert made.chat([Message("user", (MediaRef("image", b"x"),))], OPTIONS, here=True).exception()
        assert {thread.name for thread in set(threading.enumerate()) - there} <= {"sensorium-media-watch"}
        assert keys(made.chat(file, OPTIONS, here=True).result()) == keys(made.chat(file, OPTIONS).result(30))
        stats = made.stats()
        assert (stats.cache.queries, stats.cache.hits, stats.totals.items["image"]) == (7, 3, 5)
        assert (stats.pool.items, stats.waiting["media"]) == (2, 0)
        elsewhere = made.chat(picture, OPTIONS).result(30)
        assert (first.ids, keys(first)) == (elsewhere.ids, keys(elsewhere))
        assert alone.ids == made.chat(text, OPTIONS).result(30).ids


@pytest.mark.parametrize("uuid", ["", "x" * 2049, "a\nb", "\x00"])
def test_uuids_are_printable_and_short(shared: Preparer, uuid: str):
    with pytest.raises(MediaError, match="uuid"):
        ask(shared, MediaRef("image", png("red"), uuid=uuid))


@pytest.mark.parametrize("limit", [2, {"count": 2, "width": 512}])
def test_limits_count_the_whole_prompt(processor: Processor, limit: Any):
    picture = MediaRef("image", png("red"))
    with preparer(processor, limit_mm_per_prompt={"image": limit}) as made:
        assert len(ask(made, picture, picture).spans) == 2
        with pytest.raises(RequestError, match=r"^At most 2 image\(s\) may be provided in one prompt\.") as caught:
            made.chat([Message("user", (picture, picture)), Message("user", (picture,))], OPTIONS).result(30)
        assert caught.value.param == "image"


def test_what_a_request_decodes_to_is_bounded(processor: Processor):
    limits = replace(CONFIG.limits, max_request_bytes=100_000)
    with preparer(processor, limits=limits) as made, pytest.raises(TooLargeError, match="max_request_bytes"):
        ask(made, MediaRef("image", png("red", (448, 448))))


@pytest.mark.parametrize(
    "options",
    [{"smell": {}}, {"image": {"rgba_background_color": "red"}}, {"image": {"colour": 1}}, {"video": {"num_frames": 0}},
     {"audio": {"loudness": 1}}],
)  # fmt: skip
def test_loading_options_are_checked_at_start(processor: Processor, options: Any):
    with pytest.raises(ConfigError, match="media_io_kwargs"):
        Preparer(processor, ("image",), replace(CONFIG, media_io_kwargs=options))


def test_a_background_set_for_the_server(processor: Processor):
    out = io.BytesIO()
    Image.new("RGBA", (64, 48), (0, 0, 0, 0)).save(out, "PNG")
    with preparer(processor, media_io_kwargs={"image": {"rgba_background_color": [0, 0, 0]}}) as made:
        pixels = ask(made, MediaRef("image", out.getvalue())).media[0].arrays["source.0"]
        assert not pixels.any()


class Site(ThreadingHTTPServer):
    """A web site of one picture, which counts its visitors."""

    daemon_threads = True
    seen = 0


class Page(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, Site)
        self.server.seen += 1
        body = png("orange")
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None: ...


def test_equal_addresses_of_a_request_are_fetched_once(processor: Processor):
    limits = replace(CONFIG.limits, allow_private_addresses=True)
    with Site(("127.0.0.1", 0), Page) as site, preparer(processor, limits=limits) as made:
        threading.Thread(target=site.serve_forever, args=(0.01,), daemon=True).start()
        url = f"http://127.0.0.1:{site.server_port}/a.png"
        prompt = ask(made, MediaRef("image", url), MediaRef("image", url, uuid="named"), MediaRef("image", url))
        assert len(prompt.media) == 1
        assert site.seen == 2
        ask(made, MediaRef("image", url, uuid="named"))  # looked up before it is fetched
        assert site.seen == 2
        assert made.stats().fetch.fetched == 2
        site.shutdown()


# ---- embeddings ---------------------------------------------------------------------------------------------------


def safetensors(**tensors: np.ndarray) -> bytes:
    header, body = {}, b""
    for name, array in tensors.items():
        kind = {"float32": "F32", "int64": "I64", "float16": "F16"}[array.dtype.name]
        offsets = [len(body), len(body) + array.nbytes]
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": offsets}
        body += array.tobytes()
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def npy(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array, allow_pickle=True)
    return out.getvalue()


def torch_file(value: Any) -> bytes:
    out = io.BytesIO()
    torch.save(value, out)
    return out.getvalue()


@pytest.fixture(scope="module")
def rows(shared: Preparer) -> np.ndarray:
    count = ask(shared, MediaRef("image", png("red"))).media[0].rows
    width = shared._processor._width  # pyright: ignore
    return np.random.default_rng(1).normal(size=(count, width)).astype(np.float32)


SIZE = np.array([64, 48])


@pytest.mark.parametrize(
    "form", ["safetensors", "npy", pytest.param("torch", marks=pytest.mark.slow), "mapping", "array", "base64"]
)
def test_every_form_of_embeddings_gives_the_same_prompt(shared: Preparer, rows: np.ndarray, form: str):
    whole = {"image_embeds": rows, "image_sizes": SIZE}
    sources: dict[str, Any] = {
        "safetensors": safetensors(image_embeds=rows, image_sizes=SIZE),
        "npy": {"image_embeds": npy(rows), "image_sizes": npy(SIZE)},
        "torch": torch_file({name: torch.from_numpy(array) for name, array in whole.items()}),
        "mapping": {"image_embeds": npy(rows[None]), "image_sizes": [64, 48]},
        "base64": base64.b64encode(safetensors(image_embeds=rows, image_sizes=SIZE)).decode(),
    }
    if form == "array":
        part: Any = embeds.from_arrays("image", whole)
    else:
        part = MediaRef("image", sources[form], form="embeds")
    prompt = ask(shared, "Look: ", part)
    picture = ask(shared, "Look: ", MediaRef("image", png("red")))
    assert prompt.ids == picture.ids
    assert prompt.spans == picture.spans
    np.testing.assert_array_equal(prompt.media[0].arrays["embeds"], rows)


class Gadget:
    def __reduce__(self) -> Any:
        return (print, ("unpickled",))


def broken(rows: np.ndarray) -> dict[str, tuple[Any, str]]:
    poison = rows.copy()
    poison[0, 0] = np.nan
    odd = npy(np.zeros(3, dtype=np.float32)).replace(b"(3,)", b"(3.)")
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000, 1000000), }"
    liar = b"\x93NUMPY\x01\x00" + (len(header) + 1).to_bytes(2, "little") + header + b"\n" + bytes(12)
    sparse = torch.sparse_coo_tensor(torch.zeros(2, 1, dtype=torch.long), torch.ones(1), (2, 2), check_invariants=True)
    given = {"image_sizes": SIZE.tolist()}
    return {
        "H-158 objects": ({"image_embeds": npy(np.array([Gadget()], dtype=object)), **given}, "tensor file|numbers"),
        "H-158 pickle": (torch_file(Gadget()), "tensor file"),
        "H-159": ({"image_embeds": liar, **given}, "header"),
        "H-160 header": ({"image_embeds": odd, **given}, "tensor file|header"),
        "H-161": (torch_file({"image_embeds": sparse, "image_sizes": torch.from_numpy(SIZE)}), "dense"),
        "H-162 width": ({"image_embeds": npy(rows[:, 1:]), **given}, "hidden size"),
        "H-162 rows": ({"image_embeds": npy(rows[1:]), **given}, f"needs {len(rows)}"),
        "H-162 rank": ({"image_embeds": npy(rows[None, None]), **given}, "shape"),
        "H-163": ({"image_embeds": npy(poison), **given}, "finite"),
        "H-164 complex": ({"image_embeds": npy(rows.astype(np.complex64)), **given}, "numbers"),
        "H-165 length": (safetensors(image_embeds=rows, image_sizes=SIZE)[:-1], "tensor file|header"),
        "H-165 trailing": (safetensors(image_embeds=rows, image_sizes=SIZE) + b"x", "behind"),
        "H-169 sizes": ({"image_embeds": npy(rows), "image_sizes": [-1, 48]}, "image_sizes"),
        "names": ({"image_embeds": npy(rows), "image_grid_thw": [1, 2, 2]}, "image_sizes"),
        "nothing": (b"", "tensor file"),
        "base64": ("not base64!", "base64"),
    }


NAMES = list(broken(np.zeros((2, 4), dtype=np.float32)))


# A worker that reads torch's format imports torch, which takes long beside other tests.
IMPORTS_TORCH = ("H-158 pickle", "H-161")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in IMPORTS_TORCH else name for name in NAMES]
)
def test_embeddings_that_do_not_fit_are_refused(shared: Preparer, rows: np.ndarray, name: str):
    source, says = broken(rows)[name]
    with pytest.raises(MediaError, match=says) as caught:
        ask(shared, MediaRef("image", source, "messages[0].content[0]", form="embeds"))
    assert caught.value.param == "messages[0].content[0]"


def test_embeddings_are_refused_where_they_are_off(processor: Processor, rows: np.ndarray):
    """H-157."""
    given = embeds.from_arrays("image", {"image_embeds": rows, "image_sizes": SIZE})
    says = "You must set `--enable-mm-embeds` to input `image_embeds`"
    with preparer(processor, enable_mm_embeds=False) as made, pytest.raises(UnsupportedError, match=says):
        ask(made, given)


def test_a_limit_of_zero_leaves_embeddings(processor: Processor, rows: np.ndarray):
    given: Embeds = embeds.from_arrays("image", {"image_embeds": rows, "image_sizes": SIZE})
    with preparer(processor, enable_mm_embeds=True, limit_mm_per_prompt={"image": 0}) as made:
        assert ask(made, given).media[0].rows == len(rows)
        with pytest.raises(RequestError, match=r"At most 0 image"):
            ask(made, MediaRef("image", png("red")))


def test_short_sounds_at_hand_need_no_worker_where_the_device_computes_their_features():
    folder = resolve_folder("")
    processor = load_processor(folder, read_config(folder))
    processor.scales_on_device = True
    sound = [Message("user", (MediaRef("audio", wav(pcm(np.sin(np.arange(24_000) / 20)), 24_000)), "What is this?"))]
    with preparer(processor, limits=replace(CONFIG.limits, max_audio_s=2.0)) as made:
        here = made.chat(sound, OPTIONS, here=True).result()
        assert (made.stats().pool.items, made.stats().totals.items["audio"]) == (0, 1)
        made.reset_cache()
        elsewhere = made.chat(sound, OPTIONS).result(30)
        assert (here.ids, keys(here)) == (elsewhere.ids, keys(elsewhere))
        for name, array in here.media[0].arrays.items():
            assert np.array_equal(array, elsewhere.media[0].arrays[name])
        for data, wrong in ((wav(bytes(100_000), 24_000), "longer than 2 seconds"), (b"RIFF1234WAVE", "damaged")):
            refused = made.chat([Message("user", (MediaRef("audio", data),))], OPTIONS, here=True).exception()
            assert isinstance(refused, MediaError | TooLargeError)
            assert wrong in str(refused)


def test_many_callers_that_wait_all_get_their_own(processor: Processor):
    with preparer(processor, media_threads=2) as made, ThreadPoolExecutor(8) as callers:
        asked = [[Message("user", (MediaRef("image", png(color)), color))] for color in ("red", "green", "blue") * 8]
        found = list(callers.map(lambda messages: made.chat(messages, OPTIONS, here=True).result(), asked))
        assert [keys(prompt) for prompt in found] == [keys(made.chat(one, OPTIONS).result(30)) for one in asked]
        assert len({prompt.ids for prompt in found}) == 3
