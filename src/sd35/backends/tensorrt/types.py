"""What is used of TensorRT's Python API, which ships no types: held against the real package by a test.

Only what both flavours have, unless it says otherwise. Sizes are bytes, addresses are those of device memory.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeAlias

Buffer: TypeAlias = Any  # what has the buffer protocol; Python names it from 3.12 on
Dims: TypeAlias = Sequence[int]
Member: TypeAlias = Any  # of an enumeration


class Tensor(Protocol):
    """ITensor: of a network that is being built; a size of -1 is not fixed."""

    name: str
    dtype: Member

    @property
    def shape(self) -> Dims: ...


class Layer(Protocol):
    """ILayer."""

    name: str

    @property
    def type(self) -> Member: ...
    @property
    def num_inputs(self) -> int: ...
    @property
    def num_outputs(self) -> int: ...
    def get_input(self, index: int) -> Tensor | None: ...
    def get_output(self, index: int) -> Tensor | None: ...


class Network(Protocol):
    """INetworkDefinition."""

    @property
    def num_layers(self) -> int: ...
    @property
    def num_inputs(self) -> int: ...
    @property
    def num_outputs(self) -> int: ...
    def get_layer(self, index: int) -> Layer: ...
    def get_input(self, index: int) -> Tensor: ...
    def get_output(self, index: int) -> Tensor: ...


class Profile(Protocol):
    """IOptimizationProfile."""

    def set_shape(self, input: str, min: Dims, opt: Dims, max: Dims) -> None: ...


class Config(Protocol):
    """IBuilderConfig; the compute capabilities are TensorRT-RTX's."""

    num_compute_capabilities: int

    def set_compute_capability(self, compute_capability: Member, index: int) -> bool: ...
    def set_flag(self, flag: Member) -> None: ...
    def add_optimization_profile(self, profile: Profile) -> int: ...


class Builder(Protocol):
    """IBuilder."""

    def create_network(self, flags: int) -> Network: ...
    def create_builder_config(self) -> Config: ...
    def create_optimization_profile(self) -> Profile: ...
    def build_serialized_network(self, network: Network, config: Config) -> Buffer | None: ...


class ParserError(Protocol):
    """IParserError."""

    def desc(self) -> str: ...
    def node_name(self) -> str: ...
    def node_operator(self) -> str: ...


class Parser(Protocol):
    """OnnxParser."""

    @property
    def num_errors(self) -> int: ...
    def get_error(self, index: int) -> ParserError: ...
    def parse(self, model: Buffer, path: str) -> bool: ...


class RuntimeCache(Protocol):
    """IRuntimeCache, of TensorRT-RTX: kernels that were compiled on this GPU."""

    def serialize(self) -> Buffer: ...
    def deserialize(self, blob: Buffer) -> bool: ...


class RuntimeConfig(Protocol):
    """IRuntimeConfig; CUDA graphs and the cache are TensorRT-RTX's."""

    cuda_graph_strategy: Member

    def set_execution_context_allocation_strategy(self, strategy: Member) -> None: ...
    def create_runtime_cache(self) -> RuntimeCache: ...
    def set_runtime_cache(self, cache: RuntimeCache) -> bool: ...


class Context(Protocol):
    """IExecutionContext."""

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool: ...
    def set_input_shape(self, name: str, shape: Dims) -> bool: ...
    def get_tensor_shape(self, name: str) -> Dims: ...
    def set_tensor_address(self, name: str, memory: int) -> bool: ...
    def update_device_memory_size_for_shapes(self) -> int: ...
    def set_device_memory(self, memory: int, size: int) -> None: ...
    def execute_async_v3(self, stream_handle: int) -> bool: ...


class Engine(Protocol):
    """ICudaEngine."""

    weight_streaming_budget_v2: int

    @property
    def streamable_weights_size(self) -> int: ...
    @property
    def num_io_tensors(self) -> int: ...
    def get_tensor_name(self, index: int) -> str: ...
    def get_tensor_mode(self, name: str) -> Member: ...
    def get_tensor_dtype(self, name: str) -> Member: ...
    def get_device_memory_size_for_profile_v2(self, profile_index: int) -> int: ...
    def create_runtime_config(self) -> RuntimeConfig: ...
    def create_execution_context(self, runtime_config: RuntimeConfig) -> Context | None: ...


class Runtime(Protocol):
    """IRuntime."""

    def deserialize_cuda_engine(self, serialized_engine: Buffer) -> Engine | None: ...


class TensorRt(Protocol):
    """The module. Enumerations are pybind11's, of which the members are attributes and `__members__`."""

    __version__: str
    ComputeCapability: Any
    BuilderFlag: Any
    CudaGraphStrategy: Any
    DataType: Any
    ExecutionContextAllocationStrategy: Any
    ILogger: Any
    LayerType: Any
    NetworkDefinitionCreationFlag: Any
    TensorIOMode: Any

    def Builder(self, logger: object) -> Builder: ...
    def OnnxParser(self, network: Network, logger: object) -> Parser: ...
    def Runtime(self, logger: object) -> Runtime: ...


CLASSES: Mapping[str, type] = {
    "ITensor": Tensor,
    "ILayer": Layer,
    "INetworkDefinition": Network,
    "IOptimizationProfile": Profile,
    "IBuilderConfig": Config,
    "Builder": Builder,
    "ParserError": ParserError,
    "OnnxParser": Parser,
    "IRuntimeCache": RuntimeCache,
    "IRuntimeConfig": RuntimeConfig,
    "IExecutionContext": Context,
    "ICudaEngine": Engine,
    "Runtime": Runtime,
}
"""The types by the names of the classes that they describe."""
