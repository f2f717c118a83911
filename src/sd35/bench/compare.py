"""Two runs side by side: ratios, and whether a difference is more than the intervals leave to chance."""

from collections.abc import Iterator
from typing import NamedTuple

from sd35.bench.formatting import counted
from sd35.bench.results import OfKind, Part, Plan, Result
from sd35.bench.statistics import Figure, is_different
from sd35.errors import InvalidSetting


class Line(NamedTuple):
    """One figure in both. `differs`: None where the intervals are not known."""

    part: str
    what: str
    before: Figure
    after: Figure
    more_is_better: bool

    @property
    def ratio(self) -> float | None:
        """The second over the first; None where the first is 0."""
        return self.after.value / self.before.value if self.before.value else None

    @property
    def differs(self) -> bool | None:
        """Whether the confidence intervals do not overlap; None where one is not known."""
        return is_different(self.before, self.after)

    @property
    def verdict(self) -> str:
        """In one word or two."""
        if self.differs is None:
            return "no interval"
        if not self.differs:
            return "within chance"
        return "better" if (self.after.value > self.before.value) == self.more_is_better else "worse"


class Comparison(NamedTuple):
    """`warnings`: what makes the two less alike than they should be."""

    lines: list[Line]
    warnings: list[str]


def compare(before: Result, after: Result, *, different_workloads: bool = False) -> Comparison:
    """Raises InvalidSetting where the workloads differ and that is not asked for."""
    if before.workload_digest != after.workload_digest and not different_workloads:
        raise InvalidSetting(
            f"A asked for workload '{before.workload.name}' ({before.workload_digest}), B for"
            f" '{after.workload.name}' ({after.workload_digest}); allowed: the same, or --different-workloads"
        )
    return Comparison(list(_lines(before, after)), list(_warnings(before, after)))


def _lines(before: Result, after: Result) -> Iterator[Line]:
    theirs = {part.name: part for part in after.parts}
    for part in before.parts:
        if part.name in theirs:
            yield from _of_part(part, theirs[part.name])
    for what, one, other, unit in (
        ("process start to ready, s", before.cold_start.ready_s, after.cold_start.ready_s, 1.0),
        ("peak memory, MB", before.memory.peak_bytes, after.memory.peak_bytes, 1e6),
        ("peak GPU memory, MB", before.gpu.peak_bytes, after.gpu.peak_bytes, 1e6),
        ("energy an image, J", before.gpu.energy_per_image_j, after.gpu.energy_per_image_j, 1.0),
    ):
        if one is not None and other is not None:
            yield Line("", what, Figure(value=one / unit), Figure(value=other / unit), more_is_better=False)
    if before.quality and after.quality:
        for what, one, other in (
            ("PSNR, dB", before.quality.psnr_db, after.quality.psnr_db),
            ("SSIM", before.quality.ssim, after.quality.ssim),
            ("images that show what was asked", before.quality.right, after.quality.right),
        ):
            if one is not None and other is not None:
                yield Line("", what, Figure(value=one), Figure(value=other), more_is_better=True)


def _of_part(one: Part, other: Part) -> Iterator[Line]:
    yield Line(one.name, "images/s", one.images_per_s, other.images_per_s, more_is_better=True)
    if one.row_steps_per_s and other.row_steps_per_s:
        yield Line(one.name, "row-steps/s", one.row_steps_per_s, other.row_steps_per_s, more_is_better=True)
    kinds = {kind.name: kind for kind in other.kinds}
    pairs: list[tuple[str, OfKind, OfKind]] = [("", one.all, other.all)]
    pairs += [(f" of {kind.name}", kind, kinds[kind.name]) for kind in one.kinds if kind.name in kinds]
    for whose, first, second in pairs if len(one.kinds) > 1 else pairs[:1]:
        for percent, before, after in (
            (50, first.p50_s, second.p50_s),
            (95, first.p95_s, second.p95_s),
            (99, first.p99_s, second.p99_s),
        ):
            if before and after and (percent == 95 or not whose):
                yield Line(one.name, f"p{percent}{whose}, s", before, after, more_is_better=False)


def _warnings(before: Result, after: Result) -> Iterator[str]:
    for name, result in (("A", before), ("B", after)):
        if result.busy.is_busy:
            yield f"{name} was measured on a {result.busy.words}"
    if differences := before.machine.differences(after.machine):
        yield f"not the same machine: {'; '.join(differences)}"
    if before.workload_digest != after.workload_digest:
        yield "not the same workload: the ratios are of different work"
    yield from _unlike("dialect", before.served.dialect, after.served.dialect)
    yield from _unlike("plan", _plan_in_words(before.plan), _plan_in_words(after.plan))
    yield from _unlike("comparison of images", _judged_in_words(before), _judged_in_words(after))
    ours, theirs = ({part.name for part in result.parts} for result in (before, after))
    if alone := sorted(ours ^ theirs):
        yield f"loads of one of them only, which are left out: {', '.join(alone)}"
    if any(part.offered and part.name in ours & theirs and "of the closed" in part.name for part in before.parts):
        yield "open loops at a share of what the closed loop reached: each server had its own rate"


def _unlike(what: str, one: str, other: str) -> Iterator[str]:
    if one != other:
        yield f"not the same {what}: {one}, and {other}"


def _plan_in_words(plan: Plan) -> str:
    return f"{counted(plan.rounds, 'round')} of {plan.seconds:g} s after {plan.warm_s:g} s of warm-up"


def _judged_in_words(result: Result) -> str:
    quality = result.quality
    return f"{counted(quality.images, 'image')} against {quality.reference}" if quality else "none"
