"""Spans of requests for OpenTelemetry, sent by OTLP over HTTP. Needs the extra `tracing`.

Nothing is done while a request runs but noting when its parts began and ended (engine/marks.py); the spans are made of
those notes when it is over, and sent by a thread of the SDK's. They say what took how long, never what was said.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from sensorium import __version__
from sensorium.engine.marks import MARKS, Mark
from sensorium.errors import ConfigError

GENERATE, PREPARE = "generate", "prepare"
CLOSE_S = 2.0
_PARENTS = {"queue": GENERATE, "prefill": GENERATE, "decode": GENERATE}
_FACTS = {
    "id": "gen_ai.response.id",
    "prompt_tokens": "gen_ai.usage.input_tokens",
    "completion_tokens": "gen_ai.usage.output_tokens",
    "error": "error.type",
}
"""What the access log calls it -> what OpenTelemetry does."""
_REASONS = "gen_ai.response.finish_reasons"
_PATH = "/v1/traces"


class Tracer:
    """Makes and sends the spans of exchanges. Close it: that sends what waits to be sent."""

    def __init__(self, endpoint: str) -> None:
        """endpoint: a URL; without a path, that of OTLP is taken. ConfigError for another scheme, or without the extra.

        What the endpoint does not say comes from OpenTelemetry's own variables, such as OTEL_SERVICE_NAME.
        """
        url = _checked(endpoint)
        try:
            from opentelemetry import trace
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import OTELResourceDetector, Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError as error:
            raise ConfigError(
                f"otlp_traces_endpoint needs the extra `tracing`: pip install 'sensorium[tracing]' ({error})",
                param="otlp_traces_endpoint",
            ) from None
        own = Resource({"service.name": "sensorium", "service.version": __version__})
        self._trace = trace
        self._propagator = TraceContextTextMapPropagator()
        self._provider = TracerProvider(resource=own.merge(OTELResourceDetector().detect()), shutdown_on_exit=False)
        self._exporter = OTLPSpanExporter(endpoint=url)
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self._provider.get_tracer("sensorium", __version__)

    @contextlib.contextmanager
    def noting(self) -> Generator[list[Mark], None, None]:
        """Collects the marks that are made inside, in this and other threads."""
        marks: list[Mark] = []
        token = MARKS.set(marks)
        try:
            yield marks
        finally:
            MARKS.reset(token)

    def record(self, exchange: Mark, headers: Headers, attributes: Mapping[str, Any], marks: Sequence[Mark]) -> str:
        """Make the spans of an exchange that is over. Returns the trace's id as hexadecimal digits.

        A traceparent among the headers makes it part of the caller's trace; whether that is recorded is then the
        caller's decision.
        """
        wall_ns = time.time_ns() - time.monotonic_ns()
        given = {name: headers[name] for name in ("traceparent", "tracestate") if name in headers}
        api = self._trace

        def span(mark: Mark, parent: Any, kind: Any = api.SpanKind.INTERNAL, **more: Any) -> Any:
            made = self._tracer.start_span(mark.name, parent, kind, more, start_time=_ns(mark.start_s, wall_ns))
            ended.append((made, _ns(mark.stop_s, wall_ns)))
            return made

        ended: list[tuple[Any, int]] = []
        root = span(exchange, self._propagator.extract(given), api.SpanKind.SERVER, **attributes)
        if root.is_recording():
            if attributes["http.response.status_code"] >= 500 or "error" in attributes.get(_REASONS, ()):
                root.set_status(api.StatusCode.ERROR)
            inside = api.set_span_in_context(root)
            parents: list[tuple[Mark, Any]] = []
            for mark in sorted(marks, key=lambda mark: (mark.name not in (PREPARE, GENERATE), mark.start_s)):
                found = next((context for parent, context in parents if _is_part(mark, parent)), inside)
                made = span(mark, found, **({"sensorium.part": mark.label} if mark.label else {}))
                if mark.name in (PREPARE, GENERATE):
                    parents.append((mark, api.set_span_in_context(made)))
        for made, end_ns in reversed(ended):
            made.end(end_ns)
        return f"{root.get_span_context().trace_id:032x}"

    def close(self) -> None:
        """Blocks until the collector has taken what is left, for CLOSE_S at most."""
        end = threading.Timer(CLOSE_S, self._exporter.shutdown)
        end.daemon = True
        end.start()
        self._provider.shutdown()
        end.cancel()


def attributes_of(method: str, path: str, route: str, status: int, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Of an exchange's span. path: without its query."""
    found = {_FACTS[name]: value for name, value in facts.items() if name in _FACTS}
    if "finish" in facts:
        found[_REASONS] = facts["finish"].split(",")
    return {
        "http.request.method": method,
        "http.route": route,
        "http.response.status_code": status,
        "url.path": path,
        **found,
    }


def _is_part(mark: Mark, parent: Mark) -> bool:
    wanted = _PARENTS.get(mark.name, PREPARE if mark.name not in (PREPARE, GENERATE) else "")
    same = parent.name == PREPARE or mark.label == parent.label
    return parent.name == wanted and same and parent.start_s <= mark.start_s <= parent.stop_s


def _ns(seconds: float, wall_ns: int) -> int:
    return int(seconds * 1e9) + wall_ns


def _checked(endpoint: str) -> str:
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ConfigError(
            f"otlp_traces_endpoint must be a URL of OTLP over HTTP such as http://localhost:4318{_PATH}, not "
            f"{endpoint!r}; collectors take it on port 4318, gRPC on 4317 is not spoken",
            param="otlp_traces_endpoint",
        )
    return endpoint.rstrip("/") + _PATH if parts.path in ("", "/") else endpoint
