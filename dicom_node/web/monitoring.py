"""/metrics and /health beside the pages, if the settings want it: without a login, as at [metrics]; no patient data."""

from prometheus_client import generate_latest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from dicom_node.runtime import metrics
from dicom_node.web.context import context_of

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def show_metrics(request: Request) -> Response:
    """For Prometheus."""
    context = context_of(request)
    registry = metrics.registry_of(context.settings, context.database, context.files)
    return Response(generate_latest(registry), media_type=CONTENT_TYPE)


def show_health(request: Request) -> Response:
    """200 "ok", or 503 with a word for each problem."""
    context = context_of(request)
    found = metrics.health(context.settings, context.database, context.files)
    return PlainTextResponse("\n".join(found or ["ok"]) + "\n", 503 if found else 200)


ROUTES = [Route("/metrics", show_metrics), Route("/health", show_health)]
