"""The MiniCPM family against stored tensors of the published code (data only, tiny random checkpoints)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from minicpm_golden import (
    ROOT,
    Cache,
    audio_item,
    clip,
    greedy,
    image_item,
    load_tiny,
    mel_item,
    needs_golden,
    packed_item,
    patches_of,
    picture,
    prompt_embeddings,
    read_json,
    read_tensors,
    run_packed,
)

from sensorium.models.minicpm_pixels import slice_sizes
from sensorium.models.parts.siglip import patch_inputs
from sensorium.types import MediaItem

pytestmark = needs_golden

# The reference lets a shorter clip of a padded batch see padding frames; we encode it as if it were alone.
ATTENDS_TO_PADDING = {"two_audios_two_turns"}


def cases(name: str, key: str = "cases") -> list[dict]:
    """Cases of one sample each; the beam searches check their prompt only."""
    if not ROOT.is_dir():
        return []
    return [case for case in read_json(name)[key] if "messages_batch" not in case]


def named(case: dict) -> str:
    return case["name"]


@pytest.fixture(scope="module")
def o45():
    return load_tiny("tiny")


@pytest.fixture(scope="module")
def v45():
    return load_tiny("v45/tiny")


@pytest.fixture(scope="module")
def v26():
    return load_tiny("v26/tiny")


@pytest.fixture(autouse=True)
def _inference():
    with torch.inference_mode():
        yield


def close(ours: torch.Tensor, theirs: np.ndarray, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(ours, torch.from_numpy(theirs), rtol=tolerance, atol=tolerance)


# ---- vision -------------------------------------------------------------------------------------------------------


def vision_items() -> list:
    shapes = read_json("images/images.json")["images"]
    return [image_item(picture(name, shapes), 3) for name in read_json("vision/vision.json")["images"]]


def test_pixels_are_normalised_as_the_reference_does():
    item = image_item(picture("small320x240", read_json("images/images.json")["images"]), 9)
    theirs = read_tensors("preprocess/one_image_full.safetensors")["pixel_values"]
    ours = patch_inputs(patches_of(item)[:40], torch.float32)
    close(ours.view(40, 3, 14, 14).permute(1, 2, 0, 3).reshape(3, 14, 560), theirs, 1e-5)


def test_position_buckets(o45):
    buckets = read_json("preprocess/position_buckets.json")["buckets"]
    sizes = torch.tensor([[n, 3] for n in range(1, 101)])
    ids = o45.vision.position_ids(sizes, 300)
    for n in range(1, 101):
        expected = np.add.outer(np.array(buckets[str(n)]) * 70, buckets["3"]).reshape(-1)
        assert np.array_equal(ids[n - 1, : 3 * n], expected)
        assert not ids[n - 1, 3 * n :].any()


def test_vision_tower(o45):
    golden = read_tensors("vision/vision.safetensors")
    for item, number in zip(vision_items(), (0, 1, 4), strict=True):
        sizes = torch.from_numpy(slice_sizes(item.arrays))[:1]
        patches = patches_of(item)[None, : int(sizes.prod())]
        rows = o45.vision(patch_inputs(patches, torch.float32), sizes)[0]
        close(torch.cat((rows[:24], rows[-24:])), golden["vpm_rows"][number])
        close(rows.mean(0), golden["vpm_mean_over_valid"][number])


def test_resampler_rows_of_slices_of_three_pictures(o45):
    golden = read_tensors("vision/vision.safetensors")
    items = vision_items()
    together = o45.encode("image", items)
    close(torch.cat(together).view(5, 64, -1), golden["resampler_out"])
    for item, rows in zip(items, together, strict=True):
        torch.testing.assert_close(o45.encode("image", [item])[0], rows, rtol=1e-4, atol=1e-5)
    positions = o45.resampler.positions(torch.tensor([[5, 7]]), 35).view(5, 7, -1)
    close(positions, golden["pos_embed_crop_h5w7"], 1e-6)


def test_last_vision_layer_can_be_dropped():
    model = load_tiny("tiny", drop_vision_last_layer=True)
    golden = read_tensors("vision/vision.safetensors")["resampler_out_drop_last_layer"]
    close(torch.cat(model.encode("image", vision_items())).view(5, 64, -1), golden)


def test_temporal_resampler(v45):
    golden = read_tensors("v45/v45.safetensors")
    x, sizes = torch.from_numpy(golden["unit.x"]), torch.from_numpy(golden["unit.tgt_sizes"]).long()
    times = torch.tensor([3, 8, 8, 11, -1])
    groups = torch.tensor([[0, 1], [2, 3], [4, -1]])
    close(v45.resampler(x, sizes, times, groups), golden["unit.out_temporal"])
    close(v45.resampler(x, sizes), golden["unit.out_no_temporal"])


# ---- audio --------------------------------------------------------------------------------------------------------


def test_clips_alone_and_together(o45):
    golden = read_tensors("audio/offline.safetensors")
    names = ("0.3s", "1.0s", "7.3s")
    items = [mel_item([golden[f"mel_{name}"][0]]) for name in names]
    for item, together, name in zip(items, o45.encode("audio", items), names, strict=True):
        close(together, golden[f"embeds_chunk1s_{name}"])
        close(o45.encode("audio", [item])[0], golden[f"embeds_chunk1s_{name}"])


def test_recording_of_two_clips_and_merged_pieces(o45):
    golden = read_tensors("audio/offline.safetensors")
    long, merged = o45.encode(
        "audio", [audio_item(clip("wave_31.0s", 0, 496000)), audio_item(clip("wave_7.3s", 0, 48000))]
    )
    close(long, golden["embeds_chunk1s_31.0s"])
    close(merged, golden["merged_3x1s"])


def test_full_attention():
    model = load_tiny("tiny", audio_chunk_length=-1)
    golden = read_tensors("audio/offline.safetensors")
    items = [mel_item([golden[f"mel_{name}"][0]]) for name in ("0.3s", "7.3s")]
    for rows, name in zip(model.encode("audio", items), ("0.3s", "7.3s"), strict=True):
        close(rows, golden[f"embeds_fullattn_{name}"])
    long = model.encode("audio", [audio_item(clip("wave_31.0s", 0, 496000))])[0]
    # The last row stored is of a clip padded in its batch, where the reference attends to padding as well.
    close(long[:300:10], golden["embeds_fullattn_31.0s_every10"][:30])


def live(mel: np.ndarray, stream: str, before: int = 0, after: int = 0) -> MediaItem:
    context = np.array([before, after], dtype=np.int32)
    return MediaItem("audio", b"", 10, {"mel": mel, "context": context}, stream)


@pytest.mark.parametrize("name", ["half", "duplex"])
def test_live_sound(o45, name):
    golden = read_tensors("audio/streaming.safetensors")
    for number in range(len([key for key in golden if key.startswith(name) and key.endswith("mel")])):
        mel = golden[f"{name}_{number:02d}_mel"]
        before, after = (0, 0) if name == "half" else (2 * (number > 0), 2)
        items = [live(np.ascontiguousarray(mel[:, ::-1]), "other", before, after), live(mel, name, before, after)]
        # The other stream begins later and is as long as another: neither changes this one.
        close(o45.encode("audio", items[number < 2 :])[-1], golden[f"{name}_{number:02d}_embeds"])
    for stream in (name, "other"):
        o45.drop_stream(stream)


def test_live_sound_of_many_streams_is_that_of_each(o45):
    golden = read_tensors("audio/streaming.safetensors")
    mels = [golden[f"half_{number:02d}_mel"] for number in range(7)]
    alone: dict[str, list[torch.Tensor]] = {}
    for shift, stream in enumerate(("a", "b", "c")):
        alone[stream] = [o45.encode("audio", [live(mel, stream)])[0] for mel in mels[shift:]]
        o45.drop_stream(stream)
    together: dict[str, list[torch.Tensor]] = {"a": [], "b": [], "c": []}
    for step in range(7):
        # Each begins a second after the one before.
        items = [live(mels[step], stream) for late, stream in enumerate(("a", "b", "c")) if step >= late]
        for item, rows in zip(items, o45.encode("audio", items), strict=True):
            together[item.stream].append(rows)
    for stream, rows in together.items():
        assert len(rows) == len(alone[stream])
        for mine, theirs in zip(rows, alone[stream], strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)
        o45.drop_stream(stream)


def test_live_sound_restarts_when_the_table_is_full(o45):
    mel = read_tensors("audio/streaming.safetensors")["half_00_mel"]
    items = [live(mel, "long") for _ in range(31)]
    rows = o45.encode("audio", items)
    torch.testing.assert_close(rows[29], rows[0])
    torch.testing.assert_close(rows[30], rows[1])
    o45.drop_stream("long")


# ---- whole prompts ------------------------------------------------------------------------------------------------


def o45_embeddings(model, case) -> torch.Tensor:
    shapes = read_json("images/images.json")["images"]
    images, sounds = [], []
    for message in case["messages"]:
        parts = [part["audio"] for part in message["content"] if "audio" in part]
        if parts:
            sounds.append(
                audio_item(np.concatenate([clip(part["wave"], part["start"], part["end"]) for part in parts]))
            )
        for part in message["content"]:
            if "image" in part:
                images.append(image_item(picture(part["image"], shapes), case["chat_kwargs"].get("max_slice_nums", 9)))
    bounds = [*case["image_bound"], *case["audio_bounds"]]
    rows = [*(model.encode("image", images) if images else []), *(model.encode("audio", sounds) if sounds else [])]
    return prompt_embeddings(
        model, case["input_ids"], bounds, torch.cat(rows) if rows else model.embed(torch.empty(0).long())
    )


@pytest.mark.parametrize("case", cases("chat/chat.json"), ids=named)
def test_o45_chat(o45, case):
    golden = read_tensors("chat/chat.safetensors")
    name = case["name"]
    x = o45_embeddings(o45, case)
    if f"{name}.inputs_embeds" in golden:
        close(x, golden[f"{name}.inputs_embeds"])
        hidden = run_packed(o45, x)
        close(hidden[::8], golden[f"{name}.last_hidden_every8"], 1e-3)
        close(o45.logits(hidden)[::8], golden[f"{name}.all_logits_every8"], 1e-3)
    if f"{name}.step_logits" not in golden:
        close(o45.logits(run_packed(o45, x)[-1]), golden[f"{name}.last_logits"], 1e-3)
        return
    steps = golden[f"{name}.step_logits"]
    tokens, logits = greedy(o45, x, len(steps), case["generation_kwargs"]["repetition_penalty"])
    assert tokens == case["generated_ids"]
    if name not in ATTENDS_TO_PADDING:
        close(logits, steps, 1e-3)


def visual_embeddings(model, case, shapes, resampled=None) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Prompt embeddings of a V case without the ids that the reference masks out (every lone `!`, id 0)."""
    masked = set(case["attention_mask_zeros"])
    ids = [token for at, token in enumerate(case["input_ids"]) if at not in masked]
    if not case["image_bound"]:
        return model.embed(torch.tensor(ids)), None
    limit = case["chat_kwargs"].get("max_slice_nums", 9)
    if case["name"].startswith("video"):
        frames = [
            image_item(picture("frame", {"frame": shapes["frame426x240"] | {"seed": 50 + i}}), 1)
            for i in range(len(case["tgt_sizes"]))
        ]
        items = [packed_item(frames, case["temporal_ids"])]
    else:
        names = [part["image"] for part in case.get("content", [{"image": "small320x240"}]) if "image" in part]
        items = [image_item(picture(name, shapes), limit) for name in names]
    rows = torch.cat(model.encode("image", items))
    return prompt_embeddings(model, ids, case["image_bound"], rows), rows


def check_visual(model, case, shapes, golden) -> None:
    x, rows = visual_embeddings(model, case, shapes)
    if rows is not None:
        theirs = golden[f"{case['name']}.resampler_out"]
        close(rows.view(theirs.shape), theirs)
    settings = case["generation_kwargs"]
    tokens, logits = greedy(model, x, len(case["generated_ids"]), settings["repetition_penalty"])
    close(logits[0], golden[f"{case['name']}.last_logits"], 1e-3)
    if settings["num_beams"] == 1:
        assert tokens == case["generated_ids"]


@pytest.mark.parametrize("case", cases("v45/v45.json", "tiny_cases"), ids=named)
def test_v45(v45, case):
    check_visual(v45, case, read_json("v45/v45.json")["images"], read_tensors("v45/v45.safetensors"))


@pytest.mark.parametrize("case", cases("v26/v26.json"), ids=named)
def test_v26(v26, case):
    check_visual(v26, case, read_json("v26/v26.json")["images"], read_tensors("v26/v26.safetensors"))


def test_prefill_in_chunks_and_token_by_token_equal_one_pass(o45):
    x = torch.from_numpy(read_tensors("chat/chat.safetensors")["mixed.inputs_embeds"])[:150]
    whole = run_packed(o45, x)
    for cuts in ([64, 1, 37, 48], [1] * 150):
        cache = Cache(o45, len(x))
        parts = torch.cat([cache.run(part) for part in x.split(cuts)])
        torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-5)
