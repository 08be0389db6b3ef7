"""How often bfloat16 picks what float32 picks: here and in transformers, one random decoder of full size, one run.

    python3 benchmarks/bf16_agreement.py [--preset qwen3-8b] [--prompts 16] [--tokens 64]

transformers in float32 answers random prompts greedily; that is the reference. Then each bfloat16 side is told the
reference's tokens one by one and says its own choice after each (share of choices that agree), and answers by itself
(tokens until the first that differs). Needs a GPU of 70 GB for the preset named, and transformers.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from gpu_check import roomiest

from sensorium import LLM, SamplingParams
from sensorium.bench import presets
from sensorium.bench.shapes import SHAPES
from sensorium.bench.sides import save_decoder

VOCABULARY = 1280
Rows = list[list[int]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="qwen3-8b", choices=tuple(SHAPES))
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--layers", type=int, help="fewer than the preset has, to try it out")
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=roomiest(), prefix="sensorium-agree-") as name:
        ours, theirs = Path(name) / "ours", Path(name) / "theirs"
        # The tokenizer of the preset is the packaged model's: ids it has no name for are no prompt, and its
        # special tokens, the last of its ids, may ask for media.
        changes = {"vocab_size": VOCABULARY} | ({} if args.layers is None else {"num_hidden_layers": args.layers})
        model = presets.write(args.preset, ours, args.device, **changes)
        theirs.mkdir()
        save_decoder(model, theirs)
        del model
        torch.cuda.empty_cache()
        generator = torch.Generator().manual_seed(0)
        prompts = torch.randint(300, VOCABULARY, (args.prompts, args.tokens), generator=generator)
        with torch.inference_mode():
            reference, _, _ = answer(theirs, torch.float32, prompts, None, args)
            sides = {"transformers": answer(theirs, torch.bfloat16, prompts, reference, args)}
        sides["sensorium"] = answer_here(ours, prompts, reference, args)
    for side, (_, forced, free) in sides.items():
        choices = torch.tensor(forced) == torch.tensor(reference)
        first = [common(row, wanted) for row, wanted in zip(free, reference, strict=True)]
        line = {"side": side, "dtype": "bfloat16", "choices": choices.numel(), "agree": choices.float().mean().item()}
        print(json.dumps(line | {"tokens_until_different": statistics.fmean(first), "of": args.tokens}), flush=True)


def answer(
    folder: Path, dtype: torch.dtype, prompts: torch.Tensor, reference: Rows | None, args: argparse.Namespace
) -> tuple[Rows, Rows, Rows]:
    """Of transformers: its answer, its choices after each token of the reference, and its answer again."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(args.device)
    ids = prompts.to(args.device)
    made = model.generate(ids, do_sample=False, min_new_tokens=args.tokens, max_new_tokens=args.tokens, pad_token_id=0)
    free = made[:, args.tokens :].tolist()
    forced: Rows = []
    for prompt, row in zip(prompts.tolist(), reference or [], strict=False):
        logits = model(torch.tensor([prompt + row], device=args.device)).logits[0]
        forced.append(logits[args.tokens - 1 : -1].argmax(-1).tolist())
    del model
    torch.cuda.empty_cache()
    return free, forced, free


def answer_here(
    folder: Path, prompts: torch.Tensor, reference: Rows, args: argparse.Namespace
) -> tuple[Rows, Rows, Rows]:
    greedy = {"temperature": 0.0, "ignore_eos": True}
    with LLM(str(folder), dtype="bfloat16", device=args.device, max_model_len=1024, enable_prefix_caching=False) as llm:
        alone = [{"prompt_token_ids": prompt} for prompt in prompts.tolist()]
        outputs = llm.generate(alone, SamplingParams(max_tokens=args.tokens, **greedy), use_tqdm=False)
        free = [list(output.outputs[0].token_ids) for output in outputs]
        told = [{"prompt_token_ids": prompt + row} for prompt, row in zip(prompts.tolist(), reference, strict=True)]
        outputs = llm.generate(told, SamplingParams(max_tokens=1, prompt_logprobs=1, **greedy), use_tqdm=False)
    forced = [[likeliest(place) for place in output.prompt_logprobs[args.tokens :]] for output in outputs]
    return free, forced, free


def likeliest(place: Any) -> int:
    return next(token for token, logprob in place.items() if logprob.rank == 1)


def common(row: Sequence[int], wanted: Sequence[int]) -> int:
    return next((i for i, (a, b) in enumerate(zip(row, wanted, strict=True)) if a != b), len(wanted))


if __name__ == "__main__":
    main()
