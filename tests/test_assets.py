"""Sample media: downloaded once, from wherever the environment says, and a clear answer where there is no network."""

from __future__ import annotations

import base64
import io
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import av
import numpy as np
import pytest
import torch
from PIL import Image

from sensorium.assets.audio import AudioAsset
from sensorium.assets.image import ImageAsset
from sensorium.assets.video import VideoAsset
from sensorium.errors import NotFoundError
from sensorium.utils.serial_utils import tensor2base64


class Counting(SimpleHTTPRequestHandler):
    """Serves a folder and keeps what was asked for."""

    asked: list[str]

    def do_GET(self):
        self.asked.append(self.path)
        super().do_GET()

    def log_message(self, *args):
        pass


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A server of assets, an empty cache, and the list of requests."""
    folder, asked = tmp_path / "public", []
    for name in ("vision_model_images", "multimodal_asset"):
        (folder / name).mkdir(parents=True)
    handler = type("Handler", (Counting,), {"asked": asked})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("SENSORIUM_ASSETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("VLLM_ASSETS_URL", f"http://127.0.0.1:{server.server_port}/")
    yield folder, asked
    server.shutdown()
    thread.join()
    server.server_close()


def ogg(path, rate=48000):
    samples = np.sin(np.arange(rate) / 20).astype(np.float32)[None]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libopus", rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
        frame.sample_rate = rate
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)


def mp4(path, count=10):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for level in range(count):
            picture = np.full((48, 64, 3), level * 20, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def test_a_picture_is_downloaded_once(published):
    folder, asked = published
    Image.new("RGB", (8, 6), "red").save(folder / "vision_model_images" / "stop_sign.jpg")
    torch.save(torch.ones(4, 8), folder / "vision_model_images" / "stop_sign.pt")
    assert ImageAsset("stop_sign").pil_image.size == (8, 6)
    assert ImageAsset("stop_sign").read_bytes("jpg")[:2] == b"\xff\xd8"
    assert ImageAsset("stop_sign").image_embeds.shape == (4, 8)
    assert asked == ["/vision_model_images/stop_sign.jpg", "/vision_model_images/stop_sign.pt"]


def test_a_recording(published):
    folder, _ = published
    ogg(folder / "multimodal_asset" / "winning_call.ogg")
    asset = AudioAsset("winning_call")
    samples, rate = asset.audio_and_sample_rate
    assert (rate, samples.dtype, samples.ndim) == (48000, np.float32, 1)
    assert abs(len(samples) - 48000) < 4000
    assert asset.url.endswith("/multimodal_asset/winning_call.ogg")
    assert asset.get_local_path().is_file()


def test_a_video(published):
    folder, _ = published
    mp4(folder / "sample_demo_1.mp4")
    assert VideoAsset().np_ndarrays.shape == (10, 48, 64, 3)
    few = VideoAsset(num_frames=4)
    assert [image.size for image in few.pil_images] == [(64, 48)] * 4
    assert few.metadata["frames_indices"] == [0, 3, 6, 9]
    assert (few.metadata["fps"], few.metadata["duration"]) == (5.0, 2.0)
    assert len(VideoAsset(fps=2).np_ndarrays) == 4


def test_without_the_file_the_error_says_where_to_put_it(published, tmp_path):
    with pytest.raises(NotFoundError, match=r"put the file at .*cache/absent\.jpg, or set SENSORIUM_ASSETS_URL"):
        _ = ImageAsset("absent").pil_image
    assert not list((tmp_path / "cache").glob("*"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_a_tensor_as_text_keeps_type_and_shape_but_not_what_it_is_a_view_of(dtype):
    whole = torch.arange(60_000).reshape(300, 200).to(dtype)
    text = tensor2base64(whole.T[:5, ::7])
    read = torch.load(io.BytesIO(base64.b64decode(text)), weights_only=True)
    assert read.dtype == dtype
    assert torch.equal(read, whole.T[:5, ::7])
    assert len(text) < 12_000
