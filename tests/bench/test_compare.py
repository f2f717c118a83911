"""Comparing two runs: differences, chance, and runs that cannot be compared."""

from pathlib import Path

import pytest

from sd35.bench.compare import compare
from sd35.bench.results import Result, read, write
from sd35.errors import InvalidSetting
from tests.bench.conftest import BUSY, estimate_of


def changed(result: Result, **rates: object) -> Result:
    """Return a result with other figures of its closed loop."""
    loads = [result.loads[0].model_copy(update=rates), *result.loads[1:]]
    return result.model_copy(update={"loads": loads})


def test_a_run_compared_with_itself_shows_no_difference(result: Result):
    """Every ratio is 1, no figure is better or worse, and there are no warnings."""
    found = compare(result, result)
    assert {row.ratio for row in found.rows} == {1.0}
    assert {row.verdict for row in found.rows} <= {"within chance", "no interval"}
    assert found.warnings == []
    assert [row.figure for row in found.rows if not row.load] == [
        "process start to ready, s", "peak memory, MB", "PSNR, dB", "SSIM",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        (estimate_of(4, 0.3), estimate_of(5, 0.3), "better"),
        (estimate_of(5, 0.3), estimate_of(4, 0.3), "worse"),
        (estimate_of(4, 0.6), estimate_of(5, 0.6), "within chance"),
        (estimate_of(4), estimate_of(5, 0.6), "no interval"),
    ],
)
def test_figures_differ_if_their_intervals_do_not_overlap(result: Result, before: object, after: object, verdict: str):
    """For images a second, more is better."""
    found = compare(changed(result, images_per_s=before), changed(result, images_per_s=after))
    row = next(row for row in found.rows if row.figure == "images/s")
    assert row.verdict == verdict


def test_less_latency_is_better(result: Result):
    """For seconds and bytes, less is better."""
    quick = result.loads[0].all.model_copy(update={"p95_s": estimate_of(0.1, 0.01)})
    row = next(row for row in compare(result, changed(result, all=quick)).rows if row.figure == "p95, s")
    assert row.verdict == "better"
    assert row.ratio is not None
    assert row.ratio < 1


def test_different_workloads_are_compared_only_on_request(result: Result):
    """The error names both workloads; on request there is a warning."""
    other = result.model_copy(update={"workload_digest": "f" * 12})
    with pytest.raises(InvalidSetting, match=f"{result.workload_digest}.*ffffffffffff.*--different-workloads"):
        compare(result, other)
    found = compare(result, other, different_workloads=True)
    assert found.warnings == ["the workloads differ, so the ratios compare different work"]


def test_different_machines_background_load_and_loads_are_warned_of(result: Result):
    """Each has one warning. Loads of only one run are left out."""
    machine = result.machine.model_copy(update={"cores": 4})
    other = result.model_copy(update={"machine": machine, "background": BUSY, "loads": result.loads[:1]})
    found = compare(result, other)
    assert [warning.partition(":")[0] for warning in found.warnings] == [
        "B was measured on a BUSY MACHINE",
        "the machines of A and B differ",
        "loads that only one run has are left out",
    ]
    assert {row.load for row in found.rows} == {"closed, 2 clients", ""}


def test_different_plans_and_comparisons_of_images_are_warned_of(result: Result):
    """Warm-up, reference and number of images shape the figures as well as the rounds."""
    assert result.quality
    plan = result.plan.model_copy(update={"rounds": 1, "warmup_s": 9})
    quality = result.quality.model_copy(update={"reference": "diffusers/float32", "images": 1})
    assert compare(result, result.model_copy(update={"plan": plan, "quality": quality})).warnings == [
        "the plans differ: 3 rounds of 2 s after 1 s of warm-up in A, 1 round of 2 s after 9 s of warm-up in B",
        "the comparisons of images differ: 2 images against onnx/float32 in A, 1 image against diffusers/float32 in B",
    ]


def test_the_error_of_an_incomplete_file_names_a_few_fields(tmp_path: Path):
    """It also says how many more are missing."""
    (tmp_path / "half.json").write_text('{"format": "sd35-bench/2"}')
    with pytest.raises(InvalidSetting) as raised:
        read(tmp_path / "half.json")
    assert str(raised.value).count("is missing") == 4
    assert "; and 11 more. Use a bench.json that" in str(raised.value)


def test_a_result_is_read_as_it_was_written(result: Result, tmp_path: Path):
    """Writing and reading a result loses nothing."""
    write(result, tmp_path / "new" / "bench.json")
    assert read(tmp_path / "new" / "bench.json") == result


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"format": "sd35-bench/0"}', "format: got 'sd35-bench/0'; allowed: 'sd35-bench/2'"),
        ('{"format": "sd35-bench-matrix/2"}', "format: got 'sd35-bench-matrix/2'"),
        ("[]", "format: got None"),
        ("{", "is not JSON"),
        ("[" * 200_000, "is not JSON: values nested in more than 64 levels"),
        ('{"format": ' + "9" * 5_000 + "}", "is not JSON: a number of 5000 digits"),
        ('{"format": NaN}', "is not JSON: NaN is not a number"),
        ('{"format": "' + "x" * 5_000 + '"}', "...; allowed: 'sd35-bench/2'"),
        ('{"format": "sd35-bench/2", "created_at": 3}', "created_at: got 3"),
        (None, "cannot be read"),
    ],
)
def test_a_file_that_is_not_a_result_is_refused(tmp_path: Path, content: str | None, message: str):
    """The file has another version or kind, is no result, or is missing."""
    file = tmp_path / "it.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(InvalidSetting) as raised:
        read(file)
    assert message in str(raised.value)
