"""Compare two runs: the ratio of each figure, and whether the confidence intervals overlap."""

from collections.abc import Iterator
from typing import NamedTuple

from sd35.bench.report.formatting import counted
from sd35.bench.results import ClassResult, LoadResult, Plan, Result
from sd35.bench.statistics import Estimate, differ
from sd35.errors import InvalidSetting


class Row(NamedTuple):
    """One figure in both runs. `load` is empty for a figure of the whole run."""

    load: str
    figure: str
    before: Estimate
    after: Estimate
    more_is_better: bool

    @property
    def ratio(self) -> float | None:
        """The second figure over the first, or None if the first is 0."""
        return self.after.value / self.before.value if self.before.value else None

    @property
    def differs(self) -> bool | None:
        """Whether the confidence intervals do not overlap, or None if one is unknown."""
        return differ(self.before, self.after)

    @property
    def verdict(self) -> str:
        """One of "better", "worse", "within chance" and "no interval"."""
        if self.differs is None:
            return "no interval"
        if not self.differs:
            return "within chance"
        return "better" if (self.after.value > self.before.value) == self.more_is_better else "worse"


class Comparison(NamedTuple):
    """The figures of two runs. `warnings` are sentences about conditions that make the runs hard to compare."""

    rows: list[Row]
    warnings: list[str]


def compare(before: Result, after: Result, *, different_workloads: bool = False) -> Comparison:
    """Compare two runs. Raises InvalidSetting for different workloads, unless `different_workloads` allows them."""
    if before.workload_digest != after.workload_digest and not different_workloads:
        raise InvalidSetting(
            f"the workloads differ: A has '{before.workload.name}' ({before.workload_digest}), B has"
            f" '{after.workload.name}' ({after.workload_digest}). To compare them anyway, add --different-workloads"
        )
    return Comparison(list(_compare_figures(before, after)), list(_find_warnings(before, after)))


def _compare_figures(before: Result, after: Result) -> Iterator[Row]:
    """Yield a row for each figure that both runs have: first of the loads, then of the whole run."""
    loads_after = {load.name: load for load in after.loads}
    for load in before.loads:
        if load.name in loads_after:
            yield from _compare_load(load, loads_after[load.name])
    for figure, one, other, unit in (
        ("process start to ready, s", before.cold_start.ready_s, after.cold_start.ready_s, 1.0),
        ("peak memory, MB", before.memory.peak_bytes, after.memory.peak_bytes, 1e6),
        ("peak GPU memory, MB", before.gpu.peak_bytes, after.gpu.peak_bytes, 1e6),
        ("energy per image, J", before.gpu.energy_per_image_j, after.gpu.energy_per_image_j, 1.0),
    ):
        if one is not None and other is not None:
            yield Row("", figure, Estimate(value=one / unit), Estimate(value=other / unit), more_is_better=False)
    if before.quality and after.quality:
        for figure, one, other in (
            ("PSNR, dB", before.quality.psnr_db, after.quality.psnr_db),
            ("SSIM", before.quality.ssim, after.quality.ssim),
            ("correct images", before.quality.correct_share, after.quality.correct_share),
        ):
            if one is not None and other is not None:
                yield Row("", figure, Estimate(value=one), Estimate(value=other), more_is_better=True)


def _compare_load(before: LoadResult, after: LoadResult) -> Iterator[Row]:
    """Yield rows for throughput and latency of a load. Single classes have only the 95th percentile of latency."""
    yield Row(before.name, "images/s", before.images_per_s, after.images_per_s, more_is_better=True)
    if before.row_steps_per_s and after.row_steps_per_s:
        yield Row(before.name, "row-steps/s", before.row_steps_per_s, after.row_steps_per_s, more_is_better=True)
    classes_after = {result.name: result for result in after.classes}
    pairs: list[tuple[str, ClassResult, ClassResult]] = [("", before.all, after.all)]
    if len(before.classes) > 1:
        common = [result for result in before.classes if result.name in classes_after]
        pairs += [(f" of {result.name}", result, classes_after[result.name]) for result in common]
    for suffix, one, other in pairs:
        for percent, latency_s in one.latencies_s.items():
            other_s = other.latencies_s[percent]
            if latency_s and other_s and (percent == 95 or not suffix):
                yield Row(before.name, f"p{percent}{suffix}, s", latency_s, other_s, more_is_better=False)


def _find_warnings(before: Result, after: Result) -> Iterator[str]:
    """Yield a warning for each condition that makes two runs hard to compare."""
    for name, result in (("A", before), ("B", after)):
        if result.background.is_busy:
            yield f"{name} was measured on a {result.background.description}"
    if differences := before.machine.differences(after.machine):
        yield f"the machines of A and B differ: {', '.join(differences)}"
    if before.workload_digest != after.workload_digest:
        yield "the workloads differ, so the ratios compare different work"
    yield from _warn_if_different("dialects", before.server.dialect, after.server.dialect)
    yield from _warn_if_different("plans", _describe_plan(before.plan), _describe_plan(after.plan))
    yield from _warn_if_different("comparisons of images", _describe_quality(before), _describe_quality(after))
    names_before, names_after = ({load.name for load in result.loads} for result in (before, after))
    if names_of_one_run := sorted(names_before ^ names_after):
        yield f"loads that only one run has are left out: {'; '.join(names_of_one_run)}"
    if any("of the closed" in name for name in names_before & names_after):  # see `open_load_at`
        yield "the open loops' rates are shares of each server's own closed-loop rate, so they differ between A and B"


def _warn_if_different(things: str, one: str, other: str) -> Iterator[str]:
    if one != other:
        yield f"the {things} differ: {one} in A, {other} in B"


def _describe_plan(plan: Plan) -> str:
    return f"{counted(plan.rounds, 'round')} of {plan.seconds:g} s after {plan.warmup_s:g} s of warm-up"


def _describe_quality(result: Result) -> str:
    quality = result.quality
    return f"{counted(quality.images, 'image')} against {quality.reference}" if quality else "none"
