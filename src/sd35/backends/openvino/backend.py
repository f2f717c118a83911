"""The `openvino` backend: runs a checkpoint's graphs with OpenVINO on a CPU, in float32 or BF16.

Compared with `onnx`, it needs another 180 MB on disk, and more memory and time to start, but its steps are faster. On
processors with BF16 arithmetic, steps in BF16 take about half the time of `onnx`.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from threading import Lock
from types import MappingProxyType
from typing import Any

import numpy as np

from sd35.backends.base import CHECK_FILES
from sd35.backends.graphs.backend import GraphBackend, Graphs, check_weights, memory_of
from sd35.backends.openvino.spec import SPEC, is_compiled_twice
from sd35.backends.options import Options
from sd35.checkpoints.checkpoint import Checkpoint
from sd35.checkpoints.graphs.compiled import compiled_graphs
from sd35.checkpoints.graphs.embedded import WEIGHTS_LAYOUT, check_layout, find_embedded_graph, has_embedded_graphs
from sd35.checkpoints.network_sizes import network_sizes_on_disk
from sd35.errors import CheckpointError, InvalidSetting
from sd35.tensors import LATENT_CHANNELS, LATENT_PX, Array

# OpenVINO imports this package to report each import of OpenVINO to Google. With the entry None, importing the package
# fails, and OpenVINO works without it.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # the type does not allow None
import openvino  # noqa: E402  must follow the line above
from openvino import opset14 as operators  # noqa: E402
from openvino.frontend.onnx import ConversionExtension  # noqa: E402

__all__ = ["memory_of", "open_backend"]

_PRECISION_HINTS = {"auto": "f32", "float32": "f32", "bfloat16": "bf16"}  # OpenVINO's names of the precisions


def open_backend(checkpoint: Checkpoint, options: Options) -> GraphBackend:
    """Open the checkpoint's graphs.

    Raises:
        InvalidSetting: The checkpoint has separate weight files, or the processor has no BF16 arithmetic.
        NotCompiled: The graphs are not built.
        CheckpointError: A graph is damaged or has NVIDIA's layout, or the card does not fit the graphs.
    """
    check_weights(SPEC.name, checkpoint)
    if checkpoint.graphs:
        raise CheckpointError(
            f"{checkpoint.graphs.directory} contains NVIDIA's graphs, which the openvino backend does not read; use"
            " --backend onnx"
        )
    core = openvino.Core()
    if options.precision == "bfloat16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise InvalidSetting("precision: got 'bfloat16', which this processor does not support; allowed: auto, float32")
    core.add_extension(ConversionExtension("MultiHeadAttention", "com.microsoft", _convert_attention))
    graphs = Graphs(_GraphOpener(core, checkpoint, options).open)
    return GraphBackend(SPEC.name, "openvino", graphs, checkpoint, options)


@dataclass(frozen=True)
class _GraphOpener:
    """Opens a checkpoint's graphs: those next to its weights, or those of `sd35 compile`."""

    core: openvino.Core
    checkpoint: Checkpoint
    options: Options

    def open(self, part: str, threads: int) -> "_Graph":
        """Open a part's graph. Raises NotCompiled if it is not built, CheckpointError if it is damaged."""
        path = self._path_of(part)
        try:
            return self._compile(path, part, threads)
        except RuntimeError as error:  # OpenVINO's errors have no other common base class
            raise CheckpointError(f"{path} cannot be loaded ({error}); {CHECK_FILES}") from error

    def _compile(self, path: Path, part: str, threads: int) -> "_Graph":
        """Read a graph and compile it for any shape. Compile a small transformer for the default shape too."""
        model = self.core.read_model(path)
        layout = ["framework", WEIGHTS_LAYOUT]  # the path at which OpenVINO keeps this entry of ONNX's metadata
        check_layout(path, model.get_rt_info(layout).value if model.has_rt_info(layout) else None)
        config = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": _PRECISION_HINTS[self.options.precision],
            "INFERENCE_NUM_THREADS": threads,
            "ENABLE_CPU_PINNING": False,  # because other work runs on these cores too
            # The number of cached shapes. With the default of 5,000, the decoder's memory grew with each new size.
            "CPU_RUNTIME_CACHE_CAPACITY": "64",
        }
        any_shape = self.core.compile_model(model, "CPU", config)
        if not is_compiled_twice(part, self._parameter_counts[part]):
            return _Graph(any_shape)
        shapes = self._default_shapes()
        model.reshape(shapes)
        return _Graph(any_shape, self.core.compile_model(model, "CPU", config), shapes)

    @cached_property
    def _parameter_counts(self) -> dict[str, int]:
        """The number of each network's parameters, by part."""
        return {name: network.values for name, network in network_sizes_on_disk(self.checkpoint).networks.items()}

    def _path_of(self, part: str) -> Path:
        """Return the path of a part's graph. Raises NotCompiled or CheckpointError if it does not exist."""
        if has_embedded_graphs(self.checkpoint):
            return find_embedded_graph(self.checkpoint, part)
        return compiled_graphs(self.options.cache_dir, self.checkpoint, "fp32").path(part)

    def _default_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the transformer's inputs, by name, for one image with the card's default values."""
        card, sizes = self.checkpoint.card, self.checkpoint.config("transformer")
        rows = 2 if card.guidance_scale > 1 else 1
        tokens = self.checkpoint.config("text_encoder")["max_position_embeddings"] + card.max_sequence_length
        return {
            "hidden_states": (rows, LATENT_CHANNELS, card.height // LATENT_PX, card.width // LATENT_PX),
            "encoder_hidden_states": (rows, tokens, sizes["joint_attention_dim"]),
            "pooled_projections": (rows, sizes["pooled_projection_dim"]),
            "timestep": (rows,),
        }


class _Graph:
    """A graph compiled for any shape, and optionally also for fixed shapes, which makes small models a fifth faster.

    `shapes` are the shapes of the inputs, by name, that the graph `fixed_shape` was compiled for.
    """

    def __init__(
        self,
        any_shape: openvino.CompiledModel,
        fixed_shape: openvino.CompiledModel | None = None,
        shapes: Mapping[str, tuple[int, ...]] = MappingProxyType({}),
    ) -> None:
        self._any = any_shape.create_infer_request()
        self._fixed = fixed_shape.create_infer_request() if fixed_shape else self._any
        self._shapes = shapes
        self._lock = Lock()

    def run(self, outputs: Sequence[str], inputs: Mapping[str, Array], /) -> list[Array]:
        """Run the graph, see `sd35.backends.graphs.backend.Graph`."""
        shapes = {name: array.shape for name, array in inputs.items()}
        request = self._fixed if shapes == self._shapes else self._any
        with self._lock:  # a request handles one call at a time, and the next call overwrites its outputs
            request.infer(inputs, share_inputs=True)
            return [request.get_tensor(name).data.copy() for name in outputs]


def _convert_attention(node: Any) -> list[openvino.Output]:  # noqa: ANN401  OpenVINO's context of an ONNX node
    """Convert ONNX Runtime's operator MultiHeadAttention, which `sd35.compile.rewrites` uses, to OpenVINO's operators.

    The inputs q, k and v, and the output, have the shape `[rows, tokens, heads * head size]`.
    """
    # In these shapes, 0 keeps a dimension (`special_zero`) and -1 takes the remaining values.
    split = operators.constant(np.array([0, 0, node.get_attribute("num_heads"), -1], np.int64))
    joined = operators.constant(np.array([0, 0, -1], np.int64))
    swap = operators.constant(np.array([0, 2, 1, 3], np.int64))
    heads = [
        operators.transpose(operators.reshape(node.get_input(index), split, special_zero=True), swap)
        for index in range(3)
    ]
    attended = operators.transpose(operators.scaled_dot_product_attention(*heads), swap)
    return list(operators.reshape(attended, joined, special_zero=True).outputs())
