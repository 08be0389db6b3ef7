"""openai-agents over /v1/realtime: agents_realtime.py WS_URL MODEL speech|cut|tool FOLDER."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Annotated, Any

from agents import function_tool, set_tracing_disabled
from agents.realtime import RealtimeAgent, RealtimeRunner, RealtimeSession
from agents.realtime.model_inputs import RealtimeModelSendSessionUpdate
from pydantic import Field

CHUNK = 4800
TURNS = {"type": "server_vad", "interrupt_response": True}
seen: dict[str, Any] = {"events": [], "audio": 0, "called": [], "history": [], "errors": []}
session: RealtimeSession | None = None


@function_tool
async def weather(days: Annotated[int, Field(ge=1, le=9)]) -> str:
    """The weather of the next days."""
    seen["called"].append(days)
    assert session is not None
    # The model was made to call it; its answer about what came back is a free one.
    free: Any = {"model_name": model, "turn_detection": TURNS, "tool_choice": "none"}
    await session.model.send_event(RealtimeModelSendSessionUpdate(session_settings=free))
    return "Rain"


async def until(kind: str, events: Any) -> None:
    """Reads on up to an event of that kind, the SDK's or the server's, and keeps what there was."""
    async for event in events:
        if event.type == "raw_model_event":
            if event.data.type == "raw_server_event" and event.data.data["type"] == kind:
                return
            continue
        seen["events"].append(event.type)
        if event.type == "audio":
            seen["audio"] += len(event.audio.data)
        elif event.type == "error":
            seen["errors"].append(str(event.error))
        elif event.type in ("history_added", "history_updated"):
            assert session is not None
            seen["history"] = [item.model_dump() for item in session._history]
        if event.type == kind:
            return


async def hear(pcm: bytes) -> None:
    assert session is not None
    for start in range(0, len(pcm), CHUNK):
        await session.send_audio(pcm[start : start + CHUNK])


async def main(url: str, name: str, flow: str, pcm: bytes) -> None:
    global session
    set_tracing_disabled(True)
    settings: dict[str, Any] = {
        "model_name": name,
        "turn_detection": {"type": "server_vad", "interrupt_response": True},
    }
    if flow == "tool":
        settings["tool_choice"] = "required"
    tools = [weather] if flow == "tool" else []
    agent = RealtimeAgent(name="guide", instructions="Transcribe the speech.", tools=tools)
    config: Any = {"url": f"{url}/v1/realtime?model={name}", "api_key": "none", "initial_model_settings": settings}
    async with await RealtimeRunner(agent).run(model_config=config) as session:
        events = aiter(session)
        if flow == "tool":
            await session.send_message("What is the weather for the next three days?")
            await until("tool_end", events)
            await until("audio_end", events)
            await until("agent_end", events)
            return
        await hear(pcm)
        await until("audio", events)
        await hear(pcm)  # while it speaks
        await until("audio_interrupted", events)
        if flow == "cut":
            await until("conversation.item.truncated", events)
            return
        await until("audio", events)
        await until("agent_end", events)
        seen["history"] = [item.model_dump() for item in session._history]


address, model, what, folder = sys.argv[1:]
asyncio.run(main(address, model, what, Path(folder, "question.pcm").read_bytes()))
print(json.dumps(seen, default=str))
