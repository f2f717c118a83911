"""Builds TensorRT engines of a checkpoint's graphs: one for each network, with a profile for each size bucket.

TensorRT-RTX builds them without a GPU, for any it knows; standard TensorRT only on the GPU that will run them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sd35.backends.graphs.interfaces import Interface, fitted_graph, interfaces_of
from sd35.backends.tensorrt.buckets import Bucket, Size, text_of
from sd35.backends.tensorrt.flavour import Flavour, gpu_architectures, known_architectures
from sd35.backends.tensorrt.types import Buffer, Network, Profile
from sd35.checkpoints.build_cache import Key, build, fingerprint_of
from sd35.checkpoints.checkpoint import Checkpoint
from sd35.checkpoints.graphs.engines import ENGINE_FILE, Target, engine_folder, engine_key
from sd35.checkpoints.graphs.nvidia import OfficialGraphs
from sd35.checkpoints.network_sizes import NETWORKS
from sd35.compile.stages import Stages
from sd35.errors import BuildFailed, InvalidSetting
from sd35.tensors import LATENT_PX

MOST_PROMPTS = 8  # that a text encoder takes at once
ROWS = 8  # that a transformer takes at once, where nothing else is asked for: as many as the engine's batches have
USUAL_ROWS = 2  # of a transformer, or prompts of an encoder: one image with guidance
STREAMABLE = {"text_encoder_3", "transformer"}  # the large ones: their weights may stay in the host's memory

Shapes = Mapping[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]
"""Of each input: the least, the usual and the largest."""


@dataclass(frozen=True)
class Range:
    """What the engines are to take: size buckets, and the most rows of the transformer at once."""

    buckets: Sequence[Bucket]
    rows: int

    def batch(self, part: str) -> int:
        """The most rows of a network's batch; images are decoded one by one."""
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


class EngineBuilder:
    """Builds the engines of a checkpoint's graphs: its own, or what was compiled of it, in a precision."""

    def __init__(self, checkpoint: Checkpoint, graphs: OfficialGraphs, wanted: Range, flavour: Flavour) -> None:
        self.checkpoint, self.graphs, self.wanted = checkpoint, graphs, wanted
        self._flavour = flavour
        self._interfaces = interfaces_of(checkpoint)
        self._builder = flavour.trt.Builder(flavour.log)

    def network(self, part: str) -> tuple[Network, object]:
        """A part's graph as TensorRT reads it, strongly typed, and its parser, which has to outlive it.

        Raises CheckpointError where the graph is missing or broken, BuildFailed with what the parser says.
        """
        model, folder = fitted_graph(self.graphs, part, self._interfaces[part])
        trt, path = self._flavour.trt, self.graphs.path(part)
        network = self._builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, self._flavour.log)
        if not parser.parse(model.SerializeToString(), str(folder / path.name)):  # weights are looked for beside that
            errors = [parser.get_error(index) for index in range(parser.num_errors)]
            said = "; ".join(f"{each.node_operator()} {each.node_name()!r}: {each.desc()}" for each in errors)
            raise BuildFailed(f"{path}: {self._flavour.name} {self._flavour.version} cannot read it: {said}")
        return network, parser

    def profiles(self, part: str) -> list[Shapes]:
        """What a network's inputs may be: of each size bucket, or where it knows no sizes, of its batch."""
        interface, most = self._interfaces[part], self.wanted.batch(part)
        batches = (1, min(USUAL_ROWS, most), most)
        if not self.wanted.shapes_text(part):
            return [_shapes(interface, batches, [(0, 0)] * 3)]
        return [_shapes(interface, batches, [each.least, each.usual, each.most]) for each in self.wanted.buckets]

    def origin(self, part: str) -> Key:
        """Which graph an engine is of: one that was built anew takes another engine. NVIDIA's are the revision's."""
        found = fingerprint_of(self.graphs.path(part).parent)
        return {"graph": found} if found else {}

    def build(self, part: str, target: Target) -> Buffer:
        """An engine as TensorRT serialises it. Raises CheckpointError, BuildFailed."""
        network, parser = self.network(part)
        config = self._builder.create_builder_config()
        trt = self._flavour.trt
        if self._flavour.is_rtx:
            config.num_compute_capabilities = 1
            config.set_compute_capability(getattr(trt.ComputeCapability, target.gpu.upper()), 0)
        if part in STREAMABLE:
            config.set_flag(trt.BuilderFlag.WEIGHT_STREAMING)
        profiles = [self._profile(shapes) for shapes in self.profiles(part)]
        for profile in profiles:
            if config.add_optimization_profile(profile) < 0:
                said = "; ".join(self._flavour.log.take_errors())
                raise BuildFailed(
                    f"{self.graphs.path(part)}: sizes {self.wanted.shapes_text(part)} are refused: {said}"
                )
        engine = self._builder.build_serialized_network(network, config)
        del parser
        if engine is None:
            said = "; ".join(self._flavour.log.take_errors())
            raise BuildFailed(f"{self.graphs.path(part)}: {target} cannot be built for: {said}")
        return engine

    def _profile(self, shapes: Shapes) -> Profile:
        profile = self._builder.create_optimization_profile()
        for name, (least, usual, most) in shapes.items():
            profile.set_shape(name, least, usual, most)
        return profile


def build_engines(builder: EngineBuilder, target: Target, cache_dir: Path, stages: Stages) -> list[Path]:
    """The folders of the five engines, in the order in which an image is made; what is not built yet is built.

    Raises CheckpointError where a graph is missing or broken, BuildFailed where TensorRT cannot build it.
    """
    checkpoint, precision, wanted = builder.checkpoint, builder.graphs.transformer, builder.wanted
    folders = []
    for part in NETWORKS:
        key = engine_key(checkpoint, part, precision, target)
        folder = engine_folder(cache_dir, checkpoint, part, precision, target)
        with stages.stage(f"engine of {part} for {target.gpu}"):
            build(
                folder,
                {**key, "shapes": wanted.shapes_text(part), "batch": wanted.batch(part), **builder.origin(part)},
                partial(_write, builder, part, target),
            )
        folders.append(folder)
    return folders


def _write(builder: EngineBuilder, part: str, target: Target, folder: Path) -> None:
    (folder / ENGINE_FILE).write_bytes(builder.build(part, target))


def _shapes(interface: Interface, batches: Sequence[int], sizes: Sequence[Size]) -> Shapes:
    """The three shapes of each input: the first axis is its batch, a latent's third and last are height and width."""

    def shape(fixed: Sequence[int | None], index: int) -> tuple[int, ...]:
        width, height = (side // LATENT_PX for side in sizes[index])
        changing = {0: batches[index], 2: height, 3: width}
        return tuple(changing[axis] if size is None else size for axis, size in enumerate(fixed))

    return {name: (shape(x.sizes, 0), shape(x.sizes, 1), shape(x.sizes, 2)) for name, x in interface.inputs.items()}
