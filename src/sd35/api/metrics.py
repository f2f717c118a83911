"""Metrics in Prometheus' text format."""

from fastapi import APIRouter, Request
from fastapi.responses import Response

from sd35.errors import NotReady
from sd35.service.opening import Opening

router = APIRouter()


@router.head("/metrics", include_in_schema=False)
@router.get("/metrics", summary="Figures for Prometheus", response_class=Response)
async def metrics(request: Request) -> Response:
    """`sd35_ready`, and once it is ready `sd35_startup_seconds` by phase."""
    from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, generate_latest

    opening: Opening = request.app.state.opening
    registry = CollectorRegistry()
    is_ready = _is_ready(opening)
    Gauge("sd35_ready", "Whether pictures can be made, as /readyz says.", registry=registry).set(is_ready)
    if is_ready:
        seconds = Gauge("sd35_startup_seconds", "What the start took.", ["phase"], registry=registry)
        for phase, took_s in opening.start_up.seconds.items():
            seconds.labels(phase).set(round(took_s, 3))
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


def _is_ready(opening: Opening) -> bool:
    try:
        return bool(opening.studio)
    except NotReady:
        return False
