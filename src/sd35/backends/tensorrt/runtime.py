"""Run TensorRT engines. Needs a GPU: apart from `Workspace` and `streaming_budgets`, this code has never been run.

The engines of a checkpoint share one workspace in device memory and one CUDA stream, and run one after the other. Each
combination of input shapes has its own buffers for inputs and outputs. Its calls therefore always use the same
addresses, so the first call can be recorded as a CUDA graph and later ones replay it.
"""

import logging
import mmap
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sd35.backends.base import Memory
from sd35.backends.tensorrt.buckets import Bucket, bucket_for, buckets_of
from sd35.backends.tensorrt.flavour import Flavour
from sd35.backends.tensorrt.types import Context, Engine, Runtime, RuntimeCache, RuntimeConfig
from sd35.checkpoints.card import Card
from sd35.checkpoints.graphs.compiled import BuiltEngine
from sd35.errors import CheckpointError
from sd35.tensors import LATENT_PX

_CACHE_FILE = "runtime.cache"  # kernels of TensorRT-RTX, next to the engine; a rebuilt engine starts without them
_MAX_CALLS = 32  # combinations of shapes with buffers and CUDA graphs, per network


class EngineNetworks:
    """Implements `sd35.backends.tensorrt.backend.Networks` with TensorRT engines."""

    def __init__(
        self,
        flavour: Flavour,
        built: Mapping[str, BuiltEngine],
        card: Card,
        device: torch.device,
        memory: Memory | None,
    ) -> None:
        """Load the engines in `built`, which are named by part: "transformer", "vae" and so on.

        If `memory` is given, weights that do not fit in it are streamed from the host. Raises CheckpointError if an
        engine cannot be loaded.
        """
        self.device = device
        self.graph = built["transformer"].graph
        self.versions = {flavour.name: flavour.version}
        self._built = built
        self._lock = threading.Lock()
        self._stream = torch.cuda.Stream(device)
        self._runtime = flavour.trt.Runtime(flavour.log)  # must outlive its engines
        workspace = Workspace(device)
        with self.exclusive():
            engines = {part: _load_engine(flavour, self._runtime, each) for part, each in built.items()}
            buckets = {part: buckets_of(each.shapes, card) if each.shapes else [] for part, each in built.items()}
            if memory:  # before the networks create contexts, because this loads the weights
                _set_streaming_budgets(engines, buckets, (card.width, card.height), memory.free_bytes())
            self._networks = {
                part: _Network(flavour, engine, buckets[part], built[part].folder / _CACHE_FILE, workspace)
                for part, engine in engines.items()
            }

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the lock and switch to the engines' stream.

        The engines' stream first waits for the caller's. Afterwards the caller's stream waits for the engines'.
        """
        with self._lock, torch.cuda.device(self.device):
            caller_stream = torch.cuda.current_stream()
            self._stream.wait_stream(caller_stream)
            with torch.cuda.stream(self._stream):
                yield
            caller_stream.wait_stream(self._stream)

    def max_batch(self, part: str) -> int:
        """Return the largest number of rows in a batch of a network."""
        return self._built[part].batch

    def run(self, part: str, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run a network and return its outputs. Casts inputs to the engine's types. Call it inside `exclusive`."""
        return self._networks[part](inputs)


class Workspace:
    """Device memory for intermediate results, shared by all engines. It grows to the needs of the largest call."""

    def __init__(self, device: torch.device) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8, device=device)
        self.version = 0
        """Increases when the address changes. CUDA graphs that were recorded before are then invalid."""

    def take(self, size_bytes: int) -> tuple[int, int]:
        """Return the address and the size in bytes of the memory. First replaces it if it is below `size_bytes`."""
        if size_bytes > self._memory.numel():
            device, self._memory = self._memory.device, self._memory.new_empty(0)  # free it before the next allocation
            self._memory = torch.empty(size_bytes, dtype=torch.uint8, device=device)
            self.version += 1
        return self._memory.data_ptr(), self._memory.numel()


def streaming_budgets(streamable_bytes: Mapping[str, int], room_bytes: int) -> dict[str, int]:
    """Return how many bytes of each network's weights stay on the device if not all fit in `room_bytes`.

    The transformer has priority, because it runs at every step. The remaining weights are streamed at each call.
    """
    budgets = {}
    for part in sorted(streamable_bytes, key=lambda part: part != "transformer"):  # False, the transformer, is first
        budgets[part] = min(streamable_bytes[part], max(0, room_bytes))
        room_bytes -= budgets[part]
    return budgets


@dataclass(eq=False)
class _Call:
    """The buffers and the CUDA graph for all calls of a network with the same input shapes.

    Attributes:
        context: The execution context for the size bucket of the inputs.
        inputs: Buffers by name. The context reads them.
        outputs: Buffers by name. The context writes them.
        graph: The recorded CUDA graph. None before the first run, and if graphs are not recorded.
        version: The version of the workspace in the last run; -1 before the first run.
    """

    context: Context
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    graph: torch.cuda.CUDAGraph | None = None
    version: int = -1


class _Network:
    """One engine, with an execution context for each profile in use.

    A profile is TensorRT's word for a range of input shapes. The engine has one for each size bucket, in their order.
    """

    def __init__(
        self, flavour: Flavour, engine: Engine, buckets: list[Bucket], cache_file: Path, workspace: Workspace
    ) -> None:
        self._flavour, self._engine, self._buckets, self._workspace = flavour, engine, buckets, workspace
        self._cache_file = cache_file
        streams_weights = (
            engine.weight_streaming_budget_v2 < engine.streamable_weights_size
        )  # not all weights on the device
        self._records_graphs = not streams_weights and not flavour.is_rtx  # TensorRT-RTX records graphs itself
        self._config, self._cache = self._configure(streams_weights=streams_weights)
        self._contexts: dict[int, Context] = {}
        self._calls: OrderedDict[tuple[torch.Size, ...], _Call] = OrderedDict()
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        input_mode = flavour.trt.TensorIOMode.INPUT
        self._inputs = [name for name in names if engine.get_tensor_mode(name) == input_mode]
        self._outputs = [name for name in names if name not in self._inputs]

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run the engine, and return copies of its outputs by name."""
        shapes = tuple(inputs[name].shape for name in self._inputs)
        if is_new := shapes not in self._calls:
            self._calls[shapes] = self._new_call(inputs)
            if len(self._calls) > _MAX_CALLS:
                self._calls.popitem(last=False)  # the least recently used
        self._calls.move_to_end(shapes)
        call = self._calls[shapes]
        for name, buffer in call.inputs.items():
            buffer.copy_(inputs[name])
        self._execute(call)
        if is_new and self._cache:
            _save_cache(self._cache, self._cache_file)
        return {name: buffer.clone() for name, buffer in call.outputs.items()}

    def _execute(self, call: _Call) -> None:
        """Replay the CUDA graph of a call if it is valid. Otherwise run the call, and record its graph."""
        if call.graph and call.version == self._workspace.version:
            call.graph.replay()
            return
        self._bind(call)
        self._enqueue(call.context)
        call.version = self._workspace.version
        # After a normal run, because the setup of the first run is not allowed while recording.
        if self._records_graphs:
            call.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(call.graph, stream=torch.cuda.current_stream(), capture_error_mode="thread_local"):
                self._enqueue(call.context)

    def _enqueue(self, context: Context) -> None:
        """Add a run of the engine to the current stream. Internal: RuntimeError makes the images fail."""
        if not context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
            raise RuntimeError(f"TensorRT cannot run an engine: {self._flavour.log.take_errors()}")

    def _bind(self, call: _Call) -> None:
        """Set the shapes and addresses of a call in its context. A call with the same context may have changed them."""
        context = call.context
        for name, buffer in call.inputs.items():
            context.set_input_shape(name, tuple(buffer.shape))
        context.set_device_memory(*self._workspace.take(context.update_device_memory_size_for_shapes()))
        for name, buffer in {**call.inputs, **call.outputs}.items():
            context.set_tensor_address(name, buffer.data_ptr())

    def _new_call(self, inputs: Mapping[str, Tensor]) -> _Call:
        """Return new buffers, and the context to run, for the shapes of `inputs`."""
        context = self._context(self._profile_of(inputs))
        buffers = {name: self._new_buffer(name, tuple(inputs[name].shape)) for name in self._inputs}
        for name, buffer in buffers.items():
            context.set_input_shape(name, tuple(buffer.shape))
        outputs = {name: self._new_buffer(name, tuple(context.get_tensor_shape(name))) for name in self._outputs}
        return _Call(context, buffers, outputs)

    def _new_buffer(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Return an uninitialised tensor for an input or output of the engine, in its type."""
        types = self._flavour.trt.DataType
        dtypes = {
            types.FLOAT: torch.float32,
            types.BF16: torch.bfloat16,
            types.HALF: torch.float16,
            types.INT32: torch.int32,
        }
        return torch.empty(shape, dtype=dtypes[self._engine.get_tensor_dtype(name)], device="cuda")

    def _profile_of(self, inputs: Mapping[str, Tensor]) -> int:
        """Return the index of the profile for the image size of `inputs`. Only latents have four axes."""
        if not self._buckets:  # a text encoder, with one profile for all image sizes
            return 0
        height, width = next(tensor.shape[2:] for tensor in inputs.values() if tensor.ndim == 4)
        return bucket_for(self._buckets, (width * LATENT_PX, height * LATENT_PX))

    def _context(self, profile: int) -> Context:
        """Return the execution context for a profile, after creating it for the first call.

        Internal: RuntimeError makes the images fail.
        """
        if profile not in self._contexts:
            context = self._engine.create_execution_context(self._config)
            if context is None or not context.set_optimization_profile_async(
                profile, torch.cuda.current_stream().cuda_stream
            ):
                raise RuntimeError(f"TensorRT cannot create an execution context: {self._flavour.log.take_errors()}")
            self._contexts[profile] = context
        return self._contexts[profile]

    def _configure(self, *, streams_weights: bool) -> tuple[RuntimeConfig, RuntimeCache | None]:
        """Return the configuration of contexts, and TensorRT-RTX's kernel cache (None for standard TensorRT).

        Contexts use the shared workspace. For TensorRT-RTX, also enables CUDA graphs unless weights are streamed.
        """
        trt = self._flavour.trt
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if not self._flavour.is_rtx:
            return config, None
        strategies = trt.CudaGraphStrategy
        config.cuda_graph_strategy = strategies.DISABLED if streams_weights else strategies.WHOLE_GRAPH_CAPTURE
        cache = config.create_runtime_cache()
        if self._cache_file.is_file():
            cache.deserialize(self._cache_file.read_bytes())  # rejects a cache from another machine
        config.set_runtime_cache(cache)
        return config, cache


def _load_engine(flavour: Flavour, runtime: Runtime, built: BuiltEngine) -> Engine:
    """Load an engine from its file. Raises CheckpointError if TensorRT cannot load it."""
    with built.file.open("rb") as file:
        engine = runtime.deserialize_cuda_engine(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    if engine is None:
        raise CheckpointError(
            f"{built.file} cannot be loaded: {flavour.log.take_errors()}; delete {built.folder}, and build the engine"
            " again with `sd35 compile --target tensorrt` and the same --checkpoint and --precision"
        )
    return engine


def _set_streaming_budgets(
    engines: Mapping[str, Engine], buckets: Mapping[str, list[Bucket]], size: tuple[int, int], free_bytes: int
) -> None:
    """Set how much of each engine's weights stays on the device.

    Leaves working memory for an image of `size`: width and height in pixels.
    """
    profiles = {part: bucket_for(of_part, size) if of_part else 0 for part, of_part in buckets.items()}
    working_bytes = max(
        engine.get_device_memory_size_for_profile_v2(profiles[part]) for part, engine in engines.items()
    )
    streamable = {part: engine.streamable_weights_size for part, engine in engines.items()}
    for part, budget_bytes in streaming_budgets(streamable, free_bytes - working_bytes).items():
        if budget_bytes < streamable[part]:
            engines[part].weight_streaming_budget_v2 = budget_bytes


def _save_cache(cache: RuntimeCache, path: Path) -> None:
    """Write the kernel cache atomically, because another process may read it. Only logs a warning if that fails."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(cache.serialize())
        temporary.replace(path)
    except OSError as error:
        logging.getLogger("sd35.tensorrt").warning("%s cannot be written, so the next start is slower: %s", path, error)
