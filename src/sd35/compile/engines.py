"""Builds TensorRT engines of a checkpoint's graphs: one for each network, with a profile for each size bucket.

TensorRT-RTX builds them without a GPU, for any it knows; standard TensorRT only on the GPU that will run them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sd35.backends.buckets import Bucket, text_of
from sd35.backends.contract import LATENT_PX
from sd35.backends.graph_interfaces import Interface, fitted_graph, interfaces_of
from sd35.backends.tensorrt_flavour import Flavour, gpu_architectures, known_architectures
from sd35.backends.tensorrt_types import Builder, Config, Network, Profile
from sd35.checkpoints.anatomy import NETWORKS
from sd35.checkpoints.built import build
from sd35.checkpoints.checkpoint import Checkpoint
from sd35.checkpoints.compiled_engines import ENGINE_FILE, Target, engine_folder, engine_key
from sd35.checkpoints.tensorrt_onnx import OfficialGraphs
from sd35.compile.stages import Stages
from sd35.errors import BuildFailed, InvalidSetting

MOST_PROMPTS = 8  # that a text encoder takes at once
USUAL_ROWS = 2  # of a transformer, or prompts of an encoder: one picture with guidance
STREAMABLE = {"text_encoder_3", "transformer"}  # the large ones: their weights may stay in the host's memory

Shapes = Mapping[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]
"""Of each input: the least, the usual and the largest."""


@dataclass(frozen=True)
class Range:
    """What the engines are to take: size buckets, and the most rows of the transformer at once."""

    buckets: Sequence[Bucket]
    rows: int

    def batch(self, part: str) -> int:
        """The most rows of a network's batch; pictures are decoded one by one."""
        return {"transformer": self.rows, "vae": 1}.get(part, MOST_PROMPTS)

    def shapes_text(self, part: str) -> str:
        """The buckets of a network that knows sizes, else nothing."""
        return text_of(self.buckets) if part in {"transformer", "vae"} else ""


def targets_of(flavour: Flavour, gpus: Sequence[str]) -> list[Target]:
    """What to build for: the architectures that were named, or this machine's GPUs.

    Raises InvalidSetting where an architecture cannot be built for here.
    """
    here, known = gpu_architectures(), known_architectures(flavour)
    wanted = list(dict.fromkeys(gpus or here))
    if not wanted:
        raise InvalidSetting(f"gpu: none named, and this machine has none; allowed: {', '.join(known) or 'this one'}")
    if wrong := [gpu for gpu in wanted if gpu not in (known or here)]:
        allowed = ", ".join(known or here) or "an architecture of this machine's, which has no GPU"
        raise InvalidSetting(f"gpu: got {', '.join(wrong)}; {flavour.name} {flavour.version} allows: {allowed}")
    return [Target(flavour.name, flavour.version, gpu) for gpu in wanted]


def build_engines(
    checkpoint: Checkpoint,
    graphs: OfficialGraphs,
    flavour: Flavour,
    target: Target,
    wanted: Range,
    cache_dir: Path,
    stages: Stages,
) -> list[Path]:
    """The folders of the five engines, in the order in which a picture is made; what is not built yet is built.

    `graphs` are the checkpoint's own, or what was compiled of it. Raises CheckpointError where a graph is missing or
    broken, BuildFailed where TensorRT cannot build it.
    """
    interfaces = interfaces_of(checkpoint)
    folders = []
    for part in NETWORKS:
        batch, shapes = wanted.batch(part), wanted.shapes_text(part)
        key = {**engine_key(checkpoint, part, graphs.transformer, target), "shapes": shapes, "batch": batch}
        folder = engine_folder(cache_dir, checkpoint, part, graphs.transformer, target)
        with stages.stage(f"engine of {part} for {target.gpu}"):
            build(folder, key, partial(_write, flavour, target, graphs, part, interfaces[part], wanted))
        folders.append(folder)
    return folders


def network_of(
    flavour: Flavour, builder: Builder, graphs: OfficialGraphs, part: str, interface: Interface
) -> tuple[Network, object]:
    """A part's graph as TensorRT reads it, strongly typed, and its parser, which has to outlive it.

    Raises CheckpointError, BuildFailed with what the parser says.
    """
    model, folder = fitted_graph(graphs, part, interface)
    trt = flavour.trt
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, flavour.log)
    path = graphs.path(part)
    if not parser.parse(model.SerializeToString(), str(folder / path.name)):  # weights are looked for in its folder
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        said = "; ".join(f"{each.node_operator()} {each.node_name()!r}: {each.desc()}" for each in errors)
        raise BuildFailed(f"{path}: {flavour.name} {flavour.version} cannot read it: {said}")
    return network, parser


def shapes_of(interface: Interface, bucket: Bucket | None, batch: int) -> Shapes:
    """What a network's inputs may be; without a bucket, of one that knows no sizes."""
    usual_batch = min(USUAL_ROWS, batch)
    sizes = (bucket.least, bucket.usual, bucket.most) if bucket else ((0, 0),) * 3

    def shape(fixed: Sequence[int | None], rows: int, size_px: tuple[int, int]) -> tuple[int, ...]:
        width, height = (side // LATENT_PX for side in size_px)
        changing = {0: rows, 2: height, 3: width}
        return tuple(changing[axis] if size is None else size for axis, size in enumerate(fixed))

    rows = (1, usual_batch, batch)
    return {
        name: (
            shape(tensor.sizes, rows[0], sizes[0]),
            shape(tensor.sizes, rows[1], sizes[1]),
            shape(tensor.sizes, rows[2], sizes[2]),
        )
        for name, tensor in interface.inputs.items()
    }


def config_of(
    flavour: Flavour, builder: Builder, target: Target, part: str, profiles: Sequence[Shapes]
) -> tuple[Config, list[Profile]]:
    """How an engine is to be built, and its profiles, which have to outlive that."""
    trt = flavour.trt
    config = builder.create_builder_config()
    if flavour.is_rtx:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, target.gpu.upper()), 0)
    if part in STREAMABLE:
        config.set_flag(trt.BuilderFlag.WEIGHT_STREAMING)
    made = []
    for shapes in profiles:
        profile = builder.create_optimization_profile()
        for name, (least, usual, most) in shapes.items():
            profile.set_shape(name, least, usual, most)
        index = config.add_optimization_profile(profile)
        assert index == len(made), f"{part}: TensorRT refused the profile {shapes}"
        made.append(profile)
    return config, made


def _write(
    flavour: Flavour,
    target: Target,
    graphs: OfficialGraphs,
    part: str,
    interface: Interface,
    wanted: Range,
    folder: Path,
) -> None:
    builder = flavour.trt.Builder(flavour.log)
    network, parser = network_of(flavour, builder, graphs, part, interface)
    buckets: Sequence[Bucket | None] = wanted.buckets if wanted.shapes_text(part) else (None,)
    profiles = [shapes_of(interface, bucket, wanted.batch(part)) for bucket in buckets]
    config, held = config_of(flavour, builder, target, part, profiles)
    engine = builder.build_serialized_network(network, config)
    del parser, held
    if engine is None:
        said = "; ".join(flavour.log.take_errors())
        raise BuildFailed(f"{graphs.path(part)}: {flavour.name} {flavour.version} cannot build it: {said}")
    (folder / ENGINE_FILE).write_bytes(engine)
