"""LiveKit's plugin without a room: livekit_flows.py ADDRESS MODEL FLOW FOLDER; ADDRESS is HOST:PORT."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from livekit import rtc
from livekit.agents import APIConnectOptions, function_tool, llm
from livekit.agents.utils.http_context import open as open_http
from livekit.plugins import openai
from openai.types.beta.realtime.session import TurnDetection

RATE, CHUNK = 24_000, 2400
ONCE = APIConnectOptions(max_retry=0, timeout=60)


DAY = {"type": "string", "enum": ["today", "tomorrow"]}
OBJECT = {"type": "object", "properties": {"day": DAY}, "required": ["day"], "additionalProperties": False}


@function_tool(raw_schema={"name": "weather", "description": "The weather of a day.", "parameters": OBJECT})
async def weather(raw_arguments: dict[str, object]) -> str:
    return "Rain"


def frames(folder: str) -> list[rtc.AudioFrame]:
    pcm = Path(folder, "question.pcm").read_bytes()
    step = 2 * CHUNK
    pieces = [pcm[start : start + step] for start in range(0, len(pcm), step)]
    return [rtc.AudioFrame(piece, RATE, 1, len(piece) // 2) for piece in pieces]


async def read(generation: llm.GenerationCreatedEvent) -> dict[str, Any]:
    """All that comes of one answer."""
    told: dict[str, Any] = {"text": "", "audio": 0, "loud": False, "messages": [], "calls": []}

    async def listen(message: llm.MessageGeneration) -> None:
        async for frame in message.audio_stream:
            told["audio"] += frame.samples_per_channel
            told["loud"] = told["loud"] or any(bytes(frame.data))

    async for message in generation.message_stream:
        told["messages"].append(message.message_id)
        listening = asyncio.create_task(listen(message))
        async for piece in message.text_stream:
            told["text"] += piece
        await listening
    async for call in generation.function_stream:
        told["calls"].append({"name": call.name, "arguments": call.arguments, "call_id": call.call_id})
    return told


async def realtime(address: str, model: str, folder: str) -> Any:
    """Replies asked for, speech heard while one is spoken, a function, a cut."""
    turns = TurnDetection(type="server_vad", create_response=True, interrupt_response=True)
    made = openai.realtime.RealtimeModel(
        model=model, base_url=f"http://{address}/v1", api_key="none", turn_detection=turns, conn_options=ONCE
    )
    session = made.session()
    told: dict[str, Any] = {"events": [], "errors": []}
    written: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    generations: asyncio.Queue[llm.GenerationCreatedEvent] = asyncio.Queue()

    def finish(event: Any) -> None:
        if event.is_final:
            written.set_result(event.transcript)

    session.on("generation_created", generations.put_nowait)
    session.on("input_speech_started", lambda event: told["events"].append("input_speech_started"))
    session.on("input_speech_stopped", lambda event: told["events"].append("input_speech_stopped"))
    session.on(
        "input_audio_transcription_completed", lambda event: event.is_final and written.set_result(event.transcript)
    )
    session.on("error", lambda event: told["errors"].append(str(event.error)))
    await session.update_instructions("Transcribe the speech.")
    context = llm.ChatContext.empty()
    context.add_message(role="user", content="Good morning!")
    await session.update_chat_ctx(context)

    greeting = await session.generate_reply()
    await generations.get()
    [message] = [message async for message in _first(greeting.message_stream)]
    first = await anext(aiter(message.audio_stream))
    for frame in frames(folder):
        session.push_audio(frame)
    told["answer"] = await read(await generations.get())
    session.truncate(message_id=message.message_id, modalities=["audio"], audio_end_ms=round(first.duration * 1000))
    told["written"] = await written

    await session.update_tools([weather])
    asked = session.chat_ctx.copy()
    asked.add_message(role="user", content="What is the weather for the next three days?")
    await session.update_chat_ctx(asked)
    told["call"] = await read(await session.generate_reply(tool_choice="required"))
    [call] = told["call"]["calls"]
    answered = session.chat_ctx.copy()
    output = llm.FunctionCallOutput(call_id=call["call_id"], name=call["name"], output="Rain", is_error=False)
    answered.items.append(output)
    await session.update_chat_ctx(answered)
    told["about"] = await read(await session.generate_reply(tool_choice="none"))
    session.interrupt()
    told["items"] = [item.type for item in session.chat_ctx.items]
    await session.aclose()
    await made.aclose()
    return told


async def _first(stream: Any) -> Any:
    async for item in stream:
        yield item
        return


async def services(address: str, model: str, folder: str) -> Any:
    """The classes of a cascade: a chat with a tool, speech, a recording."""
    url = f"http://{address}/v1"
    made = openai.LLM(model=model, base_url=url, api_key="none", temperature=0)
    context = llm.ChatContext.empty()
    context.add_message(role="user", content="What is the weather for the next three days?")
    called = await made.chat(chat_ctx=context, tools=[weather], tool_choice="required", conn_options=ONCE).collect()
    plain = await made.chat(chat_ctx=context, conn_options=ONCE).collect()
    tts = openai.TTS(model=model, voice="alloy", base_url=url, api_key="none")
    said = await tts.synthesize("The small bird is near the window.", conn_options=ONCE).collect()
    stt = openai.STT(model=model, base_url=url, api_key="none", use_realtime=False)
    heard = await stt.recognize(frames(folder), conn_options=ONCE)
    for one in (made, tts, stt):
        await one.aclose()
    return {
        "calls": [[call.name, call.arguments] for call in called.tool_calls],
        "text": plain.text,
        "seconds": said.duration,
        "written": heard.alternatives[0].text,
    }


async def live(address: str, model: str, folder: str) -> Any:
    """A full-duplex session that is given something to say."""
    made = openai.realtime.GPTLiveModel(
        model=model, delegation="client", base_url=f"http://{address}/v1", api_key="none", conn_options=ONCE
    )
    session = made.session()
    told: dict[str, Any] = {"text": "", "samples": 0, "loud": False, "errors": []}
    session.on("transcript_delta", lambda event: told.update(text=told["text"] + event.text))
    session.on("error", lambda event: told["errors"].append(str(event.error)))
    await session._update_session(instructions="Talk.", chat_ctx=llm.ChatContext.empty(), tools=[])
    for _ in range(4):
        session.append_commentary("Greet the user.")  # the model of the tests knows nothing: it is told to speak
        for frame in frames(folder)[:10]:
            session.push_audio(frame)
    async for frame in session.audio_stream:
        heard = getattr(frame, "frame", frame)
        told["samples"] += heard.samples_per_channel
        told["loud"] = told["loud"] or any(bytes(heard.data))
        if told["loud"] and told["text"]:
            break
    await session.aclose()
    await made.aclose()
    return told


async def main(address: str, model: str, flow: str, folder: str) -> Any:
    async with open_http():
        return await asyncio.wait_for(FLOWS[flow](address, model, folder), 100)


FLOWS = {flow.__name__: flow for flow in (realtime, services, live)}
print(json.dumps(asyncio.run(main(*sys.argv[1:])), default=str))
