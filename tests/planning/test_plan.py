"""The memory planner: properties for all sizes, amounts of memory and models, and plans for SD3.5."""

from functools import cache
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sd35.backends.options import DeviceKind
from sd35.backends.registry import BACKENDS
from sd35.checkpoints.network_sizes import NETWORKS, NetworkSizes, network_sizes_by_name, network_sizes_on_disk
from sd35.checkpoints.open import open_checkpoint
from sd35.checkpoints.registry import EMBEDDED, load_registry
from sd35.planning.footprint import Workload
from sd35.planning.plan import MARGIN, PHASES, AvailableMemory, Placement, PlacementRequest, Plan, make_plan
from sd35.planning.report import plan_json, plan_text

GIB = 2**30
SIDES = st.integers(4, 128).map(lambda number: 16 * number)
WORKS = st.builds(Workload, SIDES, SIDES, st.integers(1, 64))
MEMORY = st.integers(0, 100 * GIB)


class Question(NamedTuple):
    """The parameters of a plan, except for the available memory."""

    name: str
    place: tuple[str, DeviceKind]
    precision: str
    work: Workload

    def plan(self, memory: int, host: int = 64 * GIB) -> Plan:
        """Return the plan for a device of `memory` bytes."""
        backend, device = self.place
        available = AvailableMemory(device, memory, memory if device == "cpu" else host)
        return make_plan([network_sizes(self.name)], PlacementRequest(backend, self.precision, self.work), available)


PLACES_AND_PRECISIONS = [
    ((spec.name, device), precision)
    for spec in BACKENDS.values()
    for device, device_spec in spec.devices.items()
    for precision in device_spec.precisions
]
QUESTIONS = st.builds(
    lambda name, where, work: Question(name, where[0], where[1], work),
    st.sampled_from([EMBEDDED, "sd3.5-large", "sd3.5-medium"]),
    st.sampled_from(PLACES_AND_PRECISIONS),
    WORKS,
)


@cache
def network_sizes(name: str) -> NetworkSizes:
    """Return a checkpoint's sizes; only the embedded checkpoint is on disk."""
    return (
        network_sizes_on_disk(open_checkpoint(name))
        if name == EMBEDDED
        else network_sizes_by_name(load_registry(None)[name])
    )


@given(QUESTIONS, MEMORY, MEMORY)
def test_a_chosen_placement_is_within_the_memory(question, memory, host):
    """In each phase, the peak plus the margin fits on the device. The host's part fits in its memory."""
    plan = question.plan(memory, host)
    if plan.chosen:
        assert all(peak * (1 + MARGIN) <= memory + 1 for peak in plan.chosen.peaks.values())
        assert plan.chosen.host_bytes <= host or question.place[1] == "cpu"
        assert plan.chosen.weights_bytes <= plan.chosen.peak_bytes
    else:
        assert not any(placement.fits(plan.available) for placement in plan.placements)


@given(QUESTIONS, MEMORY, MEMORY)
def test_more_memory_is_never_slower(question, memory, more):
    """More memory selects the same placement or a faster one."""

    def rank(plan: Plan) -> int:
        return plan.placements.index(plan.chosen) if plan.chosen else len(plan.placements)

    assert rank(question.plan(memory + more)) <= rank(question.plan(memory))


@given(QUESTIONS, st.integers(0, 64), st.integers(0, 64), st.integers(0, 8))
def test_larger_work_never_takes_less_memory(question, wider, higher, more_rows):
    """With a larger image or more rows, no phase has a lower peak in any placement."""
    work = question.work
    larger = Workload(work.width_px + 16 * wider, work.height_px + 16 * higher, work.rows + more_rows)
    after = {(one.offload, one.tiled_decode): one for one in question._replace(work=larger).plan(0).placements}
    for one in question.plan(0).placements:
        assert all(one.peaks[phase] <= after[one.offload, one.tiled_decode].peaks[phase] for phase in PHASES)


@given(QUESTIONS)
def test_tiling_only_affects_decoding(question):
    """Other phases have the same peak with and without tiles."""
    placements = question.plan(0).placements
    whole = {one.offload: one for one in placements if not one.tiled_decode}
    for one in placements:
        assert all(one.peaks[phase] == whole[one.offload].peaks[phase] for phase in PHASES if phase != "decoding")


def on_cuda(name: str, memory: int) -> Plan:
    """Return a plan for a guided image of 1024x1024 px on a CUDA device."""
    return Question(name, ("diffusers", "cuda"), "bfloat16", Workload(1024, 1024, 2)).plan(memory)


def test_the_weights_of_several_checkpoints_add_up():
    """The libraries are counted only once."""
    request = PlacementRequest("diffusers", "bfloat16", Workload(1024, 1024, 2))
    available = AvailableMemory("cpu", 80 * GIB, 80 * GIB)
    large, medium = network_sizes("sd3.5-large"), network_sizes("sd3.5-medium")
    alone = [make_plan([each], request, available).placements[0] for each in (large, medium)]
    both = make_plan([large, medium], request, available).placements[0]
    library_bytes = request.spec.devices["cpu"].memory.library_bytes
    assert both.weights_bytes == sum(one.weights_bytes for one in alone) - library_bytes
    assert both.peak_bytes > max(one.peak_bytes for one in alone)


@pytest.mark.parametrize(
    ("name", "vram_gib", "offload"),
    [
        ("sd3.5-large", 80, "none"),
        ("sd3.5-large", 24, "encoders"),
        ("sd3.5-large", 18, "model"),
        ("sd3.5-large", 12, "sequential"),
        ("sd3.5-medium", 24, "none"),
        ("sd3.5-medium", 12, "encoders"),
        ("sd3.5-medium", 2, "sequential"),
        ("sd3.5-large", 1, None),
    ],
)
def test_common_amounts_of_vram_have_the_expected_offload(name: str, vram_gib: int, offload: str | None):
    """With 24 GiB, Large has its text encoders on the CPU. With 12 GiB, it is streamed. With 1 GiB, it does not fit."""
    plan = on_cuda(name, vram_gib * GIB)
    assert (plan.chosen.offload if plan.chosen else None) == offload


def test_the_file_of_a_network_that_is_cast_is_counted():
    """Medium's T5 is in FP16 on disk. In BF16 on a CPU, its file is in memory until it is cast."""
    medium = network_sizes("sd3.5-medium").networks
    placement = Question("sd3.5-medium", ("diffusers", "cpu"), "bfloat16", Workload(256, 256, 1)).plan(0).placements[0]
    later = 2 * (medium["transformer"].values + medium["vae"].values)
    assert placement.peaks["reading"] - placement.weights_bytes == medium["text_encoder_3"].stored_bytes - later
    mapped = Question(EMBEDDED, ("diffusers", "cpu"), "float16", Workload(128, 128, 1)).plan(0).placements[0]
    assert mapped.peaks["reading"] == mapped.weights_bytes


def test_fp8_weights_take_one_byte():
    """In FP8, Large and its text encoders fit in 24 GiB. With "fp8-storage", T5 is also smaller."""
    weights = {}
    for precision in ("bfloat16", "fp8", "fp8-storage"):
        question = Question("sd3.5-large", ("diffusers", "cuda"), precision, Workload(1024, 1024, 2))
        plan = question.plan(24 * GIB)
        assert (precision, plan.chosen.offload if plan.chosen else None) in {
            ("bfloat16", "encoders"),
            ("fp8", "none"),
            ("fp8-storage", "none"),
        }
        weights[precision] = {name: plan.weights_bytes(name) for name in ("transformer", "text_encoder_3")}
    assert 0.5 < weights["fp8"]["transformer"] / weights["bfloat16"]["transformer"] < 0.52
    assert weights["fp8"]["text_encoder_3"] == weights["bfloat16"]["text_encoder_3"]
    assert 0.6 < weights["fp8-storage"]["text_encoder_3"] / weights["bfloat16"]["text_encoder_3"] < 0.64


def test_the_onnx_backend_always_has_float32_weights_in_memory():
    """ONNX Runtime converts weights to float32 while it loads them, so the plan is the same in every precision."""
    plans = [
        Question(EMBEDDED, ("onnx", "cpu"), precision, Workload(128, 128, 2)).plan(GIB)
        for precision in ("float32", "bfloat16", "fp8")
    ]
    assert all(plan.placements == plans[0].placements for plan in plans)


def test_a_placement_that_only_fits_without_the_margin_is_not_chosen():
    """If the memory is exactly the predicted peak, the next placement is chosen."""
    peak = on_cuda("sd3.5-medium", 0).placements[0].peak_bytes
    for memory, offload in ((peak, "encoders"), (int(peak * (1 + MARGIN)), "none")):
        chosen = on_cuda("sd3.5-medium", memory).chosen
        assert chosen is not None
        assert chosen.offload == offload


def test_the_text_has_all_networks_phases_and_placements():
    """It also says which placement was chosen. The JSON has the same placements."""
    plan = on_cuda("sd3.5-large", 24 * GIB)
    text = plan_text(plan)
    assert all(name in text for name in (*NETWORKS, *PHASES, "none", "encoders, tiled", "sequential"))
    assert "computes on the CPU" in text
    assert "Fits with offload 'encoders'" in text
    as_json = plan_json(plan)
    assert (as_json["chosen"]["offload"], len(as_json["placements"])) == ("encoders", len(plan.placements))
    assert "Does not fit" in plan_text(on_cuda("sd3.5-large", GIB))


def test_settings_can_fix_the_offload_and_the_tiling():
    """The plan then has only this placement."""
    request = PlacementRequest("diffusers", "bfloat16", Workload(512, 512, 1), offload="model", tiled_decode=True)
    (placement,) = make_plan([network_sizes(EMBEDDED)], request, AvailableMemory("cpu", GIB, GIB)).placements
    assert isinstance(placement, Placement)
    assert (placement.offload, placement.tiled_decode) == ("model", True)
