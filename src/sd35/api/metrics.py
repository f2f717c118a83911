"""Metrics in Prometheus' text format."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from fastapi import APIRouter, Request
from fastapi.responses import Response

from sd35.errors import NotReady
from sd35.service.opening import Opening

if TYPE_CHECKING:
    from prometheus_client import Metric

router = APIRouter()


@router.head("/metrics", include_in_schema=False)
@router.get("/metrics", summary="Figures for Prometheus", response_class=Response)
async def metrics(request: Request) -> Response:
    """`sd35_ready`, and once it is ready what the start took, spoiled pictures, and with a standby what is built."""
    from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

    registry = CollectorRegistry()
    registry.register(_Figures(request.app.state.opening))
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


class _Figures:
    """What the service counts, as it is when it is asked for: see prometheus_client's `Collector`."""

    def __init__(self, opening: Opening) -> None:
        self._opening = opening

    def collect(self) -> "Iterator[Metric]":
        """All families."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        is_ready = _is_ready(self._opening)
        yield GaugeMetricFamily("sd35_ready", "Whether pictures can be made, as /readyz says.", is_ready)
        if not is_ready:
            return
        seconds = GaugeMetricFamily("sd35_startup_seconds", "What the start took.", labels=["phase"])
        for phase, took_s in self._opening.start_up.seconds.items():
            seconds.add_metric([phase], round(took_s, 3))
        yield seconds
        engine, building = self._opening.studio.engine, self._opening.studio.building
        spoiled = CounterMetricFamily("sd35_spoiled_pictures", "Attempts whose values went bad.", labels=["kind"])
        for kind, count in engine.spoiled.items():
            spoiled.add_metric([kind], count)
        yield spoiled
        yield CounterMetricFamily("sd35_retried_pictures", "Those made again in a wider precision.", engine.retried)
        if building:
            what = "Whether a standby answers in place of what is being built."
            yield GaugeMetricFamily("sd35_building", what, building.is_running)
            yield GaugeMetricFamily("sd35_build_seconds", "From the start of building to the swap.", building.took_s)
            yield CounterMetricFamily("sd35_build_failures", "Builds that failed.", building.failures)


def _is_ready(opening: Opening) -> bool:
    try:
        return bool(opening.studio)
    except NotReady:
        return False
