"""Train the packaged model for a given number of minutes: `python -m training.run --minutes 22 --out FOLDER`.

The schedule follows the clock, so the same command fits any machine; see training/README.md for the recipe.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from sensorium.models.loader import load, save_checkpoint
from sensorium.models.minicpmo import Model
from training.atlas import load as load_atlas
from training.batches import Shape, ctc_symbols
from training.draw import Pictures, degrade, draw
from training.families import TASK_NUMBERS
from training.optimiser import Optimiser
from training.sound import log_mel, roughen
from training.student import Student
from training.views import MAX_PATCHES
from training.workers import Files, Workers

WORK = Path(__file__).parent / "work"
PACKAGE = Path(__file__).parent.parent / "sensorium" / "packaged" / "sensorium-tiny"
SMALL = Shape((6, 256), (2, 640), 32, 32, 6, 96, 1024)


@dataclass(frozen=True, slots=True)
class Schedule:
    """Learning rate by elapsed share of the time: a short rise, a plateau, a straight line to zero."""

    peak: float
    rise: float = 0.02
    fall: float = 0.45

    def rate(self, share: float) -> float:
        return self.peak * max(0.0, min(1.0, share / self.rise, (1 - share) / (1 - self.fall)))


class Scores:
    """Right answers per task, averaged over the last few hundred steps, on the device until read."""

    def __init__(self, device: torch.device) -> None:
        self.right = torch.zeros(len(TASK_NUMBERS), device=device)
        self.asked = torch.zeros(len(TASK_NUMBERS), device=device)
        self.total = torch.zeros((), device=device, dtype=torch.float64)

    def add(self, batch: dict[str, torch.Tensor], wrong: torch.Tensor) -> None:
        """An answer is right when each of its tokens is: what greedy decoding would then write."""
        answer = batch["learn_answer"].long()
        lengths, tasks = batch["answer_length"].float(), batch["answer_task"].long()
        misses = torch.zeros_like(lengths).index_add_(0, answer.clamp(min=0), (wrong & (answer >= 0)).float())
        real = (lengths > 0).float()
        self.right.index_add_(0, tasks, (misses == 0).float() * real)
        self.asked.index_add_(0, tasks, real)
        self.total += real.sum()

    def read(self, keep: float = 0.5) -> dict[str, float]:
        shares = (self.right / self.asked.clamp(min=1e-6)).tolist()
        asked = self.asked.tolist()
        self.right *= keep
        self.asked *= keep
        return {name: shares[i] for name, i in TASK_NUMBERS.items() if asked[i] > 0}


def prepare(batch: dict[str, torch.Tensor], atlas: torch.Tensor, degrade_fn) -> dict[str, torch.Tensor]:
    """Scenes become patches, waves become mel."""
    pictures = Pictures(batch["scene_rows"], batch["scene_counts"], batch["backdrops"], batch["views"])
    pixels, labels = draw(atlas, pictures, MAX_PATCHES)
    lengths = batch["wave_lengths"].long().clamp(min=1600)
    mel, frames = log_mel(roughen(batch["waves"], lengths), lengths)
    return batch | {"patches": degrade_fn(pixels), "labels": labels, "mel": mel, "frames": frames}


def export(student: Student, folder: Path) -> None:
    """The checkpoint as the engine loads it; written beside and moved, so that a copy taken meanwhile is whole."""
    part = folder.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    save_checkpoint(student.model, part)
    for file in PACKAGE.iterdir():
        if file.suffix == ".json" and file.name != "config.json":
            shutil.copy(file, part / file.name)
    folder.mkdir(parents=True, exist_ok=True)
    for file in part.iterdir():
        file.replace(folder / file.name)
    torch.save(student.heads.state_dict(), folder.parent / "heads.pt")


def resume(student: Student, folder: Path) -> None:
    weight = student.model.decoder.norm.weight
    saved = load(Model, student.model.config, folder, weight.device, weight.dtype)
    student.model.load_state_dict(saved.state_dict())
    if (heads := folder.parent / "heads.pt").is_file():
        student.heads.load_state_dict(torch.load(heads, map_location="cpu"))


def train(args: argparse.Namespace) -> None:
    espeak = WORK / "espeak" if (WORK / "espeak").is_dir() else None
    files = Files(WORK / "atlas.npz", espeak, PACKAGE / "tokenizer.json")
    shape = SMALL if args.small else Shape()
    workers = Workers(args.workers, shape, files, args.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    student = Student(PACKAGE, 1 + len(ctc_symbols()), device, dtype, args.seed)
    if args.resume:
        resume(student, args.resume)
    degrade_fn = degrade
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
        student.compile_layers()
        degrade_fn = torch.compile(degrade, dynamic=False)
    optimiser, scores = Optimiser(student), Scores(device)
    schedule = Schedule(args.rate)
    atlas = torch.from_numpy(load_atlas(files.atlas).cells).to(device)
    queue = workers.batches(device)
    begin, saved, step = time.time(), time.time(), 0
    log = (args.out / "log.jsonl").open("a")
    while (share := (time.time() - begin) / (60 * args.minutes)) < 1 and step != args.steps:
        batch = queue.get()
        if device.type == "cuda":
            # Copied on another stream: its memory may not be used again before this stream has read it.
            for tensor in batch.values():
                tensor.record_stream(torch.cuda.current_stream())
        batch = prepare(batch, atlas, degrade_fn)
        if dtype == torch.float32:
            batch["patches"] = batch["patches"].float()
        batch["mel"] = batch["mel"].to(dtype)
        losses = student(batch)
        losses.total.backward()
        norm = optimiser.step(schedule.rate(share))
        scores.add(batch, losses.wrong)
        step += 1
        if step % args.every == 0 or step in (1, 10, 50):
            report(log, step, time.time() - begin, share, losses, norm, scores, workers, queue.qsize(), args)
        if time.time() - saved > 60 * args.save_minutes:
            export(student, args.out / "checkpoint")
            saved = time.time()
    export(student, args.out / "checkpoint")
    report(log, step, time.time() - begin, 1.0, losses, norm, scores, workers, queue.qsize(), args)
    workers.close()


def report(log, step, seconds, share, losses, norm, scores: Scores, workers: Workers, waiting, args) -> None:
    """One line for people, one for machines; and the errors that steer what is asked next."""
    right = scores.read()
    errors = torch.full((len(TASK_NUMBERS),), 0.3)
    for name, value in right.items():
        # Four coordinates are hardly ever all equal to the last digit; that alone should not fill the batches.
        errors[TASK_NUMBERS[name]] = (1 - value) * (0.4 if name == "box" else 1.0)
    workers.errors.update(errors.numpy(), ease=max(0.0, 1 - share / 0.15))
    parts = {name: round(float(loss.detach()), 4) for name, loss in losses.parts.items()}
    line = {
        "step": step, "seconds": round(seconds, 1), "waiting": waiting, "norm": round(float(norm), 3),
        "answered": int(scores.total), "losses": parts, "right": {k: round(v, 4) for k, v in right.items()},
    }  # fmt: skip
    log.write(json.dumps(line) + "\n")
    log.flush()
    shown = " ".join(f"{k}={v}" for k, v in parts.items())
    tasks = " ".join(f"{k}:{100 * v:.1f}" for k, v in right.items())
    print(f"{step} {seconds:.0f}s queue {waiting} norm {float(norm):.2f} {shown}\n   {tasks}", flush=True)
    if not math.isfinite(parts["answers"]):
        print("the loss is not finite", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=22)
    parser.add_argument("--steps", type=int, default=-1, help="stop after this many steps")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--resume", type=Path, help="checkpoint folder to start from")
    parser.add_argument("--workers", type=int, default=14)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=20261120)
    parser.add_argument("--every", type=int, default=200, help="steps between reports")
    parser.add_argument("--save-minutes", type=float, default=2.0)
    parser.add_argument("--small", action="store_true", help="tiny batches, for a machine without a GPU")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    train(args)


if __name__ == "__main__":
    main()
