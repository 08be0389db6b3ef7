"""How MiniCPM-o picks the next token in full duplex. The order of the steps is the reference's; see docs/duplex.md.

M sessions · V vocabulary
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from sensorium.errors import RequestError
from sensorium.models.minicpm_draw import Uniforms, candidates, damp, divide_seen, pick
from sensorium.models.minicpm_duplex_tokens import DuplexTokens


@dataclass(frozen=True, slots=True)
class TextSampling:
    """The decoding arguments of streaming_generate, under the names and with the defaults of the released code.

    listen_prob_scale and listen_top_k act on <|im_end|>, as they do there; listen_scale is ours and multiplies the
    odds of <|listen|>: above 1 the model keeps silent more readily, 0 makes it speak.
    """

    decode_mode: Literal["sampling", "greedy"] = "sampling"
    temperature: float = 0.7
    top_k: int = 100
    top_p: float = 0.8
    listen_prob_scale: float = 1.0
    listen_top_k: int | None = None
    text_repetition_penalty: float = 1.05
    text_repetition_window_size: int = 512
    length_penalty: float = 1.1
    listen_scale: float = 1.0

    def __post_init__(self) -> None:
        if self.decode_mode not in ("sampling", "greedy"):
            raise RequestError(
                f"decode_mode is {self.decode_mode!r}; write 'sampling' or 'greedy'", param="decode_mode"
            )
        for name in ("temperature", "text_repetition_penalty", "length_penalty"):
            check_number(name, getattr(self, name), positive=True)
        for name in ("top_p", "listen_prob_scale", "listen_scale"):
            check_number(name, getattr(self, name))
        for name in ("top_k", "text_repetition_window_size"):
            check_number(name, getattr(self, name), whole=True)
        if self.listen_top_k is not None:
            check_number("listen_top_k", self.listen_top_k, whole=True)


def check_number(name: str, value: Any, *, positive: bool = False, whole: bool = False) -> None:
    """Raises RequestError unless value is a finite number of at least 0 (positive: above 0; whole: an int)."""
    kinds = int if whole else int | float
    good = isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value)
    if not good or value < 0 or (positive and value == 0):
        wanted = "a whole number" if whole else "a finite number"
        raise RequestError(f"{name} must be {wanted} {'above' if positive else 'of at least'} 0", param=name)


class TextSampler:
    """Picks tokens for one session. `history` is what the repetition penalty sees; it lives as long as the session.

    In an array, where an hour of talking takes 0.1 MB.
    """

    def __init__(self, tokens: DuplexTokens, seed: int | None = None) -> None:
        self.tokens = tokens
        self.history = array("q")
        self.uniforms = Uniforms(seed)
        self._banned = torch.tensor(sorted(set(tokens.forbidden)))

    def banned(self, device: torch.device) -> torch.Tensor:
        """The ids that are never drawn."""
        if self._banned.device != device:
            self._banned = self._banned.to(device)
        return self._banned

    def draw(self) -> tuple[float, float]:
        """The random numbers of one step."""
        return self.uniforms(), self.uniforms()

    def recent(self, sampling: TextSampling) -> Sequence[int]:
        size = sampling.text_repetition_window_size
        return self.history[-size:] if size else ()


def decode_all(samplers: Sequence[TextSampler], samplings: Sequence[TextSampling], logits: torch.Tensor) -> list[int]:
    """The next token of each session, from its row of logits [M, V]. All sessions share one vocabulary.

    A step draws twice: whether the unit's words end here (chunk_eos), from the bare distribution, and if not, which
    token comes, from what bans, penalties and filters leave. One copy from the device serves all sessions.
    """
    tokens = samplers[0].tokens
    logits = logits.float()
    draws = [sampler.draw() for sampler in samplers]
    ends = (logits[:, tokens.chunk_eos] - logits.logsumexp(1)).exp()
    scores = adjusted(samplers, samplings, logits)
    better = (scores > scores[:, tokens.im_end, None]).sum(1) if any(s.listen_top_k for s in samplings) else ends
    ids, shares = candidates(
        scores, [s.temperature for s in samplings], [_top_k(s) for s in samplings], [s.top_p for s in samplings]
    )
    drawn = pick(ids, shares, [second for _, second in draws])
    found = torch.stack([ends, logits.argmax(1), better, drawn], 1).double().tolist()
    chosen: list[int] = []
    for sampler, sampling, (first, _), row in zip(samplers, samplings, draws, found, strict=True):
        greedy = sampling.decode_mode == "greedy"
        if row[1] == tokens.chunk_eos if greedy else first < row[0]:
            chosen.append(tokens.chunk_eos)
        elif sampling.listen_top_k and row[2] < sampling.listen_top_k:
            chosen.append(tokens.im_end)
        else:
            chosen.append(int(row[3]))
            sampler.history.append(chosen[-1])
    return chosen


def adjusted(samplers: Sequence[TextSampler], samplings: Sequence[TextSampling], logits: torch.Tensor) -> torch.Tensor:
    """Logits [M, V] float32 after bans, penalties and scales, before temperature and filters."""
    tokens, scores = samplers[0].tokens, logits.clone()
    scores[:, samplers[0].banned(scores.device)] = -math.inf
    # Divided whatever the sign, as in the reference: what is unlikely gets likelier.
    recent = [sampler.recent(sampling) for sampler, sampling in zip(samplers, samplings, strict=True)]
    divide_seen(scores, recent, [s.text_repetition_penalty for s in samplings], signed=False)
    damp(scores, [tokens.turn_eos], [s.length_penalty for s in samplings])
    for row, sampling in enumerate(samplings):
        if sampling.listen_prob_scale != 1.0:
            scores[row, tokens.im_end] *= sampling.listen_prob_scale
        if sampling.listen_scale != 1.0:
            scores[row, tokens.listen] += math.log(sampling.listen_scale) if sampling.listen_scale else -math.inf
    return scores


def _top_k(sampling: TextSampling) -> int:
    return 1 if sampling.decode_mode == "greedy" else sampling.top_k
