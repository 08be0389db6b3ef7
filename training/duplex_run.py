"""Teach the packaged model full duplex: `python -m training.duplex_run --seconds 420 --out FOLDER`.

Goes on from the packaged weights, with the questions of before beside live talks; see training/README.md.
"""

from __future__ import annotations

import argparse
import json
import queue
import time
from pathlib import Path

import torch

from training.atlas import load as load_atlas
from training.batches import Shape, ctc_symbols
from training.conversation import Encoder
from training.draw import Pictures, degrade, draw
from training.duplex_batches import TASKS, DuplexShape, DuplexWriter
from training.duplex_student import Learner, live_mel
from training.espeak import Espeak
from training.optimiser import Optimiser
from training.run import PACKAGE, WORK, Schedule
from training.sound import log_mel, roughen
from training.views import MAX_PATCHES
from training.workers import Files, Fill, Workers, questions

CHAT = Shape((128, 256), (32, 640), 300, 260, 48, 1200, 8192)
SMALL = Shape((4, 256), (1, 640), 24, 24, 4, 64, 700), DuplexShape((2, 1024), 40, 400, 56)
FACTORS = {"duplex": 1.0, "answers": 0.6, "moved": 1.0, "live": 0.15, "heard": 0.15}
ANSWER_CLIPS = 0.3
WARM = 0.12
"""Share of the time after which the spelling of what is heard teaches the ears."""
CHAT_EVERY = 2
"""Steps from one batch of questions to the next."""
PATIENCE_S = 30
"""After so long without a batch the processes that make them are thought dead."""
PART_BYTES = 14 << 20


def talks(files: Files, shape: DuplexShape, seed: int, errors: object) -> Fill:
    return DuplexWriter(seed, Espeak(files.espeak), Encoder(str(files.tokenizer)), shape, ctc_symbols()).fill


def spoken_questions(files: Files, shape: Shape, seed: int, errors) -> Fill:
    return questions(files, shape, seed, errors, ANSWER_CLIPS)


class Trainer:
    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        espeak = WORK / "espeak" if (WORK / "espeak").is_dir() else None
        files = Files(WORK / "atlas.npz", espeak, PACKAGE / "tokenizer.json")
        chat, duplex = SMALL if args.small else (CHAT, DuplexShape())
        self.workers = (
            Workers(args.chat_workers, chat, files, args.seed, spoken_questions),
            Workers(args.workers, duplex, files, args.seed + 1000, talks),
        )
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        self.learner = Learner(PACKAGE, 1 + len(ctc_symbols()), self.device, self.dtype, args.seed)
        self.degrade = degrade
        if self.device.type == "cuda" and not args.eager:
            torch.set_float32_matmul_precision("high")
            self.learner.compile_layers()
            self.degrade = torch.compile(degrade, dynamic=False)
        self.optimiser = Optimiser(self.learner)
        self.atlas = torch.from_numpy(load_atlas(files.atlas).cells).to(self.device)
        self.queues = [workers.batches(self.device) for workers in self.workers]
        self.steps = 0
        self.parts: dict[str, torch.Tensor] = {}
        """Losses of the last batches."""
        self.right = torch.zeros(2, len(TASKS), device=self.device)
        """Units that are right throughout, and all, by task."""

    def batch(self, source: queue.Queue) -> dict[str, torch.Tensor]:
        batch = source.get(timeout=PATIENCE_S)
        if self.device.type == "cuda":
            # Copied on another stream: its memory may not be used again before this stream has read it.
            for tensor in batch.values():
                tensor.record_stream(torch.cuda.current_stream())
        pictures = Pictures(batch["scene_rows"], batch["scene_counts"], batch["backdrops"], batch["views"])
        pixels, _ = draw(self.atlas, pictures, MAX_PATCHES)
        return batch | {"patches": self.degrade(pixels).to(self.dtype)}

    def step(self, rate: float, warm: bool) -> torch.Tensor:
        """Returns the gradient's norm."""
        if self.steps % CHAT_EVERY == 0:
            self._learn(self._questions(warm))
        self._learn(self._talks(warm))
        self.steps += 1
        return self.optimiser.step(rate)

    def _learn(self, parts: dict[str, torch.Tensor]) -> None:
        sum(FACTORS[name] * loss for name, loss in parts.items() if name in FACTORS).backward()
        self.parts |= {name: loss.detach() for name, loss in parts.items()}

    def _questions(self, warm: bool) -> dict[str, torch.Tensor]:
        batch = self.batch(self.queues[0])
        lengths = batch["wave_lengths"].long().clamp(min=1600)
        mel, frames = log_mel(roughen(batch["waves"], lengths), lengths)
        return self.learner.chat(batch | {"mel": mel.to(self.dtype), "frames": frames}, warm)

    def _talks(self, warm: bool) -> dict[str, torch.Tensor]:
        batch = self.batch(self.queues[1])
        mel = live_mel(roughen(batch["waves"], batch["wave_lengths"].long()))
        parts, wrong = self.learner.duplex(batch | {"mel": mel.to(self.dtype)}, warm)
        self._count(batch, wrong)
        return parts

    @torch.no_grad()
    def _count(self, batch: dict[str, torch.Tensor], wrong: torch.Tensor) -> None:
        unit = batch["learn_unit"].long()
        misses = torch.zeros(len(batch["unit_task"]), device=self.device)
        misses.index_add_(0, unit.clamp(min=0), (wrong & (unit >= 0)).float())
        real, tasks = (batch["unit_length"] > 0).float(), batch["unit_task"].long()
        self.right[0].index_add_(0, tasks, (misses == 0).float() * real)
        self.right[1].index_add_(0, tasks, real)

    def run(self) -> None:
        args, schedule = self.args, Schedule(self.args.rate, 0.03, 0.35)
        for _ in range(0 if args.small else 2):
            self.step(0.0, warm=False)  # what is compiled is not on the schedule's clock
        begin = saved = time.time()
        norm = torch.zeros(())
        try:
            while (share := (time.time() - begin) / args.seconds) < 1 and self.steps != args.steps:
                norm = self.step(schedule.rate(share), warm=share > WARM)
                if self.steps % args.every == 0 or self.steps < 4:
                    self.report(time.time() - begin, norm)
                if time.time() - saved > args.save_seconds:
                    self.save()
                    saved = time.time()
        finally:
            self.report(time.time() - begin, norm)
            self.save()
            for workers in self.workers:
                workers.close()

    def report(self, seconds: float, norm: torch.Tensor) -> None:
        right = (self.right[0] / self.right[1].clamp(min=1)).tolist()
        self.right *= 0.3
        line = {
            "step": self.steps, "seconds": round(seconds, 1), "waiting": [q.qsize() for q in self.queues],
            "norm": round(float(norm), 3), "losses": {k: round(float(v), 4) for k, v in self.parts.items()},
            "right": {task: round(value, 4) for task, value in zip(TASKS, right, strict=True)},
        }  # fmt: skip
        print(json.dumps(line), flush=True)
        with (self.args.out / "log.jsonl").open("a") as log:
            log.write(json.dumps(line) + "\n")

    def save(self) -> None:
        """Weights that may have moved, as bfloat16, in files of less than 16 MiB."""
        state = {k: v.detach().bfloat16().cpu() for k, v in self.learner.model.state_dict().items()}
        kept = {k: v for k, v in state.items() if not k.startswith(("vision.", "resampler."))}
        parts, size = [{}], 0
        for name, tensor in kept.items():
            if size + 2 * tensor.numel() > PART_BYTES:
                parts, size = [*parts, {}], 0
            parts[-1][name] = tensor
            size += 2 * tensor.numel()
        for number, part in enumerate(parts):
            file = self.args.out / f"backbone-{number}.pt"
            torch.save(part, file.with_suffix(".part"))
            file.with_suffix(".part").replace(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=420)
    parser.add_argument("--steps", type=int, default=-1, help="stop after this many steps")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=12, help="processes that make talks")
    parser.add_argument("--chat-workers", type=int, default=3, help="processes that make questions")
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=20261123)
    parser.add_argument("--every", type=int, default=100, help="steps between reports")
    parser.add_argument("--save-seconds", type=float, default=60.0)
    parser.add_argument("--eager", action="store_true", help="do not compile")
    parser.add_argument("--small", action="store_true", help="tiny batches, for a machine without a GPU")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    Trainer(args).run()


if __name__ == "__main__":
    main()
