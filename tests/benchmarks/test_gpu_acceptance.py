"""`make gpu-acceptance`: its small configuration on the CPU, its table and page, and candidates that must be built."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu_acceptance
from benchmarks.acceptance_candidate import CandidateTask
from benchmarks.acceptance_report import Row, acceptance_page, markdown
from benchmarks.gpu_acceptance import CANDIDATES
from benchmarks.processes import ROOT

NAMES = ["BF16 eager", "BF16 compiled", "FP8", "TensorRT BF16", "TensorRT FP8"]
TASK = CandidateTask(
    backend="tensorrt", precision="fp8", torch_compile=False, checkpoint="here", device="cuda", offload="none",
    threads=0, images=1, width_px=64, height_px=64, steps=2, guidance=4.5, cache_dir="cache", folder="folder",
)  # fmt: skip


def test_the_small_configuration_runs_on_a_cpu(tmp_path: Path) -> None:
    """The candidates of PyTorch are timed and compared with BF16. Those of TensorRT have an error."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu_acceptance", "--small", "--output", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "acceptance.json").read_text())["rows"]
    assert [row["name"] for row in rows] == NAMES == [candidate.name for candidate in CANDIDATES]
    for row in rows[:3]:
        assert not row["error"]
        assert len(row["steps_s"]) == 3
        assert row["images_s"][0] > sum(row["steps_s"])
        assert row["peak_bytes"] > 10**8
        assert row["is_reference"] or row["psnr_db"][0] > 25
    assert all(row["error"] and not row["steps_s"] for row in rows[3:])
    table = (tmp_path / "acceptance.md").read_text()
    assert table in done.stdout
    assert all(f"| {name} | {'not run' if 'Tensor' in name else ''}" in table for name in NAMES)
    page = (tmp_path / "acceptance.html").read_text()
    assert re.findall(r"<tr><td>([^<]+)</td>", page) == NAMES
    for candidate in CANDIDATES[:3]:
        assert (candidate.images(tmp_path) / "0.png").is_file()


ROWS = [
    Row("one", "", 1.0, [0.2, 0.1, 0.3], [1.0], 4 * 10**9, is_reference=True),
    Row("two", "", 2.0, [0.1], [0.5], 2 * 10**9, [30.0, 40.0]),
    Row("three", "no <GPU>"),
]


def test_the_table_has_medians_and_the_reasons_for_candidates_that_did_not_run() -> None:
    """Step times are medians. PSNR has mean and worst image. The reasons are below the table."""
    lines = markdown("title", ROWS).splitlines()
    assert lines[4:7] == [
        "| one | 200.0 | 1.00 | 4.00 | reference | 1.0 |",
        "| two | 100.0 | 0.50 | 2.00 | 35.0 (worst 30.0) | 2.0 |",
        "| three | not run |  |  |  |  |",
    ]
    assert lines[-1] == "- three: no <GPU>"


def test_bars_are_in_proportion_to_their_values() -> None:
    """A candidate that did not run has no bar, and its reason is listed."""
    page = acceptance_page("title", ROWS)
    charts = [re.findall(r'width="([\d.]+)" height="10"', chart) for chart in page.split("<figure>")[1:]]
    steps, memory, quality = ([float(width) for width in widths] for widths in charts)
    assert steps == [2 * steps[1], steps[1]]
    assert memory == [2 * memory[1], memory[1]]
    assert len(quality) == 1
    assert "<dt>three</dt><dd>no &lt;GPU&gt;</dd>" in page


def test_a_candidate_that_is_not_compiled_is_built_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command comes from the error and runs once. A failed build is the candidate's error."""
    answers: list[dict[str, Any]] = [{"error": "not built", "build": ["compile", "--precision", "fp8"]}, {"ran": 1}]
    built: list[tuple[str, ...]] = []

    def build(*arguments: str) -> str:
        built.append(arguments)
        return ""

    monkeypatch.setattr(gpu_acceptance, "_run_candidate", lambda _: answers.pop(0))
    monkeypatch.setattr(gpu_acceptance, "_run_sd35", build)
    assert gpu_acceptance._measure(TASK) == {"ran": 1}  # noqa: SLF001
    assert built == [("compile", "--precision", "fp8", *gpu_acceptance._FP8_BUILD, "--cache-dir", "cache")]  # noqa: SLF001
    monkeypatch.setattr(gpu_acceptance, "_run_candidate", lambda _: {"error": "not built", "build": ["compile"]})
    monkeypatch.setattr(gpu_acceptance, "_run_sd35", lambda *_: "the disk is full")
    assert gpu_acceptance._measure(TASK) == {"error": "building failed: the disk is full"}  # noqa: SLF001
