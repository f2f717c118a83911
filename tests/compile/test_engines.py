"""TensorRT engines, built without a GPU. Running them needs one, so the tests inspect the network before the build."""

import json
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from sd35.backends.fp8_layers import Treatment, treatment_of
from sd35.backends.tensorrt.buckets import buckets_of
from sd35.backends.tensorrt.flavour import Flavour, find_flavour
from sd35.checkpoints.build_cache import MANIFEST
from sd35.checkpoints.graphs.compiled import GraphPrecision, Target, compiled_engines, compiled_graphs, engine_folder
from sd35.checkpoints.graphs.nvidia import GRAPH_FILE, OfficialGraphs
from sd35.checkpoints.network_sizes import NETWORKS
from sd35.checkpoints.open import open_checkpoint
from sd35.checkpoints.registry import EMBEDDED
from sd35.compile.engines import EngineBuilder, EngineShapes, build_engines, targets_of
from sd35.compile.stages import Stages
from sd35.errors import BuildFailed, CheckpointError, InvalidSetting, NotCompiled

pytestmark = pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"), reason="TensorRT-RTX is for Linux on x86-64"
)

CHECKPOINT = open_checkpoint(EMBEDDED)
BUCKETS = buckets_of("", CHECKPOINT.card)
SHAPES = EngineShapes(BUCKETS[-1:], 8)  # only one bucket, because the time to build is proportional to the number
TEXT = 16 + CHECKPOINT.card.max_sequence_length
Compiler = Callable[[GraphPrecision], EngineBuilder]


@pytest.fixture(scope="module")
def flavour() -> Flavour:
    """The installed TensorRT."""
    return find_flavour()


@pytest.fixture(scope="module")
def builder(compiled: Path, flavour: Flavour) -> Compiler:
    """A function that returns a builder for the embedded checkpoint's graphs in a precision."""
    return lambda precision: EngineBuilder(
        CHECKPOINT, compiled_graphs(compiled, CHECKPOINT, precision), SHAPES, flavour
    )


@pytest.fixture(scope="module")
def target(flavour: Flavour) -> Target:
    """A target for a GPU that this machine does not need."""
    return targets_of(flavour, ["sm89"])[0]


def quiet() -> Stages:
    """Return stages that do not report progress."""
    return Stages(lambda *_: None)


def layers_of(network: Any) -> list[Any]:
    """Return all layers of a network."""
    return [network.get_layer(index) for index in range(network.num_layers)]


@pytest.mark.parametrize("gpu", ["sm89", "sm120"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp8"])
def test_all_networks_are_built_as_engines(
    compiled: Path, builder: Compiler, flavour: Flavour, precision: GraphPrecision, gpu: str
) -> None:
    """There are five engines. A second build reuses them."""
    (target,) = targets_of(flavour, [gpu])
    stages = quiet()
    folders = build_engines(builder(precision), target, compiled, stages)
    found = compiled_engines(compiled, CHECKPOINT, precision, target)
    assert [engine.folder for engine in found.values()] == folders
    assert set(stages.seconds) == {f"engine of {part} for {gpu}" for part in NETWORKS}
    assert {part: (engine.shapes, engine.batch) for part, engine in found.items()} == {
        **dict.fromkeys(NETWORKS[:3], ("", 8)),
        "transformer": ("64x64..256x256", 8),
        "vae": ("64x64..256x256", 1),
    }
    before = [engine.file.stat() for engine in found.values()]
    assert all(file.st_size > 100_000 for file in before)
    build_engines(builder(precision), target, compiled, stages)
    assert [engine.file.stat() for engine in found.values()] == before


def test_an_fp8_engine_is_smaller(compiled: Path, builder: Compiler, target: Target) -> None:
    """The engine keeps the graph's FP8 weights. Engines of the other networks are the same as in BF16."""
    sizes = {}
    for precision in ("fp32", "bf16", "fp8"):
        build_engines(builder(precision), target, compiled, quiet())
        sizes[precision] = compiled_engines(compiled, CHECKPOINT, precision, target)["transformer"].file.stat().st_size
    assert sizes["fp8"] < 0.85 * sizes["bf16"] < 0.75 * sizes["fp32"]
    bf16, fp8 = (compiled_engines(compiled, CHECKPOINT, precision, target) for precision in ("bf16", "fp8"))
    assert all((bf16[part] == fp8[part]) == (part != "transformer") for part in NETWORKS)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_engines_have_the_inputs_and_outputs_of_the_graphs(
    builder: Compiler, flavour: Flavour, precision: GraphPrecision
) -> None:
    """TensorRT keeps names, sizes and types; only the timestep is always FP32."""
    types = flavour.trt.DataType
    wide = types.FLOAT if precision == "fp32" else types.BF16
    latent = (-1, 16, -1, -1)
    clip: Any = ({"input_ids": ((-1, 16), types.INT32)}, {"text_embeddings": (-1, 64), "hidden_states": (-1, 16, 64)})
    expected: dict[str, tuple[dict[str, object], dict[str, tuple[int, ...]]]] = {
        "text_encoder": clip,
        "text_encoder_2": clip,
        "text_encoder_3": ({"input_ids": ((-1, -1), types.INT32)}, {"text_embeddings": (-1, -1, 128)}),
        "transformer": (
            {
                "hidden_states": (latent, wide),
                "encoder_hidden_states": ((-1, -1, 128), wide),
                "pooled_projections": ((-1, 128), wide),
                "timestep": ((-1,), types.FLOAT),
            },
            {"latent": latent},
        ),
        "vae": ({"latent": (latent, wide)}, {"images": (-1, 3, -1, -1)}),
    }
    for part, (inputs, outputs) in expected.items():
        network, parser = builder(precision).network(part)
        found_inputs = [network.get_input(index) for index in range(network.num_inputs)]
        found_outputs = [network.get_output(index) for index in range(network.num_outputs)]
        assert {each.name: (tuple(each.shape), each.dtype) for each in found_inputs} == inputs
        assert {each.name: (tuple(each.shape), each.dtype) for each in found_outputs} == {
            name: (shape, wide) for name, shape in outputs.items()
        }
        del parser


def test_fp8_layers_of_the_parsed_network_follow_the_rule(builder: Compiler, flavour: Flavour) -> None:
    """Each layer has the treatment of the rule: FP8, only FP8 weights, or neither."""
    trt: Any = flavour.trt
    network, parser = builder("fp8").network("transformer")
    producers = {}
    for layer in layers_of(network):
        for index in range(layer.num_outputs):
            output = layer.get_output(index)
            assert output is not None
            producers[output.name] = layer

    def is_from_fp8(layer: Any, index: int) -> bool:
        value = layer.get_input(index)
        assert value is not None
        producer = producers.get(value.name)
        stored = producer.get_input(0) if producer and producer.type == trt.LayerType.DEQUANTIZE else None
        return stored is not None and stored.dtype == trt.DataType.FP8

    treatments = {}
    for layer in layers_of(network):
        weight = layer.get_input(1) if layer.type == trt.LayerType.MATRIX_MULTIPLY else None
        if weight is None or ".weight" not in weight.name:
            continue
        is_fp8 = is_from_fp8(layer, 0), is_from_fp8(layer, 1)
        found = {(True, True): Treatment.FP8, (False, True): Treatment.WEIGHTS, (False, False): Treatment.UNCHANGED}[
            is_fp8
        ]
        treatments[weight.name.partition(".weight")[0]] = found
    assert treatments == {layer: treatment_of(layer) for layer in treatments}
    assert list(treatments.values()).count(Treatment.FP8) == 69
    del parser


def test_each_bucket_has_a_profile(compiled: Path, flavour: Flavour) -> None:
    """Batches have up to 8 rows, and the decoder's have one. Texts have the checkpoint's length."""
    graphs = compiled_graphs(compiled, CHECKPOINT, "fp8")
    builder = EngineBuilder(CHECKPOINT, graphs, EngineShapes(buckets_of("128x64", CHECKPOINT.card), 8), flavour)
    native, whole = builder.profiles("transformer")
    assert native["hidden_states"] == ((1, 16, 8, 16), (2, 16, 8, 16), (8, 16, 8, 16))
    assert whole["hidden_states"] == ((1, 16, 8, 8), (2, 16, 16, 16), (8, 16, 32, 32))
    assert whole["encoder_hidden_states"] == ((1, TEXT, 128), (2, TEXT, 128), (8, TEXT, 128))
    assert whole["timestep"] == ((1,), (2,), (8,))
    assert builder.profiles("vae")[1] == {"latent": ((1, 16, 8, 8), (1, 16, 16, 16), (1, 16, 32, 32))}
    length = CHECKPOINT.card.max_sequence_length
    assert builder.profiles("text_encoder_3") == [{"input_ids": ((1, length), (2, length), (8, length))}]


def test_an_engine_with_other_buckets_is_rebuilt(compiled: Path, builder: Compiler, target: Target) -> None:
    """Readers accept an engine with any buckets, and read them from its key."""
    build_engines(builder("bf16"), target, compiled, quiet())
    file = engine_folder(compiled, CHECKPOINT, "vae", "bf16", target) / MANIFEST
    file.write_text(file.read_text().replace("64x64..256x256", "64x64..128x128"))
    assert compiled_engines(compiled, CHECKPOINT, "bf16", target)["vae"].shapes == "64x64..128x128"
    build_engines(builder("bf16"), target, compiled, quiet())
    assert compiled_engines(compiled, CHECKPOINT, "bf16", target)["vae"].shapes == "64x64..256x256"


@pytest.mark.parametrize("change", ["version", "gpu", "revision", "format", "cut"])
def test_an_engine_for_another_target_or_checkpoint_is_refused(
    compiled: Path, builder: Compiler, target: Target, change: str
) -> None:
    """So is one of another format, and a truncated one. All count as not built."""
    build_engines(builder("bf16"), target, compiled, quiet())
    folder = engine_folder(compiled, CHECKPOINT, "text_encoder", "bf16", target)
    if change == "cut":
        file = compiled_engines(compiled, CHECKPOINT, "bf16", target)["text_encoder"].file
        file.write_bytes(file.read_bytes()[:-1])
    else:
        manifest = folder / MANIFEST
        manifest.write_text(manifest.read_text().replace(f'"{change}": ', f'"{change}": "another", "was": ', 1))
    with pytest.raises(NotCompiled) as raised:
        compiled_engines(compiled, CHECKPOINT, "bf16", target)
    assert raised.value.arguments == (
        "compile", "--checkpoint", "sd35-mini", "--precision", "bf16", "--target", "tensorrt", "--gpu", "sm89",
    )  # fmt: skip
    build_engines(builder("bf16"), target, compiled, quiet())
    assert compiled_engines(compiled, CHECKPOINT, "bf16", target)


def test_an_engine_is_stale_after_its_graph_was_rebuilt(compiled: Path, builder: Compiler, target: Target) -> None:
    """If the graph is missing, the engine is accepted."""
    build_engines(builder("bf16"), target, compiled, quiet())
    manifest = compiled_graphs(compiled, CHECKPOINT, "bf16").path("text_encoder").parent / MANIFEST
    before = manifest.read_text()
    rebuilt = json.loads(before)
    rebuilt["files"]["report.json"] = [0, "0" * 64]
    try:
        manifest.write_text(json.dumps(rebuilt))
        with pytest.raises(NotCompiled):
            compiled_engines(compiled, CHECKPOINT, "bf16", target)
        manifest.unlink()
        assert compiled_engines(compiled, CHECKPOINT, "bf16", target)["text_encoder"].graph
    finally:
        manifest.write_text(before)
    assert compiled_engines(compiled, CHECKPOINT, "bf16", target)


def test_an_unsupported_architecture_is_refused(flavour: Flavour) -> None:
    """TensorRT-RTX does not support Hopper (sm90). On a machine without a GPU, an architecture must be given."""
    with pytest.raises(InvalidSetting, match=r"gpu: got sm90; tensorrt_rtx 1\..* allows: sm75, .*sm89, .*sm120"):
        targets_of(flavour, ["sm89", "sm90"])
    with pytest.raises(InvalidSetting, match="--gpu: not given, and this machine has no GPU; name architectures: sm75"):
        targets_of(flavour, [])


def test_a_graph_that_tensorrt_cannot_parse_is_named(compiled: Path, flavour: Flavour, tmp_path: Path) -> None:
    """The error has the operator and TensorRT's message. Missing weights raise CheckpointError."""
    source = compiled_graphs(compiled, CHECKPOINT, "bf16").path("text_encoder")
    graphs = OfficialGraphs(tmp_path, "bf16")
    path = graphs.path("text_encoder")
    path.parent.mkdir(parents=True)
    model = onnx.load(source)
    next(node for node in model.graph.node if node.op_type == "Gemm").op_type = "Nonsense"
    onnx.save_model(model, path)
    broken = EngineBuilder(CHECKPOINT, graphs, SHAPES, flavour)
    with pytest.raises(BuildFailed, match=f"clip_l/{GRAPH_FILE}: tensorrt_rtx .* cannot read it .*Nonsense"):
        broken.build("text_encoder", Target("tensorrt_rtx", flavour.version, "sm89"))
    path.write_bytes(source.read_bytes())
    with pytest.raises(CheckpointError, match="is missing"):
        broken.network("text_encoder")
