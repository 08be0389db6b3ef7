"""openai-agents about texts: agents_text.py BASE_URL MODEL chat|responses. A tool is called, its answer is streamed."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Annotated

from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from openai import AsyncOpenAI
from pydantic import Field

QUESTION = "What is the weather for the next three days?"
called: list[int] = []


@function_tool
def weather(days: Annotated[int, Field(ge=1, le=9)]) -> str:
    """The weather of the next days."""
    called.append(days)
    return "Rain"


async def main(url: str, name: str, door: str) -> dict[str, object]:
    set_tracing_disabled(True)
    async with AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
        kind = {"chat": OpenAIChatCompletionsModel, "responses": OpenAIResponsesModel}[door]
        settings = ModelSettings(tool_choice="required", temperature=0, max_tokens=64)
        agent = Agent(
            name="guide", instructions="Be brief.", model=kind(name, client), tools=[weather], model_settings=settings
        )
        whole = await Runner.run(agent, QUESTION, max_turns=3)
        streamed = Runner.run_streamed(agent, QUESTION, max_turns=3)
        deltas, items = "", []
        async for event in streamed.stream_events():
            if event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
                deltas += event.data.delta
            if event.type == "run_item_stream_event":
                items.append(event.name)
        return {
            "called": called,
            "whole": whole.final_output,
            "streamed": streamed.final_output,
            "deltas": deltas,
            "items": items,
            "tokens": whole.context_wrapper.usage.total_tokens,
        }


print(json.dumps(asyncio.run(main(*sys.argv[1:]))))
