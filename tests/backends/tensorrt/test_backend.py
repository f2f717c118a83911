"""The parts of the `tensorrt` backend that do not need a GPU: its types, its requirements and its errors.

The contract and parity suites also test it, with networks of another runtime instead of engines.
"""

import inspect
import platform
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sd35.backends.base import DenoiseRow
from sd35.backends.options import Options
from sd35.backends.registry import check_available, open_backend
from sd35.backends.tensorrt import flavour, types
from sd35.backends.tensorrt.backend import TensorRtBackend
from sd35.backends.tensorrt.backend import open_backend as open_tensorrt
from sd35.backends.tensorrt.flavour import find_flavour
from sd35.backends.tensorrt.runtime import Workspace, streaming_budgets
from sd35.backends.tensorrt.spec import SPEC
from sd35.checkpoints.checkpoint import Checkpoint
from sd35.checkpoints.network_sizes import network_sizes_on_disk
from sd35.errors import BackendUnavailable, InvalidSetting
from sd35.host import HostMemory
from sd35.planning.footprint import Workload
from sd35.planning.plan import AvailableMemory, PlacementRequest, make_plan
from sd35.sampling.noise import initial_noise
from sd35.settings import Precision
from tests.support.onnx_networks import OnnxNetworks
from tests.support.solving import euler_step

HAS_TENSORRT = (sys.platform, platform.machine()) == ("linux", "x86_64")
needs_tensorrt = pytest.mark.skipif(not HAS_TENSORRT, reason="TensorRT-RTX is for Linux on x86-64")
needs_no_gpu = pytest.mark.skipif(bool(flavour.gpu_architectures()), reason="this machine has a GPU")

CLASSES: dict[str, type] = {
    "IOptimizationProfile": types.Profile,
    "IBuilderConfig": types.Config,
    "Builder": types.Builder,
    "ParserError": types.ParserError,
    "OnnxParser": types.Parser,
    "IRuntimeCache": types.RuntimeCache,
    "IRuntimeConfig": types.RuntimeConfig,
    "IExecutionContext": types.Context,
    "ICudaEngine": types.Engine,
    "Runtime": types.Runtime,
}


@needs_tensorrt
@pytest.mark.parametrize("name", CLASSES)
def test_the_types_match_the_real_package(name: str) -> None:
    """All used members exist. Methods have the same parameters in the same order."""
    real, ours = getattr(find_flavour().trt, name), CLASSES[name]
    settable = {key for key in ours.__annotations__ if not key.startswith("_")}
    used = settable | {key for key in vars(ours) if not key.startswith("_")}
    assert used
    for key in used:
        there, declared = getattr(real, key), vars(ours).get(key)
        if key in settable or isinstance(declared, property):
            assert isinstance(there, property), key
            assert key not in settable or there.fset is not None, key
            continue
        assert declared is not None
        parameters = list(inspect.signature(declared).parameters)[1:]
        signatures = re.findall(rf"^(?:\d+\. )?{key}\(self: [^,)]+(?:, )?(.*)\) ->", there.__doc__, re.MULTILINE)
        known = [re.findall(r"(?:^|, )(\w+): ", signature) for signature in signatures]
        assert parameters in known, (key, signatures)


@needs_tensorrt
def test_the_used_names_exist_in_the_real_package() -> None:
    """These are members of enumerations, and classes."""
    trt = find_flavour().trt
    for enumeration, members in {
        "BuilderFlag": ["WEIGHT_STREAMING"],
        "ComputeCapability": ["SM89", "SM120"],
        "CudaGraphStrategy": ["DISABLED", "WHOLE_GRAPH_CAPTURE"],
        "DataType": ["FLOAT", "BF16", "HALF", "INT32", "FP8"],
        "ExecutionContextAllocationStrategy": ["USER_MANAGED"],
        "NetworkDefinitionCreationFlag": ["STRONGLY_TYPED"],
        "TensorIOMode": ["INPUT"],
    }.items():
        assert set(members) <= set(getattr(trt, enumeration).__members__)
    assert all(hasattr(trt, name) for name in ("Builder", "OnnxParser", "Runtime", "ILogger"))


@given(st.dictionaries(st.sampled_from(["text_encoder_3", "transformer", "vae"]), st.integers(0, 100)), st.integers())
def test_only_weights_that_do_not_fit_are_streamed(streamable: dict[str, int], room: int) -> None:
    """The budgets use all of the room, and the transformer has priority."""
    budgets = streaming_budgets(streamable, room)
    assert budgets.keys() == streamable.keys()
    assert sum(budgets.values()) == min(sum(streamable.values()), max(0, room))
    assert all(0 <= budgets[part] <= size for part, size in streamable.items())
    if budgets.get("transformer", 0) < streamable.get("transformer", 0):
        assert sum(budgets.values()) == budgets["transformer"]


def test_the_workspace_grows_if_needed() -> None:
    """Its version changes with its address, so that CUDA graphs recorded before are not replayed."""
    workspace = Workspace(torch.device("cpu"))
    address, size_bytes = workspace.take(1000)
    version = workspace.version
    assert (address % 64, size_bytes >= 1000) == (0, True)
    assert workspace.take(10) == (address, size_bytes)
    assert workspace.version == version
    assert workspace.take(2000)[1] >= 2000
    assert workspace.version > version


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (Options(precision="float16"), "precision: got 'float16'; the tensorrt backend allows: auto, float32"),
        (Options(offload="encoders"), "offload: got 'encoders'; the tensorrt backend allows: none, sequential"),
        (Options(tiled_decode=True), "tiled_decode: got 'on'; the tensorrt backend allows: off"),
        (Options(device="cpu"), "device: got 'cpu'; the tensorrt backend allows: auto, cuda"),
    ],
)
def test_unsupported_options_are_refused(options: Options, why: str) -> None:
    """The error has the value and the allowed values."""
    with pytest.raises(InvalidSetting, match=re.escape(why)):
        SPEC.check_options(options, "cuda")


@needs_no_gpu
def test_missing_requirements_are_named(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the library, the GPU or both, each with a remedy."""
    gpu, library = "there is no NVIDIA GPU, or no driver for it", "TensorRT is not installed"
    if HAS_TENSORRT:
        with pytest.raises(BackendUnavailable, match=rf"'tensorrt' cannot run: {gpu}\. .* another --backend"):
            open_backend("tensorrt", checkpoint, Options())
    monkeypatch.setattr(flavour, "find_spec", lambda _: None)
    with pytest.raises(BackendUnavailable, match=rf"{library}; {gpu}\. .*sd35-fp8-mirror\[tensorrt\].*NVIDIA GPU"):
        check_available("tensorrt")
    monkeypatch.setattr(flavour, "gpu_architectures", lambda: ["sm89"])
    with pytest.raises(BackendUnavailable, match=rf"{library}\. .*sd35-fp8-mirror\[tensorrt\]") as raised:
        check_available("tensorrt")
    assert gpu not in str(raised.value)


def test_a_library_that_cannot_be_loaded_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error has the reason. If the other flavour can be loaded, it is used instead."""
    (tmp_path / "tensorrt.py").write_text("raise OSError('libnvinfer.so.11: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    if HAS_TENSORRT:
        assert find_flavour().is_rtx
    (tmp_path / "tensorrt_rtx.py").write_text("raise ImportError('no driver')")
    for name in [name for name in sys.modules if name.split(".")[0] == "tensorrt_rtx"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(
        BackendUnavailable,
        match=r"tensorrt is installed but cannot be loaded \(OSError: libnvinfer.so.11: .*\); tensorrt_rtx is",
    ):
        find_flavour()


@pytest.fixture(scope="module")
def backend_f32(checkpoint: Checkpoint) -> TensorRtBackend:
    """A backend in float32."""
    return TensorRtBackend(checkpoint, "float32", OnnxNetworks(checkpoint), HostMemory(), {})


@pytest.mark.parametrize("precision", ["bfloat16", "fp8"])
def test_latents_and_embeddings_are_in_bf16(
    checkpoint: Checkpoint, precision: Precision, backend_f32: TensorRtBackend
) -> None:
    """A step matches float32 within the rounding of BF16."""
    backend = TensorRtBackend(checkpoint, precision, OnnxNetworks(checkpoint), HostMemory(), {})
    latents, images = [], []
    for each in (backend, backend_f32):
        cat, nothing = each.encode_text(["a cat", ""])
        row = DenoiseRow(initial_noise(1, (16, 8, 12)), cat, nothing, 1.0, 4.5)
        latents += euler_step(each, [row], 0.5)
        images += each.decode_latents(latents[-1:])
    assert [latent.dtype for latent in latents] == [torch.bfloat16, torch.float32]
    assert backend.precision == precision
    difference = (latents[0].float() - latents[1]).abs()
    assert 0 < difference.mean() < 2**-7  # half of BF16's last bit of a value of a few units; guidance multiplies it
    assert np.abs(images[0].astype(int) - images[1]).mean() < 2


def test_planned_offloads_are_accepted(checkpoint: Checkpoint) -> None:
    """The planner offers "none" and "sequential"."""
    request = PlacementRequest("tensorrt", "bfloat16", Workload(128, 128, 2))
    plan = make_plan([network_sizes_on_disk(checkpoint)], request, AvailableMemory("cuda", 10**10, 10**10))
    assert [placement.offload for placement in plan.placements] == ["none", "sequential"]
    for placement in plan.placements:
        with pytest.raises(BackendUnavailable):  # the device does not exist
            open_tensorrt(checkpoint, Options(offload=placement.offload, device="cuda:99"))
