"""`sensorium serve`: the HTTP server. Its socket answers before torch is imported; /health says "loading" till then."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from typing import TYPE_CHECKING

from sensorium.cli.loading import LoadingBar
from sensorium.cli.options import add_flags, build
from sensorium.config import EngineConfig, MediaLimits, ServerConfig
from sensorium.server.run import BindError, run_server

if TYPE_CHECKING:
    from sensorium.engine.client import EngineClient

log = logging.getLogger("sensorium.serve")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", default="", help="folder or hub name; none is the packaged model")
    add_flags(parser, ServerConfig, "server")
    add_flags(parser, EngineConfig, "engine")
    add_flags(parser, MediaLimits, "media")


def run(args: argparse.Namespace) -> int:
    server = build(ServerConfig, args)
    engine = build(EngineConfig, args, model=args.model, limits=build(MediaLimits, args))
    start_logging(server.log_format)
    logging.getLogger("sensorium.access").disabled = not server.access_log
    started = time.perf_counter()
    address = ""

    def on_bound(url: str) -> None:
        nonlocal address
        address = url
        log.info("listening on %s after %.1f s; loading the model", url, time.perf_counter() - started)

    def on_ready(client: EngineClient) -> None:
        log.info("ready after %.1f s: %s on %s", time.perf_counter() - started, client.model_name, address)

    try:
        run_server(server, lambda: load(engine), on_bound=on_bound, on_ready=on_ready)
    except BindError as error:
        raise BindError(f"{error.message} (--host, --port, --api-key and --insecure are the flags for that)") from None
    return 0


def load(config: EngineConfig) -> EngineClient:
    """The engine, with a bar on a terminal, and a log line per phase."""
    started = time.perf_counter()
    from sensorium.engine.client import EngineClient

    log.info("imports: %.1f s", time.perf_counter() - started)
    with LoadingBar() as bar:
        client = EngineClient(config, bar.update)
    facts = client.facts
    for phase, seconds in facts.seconds.items():
        log.info("%s: %.1f s", phase, seconds)
    log.info(
        "%s as %s on %s: weights %.0f MiB, KV cache %.0f MiB for %d tokens, context %d",
        client.model_name,
        facts.dtype,
        facts.device,
        facts.plan.weights / 2**20,
        facts.plan.kv_cache / 2**20,
        facts.plan.kv_tokens,
        client.max_model_len,
    )
    return client


def start_logging(log_format: str) -> None:
    """Everything of ours to stderr, as plain lines or JSON objects."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        _JsonLines() if log_format == "json" else logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S")
    )
    logger = logging.getLogger("sensorium")
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        if record.name == "sensorium.access":
            return record.getMessage()  # is JSON already
        line = {"time": self.formatTime(record), "level": record.levelname, "message": record.getMessage()}
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)
