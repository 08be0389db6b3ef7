"""The compiled decoder against the same decoder layer by layer, over odd shapes."""

import sys
from functools import partial

import numpy as np
import pytest
import torch

from sensorium.kernels import compiled, select
from sensorium.kernels.cpu_plan import CpuPlan
from sensorium.kernels.reference import PagedPlan
from sensorium.layers.rope_config import RopeConfig
from sensorium.models.loader import init_random_
from sensorium.models.parts.configs import DecoderConfig
from sensorium.models.parts.decoder import Decoder
from sensorium.types import ModelInputs

pytestmark = pytest.mark.skipif(compiled.why_not(16, 16) is not None, reason="numba is not here")
CPU = torch.device("cpu")

SHAPES = {
    "qwen3": {"num_heads": 4, "num_kv_heads": 2, "head_dim": 64, "qk_norm": True},
    "qwen2": {"num_heads": 6, "num_kv_heads": 2, "head_dim": 16, "qkv_bias": True, "tied": True},
    "llama": {"num_heads": 3, "num_kv_heads": 3, "head_dim": 48},
    "wide group": {"num_heads": 11, "num_kv_heads": 1, "head_dim": 32, "num_layers": 1},
    "from bfloat16": {"num_heads": 4, "num_kv_heads": 2, "head_dim": 32, "qk_norm": True, "qkv_bias": True},
}


def decoder(name: str) -> Decoder:
    shape = {"width": 72, "num_layers": 2, "intermediate": 88, "vocab_size": 53, **SHAPES[name]}
    config = DecoderConfig(**shape, norm_eps=1e-6, max_len=512, rope=RopeConfig(shape["head_dim"], 1e4, {}, 512))
    torch.manual_seed(0)
    model = Decoder(config)
    init_random_(model, seed=3, std=0.2)
    for layer in model.layers:
        if layer.attention.eps is not None:
            layer.attention.q_norm.uniform_(0.5, 2)
            layer.attention.k_norm.uniform_(0.5, 2)
        if layer.attention.qkv.bias is not None:
            layer.attention.qkv.bias.uniform_(-1, 1)
        layer.norm1.weight.uniform_(0.5, 2)
    if name == "from bfloat16":
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())
    return model


class Cache:
    """A KV cache whose blocks lie in no order, and full of what would show."""

    def __init__(self, model: Decoder, lens: list[int], block_size: int) -> None:
        num = sum(-(-length // block_size) for length in lens) + 3
        blocks = iter(np.random.default_rng(0).permutation(num).tolist())
        self.tables = [[next(blocks) for _ in range(-(-length // block_size))] for length in lens]
        self.block_size = block_size
        attention = model.layers[0].attention
        shape = (2, num, block_size, attention.heads[1], attention.head_dim)
        self.kv = [torch.full(shape, 1e3) for _ in model.layers]

    def run(self, model: Decoder, picked: list[int], counts: list[int], lens: list[int], seed: int):
        """Compute the last counts[i] tokens of sequences that are then lens[i] long -> hidden, logits."""
        x = torch.randn(sum(counts), 72, generator=torch.Generator().manual_seed(seed))
        positions = torch.cat([torch.arange(n - count, n) for count, n in zip(counts, lens, strict=True)])
        plan = CpuPlan(counts, lens, [self.tables[i] for i in picked], self.block_size, CPU)
        hidden = model(x, ModelInputs(positions, plan, self.kv))
        return hidden, model.logits(hidden)


def fused(name: str, threads: int = 2) -> Decoder:
    model = decoder(name)
    model.fuse(partial(compiled.compile_kernels(), threads=threads))
    return model


@torch.inference_mode()
@pytest.mark.parametrize("name", list(SHAPES))
@pytest.mark.parametrize("block_size", [16, 48])
def test_prefill_chunks_and_decodes_equal_the_layers(name, block_size):
    lens, first = [1, 2, 17, 33, 100, 131, 40], [1, 1, 16, 32, 35, 130, 39]
    results = []
    for model in (decoder(name), fused(name)):
        cache = Cache(model, lens, block_size)
        begun = [i for i, n in enumerate(first) if n]
        before = cache.run(model, begun, first, first, seed=1)
        rest = [i for i in range(len(lens)) if lens[i] > first[i]]
        counts = [lens[i] - first[i] for i in rest]
        after = cache.run(model, rest, counts, [lens[i] for i in rest], seed=2)
        results.append((*before, *after, *cache.kv))
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=2e-5, equal_nan=True)


@torch.inference_mode()
@pytest.mark.parametrize("name", list(SHAPES))
@pytest.mark.parametrize("compiled_", [False, True])
def test_only_the_wanted_rows_come_back(name, compiled_):
    model = fused(name) if compiled_ else decoder(name)
    counts = lens = [40, 1, 17, 100]
    cache = Cache(model, lens, 16)
    every, _ = cache.run(model, [0, 1, 2, 3], counts, lens, seed=1)
    x = torch.randn(sum(counts), 72, generator=torch.Generator().manual_seed(1))
    positions = torch.cat([torch.arange(n) for n in lens])
    for rows in ([39, 40, 57, 157], [0], [], list(range(158))):
        plan = CpuPlan(counts, lens, cache.tables, 16, CPU)
        wanted = torch.tensor(rows, dtype=torch.int64)
        got = model(x.clone(), ModelInputs(positions, plan, cache.kv, wanted))
        torch.testing.assert_close(got, every[wanted], rtol=1e-4, atol=2e-5)


@torch.inference_mode()
def test_a_row_does_not_depend_on_its_neighbours_nor_on_threads():
    lens = [200, 1, 64, 31, 100, 77, 2, 129, 5]
    alone = []
    model = fused("qwen3", threads=1)
    cache = Cache(model, lens, 16)
    cache.run(model, list(range(9)), lens, lens, seed=1)
    together, logits = cache.run(model, list(range(9)), [1] * 9, lens, seed=2)
    x = torch.randn(9, 72, generator=torch.Generator().manual_seed(2))
    for i, length in enumerate(lens):
        plan = CpuPlan([1], [length], [cache.tables[i]], 16, CPU)
        alone.append(model(x[i : i + 1], ModelInputs(torch.tensor([length - 1]), plan, cache.kv)))
    assert torch.equal(together, torch.cat(alone))
    assert torch.equal(logits, torch.cat([model.logits(row) for row in alone]))
    model.fuse(partial(compiled.compile_kernels(), threads=2))
    assert torch.equal(together, cache.run(model, list(range(9)), [1] * 9, lens, seed=2)[0])


@torch.inference_mode()
def test_weights_kept_in_half_the_bytes_give_the_same_bits(monkeypatch):
    lens, results = [40, 1, 17, 100], []
    for half in (True, False):
        kernels = compiled.compile_kernels()
        if not half:
            monkeypatch.setattr(sys.modules[kernels.__module__], "fits_half", lambda matrix: False)
        model = decoder("from bfloat16")
        model.fuse(partial(kernels, threads=2))
        assert model._fused.weight_bytes == (2 if half else 4) * model._fused.num_weights
        cache = Cache(model, lens, 16)
        results.append((*cache.run(model, [0, 1, 2, 3], lens, lens, seed=1), *cache.kv))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@torch.inference_mode()
def test_weights_that_need_all_their_bits_keep_them():
    fits_half = sys.modules[compiled.compile_kernels().__module__].fits_half
    weight = torch.randn(700, 3).bfloat16().float()
    assert fits_half(weight)
    weight[650, 1] += 2.0**-20
    assert not fits_half(weight)


@torch.inference_mode()
def test_what_is_not_a_number_stays_in_its_sequence():
    model = fused("qwen2")
    cache = Cache(model, [20, 20], 16)
    cache.run(model, [0, 1], [20, 20], [20, 20], seed=1)
    cache.kv[0][1, cache.tables[0][0], 3] = torch.nan
    hidden, logits = cache.run(model, [0, 1], [1, 1], [20, 20], seed=2)
    assert hidden.isnan().any(-1).tolist() == [True, False]
    assert logits.isnan().any(-1).tolist() == [True, False]


@torch.inference_mode()
def test_large_scores_do_not_overflow():
    model, reference = fused("llama"), decoder("llama")
    for each in (model, reference):
        for layer in each.layers:
            layer.attention.scale = 40.0
    model.fuse(compiled.compile_kernels())
    expected = Cache(reference, [50], 16).run(reference, [0], [50], [50], seed=1)[0]
    got = Cache(model, [50], 16).run(model, [0], [50], [50], seed=1)[0]
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)


def test_plan_arrays_are_the_references_slots():
    counts, lens, tables = [1, 70, 1, 5], [30, 90, 1, 5], [[3, 1], [9, 8, 7, 6, 5, 4], [2], [0]]
    arrays = CpuPlan(counts, lens, tables, 16, CPU).arrays
    assert arrays.slots.tolist() == PagedPlan(counts, lens, tables, 16, CPU).slots.tolist()
    assert arrays.units.tolist() == [
        [0, 1, 29, 0], [1, 32, 20, 1], [33, 32, 52, 1], [65, 6, 84, 1], [71, 1, 0, 2], [72, 5, 0, 3]
    ]  # fmt: skip


def test_it_says_where_it_does_not_run(monkeypatch, tmp_path):
    assert select.decoder(torch.device("cuda"), torch.float32, 64, 16).refused == (
        ("compiled", "it is for a CPU, not cuda"),
    )
    assert "float32" in select.decoder(CPU, torch.bfloat16, 64, 16).refused[0][1]
    assert "head_dim 40" in select.decoder(CPU, torch.float32, 40, 16).refused[0][1]
    assert "block_size 8" in select.decoder(CPU, torch.float32, 64, 8).refused[0][1]
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert "not writable" in select.decoder(CPU, torch.float32, 64, 16).refused[0][1]
