"""docs/guide/models.md: its table of GPU memory is what the planner computes."""

import re
from pathlib import Path

import pytest

from sd35.checkpoints.network_sizes import network_sizes_by_name
from sd35.checkpoints.registry import find_registered
from sd35.planning.fit import memory_with_vram, plan_for
from sd35.planning.report import size_text
from sd35.settings import load_settings

GUIDE = Path(__file__).parents[2] / "docs" / "guide" / "models.md"
ROWS = re.findall(
    r"^\| `([\w.-]+)` \| `([\w-]+)` \| (.+?) \| (.+?) \| (.+?) \| (.+?) \|$", GUIDE.read_text("utf-8"), re.MULTILINE
)


@pytest.mark.parametrize("row", ROWS, ids=" ".join)
def test_the_memory_table_is_what_the_planner_computes(row: tuple[str, ...]) -> None:
    """Peaks include the margin; the host's memory is the largest of the three placements'."""
    name, precision, *cells = row
    settings = load_settings({"backend": "diffusers", "precision": precision, "vram": "96GiB"})
    plan = plan_for(settings, [network_sizes_by_name(find_registered(name, None))], memory_with_vram(settings))
    placements = {each.name: each for each in plan.placements}
    needed = [size_text(placements[offload].needed_bytes) for offload in ("none", "encoders", "model")]
    hosts = max(placements[offload].host_bytes for offload in ("none", "encoders", "model"))
    assert cells == [*needed, size_text(hosts)]


def test_the_memory_table_has_each_model_and_precision() -> None:
    """Two models in three precisions."""
    models = ("sd3.5-large", "sd3.5-medium")
    precisions = ("bfloat16", "fp8", "fp8-storage")
    assert [(name, precision) for name, precision, *_ in ROWS] == [(each, of) for each in models for of in precisions]
