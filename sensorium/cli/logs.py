"""What a server writes to stderr: its log lines, what was loaded, and how fast it goes."""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING

from sensorium.config import ServerConfig
from sensorium.errors import SensoriumError

if TYPE_CHECKING:
    from sensorium.engine.client import EngineClient
    from sensorium.engine.protocol import EngineFacts, EngineStats

log = logging.getLogger("sensorium.serve")

PERIOD_S = 10.0
PICTURES = ((4096, 4096), (2048, 2048), (1024, 1024), (512, 512), (224, 224))
"""Height and width."""
VIDEOS = tuple((frames, 360, 640) for frames in (64, 32, 16, 8, 4))
"""Frames, height and width; one frame a second."""
_TRACE = 5


def start_logging(config: ServerConfig) -> None:
    """Everything of ours to stderr, as plain lines or JSON objects."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        _JsonLines() if config.log_format == "json" else logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S")
    )
    levels = {"sensorium": config.log_level, "uvicorn": config.uvicorn_log_level, "opentelemetry": "error"}
    for name, level in levels.items():
        logger = logging.getLogger(name)
        logger.setLevel(_TRACE if level == "trace" else level.upper())
        logger.addHandler(handler)
    logging.getLogger("sensorium.access").disabled = not config.access_log


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        if record.name == "sensorium.access":
            return record.getMessage()  # is JSON already
        line = {"time": self.formatTime(record), "level": record.levelname, "message": record.getMessage()}
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        elif record.exc_text:  # from the engine process
            line["error"] = record.exc_text
        return json.dumps(line, ensure_ascii=False)


def report_loaded(client: EngineClient) -> None:
    """What the model takes and what is left for requests. The wording is vLLM's where scripts look for it."""
    facts, plan, config = client.facts, client.facts.plan, client.config
    log.info("%s as %s on %s", client.model_name, facts.dtype, facts.device)
    for line in memory_lines(facts):
        log.info(line)
    chunked = "enabled" if config.enable_chunked_prefill else "disabled"
    log.info("Chunked prefill is %s with max_num_batched_tokens=%d", chunked, config.max_num_batched_tokens)
    rows = plan.encoder_cache // facts.row_bytes
    log.info("Encoder cache: %s tokens, %.1f MiB", f"{rows:,}", plan.encoder_cache / 2**20)
    if plan.largest:
        items = ", ".join(f"{modality} {size:,} tokens" for modality, size in plan.largest.items())
        log.info("Planned for the largest media: %s", items)
    if plan.activations:
        encoders = f"{plan.encoders / 2**30:.2f}"
        log.info("Activations: %.2f GiB, of which encoders take up to %s", plan.activations / 2**30, encoders)


def memory_lines(facts: EngineFacts) -> list[str]:
    plan = facts.plan
    return [
        f"Model loading took {plan.weights / 2**30:.2f} GiB and {facts.seconds.get('weights', 0.0):.2f} seconds",
        f"Available KV cache memory: {plan.kv_cache / 2**30:.2f} GiB",
        f"GPU KV cache size: {plan.kv_tokens:,} tokens",
        f"Maximum concurrency for {facts.max_model_len:,} tokens per request: "
        f"{plan.kv_tokens / facts.max_model_len:.2f}x",
    ]


def report_seconds(facts: EngineFacts, import_s: float, total_s: float) -> None:
    """What is left of the total is mostly an engine process that starts and imports torch."""
    parts = {"imports": import_s, **facts.seconds}
    parts["rest"] = max(total_s - sum(parts.values()), 0.0)
    shown = ", ".join(f"{phase} {seconds:.1f} s" for phase, seconds in parts.items())
    log.info("init engine took %.2f seconds (%s)", total_s, shown)


def report_largest(client: EngineClient) -> None:
    """One line per modality: the largest picture and the longest video that context and encoder cache hold."""
    for modality, sizes in (("image", PICTURES), ("video", VIDEOS)):
        if modality in client.modalities:
            for size in sizes:
                try:
                    tokens = _tokens_of(client, modality, size)
                except CancelledError:  # the server ends already
                    return
                if tokens is None:
                    break
                if (
                    tokens < client.max_model_len
                    and tokens * client.facts.row_bytes <= client.facts.encoder_cache_bytes
                ):
                    log.info("Largest %s that fits: %s, %s tokens", modality, "x".join(map(str, size)), f"{tokens:,}")
                    break
            else:
                log.warning("no %s fits a context of %d tokens", modality, client.max_model_len)


def _tokens_of(client: EngineClient, modality: str, size: tuple[int, ...]) -> int | None:
    """Tokens of a grey picture or video of a size, prepared as a request's; None where settings admit none."""
    import numpy as np

    from sensorium.types import Media, Message

    times_s = np.arange(size[0], dtype=np.float64) if modality == "video" else None
    media = Media(
        modality,  # type: ignore[arg-type] - one of the two above
        np.full((*size, 3), 127, np.uint8),
        b"sensorium:" + repr(size).encode(),
        times_s=times_s,
    )
    try:
        return sum(client.prepare_chat([Message("user", (media, "?"))]).media_tokens().values())
    except SensoriumError as error:
        log.debug("a %s of %s is refused: %s", modality, size, error)
        return None


class Throughput:
    """A line every 10 s while there is work, from a thread of its own."""

    def __init__(self, client: EngineClient) -> None:
        self._client = client
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sensorium-stats", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()

    def _run(self) -> None:
        last, last_s = self._client.stats(), time.monotonic()
        while not self._stop.wait(PERIOD_S):
            now, now_s = self._client.stats(), time.monotonic()
            if now.steps != last.steps or now.waiting or now.running:
                cache = self._client.media_stats().cache
                log.info(throughput_line(last, now, now_s - last_s, cache.hits, cache.queries))
            last, last_s = now, now_s


def throughput_line(
    before: EngineStats, now: EngineStats, seconds: float, media_hits: int = 0, media_queries: int = 0
) -> str:
    """vLLM's line, for what happened between two snapshots. Counters that went back mean a new engine."""
    prompt = max(0, now.prompt_tokens - before.prompt_tokens) / seconds
    generation = max(0, now.generation_tokens - before.generation_tokens) / seconds
    return (
        f"Avg prompt throughput: {prompt:.1f} tokens/s, Avg generation throughput: {generation:.1f} tokens/s, "
        f"Running: {now.running} reqs, Waiting: {now.waiting} reqs, "
        f"GPU KV cache usage: {100 * now.kv_blocks_used / max(1, now.kv_blocks_total):.1f}%, "
        f"Prefix cache hit rate: {100 * now.prefix_hit_tokens / max(1, now.prefix_query_tokens):.1f}%, "
        f"MM cache hit rate: {100 * media_hits / max(1, media_queries):.1f}%"
    )
