"""Generate docs/reference/metrics.md from the descriptions of the metrics."""

from docs_generator.markdown import code, document, table
from sd35.service.metrics_collector import metric_descriptions

_INTRODUCTION = """
`GET /metrics` returns these metrics in Prometheus' text format. Metrics of the models, of the engine's state and of the
job store have no value until the service is ready. A counter never decreases while the process runs. A gauge is a
current value. If a gauge is always 1, its labels are the information. A histogram has the series `..._bucket`,
`..._sum` and `..._count`.

The process's own metrics have Prometheus' usual names, such as `process_resident_memory_bytes` and
`process_cpu_seconds_total`. They exist on Linux only.

[Observability](../guide/observability.md) shows how to collect the metrics, plot them, and set alerts. It
also explains the phases of the start and the stages of an image. The [glossary](glossary.md) explains terms such as
row, fallback and working memory.
"""


def page() -> str:
    """Return the page in Markdown."""
    rows = (
        [code(metric.name), metric.kind, ", ".join(map(code, metric.labels)), metric.help]
        for metric in metric_descriptions()
    )
    return document(
        "Metrics",
        "src/sd35/telemetry/metrics.py and src/sd35/service/metrics_collector.py",
        _INTRODUCTION,
        table(["Metric", "Type", "Labels", "Meaning"], rows),
    )
