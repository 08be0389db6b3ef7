"""The compiled decoder from Python: packs the weights, keeps the buffers, fills in the records, starts the threads."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable

import numpy as np
import torch

from sensorium.kernels.cpu_plan import UNIT_ROWS, CpuPlan
from sensorium.kernels.fused import DecoderWeights
from sensorium.kernels.jit.attention import scratch_bytes
from sensorium.kernels.jit.decoder import run_product, run_step
from sensorium.kernels.jit.fields import LAYER, PRODUCT, STEP, TILE_ROWS
from sensorium.kernels.jit.vector import LANES, PANEL

# Multiplications, some 0.15 ms of one core, from which a second thread pays for being woken.
_MANY = 8_000_000
# Stages of a layer, and those around all layers.
_LAYER_STAGES, _OTHER_STAGES = 8, 2


def pack(weight: torch.Tensor) -> torch.Tensor:
    """[n_out, n_in] -> [panels, n_in, PANEL], zeros in the last panel's unused columns.

    Of bfloat16, columns i and LANES + i lie side by side: a vector of both is made float32 by a shift and a mask.
    """
    n_out, n_in = weight.shape
    panels = -(-n_out // PANEL)
    padded = weight.new_zeros(panels * PANEL, n_in)
    padded[:n_out] = weight
    if weight.dtype == torch.bfloat16:
        padded = padded.view(panels, 2, LANES, n_in).transpose(1, 2)
    return padded.reshape(panels, PANEL, n_in).transpose(1, 2).contiguous()


def pack_pair(weight: torch.Tensor) -> torch.Tensor:
    """[2 n, n_in], gate on top of up -> panels of LANES columns of gate and the same of up."""
    n = weight.shape[0] // 2
    panels = -(-n // LANES)
    padded = weight.new_zeros(2, panels * LANES, weight.shape[1])
    padded[:, :n] = weight.view(2, n, -1)
    mixed = padded.view(2, panels, LANES, -1).transpose(0, 1)
    return pack(mixed.reshape(panels * PANEL, -1))


def fits_half(matrix: torch.Tensor) -> bool:
    """Whether bfloat16 holds every number of a float32 matrix, as of one read from a bfloat16 checkpoint."""
    # A piece at a time: a copy of a large matrix would be made only to be thrown away.
    return all(torch.equal(piece.bfloat16().float(), piece) for piece in matrix.split(256))


class FusedDecoder:
    """A decoder's layers, and its head, on packed copies of the weights. For one thread at a time.

    Copies are bfloat16 where that loses nothing: half the bytes to read, the same products in float32.
    """

    def __init__(self, weights: DecoderWeights, threads: int | None = None) -> None:
        """threads: how many may share a step; by default as many as torch uses."""
        w = weights
        self._threads = (threads or torch.get_num_threads()) if _parallel is not None else 1
        self._kept: list[torch.Tensor] = []
        self._layers = np.zeros(len(w.layers), dtype=LAYER)
        half = all(fits_half(matrix) for layer in w.layers for matrix in layer.matrices)
        dtype = torch.bfloat16 if half else torch.float32
        for row, layer in zip(self._layers, w.layers, strict=True):
            for name in ("norm1", "qkv_bias", "q_norm", "k_norm", "norm2"):
                row[name] = self._keep(getattr(layer, name))
            for name in ("qkv", "out", "down"):
                row[name] = self._keep(pack(getattr(layer, name).to(dtype)))
            row["gate_up"] = self._keep(pack_pair(layer.gate_up.to(dtype)))
        self._width, self._intermediate = w.head.shape[1], w.layers[0].down.shape[1]
        self._vocab = w.head.shape[0]
        self._shape = (w.heads, w.kv_heads, w.head_dim)
        self._work = sum(kept.numel() for kept in self._kept)
        self._scratch_bytes = max(
            TILE_ROWS * PANEL * 4, scratch_bytes(UNIT_ROWS * (w.heads // w.kv_heads), w.kv_heads, w.head_dim)
        )
        self._scratch = torch.empty(self._threads, -(-self._scratch_bytes // 64) * 16)
        self._scratch_bytes = self._scratch.shape[1] * 4
        self._counters = np.zeros((len(w.layers) * _LAYER_STAGES + _OTHER_STAGES, 8), dtype=np.int64)
        self._entered = np.zeros(1, dtype=np.int64)
        self._step, self._product = np.zeros(1, dtype=STEP), np.zeros(1, dtype=PRODUCT)
        for record in (self._step, self._product):
            record["entered"], record["counters"] = self._entered.ctypes.data, self._counters.ctypes.data
            record["scratch"], record["scratch_bytes"] = self._scratch.data_ptr(), self._scratch_bytes
            record["give_way"] = _give_way
        step = self._step
        step["width"], step["intermediate"], step["num_layers"] = self._width, self._intermediate, len(w.layers)
        step["heads"], step["kv_heads"], step["head_dim"] = self._shape
        step["eps"], step["scale"], step["layers"] = w.eps, w.scale, self._layers.ctypes.data
        step["half"] = half
        step["final_norm"] = self._keep(w.norm)
        product = self._product
        product["half"] = half = fits_half(w.head)
        head = pack(w.head.bfloat16() if half else w.head)
        product["n_in"], product["n_out"], product["weight"] = self._width, self._vocab, self._keep(head)
        packed = [kept for kept in self._kept if kept.dim() > 1]
        self.num_weights = sum(kept.numel() for kept in packed)
        self.weight_bytes = sum(kept.nbytes for kept in packed)
        self._kv: list[torch.Tensor] | None = None
        self._rows = 0

    def forward(
        self,
        x: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        plan: CpuPlan,
        kv: list[torch.Tensor],
        kept: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """x [N, E]; cos, sin [N, 1, D]; kv: per layer [2, blocks, block_size, K, D] -> [N, E] after the last norm.

        With kept int64 [M], ascending, those rows of it.
        """
        rows = x.shape[0]
        num_kept = rows if kept is None else len(kept)
        self._make_room(rows)
        if kv is not self._kv:
            self._use_cache(kv)
        self._buffers["x"][:rows] = x
        out = torch.empty(num_kept, self._width)
        arrays, step = plan.arrays, self._step
        cos, sin = cos.contiguous(), sin.contiguous()
        step["rows"], step["num_units"], step["table_width"] = rows, len(arrays.units), arrays.tables.shape[1]
        step["num_kept"], step["kept"] = num_kept, 0 if kept is None else kept.data_ptr()
        step["cos"], step["sin"], step["out"] = cos.data_ptr(), sin.data_ptr(), out.data_ptr()
        step["slots"], step["units"] = arrays.slots.ctypes.data, arrays.units.ctypes.data
        step["tables"] = arrays.tables.ctypes.data
        self._run(run_step.address, step, rows * self._work)
        return out

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[M, E] -> [M, V]."""
        hidden = hidden.contiguous()
        out = torch.empty(hidden.shape[0], self._vocab)
        product = self._product
        product["rows"], product["x"], product["out"] = hidden.shape[0], hidden.data_ptr(), out.data_ptr()
        self._run(run_product.address, product, out.numel() * self._width)
        return out

    def _keep(self, tensor: torch.Tensor | None) -> int:
        """The address of a tensor that lives as long as this object; 0 for none."""
        if tensor is None:
            return 0
        self._kept.append(tensor.detach().contiguous())
        return self._kept[-1].data_ptr()

    def _make_room(self, rows: int) -> None:
        if rows <= self._rows:
            return
        heads, kv_heads, d = self._shape
        widths = {
            "x": self._width,
            "normed": self._width,
            "qkv": (heads + 2 * kv_heads) * d,
            "mixed": heads * d,
            "gated": self._intermediate,
        }
        self._buffers = {name: torch.empty(rows, width) for name, width in widths.items()}
        for name, buffer in self._buffers.items():
            self._step[name] = buffer.data_ptr()
        self._rows = rows

    def _use_cache(self, kv: list[torch.Tensor]) -> None:
        self._kv = kv
        self._step["block_size"] = kv[0].shape[2]
        self._layers["keys"] = [layer[0].data_ptr() for layer in kv]
        self._layers["values"] = [layer[1].data_ptr() for layer in kv]

    def _run(self, address: int | None, record: np.ndarray, work: int) -> None:
        assert address is not None
        self._counters[:] = 0
        self._entered[0] = 0
        if self._threads > 1 and work >= _MANY:
            assert _parallel is not None
            _parallel(address, record.ctypes.data, self._threads, 0)
        else:
            _alone(address)(record.ctypes.data)


_alone = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def _find_parallel() -> Callable[[int, int, int, int], None] | None:
    """libgomp's GOMP_parallel(function, data, threads, flags), of the copy that torch has loaded.

    Sharing torch's threads means that no two pools compete for the cores. Elsewhere than on Linux torch brings another
    OpenMP, and one thread does all.
    """
    if sys.platform != "linux":
        return None
    with open("/proc/self/maps") as maps:
        paths = {line.split(maxsplit=5)[5].strip() for line in maps if "libgomp" in line}
    if not paths:
        return None
    function = ctypes.CDLL(sorted(paths)[0]).GOMP_parallel
    function.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    function.restype = None
    return function


def _find_give_way() -> int:
    try:
        return ctypes.cast(ctypes.CDLL(None).sched_yield, ctypes.c_void_p).value or 0
    except (AttributeError, OSError, TypeError):
        return 0


_parallel = _find_parallel()
_give_way = _find_give_way()
