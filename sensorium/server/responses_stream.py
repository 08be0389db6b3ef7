"""An answer in the words of the Responses API: items that are opened, filled and closed, each step an event."""

from __future__ import annotations

import time
import uuid
from collections.abc import Collection, Sequence
from typing import Any

import msgspec

from sensorium.parsers.writing import CallDelta
from sensorium.server.answer_form import Piece, Splitter, Thought
from sensorium.server.errors import describe
from sensorium.server.generation import Progress, Tally, Unwritten
from sensorium.server.reports import TokenBytes, report_logprobs
from sensorium.server.responses_schema import InputDetails, OutputDetails, Response, ResponseUsage
from sensorium.server.sse import frame
from sensorium.types import TextDelta, TokenLogprob

_TEXT = {"message": "output_text", "reasoning": "reasoning_text"}


class ResponseCodec:
    """Keeps `response` true while the answer grows; whoever holds it may show it at any time."""

    def __init__(
        self, response: Response, input_tokens: int, tally: Tally, split: Splitter, token_bytes: TokenBytes | None
    ) -> None:
        """token_bytes: given, the text's log-probabilities are reported."""
        self.response = response
        self._input_tokens = input_tokens
        self._tally = tally
        self._split = split
        self._token_bytes = token_bytes
        self._logprobs: list[TokenLogprob] = []
        self._shown = 0
        self._frames: list[bytes] = []
        self._number = 0
        self._reasoning_tokens = 0
        self._open = False

    # ---- what Generation calls -------------------------------------------------------------------------------------

    def take(self, number: int, event: Progress) -> None:
        if isinstance(event, TextDelta):
            pieces = self._split.feed(event.text)
            if self._split.thinks:
                self._reasoning_tokens += len(event.token_ids)
            else:
                self._logprobs.extend(event.logprobs)
            self._add(pieces)
        elif self._tally.finished is not None:
            self._add(self._split.finish())
            self._finish()

    def reply(self) -> bytes:
        return msgspec.json.encode(self.response)

    def opening(self) -> Sequence[bytes]:
        self._emit("response.created", response=self.response)
        self._emit("response.in_progress", response=self.response)
        return self.news(())

    def news(self, numbers: Collection[int]) -> Sequence[bytes]:
        frames, self._frames = self._frames, []
        return frames

    def ending(self) -> Sequence[bytes]:
        self._emit(f"response.{self.response.status}", response=self.response)
        return self.news(())

    def failure(self, error: BaseException) -> bytes:
        """The last event of a stream that went wrong."""
        self.fail(error)
        self._emit("response.failed", response=self.response)
        return b"".join(self.news(()))

    def fail(self, error: BaseException) -> None:
        detail = describe(error)[1].error
        self.response.status = "failed"
        self.response.error = {"code": detail.code, "message": detail.message}

    # ---- items -----------------------------------------------------------------------------------------------------

    def _add(self, pieces: Sequence[Piece]) -> None:
        for piece in pieces:
            if isinstance(piece, CallDelta):
                self._call(piece)
            elif isinstance(piece, Thought):
                self._write("reasoning", piece.text)
            else:
                self._write("message", piece)

    def _write(self, kind: str, text: str) -> None:
        if not self._open or self._item["type"] != kind:
            self._close()
            part: dict[str, Any] = {"type": _TEXT[kind], "text": ""}
            item: dict[str, Any]
            if kind == "message":
                part |= {"annotations": [], "logprobs": []}
                item = {"id": _id("msg"), "type": kind, "status": "in_progress", "role": "assistant", "content": []}
            else:
                item = {"id": _id("rs"), "type": kind, "status": "in_progress", "summary": [], "content": []}
            self._begin(item)
            self._item["content"].append(part)
            self._emit("response.content_part.added", **self._at, content_index=0, part=part)
        self._item["content"][0]["text"] += text
        extra: dict[str, Any] = {}
        if kind == "message":
            extra["logprobs"], self._shown = self._reported(self._shown), len(self._logprobs)
        self._emit(f"response.{_TEXT[kind]}.delta", **self._at, content_index=0, delta=text, **extra)

    def _call(self, piece: CallDelta) -> None:
        if piece.name is not None:
            self._close()
            item = {"id": _id("fc"), "type": "function_call", "status": "in_progress"}
            self._begin({**item, "call_id": _id("call"), "name": piece.name, "arguments": ""})
        if piece.arguments:
            self._item["arguments"] += piece.arguments
            self._emit("response.function_call_arguments.delta", **self._at, delta=piece.arguments)

    @property
    def _item(self) -> dict[str, Any]:
        return self.response.output[-1]

    @property
    def _at(self) -> dict[str, Any]:
        return {"item_id": self._item["id"], "output_index": len(self.response.output) - 1}

    def _begin(self, item: dict[str, Any]) -> None:
        self.response.output.append(item)
        self._open = True
        self._emit("response.output_item.added", output_index=len(self.response.output) - 1, item=item)

    def _close(self, status: str = "completed") -> None:
        if not self._open:
            return
        item, self._open = self._item, False
        item["status"] = status
        if item["type"] == "function_call":
            done = {"name": item["name"], "arguments": item["arguments"]}
            self._emit("response.function_call_arguments.done", **self._at, **done)
        else:
            part = item["content"][0]
            extra: dict[str, Any] = {}
            if item["type"] == "message":
                part["logprobs"] = extra["logprobs"] = self._reported()
            self._emit(f"response.{part['type']}.done", **self._at, content_index=0, text=part["text"], **extra)
            self._emit("response.content_part.done", **self._at, content_index=0, part=part)
        self._emit("response.output_item.done", output_index=len(self.response.output) - 1, item=item)

    def _reported(self, start: int = 0) -> list[Any]:
        if self._token_bytes is None:
            return []
        return msgspec.to_builtins(report_logprobs(self._logprobs[start:], self._token_bytes).content)

    # ---- the end ---------------------------------------------------------------------------------------------------

    def _finish(self) -> None:
        finished = self._tally.finished
        assert finished is not None
        cut = finished.reason == "length"
        self._close("incomplete" if cut else "completed")
        response = self.response
        response.status = "incomplete" if cut else "completed"
        if cut:
            response.incomplete_details = {"reason": "max_output_tokens"}
        response.completed_at = int(time.time())
        response.usage = ResponseUsage(
            input_tokens=self._input_tokens,
            input_tokens_details=InputDetails(finished.usage.cached_tokens),
            output_tokens=self._tally.tokens,
            output_tokens_details=OutputDetails(self._reasoning_tokens),
            total_tokens=self._input_tokens + self._tally.tokens,
        )

    def _emit(self, type: str, **fields: Any) -> None:
        event = {"type": type, "sequence_number": self._number, **fields}
        self._frames.append(frame(msgspec.json.encode(event), type))
        self._number += 1


class Silent(Unwritten):
    """A codec whose events nobody reads: for answers that come whole, or are fetched later."""

    def __init__(self, codec: ResponseCodec) -> None:
        self._codec = codec

    def take(self, number: int, event: Progress) -> None:
        self._codec.take(number, event)
        self._codec.news(())

    def reply(self) -> bytes:
        return self._codec.reply()


def _id(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex}"
