"""The generated pages and their generators."""

from collections.abc import Callable, Mapping
from pathlib import Path

from docs_generator import cli, errors, http_api, metrics, settings, status

ROOT = Path(__file__).parents[1]
PAGES: Mapping[str, Callable[[], str]] = {
    "docs/reference/cli.md": cli.page,
    "docs/reference/errors.md": errors.page,
    "docs/reference/http-api.md": http_api.page,
    "docs/reference/metrics.md": metrics.page,
    "docs/reference/settings.md": settings.page,
    "docs/reference/status.md": lambda: status.page(ROOT / "docs/reference/status.toml"),
}
