"""Which earlier frames a stream still sees, once there are more than its voice and 100 frames.

A table lists pool rows. The conformer's are in order of time. The estimator's has the newest chunk in front and the
voice last; it has no positions, so only the set matters.
"""

from __future__ import annotations

from typing import Literal, get_args

TAIL_FRAMES = 100
Trimming = Literal["reference", "packed", "voice"]
"""reference: as minicpmo-utils 1.0.7: the estimator keeps as many of the newest rows as the voice has, and the oldest
    100; the conformer the voice and the newest 100 frames.
packed: as 1.0.5 and 1.0.6, which cut the conformer's rows at the rate of codes with the lengths of frames.
voice: the whole voice and the newest 100 frames everywhere; a stream then owns at most 100 rows of the estimator.
"""
TRIMMINGS: tuple[str, ...] = get_args(Trimming)


def trim_estimator(rows: list[int], voice_frames: int, rule: Trimming) -> list[int]:
    if len(rows) <= voice_frames + TAIL_FRAMES:
        return rows
    if rule == "voice":
        return rows[:TAIL_FRAMES] + rows[len(rows) - voice_frames :]
    return rows[:voice_frames] + rows[-TAIL_FRAMES:]


def trim_encoder(codes: list[int], frames: list[int], voice_frames: int, rule: Trimming) -> tuple[list[int], list[int]]:
    """Rows at the rate of codes, rows at the rate of frames (two per code)."""
    if len(frames) <= voice_frames + TAIL_FRAMES:
        return codes, frames
    kept = frames[:voice_frames] + frames[-TAIL_FRAMES:]
    if rule != "packed":
        return codes[: voice_frames // 2] + codes[-TAIL_FRAMES // 2 :], kept
    # There the rows of codes lie twice along time, to be as long as those of frames, and the first half is read.
    doubled = codes + codes
    return (doubled[:voice_frames] + doubled[-TAIL_FRAMES:])[: len(kept) // 2], kept
