"""Reads what users write as answer formats, in a process of its own: a bomb kills this process and nothing else.

Run as `python -m sensorium.engine.grammar_worker`. The first line that comes in is the token table, answered by {} when
all is ready; then, per line, the fields of a StructuredOutputs become {"grammar": text for llguidance} or {"error":
text}. All lines are JSON.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import threading
import time
from typing import TYPE_CHECKING

from sensorium.engine.grammar_compile import TokenTable, begin, to_grammar

if TYPE_CHECKING:
    from llguidance import LLTokenizer

CPU_S, MEMORY_BYTES = 2, 256 << 20
# Less stack than the thread that compiles in the engine has: what would overflow there has overflowed here.
_STACK_BYTES = 4 << 20
_NICE = 10


def _serve(tokenizer: LLTokenizer) -> None:
    for line in sys.stdin.buffer:
        used = int(time.process_time() + 0.999)
        resource.setrlimit(resource.RLIMIT_CPU, (used + CPU_S, resource.RLIM_INFINITY))
        try:
            grammar = to_grammar(json.loads(line))
            begin(tokenizer, grammar)
            answer = {"grammar": grammar}
        except (RecursionError, MemoryError):
            answer = {"error": "nested too deep, or too large"}
        except (ValueError, TypeError, KeyError, AssertionError) as error:
            answer = {"error": str(error) or type(error).__name__}
        _say(answer)


def _say(answer: dict[str, str]) -> None:
    sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
    sys.stdout.buffer.flush()


def main() -> None:
    os.nice(_NICE)
    table = json.loads(sys.stdin.buffer.readline())
    tokenizer = TokenTable([bytes.fromhex(token) for token in table["tokens"]], table["special"]).build()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with open("/proc/self/statm") if sys.platform == "linux" else open(os.devnull) as status:
        pages = int((status.read().split() or ["0"])[0])
    if pages:
        size = pages * resource.getpagesize() + MEMORY_BYTES + _STACK_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (size, size))
    _say({})
    threading.stack_size(_STACK_BYTES)
    thread = threading.Thread(target=_serve, args=(tokenizer,))
    thread.start()
    thread.join()


if __name__ == "__main__":
    main()
