"""The `openvino` backend: a checkpoint's graphs on a CPU, by OpenVINO, in float32 or BF16.

Compared with `onnx`, it needs another 180 MB on disk and more memory and time to start. Its steps are faster, and take
half the time of `onnx` in BF16 on processors that support it.
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

from sd35.backends.graphs.backend import GraphBackend, Graphs, check_weights, memory_of
from sd35.backends.openvino.spec import SPEC, is_compiled_twice
from sd35.backends.options import Options
from sd35.checkpoints.checkpoint import Checkpoint
from sd35.checkpoints.graphs.compiled import compiled_graphs
from sd35.checkpoints.graphs.embedded import WEIGHTS_LAYOUT, check_layout, find_embedded_graph, has_embedded_graphs
from sd35.checkpoints.network_sizes import network_sizes_on_disk
from sd35.errors import CheckpointError, InvalidSetting
from sd35.tensors import LATENT_CHANNELS, LATENT_PX, Array

# OpenVINO would tell Google of its import, by a package that it brings along: so that is first made not importable.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None is how Python refuses an import
import openvino  # noqa: E402  after the line above
from openvino import opset14 as operators  # noqa: E402  see above
from openvino.frontend.onnx import ConversionExtension  # noqa: E402  see above

__all__ = ["memory_of", "open_backend"]

_HINTS = {"auto": "f32", "float32": "f32", "bfloat16": "bf16"}


def open_backend(checkpoint: Checkpoint, options: Options) -> GraphBackend:
    """Open the graphs. Raises InvalidSetting, CheckpointError if a graph is damaged, NotCompiled if missing."""
    check_weights(SPEC.name, checkpoint)
    if checkpoint.graphs:
        raise CheckpointError(f"{checkpoint.graphs.directory} holds NVIDIA's graphs, which the onnx backend reads")
    core = openvino.Core()
    if options.precision == "bfloat16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise InvalidSetting("precision: got 'bfloat16'; this processor allows: float32")
    core.add_extension(ConversionExtension("MultiHeadAttention", "com.microsoft", _attention))
    graphs = Graphs(_GraphOpener(core, checkpoint, options).open)
    return GraphBackend(SPEC.name, "openvino", graphs, checkpoint, options)


@dataclass(frozen=True)
class _GraphOpener:
    """Opens a checkpoint's graphs: those next to its weights, or those that were compiled."""

    core: openvino.Core
    checkpoint: Checkpoint
    options: Options

    def open(self, part: str, threads: int) -> "_Graph":
        path = self._path(part)
        try:
            return self._opened(path, part, threads)
        except RuntimeError as error:  # its own have no other base
            raise CheckpointError(f"{path} cannot be loaded: {error}") from error

    def _opened(self, path: Path, part: str, threads: int) -> "_Graph":
        model = self.core.read_model(path)
        layout = ["framework", WEIGHTS_LAYOUT]
        check_layout(path, model.get_rt_info(layout).value if model.has_rt_info(layout) else None)
        config = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": _HINTS[self.options.precision],
            "INFERENCE_NUM_THREADS": threads,
            "ENABLE_CPU_PINNING": False,  # other work runs on these cores too
            # Entries for the shapes of calls. With the default of 5,000, the decoder's memory grew with each new size.
            "CPU_RUNTIME_CACHE_CAPACITY": "64",
        }
        any_shape = self.core.compile_model(model, "CPU", config)
        if not is_compiled_twice(part, self._values[part]):
            return _Graph(any_shape)
        model.reshape(shapes := self._one_image())
        return _Graph(any_shape, self.core.compile_model(model, "CPU", config), shapes)

    @cached_property
    def _values(self) -> dict[str, int]:
        return {name: network.values for name, network in network_sizes_on_disk(self.checkpoint).networks.items()}

    def _path(self, part: str) -> Path:
        if has_embedded_graphs(self.checkpoint):
            return find_embedded_graph(self.checkpoint, part)
        return compiled_graphs(self.options.cache_dir, self.checkpoint, "fp32").path(part)

    def _one_image(self) -> dict[str, tuple[int, ...]]:
        """The transformer's inputs for one image as the checkpoint's card has it."""
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
    """A graph for any shape, and perhaps one for a fixed shape, which saves a fifth of a small step's time."""

    def __init__(
        self,
        any_shape: openvino.CompiledModel,
        one_shape: openvino.CompiledModel | None = None,
        shapes: Mapping[str, tuple[int, ...]] = MappingProxyType({}),
    ) -> None:
        self._any = any_shape.create_infer_request()
        self._one = one_shape.create_infer_request() if one_shape else self._any
        self._shapes = shapes
        self._turn = Lock()

    def run(self, outputs: Sequence[str], inputs: Mapping[str, Array], /) -> list[Array]:
        """See `sd35.backends.graphs.backend.Graph`."""
        request = self._one if {name: each.shape for name, each in inputs.items()} == self._shapes else self._any
        with self._turn:  # a request computes one call at a time, and the next overwrites its outputs
            request.infer(inputs, share_inputs=True)
            return [request.get_tensor(name).data.copy() for name in outputs]


def _attention(node: Any) -> list[openvino.Output]:  # noqa: ANN401  the frontend's context of an ONNX node
    """ONNX Runtime's operator, as `sd35.compile.rewrites` writes it: three inputs `[R, tokens, heads * size]`."""
    apart = operators.constant(np.array([0, 0, node.get_attribute("num_heads"), -1], np.int64))
    together = operators.constant(np.array([0, 0, -1], np.int64))
    swap = operators.constant(np.array([0, 2, 1, 3], np.int64))
    heads = [
        operators.transpose(operators.reshape(node.get_input(index), apart, special_zero=True), swap)
        for index in range(3)
    ]
    attended = operators.transpose(operators.scaled_dot_product_attention(*heads), swap)
    return list(operators.reshape(attended, together, special_zero=True).outputs())
