"""`sensorium serve`: the HTTP server. Its socket answers before torch is imported; /health says "loading" till then."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sensorium.cli.loading import LoadingBar, with_voice
from sensorium.cli.logs import Throughput, report_largest, report_loaded, report_seconds, start_logging
from sensorium.cli.options import add_flags, add_foreign, build
from sensorium.cli.parser import Parser
from sensorium.config import EngineConfig, MediaLimits, ServerConfig
from sensorium.envs import NO_EFFECT, Environment, find, read_environment
from sensorium.errors import ConfigError
from sensorium.media.disk_cache import DiskCache
from sensorium.server.guard import is_loopback
from sensorium.server.run import BindError, run_server

if TYPE_CHECKING:
    from sensorium.engine.client import EngineClient

log = logging.getLogger("sensorium.serve")

MAX_KEYS = 10_000


def add_arguments(parser: Parser) -> None:
    parser.add_model()
    add_flags(parser, EngineConfig, ServerConfig, MediaLimits)
    add_foreign(parser)


def run(parser: Parser, given: dict[str, Any]) -> int:
    environment = read_environment()
    engine, server = configure(given, environment)
    for name, reason in NO_EFFECT.items():
        if (variable := find(name, os.environ)) is not None:
            parser.warn(f"{variable} has no effect in sensorium: {reason}")
    start_logging(server)
    server, made = _with_key(server)
    return Server(engine, server, made, environment.engine_ready_timeout_s).run()


def configure(given: Mapping[str, Any], environment: Environment) -> tuple[EngineConfig, ServerConfig]:
    """The configurations that flags and environment describe; a flag wins. Raises ConfigError."""
    # Over the network embeddings are taken only where that was asked for.
    given = {"enable_mm_embeds": False} | dict(given)
    given = with_voice(given)
    engine = build(EngineConfig, given, model=given["model"], limits=build(MediaLimits, given))
    if engine.limits.allowed_local_path is not None and not engine.limits.allowed_local_path.is_dir():
        raise ConfigError(f"{engine.limits.allowed_local_path} is not a folder", param="allowed_local_path")
    DiskCache.of(environment)  # says now, not at the first download, where its folder cannot be written
    server = build(ServerConfig, _from_environment(environment) | dict(given))
    if server.enable_per_request_metrics and engine.disable_log_stats:
        raise ConfigError("enable_per_request_metrics and disable_log_stats contradict each other; leave one out")
    keys = (*server.api_keys, *_read_keys(server.api_key_file))
    if not keys and environment.api_key:
        keys = (environment.api_key,)
    template = None if server.chat_template is None else read_template(server.chat_template)
    return engine, replace(server, api_keys=keys, chat_template=template)


def _from_environment(environment: Environment) -> dict[str, Any]:
    """Fields of ServerConfig that a variable can set."""
    fields: dict[str, Any] = {
        "dev_mode": environment.server_dev_mode,
        "log_error_stack": environment.server_dev_mode,
        "enable_responses_store": environment.enable_responses_api_store,
        "max_audio_filesize_mb": environment.max_audio_clip_filesize_mb,
        "max_body_bytes": environment.http_max_request_body_size,
        "log_level": environment.logging_level.lower(),
    }
    if fields["log_level"] not in ("critical", "error", "warning", "info", "debug", "trace"):
        raise ConfigError(f"LOGGING_LEVEL must name a level such as INFO, not {environment.logging_level!r}")
    return {name: value for name, value in fields.items() if value is not None}


def _read_keys(path: Path | None) -> list[str]:
    if path is None:
        return []
    try:
        lines = [line.strip() for line in path.read_text("utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}", param="api_key_file") from None
    keys = [line for line in lines if line and not line.startswith("#")]
    if not 1 <= len(keys) <= MAX_KEYS:
        raise ConfigError(f"{path} holds {len(keys)} keys; there must be 1 to {MAX_KEYS}", param="api_key_file")
    return keys


def read_template(given: str) -> str:
    """A template's text: of the file that is named, or as given where it is no path."""
    try:
        if Path(given).is_file():
            return Path(given).read_text("utf-8")
    except (OSError, ValueError, UnicodeDecodeError) as error:
        raise ConfigError(f"the template {given[:200]!r} cannot be read: {error}", param="chat_template") from None
    if not any(mark in given for mark in "{}\n"):
        raise ConfigError(f"there is no template file {given[:200]!r}", param="chat_template")
    return given


def _with_key(config: ServerConfig) -> tuple[ServerConfig, str]:
    """On an address that other machines reach there is a key: where none was given, a random one."""
    if config.api_keys or config.insecure or is_loopback(config.host):
        return config, ""
    key = secrets.token_urlsafe(24)
    return replace(config, api_keys=(key,)), key


class Server:
    """One run of the server, from binding to the last line."""

    def __init__(self, engine: EngineConfig, config: ServerConfig, made_key: str, ready_s: float | None = None) -> None:
        """made_key: the one that was made for this run, if any. ready_s: see Supervision."""
        self._engine = engine
        self._config = config
        self._made_key = made_key
        self._ready_s = ready_s
        self._started = time.perf_counter()
        self._address = ""
        self._throughput: Throughput | None = None

    def run(self) -> int:
        """The exit code."""
        try:
            return run_server(self._config, self._load, on_bound=self._on_bound, on_ready=self._on_ready)
        except BindError as error:
            flags = "--host, --port, --api-key and --insecure"
            raise BindError(f"{error.message} ({flags} are the flags for that)") from None
        finally:
            if self._throughput is not None:
                self._throughput.stop()

    def _on_bound(self, url: str) -> None:
        self._address = url
        log.info("listening on %s after %.1f s; loading the model", url, self._seconds())
        if self._made_key:
            port = url.rpartition(":")[2]
            host = socket.gethostname() if self._config.host in ("0.0.0.0", "::", "") else self._config.host
            host = f"[{host}]" if ":" in host else host
            log.info("no key was given, so one was made: %s (--insecure does without)", self._made_key)
            log.info("open %s://%s:%s/#key=%s", url.partition(":")[0], host, port, self._made_key)

    def _load(self) -> EngineClient:
        """The engine, with a bar on a terminal, and log lines of what it takes."""
        started = time.perf_counter()
        from sensorium.engine.client import EngineClient
        from sensorium.engine.link import Supervision

        kind = "process" if self._config.engine_process and os.name == "posix" else "thread"
        supervision = Supervision(kill_s=self._config.engine_hang_s, ready_s=self._ready_s)
        import_s = time.perf_counter() - started
        with LoadingBar(self._engine.use_tqdm_on_load) as bar:
            client = EngineClient(self._engine, bar.update, kind=kind, supervision=supervision)
        report_loaded(client)
        report_seconds(client.facts, import_s, time.perf_counter() - started)
        return client

    def _on_ready(self, client: EngineClient) -> None:
        given = self._config.served_model_name or client.model_name
        names = (given,) if isinstance(given, str) else given
        log.info("Served model names: %s", ", ".join(names))
        if client.engine_pid != os.getpid():
            log.info("the engine is process %d", client.engine_pid)
        log.info("ready after %.1f s: %s on %s", self._seconds(), client.model_name, self._address)
        log.info("Application startup complete.")
        threading.Thread(target=report_largest, args=(client,), name="sensorium-sizes", daemon=True).start()
        if not self._engine.disable_log_stats:
            self._throughput = Throughput(client)
            self._throughput.start()

    def _seconds(self) -> float:
        return time.perf_counter() - self._started
