"""Scenes to patches. Every view is drawn straight at the size the processor would resize it to.

V views · L patches of the longest view · R rows of a scene. A view row holds: scene number, patch rows, patch columns,
offset x, offset y, step x, step y (canvas px per view px) and the width of the anti-aliased edge in view px.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from training.atlas import CELL, SPREAD
from training.scenes import BACKGROUND_WIDTH, MAX_ROWS, ROW_WIDTH

PATCH = 14
AREA = PATCH * PATCH
VIEW_WIDTH = 8

try:
    import triton
    import triton.language as tl
except ImportError:  # the CPU reference below needs no triton
    triton = None


@dataclass(slots=True)
class Pictures:
    """What one batch draws, as tensors on one device."""

    rows: torch.Tensor
    """float32 [scenes, MAX_ROWS, ROW_WIDTH]"""
    counts: torch.Tensor
    """int32 [scenes]"""
    backdrops: torch.Tensor
    """float32 [scenes, BACKGROUND_WIDTH]"""
    views: torch.Tensor
    """float32 [V, VIEW_WIDTH]"""


def draw(atlas: torch.Tensor, pictures: Pictures, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels in 0..1, float16 [V, L, 588] (channel, row, column), and the scene row that covers most of the left and
    of the right half of each patch, int16 [V, L, 2], -1 where there is none."""
    if not pictures.views.is_cuda:
        return draw_reference(atlas, pictures, length)
    num = len(pictures.views)
    out = torch.empty(num, length, 3 * AREA, dtype=torch.float16, device=atlas.device)
    labels = torch.empty(num, length, 2, dtype=torch.int16, device=atlas.device)
    _draw_kernel[(num * length,)](
        atlas, pictures.rows, pictures.counts, pictures.backdrops, pictures.views, out, labels, length,
        MAX_ROWS, ROW_WIDTH, BACKGROUND_WIDTH, VIEW_WIDTH, CELL, SPREAD, num_warps=4,
    )  # fmt: skip
    return out, labels


def draw_reference(atlas: torch.Tensor, p: Pictures, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    scene = p.views[:, 0].long()
    x, y, valid = _pixel_positions(p.views, length)
    pixels = _backdrop(p.backdrops[scene], x, y)
    best = torch.full((*x.shape[:2], 2), 9.8)
    labels = torch.full((*x.shape[:2], 2), -1, dtype=torch.int16)
    left = (torch.arange(AREA) % PATCH < PATCH // 2).float()
    step, edge = p.views[:, 5, None, None], p.views[:, 7, None, None]
    for k in range(int(p.counts.max())):
        row = p.rows[scene, k][:, :, None, None].unbind(1)
        cover = _cover(atlas, row, x, y, step, edge) * (p.counts[scene] > k)[:, None, None]
        rgb = torch.stack(row[13:16], -1)
        pixels = pixels + (rgb - pixels) * cover[..., None]
        halves = torch.stack(((cover * left).sum(-1), (cover * (1 - left)).sum(-1)), -1)
        labels = torch.where(halves > best, k, labels.int()).to(torch.int16)
        best = torch.maximum(best, halves)
    pixels = pixels.clamp(0, 1).permute(0, 1, 3, 2).flatten(2) * valid[..., None]
    return pixels.half(), torch.where(valid[..., None], labels.int(), -1).to(torch.int16)


def _pixel_positions(views: torch.Tensor, length: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Canvas x and y of every pixel, each [V, L, 196], and which patches exist, [V, L]."""
    patch, pixel = torch.arange(length), torch.arange(AREA)
    num_rows, num_cols = views[:, 1, None].long(), views[:, 2, None].long()
    row, col = patch // num_cols, patch % num_cols
    x = views[:, 3, None, None] + (col[..., None] * PATCH + pixel % PATCH + 0.5) * views[:, 5, None, None]
    y = views[:, 4, None, None] + (row[..., None] * PATCH + pixel // PATCH + 0.5) * views[:, 6, None, None]
    return x, y, patch < num_rows * num_cols


def _backdrop(b: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """[V, BACKGROUND_WIDTH] -> [V, L, 196, 3]"""
    b = b[:, :, None, None]
    x, y = x - b[:, 18], y - b[:, 19]
    along = (x * b[:, 6] + y * b[:, 7] + 0.5).clamp(0, 1)[..., None]
    first, second = b[:, 0:3].permute(0, 2, 3, 1), b[:, 3:6].permute(0, 2, 3, 1)
    waves = sum(torch.sin(x * b[:, 9 + 3 * i] + y * b[:, 10 + 3 * i] + b[:, 11 + 3 * i]) for i in range(3))
    return first + (second - first) * along + (b[:, 8] * waves)[..., None]


def _cover(atlas, row, x, y, step, edge) -> torch.Tensor:
    """How much of each pixel one scene row covers, [V, L, 196]."""
    u = (row[1] * x + row[2] * y + row[3]) * CELL - 0.5
    v = (row[4] * x + row[5] * y + row[6]) * CELL - 0.5
    inside = (u > 0) & (u < CELL - 1) & (v > 0) & (v < CELL - 1)
    u0, v0 = u.floor().clamp(0, CELL - 2), v.floor().clamp(0, CELL - 2)
    fu, fv = (u - u0).clamp(0, 1), (v - v0).clamp(0, 1)
    at = (row[0].long() * CELL + v0.long()) * CELL + u0.long()
    flat = atlas.flatten()
    a, b, c, d = (flat[at + o].float() for o in (0, 1, CELL, CELL + 1))
    signed = (a * (1 - fu) + b * fu) * (1 - fv) + (c * (1 - fu) + d * fu) * fv
    signed = signed * (SPREAD / 127 / CELL) * row[7] + row[8]
    return torch.where(inside, (0.5 + signed / (edge * step)).clamp(0, 1), 0.0)


if triton is not None:

    @triton.jit
    def _draw_kernel(
        atlas, rows, counts, backdrops, views, out, labels, length,
        MAX_R: tl.constexpr, ROW_W: tl.constexpr, BACK_W: tl.constexpr, VIEW_W: tl.constexpr,
        CELL_N: tl.constexpr, SPREAD_N: tl.constexpr,
    ):  # fmt: skip
        """One program per patch; a scene row far from the patch costs a few scalar loads."""
        pid = tl.program_id(0).to(tl.int64)
        view = views + (pid // length) * VIEW_W
        patch = (pid % length).to(tl.int32)
        scene = tl.load(view).to(tl.int64)
        num_rows, num_cols = tl.load(view + 1).to(tl.int32), tl.load(view + 2).to(tl.int32)
        step_x, step_y, edge = tl.load(view + 5), tl.load(view + 6), tl.load(view + 7)
        i = tl.arange(0, 256)
        live = i < 196
        left = (i % 14 < 7) & live
        x0 = tl.load(view + 3) + (patch % num_cols) * 14 * step_x
        y0 = tl.load(view + 4) + (patch // num_cols) * 14 * step_y
        x, y = x0 + (i % 14 + 0.5) * step_x, y0 + (i // 14 + 0.5) * step_y
        mid_x, mid_y = x0 + 7 * step_x, y0 + 7 * step_y
        b = backdrops + scene * BACK_W
        bx, by = x - tl.load(b + 18), y - tl.load(b + 19)
        along = tl.minimum(tl.maximum(bx * tl.load(b + 6) + by * tl.load(b + 7) + 0.5, 0.0), 1.0)
        waves = tl.sin(bx * tl.load(b + 9) + by * tl.load(b + 10) + tl.load(b + 11))
        waves += tl.sin(bx * tl.load(b + 12) + by * tl.load(b + 13) + tl.load(b + 14))
        waves += tl.sin(bx * tl.load(b + 15) + by * tl.load(b + 16) + tl.load(b + 17))
        waves = waves * tl.load(b + 8)
        r = tl.load(b) + (tl.load(b + 3) - tl.load(b)) * along + waves
        g = tl.load(b + 1) + (tl.load(b + 4) - tl.load(b + 1)) * along + waves
        bl = tl.load(b + 2) + (tl.load(b + 5) - tl.load(b + 2)) * along + waves
        count = tl.load(counts + scene)
        best_left, best_right = edge * 0 + 9.8, edge * 0 + 9.8
        label_left, label_right = count * 0 - 1, count * 0 - 1
        for k in range(count):
            row = rows + (scene * MAX_R + k) * ROW_W
            size, grow = tl.load(row + 7), tl.load(row + 8)
            far_x = tl.abs((tl.load(row + 9) + tl.load(row + 11)) * 0.5 - mid_x) - 7 * step_x
            far_y = tl.abs((tl.load(row + 10) + tl.load(row + 12)) * 0.5 - mid_y) - 7 * step_y
            if (tl.maximum(far_x, far_y) < 0.75 * size + grow) & (patch < num_rows * num_cols):
                u = (tl.load(row + 1) * x + tl.load(row + 2) * y + tl.load(row + 3)) * CELL_N - 0.5
                v = (tl.load(row + 4) * x + tl.load(row + 5) * y + tl.load(row + 6)) * CELL_N - 0.5
                inside = (u > 0) & (u < CELL_N - 1) & (v > 0) & (v < CELL_N - 1) & live
                u0, v0 = tl.floor(u), tl.floor(v)
                fu, fv = u - u0, v - v0
                at = (tl.load(row).to(tl.int32) * CELL_N + v0.to(tl.int32)) * CELL_N + u0.to(tl.int32)
                a00 = tl.load(atlas + at, mask=inside, other=0).to(tl.float32)
                a01 = tl.load(atlas + at + 1, mask=inside, other=0).to(tl.float32)
                a10 = tl.load(atlas + at + CELL_N, mask=inside, other=0).to(tl.float32)
                a11 = tl.load(atlas + at + CELL_N + 1, mask=inside, other=0).to(tl.float32)
                signed = (a00 * (1 - fu) + a01 * fu) * (1 - fv) + (a10 * (1 - fu) + a11 * fu) * fv
                signed = signed * (SPREAD_N / 127 / CELL_N) * size + grow
                cover = tl.minimum(tl.maximum(0.5 + signed / (edge * step_x), 0.0), 1.0)
                cover = tl.where(inside, cover, 0.0)
                r += (tl.load(row + 13) - r) * cover
                g += (tl.load(row + 14) - g) * cover
                bl += (tl.load(row + 15) - bl) * cover
                on_left = tl.sum(tl.where(left, cover, 0.0))
                on_right = tl.sum(cover) - on_left
                label_left = tl.where(on_left > best_left, k, label_left)
                label_right = tl.where(on_right > best_right, k, label_right)
                best_left = tl.maximum(best_left, on_left)
                best_right = tl.maximum(best_right, on_right)
        real = (patch < num_rows * num_cols).to(tl.float32)
        o = out + pid * 588 + i
        tl.store(o, (tl.minimum(tl.maximum(r, 0.0), 1.0) * real).to(tl.float16), mask=live)
        tl.store(o + 196, (tl.minimum(tl.maximum(g, 0.0), 1.0) * real).to(tl.float16), mask=live)
        tl.store(o + 392, (tl.minimum(tl.maximum(bl, 0.0), 1.0) * real).to(tl.float16), mask=live)
        tl.store(labels + pid * 2, label_left.to(tl.int16))
        tl.store(labels + pid * 2 + 1, label_right.to(tl.int16))


def cosine_basis(n: int, device: torch.device) -> torch.Tensor:
    """Orthonormal DCT-II matrix [n, n]."""
    k = torch.arange(n, device=device, dtype=torch.float32)
    basis = torch.cos(torch.pi / n * (k[None] + 0.5) * k[:, None]) * (2 / n) ** 0.5
    basis[0] *= 0.5**0.5
    return basis


def degrade(pixels: torch.Tensor) -> torch.Tensor:
    """Exposure, sensor noise and block artefacts as a camera and JPEG leave them; [V, L, 588] in 0..1 to -1..1, bf16.

    Blocks are 7 x 7, the patch divided by two, so no pixel outside the patch is needed.
    """
    num, device = len(pixels), pixels.device
    x = pixels.float().view(num, -1, 3, 2, 7, 2, 7)
    chance = torch.rand(8, num, 1, 1, 1, 1, 1, 1, device=device)
    changed = (chance[7] < 0.4).float()
    gain = 1 + changed * (chance[0] - 0.6) * 0.2
    tint = 1 + changed * (torch.rand(num, 1, 3, 1, 1, 1, 1, device=device) - 0.5) * 0.06
    x = x * gain * tint
    basis = cosine_basis(7, device)
    ramp = torch.arange(7, device=device, dtype=torch.float32)
    strength = torch.where(chance[1] < 0.4, chance[2] ** 2 * 0.16, torch.full_like(chance[2], 1e-4))
    quantum = (strength * (0.25 + (ramp[:, None, None] + ramp) / 6)).clamp(min=1e-4)
    noise = torch.where(chance[3] < 0.35, chance[4] ** 2 * 0.07, torch.zeros_like(chance[4]))
    x = x + noise * torch.randn_like(x)
    waves = torch.einsum("ui,vj,nlcaibj->nlcaubv", basis, basis, x)
    waves = torch.round(waves / quantum) * quantum
    x = torch.einsum("ui,vj,nlcaubv->nlcaibj", basis, basis, waves).clamp(0, 1)
    x = torch.round(x * 255) / 255
    return ((x - 0.5) / 0.5).to(torch.bfloat16).reshape(num, -1, 3 * AREA)
