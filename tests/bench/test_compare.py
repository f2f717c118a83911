"""Two runs side by side: what differs, what is chance, and what is not to be compared at all."""

from pathlib import Path

import pytest

from sd35.bench.compare import compare
from sd35.bench.results import Result, read, write
from sd35.errors import InvalidSetting
from tests.bench.conftest import BUSY, figure


def changed(result: Result, **rates: object) -> Result:
    """The same result with other figures of its closed loop."""
    parts = [result.parts[0].model_copy(update=rates), *result.parts[1:]]
    return result.model_copy(update={"parts": parts})


def test_a_run_compared_with_itself_shows_no_difference(result: Result):
    """Every ratio is 1, nothing is told to be better or worse, and there is nothing to beware of."""
    found = compare(result, result)
    assert {line.ratio for line in found.lines} == {1.0}
    assert {line.verdict for line in found.lines} <= {"within chance", "no interval"}
    assert found.warnings == []
    assert [line.what for line in found.lines if not line.part] == [
        "process start to ready, s", "peak memory, MB", "PSNR, dB", "SSIM",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        (figure(4, 0.3), figure(5, 0.3), "better"),
        (figure(5, 0.3), figure(4, 0.3), "worse"),
        (figure(4, 0.6), figure(5, 0.6), "within chance"),
        (figure(4), figure(5, 0.6), "no interval"),
    ],
)
def test_a_difference_counts_beyond_the_intervals(result: Result, before: object, after: object, verdict: str):
    """More images a second are better; whether they are more is for the intervals to say."""
    found = compare(changed(result, images_per_s=before), changed(result, images_per_s=after))
    line = next(line for line in found.lines if line.what == "images/s")
    assert line.verdict == verdict


def test_less_latency_is_better(result: Result):
    """For what is in seconds and in bytes, less is more."""
    quick = result.parts[0].all.model_copy(update={"p95_s": figure(0.1, 0.01)})
    line = next(line for line in compare(result, changed(result, all=quick)).lines if line.what == "p95, s")
    assert line.verdict == "better"
    assert line.ratio is not None
    assert line.ratio < 1


def test_other_work_is_not_compared_unless_told(result: Result):
    """Then with a warning; the error names both."""
    other = result.model_copy(update={"workload_digest": "f" * 12})
    with pytest.raises(InvalidSetting, match=f"{result.workload_digest}.*ffffffffffff.*--different-workloads"):
        compare(result, other)
    found = compare(result, other, different_workloads=True)
    assert found.warnings == ["not the same workload: the ratios are of different work"]


def test_other_hardware_a_busy_machine_and_other_loads_are_told(result: Result):
    """One warning each, and loads of one run only are left out."""
    machine = result.machine.model_copy(update={"cores": 4})
    other = result.model_copy(update={"machine": machine, "busy": BUSY, "parts": result.parts[:1]})
    found = compare(result, other)
    assert [warning.partition(":")[0] for warning in found.warnings] == [
        "B was measured on a BUSY MACHINE", "not the same machine", "loads of one of them only, which are left out",
    ]  # fmt: skip
    assert {line.part for line in found.lines} == {"closed, 2 clients", ""}


def test_another_plan_and_other_comparisons_of_images_are_told(result: Result):
    """Warm-up, reference and number of images, for they shape figures as rounds do."""
    assert result.quality
    plan = result.plan.model_copy(update={"rounds": 1, "warm_s": 9})
    quality = result.quality.model_copy(update={"reference": "diffusers/float32", "images": 1})
    assert compare(result, result.model_copy(update={"plan": plan, "quality": quality})).warnings == [
        "not the same plan: 3 rounds of 2 s after 1 s of warm-up, and 1 round of 2 s after 9 s of warm-up",
        "not the same comparison of images: 2 images against onnx/float32, and 1 image against diffusers/float32",
    ]


def test_of_a_file_with_much_amiss_a_few_fields_are_told(tmp_path: Path):
    """And how many more there are: half a result lacks nearly all of them."""
    (tmp_path / "half.json").write_text('{"format": "sd35-bench/1"}')
    with pytest.raises(InvalidSetting) as raised:
        read(tmp_path / "half.json")
    assert str(raised.value).count("is missing") == 4
    assert str(raised.value).endswith("; and 11 more")


def test_a_result_is_read_as_it_was_written(result: Result, tmp_path: Path):
    """Nothing is lost."""
    write(result, tmp_path / "new" / "bench.json")
    assert read(tmp_path / "new" / "bench.json") == result


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"format": "sd35-bench/0"}', "format: got 'sd35-bench/0'; allowed: 'sd35-bench/1'"),
        ('{"format": "sd35-bench-matrix/1"}', "format: got 'sd35-bench-matrix/1'"),
        ("[]", "format: got None"),
        ("{", "is not JSON"),
        ("[" * 200_000, "is not JSON: values nested in more than 64 levels"),
        ('{"format": ' + "9" * 5_000 + "}", "is not JSON: a number of 5000 digits"),
        ('{"format": NaN}', "is not JSON: NaN is no number"),
        ('{"format": "' + "x" * 5_000 + '"}', "...; allowed: 'sd35-bench/1'"),
        ('{"format": "sd35-bench/1", "made_at": 3}', "made_at: got 3"),
        (None, "cannot be read"),
    ],
)
def test_a_file_that_is_no_result_is_told(tmp_path: Path, content: str | None, words: str):
    """Of another version, of another kind, or of none."""
    file = tmp_path / "it.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(InvalidSetting) as raised:
        read(file)
    assert words in str(raised.value)
