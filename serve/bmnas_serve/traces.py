"""Traces of requests, which go over OTLP to where the variables of OpenTelemetry say."""

from __future__ import annotations

from collections.abc import Callable

from starlette.types import ASGIApp

from bmnas_serve.errors import ServeError

#: What probes and Prometheus ask for every few seconds.
_LEFT_OUT = "/v2/health/,/metrics"


def traced(app: ASGIApp) -> tuple[ASGIApp, Callable[[], None]]:
    """Return ``app`` with a span for each request, and what sends the last spans.

    The environment says where they go (``OTEL_EXPORTER_OTLP_ENDPOINT``) and how many there are
    (``OTEL_TRACES_SAMPLER``). Raises ServeError when the packages are not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError as error:
        raise ServeError(
            f"--traces needs the package {error.name}, which is not installed: run"
            " pip install 'bmnas[traces]'"
        ) from error
    provider = TracerProvider(resource=Resource.create({"service.name": "bmnas"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    middleware = OpenTelemetryMiddleware(
        app,
        excluded_urls=_LEFT_OUT,
        tracer_provider=provider,
        exclude_spans=["receive", "send"],
    )
    return middleware, provider.shutdown
