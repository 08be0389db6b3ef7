"""Teach the packaged model to speak: `python -m training.speech_run --seconds 500 --out FOLDER`.

The code book first, then speech LM, flow and vocoder beside each other on one device; see training/README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from sensorium.models.loader import build, load
from sensorium.models.minicpm_config import Config
from sensorium.models.minicpm_speech import SpeechLM
from sensorium.models.minicpm_speech_config import SpeechConfig
from sensorium.models.minicpmo import Model
from sensorium.models.token2wav.features import prompt_mel
from training.package import VOCABULARY
from training.run import PACKAGE, WORK
from training.speech_blocks import Blocks
from training.speech_codes import CodeBook
from training.speech_config import tts_config
from training.speech_judge import Judge
from training.speech_live import flow_start, vocoder_start
from training.speech_losses import flow_loss, judge_loss, speech_loss, vocoder_loss
from training.speech_optim import GraphOptimiser, Part
from training.speech_tape import Tape


@dataclass(frozen=True, slots=True)
class Sizes:
    blocks: int
    first: int
    """Blocks that must be there before training begins."""
    short: int
    long: int
    flow: int
    vocoder: int
    book: int


FULL = Sizes(1500, 24, 160, 32, 64, 24, 64)
SMALL = Sizes(3, 1, 6, 1, 2, 2, 4)


def speech_lm(seed: int, device: torch.device) -> SpeechLM:
    ids = json.loads((PACKAGE / "added_tokens.json").read_text("utf-8"))
    config = SpeechConfig.from_hf(tts_config(VOCABULARY, ids))
    torch.manual_seed(seed)
    speech = build(SpeechLM, config, device, torch.float32)
    for name, p in speech.named_parameters():
        if "norm" in name:
            p.data.fill_(1.0)
        elif name.endswith("bias"):
            p.data.zero_()
        elif name == "text.weight":
            p.data.normal_(0, 1.0)
        elif name == "decoder.embedding.weight":
            p.data.normal_(0, 0.5)
        else:
            last = name.endswith(("attention.out.weight", "mlp.down.weight"))
            p.data.normal_(0, p[0].numel() ** -0.5 * (0.25 if last else 1.0))
        p.requires_grad_(name != "decoder.head.gain")
    return speech


class Trainer:
    def __init__(self, args: argparse.Namespace, sizes: Sizes, device: torch.device) -> None:
        self.args, self.sizes, self.device = args, sizes, device
        config = Config.from_hf(json.loads((PACKAGE / "config.json").read_text("utf-8")))
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.backbone = load(Model, config, PACKAGE, device, dtype)
        self.tape = Tape(sizes.blocks, self.backbone.hidden_size, device)
        self.book = CodeBook().to(device)
        self.speech = speech_lm(args.seed, device)
        self.flow, self.vocoder = flow_start(args.seed, device), vocoder_start(args.seed, device)
        self.judge = Judge().to(device)
        self.trust = torch.zeros((), device=device)
        """What the judge's word weighs: nothing until the vocoder can do without."""
        self.speaker = torch.randn(192, generator=torch.Generator().manual_seed(0)).to(device)
        if args.packaged:
            packaged = Config.from_hf(json.loads((PACKAGE / "config.json").read_text("utf-8")), init_tts=True)
            self.speech.load_state_dict(load(Model, packaged, PACKAGE, device, torch.float32).speech.state_dict())
        if args.resume:
            self.load(args.resume)

    def load(self, folder: Path) -> None:
        for name, module in self._saved().items():
            if not (folder / f"{name}.pt").is_file():
                continue
            state = torch.load(folder / f"{name}.pt", map_location=self.device)
            if isinstance(module, nn.Module):
                module.load_state_dict(state)
            else:
                for key, value in state.items():
                    module[key].data.copy_(value)
            print("resumed", name, flush=True)

    def _saved(self) -> dict[str, nn.Module | dict[str, nn.Parameter]]:
        return {
            "book": self.book,
            "speech": self.speech,
            "flow": self.flow,
            "vocoder": self.vocoder,
            "judge": self.judge,
        }

    def save(self, out: Path) -> None:
        """The code book, and the parts that are in training."""
        for name, module in self._saved().items():
            if name not in ("book", *self.args.parts.split(",")):
                continue
            state = module.state_dict() if isinstance(module, nn.Module) else module
            # Each file must stay below 16 MiB to come back.
            kept = {k: v.detach().bfloat16() if name == "speech" else v.detach().clone() for k, v in state.items()}
            torch.save(kept, out / f"{name}.part")
            os.replace(out / f"{name}.part", out / f"{name}.pt")

    def parts(self, names: list[str]) -> list[Part]:
        s, graph = self.sizes, self.device.type == "cuda"
        found = []
        if "speech" in names:
            named = [(n, p) for n, p in self.speech.named_parameters() if p.requires_grad]
            plain = GraphOptimiser(named, lambda n: n.startswith("text") or "embedding" in n or "head" in n, 0.05)
            batches = {"short": s.short, "long": s.long}
            found.append(
                Part("speech", lambda: speech_loss(self.speech, self.tape, batches), plain, self.args.rate, graph)
            )
        if "flow" in names:
            rule = GraphOptimiser(self.flow.items(), lambda n: "input_embedding" in n or "pos_bias" in n, 0.01)
            found.append(
                Part("flow", lambda: flow_loss(self.flow, self.tape, self.speaker, s.flow), rule, 1.5e-3, graph)
            )
        if "vocoder" in names:
            rule = GraphOptimiser(self.vocoder.items(), lambda n: True, 0.0)
            trust, judge = self.trust, self.judge if "judge" in names else None
            found.append(
                Part(
                    "vocoder", lambda: vocoder_loss(self.vocoder, self.tape, s.vocoder, judge, trust), rule, 2e-3, graph
                )
            )
        if "judge" in names:
            rule = GraphOptimiser(self.judge.named_parameters(), lambda n: True, 0.0)
            found.append(
                Part("judge", lambda: judge_loss(self.vocoder, self.tape, s.vocoder, self.judge), rule, 6e-4, graph)
            )
        return found

    def book_part(self) -> Part:
        def compute() -> tuple[torch.Tensor, list[torch.Tensor]]:
            starts = self.tape.draw(self.sizes.book, 100)
            return self.book.loss(self.tape.frames(starts, 200)), []

        rule = GraphOptimiser(self.book.named_parameters(), lambda n: True, 0.0)
        return Part("book", compute, rule, 2e-3, self.device.type == "cuda")

    # ---- the loop -------------------------------------------------------------------------------------------------

    def fill(self, blocks: Blocks, wait: bool) -> bool:
        if self.tape.num_blocks == self.tape.capacity:
            return False
        block = blocks.get(self.device, wait)
        return block is not None and self.tape.add(block, self.book, self.backbone)

    def run(self, parts: list[Part], blocks: Blocks, seconds: float, steps: int, out: Path | None) -> None:
        begin = reported = saved = time.time()
        while (share := (time.time() - begin) / seconds) < 1 and any(part.steps != steps for part in parts):
            busy = self.fill(blocks, wait=False)
            # The slowest gets the device while the others wait.
            most = 8 + 1.3 * min(part.steps for part in parts)
            for part in parts:
                busy |= part.steps != steps and part.steps < most and part.advance(share)
            now = time.time()
            if now - reported > self.args.every:
                reported = now
                self.trust.fill_(0.1 * min(1.0, max(0.0, (share - 0.3) / 0.1)))
                self.report(parts, now - begin)
            if out is not None and now - saved > 60:
                saved = now
                self.save(out)
            if not busy:
                time.sleep(2e-4)
        self.report(parts, time.time() - begin)

    def report(self, parts: list[Part], seconds: float) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        shown = [f"{seconds:.0f}s items {self.tape.num_items}"]
        for part in parts:
            if part.numbers is not None:
                numbers = " ".join(f"{x:.3f}" for x in part.numbers.tolist())
                shown.append(f"{part.name} {part.steps}: {numbers} (norm {float(part.optimiser.norm):.2f})")
        print(" | ".join(shown), flush=True)

    def finish_book(self) -> None:
        silent = prompt_mel(torch.zeros(48_000, device=self.device))
        self.book.name_silence(silent)
        self.tape.recode(self.book)
        codes = self.tape.codes[: self.tape.num_blocks * 4096].long()
        share = torch.bincount(codes).float() / len(codes)
        entropy = -(share[share > 0] * share[share > 0].log2()).sum()
        print(
            f"code book: {int((share > 0).sum())} codes in use, {float(entropy):.2f} bits, silence "
            f"{int(self.book.silence)} is {float(share[4218:].sum()) if len(share) > 4218 else 0:.3f} of all",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=500, help="of training, after the code book's")
    parser.add_argument("--book-seconds", type=float, default=30)
    parser.add_argument("--steps", type=int, default=-1, help="stop each part after so many steps")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--resume", type=Path, help="folder with book.pt, speech.pt, flow.pt, vocoder.pt, or some")
    parser.add_argument("--packaged", action="store_true", help="begin with the packaged speech LM")
    parser.add_argument("--parts", default="speech,flow,vocoder,judge")
    parser.add_argument("--workers", type=int, default=14)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=20261121)
    parser.add_argument("--every", type=float, default=10)
    parser.add_argument("--small", action="store_true")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    espeak = WORK / "espeak" if (WORK / "espeak").is_dir() else None
    blocks = Blocks(args.workers, espeak, PACKAGE / "tokenizer.json", args.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    sizes = SMALL if args.small else FULL
    trainer = Trainer(args, sizes, device)
    begin = time.time()
    for _ in range(sizes.first):
        trainer.fill(blocks, wait=True)
    print(f"{sizes.first} blocks after {time.time() - begin:.1f}s", flush=True)
    if not (args.resume and (args.resume / "book.pt").is_file()):
        trainer.run([trainer.book_part()], blocks, args.book_seconds, args.steps, None)
    trainer.finish_book()
    trainer.run(trainer.parts(args.parts.split(",")), blocks, args.seconds, args.steps, args.out)
    trainer.save(args.out)
    blocks.close()


if __name__ == "__main__":
    main()
