"""What a hostile case is, and short ways to write one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hostile.world import World

OK = 200
CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
MESSAGES, TOKENIZE, DETOKENIZE = "/v1/messages", "/tokenize", "/detokenize"
PUBLIC, LISTED = "public", "listed"
BLOCKED = "media_url_blocked"


@dataclass(frozen=True)
class Case:
    """One request and what must come of it. Its name begins with its number in the catalogue of hostile inputs."""

    body: Any
    """Bytes as they are, anything else as JSON; or a function of the World that gives one of those."""
    status: int | tuple[int, ...]
    param: str | None = None
    """What `param` of the error begins with."""
    code: str | None = None
    server: str = PUBLIC
    path: str = CHAT
    check: Callable[[Any], object] | None = None
    """Must be true of the answer."""
    headers: dict[str, str] | None = None
    """In place of those that a JSON body has."""
    slow: bool = False

    def make(self, world: World) -> Any:
        return self.body(world) if callable(self.body) else self.body


Table = dict[str, Case]


def table(*parts: dict[str, Case | tuple]) -> Table:
    """One table of several; a tuple stands for (body, status, param)."""
    joined: Table = {}
    for part in parts:
        for name, case in part.items():
            assert name not in joined, f"{name} is there twice"
            joined[name] = case if isinstance(case, Case) else Case(*case)
    return joined


def many(number: str, **named: Case | tuple) -> dict[str, Case | tuple]:
    """Cases of one number; the underscores of a name become blanks."""
    return {f"{number} {name.replace('_', ' ')}": case for name, case in named.items()}
