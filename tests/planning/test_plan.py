"""The memory planner: properties for any size, memory and model, and plans of the real models."""

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
    """What to plan, except for the available memory."""

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
def test_what_fits_is_within_the_memory(question, memory, host):
    """In every phase, the chosen placement's peak with its margin fits the device; so does the host's memory."""
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
def test_larger_work_never_takes_less(question, wider, higher, more_rows):
    """No phase of any placement has a lower peak with a larger image or more rows."""
    work = question.work
    larger = Workload(work.width_px + 16 * wider, work.height_px + 16 * higher, work.rows + more_rows)
    after = {(one.offload, one.tiled_decode): one for one in question._replace(work=larger).plan(0).placements}
    for one in question.plan(0).placements:
        assert all(one.peaks[phase] <= after[one.offload, one.tiled_decode].peaks[phase] for phase in PHASES)


@given(QUESTIONS)
def test_tiles_concern_decoding_alone(question):
    """Tiling changes only the peak of decoding."""
    placements = question.plan(0).placements
    whole = {one.offload: one for one in placements if not one.tiled_decode}
    for one in placements:
        assert all(one.peaks[phase] == whole[one.offload].peaks[phase] for phase in PHASES if phase != "decoding")


def on_cuda(name: str, memory: int) -> Plan:
    """Return a plan for a guided image of 1024x1024 px on a CUDA device."""
    return Question(name, ("diffusers", "cuda"), "bfloat16", Workload(1024, 1024, 2)).plan(memory)


def test_several_checkpoints_add_up():
    """The weights of two checkpoints that are served together add up; the libraries are loaded once."""
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
def test_known_devices(name: str, vram_gib: int, offload: str | None):
    """In 24 GiB, Large keeps its text encoders on the CPU; in 12 GiB it is streamed; in 1 GiB it does not fit."""
    plan = on_cuda(name, vram_gib * GIB)
    assert (plan.chosen.offload if plan.chosen else None) == offload


def test_a_network_that_is_cast_has_its_file_beside_it():
    """Medium's T5 is FP16 on disk. In BF16 on a CPU, its file is in memory while it is cast."""
    medium = network_sizes("sd3.5-medium").networks
    placement = Question("sd3.5-medium", ("diffusers", "cpu"), "bfloat16", Workload(256, 256, 1)).plan(0).placements[0]
    later = 2 * (medium["transformer"].values + medium["vae"].values)
    assert placement.peaks["reading"] - placement.weights_bytes == medium["text_encoder_3"].stored_bytes - later
    mapped = Question(EMBEDDED, ("diffusers", "cpu"), "float16", Workload(128, 128, 1)).plan(0).placements[0]
    assert mapped.peaks["reading"] == mapped.weights_bytes


def test_fp8_takes_what_it_is_stored_in():
    """Large in FP8 fits on a device of 24 GiB with its text encoders; FP8 storage also shrinks T5."""
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


def test_the_onnx_backend_holds_float32_whatever_its_graphs_hold():
    """The plan is the same in every precision: ONNX Runtime converts all weights to float32 while it loads them."""
    plans = [
        Question(EMBEDDED, ("onnx", "cpu"), precision, Workload(128, 128, 2)).plan(GIB)
        for precision in ("float32", "bfloat16", "fp8")
    ]
    assert all(plan.placements == plans[0].placements for plan in plans)


def test_what_fits_only_without_the_margin_is_not_chosen():
    """A prediction may be wrong by the margin, so memory of exactly the predicted peak is too little."""
    peak = on_cuda("sd3.5-medium", 0).placements[0].peak_bytes
    for memory, offload in ((peak, "encoders"), (int(peak * (1 + MARGIN)), "none")):
        chosen = on_cuda("sd3.5-medium", memory).chosen
        assert chosen is not None
        assert chosen.offload == offload


def test_the_text_names_every_part_and_way():
    """The text has the networks, the phases, the verdict and each alternative; the JSON has the same in bytes."""
    plan = on_cuda("sd3.5-large", 24 * GIB)
    text = plan_text(plan)
    assert all(name in text for name in (*NETWORKS, *PHASES, "none", "encoders, tiled", "sequential"))
    assert "computes on the CPU" in text
    assert "Fits as 'encoders'" in text
    as_json = plan_json(plan)
    assert (as_json["chosen"]["offload"], len(as_json["placements"])) == ("encoders", len(plan.placements))
    assert "Nothing fits" in plan_text(on_cuda("sd3.5-large", GIB))


def test_what_is_left_to_the_plan_can_be_named():
    """The plan considers only the offload and the tiling that settings name."""
    request = PlacementRequest("diffusers", "bfloat16", Workload(512, 512, 1), offload="model", tiled_decode=True)
    (placement,) = make_plan([network_sizes(EMBEDDED)], request, AvailableMemory("cpu", GIB, GIB)).placements
    assert isinstance(placement, Placement)
    assert (placement.offload, placement.tiled_decode) == ("model", True)
