"""Where lines begin in the snippets of seed 004: its page has lost most of the breaks between them.

Of each snippet: what stands before and behind it in the document, and the beginnings of the lines that lost theirs, in
order, indented as they must be.
"""

from __future__ import annotations

_OPEN = """
model = AutoModel
    attn_impl
"""
_ASKED = """
answer = model
    msgs=msgs
    tokenizer=
"""
ONE = f"""
torch.manual_seed
{_OPEN}
image = Image
enable_thinking=False
stream=True #
# First round
{_ASKED}
    enable_thinking=
    stream=True
generated_text = ""
for new_text
    generated_text +=
    print(new_text
"""
TWO = f"""
{_OPEN}
image1 = Image
msgs = [
{_ASKED}
"""
SHOTS = f"""
{_OPEN}
question = "production
msgs = [
    {{'role': 'user', 'content': [image1
    {{'role': 'user', 'content': [image2
    {{'role': 'user', 'content': [image_test
{_ASKED}
"""
VIDEO = f"""
import torch
{_OPEN}
MAX_NUM_FRAMES=
def map_to_nearest_scale
    tree =
    _, indices
    return np
def group_array
    return [arr
def encode_video
    def uniform_sample
        gap =
        idxs =
        return [l[i]
    vr = Video
    fps = vr
    video_duration =
    if choose_fps
        packing_nums = 1
        choose_frames =
    else:
        packing_nums = math
        if packing_nums
            choose_frames =
        else:
            choose_frames =
            packing_nums = MAX
    frame_idx = [i
    frame_idx = np
    if force_packing
        packing_nums = min
    print(video_path
    print(f'get
    frames = vr
    frame_idx_ts =
    scale = np
    frame_ts_id = map
    frame_ts_id = frame
    assert len
    frames = [Image
    frame_ts_id_group =
    return frames
video_path=
question =
{_ASKED}
    use_image_id
    max_slice
    temporal_ids=
"""
SNIPPETS = {
    "one": ("1、单图输入示例\n", "\n测试图片", ONE),
    "two": ("2、多图输入示例\n", "\n测试图片", TWO),
    "shots": ("3、少样本学习示例\n", "\n测试图片", SHOTS),
    "video": ("pip install decord\n", "\n测试视频", VIDEO),
}


def broken(source: str, layout: str) -> str:
    """The snippet with breaks where the layout has them, and nothing else changed."""
    restored, at = "", 0
    for written in filter(None, map(str.rstrip, layout.splitlines())):
        begins = written.lstrip()
        found = source.index(begins, at + 1)
        line = source[at:found].rstrip(" ")
        restored += line + ("" if line.endswith("\n") else "\n") + written[: -len(begins)]
        at = found
    restored += source[at:]
    assert "".join(restored.split()) == "".join(source.split())
    return restored
