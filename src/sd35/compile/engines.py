"""Build TensorRT engines from a checkpoint's graphs: one engine for each network.

An engine has an optimization profile of TensorRT for each size bucket: the range of input shapes that it supports, and
the shapes that it is fastest for. TensorRT-RTX builds without a GPU for any architecture that it supports. Standard
TensorRT must build on the GPU that runs the engine. Here, a flavour is one of these two libraries,
and a part is the name of a network in the Diffusers layout, such as `transformer`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sd35.backends.graphs.interfaces import Dimensions, Interface, fitted_graph, interfaces_of
from sd35.backends.tensorrt.buckets import Bucket, Size, text_of
from sd35.backends.tensorrt.flavour import Flavour, gpu_architectures, known_architectures
from sd35.backends.tensorrt.types import Buffer, Network, Profile
from sd35.checkpoints.build_cache import build
from sd35.checkpoints.checkpoint import Checkpoint
from sd35.checkpoints.graphs.compiled import ENGINE_FILE, Target, engine_folder, engine_key, graph_fingerprint
from sd35.checkpoints.graphs.nvidia import OfficialGraphs
from sd35.checkpoints.network_sizes import NETWORKS
from sd35.compile.stages import Stages
from sd35.errors import BuildFailed, InvalidSetting
from sd35.tensors import LATENT_PX

MAX_PROMPTS = 8  # largest batch of a text encoder
DEFAULT_ROWS = 8  # largest batch of the transformer; the scheduler's batches have at most as many rows
TYPICAL_ROWS = 2  # one image with guidance: two rows of the transformer, or two prompts of a text encoder
STREAMABLE = {"text_encoder_3", "transformer"}  # large networks: their weights may stay in the host's memory

Shapes = Mapping[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]
"""The smallest, the typical and the largest shape of each input, by name."""


@dataclass(frozen=True)
class EngineShapes:
    """The shapes that engines support: size buckets, and the largest batch of the transformer (`rows`)."""

    buckets: Sequence[Bucket]
    rows: int

    def batch(self, part: str) -> int:
        """Return the largest batch of a network's engine. Images are decoded one at a time."""
        return {"transformer": self.rows, "vae": 1}.get(part, MAX_PROMPTS)

    def buckets_text(self, part: str) -> str:
        """Return the size buckets as in `--shapes`, or "" for text encoders: their inputs have no image size."""
        return text_of(self.buckets) if part in {"transformer", "vae"} else ""


def targets_of(flavour: Flavour, gpus: Sequence[str]) -> list[Target]:
    """Return the targets to build for: the GPU architectures `gpus`, or by default those of this machine's GPUs.

    Raises InvalidSetting if this machine cannot build for an architecture.
    """
    local, supported = gpu_architectures(), known_architectures(flavour)
    requested = list(dict.fromkeys(gpus or local))
    allowed = f"{flavour.name} {flavour.version} allows: {', '.join(supported or local) or 'only GPUs in this machine'}"
    if not requested:
        advice = f"name architectures: {', '.join(supported)}" if supported else "run this on the machine with the GPU"
        raise InvalidSetting(f"--gpu: not given, and this machine has no GPU; {advice}")
    if unsupported := [gpu for gpu in requested if gpu not in (supported or local)]:
        raise InvalidSetting(f"--gpu: got {', '.join(unsupported)}; {allowed}")
    return [Target(flavour.name, flavour.version, gpu) for gpu in requested]


class EngineBuilder:
    """Builds engines in one precision, from NVIDIA's graphs or those of `sd35 compile`."""

    def __init__(self, checkpoint: Checkpoint, graphs: OfficialGraphs, shapes: EngineShapes, flavour: Flavour) -> None:
        self.checkpoint, self.graphs, self.shapes = checkpoint, graphs, shapes
        self._flavour = flavour
        self._interfaces = interfaces_of(checkpoint)
        self._builder = flavour.trt.Builder(flavour.log)

    def network(self, part: str) -> tuple[Network, object]:
        """Parse a part's graph as a strongly typed network. Return it with the parser, which must outlive the network.

        Raises CheckpointError if the graph is missing or damaged, BuildFailed if TensorRT cannot parse it.
        """
        model, folder = fitted_graph(self.graphs, part, self._interfaces[part])
        trt, path = self._flavour.trt, self.graphs.path(part)
        network = self._builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, self._flavour.log)
        if not parser.parse(model.SerializeToString(), str(folder / path.name)):  # weights are relative to the path
            errors = [parser.get_error(index) for index in range(parser.num_errors)]
            reasons = ", ".join(f"{error.node_operator()} {error.node_name()!r}: {error.desc()}" for error in errors)
            library = f"{self._flavour.name} {self._flavour.version}"
            raise BuildFailed(f"{path}: {library} cannot read it ({reasons}); try a newer version of this library")
        return network, parser

    def profiles(self, part: str) -> list[Shapes]:
        """Return the shapes of a network's inputs for each size bucket. For a text encoder, the list has one item."""
        interface, max_batch = self._interfaces[part], self.shapes.batch(part)
        batches = (1, min(TYPICAL_ROWS, max_batch), max_batch)
        if not self.shapes.buckets_text(part):
            return [_shapes(interface, batches, [(0, 0)] * 3)]  # the inputs have no axis for an image size
        buckets = [[bucket.smallest, bucket.typical, bucket.largest] for bucket in self.shapes.buckets]
        return [_shapes(interface, batches, sizes) for sizes in buckets]

    def build(self, part: str, target: Target) -> Buffer:
        """Build and serialise an engine. Raises the errors of `network`, and BuildFailed if the build fails."""
        network, parser = self.network(part)
        config = self._builder.create_builder_config()
        trt, path = self._flavour.trt, self.graphs.path(part)
        if self._flavour.is_rtx:
            config.num_compute_capabilities = 1
            config.set_compute_capability(getattr(trt.ComputeCapability, target.gpu.upper()), 0)
        if part in STREAMABLE:
            config.set_flag(trt.BuilderFlag.WEIGHT_STREAMING)
        profiles = [self._profile(shapes) for shapes in self.profiles(part)]
        for profile in profiles:
            if config.add_optimization_profile(profile) < 0:
                errors, largest = self._flavour.log.take_errors(), self.shapes.batch(part)
                inputs = f"the sizes {text_of(self.shapes.buckets)} in batches of up to {largest}"
                raise BuildFailed(f"{path}: TensorRT rejects {inputs} ({errors}); choose other --shapes or --rows")
        engine = self._builder.build_serialized_network(network, config)
        del parser  # kept until here, because the network refers to it
        if engine is None:
            reason = self._flavour.log.take_errors() or "it gave no reason"
            remedy = "if memory is short, choose smaller --shapes or --rows"
            raise BuildFailed(f"{path}: TensorRT cannot build the engine for {target} ({reason}); {remedy}")
        return engine

    def _profile(self, shapes: Shapes) -> Profile:
        """Create an optimization profile with these shapes."""
        profile = self._builder.create_optimization_profile()
        for name, (smallest, typical, largest) in shapes.items():
            profile.set_shape(name, smallest, typical, largest)
        return profile


def build_engines(builder: EngineBuilder, target: Target, cache_dir: Path, stages: Stages) -> list[Path]:
    """Build those of the five engines that are not built yet. Return the folders of all five, in the order of use.

    Raises CheckpointError if a graph is missing or damaged, BuildFailed if TensorRT cannot build it.
    """
    checkpoint, precision, shapes = builder.checkpoint, builder.graphs.transformer, builder.shapes
    folders = []
    for part in NETWORKS:
        key = {
            **engine_key(checkpoint, part, precision, target),
            "shapes": shapes.buckets_text(part),
            "batch": shapes.batch(part),
            **graph_fingerprint(builder.graphs, part),
        }
        folder = engine_folder(cache_dir, checkpoint, part, precision, target)
        with stages.stage(f"engine of {part} for {target.gpu}"):
            build(folder, key, partial(_write, builder, part, target))
        folders.append(folder)
    return folders


def _write(builder: EngineBuilder, part: str, target: Target, folder: Path) -> None:
    """Build an engine and write it to a folder."""
    (folder / ENGINE_FILE).write_bytes(builder.build(part, target))


def _shapes(interface: Interface, batches: Sequence[int], sizes: Sequence[Size]) -> Shapes:
    """Return the smallest, the typical and the largest shape of each input, for three batches and three image sizes.

    Axis 0 of an input is the batch. Axes 2 and 3 of a latent are the height and the width.
    """

    def shape(dimensions: Dimensions, index: int) -> tuple[int, ...]:
        width, height = (side // LATENT_PX for side in sizes[index])
        changing = {0: batches[index], 2: height, 3: width}
        return tuple(changing[axis] if isinstance(size, str) else size for axis, size in enumerate(dimensions))

    return {
        name: (shape(dimensions, 0), shape(dimensions, 1), shape(dimensions, 2))
        for name, dimensions in interface.inputs.items()
    }
