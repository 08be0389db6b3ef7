"""What is asked."""

import io
import json

import av
import pytest
from PIL import Image

from sensorium.bench.datasets import Dataset
from sensorium.errors import ConfigError


def by_letters(text: str) -> int:
    """A tokenizer that knows two letters at a time."""
    return -(-len(text) // 2)


def test_random_texts_have_the_length_asked_for_and_differ():
    asks = Dataset(num_prompts=20, input_len=50, output_len=7, seed=4).load(by_letters)
    assert len({ask.text[:20] for ask in asks}) == 20
    assert all(abs(by_letters(ask.text) - 50) <= 3 and ask.max_tokens == 7 for ask in asks)
    assert asks == Dataset(num_prompts=20, input_len=50, output_len=7, seed=4).load(by_letters)


def test_lengths_vary_within_the_ratio():
    asks = Dataset(num_prompts=60, input_len=20, output_len=100, range_ratio=0.5).load(by_letters)
    lengths = {ask.max_tokens for ask in asks}
    assert 50 <= min(lengths) < 75 < 125 < max(lengths) <= 150


def test_random_media_have_the_sizes_of_their_buckets():
    buckets = {"(32, 64, 1)": 0.5, "(48, 32, 4)": 0.5}
    asks = Dataset("random-mm", num_prompts=12, input_len=4, items=2, buckets=buckets).load(by_letters)
    items = [item for ask in asks for item in ask.media]
    assert len(items) == 24
    assert len({item.data for item in items}) == 24
    assert {item.modality for item in items} == {"image", "video"}
    for item in items:
        if item.modality == "image":
            assert Image.open(io.BytesIO(item.data)).size == (64, 32)
        else:
            with av.open(io.BytesIO(item.data)) as file:
                frames = list(file.decode(video=0))
            assert (len(frames), frames[0].width, frames[0].height) == (4, 32, 48)


def test_a_file_of_prompts(tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "one", "output_tokens": 5}\n\n{"prompt": "two", "more": 1}\n{"prompt": "three"}\n')
    asks = Dataset("custom", file, num_prompts=2, output_len=9).load(by_letters)
    assert [(ask.text, ask.max_tokens) for ask in asks] == [("one", 5), ("two", 9)]
    asks = Dataset("custom", file, own_output_len=3).load(by_letters)
    assert [ask.max_tokens for ask in asks] == [3, 3, 3]


def test_conversations_ask_for_answers_as_long_as_they_have(tmp_path):
    turns = [
        {"from": "human", "value": "How?"},
        {"from": "gpt", "value": "So and so."},
        {"from": "human", "value": "?"},
    ]
    file = tmp_path / "shared.json"
    entries = [{"id": "1", "conversations": turns}, {"id": "2", "conversations": turns[:1]}, {"id": "3"}, 4]
    file.write_text(json.dumps(entries))
    (ask,) = Dataset("sharegpt", file).load(by_letters)
    assert (ask.text, ask.max_tokens) == ("How?", 5)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda file: Dataset("custom"), "--dataset-path"),
        (lambda file: Dataset(range_ratio=1.5), "random_range_ratio"),
        (lambda file: Dataset("custom", file / "none").load(by_letters), "no file"),
        (lambda file: Dataset("custom", _written(file, "[]")).load(by_letters), "line 1"),
        (lambda file: Dataset("custom", _written(file, "{")).load(by_letters), "not JSON"),
        (lambda file: Dataset("custom", _written(file, "")).load(by_letters), "no request"),
        (lambda file: Dataset("sharegpt", _written(file, "{}")).load(by_letters), "no list"),
        (lambda file: Dataset("random-mm", buckets={"big": 1}).load(by_letters), "'big'"),
        (lambda file: Dataset("random-mm", buckets={"(9, 9, 1)": 0}).load(by_letters), "add up to 0"),
    ],
)
def test_what_cannot_be_asked_is_refused(make, said, tmp_path):
    with pytest.raises(ConfigError, match=said):
        make(tmp_path)


def _written(folder, text):
    (folder / "file").write_text(text)
    return folder / "file"
