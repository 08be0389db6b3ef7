"""`sensorium run-batch`: an OpenAI batch file in, its answers out. Run again, it goes on where it stopped."""

from __future__ import annotations

import asyncio
import logging
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sensorium.cli.loading import LoadingBar
from sensorium.cli.options import add_flags, add_foreign
from sensorium.cli.parser import Parser
from sensorium.cli.serve import configure
from sensorium.cli.values import integer
from sensorium.config import EngineConfig, MediaLimits, ServerConfig
from sensorium.envs import read_environment
from sensorium.errors import ConfigError
from sensorium.server.app import build_app
from sensorium.server.batch import Batch, BatchError, Line, download, finished_ids, is_url, read_lines, upload
from sensorium.server.run import bind, http_server

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send


def add_arguments(parser: Parser) -> None:
    parser.add_model()
    files = parser.add_argument_group("batch")
    files.add_argument("-i", "--input-file", default="", metavar="FILE", help="requests, one a line; or a URL")
    files.add_argument("-o", "--output-file", default="", metavar="FILE", help="for the answers; or a URL, sent by PUT")
    files.add_argument("--output-tmp-dir", default="", metavar="FOLDER", help="where an output for a URL is made")
    files.add_argument(
        "--max-inflight", type=integer, default=0, metavar="N", help="requests at once; 0 is max-num-seqs"
    )
    files.add_argument("--enable-metrics", action="store_true", help="GET /metrics on --port while it runs")
    add_flags(parser, EngineConfig, ServerConfig, MediaLimits)
    add_foreign(parser)


def run(parser: Parser, given: dict[str, Any]) -> int:
    """0 even where requests failed: what went wrong with them is in the output."""
    for name in ("input_file", "output_file"):
        if not given[name]:
            raise ConfigError(f"{name} is needed: -i requests.jsonl -o answers.jsonl", param=name)
    if given["max_inflight"] < 0:
        raise ConfigError("max_inflight must not be negative", param="max_inflight")
    with tempfile.TemporaryDirectory(dir=given["output_tmp_dir"] or None) as folder:
        return asyncio.run(_run(given, Path(folder)))


async def _run(given: dict[str, Any], folder: Path) -> int:
    source, target = given["input_file"], given["output_file"]
    if is_url(source):
        await download(source, folder / "input.jsonl")
    path = folder / "input.jsonl" if is_url(source) else Path(source)
    output = folder / "output.jsonl" if is_url(target) else Path(target)
    if not path.is_file():
        raise BatchError(f"there is no file {source}")
    lines = read_lines(path)
    done = finished_ids(output)
    left = [line for line in lines if line.custom_id not in done]
    if len(left) < len(lines):
        print(f"{len(lines) - len(left)} of {len(lines)} requests are answered in {output} already", file=sys.stderr)
    output.touch()
    failed = 0
    if left:
        log = logging.getLogger("sensorium.access")
        was, log.disabled = log.disabled, True  # there is the bar, and the output
        try:
            failed = await _answer(given, path, left, output)
        finally:
            log.disabled = was
    if is_url(target):
        await upload(output, target)
    print(f"{len(left)} requests answered, {failed} of them with an error: {target}", file=sys.stderr)
    return 0


async def _answer(given: dict[str, Any], source: Path, lines: list[Line], output: Path) -> int:
    """How many of the requests failed."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from sensorium.engine.client import EngineClient

    engine, server = configure(given, read_environment())
    with LoadingBar(engine.use_tqdm_on_load) as bar:
        client = await asyncio.to_thread(EngineClient, engine, bar.update)
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
    with client, Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("Answering", total=len(lines))
        # No keys: who may start this command may also read its files.
        app = build_app(client, ServerConfig(**_served(server)))
        stop = _show_metrics(app, server) if given["enable_metrics"] else None
        batch = Batch(app, source, given["max_inflight"] or engine.max_num_seqs)
        try:
            await batch.run(lines, output, lambda: progress.advance(task))
        finally:
            if stop is not None:
                stop()
    return batch.failed


def _served(config: ServerConfig) -> dict[str, Any]:
    """The settings of the server that bear on answers, not on who may come in."""
    from dataclasses import fields

    left_out = ("host", "port", "api_keys", "api_key_file", "allowed_hosts", "allowed_origins", "insecure")
    return {field.name: getattr(config, field.name) for field in fields(config) if field.name not in left_out}


def _show_metrics(app: ASGIApp, config: ServerConfig) -> Any:
    """Serves /metrics and /health only; gives back what ends that."""

    async def some(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] in ("/metrics", "/health"):
            await app(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 404, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body"})

    listener = bind(config)
    server = http_server(some, config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="sensorium-metrics", daemon=True)
    thread.start()

    def stop() -> None:
        server.should_exit = True
        thread.join()

    return stop
