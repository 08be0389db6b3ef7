"""The control tokens that MiniCPM-o's full duplex is written in."""

from __future__ import annotations

from dataclasses import dataclass

from sensorium.models.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class DuplexTokens:
    """Ids. A unit of time stands between `unit` and `unit_end`; `listen` and the chunk tokens end what is said in it.

    im_end is the tokenizer's end-of-text token; bad_ids are those that the checkpoint forbids in speech.
    """

    unit: int
    unit_end: int
    image: tuple[int, int]
    slice: tuple[int, int]
    listen: int
    speak: int
    turn_eos: int
    chunk_eos: int
    chunk_tts_eos: int
    tts_bos: int
    tts_pad: int
    im_end: int
    bad_ids: tuple[int, ...] = ()

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> DuplexTokens:
        """Raises CheckpointError where a token is missing: the model was not made for duplex."""
        token = tokenizer.id
        return cls(
            unit=token("<unit>"),
            unit_end=token("</unit>"),
            image=(token("<image>"), token("</image>")),
            slice=(token("<slice>"), token("</slice>")),
            listen=token("<|listen|>"),
            speak=token("<|speak|>"),
            turn_eos=token("<|turn_eos|>"),
            chunk_eos=token("<|chunk_eos|>"),
            chunk_tts_eos=token("<|chunk_tts_eos|>"),
            tts_bos=token("<|tts_bos|>"),
            tts_pad=token("<|tts_pad|>"),
            im_end=token("<|im_end|>"),
            bad_ids=bad_token_ids(tokenizer),
        )

    @property
    def terminators(self) -> frozenset[int]:
        """What ends the words of a unit."""
        return frozenset((self.listen, self.chunk_eos, self.chunk_tts_eos))

    @property
    def forbidden(self) -> tuple[int, ...]:
        """What the second draw of a step never yields."""
        return (self.tts_pad, *self.bad_ids, self.chunk_eos)


def bad_token_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    """The tokens that tokenizer_config.json forbids in speech."""
    return tuple(int(token_id) for token_id in tokenizer.config.get("bad_token_ids") or ())
