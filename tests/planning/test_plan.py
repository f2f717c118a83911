"""The memory planner: what it promises, for any size, memory and model; and what it says of the real models."""

from functools import cache
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sd35.backends.options import DeviceKind
from sd35.checkpoints.network_sizes import NETWORKS, NetworkSizes, network_sizes_by_name, network_sizes_on_disk
from sd35.checkpoints.open import open_checkpoint
from sd35.checkpoints.registry import EMBEDDED, load_registry
from sd35.planning.footprint import RUNTIMES, Workload
from sd35.planning.plan import MARGIN, PHASES, AvailableMemory, Placement, PlacementRequest, Plan, make_plan
from sd35.planning.report import plan_json, plan_text

GIB = 2**30
SIDES = st.integers(4, 128).map(lambda number: 16 * number)
WORKS = st.builds(Workload, SIDES, SIDES, st.integers(1, 64))
MEMORY = st.integers(0, 100 * GIB)


class Question(NamedTuple):
    """What is planned, but for the memory there is."""

    name: str
    place: tuple[str, DeviceKind]
    precision: str
    work: Workload

    def plan(self, memory: int, host: int = 64 * GIB) -> Plan:
        """The plan, in so many bytes."""
        backend, device = self.place
        room = AvailableMemory(device, memory, memory if device == "cpu" else host)
        return make_plan([network_sizes(self.name)], PlacementRequest(backend, self.precision, self.work), room)


QUESTIONS = st.builds(
    Question,
    st.sampled_from([EMBEDDED, "sd3.5-large", "sd3.5-medium"]),
    st.sampled_from(sorted(RUNTIMES)),
    st.sampled_from(["float32", "bfloat16", "float16", "fp8", "fp8-storage"]),
    WORKS,
)


@cache
def network_sizes(name: str) -> NetworkSizes:
    """A checkpoint's, none of which but the embedded one is on disk."""
    return (
        network_sizes_on_disk(open_checkpoint(name))
        if name == EMBEDDED
        else network_sizes_by_name(load_registry(None)[name])
    )


@given(QUESTIONS, MEMORY, MEMORY)
def test_what_fits_is_within_the_memory(question, memory, host):
    """The chosen placement's peak, with its margin, is never above what there is, in any phase; nor the host's."""
    plan = question.plan(memory, host)
    if plan.chosen:
        assert all(peak * (1 + MARGIN) <= memory + 1 for peak in plan.chosen.peaks.values())
        assert plan.chosen.host_bytes <= host or question.place[1] == "cpu"
        assert plan.chosen.weights_bytes <= plan.chosen.peak_bytes
    else:
        assert not any(placement.fits(plan.room) for placement in plan.placements)


@given(QUESTIONS, MEMORY, MEMORY)
def test_more_memory_is_never_slower(question, memory, more):
    """What is chosen with more memory comes before, or is, what is chosen with less."""

    def rank(plan: Plan) -> int:
        return plan.placements.index(plan.chosen) if plan.chosen else len(plan.placements)

    assert rank(question.plan(memory + more)) <= rank(question.plan(memory))


@given(QUESTIONS, st.integers(0, 64), st.integers(0, 64), st.integers(0, 8))
def test_larger_work_never_takes_less(question, wider, higher, more_rows):
    """No phase of any placement has a lower peak for a larger image or for more rows."""
    work = question.work
    larger = Workload(work.width_px + 16 * wider, work.height_px + 16 * higher, work.rows + more_rows)
    after = {(one.offload, one.tiled_decode): one for one in question._replace(work=larger).plan(0).placements}
    for one in question.plan(0).placements:
        assert all(one.peaks[phase] <= after[one.offload, one.tiled_decode].peaks[phase] for phase in PHASES)


@given(QUESTIONS)
def test_tiles_concern_decoding_alone(question):
    """What tiling changes of a placement's peaks is that of decoding."""
    placements = question.plan(0).placements
    whole = {one.offload: one for one in placements if not one.tiled_decode}
    for one in placements:
        assert all(one.peaks[phase] == whole[one.offload].peaks[phase] for phase in PHASES if phase != "decoding")


def on_cuda(name: str, memory: int) -> Plan:
    """A plan for a guided image of 1024x1024 on a CUDA device."""
    return Question(name, ("diffusers", "cuda"), "bfloat16", Workload(1024, 1024, 2)).plan(memory)


def test_several_checkpoints_add_up():
    """Two that are served together take at least the sum of their weights."""
    wanted, room = (
        PlacementRequest("diffusers", "bfloat16", Workload(1024, 1024, 2)),
        AvailableMemory("cpu", 80 * GIB, 80 * GIB),
    )
    large, medium = network_sizes("sd3.5-large"), network_sizes("sd3.5-medium")
    alone = [make_plan([each], wanted, room).placements[0] for each in (large, medium)]
    both = make_plan([large, medium], wanted, room).placements[0]
    library = RUNTIMES["diffusers", "cpu"].library_bytes
    assert both.weights_bytes == sum(one.weights_bytes for one in alone) - library
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
    """Large keeps its text encoders on the CPU in 24 GiB, and is streamed in 12; in 1 GiB nothing fits."""
    plan = on_cuda(name, vram_gib * GIB)
    assert (plan.chosen.offload if plan.chosen else None) == offload


def test_a_network_that_is_cast_has_its_file_beside_it():
    """Medium's T5 is FP16 on disk: computing in BF16 on a CPU, it is read beside its file, before the transformer."""
    medium = network_sizes("sd3.5-medium").networks
    placement = Question("sd3.5-medium", ("diffusers", "cpu"), "bfloat16", Workload(256, 256, 1)).plan(0).placements[0]
    later = 2 * (medium["transformer"].values + medium["vae"].values)
    assert placement.peaks["reading"] - placement.weights_bytes == medium["text_encoder_3"].stored_bytes - later
    mapped = Question(EMBEDDED, ("diffusers", "cpu"), "float16", Workload(128, 128, 1)).plan(0).placements[0]
    assert mapped.peaks["reading"] == mapped.weights_bytes


def test_fp8_takes_what_it_is_stored_in():
    """Large in FP8 stays on a device of 24 GiB with its text encoders; storage casting saves most of T5, too."""
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
    """ONNX Runtime makes float32 of BF16's and FP8's weights while it loads, and computes in it."""
    plans = [
        Question(EMBEDDED, ("onnx", "cpu"), precision, Workload(128, 128, 2)).plan(GIB)
        for precision in ("float32", "bfloat16", "fp8")
    ]
    assert all(plan.placements == plans[0].placements for plan in plans)


def test_what_fits_only_without_the_margin_is_not_chosen():
    """A prediction may err by the margin: exactly the predicted peak is too little."""
    peak = on_cuda("sd3.5-medium", 0).placements[0].peak_bytes
    for memory, offload in ((peak, "encoders"), (int(peak * (1 + MARGIN)), "none")):
        chosen = on_cuda("sd3.5-medium", memory).chosen
        assert chosen is not None
        assert chosen.offload == offload


def test_the_text_names_every_part_and_way():
    """Parts, phases, the verdict and each alternative; the JSON has the same in bytes."""
    plan = on_cuda("sd3.5-large", 24 * GIB)
    text = plan_text(plan)
    assert all(name in text for name in (*NETWORKS, *PHASES, "none", "encoders, tiled", "sequential"))
    assert "computes on the CPU" in text
    assert "Fits as 'encoders'" in text
    said = plan_json(plan)
    assert (said["chosen"]["offload"], len(said["ways"])) == ("encoders", len(plan.placements))
    assert "Nothing fits" in plan_text(on_cuda("sd3.5-large", GIB))


def test_what_is_left_to_the_plan_can_be_named():
    """An offload or a tiling that settings name is the only one considered."""
    wanted = PlacementRequest("diffusers", "bfloat16", Workload(512, 512, 1), offload="model", tiled_decode=True)
    (placement,) = make_plan([network_sizes(EMBEDDED)], wanted, AvailableMemory("cpu", GIB, GIB)).placements
    assert isinstance(placement, Placement)
    assert (placement.offload, placement.tiled_decode) == ("model", True)
