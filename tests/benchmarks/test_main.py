"""A run of the benchmarks keeps its results if one fails, and skips cases that the machine cannot run."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import pytest

from benchmarks import __main__ as benchmarks
from benchmarks import openvino_genai, planned_memory, readme
from benchmarks.outcome import Bar, CannotRun, Outcome
from benchmarks.processes import Worker, clean_environment
from sd35.checkpoints.open import open_checkpoint
from sd35.checkpoints.registry import EMBEDDED

DIRECTORY = open_checkpoint(EMBEDDED).directory
NO_BF16 = {"OV_CPU_MAX_ISA": "AVX2"}  # makes OpenVINO treat the processor as one without BF16


@pytest.fixture
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The path of the results, with a fixed description of the machine."""
    monkeypatch.setattr(benchmarks, "OUTPUT", tmp_path / "build" / "benchmarks.json")
    monkeypatch.setattr(benchmarks, "machine", lambda: {"is_busy": False, "load": 0, "cores": 2})
    return benchmarks.OUTPUT


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str, **measures: Callable[[], Outcome]) -> Any:
    """Run these benchmarks. Return the exit code, or None for success."""

    def measured(measure: Callable[[], Outcome]) -> Callable[[Path, int], Outcome]:
        return lambda _directory, _rounds: measure()

    monkeypatch.setattr(benchmarks, "BENCHMARKS", {name: measured(measure) for name, measure in measures.items()})
    monkeypatch.setattr("sys.argv", ["benchmarks", *arguments])
    try:
        benchmarks.main()
    except SystemExit as end:
        return end.code
    return None


def good() -> Outcome:
    """Return an outcome whose bar is met."""
    return Outcome([Bar("what", 1, "s", "<=", 2)], ["a note"])


@pytest.mark.parametrize("error", [RuntimeError("no such processor"), SystemExit("a worker ended")])
def test_a_failed_benchmark_loses_no_other_result(
    output: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException
):
    """The others run and are stored, the failure is reported with its traceback, and the exit code is 1."""
    monkeypatch.setattr(readme, "write", lambda _: pytest.fail("a table without all claims"))

    def bad() -> Outcome:
        raise error

    assert run(monkeypatch, "--readme", first=good, bad=bad, last=good) == 1
    content = json.loads(output.read_text())
    assert content["first"] == content["last"] == good().as_json()
    assert str(error) in content["failures"]["bad"]
    printed = capsys.readouterr().out
    assert f"bad FAILED: {type(error).__name__}: {error}" in printed
    assert "The documentation's tables were not updated: bad failed." in printed


def test_ctrl_c_keeps_the_results_so_far(
    output: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """The file and the table have them, and the exit code is 130."""

    def interrupted() -> Outcome:
        raise KeyboardInterrupt

    assert run(monkeypatch, first=good, second=interrupted, third=good) == 130
    assert json.loads(output.read_text()).keys() == {"checkpoint", "machine", "first"}
    assert "first" in capsys.readouterr().out


def test_a_side_that_the_processor_cannot_run_gives_the_reason():
    """The reason is the error of the backend, for BF16 on a processor without it."""
    with pytest.raises(CannotRun, match="precision: got 'bfloat16', which this processor does not support"):
        Worker("openvino-bf16", DIRECTORY, NO_BF16)


def test_planned_memory_skips_cases_that_the_processor_cannot_run(monkeypatch: pytest.MonkeyPatch):
    """The case has no bar, and a note gives the reason."""
    clean = clean_environment
    monkeypatch.setattr(planned_memory, "clean_environment", lambda: {**clean(), **NO_BF16})
    monkeypatch.setattr(planned_memory, "_WITH_GRAPHS", (planned_memory.Case("openvino", "bfloat16", "none"),))
    found = planned_memory.measure(DIRECTORY, 1)
    reason = "precision: got 'bfloat16', which this processor does not support; allowed: auto, float32"
    assert found.bars == []
    assert found.notes[1:] == [f"openvino bfloat16 none: skipped: {reason}"]


def test_openvino_skips_its_bf16_side_and_keeps_the_bar(monkeypatch: pytest.MonkeyPatch):
    """GenAI is still compared. The skipped side is listed with the reason."""

    class WorkerWithoutBf16:
        def __init__(self, side: str, *_: object) -> None:
            if side == openvino_genai.OURS_BF16:
                raise CannotRun("no BF16")
            self.generate = side

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            pass

    sides: list[str] = []
    monkeypatch.setattr(openvino_genai, "install", lambda: None)
    monkeypatch.setattr(openvino_genai, "_run_command", lambda *_: None)
    monkeypatch.setattr(openvino_genai, "Worker", WorkerWithoutBf16)
    monkeypatch.setattr(openvino_genai, "run_interleaved", lambda ran, *_, **__: sides.extend(ran))
    found: list[dict[str, str]] = []
    monkeypatch.setattr(openvino_genai, "outcome", lambda _samples, _rounds, left_out: found.append(left_out))
    openvino_genai.measure(DIRECTORY, 1)
    assert found == [{"openvino-bf16": "no BF16"}]
    assert sides == ["openvino", "onnx", "genai", "genai-fixed", "genai-default"]
