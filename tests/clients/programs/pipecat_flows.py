"""pipecat's services in pipelines: pipecat_flows.py ADDRESS MODEL FLOW FOLDER; ADDRESS is HOST:PORT."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from loguru import logger

logger.remove()

from pipecat.adapters.llm.schemas.function_schema import FunctionSchema  # noqa: E402
from pipecat.frames.frames import (  # noqa: E402
    EndFrame,
    ErrorFrame,
    Frame,
    FunctionCallResultFrame,
    InputAudioRawFrame,
    LLMFullResponseEndFrame,
    LLMRunFrame,
    LLMTextFrame,
    OutputAudioRawFrame,
    SpeechOutputAudioRawFrame,
    TranscriptionFrame,
    TTSAudioRawFrame,
    TTSStoppedFrame,
    TTSTextFrame,
    VADUserStartedSpeakingFrame,
    VADUserStoppedSpeakingFrame,
)
from pipecat.pipeline.pipeline import Pipeline  # noqa: E402
from pipecat.pipeline.worker import PipelineParams, PipelineWorker  # noqa: E402
from pipecat.processors.aggregators.llm_context import LLMContext  # noqa: E402
from pipecat.processors.aggregators.llm_response_universal import LLMContextAggregatorPair  # noqa: E402
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor  # noqa: E402
from pipecat.services.llm_service import FunctionCallParams  # noqa: E402
from pipecat.services.openai.live.events import SessionCommentaryAppendEvent  # noqa: E402
from pipecat.services.openai.live.llm import OpenAILiveLLMService  # noqa: E402
from pipecat.services.openai.llm import OpenAILLMService  # noqa: E402
from pipecat.services.openai.realtime import events  # noqa: E402
from pipecat.services.openai.realtime.llm import OpenAIRealtimeLLMService  # noqa: E402
from pipecat.services.openai.stt import OpenAIRealtimeSTTService, OpenAISTTService  # noqa: E402
from pipecat.services.openai.tts import OpenAITTSService  # noqa: E402
from pipecat.workers.runner import WorkerRunner  # noqa: E402

RATE, CHUNK = 24_000, 4800
TRANSCRIBE = "Transcribe the speech."
QUESTION = [{"role": "user", "content": "What is the weather for the next three days?"}]


class Tap(FrameProcessor):
    """Lets frames pass and keeps them; `until` waits for so many of a kind."""

    def __init__(self) -> None:
        super().__init__()
        self.frames: list[Frame] = []
        self._news = asyncio.Condition()

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        async with self._news:
            self.frames.append(frame)
            self._news.notify_all()
        await self.push_frame(frame, direction)

    def of(self, kind: type[Frame]) -> list[Any]:
        return [frame for frame in self.frames if isinstance(frame, kind)]

    def spoken(self) -> str:
        return "".join(frame.text for frame in self.of(TTSTextFrame))

    def is_after(self, later: type[Frame], earlier: type[Frame]) -> bool:
        """Whether one of `later` came behind the last of `earlier`."""
        kinds = [type(frame) for frame in reversed(self.frames) if isinstance(frame, (later, earlier))]
        return bool(kinds) and kinds[0] is later

    async def until(self, kind: type[Frame], count: int = 1) -> None:
        await self.until_true(lambda: len(self.of(kind)) >= count)

    async def until_true(self, condition: Callable[[], bool]) -> None:
        async with self._news:
            await self._news.wait_for(lambda: condition() or self.of(ErrorFrame))


async def run(stages: list[FrameProcessor], play: Callable[[PipelineWorker], Awaitable[None]], taps: list[Tap]) -> Any:
    """Run a pipeline, play its part, end it; what came by."""
    params = PipelineParams(audio_in_sample_rate=RATE, audio_out_sample_rate=RATE)
    worker = PipelineWorker(Pipeline(stages), params=params, cancel_on_idle_timeout=False, enable_rtvi=False)
    started = asyncio.Event()

    @worker.event_handler("on_pipeline_started")
    async def _(worker: PipelineWorker, frame: Frame) -> None:
        started.set()

    async def part() -> None:
        await started.wait()
        await play(worker)
        await worker.queue_frame(EndFrame())

    runner = WorkerRunner()
    await runner.add_workers(worker)
    await asyncio.gather(runner.run(), part())

    def all_of(kind: type[Frame]) -> list[Any]:
        return [frame for tap in taps for frame in tap.of(kind)]

    return {
        "text": "".join(frame.text for frame in all_of(LLMTextFrame)),
        "spoken": "".join(frame.text for frame in all_of(TTSTextFrame)),
        "audio": sum(len(frame.audio) for frame in all_of(OutputAudioRawFrame)),
        "loud": any(any(frame.audio) for frame in all_of(OutputAudioRawFrame)),
        "written": [frame.text for frame in all_of(TranscriptionFrame)],
        "results": [frame.result for frame in all_of(FunctionCallResultFrame)],
        "errors": [frame.error for frame in all_of(ErrorFrame)],
    }


async def hear(worker: PipelineWorker, seconds: float = 60.0) -> None:
    for start in range(0, min(len(pcm), round(2 * RATE * seconds)), CHUNK):
        await worker.queue_frame(InputAudioRawFrame(pcm[start : start + CHUNK], RATE, 1))


async def realtime(address: str, model: str) -> Any:
    """It greets; what is said while it speaks is written down and answered."""
    heard = events.AudioInput(transcription=events.InputAudioTranscription(), turn_detection=events.TurnDetection())
    properties = events.SessionProperties(
        instructions=TRANSCRIBE, audio=events.AudioConfiguration(input=heard), output_modalities=["audio"]
    )
    llm = OpenAIRealtimeLLMService(
        api_key="none",
        base_url=f"ws://{address}/v1/realtime",
        settings=OpenAIRealtimeLLMService.Settings(model=model, session_properties=properties),
    )
    context = LLMContext([{"role": "user", "content": "Good morning!"}])
    pair = LLMContextAggregatorPair(context)
    above, below = Tap(), Tap()

    async def play(worker: PipelineWorker) -> None:
        await worker.queue_frame(LLMRunFrame())
        await below.until(TTSAudioRawFrame)
        await hear(worker)
        await above.until(TranscriptionFrame)
        await below.until_true(lambda: "window." in below.spoken())
        await below.until_true(lambda: below.is_after(TTSStoppedFrame, TTSTextFrame))

    told = await run([pair.user(), above, llm, below, pair.assistant()], play, [above, below])
    return told | {"messages": context.get_messages()}


async def tool(address: str, model: str) -> Any:
    """It calls a function and answers with what comes back."""
    schema = FunctionSchema("weather", "It.", {"days": {"type": "integer", "minimum": 1, "maximum": 9}}, ["days"])
    properties = events.SessionProperties(output_modalities=["text"], tool_choice="required")
    llm = OpenAIRealtimeLLMService(
        api_key="none",
        base_url=f"ws://{address}/v1/realtime",
        settings=OpenAIRealtimeLLMService.Settings(model=model, session_properties=properties),
    )

    async def weather(params: FunctionCallParams) -> None:
        free = events.SessionProperties(tool_choice="none")
        await llm.send_client_event(events.SessionUpdateEvent(session=free))
        await params.result_callback({"weather": "Rain", **params.arguments})

    llm.register_function("weather", weather)
    pair = LLMContextAggregatorPair(LLMContext(list(QUESTION), [schema]))
    below = Tap()

    async def play(worker: PipelineWorker) -> None:
        await worker.queue_frame(LLMRunFrame())
        await below.until(FunctionCallResultFrame)
        await below.until(LLMTextFrame)
        await below.until(LLMFullResponseEndFrame, 2)

    return await run([pair.user(), llm, below, pair.assistant()], play, [below])


async def cascade(address: str, model: str) -> Any:
    """Its other services: chat completions, then speech."""
    url = f"http://{address}/v1"
    settings = OpenAILLMService.Settings(model=model, temperature=0)
    llm = OpenAILLMService(api_key="none", base_url=url, settings=settings)
    tts = OpenAITTSService(api_key="none", base_url=url, settings=OpenAITTSService.Settings(model=model, voice="alloy"))
    pair = LLMContextAggregatorPair(LLMContext([{"role": "user", "content": "Good morning!"}]))
    middle, below = Tap(), Tap()

    async def play(worker: PipelineWorker) -> None:
        await worker.queue_frame(LLMRunFrame())
        await below.until(TTSStoppedFrame)

    return await run([pair.user(), llm, middle, tts, below, pair.assistant()], play, [middle, below])


async def transcribe(address: str, model: str) -> Any:
    """Recordings as files, then over a transcription session of /v1/realtime."""
    settings = OpenAISTTService.Settings(model=model)
    by_file = OpenAISTTService(api_key="none", base_url=f"http://{address}/v1", settings=settings)
    by_socket = OpenAIRealtimeSTTService(
        api_key="none",
        base_url=f"ws://{address}/v1/realtime",
        settings=OpenAIRealtimeSTTService.Settings(model=model),
    )
    told = {}
    for name, service in (("file", by_file), ("socket", by_socket)):
        below = Tap()

        async def play(worker: PipelineWorker, below: Tap = below, service: Any = service) -> None:
            # By socket it configures its session when it has read the server's first event, and does not wait for that
            # with sound: what it commits before is written down by nobody.
            while not getattr(service, "_session_ready", True):  # noqa: ASYNC110 - its flag, without an event
                await asyncio.sleep(0.01)
            await worker.queue_frame(VADUserStartedSpeakingFrame())
            await hear(worker)
            await worker.queue_frame(VADUserStoppedSpeakingFrame())
            await below.until(TranscriptionFrame)

        told[name] = await run([service, below], play, [below])
    return told


async def live(address: str, model: str) -> Any:
    """A full-duplex session that is asked to speak first."""
    llm = OpenAILiveLLMService(
        api_key="none",
        base_url=f"ws://{address}/v1/live/sessions",
        settings=OpenAILiveLLMService.Settings(model=model, system_instruction="Talk."),
    )
    pair = LLMContextAggregatorPair(LLMContext([{"role": "developer", "content": "Greet the user."}]))
    below, begun = Tap(), asyncio.Event()

    @llm.event_handler("on_session_started")
    async def _(llm: OpenAILiveLLMService, session: Any) -> None:
        begun.set()

    async def play(worker: PipelineWorker) -> None:
        await worker.queue_frame(LLMRunFrame())
        await begun.wait()
        for _ in range(4):  # the model of the tests knows nothing: it is told to speak
            say = SessionCommentaryAppendEvent(content="Greet the user.", delegation_id=None)
            await llm.send_client_event(say)
            await hear(worker, 1.0)
        await below.until(TTSTextFrame)
        await below.until(SpeechOutputAudioRawFrame, 10)

    return await run([pair.user(), llm, below, pair.assistant()], play, [below])


FLOWS = {flow.__name__: flow for flow in (realtime, tool, cascade, transcribe, live)}
address, model, flow, folder = sys.argv[1:]
pcm = Path(folder, "question.pcm").read_bytes()
print(json.dumps(asyncio.run(asyncio.wait_for(FLOWS[flow](address, model), 100)), default=str))
